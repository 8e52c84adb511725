"""predict.py through its command line: what it reads, what it prints and writes, and how it ends."""

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import test as test_script
from config import CLASSES
from faces.tables import BEGIN
from helpers import REPO, faces, save_face, write_folders, zip_folder
from utils import read_checkpoint, write_checkpoint

PLACE = "face,x,y,width,height,score,answer"
COLUMNS = f"file,{PLACE},prediction,probability,angry,disgust,fear,happy,sad,surprise,neutral,true,note,problem"
RUN = [sys.executable, str(REPO / "predict.py")]


@pytest.fixture
def go(script_runner, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 8)
    return script_runner(predict.main)


def save_test_set(root: Path, count: int = 21, *, wrong: int = 0) -> Path:
    """root/<class>/NN.png of `count` images; the folders of the first `wrong` name the next class, not their own."""
    images, labels = faces(count)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[(label + (number < wrong)) % 7]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return root


def named(out: str) -> list[str]:
    """The files of the lines with a prediction, in their order."""
    prediction = re.compile(rf"  ({'|'.join(CLASSES)}) [01]\.\d{{4}}")
    return [line.split("  ")[0] for line in out.splitlines() if prediction.search(line)]


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- What is read ---


def test_without_paths_test_is_read_by_the_command_line(tmp_path, weights):
    save_test_set(tmp_path / "test", 7)
    command = [sys.executable, "-X", "importtime", *RUN[1:], "--weights", str(weights)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, errors) == (0, [])
    imported = set(re.findall(r"\| +(\w+)", done.stderr))
    assert "torch" in imported and not imported & {"matplotlib", "sklearn", "pandas", "demo", "train"}
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"weights {weights}: TheModel, trained on archive.zip, validation accuracy")
    assert re.fullmatch(r"test/angry/00.png  angry 0.\d{4}  \(true angry\)", lines[1])
    assert "accuracy 1.0000 (7 of 7)  macro-F1 1.0000" in done.stdout
    assert re.match(r"7 images; \d+ images/s on cpu ", lines[-1])


def test_without_paths_and_test_the_zip_is_read(go, tmp_path):
    status, out, err = go()
    assert (status, out) == (2, "") and "python predict.py photo.jpg faces/ faces.zip" in err
    zip_folder(save_test_set(tmp_path / "faces", 7), tmp_path / "test.zip")
    status, out, _ = go()
    assert status == 0 and len(named(out)) == 7 and named(out)[0] == "test.zip/angry/00.png"
    save_test_set(tmp_path / "test", 3)
    assert named(go()[1])[0] == "test/angry/00.png"


def test_images_folders_and_zips_mix_in_the_order_typed(go, tmp_path):
    save_face(tmp_path / "b.png", 0)
    save_test_set(tmp_path / "many", 9)
    zip_folder(save_face(tmp_path / "z" / "in.png", 1).parent, tmp_path / "some.zip")
    status, out, _ = go("some.zip", "--top-k", "1", "many", "b.png", "b.png")
    names = named(out)
    assert status == 0 and (names[0], names[-2:], len(names)) == ("some.zip/in.png", ["b.png"] * 2, 12)
    assert names[1:-2] == sorted(names[1:-2]) and names[1] == "many/angry/00.png"


def test_every_format_is_read(go, tmp_path):
    suffixes = ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "pgm", "ppm", "gif", "avif", "jp2"]
    suffixes += ["j2k", "PNG"]
    for suffix in suffixes:
        save_face(tmp_path / "in" / f"{suffix}.{suffix}", 5)
    copied = {"jpg.pjpeg": "jpg.jpg", "avif.jpg": "avif.avif", "webp.png": "webp.webp"}  # the bytes decide
    for name, original in copied.items():
        (tmp_path / "in" / name).write_bytes((tmp_path / "in" / original).read_bytes())
    out = go("in")[1]
    for name in (*(f"{suffix}.{suffix}" for suffix in suffixes), *copied):
        assert re.search(rf"/{name}  surprise 0\.\d{{4}}\n", out), name


def test_a_file_of_any_name_is_read_where_it_is_typed_and_left_out_in_folders(go, tmp_path):
    names = ["photo", "photo.jpg.bak", "photo.jpg_large"]
    for name in names:
        save_face(tmp_path / "in" / "photo.png").rename(tmp_path / "in" / name)
    typed = [f"in/{name}" for name in names]
    assert named(go(*typed)[1]) == typed
    status, _, err = go("in")
    assert (status, err.count("not an image file\n")) == (2, 3)
    save_face(tmp_path / "in" / "photo.jpg")
    assert go(*typed, "in/photo.jpg", "--annotate", "out")[0] == 0 and len(list((tmp_path / "out").iterdir())) == 4
    status, _, err = go("in/photo", "--annotate", "in")
    assert status == 2 and "images are read from there" in err


def test_wildcards_that_the_shell_left_are_expanded(go, tmp_path):
    for name in ("a.png", "b.png", "c.jpg", "d[1].png", "d1.png"):
        save_face(tmp_path / "in" / name)
    assert named(go("in/?.png", "in/*.jpg")[1]) == ["in/a.png", "in/b.png", "in/c.jpg"]
    assert named(go("in/d[1].png")[1]) == ["in/d[1].png"]  # there is a file of that very name
    assert go("in/*.gif") == (2, "", "error: 'in/*.gif': no such file or folder\n")


@pytest.mark.parametrize(
    ("typed", "count"), [("archive", 7), ("archive/train/angry", 1), ("archive/train/angry/{}", 1), ("archive/test", 0)]
)
def test_an_accuracy_on_training_images_is_called_no_test(go, tmp_path, typed, count):
    write_folders(tmp_path / "archive", train=7, val=0, test=7)
    photo = next((tmp_path / "archive/train/angry").iterdir()).name
    _, out, _ = go(typed.format(photo), "--quiet")
    assert re.findall(r"^note: (\d+) images? in train/", out, re.M) == [str(count)] * bool(count)


# --- What cannot be read ---


def test_bad_files_are_named_counted_and_skipped(go, tmp_path):
    good = save_face(tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    (tmp_path / "in" / "c.png").write_bytes(good[:200])
    (tmp_path / "in" / "d.txt").write_text("no image")
    status, out, err = go("in", "--csv", "t.csv")
    problems = {"in/a.png": "0 bytes", "in/c.png": "damaged (image file is truncated)", "in/d.txt": "not an image file"}
    assert status == 0 and named(out) == ["in/b.png"] and "1 image, 3 skipped; " in out
    assert err.splitlines() == [f"skipped {name}: {problem}" for name, problem in problems.items()]
    table = rows(tmp_path / "t.csv")
    assert {row["file"]: row["problem"] for row in table} == problems | {"in/b.png": ""}
    assert [bool(row["prediction"]) for row in table] == [False, True, False, False]
    status, out, err = go("in", "--strict", "--csv", "strict.csv")  # an error, after all work is done
    assert status == 2 and named(out) == ["in/b.png"] and "error: --strict: 3 skipped" in err
    assert rows(tmp_path / "strict.csv") == table and go("in/b.png", "--strict")[0] == 0


def test_a_link_to_a_folder_elsewhere_is_named_and_followed_on_request(go, tmp_path):
    save_face(tmp_path / "in" / "a.png")
    save_face(tmp_path / "far" / "b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    status, out, err = go("in")
    assert (status, named(out)) == (0, ["in/a.png"]) and "1 image, 1 skipped; " in out
    assert err.startswith("skipped in/link/: a link that leads out") and "--follow-links" in err
    status, out, err = go("in", "--follow-links")
    assert (status, named(out), err) == (0, ["in/a.png", "in/link/b.png"], "")


def test_nothing_readable_is_an_error(go, tmp_path):
    (tmp_path / "test").mkdir()
    status, out, err = go()
    assert status == 2 and "0 images, 1 skipped" in out and "accuracy" not in out.split("\n", 1)[1]
    assert err.startswith("skipped test: ") and "error: nothing could be read" in err


def test_a_missing_path_stops_before_any_work(go, tmp_path):
    save_face(tmp_path / "a.png")
    assert go("a.png", "b.png", "", "c") == (2, "", "error: 'b.png', '', 'c': no such file or folder\n")


def test_a_path_that_is_no_source_is_skipped_like_a_bad_file(go, tmp_path):
    save_face(tmp_path / "a.png")
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 broken off")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "lost.png").symlink_to("nowhere")
    status, out, err = go("half.zip", "notes.txt", "lost.png", "a.png")
    assert status == 0 and named(out) == ["a.png"] and "1 image, 3 skipped" in out
    assert [line.split(":")[0] for line in err.splitlines()] == [
        f"skipped {name}" for name in ("half.zip", "notes.txt", "lost.png")
    ]


def test_weights_that_cannot_be_used_leave_no_table(go, tmp_path, weights):
    save_face(tmp_path / "a.png")
    status, out, err = go("a.png", "--csv", "t.csv", weights="no.pth")
    assert (status, out) == (2, "") and err.startswith("error: no.pth: no such weight file; train one with")
    content = read_checkpoint(weights)
    content["state_dict"]["classifier.bias"][2] = torch.nan
    write_checkpoint(tmp_path / "nan.pth", content)
    status, out, err = go("a.png", "--csv", "t.csv", weights="nan.pth")
    assert status == 2 and named(out) == [] and "not finite" in err
    assert not [path for path in tmp_path.iterdir() if "t.csv" in path.name]


# --- What is printed ---


@pytest.mark.parametrize(
    "typo",
    [
        ["--wieghts", "x"],
        ["--top-k", "0"],
        ["--top-k", "101"],
        ["--weights", ""],
        ["--csv", "t", "--json", "t"],  # both in one file
    ],
)
def test_a_typo_in_a_flag_exits_with_2_and_names_it(typo, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["a.png", *typo])
    assert stopped.value.code == 2 and typo[-2].lstrip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "name"),
    [("--json", "a.png"), ("--json", "config.json"), ("--csv", "t.csv"), ("--csv", "link"), ("--sheet", "b.png")],
)
def test_an_output_replaces_only_what_it_wrote(go, tmp_path, flag, name):
    for place in ("in/a.png", "a.png", "b.png"):
        save_face(tmp_path / place, 4)
    (tmp_path / "config.json").write_text('{"data": "", "file": 1}')
    (tmp_path / "t.csv").write_text("file,label\na.png,sad\n")
    (tmp_path / "link").symlink_to("t.csv")
    before = (tmp_path / name).read_bytes()
    status, _, err = go("in", flag, name)
    assert status == 2 and f"{flag} {name}: it is there already" in err and (tmp_path / name).read_bytes() == before
    (tmp_path / name).write_bytes(b"")  # an empty file, then its own one
    assert [go("in", flag, name)[0] for _ in range(2)] == [0, 0] and (tmp_path / name).read_bytes() != before


def test_no_cell_of_a_table_is_a_formula(go, tmp_path):
    save_face(tmp_path / "=1+1.png", 4)
    assert go("=1+1.png", "--csv", "t.csv")[0] == 0
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("./=1+1.png,")


def test_top_k_gives_the_best_first(go, tmp_path):
    save_face(tmp_path / "a.png", 4)
    line = next(line for line in go("a.png", "--top-k", "7")[1].splitlines() if line.startswith("a.png"))
    pairs = [pair.split() for pair in line.split("  ")[1].split(", ")]
    assert pairs[0][0] == "sad" and {name for name, _ in pairs} == set(CLASSES)
    values = [float(value) for _, value in pairs]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-3)


def test_images_of_unknown_class_are_not_scored(go, tmp_path):
    save_face(tmp_path / "in" / "contempt" / "b.png", 3)
    _, out, _ = go("in")
    assert "accuracy" not in out.split("\n", 1)[1] and "true" not in out
    save_face(tmp_path / "in" / "happy" / "a.png", 3)
    _, out, _ = go("in")
    assert "accuracy 1.0000 (1 of 1)" in out and re.search(r"not scored.*: 1$", out, re.M)


def test_accuracy_is_that_of_the_table_and_of_test_py(go, tmp_path, weights, capsys):
    write_folders(tmp_path / "archive", train=14, val=0, test=30)
    place = tmp_path / "archive" / "test"
    for path in sorted((place / "happy").iterdir())[:3]:
        path.rename(place / "sad" / path.name)
    _, out, err = go("archive/test", "--quiet", "--csv", "t.csv")
    predicted = out.splitlines()
    assert err == "" and named(out) == [] and len(predicted) == 1 + 1 + 8 + 1
    assert predicted[0].startswith("weights ") and predicted[1].startswith("accuracy 0.9000 (27 of 30)")
    assert sum(row["prediction"] == row["true"] for row in rows(tmp_path / "t.csv")) == 27
    status = test_script.main(["--weights", str(weights), "--device", "cpu", "--precision", "fp32"])
    scored = capsys.readouterr().out.splitlines()
    assert status == 0 and scored[-8:] == [f"test  {line}" for line in predicted[2:10]]
    assert f"test  {predicted[1]}" in scored


def test_probabilities_are_calibrated_and_of_all_views(go, tmp_path, weights):
    save_test_set(tmp_path / "test", 3)
    write_checkpoint(tmp_path / "cold.pth", {**read_checkpoint(weights), "temperature": 0.5})
    go("--csv", "plain.csv")
    go("--csv", "cold.csv", weights="cold.pth")
    _, out, _ = go("--csv", "crops.csv", "--tta", "crops")
    assert "test-time augmentation: crops" in out.splitlines()[0]
    plain, cold, crops = (
        np.array([[float(row[name]) for name in CLASSES] for row in rows(tmp_path / name_of)])
        for name_of in ("plain.csv", "cold.csv", "crops.csv")
    )
    squared = plain**2
    np.testing.assert_allclose(cold, squared / squared.sum(1, keepdims=True), atol=1e-5)
    assert (plain.argmax(1) == crops.argmax(1)).all() and np.abs(plain - crops).max() > 1e-6


# --- Tables ---


def test_csv_and_json_have_the_same_rows_in_the_order_of_the_lines(go, tmp_path):
    save_test_set(tmp_path / "test", 20)
    (tmp_path / "test" / "angry" / "bad.png").write_bytes(b"no image")
    _, out, _ = go("--csv", "t.csv", "--json", "t.json")
    assert (tmp_path / "t.csv").read_text().split("\n")[0] == COLUMNS
    table, listed = rows(tmp_path / "t.csv"), json.loads((tmp_path / "t.json").read_text())
    assert [row["file"] for row in table if row["prediction"]] == named(out)
    assert len(table) == len(listed) == 21
    for row, entry in zip(table, listed, strict=True):
        words = ("file", "answer", "prediction", "true", "note", "problem")
        assert all(row[key] == (entry[key] or "") for key in words)
        if entry["problem"]:
            assert entry["probability"] is None and entry["probabilities"] is None and row["probability"] == ""
        else:
            assert list(entry["probabilities"]) == list(CLASSES)
            assert {name: float(row[name]) for name in CLASSES} == entry["probabilities"]
            assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert entry["probability"] == max(entry["probabilities"].values()) == float(row["probability"])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_table_on_standard_output_is_alone_there(go, tmp_path, form):
    save_test_set(tmp_path / "test", 3)
    status, out, err = go(f"--{form}", "-")
    table = list(csv.DictReader(io.StringIO(out))) if form == "csv" else json.loads(out)
    assert status == 0 and [row["prediction"] for row in table] == ["angry", "disgust", "fear"]
    assert err.startswith("weights ") and "accuracy 1.0000 (3 of 3)" in err


def test_strange_file_names_do_not_break_lines_or_tables(go, tmp_path):
    names = ["a\nb.png", "c\rd.png", 'e,"f.png', "g\x1b[31m.png", "höhe.png"]
    for name in names:
        save_face(tmp_path / "in" / name)
    os.rename(save_face(tmp_path / "in" / "h.png"), os.fsencode(tmp_path / "in") + b"/\xff.png")
    _, out, _ = go("in", "--csv", "t.csv", "--json", "t.json")
    shown = ["a\\nb.png", "c\\rd.png", 'e,"f.png', "g\\x1b[31m.png", "höhe.png", "\\xff.png"]
    wanted = [f"in/{name}" for name in shown]
    assert sorted(named(out)) == sorted(row["file"] for row in rows(tmp_path / "t.csv")) == sorted(wanted)
    assert {entry["file"] for entry in json.loads((tmp_path / "t.json").read_text())} == set(wanted)
    assert go(os.fsdecode(b"in/\xff.png"), "--csv", "t.csv")[0] == 0 and len(rows(tmp_path / "t.csv")) == 1


@pytest.mark.parametrize("target", ["no/t.csv", ".", "x" * 300, os.devnull])
def test_a_table_that_cannot_be_written_stops_before_any_work(go, tmp_path, target):
    save_face(tmp_path / "a.png")
    status, out, err = go("a.png", "--csv", target)
    assert (status, out) == (2, "") and err.startswith(f"error: --csv {target}")
    assert Path(os.devnull).is_char_device()


def test_a_table_that_breaks_off_leaves_the_old_one_whole(tmp_path, weights):
    save_test_set(tmp_path / "test", 30)
    (tmp_path / "old.csv").write_text(BEGIN["csv"])
    (tmp_path / "t.csv").symlink_to("old.csv")
    limit = 2000  # bytes a file may have: the header and some rows; other files must not be met by it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [*RUN, "--weights", str(weights), "--csv", "t.csv"],
        cwd=tmp_path,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2 and "could not be written (File too large)" in done.stderr
    assert (tmp_path / "t.csv").read_text() == BEGIN["csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.csv", "t.csv", "test"]


# --- How it ends ---


def many_images(path: Path, count: int) -> Path:
    """A zip of `count` images in class folders, quick to make."""
    encoded = []
    for image in faces(7)[0]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{CLASSES[number % 7]}/{number:05}.png", encoded[number % 7])
    return path


def test_ctrl_c_keeps_the_rows_so_far(go, tmp_path, monkeypatch):
    save_test_set(tmp_path / "test", 40)
    make_rows, batches = predict.make_rows, []

    def press_in_the_third_batch(*args):
        batches.append(args)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return make_rows(*args)

    monkeypatch.setattr(predict, "make_rows", press_in_the_third_batch)
    (tmp_path / "real.csv").write_text(BEGIN["csv"])
    (tmp_path / "t.csv").symlink_to("real.csv")
    assert go("--csv", "t.csv", "--json", "t.json")[0] == 130
    assert len(rows(tmp_path / "real.csv.part")) == len(json.loads((tmp_path / "t.json.part").read_text())) == 16
    assert (tmp_path / "t.csv").read_text() == BEGIN["csv"] and not (tmp_path / "t.json").exists()


# --- Memory and time ---


MEMORY = """
import contextlib, os, re, sys
from pathlib import Path
sys.path.insert(0, {repo!r})
import numpy as np
import predict, predictor
class Flat:  # quick: what is measured is everything around the network
    name, device = "flat", "cpu"
    content = {{"model": "Flat", "metrics": dict.fromkeys(("official", "deduplicated"), dict(count=1, accuracy=1.0))}}
    content["dataset"] = {{"source": "", "limit": 0, "demo": False}}
    content |= {{"classes": list("abcdefg"), "config": {{}}}}
    def probabilities(self, pixels):
        return np.full((len(pixels), 7), 1 / 7, np.float32)
predictor.open_engine = lambda *_, **__: (Flat(), Path("w.pth"), [])
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        tables = ["--csv", "t.csv", "--json", "t.json"]
        assert predict.main([name, *tables]) == 0
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage has the parent's peak too")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    files = [str(many_images(tmp_path / f"{count}.zip", count)) for count in (300, 3000)]
    command = [sys.executable, "-c", MEMORY.format(repo=str(REPO)), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peaks = [float(line) for line in done.stdout.split()]
    # 2,700 more names and places in the zip are 6 MB; their pixels would be 6 more, as the network's input 25.
    assert peaks[1] - peaks[0] < 8, f"{peaks[0]} MB for 300 images, {peaks[1]} MB for 3000"
    assert len(rows(tmp_path / "t.csv")) == 3000

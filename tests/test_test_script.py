"""test.py: the figures of a split, where they come from, and what it says about them."""

import json
import re
import subprocess
import sys

import pytest

import dataset
import test as script
import val
from config import CLASSES, Config
from helpers import REPO, brightness_weights, run_script, write_folders, zip_folder
from utils import read_checkpoint, write_checkpoint


@pytest.fixture
def go(script_runner):
    return script_runner(script.main)


def test_the_test_split_through_the_command_line(tmp_path, weights):
    write_folders(tmp_path / "archive", train=14, val=7, test=21)
    zip_folder(tmp_path / "archive", tmp_path / "archive.zip")
    done = run_script("test.py", "--data", "archive.zip", "--weights", weights, "--json", "t.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"weights {weights}: TheModel, trained on archive.zip")
    figures = "accuracy 1.0000 (21 of 21)  macro-F1 1.0000  ECE 0."
    assert any(line.startswith(f"test  official        {figures}") for line in lines)
    assert any(line.startswith(f"test  deduplicated    {figures}") for line in lines)
    written = json.loads((tmp_path / "t.json").read_text())
    assert (written["split"], written["demo"], written["data"]) == ("test", False, "archive.zip")
    assert written["official"]["accuracy"] == 1.0 and written["official"]["count"] == 21


def test_every_figure_stands_beside_the_name_of_its_split(go, tmp_path):
    write_folders(tmp_path / "archive")
    _, out, _ = go("--split", "val")
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if "cross-entropy" in line)
    assert len(lines[first:]) == 1 + 2 + 1 + 8 and all(line.startswith("val  ") for line in lines[first:])
    assert [line.split()[1] for line in lines[-7:]] == list(CLASSES)


def test_copies_of_train_images_are_left_out_of_the_second_line(go, tmp_path):
    write_folders(tmp_path / "archive", val=28, val_copies=10)
    _, out, _ = go("--split", "val", "--json", "t.json")
    assert re.search(r"^val  official +accuracy 1.0000 \(28 of 28\)", out, re.M)
    assert re.search(r"^val  deduplicated +accuracy 1.0000 \(18 of 18\)", out, re.M)
    assert "10 of the val images also stand in train" in out
    written = json.loads((tmp_path / "t.json").read_text())
    assert (written["official"]["count"], written["deduplicated"]["count"]) == (28, 18)


def test_a_dataset_without_a_test_split_names_the_other(go, tmp_path):
    write_folders(tmp_path / "archive", test=0)
    status, out, err = go()
    assert status == 2 and "official" not in out
    assert err == "error: archive has no test split; use one of: --split val\n"


def test_a_validation_part_that_is_drawn_is_called_so(go, tmp_path):
    write_folders(tmp_path / "archive", val=0)
    _, out, _ = go("--split", "val", "--json", "t.json")
    assert re.search(r"^val \(drawn\)  official ", out, re.M)
    assert json.loads((tmp_path / "t.json").read_text())["drawn"] is True


def test_the_validation_part_is_drawn_as_in_training(go, tmp_path, weights):
    write_folders(tmp_path / "archive", train=140, val=0)
    content = read_checkpoint(weights)
    content["config"]["val_fraction"] = 0.3
    write_checkpoint(tmp_path / "w.pth", content)
    assert "(14 of 14)" in go("--split", "val")[1]
    assert "(42 of 42)" in go("--split", "val", weights=tmp_path / "w.pth")[1]


def test_weights_of_another_dataset_are_said(go, tmp_path):
    write_folders(tmp_path / "archive")
    _, out, _ = go()
    assert "note: these weights were trained on another dataset (0123456789abcdef, this one is " in out


def test_weights_of_the_same_dataset_bring_no_note(go, tmp_path):
    write_folders(tmp_path / "archive")
    data = dataset.load(Config())
    brightness_weights(tmp_path / "own.pth", data=data)
    _, out, _ = go(weights=tmp_path / "own.pth")
    assert data.fingerprint in out.splitlines()[0] and "another dataset" not in out


@pytest.fixture
def few_faces(monkeypatch):
    monkeypatch.setattr(dataset, "DEMO_IDENTITIES", 2)
    monkeypatch.setattr(dataset, "DEMO_VAL_IDENTITIES", 1)


def test_drawn_faces_are_called_drawn(go, few_faces):
    status, out, _ = go("--split", "val", "--data", "demo")
    assert status == 0 and "data: the built-in drawn faces" in out
    assert "these faces are DRAWN by this project" in out.splitlines()[-1]


def test_drawn_faces_have_no_test_split(go, few_faces):
    status, _, err = go("--data", "demo")
    assert (status, err) == (2, "error: the built-in drawn faces has no test split; use one of: --split val\n")


def test_weights_of_real_faces_are_not_scored_on_drawn_ones_unasked(go):
    status, out, err = go("--split", "val")
    assert status == 2 and "data:" not in out
    assert re.match(r"error: there is no dataset in this folder, and \S+ was trained on real faces: name one", err)


def test_weights_of_drawn_faces_are_scored_on_them(go, few_faces, tmp_path, weights):
    content = read_checkpoint(weights)
    content["dataset"]["demo"] = True
    write_checkpoint(tmp_path / "demo.pth", content)
    status, out, _ = go("--split", "val", weights=tmp_path / "demo.pth")
    assert status == 0 and "data: the built-in drawn faces" in out


def test_a_runs_folder_stands_for_its_best_weights(go, tmp_path, weights):
    zip_folder(write_folders(tmp_path / "archive"), tmp_path / "archive.zip")
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "best.pth").write_bytes(weights.read_bytes())
    status, out, _ = go("--split", "val", weights=run)
    assert status == 0 and out.startswith(f"weights {run / 'best.pth'}: ")


def test_the_state_of_a_run_is_told_from_weights(go, tmp_path):
    write_checkpoint(tmp_path / "last.pth", {"model": "TheModel", "state_dict": {}, "progress": {}})
    status, _, err = go("--split", "val", weights=tmp_path / "last.pth")
    assert status == 2 and "last.pth is the state of a run, to go on with by --resume" in err
    assert "its best weights are in best.pth beside it" in err


def test_figures_are_not_written_to_a_file_called_minus(go, tmp_path):
    status, out, err = go("--json", "-")
    assert (status, out) == (2, "") and err.startswith("error: --json -: standard output has the figures as lines")
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("target", ["archive.zip", "final_weights_new.pth", "README.md"])
def test_a_json_file_takes_no_place_of_data_or_weights(go, target):
    status, out, err = go("--json", target)
    assert (status, out) == (2, "") and f"error: --json {target}: the table would take the place of that file" in err


@pytest.mark.parametrize("target", [".", "no/t.json", f"{'x' * 300}/t.json"])
def test_a_json_that_cannot_be_written_stops_before_any_work(go, target):
    status, out, err = go("--json", target)
    assert (status, out) == (2, "") and err.startswith(f"error: --json {target}: a folder, or a file in a folder")


def test_a_full_disk_is_an_error(go, tmp_path, monkeypatch):
    write_folders(tmp_path / "archive")
    go()  # the decoded images are in the cache now

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.os.fsync", full)
    status, _, err = go("--json", "t.json")
    assert status == 2 and "t.json could not be written (No space left on device)" in err
    assert [path.name for path in tmp_path.iterdir() if "t.json" in path.name] == []


@pytest.mark.parametrize(
    "typo", [["--spilt", "val"], ["--split", "train"], ["--threads", "-1"], ["--weights", ""], ["--data"]]
)
def test_a_typo_exits_with_2_and_names_it(typo, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(typo)
    assert stopped.value.code == 2 and typo[0].lstrip("-") in capsys.readouterr().err


def test_a_dataset_that_is_not_there_is_an_error(go):
    status, _, err = go("--data", "nowhere")
    assert status == 2 and err.startswith("error: nowhere: no such file or folder")


def test_a_reader_that_leaves_ends_it_quietly(tmp_path, weights):
    write_folders(tmp_path / "archive", train=14, val=7, test=7)
    process = subprocess.Popen(
        [sys.executable, str(REPO / "test.py"), "--weights", str(weights)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert (process.wait(300), process.stderr.read()) == (141, "")
    process.stderr.close()


@pytest.mark.parametrize(("tta", "count"), [("flip", 2), ("crops", 10)])
def test_test_time_augmentation_is_said_with_its_cost(go, tmp_path, monkeypatch, tta, count):
    write_folders(tmp_path / "archive")
    looks = []
    apply_view = val.apply_view
    monkeypatch.setattr(val, "apply_view", lambda images, *view: looks.append(len(images)) or apply_view(images, *view))
    _, out, _ = go("--split", "val", "--tta", tta, "--json", "t.json")
    (
        first,
        *_,
    ) = out.splitlines()
    assert first.endswith(f"deduplicated); test-time augmentation: {tta}, {count} views of an image")
    assert "val  official        accuracy 1.0000 (28 of 28)" in out
    assert json.loads((tmp_path / "t.json").read_text())["tta"] == tta and len(looks) == count * 4  # batches of 8


def test_votes_bring_a_second_pair_of_figures(go, tmp_path):
    write_folders(tmp_path / "archive", val_copies=7)
    lines = ["file,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"]
    files = sorted((tmp_path / "archive").rglob("*.png"))
    columns = {"neutral": 0, "happy": 1, "surprise": 2, "sad": 3, "angry": 4, "disgust": 5, "fear": 6}
    angry = [file for file in files if file.parent.name == "angry" and file.name.startswith("Public")]
    for file in files:  # everybody agrees with the label, but for one angry face of PublicTest and one tie
        votes = [0] * 10
        votes[columns["fear" if file == angry[-1] else file.parent.name]] = 8
        votes[columns["sad"]] += 8 * (file == angry[-2])
        lines.append(f"{file.relative_to(tmp_path / 'archive').as_posix()},{','.join(map(str, votes))}")
    (tmp_path / "votes.csv").write_text("\n".join(lines))
    _, out, _ = go("--split", "val", "--votes", "votes.csv", "--json", "t.json")
    assert "val  official        accuracy 1.0000 (28 of 28)" in out
    assert "val  FER+ official        accuracy 0.9630 (26 of 27)" in out
    assert "val  FER+ deduplicated    accuracy 0.9500 (19 of 20)" in out
    assert "published figures are of 8 classes" in out
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["ferplus"]["official"]["count"] == 27 and written["official"]["accuracy"] == 1.0
    _, out, _ = go("--split", "val", "--json", "t.json")
    assert "FER+" not in out and json.loads((tmp_path / "t.json").read_text())["ferplus"] is None

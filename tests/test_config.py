"""config.py and cli.py: what a setting may be, which layer wins, older names, and how a wrong call ends."""

import importlib
import json
import math
import subprocess
from dataclasses import asdict, fields

import pytest

import config
from cli import OLD_NAMES, combine, from_dict
from config import CLASSES, RECIPES, Config
from helpers import REPO, write_folders
from utils import read_checkpoint


def test_classes_and_recipes():
    assert CLASSES == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    for name in RECIPES:
        combine({}, recipe=name)  # each is a valid Config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs: 0 is not between 1 and 100000"),
        ("lr", -0.1, "lr: -0.1 is not between"),
        ("lr", math.nan, "lr: nan is not between"),
        ("lr", "fast", "lr: 'fast' is not of type float"),
        ("flip", 1, "flip: 1 is not of type bool"),
        ("epochs", 2.5, "epochs: 2.5 is not of type int"),
        ("model", "resnet", "model: 'resnet' is not one of TheModel"),
        ("run", "../x", "run: '../x' is not a folder name"),
        ("lr", 10**400, "lr: 1000.*000 is not between"),
        ("data", "\ud800.zip", "data: .* contains a zero or half a character"),
        ("width", 2.0, "width: 2.0 needs an EmotionResNet"),
        ("label_smoothing", 0.1, "label_smoothing: 0.1 needs the loss cross_entropy"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})


def test_later_layers_win(tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "try", {"lr": 0.5, "epochs": 3, "seed": 0})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"epochs": 4}))
    got, notes = combine({"seed": 9}, recipe="try", config_path=str(file))
    assert (got.lr, got.epochs, got.seed, got.batch_size) == (0.5, 4, 9, Config().batch_size) and not notes


def test_a_runs_config_is_found_in_its_folder_and_gives_no_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(asdict(Config(epochs=7, run="before"))))
    for path in (tmp_path, tmp_path / "config.json"):
        made, _ = combine({}, config_path=str(path))
        assert (made.epochs, made.run) == (7, "")
    assert combine({"run": "after"}, config_path=str(tmp_path))[0].run == "after"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown epoch; known are data"),
        ("{", "Expecting property name"),
        ('{"epochs": 0}', "epochs: 0 is not between"),
        ('{"lr": 1' + "0" * 400 + "}", "lr: 1.*0 is not between"),
        ('{"data": "\\ud800"}', "data: .* contains a zero or half a character"),
        ('{"\\ud800": 1}', "unknown"),
        ("[[1]]", "no settings"),
        ("3", "no settings"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        combine({}, config_path=str(file))


def test_a_missing_config_file_is_named():
    with pytest.raises(ValueError, match=r"config: .*No such file.*nowhere\.json"):
        combine({}, config_path="nowhere.json")


# --- Older names ---

# Of the config that commit 1ec3311 wrote into every run and into the weights that it shipped
OLD = {"erase": 0.3, "teaching": 0.6, "whole": 0.25, "window": 40, "recalibrate": 2048, "compile": False}


def test_a_config_of_an_older_version_is_read_by_the_names_of_today(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    got, notes = combine({}, config_path=str(tmp_path))
    assert (got.cutout, got.distill_weight, got.full_size_share, got.window) == (0.3, 0.6, 0.25, 40)
    assert len(notes) == 1 and "recalibrate 2048" in notes[0] and str(tmp_path) in notes[0]


def test_every_old_name_leads_to_a_setting_or_is_ignored():
    known = {spec.name for spec in fields(Config)}
    assert all(new is None or new in known for new in OLD_NAMES.values()) and not known & set(OLD_NAMES)


def test_the_weights_of_an_older_version_are_read_and_can_be_started_from(tmp_path, monkeypatch, capsys):
    """As commit 1ec3311 shipped them, with its names of settings."""
    shown = subprocess.run(["git", "show", "1ec3311:final_weights_new.pth"], cwd=REPO, capture_output=True)
    if shown.returncode:
        pytest.skip("the history of this checkout has no commit 1ec3311")
    path = tmp_path / "old.pth"
    path.write_bytes(shown.stdout)
    written = from_dict(read_checkpoint(path)["config"], str(path))
    assert (written.cutout, written.distill_weight, written.full_size_share) == (0.3, 0.7, 0.2)
    write_folders(tmp_path / "archive", train=14, val=7, test=0)
    monkeypatch.chdir(tmp_path)
    args = ["--pretrained", "old.pth", "--model", written.model, "--epochs", "1", "--lr", "1e-9", "--device", "cpu"]
    assert importlib.import_module("interface").main(args) == 0
    assert "begins with weights old.pth" in capsys.readouterr().out


# --- Wrong calls ---


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--epoch 3", "error: unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        ("--gpu", "error: unrecognized arguments: --gpu (did you mean --device cuda?)"),
        ("--learning-rate", "error: unrecognized arguments: --learning-rate (did you mean --lr?)"),
        ("--batchsize=64", "error: unrecognized arguments: --batchsize=64 (did you mean --batch-size?)"),
        ("--teaching 0.5", "error: unrecognized arguments: --teaching 0.5 (did you mean --distill-weight?)"),
        ("--zzz data", "error: unrecognized arguments: --zzz data; see"),
        ("--epochs 0", "error: epochs: 0 is not between 1 and 100000"),
        ("--lr fast", "error: argument --lr: invalid float value: 'fast'"),
        ("--model resnet", "error: argument --model: invalid choice: 'resnet'"),
        ("--config", "error: argument --config: expected one argument"),
    ],
)
def test_a_wrong_call_ends_with_one_line_and_status_2(typed, message, capsys):
    interface = importlib.import_module("interface")
    with pytest.raises(SystemExit) as raised:
        interface.main(typed.split())
    text = capsys.readouterr().err
    assert raised.value.code == 2 and text.startswith(message) and text.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "flag"), [("interface", "--config"), ("interface", "--resume"), ("test", "--json"), ("predict", "--csv")]
)
def test_an_empty_name_is_refused(module, flag, capsys):
    with pytest.raises(SystemExit) as raised:
        importlib.import_module(module).main([flag, ""])
    assert raised.value.code == 2 and f"{flag}: it is empty" in capsys.readouterr().err

import os
from dataclasses import replace

import pytest
import torch

import errors
from config import Config
from dataset import load
from errors import UserError, find_weights
from helpers import brightness_weights, write_folders
from metrics import describe
from model import build_model
from utils import pick_machine
from val import evaluate
from weights import calibrate, load_pretrained, load_weights, same_validation, save_weights

MACHINE = pick_machine("cpu", "fp32")
NAME = "ImprovedFER2013Model"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "archive", val=30)  # five of the first two classes, four of the others
    return load(Config(data="archive", cache="cache"))


def write_run(folder, data, *, always=0, **knobs):
    """A run's folder with the best.pth of a network that always says the class `always`."""
    folder.mkdir()
    model = build_model(NAME).eval()
    with torch.no_grad():
        model.classifier.bias[always] = 100.0
    scores = evaluate(model, data.split("val"), machine=MACHINE)
    save_weights(folder / "best.pth", model, scores, config=Config(model=NAME, **knobs), data=data)
    return model, scores


def test_weights_come_back_with_what_is_needed_to_use_them(data, tmp_path):
    model, scores = write_run(tmp_path / "run", data)
    loaded, content = load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)
    assert not loaded.training and content["metrics"]["official"]["accuracy"] == scores.official.accuracy
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    line = describe(tmp_path / "run" / "best.pth", content)
    assert f"{NAME}, trained on archive, validation accuracy {scores.official.accuracy:.4f}" in line
    content["dataset"]["name"] = "\x1b[2J\n"
    assert "trained on \\x1b[2J\\n, validation" in describe(tmp_path / "run" / "best.pth", content)


def change(path, **values):
    """Rewrite the weight file with other values for some of its keys."""
    torch.save({**torch.load(path, weights_only=True), **values}, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "TheModel"}, "does not fit the network 'TheModel' of this code"),
        ({"model": "VGG"}, "does not fit the network 'VGG' of this code: model: 'VGG' is not one of"),
        ({"arguments": {"depth": 3}}, "does not fit the network"),
        ({"arguments": {"num_classes": 8}}, "does not fit the network"),
        ({"preprocessing": {"size": 44}}, "expects other input"),
        ({"classes": ["angry", "happy"]}, "it has 7 outputs for 2 classes"),
        ({"arguments": {"dropout": None}}, "does not fit the network"),
        ({"arguments": {"width": 1e308}, "model": "EmotionResNet-nano"}, "does not fit the network"),
        ({"state_dict": {"a": torch.zeros(3)}}, "does not fit the network"),
        ({"state_dict": {"a": [1.0]}}, "does not fit the network"),
        ({"state_dict": {3: None}}, "does not fit the network"),
        ({"config": {"limit": 0, "val_fraction": 7.0}}, "does not fit the network"),
    ],
)
def test_weights_that_do_not_fit_are_refused(data, tmp_path, values, message):
    write_run(tmp_path / "run", data)
    change(tmp_path / "run" / "best.pth", **values)
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)


def test_weights_are_looked_for_here_and_then_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "code" / "errors.py"))
    (tmp_path / "code").mkdir()
    with pytest.raises(UserError, match=r"a\.pth: no such weight file; train one with"):
        find_weights("a.pth")
    (tmp_path / "code" / "a.pth").write_bytes(b"")
    assert find_weights("a.pth") == tmp_path / "code" / "a.pth"
    (tmp_path / "a.pth").write_bytes(b"")
    assert str(find_weights("a.pth")) == "a.pth"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
@pytest.mark.parametrize("name", ["a.pth", "a.onnx"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: no file, .*name another: --weights FILE"):
        find_weights(str(tmp_path / name))
    with pytest.raises(UserError, match="no file, and no run's folder"):
        find_weights(str(tmp_path))


# --- Temperature ---


def test_calibration_fits_the_temperature_and_rewrites_the_file(tmp_path):
    write_folders(tmp_path / "archive", val=280, val_copies=70)
    data = load(Config(data=str(tmp_path / "archive"), cache=str(tmp_path / "cache")))
    path = brightness_weights(tmp_path / "w.pth", data=data)  # without a mistake: any temperature below 1 is better
    old = torch.load(path, weights_only=True)
    fitted = calibrate(path, data, machine=MACHINE)
    temperature, threshold, coverage, right, before, after, probabilities = fitted
    assert probabilities.shape == (280, 7)
    assert temperature == pytest.approx(0.25) and coverage == right == 1 and 0 < threshold < 1
    assert after.official.ece < before.official.ece
    assert after.deduplicated.accuracy == before.deduplicated.accuracy
    model, content = load_weights(path, machine=MACHINE)
    assert model.temperature == content["temperature"] == temperature and content["threshold"] == threshold
    assert content["metrics"] == after.plain()
    assert after == evaluate(model, data.split("val"), machine=MACHINE)
    assert all(torch.equal(value, old["state_dict"][name]) for name, value in content["state_dict"].items())
    assert all(content[key] == old[key] for key in ("versions", "config", "dataset"))
    assert calibrate(path, data, machine=MACHINE)[:6] == fitted[:6]  # it starts from 1 each time


def test_fewer_than_200_images_deduplicated_leave_the_temperature_at_one(tmp_path):
    write_folders(tmp_path / "archive", val=250, val_copies=60)
    data = load(Config(data=str(tmp_path / "archive"), cache=str(tmp_path / "cache")))
    path = brightness_weights(tmp_path / "w.pth", data=data)
    fitted = calibrate(path, data, machine=MACHINE)
    assert fitted[:3] == (1.0, 0.0, 1.0) and fitted.before == fitted.after


def test_fer2013_in_another_form_is_the_same_dataset(data, tmp_path):
    write_run(tmp_path / "run", data)
    _, content = load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)
    older = {key: value for key, value in content["dataset"].items() if key != "name"}  # known by its fingerprint
    jpegs = replace(data, name="fer2013", fingerprint="of the JPEGs")
    for trained_on, same in (
        ({**older, "name": "fer2013", "fingerprint": "of the csv"}, True),
        ({**older, "fingerprint": jpegs.fingerprint}, True),
        (content["dataset"], False),
    ):
        assert same_validation(content | {"dataset": trained_on}, jpegs, 0.1) == same
        assert not same_validation(content | {"dataset": trained_on | {"fingerprint": "other"}}, data, 0.1)


NANO = "EmotionResNet-nano"


@pytest.mark.parametrize(
    ("name", "arguments", "flags"), [(NANO, {"width": 1.5}, f"{NANO} --width 1.5"), (NAME, {}, f"{NAME},")]
)
def test_a_run_begins_with_weights_of_its_own_network_only(data, tmp_path, name, arguments, flags):
    model = build_model(name, **arguments).eval()
    scores = evaluate(model, data.split("val"), machine=MACHINE)
    save_weights(tmp_path / "other.pth", model, scores, config=Config(), data=data)
    change(tmp_path / "other.pth", temperature=0.5)
    config = Config(pretrained="other.pth")
    with pytest.raises(UserError, match=f"--pretrained other.pth: its network .* {NANO}: give --model {flags}"):
        load_pretrained(build_model(NANO), config, machine=MACHINE)
    same = build_model(name, **arguments)
    load_pretrained(same, config, machine=MACHINE)
    assert torch.equal(next(same.parameters()), next(model.parameters())) and same.temperature == 1.0

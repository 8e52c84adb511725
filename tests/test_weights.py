from dataclasses import replace

import pytest
import torch

import weights
from config import Config
from dataset import load
from errors import UserError
from helpers import brightness_weights, write_folders
from model import TheModel, build_model
from utils import pick_machine
from val import evaluate
from weights import (
    calibrate,
    describe,
    find_weights,
    load_pretrained,
    load_weights,
    same_validation,
    save_weights,
)

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
        ({"metrics": {}}, "does not fit the network .*official"),
        ({"preprocessing": {"size": 44}}, "expects other input"),
        ({"classes": ["angry", "happy"]}, "was trained on the classes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(data, tmp_path, values, message):
    write_run(tmp_path / "run", data)
    change(tmp_path / "run" / "best.pth", **values)
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)


def test_a_network_of_another_size_is_refused(data, tmp_path):
    write_run(tmp_path / "run", data)
    model = TheModel(image_size=64)
    change(tmp_path / "run" / "best.pth", model="TheModel", arguments={"image_size": 64}, state_dict=model.state_dict())
    with pytest.raises(UserError, match=r"it takes another size.*\(64, 1, 7\)"):
        load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)


def test_weights_are_looked_for_here_and_then_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "code" / "weights.py"))
    (tmp_path / "code").mkdir()
    with pytest.raises(UserError, match=r"a\.pth: no such weight file; train one with"):
        find_weights("a.pth")
    (tmp_path / "code" / "a.pth").write_bytes(b"")
    assert find_weights("a.pth") == tmp_path / "code" / "a.pth"
    (tmp_path / "a.pth").write_bytes(b"")
    assert str(find_weights("a.pth")) == "a.pth"


# --- Temperature ---


def test_calibration_fits_the_temperature_and_rewrites_the_file(tmp_path):
    write_folders(tmp_path / "archive", val=280, val_copies=70)
    data = load(Config(data=str(tmp_path / "archive"), cache=str(tmp_path / "cache")))
    path = brightness_weights(tmp_path / "w.pth", data=data)  # without a mistake: any temperature below 1 is better
    old = torch.load(path, weights_only=True)
    temperature, before, after = calibrate(path, data, machine=MACHINE)
    assert temperature == pytest.approx(0.25) and after.official.ece < before.official.ece
    assert after.deduplicated.accuracy == before.deduplicated.accuracy
    model, content = load_weights(path, machine=MACHINE)
    assert model.temperature == content["temperature"] == temperature and content["metrics"] == after.plain()
    assert after == evaluate(model, data.split("val"), machine=MACHINE)
    assert all(torch.equal(value, old["state_dict"][name]) for name, value in content["state_dict"].items())
    assert {key: content[key] for key in ("versions", "config", "dataset")} == {
        key: old[key] for key in ("versions", "config", "dataset")
    }
    assert calibrate(path, data, machine=MACHINE) == (temperature, before, after)  # it starts from 1 each time


def test_fewer_than_200_images_deduplicated_leave_the_temperature_at_one(tmp_path):
    write_folders(tmp_path / "archive", val=250, val_copies=60)
    data = load(Config(data=str(tmp_path / "archive"), cache=str(tmp_path / "cache")))
    path = brightness_weights(tmp_path / "w.pth", data=data)
    temperature, before, after = calibrate(path, data, machine=MACHINE)
    assert temperature == 1.0 and before == after


def test_older_files_have_no_temperature(weights, tmp_path):
    content = torch.load(weights, weights_only=True)
    del content["temperature"]
    torch.save(content, tmp_path / "old.pth")
    assert load_weights(tmp_path / "old.pth", machine=MACHINE)[0].temperature == 1.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "hot"])
def test_a_temperature_that_is_none_is_refused(weights, tmp_path, temperature):
    torch.save({**torch.load(weights, weights_only=True), "temperature": temperature}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth does not fit"):
        load_weights(tmp_path / "odd.pth", machine=MACHINE)


def test_a_run_that_begins_with_calibrated_weights_starts_at_one(data, tmp_path):
    write_run(tmp_path / "run", data)
    change(tmp_path / "run" / "best.pth", temperature=0.5)
    model = build_model(NAME)
    load_pretrained(model, Config(model=NAME, pretrained=str(tmp_path / "run")), machine=MACHINE)
    assert model.temperature == 1.0


def test_fer2013_in_another_form_is_the_same_dataset(data, tmp_path):
    write_run(tmp_path / "run", data)
    _, content = load_weights(tmp_path / "run" / "best.pth", machine=MACHINE)
    older = {key: value for key, value in content["dataset"].items() if key != "name"}
    jpegs = replace(data, name="fer2013", fingerprint="of the JPEGs")
    for trained_on, same in (
        ({**older, "name": "fer2013", "fingerprint": "of the csv"}, True),
        ({**older, "fingerprint": "14bc802825ac8905"}, True),
        (content["dataset"], False),
    ):
        assert same_validation(content | {"dataset": trained_on}, jpegs, 0.1) == same
        assert not same_validation(content | {"dataset": trained_on | {"fingerprint": "other"}}, data, 0.1)


def test_a_buffer_of_another_type_is_read_as_the_networks(tmp_path, weights):
    content = torch.load(weights, weights_only=True)
    content["state_dict"]["classifier.bias"] = content["state_dict"]["classifier.bias"].to(torch.int64)
    torch.save(content, tmp_path / "odd.pth")
    model, _ = load_weights(tmp_path / "odd.pth", machine=pick_machine("cpu", "fp32"))
    assert {value.dtype for value in model.parameters()} == {torch.float32}


NANO = "EmotionResNet-nano"
EXPERT = {"network": NANO, "group": [0, 1], "counts": [5] * 7}


@pytest.mark.parametrize(
    ("there", "wanted", "way"),
    [
        ((NANO, {}), {"width": 1.5}, f"give --model {NANO} --width 1, or"),
        ((NANO, {"width": 1.5}), {}, f"give --model {NANO} --width 1.5, or"),
        ((NAME, {}), {}, f"give --model {NAME}, or"),
        (("Expert", EXPERT), {}, f"name weights of --model {NANO} --width 1"),
    ],
)
def test_a_run_begins_with_weights_of_its_own_network_only(data, tmp_path, there, wanted, way):
    name, arguments = there
    model = build_model(name, **arguments).eval()
    scores = evaluate(model, data.split("val"), machine=MACHINE)
    save_weights(tmp_path / "other.pth", model, scores, config=Config(), data=data)
    config = Config(model=NANO, pretrained="other.pth", **wanted)
    with pytest.raises(UserError, match=f"--pretrained other.pth: its network, {name}, is another one: {way}"):
        load_pretrained(build_model(NANO, **config.arguments), config, machine=MACHINE)

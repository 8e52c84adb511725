"""ONNX: the graph answers as PyTorch does, says whose it is, and a wrong file is refused."""

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import export
from config import CLASSES, Config
from dataset import load
from demo.faces import demo_faces
from errors import UserError
from helpers import REPO, faces, write_folders
from predictor import OnnxEngine, TorchEngine, sealed

SHIPPED = REPO / "final_weights_new.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped weights and their .onnx, written by the command."""
    path = Path(shutil.copy(SHIPPED, tmp_path_factory.mktemp("export")))
    assert export.main([str(path)]) == 0
    return path, path.with_suffix(".onnx")


@pytest.fixture(scope="module")
def engines(exported):
    return OnnxEngine(exported[1], threads=1), TorchEngine(exported[0], threads=1)


@pytest.fixture(scope="module")
def images():
    """1,008 rendered faces (N, 48, 48), a twelfth of them as they are, the others moved."""
    rendered, _, _ = demo_faces(12, seed=0)
    return np.concatenate([np.roll(rendered, (move, -move), (1, 2)) for move in range(-6, 6)])


def test_both_engines_give_the_same_probabilities(engines, images):
    onnx_engine, torch_engine = engines
    found, expected = onnx_engine.probabilities(images), torch_engine.probabilities(images)
    assert found.shape == (1008, 7) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4 and len(np.unique(found.argmax(1))) == 7
    maps = [engine.activation_maps(images[:70]) for engine in engines]
    np.testing.assert_allclose(*maps, atol=1e-3)


@pytest.mark.parametrize("tta", ["flip", "crops"])
def test_both_engines_average_the_same_views(exported, images, tta):
    path, graph = exported
    pair = OnnxEngine(graph, threads=1, tta=tta), TorchEngine(path, threads=1, tta=tta)
    found, expected = (engine.probabilities(images[::40]) for engine in pair)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found - OnnxEngine(graph, threads=1).probabilities(images[::40])).max() > 1e-3


def test_any_number_of_images_is_computed(engines, images):
    engine = engines[0]
    whole = engine.probabilities(images[:130])
    for count in (0, 1, 64, 65):
        np.testing.assert_allclose(engine.probabilities(images[:count]), whole[:count], atol=1e-5)


def test_the_file_is_small_and_says_whose_it_is(exported, engines):
    path, graph = exported
    assert graph.stat().st_size < 6e6
    engine = engines[0]
    assert engine.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert engine.content["model"] == "EmotionResNet-small" and engine.content["classes"] == list(CLASSES)
    assert 0.7 < engine.content["metrics"]["official"]["accuracy"] < 0.72 and engine.content["temperature"] < 1


def test_the_shipped_file_belongs_to_the_shipped_weights():
    shipped = OnnxEngine(SHIPPED.with_suffix(".onnx"), threads=1)
    assert shipped.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert 0.5 < shipped.content["threshold"] < 0.7 < shipped.content["coverage"]


def test_a_network_without_averaged_maps_is_exported_without_activation_maps(weights, tmp_path):
    assert export.main([shutil.copy(weights, tmp_path / "net.pth").as_posix()]) == 0
    engine, (pixels, labels) = OnnxEngine(tmp_path / "net.onnx", threads=1), faces(35)
    assert (engine.probabilities(pixels).argmax(1) == labels).all()
    with pytest.raises(UserError, match="TheModel has no class activation maps: use --engine torch"):
        engine.activation_maps(pixels)


def test_int8_is_smaller_and_scored_beside_float32(exported, tmp_path, capsys):
    archive = write_folders(tmp_path / "archive")
    path, graph = exported
    assert export.main([str(path), "--int8", "--data", str(archive), "--cache", str(tmp_path / "cache")]) == 0
    out = capsys.readouterr().out
    assert "float32 accuracy" in out and "int8    accuracy" in out and "of the answers differ" in out
    small = path.with_name(f"{path.stem}-int8.onnx")
    assert small.stat().st_size < 3e6
    val = load(Config(data=str(archive), cache=str(tmp_path / "cache"))).split("val")
    both = (OnnxEngine(each, threads=1).probabilities(np.array(val.images)) for each in (graph, small))
    assert np.abs(np.subtract(*both)).mean() < 0.05


def test_a_file_that_is_damaged_or_of_another_project_is_refused(exported, tmp_path):
    whole = exported[1].read_bytes()
    other = onnx.load(exported[1])
    classes = onnx.load(exported[1])
    helper.set_model_props(other, {})
    next(each for each in classes.metadata_props if each.key == "classes").value = '["cat", "dog"]'
    for name, content, message in (
        ("half", whole[: len(whole) // 2], "is damaged, or not an ONNX model"),
        ("text", b"hello", "is damaged, or not an ONNX model"),
        ("empty", b"", "is damaged, or not an ONNX model"),
        ("unsealed", whole[:-78], "is damaged, or not an ONNX model"),
        ("noise", sealed(b"hello"), "is damaged, or not an ONNX model"),
        ("other", sealed(other.SerializeToString()), "was not written by export.py"),
        ("classes", sealed(classes.SerializeToString()), "was not written by export.py"),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.onnx {message}"):
            OnnxEngine(tmp_path / f"{name}.onnx")


def test_no_flipped_bit_is_used_and_any_library_reads_the_file(exported, tmp_path):
    whole, path = exported[1].read_bytes(), tmp_path / "flipped.onnx"
    flips = random.Random(0)
    for at in [*(flips.randrange(len(whole)) for _ in range(30)), *range(len(whole) - 78, len(whole), 7)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << flips.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            OnnxEngine(path)
    model = onnx.load(exported[1])
    onnx.checker.check_model(model)
    assert model.metadata_props[-1].key == "checksum"
    assert model.metadata_props[-1].value == hashlib.sha256(whole[:-78]).hexdigest()

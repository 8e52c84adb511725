"""The cache of decoded images: one for a dataset, whole or made anew, in one order whatever form the data has."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import Config
from dataset import load
from errors import UserError
from helpers import csv_of_folders, write_folders, zip_folder
from readers import cache
from readers.sources import open_dataset


@pytest.fixture
def archive(tmp_path):
    return write_folders(tmp_path / "archive", val_copies=3)


def load_from(path, tmp_path):
    return load(Config(data=str(path), cache=str(tmp_path / "cache")))


def test_every_form_gives_the_same_arrays_and_fingerprint(archive, tmp_path):
    forms = [
        archive,
        zip_folder(archive, tmp_path / "archive.zip"),
        csv_of_folders(archive, tmp_path / "fer2013.csv"),
        csv_of_folders(archive, tmp_path / "shuffled.csv", seed=5),
    ]
    first, *others = [load_from(form, tmp_path) for form in forms]
    assert {other.fingerprint for other in others} == {first.fingerprint}
    for name, split in first.splits.items():
        for other in others:
            for field in ("images", "labels", "digests", "copies"):
                assert np.array_equal(getattr(split, field), getattr(other.split(name), field))


def test_the_fingerprint_changes_with_a_pixel_a_label_or_a_split(tmp_path):
    folders = [write_folders(tmp_path / name, val_copies=name == "b") for name in "abcd"]
    file = next((folders[2] / "train" / "sad").iterdir())
    file.rename(folders[2] / "train" / "happy" / file.name)
    file = next((folders[3] / "train" / "sad").iterdir())
    file.rename(folders[3] / "test" / "sad" / "PublicTest_x.png")
    assert len({load_from(folder, tmp_path).fingerprint for folder in folders}) == 4


def test_test_images_have_no_part_in_the_fingerprint(tmp_path):
    with_test, without = write_folders(tmp_path / "a"), write_folders(tmp_path / "b")
    for file in (without / "test").glob("*/PrivateTest_*"):
        file.unlink()
    whole, bare = load_from(with_test, tmp_path), load_from(without, tmp_path)
    assert len(whole.splits["test"]) == 14 and "test" not in bare.splits
    assert whole.fingerprint == bare.fingerprint


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A small source and its cache, whole."""
    folder = write_folders(tmp_path_factory.mktemp("intact"))
    return open_dataset(folder), cache.cached(open_dataset(folder), folder / ".cache")


@pytest.mark.parametrize("name", ["meta.json", "index.bin", "images.bin"])
@pytest.mark.parametrize("harm", ["gone", "cut", "longer", "zeros", "changed"])
def test_a_harmed_cache_is_rebuilt(intact, tmp_path, name, harm):
    source, whole = intact
    shutil.copytree(Path(whole.images.filename).parent.parent, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    data = file.read_bytes()
    changed = data.replace(data[20:21], b"!") if name != "images.bin" else bytes(len(data) - 9) + data[-9:]
    file.unlink()
    if harm != "gone":
        harmed = {"cut": data[: len(data) // 2], "longer": data * 2, "zeros": bytes(len(data)), "changed": changed}
        file.write_bytes(harmed[harm])
    again = cache.cached(source, tmp_path / "cache")
    assert np.array_equal(again.images, whole.images) and np.array_equal(again.index, whole.index)
    assert again.meta == whole.meta and file.read_bytes() == data


def test_a_dataset_has_one_cache(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = load_from(write_folders(tmp_path / "other", val_copies=2), tmp_path)
    mine = tmp_path / "cache" / "faces-1"
    mine.mkdir()
    first = load_from("archive", tmp_path).fingerprint
    next((archive / "train" / "sad").iterdir()).unlink()
    assert load_from(archive, tmp_path).fingerprint != first
    assert len(list((tmp_path / "cache").glob("*-*"))) == 3 and mine.exists()
    monkeypatch.setattr(cache, "build_cache", lambda *_: pytest.fail("decoded again"))
    again = load_from(tmp_path / "other", tmp_path)
    assert again.fingerprint == other.fingerprint and again.describe() == other.describe()


def test_a_cache_that_cannot_be_written_says_so(archive, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"decoded images could not be written.*--cache"):
        load_from(archive, tmp_path)


def test_an_aborted_decoding_leaves_nothing(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "write_cache", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_from(archive, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_old_halves_of_caches_go_and_nothing_else_does(archive, tmp_path):
    mine, young, old = folders = [tmp_path / "cache" / name for name in ("half-faces", "a-8.half-1", "b-8.half-2")]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder in (mine, old):
        os.utime(folder, (0, 0))
    load_from(archive, tmp_path)
    assert mine.exists() and young.exists() and not old.exists()

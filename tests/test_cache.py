"""The cache of decoded images: one for a dataset, whole or made anew, in one order whatever form the data has."""

import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from config import Config
from dataset import load
from errors import UserError
from helpers import REPO, csv_of_folders, write_folders, zip_folder
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


def test_no_flipped_bit_is_used(intact, tmp_path):
    _, whole = intact
    folder = shutil.copytree(Path(whole.images.filename).parent, tmp_path / "cache")
    flips = random.Random(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for _ in range(60):
            at = flips.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << flips.randrange(8)]) + data[at + 1 :])
            assert cache.open_cache(folder) is None, f"{path.name}, byte {at}"
        path.write_bytes(data)
    assert cache.open_cache(folder).meta == whole.meta


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '"meta"', "9" * 5000, "\ud800", "{}", '{"source": 1}'], ids=range(7)
)
def test_meta_of_any_form_is_no_cache_and_stays(archive, tmp_path, text):
    load_from(archive, tmp_path)
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    other = meta.parent.with_name("0" * 24 + "-9") / "meta.json"
    other.parent.mkdir()
    first = meta.read_text().splitlines()[0]
    for path in (meta, other):
        path.write_bytes(f"{first}\n{text}".encode(errors="surrogatepass"))
    assert cache.open_cache(meta.parent) is None
    load_from(archive, tmp_path)
    assert cache.open_cache(meta.parent) and other.exists()


def test_a_dataset_has_one_cache(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = load_from(write_folders(tmp_path / "other", val_copies=2), tmp_path)
    mine = tmp_path / "cache" / "faces-1"
    mine.mkdir()
    first = load_from("archive", tmp_path).fingerprint
    next((archive / "train" / "sad").iterdir()).unlink()
    assert load_from(archive, tmp_path).fingerprint != first
    assert len(list((tmp_path / "cache").glob("*-*"))) == 3 and mine.exists()
    (meta,) = [path for path in (tmp_path / "cache").glob("*/meta.json") if "archive" in path.read_text()]
    older = meta.parent.with_name(f"{'1' * 24}-8")
    shutil.copytree(meta.parent, older)
    meta.unlink()
    load_from(archive, tmp_path)
    assert not older.exists()
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
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".cache.lock"]


@pytest.mark.skipif(os.name == "nt", reason="no such limit on Windows")
@pytest.mark.parametrize("room", [0, 5000, 190_000, 250_000])  # of 112 images of 2,304 bytes
def test_a_full_disk_is_an_error_and_leaves_nothing(archive, tmp_path, room):
    import resource

    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written .*File too large.*--cache") as raised:
            load_from(archive, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".cache.lock"]


def test_what_killed_processes_left_goes_and_nothing_else_does(archive, tmp_path):
    mine, half, older = [
        tmp_path / "cache" / name for name in ("a-8.half-1", f"{'a' * 24}-9.half-", f"{'b' * 24}-8.half-7")
    ]
    for folder in (mine, half, older):
        folder.mkdir(parents=True)
        os.utime(folder, (2e9, 2e9))  # no clock tells
    load_from(archive, tmp_path)
    assert mine.exists() and not half.exists() and not older.exists()


def test_a_process_waits_for_the_one_that_builds(archive, tmp_path, monkeypatch):
    write, began, go_on = cache.write_cache, Event(), Event()

    def slowly(*args):
        began.set()
        assert go_on.wait(60)
        write(*args)

    monkeypatch.setattr(cache, "write_cache", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load_from, archive, tmp_path)
        assert began.wait(60)
        monkeypatch.setattr(cache, "write_cache", lambda *_: pytest.fail("built twice"))
        second = pool.submit(load_from, archive, tmp_path)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go_on.set()
        assert first.result(60).fingerprint == second.result(60).fingerprint


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from config import Config
from dataset import load
for number in range(12):
    print(load(Config(data=sys.argv[2], cache=f"{sys.argv[3]}/{number}")).fingerprint)
"""


def test_any_number_of_processes_build_at_once(archive, tmp_path):
    command = [sys.executable, "-c", BUILD, str(REPO), str(archive), str(tmp_path / "cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    builders = [subprocess.Popen(command, **pipes) for _ in range(3)]
    done = [builder.communicate(timeout=120) for builder in builders]
    assert {builder.returncode for builder in builders} == {0}, done
    assert len({out for out, _ in done}) == 1
    for number in range(12):
        (meta,) = (tmp_path / "cache" / str(number)).glob("*-*/meta.json")
        assert cache.open_cache(meta.parent) and json.loads(meta.read_text().splitlines()[1])["skipped"] == []

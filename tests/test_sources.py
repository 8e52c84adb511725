"""sources: every public form of FER2013 gives the same images, and whatever is wrong is named."""

import io
import itertools
import os
import re
import stat
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config import CLASSES
from errors import UserError
from readers import decode as images
from readers import sources
from readers import tables as source_csv
from readers import zips as source_zip
from readers.sources import Item, Part, class_index, cut, decode_batches, open_dataset, open_inputs


def pixels_of(value: int) -> np.ndarray:
    return (np.arange(48 * 48).reshape(48, 48) * (value + 1) % 251).astype(np.uint8)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(value)).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(value) for value in range(len(CLASSES))]


def train_files(folder="train", names=CLASSES) -> dict[str, bytes]:
    return {f"{folder}/{name}/Training_{index}.png".lstrip("/"): PNGS[index] for index, name in enumerate(names)}


def test_files(prefix: str, folder="test") -> dict[str, bytes]:
    return {f"{folder}/{name}/{prefix}_{index}.png": PNGS[index] for index, name in enumerate(CLASSES)}


test_files.__test__ = False


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """A function from {name: bytes} to the path of a folder or zip that holds them."""
    if request.param == "folder":
        (tmp_path / "data").mkdir()
        return lambda files: write_folder(tmp_path / "data", files)
    return lambda files: write_zip(tmp_path / "data.zip", files)


def listed(source, workers=2):
    return [(item.name, item.split, item.label, item.problem) for item in source.items(workers)]


def problems(source):
    return {item.name: item.problem for item in source.items(2) if item.problem}


def splits(source):
    return Counter(item.split for item in source.items(2) if not item.problem)


def refused(path, opener=open_dataset) -> str:
    with pytest.raises(UserError) as caught:
        opener(path)
    return str(caught.value)


# Names


def test_class_names_synonyms_and_letter_case():
    assert [class_index(name) for name in CLASSES] == list(range(7))
    assert [class_index(name.upper()) for name in CLASSES] == list(range(7))
    words = ["Anger", "disgusted", "fearful", "happiness", "sadness", "surprised", " Neutral "]
    assert [class_index(name) for name in words] == list(range(7))
    assert [class_index(name) for name in ("contempt", "", "0", "angry2")] == [None] * 4


# Folders and zips as training sets


def test_splits_labels_and_order(make):
    source = open_dataset(make({**test_files("PublicTest"), **test_files("PrivateTest"), **train_files()}))
    found = listed(source)
    assert found == sorted(found) and len(found) == source.total == 21
    assert splits(source) == {"train": 7, "val": 7, "test": 7}
    assert ("test/sad/PublicTest_4.png", "val", 4, "") in found
    assert ("test/sad/PrivateTest_4.png", "test", 4, "") in found
    assert ("train/neutral/Training_6.png", "train", 6, "") in found
    assert source.notes == [] and source.renamed == {}


def test_pixels_and_sizes(make):
    for item in open_dataset(make(train_files())).items():
        assert np.array_equal(item.pixels, pixels_of(item.label))
        assert (item.width, item.height) == (48, 48)


def test_kind_and_path(tmp_path):
    folder = write_folder(tmp_path / "data", train_files())
    archive = write_zip(tmp_path / "data.ZIP", train_files())
    assert (open_dataset(folder).kind, open_dataset(folder).path) == ("folder", folder)
    assert (open_dataset(archive).kind, open_dataset(archive).path) == ("zip", archive)


def test_with_val_the_public_test_images_are_left_out(make):
    files = {**train_files(), **test_files("PublicTest"), **test_files("PrivateTest"), **test_files("x", "val")}
    source = open_dataset(make(files))
    assert splits(source) == {"train": 7, "val": 7, "test": 7} and source.total == 21
    assert source.notes == [
        "7 PublicTest_* images in test/ are left out: val/ is the validation split, "
        "and PublicTest is never used as test."
    ]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_other_names_of_val(make, name):
    assert splits(open_dataset(make({**train_files("Train"), **test_files("x", name)}))) == {"train": 7, "val": 7}


def test_class_folders_without_train_are_train(make):
    assert splits(open_dataset(make(train_files("")))) == {"train": 7}


@pytest.mark.parametrize("folder", ["archive/train", "a/b/c/train", "archive"])
def test_nested_under_single_folders(make, folder):
    assert splits(open_dataset(make({**train_files(folder), "README.md": b""}))) == {"train": 7}


def test_junk_is_passed_over_silently(make):
    junk = [
        "__MACOSX/train/angry/._Training_0.png",
        "train/.DS_Store",
        "train/angry/Thumbs.db",
        "desktop.ini",
        "train/.ipynb_checkpoints/x.png",
        "train/happy/.ipynb_checkpoints/x-checkpoint.png",
        ".git/config",
    ]
    source = open_dataset(make({**train_files("train"), **dict.fromkeys(junk, b"junk")}))
    assert source.total == 7 and problems(source) == {}


def test_files_that_are_not_training_images_are_named(make):
    extra = ["LICENSE.txt", "train/angry/notes.txt", "train/loose.png", "other/a.png", "inner.zip", "root.png"]
    source = open_dataset(make({**train_files(), **dict.fromkeys(extra, PNGS[0])}))
    assert problems(source) == {
        "LICENSE.txt": "not an image file",
        "train/angry/notes.txt": "not an image file",
        "inner.zip": "not an image file",
        "train/loose.png": "not in a class folder",
        "other/a.png": "not in train/, val/ or test/",
        "root.png": "not in train/, val/ or test/",
    }
    assert source.total == 13


def test_files_beside_the_folder_that_holds_train(make):
    source = open_dataset(make({**train_files("archive/train"), "beside.png": PNGS[0]}))
    assert problems(source) == {"beside.png": "not in train/, val/ or test/"}


def test_files_beside_class_folders(make):
    source = open_dataset(make({**train_files(""), "beside.png": PNGS[0]}))
    assert problems(source) == {"beside.png": "not in a class folder"}


def test_renamed_folders_are_reported(make):
    names = ["Anger", "disgust", "FEAR", "happiness", "sad", "surprised", "neutral"]
    source = open_dataset(make(train_files(names=names)))
    assert source.renamed == {"Anger": "angry", "FEAR": "fear", "happiness": "happy", "surprised": "surprise"}
    assert [item.label for item in source.items()] == [class_index(item.name.split("/")[1]) for item in source.items()]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_unknown_class_folder_is_refused(make, split):
    message = refused(make({**train_files(), f"{split}/contempt/a.png": PNGS[0]}))
    assert f": {split}/ has folders that are no class: 'contempt'. Allowed are angry, disgust, fear," in message
    assert message.endswith("letter case does not count). Rename or remove the others.")


def test_an_unknown_folder_beside_class_folders_is_refused(make):
    assert "has folders that are no class: 'contempt'" in refused(make({**train_files(""), "contempt/a.png": PNGS[0]}))


def test_an_absent_class_is_named(make):
    files = {name: data for name, data in train_files().items() if "sad" not in name and "fear" not in name}
    message = refused(make(files))
    assert "train/ has no images of: fear (no such folder), sad (no such folder). A class without images" in message


def test_an_empty_class_folder_is_named(tmp_path):
    folder = write_folder(tmp_path / "data", train_files())
    (folder / "train/sad/Training_4.png").unlink()
    assert "no images of: sad (its folder is empty)" in refused(folder)
    files = train_files()
    del files["train/sad/Training_4.png"]
    archive = write_zip(tmp_path / "a.zip", {**files, "train/sad/": b""})
    assert "no images of: sad (its folder is empty)" in refused(archive)


def test_a_class_folder_with_no_image_is_empty(make):
    files = train_files()
    files["train/sad/readme.txt"] = files.pop("train/sad/Training_4.png")
    assert "no images of: sad (its folder is empty)" in refused(make(files))


def test_a_class_may_lack_in_val_and_test(make):
    assert splits(open_dataset(make({**train_files(), "val/sad/a.png": PNGS[0]})))["val"] == 1


def test_another_layout_is_refused_with_what_was_found(make):
    message = refused(make({"images/1.png": PNGS[0], "labels.txt": b"", "more/2.png": PNGS[0]}))
    assert "expected train/ with a folder for each class (angry, disgust, fear, happy, sad, surprise, " in message
    assert message.endswith("found 'images', 'labels.txt', 'more'.")


def test_of_many_names_the_first_few_are_shown(make):
    message = refused(make({f"x{index}.png": PNGS[0] for index in range(9)}))
    assert message.endswith("found 'x0.png', 'x1.png', 'x2.png', 'x3.png', 'x4.png' and 4 more.")


def test_where_the_search_ended_is_said(make):
    assert refused(make({"a/b/1.png": PNGS[0]})).endswith("found '1.png' in a/b/.")


def test_test_alone_does_not_pass_for_training_data(make):
    assert refused(make(test_files("PublicTest"))).endswith("found 'test'.")


def test_nothing_in_it(tmp_path):
    (tmp_path / "data").mkdir()
    assert refused(tmp_path / "data").endswith("found nothing.")
    assert refused(write_zip(tmp_path / "a.zip", {})).endswith("found nothing.")


def test_a_bad_image_is_an_item_with_a_problem(make):
    bad = {"cut.png": PNGS[0][:100], "empty.png": b"", "text.jpg": b"text", "small.pgm": b"P5 1 1 255 \0"}
    source = open_dataset(make({**train_files(), **{f"train/angry/{name}": data for name, data in bad.items()}}))
    assert problems(source) == {
        "train/angry/cut.png": "truncated",
        "train/angry/empty.png": "0 bytes",
        "train/angry/text.jpg": "not an image",
        "train/angry/small.pgm": "1x1 is too small (8x8 at least)",
    }
    bad_items = [item for item in source.items() if item.problem]
    assert all(item.pixels is None and (item.split, item.label) == ("train", 0) for item in bad_items)


def test_the_number_of_threads_does_not_matter(make):
    files = {f"train/{name}/{index}.png": PNGS[0] for name in CLASSES for index in range(40)}
    source = open_dataset(make({**files, "train/sad/bad.png": b""}))
    assert listed(source, 1) == listed(source, 2) == listed(source, 5) == listed(source, 0)
    assert len(listed(source)) == source.total == 281


def test_no_more_than_a_window_is_read_ahead():
    items = [Item(str(index)) for index in range(sources.CHUNK * 100)]
    read = []
    part = Part(items, lambda items: (read.append(item.name) or PNGS[0] for item in items))
    stream = sources._decoded(part, 2)
    next(stream)
    stream.close()
    assert len(read) <= sources.CHUNK * 5


def parts_of(*sizes: int) -> list[Part]:
    """A Part of each size; the files of the i-th are the i-th image, every fifth one is no image."""

    def fetch(number, items):
        return (b"bad" if int(item.name) % 5 == 0 else PNGS[number] for item in items)

    return [Part([Item(str(n)) for n in range(size)], partial(fetch, index)) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(0,), (10,), (20,), (3, 4, 3, 1), (0, 25, 0), (7, 30)])
def test_batches_are_cut_over_the_ends_of_sources(sizes):
    batches = [[(part.fetch, item) for part in batch for item in part.items] for batch in cut(parts_of(*sizes), 10)]
    assert [len(batch) for batch in batches[:-1]] == [10] * (len(batches) - 1)
    assert [item.name for batch in batches for _, item in batch] == [str(n) for size in sizes for n in range(size)]
    assert all(batches)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_batch_holds_the_good_images_of_several_sources(workers):
    (batch,) = decode_batches(cut(parts_of(6, 130), 200), workers)
    assert [found for found in batch.found if isinstance(found, str)] == ["not an image"] * 28
    assert batch.found[:7] == ["not an image", *[(48, 48)] * 4, "not an image", "not an image"]
    assert np.array_equal(batch.pixels, [pixels_of(0)] * 4 + [pixels_of(1)] * 104)


def test_an_item_with_a_problem_is_not_read():
    items = [Item("a", problem="encrypted"), Item("b"), Item("c", problem="a link")]
    asked = []
    part = Part(items, lambda items: (asked.append(item.name) or PNGS[3] for item in items))
    (batch,) = decode_batches([[part]], 1)
    assert (asked, batch.found) == (["b"], ["encrypted", (48, 48), "a link"])


def test_threads_end_when_the_reader_stops_early(make):
    source = open_dataset(make({f"train/{name}/{index}.png": PNGS[0] for name in CLASSES for index in range(40)}))
    stream = source.items(2)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


# Keys


def test_the_key_follows_the_content(make):
    files = train_files()
    before = open_dataset(make(files)).key()
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert open_dataset(make(files)).key() == before or make(files).is_dir()
    assert open_dataset(make({**files, "train/sad/more.png": PNGS[0]})).key() != before


def test_the_key_of_a_folder_follows_times_and_sizes(tmp_path):
    folder = write_folder(tmp_path / "data", train_files())
    key = open_dataset(folder).key()
    assert open_dataset(folder).key() == key
    os.utime(folder / "train/sad/Training_4.png", ns=(1, 1))
    assert open_dataset(folder).key() != key


def test_the_key_of_a_zip_follows_checksums(tmp_path):
    key = open_dataset(write_zip(tmp_path / "a.zip", train_files())).key()
    changed = {**train_files(), "train/sad/Training_4.png": PNGS[4][:-1] + b"x"}
    assert open_dataset(write_zip(tmp_path / "b.zip", train_files())).key() == key
    assert open_dataset(write_zip(tmp_path / "c.zip", changed)).key() != key


def test_the_key_holds_the_kind(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    source = open_dataset(path)
    source.kind = "folder"
    assert source.key() != open_dataset(path).key()


# Files and folders that can't be used


def test_a_missing_path(tmp_path):
    for opener in (open_dataset, open_inputs):
        assert refused(tmp_path / "none.zip", opener).endswith("none.zip: no such file or folder.")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"")
    assert refused(tmp_path / "a.rar").endswith(
        "a.rar: not a dataset. Accepted are a folder, .zip, .csv, .tar, .tar.gz, .tgz."
    )
    assert "a.rar: not an image. Accepted are a folder, .zip, .bmp, .gif, .jpeg, .jpg" in refused(
        tmp_path / "a.rar", open_inputs
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    assert refused(tmp_path / "a.zip").endswith("a.zip: neither a file nor a folder.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_a_folder_is_named(tmp_path):
    folder = write_folder(tmp_path / "data", train_files())
    os.mkfifo(folder / "train/sad/pipe.png")
    assert problems(open_dataset(folder)) == {"train/sad/pipe.png": "not a regular file"}


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder = write_folder(tmp_path / "data", {**train_files(), "elsewhere.png": PNGS[0]})
    (folder / "train/sad/up").symlink_to(folder)
    (folder / "train/sad/link.png").symlink_to(folder / "elsewhere.png")
    (folder / "train/sad/nowhere.png").symlink_to(folder / "gone.png")
    (folder / "val").symlink_to(folder / "train")
    source = open_dataset(folder)
    assert splits(source)["train"] == 8 and splits(source)["val"] == 8
    assert problems(source)["train/sad/nowhere.png"] == "cannot be read (No such file or directory)"


def test_a_file_that_goes_while_its_folder_is_listed_is_named(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", {"a.png": PNGS[0], "b.png": PNGS[1]})
    scandir = os.scandir

    def then_gone(path):
        found = list(scandir(path))
        (folder / "a.png").unlink()
        return found

    monkeypatch.setattr(os, "scandir", then_gone)
    assert problems(open_inputs(folder)) == {"a.png": "cannot be read (No such file or directory)"}


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.os, "scandir", forbidden)
    assert refused(tmp_path).endswith("can't be listed (Permission denied).")


def test_a_folder_inside_that_cannot_be_listed_stops_training_and_not_prediction(tmp_path, monkeypatch):
    folder, listed = write_folder(tmp_path / "data", train_files()), os.scandir

    def forbidden(path):
        if os.path.basename(path) == "sad":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(sources.os, "scandir", forbidden)
    assert refused(folder) == f"{folder / 'train' / 'sad'}: can't be listed (Permission denied)."
    assert problems(open_inputs(folder)) == {"train/sad/": "can't be listed (Permission denied)"}
    assert len(list(open_inputs(folder).items())) == len(CLASSES)  # the other six, and the folder


@pytest.mark.parametrize("target", ["link.png", "fine.png/inside", "x" * 300])
def test_a_link_to_what_cannot_be_is_named(tmp_path, target):
    folder = write_folder(tmp_path / "data", {**train_files(), "train/sad/fine.png": PNGS[0]})
    (folder / "train/sad/link.png").symlink_to(target)
    for source in (open_dataset(folder), open_inputs(folder)):
        ((name, problem),) = problems(source).items()
        assert name == "train/sad/link.png" and problem.startswith("cannot be read (")


@pytest.mark.parametrize("name", ["a.zip", "a.csv", "a.tar"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    path = write_zip(tmp_path / name, {})

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", forbidden)
    monkeypatch.setattr(tarfile, "open", forbidden)
    assert "Permission denied" in refused(path)


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are always Unicode here")
def test_names_that_are_no_utf8_can_be_printed_and_read(tmp_path):
    folder = write_folder(tmp_path / "sad", {})
    folder.mkdir()
    (folder / os.fsdecode(b"\xff\xe4.png")).write_bytes(PNGS[0])
    (item,) = open_inputs(folder).items()
    assert (item.name, item.label, item.problem) == (r"\xff\xe4.png", 4, "")
    (item,) = open_inputs(folder / os.fsdecode(b"\xff\xe4.png")).items()
    assert (item.name, item.problem) == (r"\xff\xe4.png", "")


# Zips: damage and malice


def test_a_truncated_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    path.write_bytes(path.read_bytes()[:-30])
    assert re.search(r"a\.zip: truncated or not a zip \(.*\)\. Download it again\.$", refused(path))


def test_a_zip_that_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>please log in</html>")
    assert "a.zip: truncated or not a zip (File is not a zip file)" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "C:\\evil.png", "train\\..\\..\\evil.png"])
def test_names_that_lead_out_of_the_zip(tmp_path, name):
    source = open_dataset(write_zip(tmp_path / "a.zip", {**train_files(), name: PNGS[0]}))
    assert list(problems(source).values()) == ["unsafe name (absolute, or leading out of the zip)"]
    assert source.total == 8 and list(tmp_path.iterdir()) == [tmp_path / "a.zip"]


@pytest.mark.parametrize(("kind", "problem"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "not a regular file")])
def test_links_and_devices_in_a_zip(tmp_path, kind, problem):
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("train/sad/link.png")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert problems(open_dataset(path)) == {"train/sad/link.png": problem}


def patch_entry(path, name: str, *, flags=0, method=None, size=None) -> None:
    """Change the headers of one entry, both the local one and the one in the central directory."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(name).header_offset
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    for at, shift in ((local, 0), (central, 2)):
        data[at + 6 + shift] |= flags
        if method is not None:
            data[at + 8 + shift : at + 10 + shift] = struct.pack("<H", method)
        if size is not None:
            data[at + 22 + shift : at + 26 + shift] = struct.pack("<I", size)
    path.write_bytes(data)


def test_an_encrypted_entry(tmp_path):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", flags=1)
    assert problems(open_dataset(path)) == {"train/sad/x.png": "encrypted"}


def test_an_unknown_compression(tmp_path):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", method=99)
    assert problems(open_dataset(path)) == {
        "train/sad/x.png": "compressed by method 99 (only stored and deflated entries are read)"
    }


def test_an_entry_with_features_that_are_not_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", flags=0x20)
    (problem,) = problems(open_dataset(path)).values()
    assert problem.startswith("damaged in the zip (compressed patched data")


def test_an_entry_of_a_billion_bytes_by_its_header(tmp_path):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", size=1_000_000_000)
    assert problems(open_dataset(path)) == {"train/sad/x.png": "1000000000 bytes is above the limit of 64 MiB"}


def test_a_zip_bomb_is_not_inflated_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(source_zip, "MAX_BYTES", 4 * 2**20)
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/sad/x.png", bytes(20 * 2**20))
    assert path.stat().st_size < 50_000
    assert problems(open_dataset(path)) == {"train/sad/x.png": f"{20 * 2**20} bytes is above the limit of 4 MiB"}
    patch_entry(path, "train/sad/x.png", size=100_000)  # now it lies about its size too
    tracemalloc.start()
    (problem,) = problems(open_dataset(path)).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem.startswith("damaged in the zip (Bad CRC-32") and peak < 3 * 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_refused(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("train/sad/x.png", bytes(2**20))
    assert problems(open_dataset(path)) == {
        "train/sad/x.png": f"compressed by method {method} (only stored and deflated entries are read)"
    }


def test_a_changed_entry_is_found_by_its_checksum(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    data = path.read_bytes()
    path.write_bytes(data.replace(PNGS[4], PNGS[4][:-20] + b"x" * 20))
    assert problems(open_dataset(path)) == {
        "train/sad/Training_4.png": "damaged in the zip (Bad CRC-32 for file 'train/sad/Training_4.png')"
    }


def test_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(source_zip, "MAX_ENTRIES", 6)
    assert refused(write_zip(tmp_path / "a.zip", train_files())).endswith(
        "7 entries are above the limit of 6. Split the zip."
    )


def test_too_many_bytes_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(source_zip, "MAX_TOTAL", 1000)
    assert refused(write_zip(tmp_path / "a.zip", train_files())).endswith(
        "bytes uncompressed are above the limit of 1000. Split the zip."
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_entries_with_one_name_the_last_counts(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/sad/Training_4.png", PNGS[0])
    source = open_dataset(path)
    assert source.total == 7
    assert np.array_equal(next(item for item in source.items() if item.label == 4).pixels, pixels_of(0))


def test_names_written_with_dots_or_backslashes(tmp_path):
    written = {name.replace("/", "\\"): data for name, data in train_files().items()}
    source = open_dataset(write_zip(tmp_path / "a.zip", written))
    assert [item.name for item in source.items()] == sorted(train_files())
    written = {f"./{name}": data for name, data in train_files("train/").items()}
    source = open_dataset(write_zip(tmp_path / "b.zip", {"./": b"", **written}))
    assert [item.name for item in source.items()] == sorted(train_files())


def test_compressed_zips(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files(), zipfile.ZIP_DEFLATED)
    assert splits(open_dataset(path)) == {"train": 7}


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"PK\x07\x08", "Bad magic number for file header"),
        (30, b"Train", "File name in directory 'train/sad/x.png' and header b'Train/sad/x.png' differ."),
        (26, b"\xff\xff", "File name in directory"),
    ],
)
def test_an_entry_whose_own_header_disagrees_with_the_directory(tmp_path, at, new, message):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at += archive.getinfo("train/sad/x.png").header_offset
    data[at : at + len(new)] = new
    path.write_bytes(data)
    assert problems(open_dataset(path))["train/sad/x.png"].startswith(f"damaged in the zip ({message}"[:80])


def test_entries_that_overlap_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")  # of the first entry: now it claims the second one's header too
    data[at + 20 : at + 28] = struct.pack("<II", len(PNGS[0]) + 50, len(PNGS[0]) + 50)
    path.write_bytes(data)
    (problem,) = problems(open_dataset(path)).values()
    assert problem.startswith("damaged in the zip (Overlapped entries: 'train/angry/Training_0.png'")


def test_a_zip_cut_off_after_it_was_listed(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    source = open_dataset(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(PNGS[3]) + 10])
    assert list(problems(source)) == [item.name for item in source.part.items if item.label >= 3 or item.problem]


def test_a_zip_that_goes_after_it_was_listed(tmp_path):
    source = open_dataset(write_zip(tmp_path / "a.zip", train_files()))
    source.path.unlink()
    with pytest.raises(UserError, match=r"a\.zip: can't be read \(No such file or directory\)"):
        list(source.items())


def test_zips_written_in_other_ways_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in train_files().items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:  # sizes stand in extra fields
                entry.write(data)
    with (tmp_path / "b.zip").open("wb") as file, zipfile.ZipFile(Unseekable(file), "w") as archive:
        for name, data in train_files().items():
            archive.writestr(name.replace("Training", "grün"), data)  # sizes stand behind the data; names in UTF-8
    (tmp_path / "c.zip").write_bytes(
        b"a program that unpacks" + write_zip(tmp_path / "d.zip", train_files()).read_bytes()
    )
    for name in "abc":
        source = open_dataset(tmp_path / f"{name}.zip")
        assert [item.pixels.tobytes() for item in source.items()] == [
            pixels_of(CLASSES.index(item.name.split("/")[1])).tobytes() for item in source.part.items
        ]


class Unseekable:
    """A file that can only be written to the end, as a pipe."""

    def __init__(self, file) -> None:
        self.write, self.flush = file.write, file.flush


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_are_read_as_zipfile_reads_them(tmp_path_factory, method):
    path = write_zip(tmp_path_factory.mktemp("zip") / "a.zip", {f"{n}.png": PNGS[n] for n in range(3)}, method)
    whole = path.read_bytes()

    def expected(archive, info) -> bytes | None:
        try:
            with archive.open(info) as file:
                return file.read(info.file_size)
        except source_zip.ZIP_ERRORS:
            return None

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=3))
    def check(changes):
        data = bytearray(whole)
        for at, value in changes:
            data[at] = value
        path.write_bytes(data)
        try:
            with source_zip.open_zip(path) as archive:
                listing = source_zip.list_zip(archive, path)
                infos = [info for info in listing.files.values() if not source_zip.locked(info)]
                wanted = [expected(archive, info) for info in infos]
        except UserError:
            return
        for want, got in zip(wanted, source_zip.read_entries(path, infos, listing.ends), strict=True):
            late = isinstance(got, images.BadImage) and ("above the limit" in str(got) or "Overlapped" in str(got))
            # Of 0 bytes zipfile compares no checksum; older ones do not know of overlaps.
            assert late or want == b"" or got == want or (want is None and isinstance(got, images.BadImage))

    check()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_damaged_at_random_gives_items_or_a_user_error(tmp_path_factory, method):
    path = write_zip(tmp_path_factory.mktemp("zip") / "a.zip", train_files(), method)
    whole = path.read_bytes()
    end_of_images = whole.index(b"PK\x01\x02")

    @settings(max_examples=40, deadline=None, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, end_of_images - 1), st.integers(0, 255)), min_size=1, max_size=20),
        st.lists(st.tuples(st.integers(end_of_images, len(whole) - 1), st.integers(0, 255)), max_size=2),
    )
    def check(changes, directory_changes):
        data = bytearray(whole)
        for at, value in changes + directory_changes:
            data[at] = value
        path.write_bytes(data)
        try:
            items = list(open_inputs(path).items(1))
        except UserError:
            return
        assert all((item.pixels is None) == bool(item.problem) for item in items)

    check()


# Tables


def row(label=0, usage="Training", value=None) -> list[str]:
    return [str(label), " ".join(map(str, pixels_of(label if value is None else value).ravel())), usage]


def table(rows, header="emotion,pixels,Usage", end="\n") -> bytes:
    return end.join([header, *(",".join(cells) for cells in rows), ""]).encode()


ROWS = [row(label, usage) for usage in ("Training", "PublicTest", "PrivateTest") for label in range(7)]


def test_fer2013_csv(tmp_path):
    (tmp_path / "fer2013.csv").write_bytes(table(ROWS))
    source = open_dataset(tmp_path / "fer2013.csv")
    assert (source.kind, source.total, source.notes, source.renamed) == ("csv", None, [], {})
    items = list(source.items())
    assert [item.label for item in items] == [0, 1, 2, 3, 4, 5, 6] * 3
    assert Counter(item.split for item in items) == {"train": 7, "val": 7, "test": 7}
    assert all(np.array_equal(item.pixels, pixels_of(item.label)) for item in items)
    assert (items[0].name, items[-1].name) == ("fer2013.csv row 2", "fer2013.csv row 22")


def test_icml_face_data_csv(tmp_path):
    rows = [[label, usage, pixels] for label, pixels, usage in ROWS]
    (tmp_path / "icml_face_data.csv").write_bytes(table(rows, "emotion, Usage, pixels"))
    items = list(open_dataset(tmp_path / "icml_face_data.csv").items())
    assert Counter(item.split for item in items) == {"train": 7, "val": 7, "test": 7}
    assert all(np.array_equal(item.pixels, pixels_of(item.label)) for item in items)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends(tmp_path, mark, end):
    (tmp_path / "FER2013.CSV").write_bytes(mark + table(ROWS, end=end))
    assert splits(open_dataset(tmp_path / "FER2013.CSV")) == {"train": 7, "val": 7, "test": 7}


def test_quotes_blank_lines_and_spaces(tmp_path):
    _, pixels, usage = row(3)
    text = f'"emotion","pixels","Usage"\n\n 3 ," {pixels} ", {usage} \n\n'
    (tmp_path / "a.csv").write_text(text)
    (item,) = open_dataset(tmp_path / "a.csv").items()
    assert (item.label, item.split, item.problem, item.name) == (3, "train", "", "a.csv row 3")


def test_bad_rows_are_items_with_a_problem(tmp_path):
    label, pixels, usage = row()
    numbers = pixels.split()
    bad = [
        [label, " ".join(numbers[:-1]), usage],
        [label, pixels + " 7", usage],
        [label, " ".join(["x", *numbers[1:]]), usage],
        [label, " ".join(["256", *numbers[1:]]), usage],
        [label, " ".join(["-1", *numbers[1:]]), usage],
        [label, "", usage],
        ["7", pixels, usage],
        ["happy", pixels, usage],
        [label, pixels, "Test"],
        [label, pixels],
    ]
    (tmp_path / "a.csv").write_bytes(table([row(), *bad, row()]))
    items = list(open_dataset(tmp_path / "a.csv").items())
    assert [(item.name, item.problem) for item in items if item.problem] == [
        ("a.csv row 3", "2303 pixels where 2304 are expected"),
        ("a.csv row 4", "2305 pixels where 2304 are expected"),
        ("a.csv row 5", "pixel 'x' is not a number from 0 to 255"),
        ("a.csv row 6", "pixel '256' is not a number from 0 to 255"),
        ("a.csv row 7", "pixel '-1' is not a number from 0 to 255"),
        ("a.csv row 8", "0 pixels where 2304 are expected"),
        ("a.csv row 9", "unknown emotion '7' (0 to 6)"),
        ("a.csv row 10", "unknown emotion 'happy' (0 to 6)"),
        ("a.csv row 11", "unknown Usage 'Test' (Training, PublicTest or PrivateTest)"),
        ("a.csv row 12", "2 fields where 3 are expected"),
    ]
    assert [item.pixels is None for item in items] == [bool(item.problem) for item in items]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "emotion,pixels",
            "has no column Usage. Expected are emotion, pixels and Usage, in any order; found 'emotion', 'pixels'.",
        ),
        ("pixels,Usage", "has no column emotion. Expected"),
        ("a,b", "has no column emotion and no column pixels and no column Usage. Expected"),
    ],
)
def test_a_missing_column_is_named(tmp_path, header, message):
    (tmp_path / "a.csv").write_bytes(table(ROWS, header))
    assert f"a.csv {message}" in refused(tmp_path / "a.csv")


def test_an_empty_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    assert refused(tmp_path / "a.csv").endswith("found nothing.")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "a.csv" in refused(tmp_path / "a.csv")


def test_a_line_without_end_is_not_read_to_its_end(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"emotion,pixels,Usage\n" + b"0 " * source_csv.MAX_LINE)
    assert refused(tmp_path / "a.csv").endswith("line 2: above 100000 characters, so this is no FER2013 table.")


def test_a_quote_without_end(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'emotion,pixels,Usage\n0,"' + b"1 2 3\n" * 40_000)
    assert "field larger than field limit" in refused(tmp_path / "a.csv")


def test_the_key_of_a_table_follows_its_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(table(ROWS))
    (tmp_path / "b.csv").write_bytes(table(ROWS))
    (tmp_path / "c.csv").write_bytes(table(ROWS[1:]))
    first, second, third = (open_dataset(tmp_path / f"{name}.csv").key() for name in "abc")
    assert first == second != third


@pytest.mark.parametrize("name", ["fer2013.csv", "archive/icml_face_data.csv"])
def test_a_table_in_a_folder_or_zip(make, name):
    path = make({name: table(ROWS), "readme.txt": b""})
    source = open_dataset(path)
    assert (source.path, source.total) == (path, None) and source.kind in ("csv", "zip")
    assert splits(source) == {"train": 7, "val": 7, "test": 7}


def test_a_table_in_a_folder_named_from_here(tmp_path, monkeypatch):
    (tmp_path / "archive/deeper").mkdir(parents=True)
    (tmp_path / "archive/deeper/fer2013.csv").write_bytes(table(ROWS))
    monkeypatch.chdir(tmp_path)
    for name in ("archive", "archive/deeper"):
        assert splits(open_dataset(Path(name))) == {"train": 7, "val": 7, "test": 7}


def test_class_folders_come_before_a_table(make):
    assert splits(open_dataset(make({**train_files(), "fer2013.csv": table(ROWS)}))) == {"train": 7}


def test_two_tables_are_one_too_many(make):
    message = refused(make({"fer2013.csv": table(ROWS), "icml_face_data.csv": table(ROWS)}))
    assert message.endswith("found 'fer2013.csv', 'icml_face_data.csv'.")


def test_an_encrypted_or_damaged_table_in_a_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"fer2013.csv": table(ROWS)})
    whole = path.read_bytes()
    patch_entry(path, "fer2013.csv", flags=1)
    assert refused(path).endswith("fer2013.csv can't be read: encrypted. Unpack the zip, and give the folder.")
    path.write_bytes(whole)
    patch_entry(path, "fer2013.csv", flags=0x20)
    assert "fer2013.csv is damaged (compressed patched data" in refused(path)
    path.write_bytes(whole.replace(b"PublicTest", b"publicTest"))
    with pytest.raises(UserError, match=r"fer2013\.csv, line \d+: truncated or damaged \(Bad CRC-32"):
        list(open_dataset(path).items())


# Tar archives


def write_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("name", "mode"), [("fer2013.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.TAR", "w")])
def test_tar_archives(tmp_path, name, mode):
    path = write_tar(tmp_path / name, {"fer2013/README": b"hello", "fer2013/fer2013.csv": table(ROWS)}, mode)
    source = open_dataset(path)
    assert (source.kind, source.total) == ("tar", None)
    assert splits(source) == {"train": 7, "val": 7, "test": 7}
    assert next(source.items()).name == "fer2013.csv row 2"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tar_without_the_table(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", {"fer2013/README": b"hello", "fer2013/other.csv": table(ROWS)})
    assert refused(path).endswith("a.tar.gz: holds no fer2013.csv and no icml_face_data.csv.")


@pytest.mark.parametrize(("limit", "value"), [("MAX_MEMBERS", 1), ("MAX_PASSED", 4)])
def test_a_tar_is_not_searched_without_end(tmp_path, monkeypatch, limit, value):
    files = {"a": b"hello", "b": b"", "fer2013.csv": table(ROWS)}
    path = write_tar(tmp_path / "a.tar.gz", files)
    assert open_dataset(path).kind == "tar" and splits(open_dataset(path))
    monkeypatch.setattr(source_csv, limit, value)
    assert "a.tar.gz: holds no fer2013.csv and no icml_face_data.csv among its first" in refused(path)


def test_a_tar_that_is_no_tar(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"<html>please log in</html>" * 50)
    assert "a.tar.gz: truncated or not a tar archive (" in refused(tmp_path / "a.tar.gz")


def test_a_truncated_tar_is_not_taken_for_a_whole_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = [["0", " ".join(map(str, rng.integers(0, 256, 48 * 48))), "Training"] for _ in range(60)]
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tar", "w")):
        path = write_tar(tmp_path / name, {"fer2013/fer2013.csv": table(rows)}, mode)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"line \d+: truncated or damaged \(.*\)\. Download it again\."):
            list(open_dataset(path).items())


def test_a_tar_that_breaks_off_before_the_table(tmp_path):
    filler = np.random.default_rng(0).bytes(200_000)
    path = write_tar(tmp_path / "a.tar.gz", {"fer2013/filler": filler, "fer2013/fer2013.csv": table(ROWS)})
    path.write_bytes(path.read_bytes()[:100_000])
    assert "a.tar.gz: truncated or damaged (" in refused(path)


# Every form


def test_every_form_gives_the_same_images(tmp_path):
    files = {**train_files(), **test_files("PublicTest"), **test_files("PrivateTest")}
    (tmp_path / "fer2013.csv").write_bytes(table(ROWS))
    paths = [
        write_folder(tmp_path / "data", files),
        write_zip(tmp_path / "a.zip", files),
        tmp_path / "fer2013.csv",
        write_tar(tmp_path / "a.tar.gz", {"fer2013/fer2013.csv": table(ROWS)}),
        write_zip(tmp_path / "b.zip", {"fer2013.csv": table(ROWS)}),
    ]
    found = [{(item.split, item.label, item.pixels.tobytes()) for item in open_dataset(path).items()} for path in paths]
    assert len(found[0]) == 21 and all(images == found[0] for images in found)


# Inputs to predict


def test_inputs_of_a_folder_or_zip(make):
    files = {"a/Happiness/1.png": PNGS[0], "a/2.PNG": PNGS[1], "contempt/3.png": PNGS[2]}
    source = open_inputs(make({**files, "b/notes.txt": b"", ".x.png": b""}))
    assert listed(source) == [
        ("a/2.PNG", "", -1, ""),
        ("a/Happiness/1.png", "", 3, ""),
        ("b/notes.txt", "", -1, "not an image file"),
        ("contempt/3.png", "", -1, ""),
    ]
    assert source.renamed == {"Happiness": "happy"} and source.total == 4


def test_training_images_among_the_inputs_are_counted(make):
    files = {"data/Train/sad/1.png": PNGS[0], "data/val/sad/2.png": PNGS[1], "data/train/3.png": PNGS[2]}
    assert open_inputs(make(files)).training == 1


@pytest.mark.parametrize(
    "given", ["archive/train", "archive/train/sad", "archive/train/sad/1.png", "link", "train.zip"]
)
def test_training_images_are_known_by_the_folders_above_the_path_too(tmp_path, monkeypatch, given):
    write_folder(tmp_path, {"archive/train/sad/1.png": PNGS[0], "archive/test/sad/1.png": PNGS[0]})
    write_zip(tmp_path / "train.zip", {"sad/1.png": PNGS[0]})
    (tmp_path / "link").symlink_to(tmp_path / "archive/train")
    monkeypatch.chdir(tmp_path)
    assert open_inputs(Path(given)).training == 1
    assert not open_inputs(Path("archive/test/sad")).training


@pytest.mark.parametrize("given", [".", "sad", "sad/1.png"])
def test_training_images_are_known_inside_train(tmp_path, monkeypatch, given):
    write_folder(tmp_path, {"archive/train/sad/1.png": PNGS[0]})
    monkeypatch.chdir(tmp_path / "archive/train")
    assert open_inputs(Path(given)).training == 1


def test_the_nearest_split_decides_what_is_a_training_image(make):
    assert not open_inputs(make({"train/test/sad/1.png": PNGS[0]})).training


def test_what_no_accuracy_is_of_is_no_training_image(make):
    assert open_inputs(make({"train/1.png": PNGS[0], "sad/2.png": PNGS[1]})).training == 0


def test_a_class_folder_itself_as_input(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "Fear", {"1.png": PNGS[0]})
    assert listed(open_inputs(folder)) == [("1.png", "", 2, "")]
    monkeypatch.chdir(folder)
    assert listed(open_inputs(sources.Path("."))) == [("1.png", "", 2, "")]


def test_an_image_file_as_input(tmp_path):
    folder = write_folder(tmp_path / "sadness", {"1.png": PNGS[0]})
    source = open_inputs(folder / "1.png")
    assert (source.kind, source.total) == ("image", 1)
    (item,) = source.items()
    assert (item.name, item.label, item.split) == ("1.png", 4, "") and np.array_equal(item.pixels, pixels_of(0))
    assert source.key() != open_inputs(write_folder(tmp_path, {"1.png": PNGS[1]}) / "1.png").key()


def test_inputs_without_files(make):
    path = make({".DS_Store": b""})
    assert re.search(r"data(\.zip)?: holds no files\. Accepted are images \(\.bmp, \.gif", refused(path, open_inputs))


def test_inputs_of_a_zip_with_nothing_but_refused_entries(tmp_path):
    source = open_inputs(write_zip(tmp_path / "a.zip", {"../evil.png": PNGS[0]}))
    assert listed(source) == [("../evil.png", "", -1, "unsafe name (absolute, or leading out of the zip)")]


def test_a_nested_zip_is_not_opened(make):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.png", PNGS[0])
    assert listed(open_inputs(make({"inner.zip": buffer.getvalue()}))) == [("inner.zip", "", -1, "not an image file")]


def test_an_image_above_the_byte_limit_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    folder = write_folder(tmp_path / "data", {"1.png": PNGS[0] + bytes(2**20)})
    assert problems(open_inputs(folder)) == {"1.png": "above the limit of 1 MiB"}


# The dataset itself

FER2013 = os.environ.get("FER2013_DATA")


@pytest.mark.skipif(not FER2013, reason="FER2013_DATA does not name the dataset")
def test_fer2013_itself():
    source = open_dataset(sources.Path(FER2013))
    items = list(itertools.islice(source.items(), 40_000))
    counts = Counter(item.label for item in items if item.split == "train")
    assert [counts[label] for label in range(7)] == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert not [item.name for item in items if item.problem]

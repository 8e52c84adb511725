"""Sources: every public form of FER2013 gives the same images, and whatever is wrong is named."""

import io
import os
import re
import stat
import struct
import tarfile
import threading
import time
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
from readers import decode, sources, tables
from readers.decode import CHUNK, cut, decode_batches
from readers.layout import Item, class_index
from readers.sources import open_dataset, open_inputs


def pixels_of(value: int) -> np.ndarray:
    return (np.arange(48 * 48).reshape(48, 48) * (value + 1) % 251).astype(np.uint8)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(value)).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(value) for value in range(len(CLASSES))]


def train_files(folder="train", names=CLASSES) -> dict[str, bytes]:
    return {f"{folder}/{name}/Training_{index}.png".lstrip("/"): PNGS[index] for index, name in enumerate(names)}


def other_files(prefix: str, folder="test") -> dict[str, bytes]:
    return {f"{folder}/{name}/{prefix}_{index}.png": PNGS[index] for index, name in enumerate(CLASSES)}


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
    """A function from {name: bytes} to the path of a folder or zip with them in it."""
    if request.param == "folder":
        (tmp_path / "data").mkdir()
        return lambda files: write_folder(tmp_path / "data", files)
    return lambda files: write_zip(tmp_path / "data.zip", files)


def read(source, workers=1):
    """(name, split, label, pixels or None, problem) of every image."""
    found = []
    for items, pixels, sizes in decode_batches(cut(source.items(), 100), workers):
        good = iter(pixels)
        for item, size in zip(items, sizes, strict=True):
            bad = isinstance(size, str)
            found.append((item.name, item.split, item.label, None if bad else next(good), size if bad else ""))
    return found


def problems(source):
    return {name: problem for name, *_, problem in read(source) if problem}


def splits(source):
    return Counter(split for _, split, _, pixels, _ in read(source) if pixels is not None)


def refused(path, opener=open_dataset) -> str:
    with pytest.raises(UserError) as caught:
        opener(path)
    return str(caught.value)


# --- Folders and zips as training sets ---


def test_class_names_synonyms_and_letter_case():
    for names in (CLASSES, [name.upper() for name in CLASSES]):
        assert [class_index(name) for name in names] == list(range(7))
    words = ["Anger", "disgusted", "fearful", "happiness", "sadness", "surprised", " Neutral "]
    assert [class_index(name) for name in words] == list(range(7))
    assert [class_index(name) for name in ("contempt", "", "0", "angry2")] == [None] * 4


def test_splits_labels_pixels_and_order(make):
    path = make({**other_files("PublicTest"), **other_files("PrivateTest"), **train_files()})
    source = open_dataset(path)
    found = read(source)
    names = [name for name, *_ in found]
    assert names == sorted(names) and len(found) == source.total == 21
    assert splits(source) == {"train": 7, "val": 7, "test": 7}
    assert all(np.array_equal(pixels, pixels_of(label)) for _, _, label, pixels, _ in found)
    assert ("test/sad/PublicTest_4.png", "val", 4) in [image[:3] for image in found]
    assert (source.path, source.notes, source.renamed) == (path, [], {})


def test_with_val_the_public_test_images_are_left_out(make):
    files = {**train_files(), **other_files("PublicTest"), **other_files("PrivateTest"), **other_files("x", "val")}
    source = open_dataset(make(files))
    assert splits(source) == {"train": 7, "val": 7, "test": 7} and source.total == 21
    assert "7 PublicTest_* images in test/ are left out" in source.notes[0]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_other_names_of_val(make, name):
    assert splits(open_dataset(make({**train_files("Train"), **other_files("x", name)}))) == {"train": 7, "val": 7}


@pytest.mark.parametrize("folder", ["", "archive/train", "a/b/c/train", "archive"])
def test_class_folders_alone_and_under_single_folders_are_train(make, folder):
    assert splits(open_dataset(make({**train_files(folder), "README.md": b""}))) == {"train": 7}


def test_junk_is_left_out_without_a_word(make):
    junk = ["__MACOSX/train/angry/._Training_0.png", "train/.DS_Store", "train/angry/Thumbs.db", "desktop.ini"]
    junk += ["train/.ipynb_checkpoints/x.png", "train/happy/.ipynb_checkpoints/x-checkpoint.png", ".git/config"]
    source = open_dataset(make({**train_files(), **dict.fromkeys(junk, b"junk")}))
    assert source.total == 7 and problems(source) == {}


def test_files_that_are_not_training_images_are_named(make):
    extra = ["LICENSE.txt", "train/angry/notes.txt", "train/loose.png", "other/a.png", "inner.zip", "root.png"]
    assert problems(open_dataset(make({**train_files(), **dict.fromkeys(extra, PNGS[0])}))) == {
        "LICENSE.txt": "not an image file",
        "train/angry/notes.txt": "not an image file",
        "inner.zip": "not an image file",
        "train/loose.png": "not in a class folder",
        "other/a.png": "not in train/, val/ or test/",
        "root.png": "not in train/, val/ or test/",
    }


@pytest.mark.parametrize(("folder", "problem"), [("archive/train", "not in train/"), ("", "not in a class folder")])
def test_files_beside_the_folders_are_named(make, folder, problem):
    (name, found) = problems(open_dataset(make({**train_files(folder), "beside.png": PNGS[0]}))).popitem()
    assert name == "beside.png" and found.startswith(problem)


def test_renamed_folders_are_reported(make):
    names = ["Anger", "disgust", "FEAR", "happiness", "sad", "surprised", "neutral"]
    source = open_dataset(make(train_files(names=names)))
    assert source.renamed == {"Anger": "angry", "FEAR": "fear", "happiness": "happy", "surprised": "surprise"}
    assert all(class_index(name.split("/")[1]) == label for name, _, label, *_ in read(source))


@pytest.mark.parametrize("folder", ["train/contempt", "val/contempt", "test/contempt"])
def test_an_unknown_class_folder_is_refused(make, folder):
    message = refused(make({**train_files(), f"{folder}/a.png": PNGS[0]}))
    assert f"{folder.split('/')[0]}/ has folders that are no class: 'contempt'. Allowed are angry" in message
    assert "Rename or remove" in message


def test_a_class_that_is_absent_or_empty_is_named(tmp_path):
    files = {name: data for name, data in train_files().items() if "sad" not in name and "fear" not in name}
    folder = write_folder(tmp_path / "data", {**files, "train/sad/readme.txt": b""})
    archive = write_zip(tmp_path / "a.zip", {**files, "train/sad/": b""})
    for path in (folder, archive):
        assert "train/ has no images of: fear (no such folder), sad (its folder is empty)" in refused(path)
    more = write_folder(tmp_path / "more", {**train_files(), "val/sad/a.png": PNGS[0]})
    assert splits(open_dataset(more))["val"] == 1  # a class may lack in val and test


def test_another_layout_is_refused_with_what_was_found(make):
    message = refused(make({"images/1.png": PNGS[0], "labels.txt": b"", "more/2.png": PNGS[0]}))
    assert "expected train/ with a folder for each class (angry, " in message
    assert message.endswith("found 'images', 'labels.txt', 'more'.")


@pytest.mark.parametrize(
    ("names", "end"),
    [
        ([f"x{index}.png" for index in range(9)], "'x0.png', 'x1.png', 'x2.png', 'x3.png', 'x4.png' and 4 more."),
        (["a/b/1.png"], "found '1.png' in a/b/."),
        (list(other_files("PublicTest")), "found 'test'."),  # test alone does not pass for training data
    ],
)
def test_what_was_found_is_short_and_tells_where(make, names, end):
    assert refused(make(dict.fromkeys(names, PNGS[0]))).endswith(end)


def test_nothing_in_it(tmp_path):
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "data", write_zip(tmp_path / "a.zip", {})):
        assert refused(path).endswith("found nothing.")
        assert "has no files. Accepted are images (.bmp" in refused(path, open_inputs)


def test_a_bad_image_is_named_with_its_problem(make):
    bad = {"cut.png": PNGS[0][:100], "empty.png": b"", "text.jpg": b"text", "small.pgm": b"P5 8 1 255 " + bytes(8)}
    assert problems(open_dataset(make({**train_files(), **{f"train/angry/{name}": bad[name] for name in bad}}))) == {
        "train/angry/cut.png": "truncated",
        "train/angry/empty.png": "0 bytes",
        "train/angry/text.jpg": "not an image",
        "train/angry/small.pgm": "8x1 is too small (8x8 at least)",
    }


# --- Many images ---


def test_the_number_of_threads_does_not_matter(make, monkeypatch):
    monkeypatch.setattr(decode, "SLOW_SECONDS", 0)  # else such small images are decoded without threads
    files = {f"train/{name}/{index}.png": PNGS[index % 7] for name in CLASSES for index in range(40)}
    source = open_dataset(make({**files, "train/sad/bad.png": b""}))
    whole = [(*image[:3], image[3] is None or image[3].tobytes(), image[4]) for image in read(source)]
    assert len(whole) == source.total == 281
    for workers in (0, 2, 5):
        found = [(*image[:3], image[3] is None or image[3].tobytes(), image[4]) for image in read(source, workers)]
        assert found == whole


def test_little_is_read_ahead_and_threads_end_when_the_reader_stops():
    loaded, names = [], []

    def slow(number):
        time.sleep(0.001)
        loaded.append(number)
        names.append(threading.current_thread().name)
        return decode.decode(PNGS[0])

    items = [Item(str(n), load=partial(slow, n)) for n in range(100 * CHUNK)]
    stream = decode_batches(cut(items, CHUNK), 2)
    next(stream)
    stream.close()
    assert any(name.startswith("decode") for name in names)
    assert len(loaded) <= 6 * CHUNK
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_item_with_a_problem_is_not_loaded():
    items = [
        Item("a", problem="encrypted"),
        Item("b", load=lambda: decode.decode(PNGS[3])),
        Item("c", problem="a link"),
    ]
    (batch,) = decode_batches([items], 1)
    assert batch.found == ["encrypted", (48, 48), "a link"] and np.array_equal(batch.pixels, [pixels_of(3)])


# --- Keys ---


def test_the_key_follows_the_content(make, tmp_path):
    path = make(train_files())
    before = open_dataset(path).key()
    assert re.fullmatch("[0-9a-f]{64}", before) and open_dataset(path).key() == before
    assert open_dataset(make({**train_files(), "train/sad/more.png": PNGS[0]})).key() != before


def test_the_key_of_a_folder_follows_times_and_that_of_a_zip_checksums(tmp_path):
    folder = write_folder(tmp_path / "data", train_files())
    key = open_dataset(folder).key()
    os.utime(folder / "train/sad/Training_4.png", ns=(1, 1))
    assert open_dataset(folder).key() != key
    changed = {**train_files(), "train/sad/Training_4.png": PNGS[4][:-1] + b"x"}
    first, second, third = (
        open_dataset(write_zip(tmp_path / f"{name}.zip", files)).key()
        for name, files in (("a", train_files()), ("b", train_files()), ("c", changed))
    )
    assert first == second != third and first != key


# --- Files and folders that can't be used ---


def test_a_missing_path_and_an_unknown_suffix(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"")
    for opener in (open_dataset, open_inputs):
        assert refused(tmp_path / "none.zip", opener).endswith("none.zip: no such file or folder.")
        assert "a.rar: not a" in refused(tmp_path / "a.rar", opener)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    assert refused(tmp_path / "a.zip").endswith("a.zip: neither a file nor a folder.")
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
    assert source.key() == open_dataset(folder).key()


@pytest.mark.parametrize("target", ["link.png", "fine.png/inside", "x" * 300])
def test_a_link_to_what_cannot_be_is_named(tmp_path, target):
    folder = write_folder(tmp_path / "data", {**train_files(), "train/sad/fine.png": PNGS[0]})
    (folder / "train/sad/link.png").symlink_to(target)
    for source in (open_dataset(folder), open_inputs(folder)):
        ((name, problem),) = problems(source).items()
        assert name == "train/sad/link.png" and problem.startswith("cannot be read (")


def test_a_folder_inside_that_cannot_be_listed_stops_training_and_not_prediction(tmp_path, monkeypatch):
    folder, scandir = write_folder(tmp_path / "data", train_files()), os.scandir

    def forbidden(path):
        if os.path.basename(path) == "sad":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", forbidden)
    assert refused(folder) == f"{folder / 'train' / 'sad'}: can't be listed (Permission denied)."
    assert problems(open_inputs(folder)) == {"train/sad/": "can't be listed (Permission denied)"}
    assert open_inputs(folder).total == len(CLASSES)  # the other six, and the folder


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
    (tmp_path / "sad").mkdir()
    file = tmp_path / "sad" / os.fsdecode(b"\xff\xe4.png")
    file.write_bytes(PNGS[0])
    for path in (tmp_path / "sad", file):
        assert [(name, label, problem) for name, _, label, _, problem in read(open_inputs(path))] == [
            (r"\xff\xe4.png", 4, "")
        ]


# --- Zips: damage and malice ---


def test_a_zip_that_is_truncated_or_none(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    path.write_bytes(path.read_bytes()[:-30])
    assert re.search(r"a\.zip: truncated or not a zip \(.*\)\. Download it again\.$", refused(path))
    path.write_bytes(b"<html>please log in</html>")
    assert "a.zip: truncated or not a zip (File is not a zip file)" in refused(path)


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "C:\\evil.png", "train\\..\\..\\evil.png"])
def test_names_that_lead_out_of_the_zip(tmp_path, name):
    source = open_dataset(write_zip(tmp_path / "a.zip", {**train_files(), name: PNGS[0]}))
    assert list(problems(source).values()) == ["unsafe name (absolute, or leading out of the zip)"]
    assert source.total == 8 and list(tmp_path.iterdir()) == [tmp_path / "a.zip"]
    alone = open_inputs(write_zip(tmp_path / "b.zip", {name: PNGS[0]}))
    assert alone.total == 1 and problems(alone)


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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"flags": 1}, "encrypted"),
        ({"flags": 0x20}, "damaged in the zip (compressed patched data"),
        ({"method": 99}, "compressed by method 99 (only stored and deflated entries are read)"),
        ({"method": zipfile.ZIP_BZIP2}, "compressed by method 12"),  # has no bound
        ({"method": zipfile.ZIP_LZMA}, "compressed by method 14"),
        ({"size": 1_000_000_000}, "1000000000 bytes is above the limit of 64 MiB"),
    ],
)
def test_an_entry_that_is_not_read_is_named_with_the_reason(tmp_path, change, problem):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", **change)
    ((name, found),) = problems(open_dataset(path)).items()
    assert name == "train/sad/x.png" and found.startswith(problem)


def test_a_zip_bomb_is_not_inflated_past_its_claimed_size(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/sad/x.png", bytes(40 * 2**20))
    patch_entry(path, "train/sad/x.png", size=100_000)
    tracemalloc.start()
    (problem,) = problems(open_dataset(path)).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem.startswith("damaged in the zip (Bad CRC-32") and peak < 3 * 2**20


def test_a_changed_entry_is_found_by_its_checksum(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    path.write_bytes(path.read_bytes().replace(PNGS[4], PNGS[4][:-20] + b"x" * 20))
    ((name, problem),) = problems(open_dataset(path)).items()
    assert name == "train/sad/Training_4.png" and problem.startswith("damaged in the zip (Bad CRC-32")


@pytest.mark.parametrize(("limit", "value"), [("MAX_ENTRIES", 6), ("MAX_TOTAL", 1000)])
def test_too_many_entries_or_bytes(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(sources, limit, value)
    assert refused(write_zip(tmp_path / "a.zip", train_files())).endswith(f"above the limit of {value}. Split the zip.")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_entries_with_one_name_the_last_counts(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files(), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/sad/Training_4.png", PNGS[0])
    found = {label: pixels for _, _, label, pixels, _ in read(open_dataset(path))}
    assert len(found) == 7 and np.array_equal(found[4], pixels_of(0))


def test_names_written_with_dots_or_backslashes(tmp_path):
    for name, written in (
        ("a.zip", {name.replace("/", "\\"): data for name, data in train_files().items()}),
        ("b.zip", {"./": b"", **{f"./{name}": data for name, data in train_files("train/").items()}}),
    ):
        assert [image[0] for image in read(open_dataset(write_zip(tmp_path / name, written)))] == sorted(train_files())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_damaged_at_random_gives_images_or_a_user_error(tmp_path_factory, method):
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
            found = read(open_inputs(path))
        except UserError:
            return
        assert all((pixels is None) == bool(problem) for *_, pixels, problem in found)

    check()


# --- Tables and tar archives ---


def row(label=0, usage="Training") -> list[str]:
    return [str(label), " ".join(map(str, pixels_of(label).ravel())), usage]


def table(rows, header="emotion,pixels,Usage", end="\n") -> bytes:
    return end.join([header, *(",".join(cells) for cells in rows), ""]).encode()


ROWS = [row(label, usage) for usage in ("Training", "PublicTest", "PrivateTest") for label in range(7)]


def write_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_every_form_gives_the_same_images(tmp_path):
    files = {**train_files(), **other_files("PublicTest"), **other_files("PrivateTest")}
    columns = table([[label, usage, pixels] for label, pixels, usage in ROWS], "emotion, Usage, pixels")
    tables_ = {
        "fer2013.csv": table(ROWS),
        "icml_face_data.csv": columns,
        "WINDOWS.CSV": b"\xef\xbb\xbf" + table(ROWS, end="\r\n"),
    }
    paths = [
        write_folder(tmp_path / "data", files),
        write_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED),
        *(write_folder(tmp_path, {name: data}) / name for name, data in tables_.items()),
        write_folder(tmp_path / "deep", {"archive/icml_face_data.csv": columns, "archive/readme.txt": b""}),
        write_zip(tmp_path / "b.zip", {"fer2013.csv": table(ROWS)}),
        write_tar(tmp_path / "fer2013.tar.gz", {"fer2013/README": b"", "fer2013/fer2013.csv": table(ROWS)}),
        write_tar(tmp_path / "a.TAR", {"fer2013.csv": table(ROWS)}, "w"),
    ]
    found = [{(s, y, pixels.tobytes()) for _, s, y, pixels, _ in read(open_dataset(path))} for path in paths]
    assert len(found[0]) == 21 and all(images == found[0] for images in found)
    assert read(open_dataset(tmp_path / "fer2013.csv"))[0][0] == "fer2013.csv row 2"


def test_a_table_in_a_folder_named_from_here(tmp_path, monkeypatch):
    write_folder(tmp_path, {"archive/deeper/fer2013.csv": table(ROWS)})
    monkeypatch.chdir(tmp_path)
    for name in ("archive", "archive/deeper"):
        assert splits(open_dataset(Path(name))) == {"train": 7, "val": 7, "test": 7}


def test_class_folders_come_before_a_table_and_two_tables_are_one_too_many(make):
    assert splits(open_dataset(make({**train_files(), "fer2013.csv": table(ROWS)}))) == {"train": 7}


def test_two_tables_are_one_too_many(make):
    message = refused(make({"fer2013.csv": table(ROWS), "icml_face_data.csv": table(ROWS)}))
    assert message.endswith("found 'fer2013.csv', 'icml_face_data.csv'.")


def test_quotes_blank_lines_and_spaces(tmp_path):
    _, pixels, usage = row(3)
    (tmp_path / "a.csv").write_text(f'"emotion","pixels","Usage"\n\n 3 ," {pixels} ", {usage} \n\n')
    assert [image[:3] for image in read(open_dataset(tmp_path / "a.csv"))] == [("a.csv row 3", "train", 3)]


def test_bad_rows_are_named_with_their_problem(tmp_path):
    label, pixels, usage = row()
    numbers = pixels.split()
    bad = {
        "2303 pixels where 2304 are expected": [label, " ".join(numbers[:-1]), usage],
        "0 pixels where 2304 are expected": [label, "", usage],
        "pixel 'x' is not a number from 0 to 255": [label, " ".join(["x", *numbers[1:]]), usage],
        "pixel '256' is not a number from 0 to 255": [label, " ".join(["256", *numbers[1:]]), usage],
        "pixel '-1' is not a number from 0 to 255": [label, " ".join(["-1", *numbers[1:]]), usage],
        "unknown emotion '7' (0 to 6)": ["7", pixels, usage],
        "unknown emotion 'happy' (0 to 6)": ["happy", pixels, usage],
        "unknown Usage 'Test' (Training, PublicTest or PrivateTest)": [label, pixels, "Test"],
        "2 fields where 3 are expected": [label, pixels],
    }
    (tmp_path / "a.csv").write_bytes(table([row(), *bad.values(), row()]))
    wanted = {f"a.csv row {number}": problem for number, problem in enumerate(bad, 3)}
    assert problems(open_dataset(tmp_path / "a.csv")) == wanted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table(ROWS, "emotion,pixels"), "has no column Usage. Expected are emotion, pixels and Usage, in any order;"),
        (table(ROWS, "a,b"), "has no column emotion and no column pixels and no column Usage. Expected"),
        (b"", "found nothing."),
        (np.random.default_rng(0).bytes(5000), "a.csv"),
        (b"emotion,pixels,Usage\n" + b"0 " * tables.MAX_LINE, "line 2: above 100000 characters"),  # not read to its end
        (b'emotion,pixels,Usage\n0,"' + b"1 2 3\n" * 40_000, "field larger than field limit"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, data, message):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)):
        list(open_dataset(tmp_path / "a.csv").items())


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 9)
    (tmp_path / "a.csv").write_bytes(table(ROWS))
    with pytest.raises(UserError, match="more than 9 rows"):
        list(open_dataset(tmp_path / "a.csv").items())


def test_a_locked_or_damaged_table_in_a_zip(tmp_path):
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


def test_a_tar_without_the_table_or_that_is_none(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", {"fer2013/README": b"hello", "fer2013/other.csv": table(ROWS)})
    assert refused(path).endswith("a.tar.gz: has no fer2013.csv and no icml_face_data.csv.")
    path.write_bytes(b"<html>please log in</html>" * 50)
    assert "a.tar.gz: truncated or not a tar archive (" in refused(path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_MEMBERS", 1), ("MAX_PASSED", 4)])
def test_a_tar_is_not_searched_without_end(tmp_path, monkeypatch, limit, value):
    path = write_tar(tmp_path / "a.tar.gz", {"a": b"hello", "b": b"", "fer2013.csv": table(ROWS)})
    assert splits(open_dataset(path))
    monkeypatch.setattr(tables, limit, value)
    assert "a.tar.gz: no fer2013.csv and no icml_face_data.csv among its first" in refused(path)


def test_a_truncated_tar_is_not_taken_for_a_whole_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = [["0", " ".join(map(str, rng.integers(0, 256, 48 * 48))), "Training"] for _ in range(60)]
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tar", "w")):
        path = write_tar(tmp_path / name, {"fer2013/fer2013.csv": table(rows)}, mode)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"line \d+: truncated or damaged \(.*\)\. Download it again\."):
            list(open_dataset(path).items())
    filler = {"fer2013/filler": rng.bytes(200_000), "fer2013/fer2013.csv": table(ROWS)}
    path = write_tar(tmp_path / "c.tar.gz", filler)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "c.tar.gz: truncated or damaged (" in refused(path)


# --- Inputs to predict ---


def test_inputs_of_a_folder_or_zip(make):
    files = {"a/Happiness/1.png": PNGS[0], "a/2.PNG": PNGS[1], "contempt/3.png": PNGS[2]}
    source = open_inputs(make({**files, "b/notes.txt": b"", ".x.png": b"", "inner.zip": PNGS[0]}))
    assert [(name, split, label, problem) for name, split, label, _, problem in read(source)] == [
        ("a/2.PNG", "", -1, ""),
        ("a/Happiness/1.png", "", 3, ""),
        ("b/notes.txt", "", -1, "not an image file"),
        ("contempt/3.png", "", -1, ""),
        ("inner.zip", "", -1, "not an image file"),
    ]
    assert source.renamed == {"Happiness": "happy"} and source.total == 5


def test_training_images_among_the_inputs_are_counted(make):
    files = {"data/Train/sad/1.png": PNGS[0], "data/val/sad/2.png": PNGS[1], "data/train/3.png": PNGS[2]}
    assert open_inputs(make({**files, "train/test/sad/4.png": PNGS[0]})).training == 1  # the nearest split decides


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


@pytest.mark.parametrize("given", ["Fear", "Fear/1.png", "."])
def test_a_class_folder_or_a_file_in_it_has_its_class(tmp_path, monkeypatch, given):
    write_folder(tmp_path, {"Fear/1.png": PNGS[0]})
    monkeypatch.chdir(tmp_path / "Fear" if given == "." else tmp_path)
    assert [image[:3] for image in read(open_inputs(Path(given)))] == [("1.png", "", 2)]


def test_an_image_above_the_byte_limit_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 2**20)
    folder = write_folder(tmp_path / "data", {"1.png": PNGS[0] + bytes(2**20)})
    assert problems(open_inputs(folder)) == {"1.png": "above the limit of 1 MiB"}

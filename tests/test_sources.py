"""Sources: every public form of FER2013 gives the same images, and whatever is wrong is named."""

import io
import os
import re
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classes import SEVEN, class_of, meanings, split_of
from config import CLASSES
from errors import UserError
from readers import decode, sources, tables
from readers.decode import cut, load, work_in_batches
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
    """(name, split, label, pixels or None, problem) of every image; the label as a place in CLASSES, -1 if in none."""
    found, known = [], meanings(table=True)
    for items, results in work_in_batches(load, cut(source.items(), 100), workers):
        for item, result in zip(items, results, strict=True):
            label = ([*CLASSES, ""].index(class_of(item.label, known)) + 1) % 8 - 1
            bad = isinstance(result, str)
            found.append((item.name, item.split, label, None if bad else result, result if bad else ""))
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
    words = ["Anger", "disgusted", "scared", "happiness", "sadness", "surprised", " Neutrality "]
    front = [f"{number} {name}" for number, name in enumerate(CLASSES)]
    for names in (CLASSES, [name.upper() for name in CLASSES], words, front, [f"Train_{name}" for name in CLASSES]):
        assert [class_of(name, SEVEN) for name in names] == list(CLASSES)
    assert [class_of(name, SEVEN) for name in ("contempt", "", "0", "angry2", "0 ", "train_")] == [""] * 6


def test_names_of_splits():
    words = {
        "train": ("Training", "TRAIN", "train_set", " Train Set"),
        "val": ("valid", "Validation", "dev", "eval", "val_set", "PublicTest"),
        "test": ("testing", "PrivateTest", "Private Test", "test-set"),
    }
    assert all(split_of(word) == split for split in words for word in words[split])
    assert [split_of(name) for name in ("", "set", "trained", "tests", "angry")] == [""] * 5


def test_splits_labels_pixels_and_order(make):
    names = ["Anger", "disgust", "FEAR", "happiness", "sad", "surprised", "neutral"]
    files = {**other_files("PublicTest"), **other_files("PrivateTest"), **train_files(names=names)}
    source = open_dataset(make(files))
    found = read(source)
    names = [name for name, *_ in found]
    assert names == sorted(names) and len(found) == source.total == 21
    assert splits(source) == {"train": 7, "val": 7, "test": 7}
    assert all(np.array_equal(pixels, pixels_of(label)) for _, _, label, pixels, _ in found)
    assert ("test/sad/PublicTest_4.png", "val", 4) in [image[:3] for image in found]


@pytest.mark.parametrize("name", ["val", "Validation"])
def test_with_val_the_public_test_images_are_left_out(make, name):
    files = {**train_files("Train"), **other_files("PublicTest"), **other_files("PrivateTest")}
    source = open_dataset(make({**files, **other_files("x", name)}))
    assert splits(source) == {"train": 7, "val": 7, "test": 7}
    assert all("PublicTest_" in name and "left out" in problem for name, problem in problems(source).items())


@pytest.mark.parametrize("folder", ["", "archive/train", "a/b/c/train", "archive"])
def test_class_folders_alone_and_under_single_folders_are_train(make, folder):
    files = {**train_files(folder), "README.md": b"", f"{folder}/fer2013.csv".lstrip("/"): b""}
    assert splits(open_dataset(make(files))) == {"train": 7}


def test_junk_is_left_out_without_a_word(make):
    junk = ["__MACOSX/train/angry/._Training_0.png", "train/.DS_Store", "train/angry/Thumbs.db", "desktop.ini"]
    junk += ["train/.ipynb_checkpoints/x.png", "train/happy/.ipynb_checkpoints/x-checkpoint.png", ".git/config"]
    source = open_dataset(make({**train_files(), **dict.fromkeys(junk, b"junk")}))
    assert source.total == 7 and problems(source) == {}


def test_files_that_are_no_training_images_are_named(make):
    extra = ["LICENSE.txt", "train/angry/notes.txt", "train/loose.png", "other/a.png", "root.png"]
    bad = {"cut.png": PNGS[0][:100], "empty.png": b"", "text.jpg": b"text", "small.pgm": b"P5 8 1 255 " + bytes(8)}
    files = {**train_files(), **dict.fromkeys(extra, PNGS[0]), **{f"train/sad/{name}": bad[name] for name in bad}}
    found = problems(open_dataset(make(files)))
    assert found.pop("train/sad/cut.png").startswith("damaged (")
    assert found == {
        "LICENSE.txt": "not an image file",
        "train/angry/notes.txt": "not an image file",
        "train/loose.png": "not in a class folder of train/, val/ or test/",
        "other/a.png": "not in a class folder of train/, val/ or test/",
        "root.png": "not in a class folder of train/, val/ or test/",
        "train/sad/empty.png": "0 bytes",
        "train/sad/text.jpg": "not an image",
        "train/sad/small.pgm": "8x1 is too small (8x8 at least)",
    }


@pytest.mark.parametrize(
    ("names", "end"),
    [
        ([], "found nothing."),
        (["labels.txt", "more/2.txt"], "found 'labels.txt'."),
        ([f"x{index}.png" for index in range(9)], "'x0.png', 'x1.png', 'x2.png', 'x3.png', 'x4.png' and 4 more."),
        (["a/1.csv", "a/2.csv"], "found '1.csv', '2.csv' in a/."),
        (
            list(other_files("PublicTest")),
            "found 'test'. A test part alone is scored by predict.py.",
        ),  # test alone does not pass for training data
    ],
)
def test_another_layout_is_refused_with_what_was_found(make, names, end):
    message = refused(make(dict.fromkeys(names, PNGS[0])))
    assert "expected train/ with a folder for each class, " in message and message.endswith(end)


def test_slow_images_are_decoded_by_threads_with_the_same_result(make, monkeypatch):
    files = {f"train/{name}/{index}.png": PNGS[index % 7] for name in CLASSES for index in range(40)}
    source = open_dataset(make({**files, "train/sad/bad.png": b""}))
    whole = [(*image[:3], image[3] is None or image[3].tobytes(), image[4]) for image in read(source)]
    assert len(whole) == source.total == 281
    monkeypatch.setattr(decode, "SLOW_SECONDS", 0)
    threaded = [(*image[:3], image[3] is None or image[3].tobytes(), image[4]) for image in read(source, 5)]
    assert threaded == whole


def test_the_key_follows_the_content(make, tmp_path):
    path = make(train_files())
    key = open_dataset(path).key()
    assert open_dataset(path).key() == key
    if path.is_dir():
        os.utime(path / "train/sad/Training_4.png", ns=(1, 1))
    else:
        path = make({**train_files(), "train/sad/Training_4.png": PNGS[4][:-1] + b"x"})
    changed = open_dataset(path).key()
    assert len({key, changed, open_dataset(make({**train_files(), "train/sad/more.png": PNGS[0]})).key()}) == 3


# --- Files and folders that can't be used ---


def test_a_missing_path_an_unknown_suffix_and_nothing_in_it(make, tmp_path):
    (tmp_path / "a.rar").write_bytes(b"")
    for opener in (open_dataset, open_inputs):
        assert refused(tmp_path / "none.zip", opener).endswith("none.zip: no such file or folder.")
        assert refused(tmp_path / ("x" * 300), opener).endswith("no such file or folder.")
        assert re.search(r"a\.rar: (not a|an archive)", refused(tmp_path / "a.rar", opener))
    assert "has no files. Accepted are images (." in refused(make({}), open_inputs)


def test_links_to_files_are_followed_and_a_link_to_nowhere_is_named(tmp_path):
    folder, beside = write_folder(tmp_path / "data", train_files()), tmp_path / "beside.png"
    beside.write_bytes(PNGS[0])
    (folder / "train/sad/link.png").symlink_to(beside)
    for name, target in (("nowhere", "gone.png"), ("circle", "circle.png"), ("long", "x" * 300)):
        (folder / f"train/sad/{name}.png").symlink_to(target)
    source = open_dataset(folder)
    assert splits(source) == {"train": 8} and source.key() == open_dataset(folder).key()
    found = problems(source)
    assert found["train/sad/nowhere.png"] == "cannot be read (No such file or directory)" and len(found) == 3


def test_a_link_that_leads_out_of_the_folder_is_followed_on_request_only(tmp_path):
    folder = write_folder(tmp_path / "data", train_files(names=CLASSES[1:]))
    write_folder(tmp_path / "big", train_files("") | {"more/angry/7.png": PNGS[0]})
    (folder / "train/angry").symlink_to(tmp_path / "big/angry")
    (folder / "val").symlink_to(tmp_path / "big")
    assert splits(open_dataset(folder)) == {"train": 6} and "train/angry/" in problems(open_dataset(folder))
    assert list(problems(open_inputs(folder))) == ["train/angry/", "val/"]
    assert all("--follow-links" in problem for problem in problems(open_inputs(folder)).values())
    (folder / "val").unlink()
    assert splits(open_dataset(folder, follow_links=True)) == {"train": 7}
    (tmp_path / "link").symlink_to(folder)  # what is named itself is read
    assert splits(open_dataset(tmp_path / "link", follow_links=True)) == {"train": 7}


@pytest.mark.parametrize("follow_links", [False, True])
def test_every_folder_is_read_once_whatever_links_lead_to_it(tmp_path, follow_links):
    folder = write_folder(tmp_path / "data", {"a/1.png": PNGS[0], "b/2.png": PNGS[1]})
    for number in range(20):  # without that rule 2 ** 20 paths lead to each image
        for name in ("a", "b"):
            (folder / name / f"up{number}").symlink_to(folder)
    (folder / "0").symlink_to(folder / "b")
    source = open_inputs(folder, follow_links=follow_links)
    assert [name for name, *_, problem in read(source) if not problem] == ["a/1.png", "b/2.png"]
    assert set(problems(source).values()) == {"a link to a folder that is read already"} and source.total == 43


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder, scandir = write_folder(tmp_path / "data", train_files()), os.scandir

    def forbidden(path):
        if os.path.basename(path) == "sad":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert problems(open_inputs(folder)) == {"train/sad/": "can't be listed (Permission denied)"}
    assert splits(open_dataset(folder)) == {"train": 6}


# --- Zips: damage and malice ---


def test_a_zip_that_is_truncated_or_none(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    for data in (path.read_bytes()[:-30], b"<html>please log in</html>"):
        path.write_bytes(data)
        assert re.search(r"a\.zip: truncated or not a zip \(.*\)\. Download it again\.$", refused(path))


def test_an_entry_that_is_gone_from_the_list_of_a_zip_is_damage(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"happy/{number}.png": b"" for number in range(9)})
    data = path.read_bytes()
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"PK\1\2"))
    size = data.rindex(b"PK\1\2") - at  # the last but one takes the last into its name
    path.write_bytes(data[: at + 28] + struct.pack("<H", 11 + size) + data[at + 30 :])
    assert "another number of entries" in refused(path)


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "C:\\evil.png", "train\\..\\..\\evil.png"])
def test_names_that_lead_out_of_the_zip(tmp_path, name):
    source = open_dataset(write_zip(tmp_path / "a.zip", {**train_files(), name: PNGS[0]}))
    assert list(problems(source).values()) == [sources.UNSAFE]
    assert source.total == 8 and list(tmp_path.iterdir()) == [tmp_path / "a.zip"]


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
        ({"flags": 1}, "a password"),
        ({"method": zipfile.ZIP_BZIP2}, "bzip2"),  # has no bound
        ({"method": 97}, "another method"),
        ({"size": 1_000_000_000}, "above the limit of 64 MiB"),
    ],
)
def test_an_entry_that_is_not_read_is_named_with_the_reason(tmp_path, change, problem):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/x.png": PNGS[0]})
    patch_entry(path, "train/sad/x.png", **change)
    ((name, found),) = problems(open_dataset(path)).items()
    assert name == "train/sad/x.png" and problem in found


@pytest.mark.parametrize("opener", [open_dataset, open_inputs])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"flags": 1}, "a password"),
        ({"method": 9}, "Deflate64"),
        ({"method": zipfile.ZIP_BZIP2}, "bzip2"),
        ({"method": zipfile.ZIP_LZMA}, "LZMA"),
        ({"method": 93}, "zstd"),
        ({"method": 99, "flags": 1}, "a password"),
    ],
)
def test_a_zip_of_which_nothing_can_be_read_is_refused_once_with_the_remedy(tmp_path, opener, change, name):
    path = write_zip(tmp_path / "a.zip", {"train/": b"", **train_files()})
    for entry in train_files():
        patch_entry(path, entry, **change)
    assert re.fullmatch(
        rf"\S+a\.zip: packed with {name}: unpack it [^,]*, and give the folder\.", refused(path, opener)
    )


@pytest.mark.parametrize("opener", [open_dataset, open_inputs])
def test_the_last_part_of_a_split_zip_is_said_to_be_that(tmp_path, opener):
    data = bytearray(write_zip(tmp_path / "a.zip", train_files()).read_bytes())
    data[-18:-14] = b"\2\0\2\0"  # the number of its disk, and of that where the list of entries begins
    (tmp_path / "a.zip").write_bytes(data[1000:])
    assert "a.zip: one of the parts of a zip: unpack it" in refused(tmp_path / "a.zip", opener)


@pytest.mark.parametrize("name", ["test.zip", "faces.tar.gz", "faces.7z", "faces.z01", "photo.HEIC"])
def test_what_is_not_read_in_a_folder_or_zip_has_its_remedy(make, name):
    path = make({name: b"", f"train/{name}": b""})
    remedy = "save it as JPEG" if name.endswith("HEIC") else "unpack it, and give the folder"
    assert [(found, remedy in problem) for found, problem in problems(open_inputs(path)).items()] == [
        (name, True),
        (f"train/{name}", True),
    ]
    assert remedy in refused(path)


def test_archives_that_are_given_have_their_remedy(tmp_path):
    path = write_tar(tmp_path / "faces.tar.gz", train_files())
    for opener in (open_dataset, open_inputs):
        assert "faces.tar.gz" in refused(path, opener) and "unpack it, and give the folder" in refused(path, opener)
    path = path.rename(tmp_path / "faces.z02")
    assert "unpack it, and give the folder" in refused(path, open_inputs)


def test_a_zip_bomb_is_not_inflated_past_its_claimed_size(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/sad/x.png", bytes(40 * 2**20))
    patch_entry(path, "train/sad/x.png", size=100_000)
    tracemalloc.start()
    (problem,) = problems(open_dataset(path)).values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "Bad CRC-32" in problem and peak < 3 * 2**20


@pytest.mark.parametrize(("limit", "value"), [("MAX_ENTRIES", 6), ("MAX_TOTAL", 1000)])
def test_too_many_entries_or_bytes(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(sources, limit, value)
    assert "above the limit" in refused(write_zip(tmp_path / "a.zip", train_files()))


def test_an_entry_without_a_name_is_named_as_a_problem(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files())
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 28 : at + 34] = bytes(4) + data[at + 28 : at + 30]  # the name is its comment
    path.write_bytes(data)
    assert "unsafe name (absolute, empty" in problems(open_dataset(path))["."]


@pytest.mark.parametrize("name", ["train/sad/\0a.png", "train/sad/", "train/sad\\", f"train/sad/{'x' * 5000}.png"])
def test_an_entry_whose_name_would_hide_it_is_named(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", {**train_files(), "train/sad/" + "y" * (len(name) - 10): PNGS[0]})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"train/sad/" + b"y" * (len(name) - 10), name.encode()))
    assert list(problems(open_dataset(path)).values()) == [sources.UNSAFE] and open_dataset(path).total == 8


def test_names_written_with_dots_or_backslashes(tmp_path):
    for name, written in (
        ("a.zip", {"train\\": b"", **{name.replace("/", "\\"): data for name, data in train_files().items()}}),
        ("b.zip", {"./": b"", **{f"./{name}": data for name, data in train_files("train/").items()}}),
    ):
        assert [image[0] for image in read(open_dataset(write_zip(tmp_path / name, written)))] == sorted(train_files())


def test_a_zip_damaged_at_random_gives_images_or_a_user_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", train_files(), zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=20))
    def check(changes):
        data = bytearray(whole)
        for at, value in changes:
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


def test_bad_rows_are_named_with_their_problem(tmp_path):
    label, pixels, usage = row()
    numbers = pixels.split()
    bad = {
        "2303 pixels where 2304 are expected": [label, " ".join(numbers[:-1]), usage],
        "pixel 'x' is not a number from 0 to 255": [label, " ".join(["x", *numbers[1:]]), usage],
        "pixel '256' is not a number from 0 to 255": [label, " ".join(["256", *numbers[1:]]), usage],
        "unknown emotion ''": ["", pixels, usage],
        "unknown Usage 'Tent'": [label, pixels, "Tent"],
        "2 fields where 3 are expected": [label, pixels],
    }
    good = [" 3 ", f'" {pixels} "', f" {usage} "]  # quotes, spaces and blank lines do not matter
    (tmp_path / "a.csv").write_bytes(table([good, *bad.values(), [], row()], '"emotion","pixels","Usage"'))
    source = open_dataset(tmp_path / "a.csv")
    assert problems(source) == {f"a.csv row {number}": problem for number, problem in enumerate(bad, 3)}
    found = [image[:3] for image in read(source) if not image[4]]
    assert found == [("a.csv row 2", "train", 3), ("a.csv row 10", "train", 0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"emotion,Usage\n0,Training\n", "has no column pixels: expected are"),
        (b"", "has no column pixels"),
        (table([row(0, "tent")] * 2 + ROWS), "unknown Usage 'tent' in 2 rows"),
        (np.random.default_rng(0).bytes(5000), "a.csv"),
        (b"emotion,pixels,Usage\n" + b"0 " * tables.MAX_LINE, "line 2: above 100000 characters"),  # not read to its end
        (b'emotion,pixels,Usage\n0,"' + b"1 2 3\n" * 40_000, "field larger than field limit"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, data, message):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)):
        list(open_dataset(tmp_path / "a.csv").items())


def test_a_locked_or_damaged_table_in_a_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"fer2013.csv": table(ROWS)})
    whole = path.read_bytes()
    patch_entry(path, "fer2013.csv", flags=1)
    assert "packed with a password" in refused(path)
    path.write_bytes(whole.replace(b"PublicTest", b"publicTest"))
    with pytest.raises(UserError, match=r"fer2013\.csv, line \d+: truncated or damaged \(Bad CRC-32"):
        list(open_dataset(path).items())


def test_a_tar_without_the_table_or_that_is_none(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar.gz", {"fer2013/README": b"hello", "fer2013/fer2013.csv": table(ROWS)})
    assert splits(open_dataset(path))
    monkeypatch.setattr(tables, "MAX_MEMBERS", 1)
    assert (
        "a.tar.gz: has no icml_face_data.csv and no fer2013.csv and no ckextended.csv among its first 1 files"
        in refused(path)
    )
    path.write_bytes(b"<html>please log in</html>" * 50)
    assert "a.tar.gz: no table, or truncated or damaged (" in refused(path)


def test_a_truncated_tar_is_not_taken_for_a_whole_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = [["0", " ".join(map(str, rng.integers(0, 256, 48 * 48))), "Training"] for _ in range(60)]
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tar", "w")):
        path = write_tar(tmp_path / name, {"fer2013/fer2013.csv": table(rows)}, mode)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"line \d+: truncated or damaged \(.*\)\. Download it again\."):
            list(open_dataset(path).items())
    path = write_tar(tmp_path / "d.tar.gz", {"fer2013.csv": table(rows)})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of the checksum
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC check failed"):
        list(open_dataset(path).items())
    filler = {"fer2013/filler": rng.bytes(200_000), "fer2013/fer2013.csv": table(ROWS)}
    path = write_tar(tmp_path / "c.tar.gz", filler)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "c.tar.gz: no table, or truncated or damaged (" in refused(path)


def test_a_tar_damaged_at_random_gives_images_or_a_user_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"x" * 120: b"", "fer2013/fer2013.csv": table(ROWS[:2])}, "w")
    whole = path.read_bytes()

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, 4 * 512), st.integers(0, 255)), min_size=1, max_size=6))
    def check(changes):
        data = bytearray(whole)
        for at, value in changes:
            data[at] = value
        for start in range(0, 5 * 512, 512):  # so that damage reaches what is behind the checksum
            total = 256 + sum(data[start : start + 148]) + sum(data[start + 156 : start + 512])
            data[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(data)
        with suppress(UserError):
            read(open_dataset(path))

    check()


# --- Inputs to predict ---


def test_inputs_of_a_folder_or_zip(make, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 2**20)
    files = {"a/Happiness/1.png": PNGS[0], "a/2.PNG": PNGS[1], "contempt/3.png": PNGS[2] + bytes(2**20)}
    source = open_inputs(make({**files, "b/notes.txt": b"", ".x.png": b"", "inner.zip": PNGS[0]}))
    assert [(name, split, label, problem) for name, split, label, _, problem in read(source)] == [
        ("a/2.PNG", "", -1, ""),
        ("a/Happiness/1.png", "", 3, ""),
        ("b/notes.txt", "", -1, "not an image file"),
        ("contempt/3.png", "", -1, "above the limit of 1 MiB"),
        ("inner.zip", "", -1, "an archive: unpack it, and give the folder"),
    ]
    assert source.total == 5


@pytest.mark.parametrize(
    "given", ["archive/train", "archive/train/sad", "archive/train/sad/1.png", "link", "train.zip", "."]
)
def test_training_images_are_counted_by_the_nearest_split_around_them(tmp_path, monkeypatch, given):
    write_folder(tmp_path, {"archive/train/sad/1.png": PNGS[0], "archive/test/sad/1.png": PNGS[0]})
    write_folder(tmp_path, {"train/test/sad/1.png": PNGS[0], "train/1.png": PNGS[0]})
    write_zip(tmp_path / "train.zip", {"sad/1.png": PNGS[0]})
    (tmp_path / "link").symlink_to(tmp_path / "archive/train")
    monkeypatch.chdir(tmp_path / "archive/train/sad" if given == "." else tmp_path)
    assert open_inputs(Path(given)).training == 1
    assert not open_inputs(tmp_path / "archive/test/sad").training and not open_inputs(tmp_path / "train").training


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.jpg.bak", ".photo.png", "photo.heic", "photo.txt"])
def test_a_file_that_is_given_is_judged_by_its_bytes(tmp_path, name):
    path = write_folder(tmp_path, {f"sad/{name}": PNGS[2]}) / "sad" / name
    ((_, _, label, pixels, _),) = read(open_inputs(path))
    assert label == 4 and np.array_equal(pixels, pixels_of(2))
    path.write_bytes(b"text")
    assert problems(open_inputs(path)) == {name: "not an image"}


@pytest.mark.parametrize("given", ["Fear", "Fear/1.png", "."])
def test_a_class_folder_or_a_file_in_it_has_its_class(tmp_path, monkeypatch, given):
    write_folder(tmp_path, {"Fear/1.png": PNGS[0]})
    monkeypatch.chdir(tmp_path / "Fear" if given == "." else tmp_path)
    assert [image[:3] for image in read(open_inputs(Path(given)))] == [("1.png", "", 2)]


def test_an_image_whose_damaged_name_looks_like_junk_is_named(tmp_path):
    """One flipped bit makes .eutral of neutral in the list of a zip; junk is named so at its own place too."""
    path, packed = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("train/neutral/a.png", "train/happy/b.png", "train/.hidden/c.png", "__MACOSX/train/happy/._b.png"):
            archive.writestr(name, b"face")
    data = packed.getvalue()
    at = data.rindex(b"train/neutral/a.png")
    path.write_bytes(data[: at + 6] + b"." + data[at + 7 :])
    found = {item.name: item.problem for item in open_dataset(path).items()}
    assert found.keys() == {"train/.eutral/a.png", "train/happy/b.png"} and "differ" in found["train/.eutral/a.png"]


def test_an_error_of_a_zip_is_short_however_long_the_damaged_name_is(tmp_path):
    path, packed = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("happy/a.png", bytes(2**17))
    data = packed.getvalue()
    path.write_bytes(data[:26] + b"\xff\xff" + data[28:])  # the length of the name, at its own place
    (item,) = open_inputs(path).items()
    with pytest.raises(decode.BadImage, match="can't be read from the zip") as told:
        item.read()
    assert len(str(told.value)) < 300

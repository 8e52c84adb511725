import csv
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from config import CLASSES, Config
from dataset import Split, load
from errors import UserError
from helpers import csv_of_folders, faces, write_folders, zip_folder
from readers import votes as ferplus
from readers.cache import DIGEST, digest_of
from readers.votes import agreement, file_key, match, read_votes

EMOTIONS = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"  # in the order of both files
HEAD = {"files": f"file,{EMOTIONS}", "rows": f"Usage,Image name,{EMOTIONS}"}
EMOTIONS_BY_CLASS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FIRST = {"files": "train/angry/Training_00008.png", "rows": "Training,fer0000000.png"}


@pytest.fixture
def archive(tmp_path):
    return write_folders(tmp_path / "archive")


def load_from(path, tmp_path, votes="", **knobs):
    return load(Config(data=str(path), cache=str(tmp_path / "cache"), votes=str(votes), **knobs))


def made_votes(folder: Path) -> dict[str, list[int]]:
    """Votes in the order of CLASSES for each image by its name: the label and the next class; ties, some none."""
    made = {}
    for number, file in enumerate(sorted(folder.rglob("*.png"), key=lambda file: file.stem)):
        counts, label = [0] * 7, CLASSES.index(file.parent.name)
        if number % 10 not in (3, 4):
            counts[label], counts[(label + 1) % 7] = 5, 5 if number % 10 == 7 else number % 4
        made[file.stem] = counts
    return made


def fields(counts: list[int]) -> str:
    angry, disgust, fear, happy, sad, surprise, neutral = counts
    return f"{neutral},{happy},{surprise},{sad},{angry},{disgust},{fear},2,1,0"


def write_files_form(folder: Path, path: Path) -> Path:
    """Votes by name: of the images without any, every other one (4 of 10) has a row all the same, for contempt."""
    made, lines = made_votes(folder), [HEAD["files"]]
    for number, file in enumerate(sorted(folder.rglob("*.png"), key=lambda file: file.stem)):
        if number % 10 != 3:
            lines.append(f"{file.relative_to(folder).as_posix()},{fields(made[file.stem])}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_rows_form(table: Path, folder: Path, path: Path) -> Path:
    """Votes row by row of `table`; an image without any has no name, and votes that do not count."""
    votes, lines = by_pixels(folder), [HEAD["rows"]]
    with open(table, newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            counts = votes[np.array(row["pixels"].split(), np.uint8).tobytes()]
            name = f"fer{number:07d}.png" if any(counts) else ""
            lines.append(f"{row['Usage']},{name},{fields(counts if name else [1] * 7)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def by_pixels(folder: Path) -> dict[bytes, list[int]]:
    made = made_votes(folder)
    return {np.array(Image.open(file)).tobytes(): made[file.stem] for file in folder.rglob("*.png")}


def check(data, wanted: dict[bytes, list[int]]) -> None:
    """Every image of every split has its own votes."""
    for split in data.splits.values():
        assert split.votes.dtype == np.float32 and split.votes.shape == (len(split), 7)
        for image, votes in zip(np.asarray(split.images), split.votes, strict=True):
            assert votes.tolist() == wanted[image.tobytes()]


# --- Votes travel with their images ---


def test_votes_by_name_travel_with_the_images_of_every_form(archive, tmp_path):
    votes, wanted = write_files_form(archive, tmp_path / "ferplus_votes.csv"), by_pixels(archive)
    deep = tmp_path / "deep"
    shutil.copytree(archive, deep / "some" / "archive")
    for file in sorted(deep.rglob("*.png")):
        file.rename(file.with_suffix(".PNG"))
    for split in ("train", "test"):
        (deep / "some" / "archive" / split / "happy").rename(deep / "some" / "archive" / split / "Happiness")
    merged = tmp_path / "merged"  # no splits at all: validation is drawn
    for top in ("train", "test"):
        shutil.copytree(archive / top, merged, dirs_exist_ok=True)
    forms = [archive, zip_folder(archive, tmp_path / "a.zip"), zip_folder(deep, tmp_path / "b.zip"), merged]
    loaded = [load_from(form, tmp_path, votes) for form in forms]
    for data in loaded:
        check(data, wanted)
    assert loaded[3].split("train").votes.any() and loaded[3].split("val").votes.any() and loaded[3].sampled_val
    assert len({data.votes for data in loaded[:3]}) == 1 and len(loaded[0].votes) == 16


def test_votes_by_row_travel_with_the_images_of_every_table(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    votes, wanted = write_rows_form(table, archive, tmp_path / "fer2013new.csv"), by_pixels(archive)
    with tarfile.open(tmp_path / "fer2013.tar.gz", "w:gz") as tar:
        tar.add(table, "fer2013/fer2013.csv")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(table, folder)
    forms = [table, tmp_path / "fer2013.tar.gz", folder, zip_folder(folder, tmp_path / "c.zip")]
    marks = set()
    for form in forms:
        data = load_from(form, tmp_path, votes)
        check(data, wanted)
        marks.add((data.votes, data.fingerprint))
    files = load_from(archive, tmp_path, write_files_form(archive, tmp_path / "ferplus_votes.csv"))
    assert marks == {(files.votes, files.fingerprint)}


def test_an_unreadable_row_does_not_shift_the_votes(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    votes = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    lines = table.read_text().splitlines()
    lines[6] = lines[6].replace(" ", " x", 1)
    table.write_text("\n".join(lines))
    data = load_from(table, tmp_path, votes)
    assert data.unreadable_count == 1
    check(data, by_pixels(archive))


def test_an_unreadable_file_and_a_part_of_the_images_keep_their_votes(archive, tmp_path):
    votes, wanted = write_files_form(archive, tmp_path / "votes.csv"), by_pixels(archive)
    for number, file in enumerate(sorted((archive / "train").rglob("*.png"))):
        if number % 3 == 0:
            file.unlink()
        elif number == 1:
            file.write_bytes(b"")
    data = load_from(archive, tmp_path, votes)
    assert data.unreadable_count == 1 and len(data.split("train")) == 70 - 24 - 1
    check(data, wanted)


def test_the_limit_takes_votes_along_and_keeps_their_digest(archive, tmp_path):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    whole, part = load_from(archive, tmp_path, votes), load_from(archive, tmp_path, votes, limit=21)
    assert len(part.split("train")) == 21 and part.votes == whole.votes
    check(part, by_pixels(archive))


@pytest.mark.parametrize(("of", "changes"), [("Training_", True), ("PublicTest_", True), ("PrivateTest_", False)])
def test_the_digest_changes_with_one_vote_that_a_run_sees_and_is_empty_without(archive, tmp_path, of, changes):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    first, bare = load_from(archive, tmp_path, votes), load_from(archive, tmp_path)
    lines = votes.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if of in line)
    name, neutral, rest = lines[at].split(",", 2)
    lines[at] = f"{name},{int(neutral) + 1},{rest}"
    votes.write_text("\n".join(lines))
    other = load_from(archive, tmp_path, votes)
    assert bare.votes == "" and first.votes and other.votes
    assert (other.votes != first.votes) is changes
    assert bare.fingerprint == first.fingerprint == other.fingerprint
    assert all(split.votes is None for split in bare.splits.values())


def test_describe_counts_the_votes(archive, tmp_path):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    # Of 112 images numbers 3, 13, ... and 4, 14, ... have none of the seven, 11 each, which leaves 90. The first of
    # these is now given votes for every class but its own.
    lines = votes.read_text().splitlines()
    row = next(at for at, line in enumerate(lines) if "PrivateTest_00098" in line)
    label = CLASSES.index(lines[row].split("/")[1])
    lines[row] = lines[row].split(",")[0] + "," + fields([0 if c == label else 1 for c in range(7)])
    votes.write_text("\n".join(lines))
    found = load_from(archive, tmp_path, votes).describe()
    assert found[1] == (
        "votes: votes.csv, 90 images have some of the seven; the label is (one of) the most-voted for 98.9% of them"
    )
    assert not [line for line in load_from(archive, tmp_path).describe() if line.startswith("votes:")]


# --- Reading ---


def test_the_two_forms_are_read_exactly(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text(
        f"\ufeff{HEAD['files']}\r\ntrain/angry/Training_00008.png,4,0,0,0,3,1,0,1,1,0\r\n\r\n"
        "test/happy/PublicTest_00012.png,0.5,9,1,2,3,4,5,0,0,0\r\n",
        encoding="utf-8",
    )
    votes = read_votes(path)
    assert (votes.name, votes.kind, votes.counts.dtype, len(votes.splits)) == ("votes.csv", "files", np.float32, 0)
    assert votes.counts.tolist() == [[3, 1, 0, 0, 0, 0, 4], [3, 4, 5, 9, 2, 1, 0.5]]
    assert votes.keys.tolist() == [file_key(0, "Training_00008"), file_key(3, "PublicTest_00012")]
    path.write_text(
        f"{HEAD['rows']}\nTraining,fer0000000.png,4,0,0,1,3,2,0,0,0,0\nTraining,,1,2,3,4,5,6,7,0,0,10\n"
        "PublicTest,fer0000002.png,5,0,0,3,1,0,0,0,1,0\nPrivateTest,fer0000003.png,0,0,0,0,0,0,0,10,0,0\n"
    )
    votes = read_votes(path)
    assert (votes.kind, votes.keys.tolist(), votes.splits.tolist()) == ("rows", [0, 1, 2, 3], [0, 0, 1, 2])
    assert votes.counts.tolist() == [[3, 2, 0, 0, 1, 0, 4], [0] * 7, [1, 0, 0, 0, 3, 0, 5], [0] * 7]


def test_a_files_key_is_its_class_and_bare_name():
    key = file_key(3, "train/happy/Training_1.png")
    assert key == file_key(3, "some/archive/test/Happy/Training_1.JPG") == file_key(3, "Training_1") < 2**64
    assert len({key, file_key(4, "train/happy/Training_1.png"), file_key(3, "train/happy/Training_11.png")}) == 3
    assert file_key(0, "a.b.png") == file_key(0, "a.b.jpg") != file_key(0, "a.png")
    assert key == 16_409_993_173_090_757_758  # kept in caches: another value needs another CACHE_VERSION


def table(kind: str, *rows: str) -> bytes:
    return "\n".join([HEAD[kind], *rows]).encode()


ROW = f"{FIRST['rows']},4,0,0,1,3,2,0,0,0,0"
FILE = f"{FIRST['files']},4,0,0,0,3,1,0,1,1,0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no column, or more than one, called usage, image name, anger, .*its columns are none"),
        (b"\n\n", "its columns are none"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 20, "is no file of votes: it has no column"),
        (b"PK\x03\x04" + bytes(range(256)) * 200, "is no file of votes|above 10000 characters"),
        (b"file,neutral" * 1000, "line 1: above 10000 characters, so this is no file of votes"),
        (b"emotion,pixels,Usage\n0,1 2 3,Training", "no column, or more than one, called image name, anger"),
        (
            table("files", FILE).replace(b",fear", b",fearful"),
            "or more than one, called fear; its columns are 'NF'|fear;",
        ),
        (table("rows", ROW).replace(b"contempt", b"anger"), "or more than one, called anger;"),
        (table("files", FILE, "x" * 10_000), "line 3: above 10000 characters"),
        (table("files", FILE, '"' + "\n".join(["x" * 9_000] * 20)), "field larger than field limit"),
        (table("files", FILE, "train/sad/a.png,1,2"), "line 3: 3 fields where 11 are expected"),
        (table("rows", ROW, f"{ROW},1"), "line 3: 13 fields where 12 are expected"),
        (table("files", FILE.replace(",3,", ",three,")), "line 2: 'three' is no number of votes"),
        (table("files", FILE.replace(",3,", ",,")), "line 2: '' is no number of votes"),
        (table("rows", ROW.replace(",3,", ",-1,")), "line 2: '-1' is no number of votes"),
        (table("rows", ROW.replace(",3,", ",nan,")), "line 2: 'nan' is no number of votes"),
        (table("rows", ROW.replace(",3,", ",inf,")), "line 2: 'inf' is no number of votes"),
        (table("rows", ROW.replace("Training", "Train")), "line 2: unknown Usage 'Train'"),
        (table("files", FILE.replace("/angry/", "/rage/")), "line 2: 'train/rage/.* stands in no folder of a class"),
        (table("files", FILE.replace("train/angry/", "")), "line 2: 'Training_00008.png' stands in no folder"),
        (table("files", FILE, FILE), "line 3: 'train/angry/Training_00008.png' is there twice"),
        (table("files", FILE, FILE.replace("train/angry", "test/Anger")), "line 3: 'test/Anger/.*' is there twice"),
        (table("files"), "holds no vote for any of anger, disgust"),
        (table("rows", f"{FIRST['rows']},0,0,0,0,0,0,0,10,0,0"), "holds no vote for any of"),
        (table("rows", "Training,,1,1,1,1,1,1,1,1,1,1"), "holds no vote for any of"),
    ],
)
def test_a_file_that_is_not_of_votes_is_refused(tmp_path, content, message):
    path = tmp_path / "votes.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_votes(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path, archive):
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(UserError, match=r"no such file; --votes takes Microsoft's fer2013new.csv, or"):
            read_votes(path)
    with pytest.raises(UserError, match="no such file"):
        load_from(archive, tmp_path, tmp_path / "none.csv")


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "votes.csv"
    path.write_bytes(table("files", FILE))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ferplus, "parse", fail)
    with pytest.raises(UserError, match=r"votes.csv: can't be read \(Input/output error\)"):
        read_votes(path)


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ferplus, "MAX_ROWS", 2)
    path = tmp_path / "votes.csv"
    path.write_bytes(table("rows", ROW, ROW))
    assert len(read_votes(path).counts) == 2
    path.write_bytes(table("rows", ROW, ROW, ROW))
    with pytest.raises(UserError, match="line 4: more than 2 rows"):
        read_votes(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["files", "rows", ""]), rest=st.binary(max_size=200) | st.text(',"\n\r01.-e', max_size=60))
def test_no_file_ends_in_anything_but_votes_or_a_user_error(tmp_path, kind, rest):
    path = tmp_path / "votes.csv"
    path.write_bytes((table(kind, "") if kind else b"") + (rest if isinstance(rest, bytes) else rest.encode()))
    try:
        votes = read_votes(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert votes.counts.shape == (len(votes.keys), 7) and (votes.counts >= 0).all()


# --- Matching ---


def dataset(kind: str, names: list[str], labels: list[int], **other) -> tuple[dict, dict]:
    """The arrays and meta of a cache with these files; as "rows" they are numbered."""
    count = len(names)
    digests = np.zeros(count, DIGEST)
    digests["low"] = np.arange(count)
    origins = [file_key(label, name) for name, label in zip(names, labels, strict=True)]
    arrays = {
        "labels": np.array(labels),
        "splits": np.zeros(count, np.int8),
        "digests": digests,
        "origins": np.array(origins if kind == "files" else range(count), np.uint64),
    }
    return arrays | other, {"source": "archive.zip", "origins": kind, "unreadable_count": 0}


def votes_for(tmp_path, kind: str, names: list[str], labels: list[int], voted: list[int], usage: str = "Training"):
    """Three votes for the class `voted` on each image."""
    path = tmp_path / "votes.csv"
    files = [f"train/{CLASSES[label]}/{name}.png" for name, label in zip(names, labels, strict=True)]
    told = files if kind == "files" else [f"{usage},x"] * len(files)
    rows = [f"{row},{fields([3 * (c == v) for c in range(7)])}" for row, v in zip(told, voted, strict=True)]
    path.write_bytes(table(kind, *rows))
    return read_votes(path)


NAMES, LABELS = [f"Training_{number}" for number in range(20)], [number % 7 for number in range(20)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rows", "are for the rows of a table, .*: name fer2013.csv with --data, or ferplus_votes.csv with --votes"),
        ("files", "are for files, .*: name the archive of files with --data, or fer2013new.csv with --votes"),
    ],
)
def test_votes_of_the_other_form_are_refused(tmp_path, kind, message):
    votes = votes_for(tmp_path, kind, NAMES, LABELS, LABELS)
    with pytest.raises(UserError, match=f"archive.zip: the votes in votes.csv {message}"):
        match(votes, *dataset("files" if kind == "rows" else "rows", NAMES, LABELS))


def test_votes_of_the_other_form_are_refused_by_load(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    rows = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    files = write_files_form(archive, tmp_path / "ferplus_votes.csv")
    with pytest.raises(UserError, match=r"archive: the votes in fer2013new.csv are for the rows of a table"):
        load_from(archive, tmp_path, rows)
    with pytest.raises(UserError, match=r"fer2013.csv: the votes in ferplus_votes.csv are for files"):
        load_from(table, tmp_path, files)


@pytest.mark.parametrize("rows", [19, 21])
def test_another_number_of_rows_is_refused(tmp_path, rows):
    labels = [number % 7 for number in range(rows)]
    votes = votes_for(tmp_path, "rows", ["x"] * rows, labels, labels)
    with pytest.raises(UserError, match=rf"archive.zip has 20 rows and votes.csv {rows}, but row belongs to row: name"):
        match(votes, *dataset("rows", NAMES, LABELS))
    arrays, meta = dataset("rows", NAMES, LABELS)
    if rows == 21:  # the one more is a row of the table that could not be read
        assert match(votes, arrays, meta | {"unreadable_count": 1}).argmax(1).tolist() == LABELS


def test_another_usage_is_refused(tmp_path):
    votes = votes_for(tmp_path, "rows", NAMES, LABELS, LABELS)
    splits = np.array([0] * 17 + [1, 0, 2], np.int8)
    message = r"archive.zip: 2 of its rows have another Usage in votes.csv \(the first is data row 18\): name the whole"
    with pytest.raises(UserError, match=message):
        match(votes, *dataset("rows", NAMES, LABELS, splits=splits))


@pytest.mark.parametrize(("known", "said"), [(0, "none"), (9, "9"), (10, ""), (20, "")])
def test_a_dataset_most_of_whose_images_have_no_row_is_refused(tmp_path, known, said):
    votes = votes_for(tmp_path, "files", NAMES, LABELS, LABELS)
    names = NAMES[:known] + [f"other_{number}" for number in range(20 - known)]
    if not said:
        found = match(votes, *dataset("files", names, LABELS))
        assert found.sum(1).tolist() == [3.0] * known + [0.0] * (20 - known)
        return
    with pytest.raises(
        UserError, match=rf"archive.zip: votes.csv names {said} of its 20 images by class and file name"
    ):
        match(votes, *dataset("files", names, LABELS))


def test_a_name_of_two_different_images_is_refused(tmp_path):
    votes = votes_for(tmp_path, "files", NAMES, LABELS, LABELS)
    names, labels = [*NAMES, NAMES[4], "new"], [*LABELS, LABELS[4], 0]
    arrays, meta = dataset("files", names, labels)
    with pytest.raises(UserError, match=r"archive.zip: 1 images have class and file name of another, different image"):
        match(votes, arrays, meta)
    arrays["digests"][20] = arrays["digests"][4]  # a copy of the same image may have its votes too
    assert match(votes, arrays, meta).argmax(1).tolist() == [*LABELS, LABELS[4], 0]


@pytest.mark.parametrize("kind", ["files", "rows"])
@pytest.mark.parametrize(("agreed", "said"), [(9, "45.0%"), (10, "")])
def test_labels_that_the_votes_contradict_are_refused(tmp_path, kind, agreed, said):
    voted = LABELS[:agreed] + [(label + 1) % 7 for label in LABELS[agreed:]]
    votes = votes_for(tmp_path, kind, NAMES, LABELS, voted)
    if not said:
        assert match(votes, *dataset(kind, NAMES, LABELS)).argmax(1).tolist() == voted
        return
    message = (
        rf"archive.zip: the label is among the most-voted emotions for {said} of the 20 images with votes, so that"
    )
    with pytest.raises(UserError, match=message):
        match(votes, *dataset(kind, NAMES, LABELS))


def test_votes_on_none_of_the_images_are_refused(tmp_path):
    path = tmp_path / "votes.csv"
    names = [f"train/{CLASSES[y]}/{name}.png" for name, y in zip(NAMES, LABELS, strict=True)]
    path.write_bytes(table("files", *(f"{name},{fields([0] * 7)}" for name in names), f"a/sad/a.png,{fields([1] * 7)}"))
    with pytest.raises(UserError, match="the label is never voted on: no image has a vote"):
        match(read_votes(path), *dataset("files", NAMES, LABELS))


def test_drawn_faces_have_no_votes(archive, tmp_path, monkeypatch):
    from demo import faces as demo_faces

    votes = write_files_form(archive, tmp_path / "votes.csv")
    demo_faces.write_folder(tmp_path / "drawn", identities=3, seed=0)
    monkeypatch.chdir(tmp_path / "drawn")
    for data in ("demo", str(tmp_path / "drawn")):
        with pytest.raises(
            UserError, match=r"--votes .*votes.csv: drawn faces have no votes; name FER2013 with --data"
        ):
            load_from(data, tmp_path, votes)
    assert not (tmp_path / "cache").exists()


# --- What a split makes of its votes ---


def voted_split(votes: list[list[float]]) -> Split:
    images, labels = faces(len(votes))
    count = len(votes)
    digests = np.zeros(count, DIGEST)
    digests["low"] = np.arange(count)
    return Split("val", images, labels, digests, np.arange(count) % 2 == 0, np.array(votes, np.float32))


VOTED = voted_split([[0, 0, 0, 4, 0, 0, 0], [0] * 7, [0, 0, 3, 3, 2, 0, 0], [1, 0, 0, 2, 0, 0, 5], [0] * 7])


def test_targets_are_shares_of_the_votes_and_the_label_without_any():
    wanted = [
        [0, 0, 0, 1, 0, 0, 0],
        np.eye(7)[1],
        [0, 0, 0.375, 0.375, 0.25, 0, 0],
        [0.125, 0, 0, 0.25, 0, 0, 0.625],
        np.eye(7)[4],
    ]
    targets = VOTED.targets()
    assert targets.dtype == np.float32 and np.array_equal(targets, np.array(wanted, np.float32))
    assert VOTED.votes[1].tolist() == [0] * 7  # left as they were
    assert Split("val", VOTED.images, VOTED.labels, VOTED.digests, VOTED.copies).targets() is None


def test_the_most_voted_leaves_out_ties_and_images_without_votes():
    voted = VOTED.most_voted()
    assert voted.tolist() == [3, -1, -1, 6, -1] and voted.dtype == np.int64


def test_the_most_voted_needs_votes():
    with pytest.raises(UserError, match=r"the val split has no votes; name a file of FER\+ votes with --votes"):
        Split("val", VOTED.images, VOTED.labels, VOTED.digests, VOTED.copies).most_voted()
    with pytest.raises(UserError, match="no image of the val split has a single most-voted emotion"):
        VOTED.take(np.array([1, 2, 4])).most_voted()


def test_agreement_counts_a_tie_for_the_label():
    votes = np.array([[2, 2, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0], [0] * 7, [0, 0, 0, 5, 0, 0, 0]], np.float32)
    assert agreement(votes, np.array([1, 1, 2, 3])) == (3, 2 / 3)
    assert agreement(votes[2:3], np.array([2])) == (0, 0.0)


# --- The real votes ---

REAL = Path(os.environ.get("FER2013_DATA", "none")).with_name("ferplus_votes.csv")


@pytest.mark.skipif(not REAL.is_file(), reason="no ferplus_votes.csv beside FER2013_DATA")
def test_the_votes_of_fer2013(tmp_path):
    data = load_from(os.environ["FER2013_DATA"], tmp_path, REAL)
    assert data.fingerprint == "14bc802825ac8905" and data.votes == "fefe853ff06a6b07"
    assert data.describe()[1] == (
        "votes: ferplus_votes.csv, 32,082 images have some of the seven; "
        "the label is (one of) the most-voted for 65.4% of them"
    )
    train, val = data.split("train"), data.split("val")
    assert [int((split.votes.sum(1) == 0).sum()) for split in (train, val)] == [206, 10]
    # Ties and images without votes first, then the classes
    assert np.bincount(train.most_voted() + 1).tolist() == [1556, 2434, 210, 649, 7427, 3474, 3400, 9559]
    assert np.bincount(val.most_voted() + 1).tolist() == [149, 317, 38, 75, 884, 409, 447, 1270]
    with zipfile.ZipFile(os.environ["FER2013_DATA"]) as faces, open(REAL, newline="") as file:
        rows = list(csv.DictReader(file))
        assert len(rows) == 32_086
        for row in rows[::997]:
            name = row["file"]
            split = train if name.startswith("train/") else val
            image = np.array(Image.open(faces.open(name)))
            wanted = [float(row[emotion]) for emotion in EMOTIONS_BY_CLASS]
            same = np.flatnonzero(split.digests == np.frombuffer(digest_of(image.tobytes()), DIGEST)[0])
            assert wanted in split.votes[same].tolist(), name


def test_the_digest_is_of_what_a_run_sees(tmp_path):
    """FER2013 with and without its PrivateTest images is one dataset, and its votes are one."""
    whole = write_folders(tmp_path / "whole", train=70, val=28, test=14)
    votes = write_files_form(whole, tmp_path / "votes.csv")
    part = write_folders(tmp_path / "part", train=70, val=28, test=14)
    for file in part.rglob("PrivateTest_*"):
        file.unlink()
    with_test, without = load_from(whole, tmp_path, votes), load_from(part, tmp_path, votes)
    assert with_test.split("test").votes.any() and "test" not in without.splits
    assert (with_test.votes, with_test.fingerprint) == (without.votes, without.fingerprint)

"""FER+: votes reach the images they belong to, whatever the form of the data; others are refused."""

import csv
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import CLASSES, Config
from dataset import load
from errors import UserError
from helpers import csv_of_folders, write_folders, zip_folder
from readers.cache import INDEX, file_key
from test import most_voted
from training.batches import shares
from votes import Votes, match, read_votes

COLUMNS = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"  # in the order of both files
HEAD = {"files": f"file,{COLUMNS}", "rows": f"Usage,Image name,{COLUMNS}"}
ROW = "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0"
FILE = "train/angry/Training_00008.png,4,0,0,0,3,1,0,1,1,0"


@pytest.fixture
def archive(tmp_path):
    return write_folders(tmp_path / "archive")


def load_from(path, votes, tmp_path, **knobs):
    return load(Config(data=str(path), cache=str(tmp_path / "cache"), votes=str(votes), **knobs))


def votes_of(pixels: np.ndarray, label: int) -> list[int]:
    """Votes in the order of CLASSES for an image: the label and the next class; ties, some none."""
    kind, counts = int(pixels.sum()) % 10, [0] * 7
    if kind not in (3, 4):
        counts[label], counts[(label + 1) % 7] = 5, 5 if kind == 7 else kind % 4
    return counts


def fields(counts: list[int]) -> str:
    angry, disgust, fear, happy, sad, surprise, neutral = counts
    return f"{neutral},{happy},{surprise},{sad},{angry},{disgust},{fear},2,1,0"


def write_files_form(folder: Path, path: Path) -> Path:
    """Votes by name; of the images without votes half have no row."""
    lines = [HEAD["files"]]
    for file in sorted(folder.rglob("*.png")):
        counts = votes_of(pixels := np.array(Image.open(file)), CLASSES.index(file.parent.name))
        if pixels.sum() % 10 != 3:
            lines.append(f"{file.relative_to(folder).as_posix()},{fields(counts)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_rows_form(table: Path, path: Path) -> Path:
    """Votes row by row of `table`; an image without any has no name, and votes that do not count."""
    lines = [HEAD["rows"]]
    with open(table, newline="") as file:
        for row in csv.DictReader(file):
            counts = votes_of(np.array(row["pixels"].split(), np.uint8), int(row["emotion"]))
            lines.append(f"Training,{'a.png' if any(counts) else ''},{fields(counts if any(counts) else [1] * 7)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def check(data) -> None:
    """Every image of every split has its own votes."""
    for split in data.splits.values():
        assert split.votes.dtype == np.float32 and split.votes.shape == (len(split), 7) and split.votes.any()
        for image, label, votes in zip(np.asarray(split.images), split.labels, split.votes, strict=True):
            assert votes.tolist() == votes_of(image, label)


# --- Votes travel with their images ---


def test_votes_travel_with_the_images_of_every_form(archive, tmp_path):
    names = write_files_form(archive, tmp_path / "ferplus_votes.csv")
    deep, merged = tmp_path / "deep", tmp_path / "merged"  # no splits in merged: validation is sampled
    shutil.copytree(archive, deep / "some" / "archive")
    for file in sorted(deep.rglob("*.png")):
        file.rename(file.with_suffix(".PNG"))
    for split in ("train", "test"):
        (deep / "some" / "archive" / split / "happy").rename(deep / "some" / "archive" / split / "Happiness")
        shutil.copytree(archive / split, merged, dirs_exist_ok=True)
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    rows = write_rows_form(table, tmp_path / "fer2013new.csv")
    with tarfile.open(tmp_path / "fer2013.tar.gz", "w:gz") as tar:
        tar.add(table, "fer2013/fer2013.csv")
    forms = [(archive, names), (zip_folder(deep, tmp_path / "b.zip"), names), (table, rows)]
    loaded = [load_from(*form, tmp_path) for form in [*forms, (tmp_path / "fer2013.tar.gz", rows), (merged, names)]]
    for data in loaded:
        check(data)
        assert "images have some of the seven" in "".join(data.notes) and "100.0%" in "".join(data.notes)
    assert len({(data.votes, data.fingerprint) for data in loaded}) == 1  # names of files tell the splits of the last


def test_what_is_unreadable_or_missing_does_not_shift_the_votes(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    rows, files = write_rows_form(table, tmp_path / "new.csv"), write_files_form(archive, tmp_path / "votes.csv")
    lines = table.read_text().splitlines()
    lines[6] = lines[6].replace(" ", " x", 1)
    table.write_text("\n".join([*lines[:9], "", *lines[9:]]))
    for number, file in enumerate(sorted((archive / "train").rglob("*.png"))):
        if number % 3 == 0:
            file.unlink()
        elif number == 1:
            file.write_bytes(b"")
    for path, votes in ((table, rows), (archive, files)):
        data = load_from(path, votes, tmp_path)
        assert "skipped files: 1" in data.notes
        check(data)


@pytest.mark.parametrize(("of", "changes"), [("Training_", True), ("PublicTest_", True), ("PrivateTest_", False)])
def test_the_digest_is_of_the_votes_that_a_run_sees_whatever_the_limit(archive, tmp_path, of, changes):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    first, bare = load_from(archive, votes, tmp_path, limit=21), load_from(archive, "", tmp_path)
    assert len(first.split("train")) == 21 and bare.votes == "" and bare.fingerprint == first.fingerprint
    check(first)
    lines = votes.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if of in line)
    name, neutral, rest = lines[at].split(",", 2)
    lines[at] = f"{name},{int(neutral) + 1},{rest}"
    votes.write_text("\n".join(lines))
    assert (load_from(archive, votes, tmp_path).votes != first.votes) is changes


# --- Reading ---


def table(kind: str, *rows: str) -> bytes:
    return "\n".join([HEAD[kind], *rows]).encode()


def test_the_two_forms_are_read_exactly(tmp_path):
    path = tmp_path / "votes.csv"
    rows = table("files", FILE, "", "test/happy/PublicTest_00012.png,0.5,9,1,2,3,4,5,0,0,0").decode()
    path.write_text(f"\ufeff{rows}\r\n", encoding="utf-8")
    votes = read_votes(path)
    assert votes.name == "votes.csv" and votes.counts.dtype == np.float32
    assert votes.counts.tolist() == [[3, 1, 0, 0, 0, 0, 4], [3, 4, 5, 9, 2, 1, 0.5]]
    assert votes.keys.tolist() == [file_key(["angry"], "Training_00008"), file_key(["happy"], "PublicTest_00012")]
    path.write_bytes(table("rows", ROW, "Training,,1,2,3,4,5,6,7,0,0,10", "PublicTest,a.png,5,0,0,3,1,0,0,0,1,0"))
    votes = read_votes(path)
    assert votes.keys.tolist() == [0, 1, 2]
    assert votes.counts.tolist() == [[3, 2, 0, 0, 1, 0, 4], [0] * 7, [1, 0, 0, 0, 3, 0, 5]]


def test_a_files_key_is_of_its_class_and_bare_name():
    key = file_key(["happy"], "Training_1")
    assert file_key([" Happiness"], "some/test/Happy/Training_1.JPG") == key == 16_409_993_173_090_757_758
    assert len({key, file_key(["sad"], "Training_1"), file_key(["happy"], "Training_11")}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"emotion,pixels,Usage\n0,1 2 3,Training", "line 2: no column"),
        (table("files", FILE).replace(b",fear", b",fearful"), "line 2: no column 'fear'"),
        (table("files", FILE, "train/sad/a.png,1,2"), "line 3: "),
        (table("files", FILE.replace(",3,", ",three,")), "line 2: .*'three'"),
        (table("rows", ROW.replace(",3,", ",-1,")), "line 2: .*-1.0.* not numbers of votes"),
        (table("files", FILE.replace("/angry/", "/rage/")), "line 2: 'train/rage/.* is in no folder of a class"),
        (table("files", FILE.replace("train/angry/", "")), "line 2: 'Training_00008.png' is in no folder"),
        (table("rows", "Training,,1,1,1,1,1,1,1,1,1,1"), "has no vote for any of"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_not_of_votes_is_refused(tmp_path, content, message):
    path = tmp_path / "votes.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_votes(path)
    assert str(caught.value).startswith(str(path)) and "--votes takes" in str(caught.value)


# --- Matching ---


def test_votes_of_other_data_are_refused(archive, tmp_path):
    from demo import faces as demo_faces

    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    shuffled = csv_of_folders(archive, tmp_path / "shuffled.csv", seed=7)
    rows = write_rows_form(table, tmp_path / "fer2013new.csv")
    files = write_files_form(archive, tmp_path / "ferplus_votes.csv")
    demo_faces.write_folder(tmp_path / "rendered", identities=3, seed=0)
    for data, votes in ((archive, rows), (table, files), (shuffled, rows), (tmp_path / "rendered", files)):
        with pytest.raises(UserError, match=f"{data.name}: {votes.name} has a row for .* not of these images"):
            load_from(data, votes, tmp_path)


LABELS = np.arange(20) % 7


@pytest.mark.parametrize(("known", "agreed"), [(10, 10), (20, 10), (9, 9), (20, 9)])
def test_half_of_the_images_need_a_row_and_half_of_these_the_label(known, agreed):
    index = np.zeros(20, INDEX)
    index["labels"], index["origins"] = LABELS, np.where(np.arange(20) < known, np.arange(20), 99)
    votes = Votes("votes.csv", 3 * np.eye(7, dtype=np.float32)[(LABELS + (np.arange(20) >= agreed)) % 7], np.arange(20))
    if min(known, agreed) < 10:
        with pytest.raises(UserError, match=rf"a.zip: votes.csv has a row for {known / 20:.1%} of its images"):
            match(votes, index, source="a.zip")
    else:
        given, note = match(votes, index, source="a.zip")
        assert np.array_equal(given[:known], votes.counts[:known]) and not given[known:].any()
        assert f"{known} images have some" in note and f"{agreed / known:.1%}" in note


# --- What is made of votes ---

VOTED = np.array([[0, 0, 0, 4, 0, 0, 0], [0] * 7, [0, 0, 3, 3, 2, 0, 0], [1, 0, 0, 2, 0, 0, 5]], np.float32)


def test_shares_of_the_votes_are_all_for_the_label_without_any():
    wanted = [[0, 0, 0, 1, 0, 0, 0], np.eye(7)[1], [0, 0, 0.375, 0.375, 0.25, 0, 0], [0.125, 0, 0, 0.25, 0, 0, 0.625]]
    targets = shares(VOTED, np.arange(4))
    assert targets.dtype == np.float32 and np.array_equal(targets, np.array(wanted, np.float32))


def test_the_most_voted_leaves_out_ties_and_images_without_votes():
    voted = most_voted(VOTED)
    assert voted.tolist() == [3, -1, -1, 6] and voted.dtype == np.int64

"""FER+: votes reach the images they belong to, whatever the form of the data; others are refused."""

import csv
import shutil
import tarfile
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
from readers.cache import DIGEST, INDEX
from readers.votes import Votes, file_key, match, read_votes

COLUMNS = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"  # in the order of both files
HEAD = {"files": f"file,{COLUMNS}", "rows": f"Usage,Image name,{COLUMNS}"}
ROW = "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0"
FILE = "train/angry/Training_00008.png,4,0,0,0,3,1,0,1,1,0"


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
    """Votes by name; a tenth of the images have no row."""
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
    merged = tmp_path / "merged"  # no splits at all: validation is sampled
    for top in ("train", "test"):
        shutil.copytree(archive / top, merged, dirs_exist_ok=True)
    forms = [archive, zip_folder(archive, tmp_path / "a.zip"), zip_folder(deep, tmp_path / "b.zip"), merged]
    loaded = [load_from(form, tmp_path, votes) for form in forms]
    for data in loaded:
        check(data, wanted)
    assert loaded[3].sampled_val and loaded[3].split("train").votes.any() and loaded[3].split("val").votes.any()
    assert len({data.votes for data in loaded[:3]}) == 1 and len(loaded[0].votes) == 16
    assert "90 images have some of the seven" in loaded[0].describe()[1] and "100.0%" in loaded[0].describe()[1]


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


def test_what_is_unreadable_or_missing_does_not_shift_the_votes(archive, tmp_path):
    table, wanted = csv_of_folders(archive, tmp_path / "fer2013.csv"), by_pixels(archive)
    rows = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    lines = table.read_text().splitlines()
    lines[6] = lines[6].replace(" ", " x", 1)
    table.write_text("\n".join(lines))
    files = write_files_form(archive, tmp_path / "votes.csv")
    for number, file in enumerate(sorted((archive / "train").rglob("*.png"))):
        if number % 3 == 0:
            file.unlink()
        elif number == 1:
            file.write_bytes(b"")
    for path, votes in ((table, rows), (archive, files)):
        data = load_from(path, tmp_path, votes)
        assert "skipped files: 1" in data.notes[0]
        check(data, wanted)


def test_the_limit_takes_votes_along_and_keeps_their_digest(archive, tmp_path):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    whole, bare = load_from(archive, tmp_path, votes), load_from(archive, tmp_path)
    part = load_from(archive, tmp_path, votes, limit=21)
    assert len(part.split("train")) == 21 and part.votes == whole.votes
    assert bare.votes == "" and bare.fingerprint == whole.fingerprint
    assert all(split.votes is None for split in bare.splits.values())
    check(part, by_pixels(archive))


@pytest.mark.parametrize(("of", "changes"), [("Training_", True), ("PublicTest_", True), ("PrivateTest_", False)])
def test_the_digest_is_of_the_votes_that_a_run_sees(archive, tmp_path, of, changes):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    first = load_from(archive, tmp_path, votes)
    lines = votes.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if of in line)
    name, neutral, rest = lines[at].split(",", 2)
    lines[at] = f"{name},{int(neutral) + 1},{rest}"
    votes.write_text("\n".join(lines))
    assert (load_from(archive, tmp_path, votes).votes != first.votes) is changes


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
    assert votes.keys.tolist() == [file_key(0, "Training_00008"), file_key(3, "PublicTest_00012")]
    path.write_bytes(table("rows", ROW, "Training,,1,2,3,4,5,6,7,0,0,10", "PublicTest,a.png,5,0,0,3,1,0,0,0,1,0"))
    votes = read_votes(path)
    assert votes.keys.tolist() == [0, 1, 2]
    assert votes.counts.tolist() == [[3, 2, 0, 0, 1, 0, 4], [0] * 7, [1, 0, 0, 0, 3, 0, 5]]


def test_a_files_key_is_its_class_and_bare_name():
    key = file_key(3, "train/happy/Training_1.png")
    assert key == file_key(3, "some/archive/test/Happy/Training_1.JPG") == file_key(3, "Training_1") < 2**64
    assert len({key, file_key(4, "train/happy/Training_1.png"), file_key(3, "train/happy/Training_11.png")}) == 3
    assert key == 16_409_993_173_090_757_758  # kept in caches: another value needs another CACHE_VERSION


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no vote for any of anger"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 20, "votes.csv"),
        (b"emotion,pixels,Usage\n0,1 2 3,Training", "line 2: no column"),
        (table("files", FILE).replace(b",fear", b",fearful"), "line 2: no column 'fear'"),
        (table("files", FILE, '"' + "\n".join(["x" * 9_000] * 20)), "field larger than field limit"),
        (table("files", FILE, "train/sad/a.png,1,2"), "line 3: "),
        (table("files", FILE.replace(",3,", ",three,")), "line 2: .*'three'"),
        (table("rows", ROW.replace(",3,", ",-1,")), "line 2: .*-1.0.* not numbers of votes"),
        (table("rows", ROW.replace(",3,", ",nan,")), "line 2: .*nan.* not numbers of votes"),
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["files", "rows", ""]), rest=st.binary(max_size=200) | st.text(',"\n\r01.-e', max_size=60))
def test_no_file_ends_in_anything_but_votes_or_a_user_error(tmp_path, kind, rest):
    path = tmp_path / "votes.csv"
    path.write_bytes((table(kind, "") if kind else b"") + (rest if isinstance(rest, bytes) else rest.encode()))
    try:
        votes = read_votes(path)
    except UserError:
        return
    assert votes.counts.shape == (len(votes.keys), 7) and votes.counts.any() and (votes.counts >= 0).all()


# --- Matching ---


def test_votes_of_other_data_are_refused(archive, tmp_path):
    from demo import faces as demo_faces

    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    shuffled = csv_of_folders(archive, tmp_path / "shuffled.csv", seed=7)
    rows = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    files = write_files_form(archive, tmp_path / "ferplus_votes.csv")
    demo_faces.write_folder(tmp_path / "rendered", identities=3, seed=0)
    for data, votes in ((archive, rows), (table, files), (shuffled, rows), (tmp_path / "rendered", files)):
        with pytest.raises(UserError, match=f"{data.name}: {votes.name} has a row for .* not of these images"):
            load_from(data, tmp_path, votes)


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


# --- What a split makes of its votes ---


def voted_split(votes: list[list[float]] | None, count: int = 5) -> Split:
    images, labels = faces(count)
    given = None if votes is None else np.array(votes, np.float32)
    return Split("val", images, labels, np.zeros(count, DIGEST), np.zeros(count, bool), given)


VOTED = voted_split([[0, 0, 0, 4, 0, 0, 0], [0] * 7, [0, 0, 3, 3, 2, 0, 0], [1, 0, 0, 2, 0, 0, 5], [0] * 7])


def test_targets_are_shares_of_the_votes_and_the_label_without_any():
    shares = [[0, 0, 0, 1, 0, 0, 0], np.eye(7)[1], [0, 0, 0.375, 0.375, 0.25, 0, 0], [0.125, 0, 0, 0.25, 0, 0, 0.625]]
    targets = VOTED.targets()
    assert targets.dtype == np.float32 and np.array_equal(targets, np.array([*shares, np.eye(7)[4]], np.float32))
    assert VOTED.votes[1].tolist() == [0] * 7  # left as they were
    assert voted_split(None).targets() is None


def test_the_most_voted_leaves_out_ties_and_images_without_votes():
    voted = VOTED.most_voted()
    assert voted.tolist() == [3, -1, -1, 6, -1] and voted.dtype == np.int64
    assert VOTED.take(np.array([2, 3])).most_voted().tolist() == [-1, 6]

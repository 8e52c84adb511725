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
from readers import votes as module
from readers.cache import DIGEST, INDEX
from readers.votes import agreement, file_key, match, read_votes

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
        assert data.unreadable_count == 1
        check(data, wanted)


def test_the_limit_takes_votes_along_and_keeps_their_digest(archive, tmp_path):
    votes = write_files_form(archive, tmp_path / "votes.csv")
    whole, part, bare = (load_from(archive, tmp_path, *more) for more in ((votes,), (votes,), ()))
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
    assert (votes.name, votes.kind, votes.counts.dtype) == ("votes.csv", "files", np.float32)
    assert votes.counts.tolist() == [[3, 1, 0, 0, 0, 0, 4], [3, 4, 5, 9, 2, 1, 0.5]]
    assert votes.keys.tolist() == [file_key(0, "Training_00008"), file_key(3, "PublicTest_00012")]
    path.write_bytes(table("rows", ROW, "Training,,1,2,3,4,5,6,7,0,0,10", "PublicTest,a.png,5,0,0,3,1,0,0,0,1,0"))
    votes = read_votes(path)
    assert (votes.kind, votes.keys.tolist()) == ("rows", [0, 1, 2])
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
        (table("files", FILE, "train/sad/a.png,1,2"), "line 3: 3 fields of 11"),
        (table("files", FILE.replace(",3,", ",three,")), "line 2: .*'three'"),
        (table("rows", ROW.replace(",3,", ",-1,")), "line 2: '-1' is no number of votes"),
        (table("rows", ROW.replace(",3,", ",nan,")), "line 2: 'nan' is no number of votes"),
        (table("files", FILE.replace("/angry/", "/rage/")), "line 2: 'train/rage/.* is in no folder of a class"),
        (table("files", FILE.replace("train/angry/", "")), "line 2: 'Training_00008.png' is in no folder"),
        (table("rows", "Training,,1,1,1,1,1,1,1,1,1,1"), "has no vote for any of"),
    ],
)
def test_a_file_that_is_not_of_votes_is_refused(tmp_path, content, message):
    path = tmp_path / "votes.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_votes(path)
    assert str(caught.value).startswith(str(path)) and "--votes takes" in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(UserError, match="can't be read"):
            read_votes(path)


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    path = tmp_path / "votes.csv"
    path.write_bytes(table("rows", ROW, ROW))
    assert len(read_votes(path).counts) == 2
    path.write_bytes(table("rows", ROW, ROW, ROW))
    with pytest.raises(UserError, match=r"line 4: .* more than 2 rows"):
        read_votes(path)


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

NAMES, LABELS = [f"Training_{number}" for number in range(20)], [number % 7 for number in range(20)]


def index_of(kind: str, names=NAMES) -> np.ndarray:
    index = np.zeros(len(names), INDEX)
    index["labels"] = LABELS
    index["origins"] = [file_key(y, n) for y, n in zip(LABELS, names, strict=True)] if kind == "files" else range(20)
    return index


def votes_for(tmp_path, kind: str, voted: list[int]):
    """Three votes for the class `voted` on each image."""
    path = tmp_path / "votes.csv"
    origins = [
        f"train/{CLASSES[y]}/{n}.png" if kind == "files" else "Training,x" for y, n in zip(LABELS, NAMES, strict=True)
    ]
    path.write_bytes(
        table(kind, *(f"{o},{fields([3 * (c == v) for c in range(7)])}" for o, v in zip(origins, voted, strict=True)))
    )
    return read_votes(path)


def test_votes_of_the_other_form_are_refused(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    rows = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    files = write_files_form(archive, tmp_path / "ferplus_votes.csv")
    with pytest.raises(UserError, match=r"archive: .* fer2013new.csv are for the rows .*, or ferplus_votes.csv with"):
        load_from(archive, tmp_path, rows)
    with pytest.raises(UserError, match=r"fer2013.csv: .* ferplus_votes.csv are for files.*, or fer2013new.csv with"):
        load_from(table, tmp_path, files)


@pytest.mark.parametrize("known", [0, 9, 10, 20])
def test_a_dataset_most_of_whose_images_have_no_row_is_refused(tmp_path, known):
    votes = votes_for(tmp_path, "files", LABELS)
    index = index_of("files", NAMES[:known] + [f"other_{number}" for number in range(20 - known)])
    if known >= 10:
        found = match(votes, index, kind="files", source="archive.zip")
        assert found.sum(1).tolist() == [3.0] * known + [0.0] * (20 - known)
        return
    with pytest.raises(UserError, match=rf"archive.zip: votes.csv has a row for {known / 20:.1%} of its images"):
        match(votes, index, kind="files", source="archive.zip")


@pytest.mark.parametrize("kind", ["files", "rows"])
@pytest.mark.parametrize("agreed", [9, 10])
def test_labels_that_the_votes_contradict_are_refused(tmp_path, kind, agreed):
    voted = LABELS[:agreed] + [(label + 1) % 7 for label in LABELS[agreed:]]
    votes = votes_for(tmp_path, kind, voted)
    if agreed == 10:
        assert match(votes, index_of(kind), kind=kind, source="a").argmax(1).tolist() == voted
        return
    with pytest.raises(UserError, match=r"45.0% have a label that is among the most-voted"):
        match(votes, index_of(kind), kind=kind, source="a")


def test_a_table_in_another_order_is_refused(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    votes = write_rows_form(table, archive, tmp_path / "fer2013new.csv")
    other = csv_of_folders(archive, tmp_path / "shuffled.csv", seed=7)
    with pytest.raises(UserError, match="in another order"):
        load_from(other, tmp_path, votes)


def test_rendered_faces_have_no_votes(archive, tmp_path, monkeypatch):
    from demo import faces as demo_faces

    votes = write_files_form(archive, tmp_path / "votes.csv")
    demo_faces.write_folder(tmp_path / "rendered", identities=3, seed=0)
    monkeypatch.chdir(tmp_path / "rendered")
    for data in ("demo", str(tmp_path / "rendered")):
        with pytest.raises(UserError, match=r"rendered faces have none; name FER2013 with --data"):
            load_from(data, tmp_path, votes)
    assert not (tmp_path / "cache").exists()


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
    with pytest.raises(UserError, match="the val split has no votes"):
        voted_split(None).most_voted()
    with pytest.raises(UserError, match="no image of the val split has a single most-voted emotion"):
        VOTED.take(np.array([1, 2, 4])).most_voted()


def test_agreement_counts_a_tie_for_the_label():
    votes = np.array([[2, 2, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0], [0] * 7, [0, 0, 0, 5, 0, 0, 0]], np.float32)
    assert agreement(votes, np.array([1, 1, 2, 3])) == (3, 2 / 3)
    assert agreement(votes[2:3], np.array([2])) == (0, 0.0)

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from config import CLASSES, Config
from dataset import Picked, draw_validation, load, preprocess, stratified_rows
from errors import UserError
from helpers import REPO, csv_of_folders, run_script, write_folders, zip_folder
from readers import cache


@pytest.fixture
def archive(tmp_path):
    return write_folders(tmp_path / "archive", val_copies=3)


def load_from(path, tmp_path, **knobs):
    return load(Config(data=str(path), cache=str(tmp_path / "cache"), **knobs))


def test_preprocess_maps_pixels_to_minus_one_to_one():
    out = preprocess(torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1))
    assert out.shape == (3, 1, 1, 1) and out.dtype is torch.float32
    torch.testing.assert_close(out.ravel(), torch.tensor([-1.0, 127 / 127.5 - 1, 1.0]))


def test_publictest_is_validation_and_privatetest_is_test(archive, tmp_path):
    data = load_from(archive, tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 70, "val": 28, "test": 14}
    assert data.split("train").counts() == [10] * 7


def test_every_form_gives_the_same_arrays_and_fingerprint(archive, tmp_path):
    forms = [
        archive,
        zip_folder(archive, tmp_path / "archive.zip"),
        csv_of_folders(archive, tmp_path / "fer2013.csv"),
    ]
    first, *others = [load_from(form, tmp_path) for form in forms]
    for other in others:
        assert other.fingerprint == first.fingerprint
        for name, split in first.splits.items():
            assert np.array_equal(split.images, other.split(name).images)
            assert np.array_equal(split.labels, other.split(name).labels)
            assert np.array_equal(split.copies, other.split(name).copies)


def test_the_fingerprint_changes_with_a_pixel_a_label_or_a_split(tmp_path):
    plain = load_from(write_folders(tmp_path / "a"), tmp_path).fingerprint
    copies = load_from(write_folders(tmp_path / "b", val_copies=1), tmp_path).fingerprint
    moved = write_folders(tmp_path / "c")
    file = next((moved / "train" / "sad").iterdir())
    file.rename(moved / "train" / "happy" / file.name)
    other_split = write_folders(tmp_path / "d")
    file = next((other_split / "train" / "sad").iterdir())
    file.rename(other_split / "test" / "sad" / "PublicTest_x.png")
    prints = {plain, copies, load_from(moved, tmp_path).fingerprint, load_from(other_split, tmp_path).fingerprint}
    assert len(prints) == 4


def test_test_images_have_no_part_in_the_fingerprint_unless_they_are_all_there_is(tmp_path):
    with_test, without = write_folders(tmp_path / "a"), write_folders(tmp_path / "b")
    for file in (without / "test").glob("*/PrivateTest_*"):
        file.unlink()
    whole, bare = load_from(with_test, tmp_path), load_from(without, tmp_path)
    assert len(whole.splits["test"]) == 14 and "test" not in bare.splits
    assert whole.fingerprint == bare.fingerprint
    arrays = cache.open_cache(next((tmp_path / "cache").iterdir()))
    alone = {**arrays, "splits": np.full_like(arrays["splits"], 2)}
    fewer = {name: values[:-1] for name, values in alone.items()}
    assert len({cache.fingerprint(alone), cache.fingerprint(fewer), whole.fingerprint}) == 3


def test_a_dataloader_over_the_image_folder_gives_the_cached_pixels(archive, tmp_path):
    from image_folder import EmotionFolder

    folder = EmotionFolder(archive / "train")
    pixels, labels = next(iter(torch.utils.data.DataLoader(folder, batch_size=len(folder))))
    train = load_from(archive, tmp_path).split("train")
    rows = {(p.tobytes(), int(y)) for p, y in zip(pixels.numpy(), labels, strict=True)}
    assert rows == {(p.tobytes(), int(y)) for p, y in zip(train.images, train.labels, strict=True)}
    assert folder.classes == list(CLASSES)


def test_copies_of_train_images_are_marked(archive, tmp_path):
    data = load_from(archive, tmp_path)
    assert data.split("val").copies.sum() == 3 and not data.split("test").copies.any()
    assert "  3 of the val images also stand in train" in data.describe()


def test_the_second_load_reads_the_cache(archive, tmp_path, monkeypatch):
    first = load_from(archive, tmp_path)
    monkeypatch.setattr(cache, "build_cache", lambda *_: pytest.fail("decoded again"))
    assert load_from(archive, tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "harm",
    [
        *("meta.json", "labels.npy", "digests.npy", "images.npy", "version", "fingerprint"),
        *("cut images", "cut splits", "cut digests", "cut origins", "zeros", "fewer", "other type", "other origins"),
    ],
)
def test_a_harmed_cache_is_rebuilt(archive, tmp_path, harm):
    first = load_from(archive, tmp_path)
    images = np.array(first.split("train").images)  # a copy: the file behind the first is about to be cut
    (folder,) = (tmp_path / "cache").iterdir()
    origins = np.load(folder / "origins.npy")
    if harm in ("version", "fingerprint"):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, harm: "other"}))
    elif harm.startswith("cut"):
        file = folder / f"{harm.split()[1]}.npy"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif harm == "zeros":
        np.save(folder / "images.npy", np.zeros((112, 48, 48), np.uint8))
    elif harm == "other type":
        np.save(folder / "labels.npy", np.load(folder / "labels.npy").astype(np.int32))
    elif harm == "other origins":
        np.save(folder / "origins.npy", origins[::-1].copy())
    elif harm == "fewer":
        np.save(folder / "images.npy", np.load(folder / "images.npy")[:50])
    else:
        (folder / harm).unlink()
    again = load_from(archive, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.split("train").images, images)
    assert np.array_equal(np.load(folder / "origins.npy"), origins)


def test_the_fingerprint_is_of_digests_labels_and_splits_alone(archive, tmp_path):
    first = load_from(archive, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    arrays = cache.open_cache(folder)
    assert cache.fingerprint({**arrays, "origins": arrays["origins"][::-1]}) == first.fingerprint
    for name in ("digests", "labels", "splits"):
        assert cache.fingerprint({**arrays, name: arrays[name][::-1]}) != first.fingerprint


def test_origins_are_data_rows_which_a_bad_or_blank_row_does_not_shift(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    head, *rows = table.read_text().splitlines()
    pixels = [np.array(row.split(",")[1].split(), np.uint8).tobytes() for row in rows]
    rows[4] = rows[4].replace(" ", " x", 1)
    rows.insert(9, "")
    table.write_text("\n".join([head, *rows]))
    assert load_from(table, tmp_path).unreadable_count == 1
    (folder,) = (tmp_path / "cache").iterdir()
    arrays = cache.open_cache(folder)
    assert sorted(arrays["origins"].tolist()) == [*range(4), *range(5, 112)]
    assert all(pixels[row] == image.tobytes() for row, image in zip(arrays["origins"], arrays["images"], strict=True))
    assert json.loads((folder / "meta.json").read_text())["origins"] == "rows"


def test_a_changed_file_makes_the_cache_stale(archive, tmp_path):
    first = load_from(archive, tmp_path)
    next((archive / "train" / "sad").iterdir()).unlink()
    assert load_from(archive, tmp_path).fingerprint != first.fingerprint


def test_a_dataset_has_one_cache(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = load_from(write_folders(tmp_path / "other", val_copies=2), tmp_path).fingerprint
    older = tmp_path / "cache" / f"{'0' * 24}-1"  # as earlier versions left them: the path as it was typed
    older.mkdir()
    (older / "meta.json").write_text(json.dumps({"source": "archive"}))
    mine = tmp_path / "cache" / "faces-1"
    mine.mkdir()
    for number in range(3):
        next((archive / "train" / "sad").iterdir()).rename(archive / "train" / "sad" / f"{number}.png")
        load_from(archive if number else "archive", tmp_path)
    assert len(list((tmp_path / "cache").glob("*-*"))) == 3 and mine.exists() and not older.exists()
    monkeypatch.setattr(cache, "build_cache", lambda *_: pytest.fail("decoded again"))
    assert load_from(tmp_path / "other", tmp_path).fingerprint == other


def test_uncropped_photos_are_counted(archive, tmp_path):
    assert not load_from(archive, tmp_path).notes
    for number, size in enumerate([(640, 640), (90, 48)]):
        Image.new("L", size).save(archive / "train" / "sad" / f"{number}.png")
    for _ in range(2):  # decoded, and from the cache
        (note,) = load_from(archive, tmp_path).notes
        assert "1.8%" in note and "2 of 114" in note and "crop" in note


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_cache_is_as_open_to_others_as_any_folder(archive, tmp_path):
    load_from(archive, tmp_path)
    (tmp_path / "any").mkdir()
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode == (tmp_path / "any").stat().st_mode


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
    mine, young, old = (
        tmp_path / "cache" / name for name in ("half-size-faces", f"half-{'a' * 16}", f"half-{'0' * 16}")
    )
    for folder in (mine, young, old):
        folder.mkdir(parents=True)
        (folder / "raw.bin").write_bytes(b"0")
    for folder in (mine, old):
        os.utime(folder, (0, 0))
    load_from(archive, tmp_path)
    assert mine.exists() and young.exists() and not old.exists()


def test_bad_files_are_named_counted_and_skipped(archive, tmp_path):
    (archive / "train" / "sad" / "empty.png").write_bytes(b"")
    data = load_from(archive, tmp_path)
    assert data.unreadable_count == 1 and "train/sad/empty.png: " in data.unreadable[0]
    assert "  skipped files: 1" in data.describe() and len(data.split("train")) == 70


def test_a_class_with_only_bad_files_is_an_error(archive, tmp_path):
    for file in (archive / "train" / "fear").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="train has no readable image of fear"):
        load_from(archive, tmp_path)


def test_nothing_readable_is_an_error(archive, tmp_path):
    for file in archive.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"not one image could be read \(the first: "):
        load_from(archive, tmp_path)


def test_an_empty_train_split_is_an_error(archive, tmp_path):
    table = csv_of_folders(archive, tmp_path / "fer2013.csv")
    table.write_text(table.read_text().replace("Training", "PublicTest"))
    with pytest.raises(UserError, match="the train split is empty"):
        load_from(table, tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_is_an_error(tmp_path, split):
    folder = write_folders(tmp_path / "a", val=0, test=0)
    (folder / split / "happy").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{split}/ is there but holds no images: fill it, or remove it"):
        load_from(folder, tmp_path)


@pytest.mark.parametrize("kind", ["PublicTest", "PrivateTest"])
def test_a_split_of_bad_files_only_is_an_error(archive, tmp_path, kind):
    for file in archive.rglob(f"{kind}_*"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"not one image of {'val' if kind == 'PublicTest' else 'test'} could be read"):
        load_from(archive, tmp_path)


def test_validation_made_of_train_images_is_an_error(tmp_path):
    folder = write_folders(tmp_path / "a", train=28, val=28, test=0, val_copies=28)
    with pytest.raises(UserError, match="every validation image also stands in train"):
        load_from(folder, tmp_path)


def test_a_class_with_one_image_keeps_it_in_train(tmp_path):
    folder = write_folders(tmp_path / "a", train=70, val=0, test=0)
    for file in sorted((folder / "train" / "fear").iterdir())[1:]:
        file.unlink()
    data = load_from(folder, tmp_path)
    assert data.split("train").counts()[2] == 1 and data.split("val").counts()[2] == 0


def test_nothing_to_draw_a_validation_part_from_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no class has two different images to draw one from"):
        load_from(write_folders(tmp_path / "a", train=7, val=0, test=0), tmp_path)


def test_names_cannot_forge_output(archive, tmp_path):
    (archive / "train" / "sad" / "\x1b[31mforged\nline.png").write_bytes(b"")
    text = "\n".join(load_from(archive, tmp_path).describe())
    assert "\x1b" not in text and "forged\\nline.png: 0 bytes" in text


def test_a_name_that_is_too_long_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_from("x" * 300, tmp_path)


def test_a_split_that_is_not_there_names_the_others(tmp_path):
    data = load_from(write_folders(tmp_path / "a", test=0), tmp_path)
    with pytest.raises(UserError, match="has no test split; use one of: --split val"):
        data.split("test")


def test_without_a_validation_part_a_tenth_of_each_class_is_drawn(tmp_path):
    data = load_from(write_folders(tmp_path / "a", train=700, val=0, test=0), tmp_path)
    assert data.split("val").counts() == [10] * 7 and data.split("train").counts() == [90] * 7
    assert data.sampled_val and "  val (drawn)" in "\n".join(data.describe())
    again = load_from(tmp_path / "a", tmp_path, seed=5)
    assert np.array_equal(data.split("val").digests, again.split("val").digests)


def test_copies_stay_on_one_side_of_the_sampled_validation():
    digests = np.array([(i // 3, 0) for i in range(700)], cache.DIGEST)  # groups of three
    labels = np.arange(700) // 3 % 7
    drawn = draw_validation(labels, digests, 0.1)
    assert not set(digests[drawn]["high"]) & set(digests[~drawn]["high"])
    assert 70 <= drawn.sum() <= 70 + 7 * 3


@pytest.mark.parametrize("sizes", [(1, 99), (99, 1), (2, 5, 93), (50, 50), (1, 1)])
def test_an_image_copied_over_and_over_stays_in_train(sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    digests = np.array([(number, 0) for number in group], cache.DIGEST)
    drawn = draw_validation(np.zeros(len(group), int), digests, 0.1)
    assert 0 < drawn.sum() <= max(7, min(sizes)) and not drawn.all()


def test_a_sampled_validation_part_leaves_the_pixels_on_disk(tmp_path):
    folder = write_folders(tmp_path / "faces", train=140, val=0, test=0)
    data = load_from(folder, tmp_path)
    train, val = data.split("train"), data.split("val")
    assert data.sampled_val and isinstance(train.images, Picked) and isinstance(val.images, Picked)
    assert train.images.shape == (len(train), 48, 48) and train.images.nbytes == len(train) * 48 * 48
    pixels = np.asarray(train.images)
    assert np.array_equal(train.images[3:5], pixels[3:5]) and np.array_equal(train.images[[7, 2]], pixels[[7, 2]])
    part = train.take(np.array([1, 4, 9]))
    assert np.array_equal(np.asarray(part.images), pixels[[1, 4, 9]]) and len(part.images) == 3
    for split in (train, val):
        for image, label, digest in zip(np.asarray(split.images), split.labels, split.digests, strict=True):
            assert cache.digest_of(image.tobytes()) == digest.tobytes() and image.mean() // 28 == label + 1


def test_found_in_looks_at_both_halves_of_a_digest(monkeypatch):
    monkeypatch.setattr(dataset, "PASS", 3)
    rng = np.random.default_rng(0)
    others = np.zeros(10, cache.DIGEST)
    others["high"], others["low"] = rng.integers(0, 5, 10), rng.integers(0, 5, 10)
    digests = np.zeros(25, cache.DIGEST)
    digests["high"], digests["low"] = np.divmod(np.arange(25), 5)
    wanted = [tuple(digest) in {tuple(other) for other in others} for digest in digests]
    assert dataset.found_in(digests, others).tolist() == wanted and any(wanted) and not all(wanted)


def test_a_limit_keeps_every_class_in_its_share():
    labels = np.array([0] * 900 + [1] * 100 + [2] * 3)
    rows = stratified_rows(labels, 100)
    assert np.bincount(labels[rows]).tolist() == [90, 10, 1] and (np.diff(rows) > 0).all()


def test_the_places_are_searched_in_order(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(Config()).source == "archive"
    zip_folder(archive, tmp_path / "archive.zip")
    archive.rename(tmp_path / "elsewhere")
    assert load(Config()).source == "archive.zip"


def test_dataset_py_says_what_it_found_and_draws_a_sheet(archive, tmp_path):
    done = run_script("dataset.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data: archive, fingerprint" in done.stdout and (tmp_path / "contact_sheet.png").stat().st_size > 10_000
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  train")]
    assert rows == [["train", *["10"] * 7, "70"]]


def test_dataset_py_overwrites_no_archive(archive, tmp_path):
    before = zip_folder(archive, tmp_path / "archive.zip").read_bytes()
    assert dataset.main(["--data", str(archive), "--sheet", str(tmp_path / "archive.zip")]) == 2
    assert (tmp_path / "archive.zip").read_bytes() == before


def test_dataset_py_ends_with_status_2_for_a_missing_dataset(tmp_path):
    done = run_script("dataset.py", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere: no such")


COUNTS = {"train": [10] * 7, "val": [4] * 7}  # those of `write_folders`, in the place of FER2013's official ones


def as_jpegs(folder):
    """The images below `folder` as JPEGs of quality 95, as Kaggle has FER2013."""
    for file in folder.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    return folder


def test_fer2013_is_one_dataset_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "FER2013", COUNTS)
    pngs = write_folders(tmp_path / "a", val_copies=3)
    jpegs = as_jpegs(write_folders(tmp_path / "b", val_copies=3, test=0))
    forms = [pngs, jpegs, zip_folder(jpegs, tmp_path / "faces.zip"), csv_of_folders(pngs, tmp_path / "x.csv")]
    loaded = [load_from(form, tmp_path) for form in forms]
    assert {data.name for data in loaded} == {"fer2013"}
    assert load_from(pngs, tmp_path, limit=14).name == "fer2013"
    assert loaded[0].fingerprint != loaded[1].fingerprint == loaded[2].fingerprint
    assert [data.split("val").copies.sum() for data in loaded] == [3] * 4


def test_other_data_has_the_name_of_its_file_and_rendered_faces_are_the_demo(tmp_path, monkeypatch):
    from demo import faces as demo_faces

    other = write_folders(tmp_path / "mine")
    monkeypatch.chdir(other)
    assert load_from(".", tmp_path).name == "mine"
    demo_faces.write_folder(tmp_path / "rendered", identities=3, seed=0)
    assert load_from(tmp_path / "rendered", tmp_path).name == "demo"


FORMS = ("archive.zip", "archive_kaggle_jpeg.zip")
REAL = Path(os.environ.get("FER2013_DATA", "none"))


@pytest.mark.skipif(not REAL.exists(), reason="FER2013_DATA names no real dataset")
@pytest.mark.parametrize("form", FORMS)
def test_fer2013_is_counted_as_published(tmp_path, form):
    path = REAL.with_name(form)
    if not path.exists():
        pytest.skip(f"no {form} beside FER2013_DATA")
    data = load_from(path, tmp_path)
    assert data.split("train").counts() == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert data.split("val").counts() == [467, 56, 496, 895, 653, 415, 607]
    assert data.split("val").copies.sum() == 280
    assert data.name == "fer2013" and "data: fer2013 (" in data.describe()[0]
    assert data.fingerprint == "14bc802825ac8905" or form != "archive.zip"


def test_a_folder_of_drawn_faces_is_known_as_such(tmp_path):
    from demo import faces as demo_faces

    demo_faces.write_folder(tmp_path / "drawn", identities=3, seed=0)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "drawn")
    shutil.unpack_archive(tmp_path / "zipped.zip", tmp_path / "unpacked")  # its folder lies one deeper
    for data in ("drawn", "drawn/train", "zipped.zip", "unpacked"):
        assert load_from(tmp_path / data, tmp_path).demo
    (tmp_path / "drawn" / ".drawn-faces").unlink()
    assert not load_from(tmp_path / "drawn", tmp_path).demo


@pytest.mark.parametrize("name", ["fer2013.zip", "archive (1).zip", "FER-2013.ZIP", "msambare-fer2013-archive.zip"])
def test_a_dataset_under_another_name_is_no_reason_to_draw_faces(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    zip_folder(write_folders(tmp_path / "elsewhere" / "faces"), tmp_path / name)
    with pytest.raises(UserError, match=r"looks like one: give --data '?" + re.escape(name)):
        load(Config())
    assert not load(Config(data=name)).demo


def test_train_in_this_folder_is_no_reason_to_draw_faces(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folders(tmp_path / "faces"))
    with pytest.raises(UserError, match=r"looks like one: give --data \., or --data demo for the drawn faces"):
        load(Config())
    assert not load(Config(data=".")).demo


def test_of_two_datasets_the_one_read_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_folders(tmp_path / "archive")
    assert not load(Config()).notes
    zip_folder(folder, tmp_path / "archive.zip")
    assert load(Config()).notes == ["archive is read, not archive.zip, which is here too: --data chooses"]
    assert not load(Config(data="archive.zip")).notes


def test_demo_means_the_rendered_faces_beside_a_folder_of_that_name_too(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "DEMO_IDENTITIES", 5)
    monkeypatch.setattr(dataset, "DEMO_VAL_IDENTITIES", 2)
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "demo")  # the repo has a package of this name
    assert load_from("demo", tmp_path).demo and not load_from("./demo", tmp_path).demo


@pytest.mark.parametrize("name", ["faces.zip", "test.zip"])
def test_the_demo_is_drawn_beside_other_zips(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert dataset.find(Config()) == ("demo", [])


def test_the_demo_is_drawn_where_there_is_no_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "DEMO_IDENTITIES", 5)
    monkeypatch.setattr(dataset, "DEMO_VAL_IDENTITIES", 2)
    monkeypatch.chdir(tmp_path)
    data = load(Config())
    assert data.demo and len(data.split("train")) == 35 and len(data.split("val")) == 14
    assert REPO.name not in data.source

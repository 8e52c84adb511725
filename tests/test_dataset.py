"""The dataset: found, named, split; its images mapped; and the same folders as an ImageFolder."""

import hashlib
import re
import shutil

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import dataset
from config import CLASSES, Config
from dataset import EmotionFolder, load, preprocess
from demo import faces as demo_faces
from errors import UserError
from helpers import REPO, csv_of_folders, write_folders, zip_folder
from readers.cache import DIGEST, digest_of
from readers.decode import BadImage
from splits import sample_validation, stratified_rows


@pytest.fixture
def archive(tmp_path):
    return write_folders(tmp_path / "archive", val_copies=3)


def load_from(path, tmp_path, **settings):
    return load(Config(data=str(path), cache=str(tmp_path / "cache"), **settings))


def test_preprocess_maps_pixels_to_minus_one_to_one():
    out = preprocess(torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1))
    assert out.shape == (3, 1, 1, 1) and out.dtype is torch.float32
    torch.testing.assert_close(out.ravel(), torch.tensor([-1.0, 127 / 127.5 - 1, 1.0]))


# --- Splits ---


def test_publictest_is_validation_privatetest_is_test_and_copies_are_marked(archive, tmp_path):
    data = load_from(archive, tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 70, "val": 28, "test": 14}
    assert data.split("train").counts() == [10] * 7
    assert {name: split.copies.sum() for name, split in data.splits.items()} == {"train": 0, "val": 3, "test": 0}
    assert "  3 of the val images are in train too" in data.describe()


def test_without_a_validation_part_the_same_tenth_of_each_class_is_sampled(tmp_path):
    data = load_from(write_folders(tmp_path / "a", train=700, val=0, test=0), tmp_path)
    assert data.split("val").counts() == [10] * 7 and data.split("train").counts() == [90] * 7
    assert data.sampled_val and "  val (sampled)" in "\n".join(data.describe())
    with pytest.raises(UserError, match="has no test split: use --split val"):
        data.split("test")
    again = load_from(tmp_path / "a", tmp_path, seed=5)
    assert np.array_equal(data.split("val").digests, again.split("val").digests)
    assert hashlib.md5(data.split("val").digests.tobytes()).hexdigest()[:8] == "b339f8de"  # as since the first release


@pytest.mark.parametrize("sizes", [(3,) * 234, (1, 99), (99, 1), (2, 5, 93), (50, 50), (1, 1)])
def test_copies_stay_on_one_side_of_the_sampled_validation_and_the_most_copied_in_train(sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    digests = np.array([(number, 0) for number in group], DIGEST)
    chosen = sample_validation(np.zeros(len(group), int), digests, 0.1)
    assert not set(group[chosen]) & set(group[~chosen]) and not chosen.all()
    assert 0 < chosen.sum() <= max(0.1 * len(group), min(sizes)) + min(sizes)


def test_images_stay_on_disk(archive, tmp_path):
    whole = load_from(archive, tmp_path)
    assert isinstance(whole.split("train").images.images, np.memmap)
    sampled = load_from(write_folders(tmp_path / "faces", train=140, val=0, test=0), tmp_path)
    for split in (*whole.splits.values(), *sampled.splits.values(), sampled.split("train").take(np.arange(0, 99, 7))):
        pixels = np.asarray(split.images)
        assert pixels.shape == (len(split), 48, 48) and split.images.nbytes == pixels.nbytes
        assert np.array_equal(split.images[3:5], pixels[3:5]) and np.array_equal(split.images[[7, 2]], pixels[[7, 2]])
        for image, label, digest in zip(pixels, split.labels, split.digests, strict=True):
            assert digest_of(image.tobytes()) == digest.tobytes() and image.mean() // 28 == label + 1


def test_a_limit_keeps_every_class_in_its_share(archive, tmp_path):
    labels = np.array([0] * 900 + [1] * 100 + [2] * 3)
    rows = stratified_rows(labels, 100)
    assert np.bincount(labels[rows]).tolist() == [90, 10, 1] and (np.diff(rows) > 0).all()
    limited = load_from(archive, tmp_path, limit=14)
    assert limited.split("train").counts() == [2] * 7 and len(limited.split("val")) == 28


# --- What cannot be trained on ---


def test_bad_files_are_named_counted_and_skipped(archive, tmp_path):
    (archive / "train" / "sad" / "empty.png").write_bytes(b"")
    (archive / "train" / "sad" / "\x1b[31mforged\nline.png").write_bytes(b"")
    data = load_from(archive, tmp_path)
    text = "\n".join(data.describe())
    assert "train/sad/empty.png: 0 bytes" in text and len(data.split("train")) == 70
    assert "\x1b" not in text  # names cannot forge output
    assert "skipped files: 2\n  train/sad/\\x1b[31mforged\\nline.png, " in text


@pytest.mark.parametrize(
    ("harmed", "message"), [("train/fear/*", "train has no readable image of: fear"), ("*/*/*", "not one image could")]
)
@pytest.mark.parametrize("classes", ["", "auto", ",".join(CLASSES)])
def test_a_class_of_bad_files_is_an_error(archive, tmp_path, harmed, message, classes):
    for file in archive.glob(harmed):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=message):
        load_from(archive, tmp_path, classes=classes)


def test_validation_made_of_train_images_is_an_error(tmp_path):
    folder = write_folders(tmp_path / "a", train=28, val=28, test=0, val_copies=28)
    with pytest.raises(UserError, match="every validation image is in train too"):
        load_from(folder, tmp_path)


def test_a_class_with_one_image_keeps_it_in_train(tmp_path):
    folder = write_folders(tmp_path / "a", train=70, val=0, test=0)
    for file in sorted((folder / "train" / "fear").iterdir())[1:]:
        file.unlink()
    data = load_from(folder, tmp_path)
    assert data.split("train").counts()[2] == 1 and data.split("val").counts()[2] == 0
    with pytest.raises(UserError, match="no class has two different images to sample one from"):
        load_from(write_folders(tmp_path / "b", train=7, val=0, test=0), tmp_path)


def test_photos_that_are_not_cropped_get_a_note(tmp_path):
    face = Image.fromarray(skimage.data.astronaut()).convert("L").crop((160, 50, 290, 180))
    for folder, side in (("crops", 130), ("photos", 300)):
        for number in range(28):
            photo = Image.new("L", (side, side), 100)
            photo.paste(face.point(lambda grey, dark=number: grey - dark), ((side - 130) // 2, (side - 130) // 2))
            place = tmp_path / folder / "train" / CLASSES[number % 7] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            photo.save(place)
    assert not load_from(tmp_path / "crops", tmp_path).doubts()
    (note,) = load_from(tmp_path / "photos", tmp_path).doubts()
    assert "--crop" in note and "20 of 20" in note


# --- Which dataset it is ---

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
    assert {data.name for data in loaded} == {"fer2013"} and "fer2013 (" in loaded[0].describe()[0]
    assert load_from(pngs, tmp_path, limit=14).name == "fer2013"
    assert loaded[0].fingerprint != loaded[1].fingerprint == loaded[2].fingerprint
    assert [data.split("val").copies.sum() for data in loaded] == [3] * 4
    monkeypatch.undo()  # other data has the name of its file, but that one
    monkeypatch.chdir(jpegs)
    assert load_from(".", tmp_path).name == "b"
    assert load_from(pngs.rename(tmp_path / "fer2013"), tmp_path).name != "fer2013"


def test_a_folder_of_rendered_faces_is_known_as_such(tmp_path):
    demo_faces.write_folder(tmp_path / "rendered", identities=3, seed=0)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "rendered")
    shutil.unpack_archive(tmp_path / "zipped.zip", tmp_path / "unpacked")  # its folder lies one deeper
    for data in ("rendered", "rendered/train", "zipped.zip", "unpacked"):
        assert load_from(tmp_path / data, tmp_path).demo
    (tmp_path / "rendered" / ".drawn-faces").unlink()
    assert not load_from(tmp_path / "rendered", tmp_path).demo


# --- Finding it ---


def test_the_places_are_searched_in_order_and_the_one_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = write_folders(tmp_path / "archive")
    assert load(Config()).source == "archive" and not load(Config()).notes
    zip_folder(archive, tmp_path / "archive.zip")
    assert load(Config()).notes == ["archive is read, not archive.zip, which is here too: --data chooses"]
    assert not load(Config(data="archive.zip")).notes
    archive.rename(tmp_path / "elsewhere")
    assert load(Config()).source == "archive.zip"


@pytest.mark.parametrize("name", ["fer2013.zip", "archive (1).zip", "FER-2013.ZIP", "train"])
def test_a_dataset_under_another_name_is_no_reason_to_render_faces(tmp_path, monkeypatch, name):
    monkeypatch.chdir(write_folders(tmp_path / "faces") if name == "train" else tmp_path)
    if name != "train":
        zip_folder(write_folders(tmp_path / "elsewhere" / "faces"), tmp_path / name)
    given = "." if name == "train" else name
    with pytest.raises(UserError, match=r"looks like one: give --data '?" + re.escape(given)):
        load(Config())
    assert not load(Config(data=given)).demo


def test_the_demo_is_rendered_where_there_is_no_dataset_and_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_faces, "IDENTITIES", 5)
    monkeypatch.setattr(demo_faces, "VAL_IDENTITIES", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces.zip").touch()
    data = load(Config())
    assert data.demo and data.name == "demo" and REPO.name not in data.source
    assert len(data.split("train")) == 35 and len(data.split("val")) == 14
    write_folders(tmp_path / "demo")  # the repo has a package of this name
    assert load(Config(data="demo")).demo and not load(Config(data="./demo")).demo


def test_a_name_that_is_missing_or_too_long_is_an_error(tmp_path, capsys):
    with pytest.raises(UserError, match="no such file or folder"):
        load_from("x" * 300, tmp_path)
    assert dataset.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert re.match(r"error: .*nowhere: no such", capsys.readouterr().err)


def test_dataset_py_prints_what_it_found_and_writes_a_sheet(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dataset.main([]) == 0
    out = capsys.readouterr().out
    assert "data: archive, fingerprint" in out and (tmp_path / "contact_sheet.png").stat().st_size > 10_000
    assert dataset.main([]) == 0
    (tmp_path / "contact_sheet.png").write_bytes(b"another picture")
    assert dataset.main([]) == 2 and (tmp_path / "contact_sheet.png").read_bytes() == b"another picture"
    assert ["train", *["10"] * 7, "70"] in [line.split() for line in out.splitlines()]


# --- EmotionFolder ---


def test_an_emotion_folder_has_the_fixed_order_of_classes_and_the_cached_pixels(archive, tmp_path):
    (archive / "train" / "angry").rename(archive / "train" / "Anger")
    Image.new("L", (48, 48)).save(archive / "train" / "sad" / ".junk.png")
    (archive / "train" / ".cache").mkdir()
    (archive / "train" / "sad" / "notes.txt").touch()
    folder = EmotionFolder(archive / "train")
    assert isinstance(folder, ImageFolder) and folder.classes == list(folder.class_to_idx) == list(CLASSES)
    pixels, labels = next(iter(DataLoader(folder, batch_size=len(folder))))
    assert pixels.dtype is torch.uint8 and pixels.shape == (70, 48, 48)
    train = load_from(archive, tmp_path).split("train")
    rows = sorted((p.tobytes(), int(y)) for p, y in zip(pixels.numpy(), labels, strict=True))
    assert rows == sorted((p.tobytes(), int(y)) for p, y in zip(train.images, train.labels, strict=True))


def test_an_emotion_folder_trains_a_network_through_a_dataloader(tmp_path):
    folder = EmotionFolder(write_folders(tmp_path / "a", train=140) / "train")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(7))
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-3), []
    for _ in range(4):
        for images, labels in DataLoader(folder, batch_size=20, shuffle=True, num_workers=1):
            loss = torch.nn.functional.cross_entropy(network(preprocess(images)), labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert np.mean(losses[-7:]) < 0.8 * np.mean(losses[:7])


def test_an_emotion_folder_refuses_other_folders_and_names_bad_files(archive, tmp_path):
    root = archive / "train"
    bad = next((root / "angry").iterdir())
    bad.write_bytes(b"text")
    with pytest.raises(BadImage, match=rf"{bad.name}: not an image$"):
        list(EmotionFolder(root))
    (root / "sad").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no images of: sad"):
        EmotionFolder(root)
    (root / "contempt").mkdir()
    with pytest.raises(UserError, match="folders that are no class: 'contempt'"):
        EmotionFolder(root)
    (root / "contempt").rmdir()
    chosen = EmotionFolder(root, [name for name in CLASSES if name != "sad"])
    assert len(chosen.classes) == 6 and max(chosen.targets) == 5

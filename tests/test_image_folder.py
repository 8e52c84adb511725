"""EmotionFolder: the fixed class order whatever the disk says, and errors that name the folder or file."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from config import CLASSES
from errors import UserError
from helpers import write_folders
from image_folder import EmotionFolder, load_image
from readers.decode import BadImage
from readers.sources import open_dataset


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 48), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for index, name in enumerate(CLASSES):
        write(tmp_path / "train" / name / "a.png", index)
        write(tmp_path / "train" / name / "b.png", 100 + index)
    return tmp_path / "train"


def test_it_is_an_image_folder_of_tensors_and_labels(root):
    data = EmotionFolder(root)
    assert isinstance(data, ImageFolder) and len(data) == 14
    image, label = data[0]
    assert isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.shape == (48, 48)
    assert isinstance(label, int)


def test_labels_follow_the_fixed_order_not_the_folders(root):
    data = EmotionFolder(root)
    assert data.classes == list(CLASSES)
    assert data.class_to_idx == {name: index for index, name in enumerate(CLASSES)}
    assert all(int(image[0, 0]) % 100 == label for image, label in data)
    assert data.renamed == {}


def test_synonyms_and_letter_case_are_mapped(root):
    (root / "angry").rename(root / "Anger")
    (root / "sad").rename(root / "SAD")
    data = EmotionFolder(root)
    assert data.renamed == {"Anger": "angry", "SAD": "sad"}
    assert all(int(image[0, 0]) % 100 == label for image, label in data)


def test_two_folders_may_name_one_class(root):
    write(root / "anger" / "c.png", 0)
    assert EmotionFolder(root).targets.count(0) == 3


def test_an_unknown_folder_is_named(root):
    write(root / "contempt" / "a.png")
    with pytest.raises(UserError, match=r"train has folders that are no class: 'contempt'\. Allowed are angry, "):
        EmotionFolder(root)


def test_a_missing_and_an_empty_class_are_named(root):
    (root / "fear" / "a.png").unlink()
    (root / "fear" / "b.png").unlink()
    (root / "sad").rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match=r"no images of: fear \(its folder is empty\), sad \(no such folder\)"):
        EmotionFolder(root)
    assert len(EmotionFolder(root, allow_empty=True)) == 10


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Expected one that holds angry, disgust"):
        EmotionFolder(tmp_path / "nowhere")


def test_junk_and_hidden_folders_are_passed_over(root):
    write(root / "__MACOSX" / "a.png")
    write(root / ".ipynb_checkpoints" / "a.png")
    write(root / "happy" / ".ipynb_checkpoints" / "a-checkpoint.png")
    write(root / "happy" / "._a.png")
    (root / "happy" / "Thumbs.db").write_bytes(b"")
    (root / "happy" / "readme.txt").write_bytes(b"")
    assert len(EmotionFolder(root)) == 14


def test_a_hidden_folder_above_the_root_does_not_matter(root, tmp_path):
    (tmp_path / ".cache").mkdir()
    root.rename(tmp_path / ".cache" / "train")
    assert len(EmotionFolder(tmp_path / ".cache" / "train")) == 14


def test_a_bad_file_is_named_when_it_is_taken(root):
    (root / "angry" / "a.png").write_bytes(b"text")
    data = EmotionFolder(root)
    with pytest.raises(BadImage, match=r"train/angry/a\.png: not an image$"):
        data[0]


def test_a_vanished_file_is_named(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.png: cannot be read \(No such file or directory\)$"):
        load_image(tmp_path / "gone.png")


def test_transforms_are_applied(root):
    data = EmotionFolder(root, transform=lambda image: image.float() + 1, target_transform=lambda label: label * 10)
    assert {label for _, label in data} == {0, 10, 20, 30, 40, 50, 60}
    assert data[0][0].dtype == torch.float32


def test_it_lists_what_sources_lists(root):
    (root / "angry").rename(root / "Anger")
    write(root / "happy" / "deeper" / "x.png", 3)
    (root / "happy" / "notes.txt").write_bytes(b"")
    data = EmotionFolder(root)
    items = [item for item in open_dataset(root.parent).items() if not item.problem]
    names = [path.removeprefix(f"{root.parent}/") for path, _ in data.samples]
    assert sorted(zip(names, data.targets, strict=True)) == [(item.name, item.label) for item in items]
    pixels = {name: data[index][0] for index, name in enumerate(names)}
    assert all(np.array_equal(pixels[item.name].numpy(), item.pixels) for item in items)


def test_a_link_round_in_a_circle_is_no_class(tmp_path):
    write_folders(tmp_path / "data", train=7)
    root = tmp_path / "data" / "train"
    (root / "circle").symlink_to("circle")
    assert len(EmotionFolder(root)) == 7

"""Small datasets, small weights, and the scripts' real command line, for the tests."""

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parent.parent


def faces(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` different noisy images (count, 48, 48) uint8 whose brightness tells their label, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 7
    noise = rng.integers(0, 60, (count, 48, 48))
    return (noise + (labels * 28)[:, None, None]).astype(np.uint8), labels


def same_weights(first: dict, second: dict) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def save_face(path: Path, label: int = 3, *, size: tuple[int, int] = (48, 48)) -> Path:
    """An image that the weights read as class `label`, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(faces(7)[0][label])
    if size != (48, 48):
        image = image.resize(size, Image.Resampling.NEAREST)
    image.convert("RGB" if path.suffix == ".ppm" else "L").save(path)
    return path


def write_folders(root: Path, *, train: int = 70, val: int = 28, test: int = 14, val_copies: int = 0) -> Path:
    """An archive as people download it: train/<class>/Training_*.png, test/<class>/PublicTest_* and PrivateTest_*.

    The first `val_copies` of the PublicTest images are pixel for pixel those of train.
    """
    from config import CLASSES

    images, labels = faces(train + val + test)
    images[train : train + val_copies] = images[:val_copies]
    labels[train : train + val_copies] = labels[:val_copies]
    kinds = ["train Training"] * train + ["test PublicTest"] * val + ["test PrivateTest"] * test
    for number, (kind, image, label) in enumerate(zip(kinds, images, labels, strict=True)):
        top, prefix = kind.split()
        folder = root / top / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{prefix}_{number:05d}.png")
    return root


def zip_folder(folder: Path, path: Path) -> Path:
    """Every file below `folder`, stored in a zip at `path`."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def csv_of_folders(folder: Path, path: Path, *, seed: int = 1) -> Path:
    """fer2013.csv with the images below `folder`, its rows shuffled."""
    from config import CLASSES

    rows = []
    for file in sorted(folder.rglob("*.png")):
        pixels = " ".join(map(str, np.array(Image.open(file)).ravel()))
        rows.append((CLASSES.index(file.parent.name), pixels, file.name.split("_")[0]))
    np.random.default_rng(seed).shuffle(rows)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("emotion", "pixels", "Usage"))
        writer.writerows(rows)
    return path


def run_script(name: str, *args: str | Path, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    """A finished `python name args` in the folder `cwd`, with its output as text."""
    command = [sys.executable, str(REPO / name), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def brightness_weights(path: Path, *, data: object = None, noise: float = 55.5) -> Path:
    """Weights of TheModel, set by hand, that read `faces` without a mistake: each class has its brightness.

    They say that they were trained on `data` (a FaceData), else on seven images of their own.
    `noise` is the mean over an image of the brightest of 16 neighbouring noise values.
    """
    import torch

    from config import Config
    from dataset import FaceData, Split
    from metrics import measure
    from model import TheModel
    from readers.cache import DIGEST
    from val import Scores
    from weights import save_weights

    images, labels = faces(7)
    if data is None:
        train = Split("train", images, labels, np.zeros(7, DIGEST), np.zeros(7, bool))
        data = FaceData({"train": train}, "archive.zip", "archive.zip", "0123456789abcdef")
    model = TheModel()
    levels = (noise + 28 * torch.arange(7)) / 127.5  # what an image's mean pixel is, in [0, 2], after both poolings
    centred = levels - levels.mean()
    sharpness = 60.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer, bias in ((model.body[0], 1.0), (model.body[3], 0.0)):
            layer.weight[0, 0, 1, 1] = 1.0
            layer.bias[0] = bias
        for unit, sign in ((0, 1.0), (1, -1.0)):  # ReLU cuts one of them
            model.hidden.weight[unit, : 12 * 12] = sign / (12 * 12)
            model.hidden.bias[unit] = -sign * levels.mean()
            model.classifier.weight[:, unit] = 2 * sharpness * sign * centred
        model.classifier.bias[:] = -sharpness * centred**2
    figures = measure(np.eye(7)[labels], labels)
    save_weights(path, model, Scores(figures, figures), config=Config(), data=data)
    return path

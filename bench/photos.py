"""From a photo to an answer: ours, the way of an afternoon, and the package `fer`.

    python -m bench.photos [--rounds 3] [--fer /path/of/an/environment/with/fer/bin/python]

The way of an afternoon: OpenCV's Haar cascade with its defaults, each box with 20 % margin, PyTorch in float32, one
face at a time, with our weights. Seconds to the first answer are of a whole process that reads one photo, imports
included. The photos are scikit-image's astronaut: alone in 12 megapixels (4000x3000), and twelve times in a picture.
Each way is a fresh process; the ways take turns, medians are shown. Run it on an idle machine.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import ways
from cli import Parser

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
Way = Callable[[], Callable[[str], int]]  # reads what it needs; the function then counts the faces in a photo


def ours() -> Callable[[str], int]:
    from predictor import Predictor

    predictor = Predictor()
    return lambda photo: len(predictor.faces(photo))


def afternoon() -> Callable[[str], int]:
    import cv2
    import torch

    from model import build_model

    content = torch.load(ROOT / "final_weights_new.pth", weights_only=True)
    model = build_model(content["model"], **content["arguments"])
    model.load_state_dict(content["state_dict"])
    model.eval()
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def count(photo: str) -> int:
        grey = cv2.imread(photo, cv2.IMREAD_GRAYSCALE)
        boxes = cascade.detectMultiScale(grey)
        for x, y, width, height in boxes:
            margin = width // 10
            face = cv2.resize(
                grey[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin], (48, 48)
            )
            with torch.no_grad():
                model(torch.from_numpy(face)[None, None].float() / 127.5 - 1).softmax(1)
        return len(boxes)

    return count


def fer() -> Callable[[str], int]:
    import cv2
    from fer.fer import FER

    detector = FER()
    return lambda photo: len(detector.detect_emotions(cv2.imread(photo)))


WAYS: dict[str, Way] = {"ours": ours, "afternoon": afternoon, "fer": fer}


def measure(way: str, folder: str, started: float) -> dict[str, float]:
    """Seconds from `started` to the first answer, and for 12 megapixels; faces/s and number of faces of a group."""
    count = WAYS[way]()
    count(f"{folder}/small.png")
    first, seconds = time.time() - started, {}
    for name in ("large.jpg", "group.jpg"):
        faces, start = count(f"{folder}/{name}"), time.perf_counter()
        for _ in range(REPEATS):
            count(f"{folder}/{name}")
        seconds[name] = (time.perf_counter() - start) / REPEATS
    return {"first": first, "photo": seconds["large.jpg"], "rate": faces / seconds["group.jpg"], "faces": faces}


def write_photos(folder: Path) -> None:
    import numpy as np
    import skimage
    from PIL import Image

    astronaut = skimage.data.astronaut()
    Image.fromarray(astronaut).save(folder / "small.png")
    wide = np.full((512, 683, 3), 90, np.uint8)
    wide[:, 80:592] = astronaut
    Image.fromarray(wide).resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=90)
    Image.fromarray(np.tile(astronaut[:, 100:400], (3, 4, 1))).save(folder / "group.jpg", quality=90)


def run(args: argparse.Namespace) -> int:
    from bench import common  # late: it takes seconds, which are none of the first answer's

    print(common.header())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder)
        found = ways.compare("photos.py", WAYS, lambda: {"folder": name, "started": time.time()}, args, folder)
    print(f"{'':<12}{'first answer, s':>18}{'12 megapixels, s':>18}{'group, faces/s':>18}{'faces of 12':>14}")
    for way, row in found.items():
        print(f"{way:<12}{row['first']:>18.2f}{row['photo']:>18.3f}{row['rate']:>18.1f}{row['faces']:>14.0f}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return ways.main(argv, Parser("-m bench.photos", __doc__.splitlines()[0]), measure, run)


if __name__ == "__main__":
    sys.exit(main())

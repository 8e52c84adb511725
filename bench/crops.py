"""The crop study: what finding and cutting a face out of a picture costs in accuracy.

    python -m bench.crops --data archive.zip [--faces 1000]

Validation faces, enlarged to several sizes, are pasted into rendered scenes, found by the detector and cut out in
several ways. A row gives the share found, the false faces, and the accuracy on those found: of FER2013's own pixels
(direct), of the pasted square (exact: what enlarging and shrinking cost), of the detector's box with margins, of the
rule of faces/crop.py without turning the face until the eyes are level, and of the rule. Nothing of a head is there
beyond the square, which is hard for the detector. Before, the rule's factor is fitted on training faces.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from cli import Parser, add_flags
from errors import SHIPPED, exit_status, find_weights
from faces.crop import SIDE, crop
from faces.detect import Box, Detector

SIZES = (40, 60, 100, 200, 400)  # pixels of the pasted faces
MARGINS = (0, 10, 20, 30, 40)  # % of the box's longer side
WIDTH, HEIGHT = 640, 480  # of a scene


def paste(face: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Return a scene (480, 640, 3) uint8 of soft colours and noise with `face` (48, 48) in it, and where it is."""
    colours = Image.fromarray(rng.integers(0, 256, (*rng.integers(3, 9, 2), 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    scene = (smooth + rng.normal(0, rng.uniform(0, 20), smooth.shape)).clip(0, 255).astype(np.uint8)
    left, top = int(rng.integers(0, WIDTH - size + 1)), int(rng.integers(0, HEIGHT - size + 1))
    large = np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC))
    scene[top : top + size, left : left + size] = large[:, :, None]
    return scene, Box(left, top, size, size)


def middle(box: Box) -> tuple[float, float]:
    return box.x + box.width / 2, box.y + box.height / 2


def is_at(box: Box, place: Box) -> bool:
    """Whether the middle of `box` is in the pasted square."""
    x, y = middle(box)
    return place.x < x < place.x + place.width and place.y < y < place.y + place.height


def square(scene: np.ndarray, box: Box, side: float) -> np.ndarray:
    """The square around the middle of `box`, cut as by the rule."""
    (x, y), width = middle(box), side / SIDE
    return crop(scene, Box(x - width / 2, y - width / 2, width, width))


def with_margin(scene: np.ndarray, box: Box, *, margin: int) -> np.ndarray:
    return square(scene, box, max(box.width, box.height) * (1 + margin / 100))


def unturned(scene: np.ndarray, box: Box) -> np.ndarray:
    return crop(scene, box._replace(landmarks=None))


CUTS: dict[str, Callable[[np.ndarray, Box], np.ndarray]] = {
    **{f"+{margin} %": partial(with_margin, margin=margin) for margin in MARGINS},
    "unturned": unturned,
    "rule": crop,
}


def run(args: argparse.Namespace) -> int:
    import torch

    from dataset import load
    from splits import stratified_rows
    from utils import pick_machine
    from val import BATCH, forward
    from weights import load_weights

    machine = pick_machine("cpu", "fp32", 1)
    model, _ = load_weights(find_weights(SHIPPED), machine=machine)
    data, detector, rng = load(args.config), Detector(), np.random.default_rng(0)

    def correct(pixels: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
        batches = torch.from_numpy(np.stack(pixels)).split(BATCH)
        return torch.cat([forward(model, batch, machine=machine) for batch in batches]).argmax(1).numpy() == labels

    train, val = (part.take(stratified_rows(part.labels, args.faces)) for part in map(data.split, ("train", "val")))
    factors = []
    for face in np.asarray(train.images):
        scene, place = paste(face, int(rng.integers(80, 401)), rng)
        boxes = [box for box in detector.find(scene) if is_at(box, place)]
        factors += [place.width / box.area**0.5 for box in boxes[:1]]
    print(f"{detector.kind}; side of FER2013's square / sqrt(width x height of the box): {np.median(factors):.3f}")
    print(f"(median of {len(factors)} training faces); the rule takes {SIDE}", flush=True)

    faces, labels = np.asarray(val.images), val.labels
    direct = correct(list(faces), labels)
    print(f"direct: {direct.mean():.1%} of {len(faces)} faces\n")
    columns = ("pixels", "found", "false", "direct", "exact", *CUTS)
    print("".join(f"{name:>10}" for name in columns))
    for size in SIZES:
        rng = np.random.default_rng(size)
        found, false, cuts = np.zeros(len(faces), bool), 0, {name: [] for name in columns[4:]}
        for at, face in enumerate(faces):
            scene, place = paste(face, size, rng)
            boxes = detector.find(scene)
            there = [box for box in boxes if is_at(box, place)]
            false += len(boxes) - len(there)
            found[at] = bool(there)
            for name, cut in CUTS.items() if there else ():
                cuts[name].append(cut(scene, there[0]))
            if there:
                cuts["exact"].append(square(scene, place, size))
        shares = [correct(pixels, labels[found]).mean() for pixels in cuts.values() if pixels]
        line = [f"{value:>10.1%}" for value in (direct[found].mean(), *shares)]
        print(f"{size:>10}{found.mean():>10.1%}{false:>10}" + "".join(line), flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.crops", __doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=1000, help="validation faces, and as many training faces (1000)")
    add_flags(parser, ("data", "cache"))
    return exit_status(run, parser.resolve(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""Rendered faces: a demo dataset for when there is no FER2013.

A face is painted at four times its size, shaded, reduced to 48x48, then lit, blurred and made noisy. An expression
is a set of facial action units (AU; Ekman and Friesen, Facial Action Coding System, 1978): an upper half (brows,
lids, cheeks, nose root) and a mouth, each with its own intensity. So both halves carry part of the emotion, and
neither shows it on every image.

    python -m demo.faces --out FOLDER      # FOLDER/train/<class>/*.png and FOLDER/val/<class>/*.png
"""

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cli import Parser
from config import CLASSES
from demo import strokes
from demo.strokes import LINE, Identity, Mouth, Stroke, Upper
from errors import UserError, exit_status
from readers.decode import SIZE
from readers.layout import RENDERED_MARK, Item
from readers.sources import Source

IDENTITIES, VAL_IDENTITIES = 400, 100  # of the demo dataset: 2,800 and 700 faces, minutes of training on two cores

# How hard the faces are. Weaker expressions and more jitter make the classes overlap. Chosen so that a classifier
# needs both halves of the face: docs/demo.md has its accuracy with and without --one-mouth.
UPPER_INTENSITY = (0.35, 1.1)  # range of the factor on UPPERS, sampled per image
MOUTH_INTENSITY = (0.75, 1.15)  # range of the factor on MOUTHS
JITTER = 0.09  # standard deviation of the noise on every action unit

UPPERS = {
    "angry": Upper(0, 0.25, 1, 0.3, 0, 0.7, 0.25, 0),
    "disgust": Upper(0, 0, 0.75, 0, 0.5, 0.7, 1, 0.1),
    "fear": Upper(1, 0.55, 0.5, 0.9, 0, 0, 0, 0),
    "happy": Upper(0.1, 0.15, 0, 0, 1, 0.2, 0, 0),
    "sad": Upper(0.9, -0.35, 0.4, 0, 0, 0.1, 0, 0.8),
    "surprise": Upper(1, 1, 0, 0.9, 0, 0, 0, 0),
    "neutral": Upper(0, 0, 0, 0, 0, 0, 0, 0),
}
AT_REST = Mouth(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
MOUTHS = {  # the ways to show an emotion; one is sampled per image
    "angry": (Mouth(-0.12, 0, 0, 0, 0.1, 1, 0, 0, 0.3, 0.1), Mouth(-0.4, 0.5, 1, 0.3, 0.1, 0.2, 1, 1, 0, 0.1)),
    "disgust": (Mouth(-0.2, 0, 0, 1, -0.1, 0, 0, 0, 0.6, 0.9), Mouth(-0.25, 0.25, 0.2, 1, 0, 0, 1, 0, 0.1, 0.8)),
    "fear": (
        Mouth(-0.55, 0.4, 0.8, 0, 0.55, 0.3, 0, 0.8, 0, 0.1),
        Mouth(-0.55, 0.6, 0.7, 0, 0.4, 0.2, 0.3, 0.5, 0, 0.1),
    ),
    "happy": (
        Mouth(1, 0.4, 0, 0.1, 0.5, 0.2, 1, 0, 0, 0.1),
        Mouth(1, 0.7, 0.1, 0.1, 0.4, 0.2, 1, 0.2, 0, 0.1),
        Mouth(0.9, 0, 0, 0, 0.4, 0.2, 0, 0, 0, 0.2),
    ),
    "sad": (Mouth(-1, 0, 0, 0, -0.1, 0, 0, 0, 0.8, 0.1), Mouth(-0.95, 0.2, 0, 0, 0.1, 0, 0, 0.2, 0.4, 0.1)),
    "surprise": (Mouth(-0.1, 1, 0.1, 0, -0.95, 0, 0, 0, 0, 0.05), Mouth(-0.1, 0.7, 0, 0, -0.8, 0, 0.2, 0, 0, 0.05)),
    "neutral": (AT_REST,),
}

ZOOM = (4, 2, 1)  # size of each layer's canvas, as a multiple of 48; blurred layers need fewer pixels
BLUR = (0.0, 1.3, 2.3)  # radius in pixels of the layer's own canvas


def _paint(strokes: list[Stroke], backdrop: float, pose: Sequence[float]) -> np.ndarray:
    """Grey levels (48, 48) float of the painted strokes. `pose`: dx, dy, turn (radians), scale, yaw (-1 to 1)."""
    dx, dy, turn, scale, yaw = pose
    counts = [len(s.points) for s in strokes]
    x, y = np.concatenate([s.points for s in strokes]).T
    depth = np.repeat([s.depth for s in strokes], counts)
    zooms = np.repeat([ZOOM[s.layer] for s in strokes], counts)
    x = x * (1 - 0.3 * yaw**2) + yaw * 5 * depth * (1 - np.minimum((x / 20) ** 2, 1))
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    placed = zooms * (SIZE / 2 + np.array([dx + cos * x - sin * y, dy + sin * x + cos * y]))
    layers = [Image.new("L", (SIZE * zoom, SIZE * zoom), 128) for zoom in ZOOM]
    layers[LINE].paste(int(backdrop), (0, 0, *layers[LINE].size))
    brushes = [ImageDraw.Draw(layer) for layer in layers]
    for stroke, own in zip(strokes, np.split(placed.T, np.cumsum(counts)[:-1]), strict=True):
        points = own.ravel().tolist()
        tone = int(min(max(128 + 1.28 * stroke.tone if stroke.layer else stroke.tone, 0), 255))
        if stroke.width:
            width = max(round(stroke.width * ZOOM[stroke.layer] * scale), 1)
            brushes[stroke.layer].line(points, fill=tone, width=width)
        else:
            brushes[stroke.layer].polygon(points, fill=tone)
    line, fold, broad = (
        np.asarray(layer.filter(ImageFilter.GaussianBlur(blur)).reduce(zoom), dtype=np.float32)
        for layer, blur, zoom in zip(layers, BLUR, ZOOM, strict=True)
    )
    return line * fold * broad / 128**2


ROWS, COLUMNS = np.mgrid[-1:1:48j, -1:1:48j].astype(np.float32)
_K = np.arange(8)
DCT = np.sqrt(np.where(_K == 0, 1, 2) / 8)[:, None] * np.cos(np.pi * (2 * _K + 1) * _K[:, None] / 16)
DCT_STEP = 8.0 + 3.0 * (_K[:, None] + _K)  # quantisation grows with the frequency, as in JPEG's luminance table


def _develop(picture: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """The (48, 48) float picture as a photo, uint8: with light, blur, sensor noise and JPEG-like blocks."""
    side = np.clip(COLUMNS, -0.8, 0.8)
    lamp = 1 + 0.25 * light * side + rng.uniform(-0.2, 0.05) * ROWS - 0.14 * (side**2 + 0.5 * ROWS**2)
    lit = 125 + rng.uniform(1.0, 1.25) * (picture * lamp - 125) + rng.uniform(-8, 10)
    blur, noise, loss = rng.uniform(0, 0.5), rng.uniform(0.5, 4.5), rng.uniform(0, 1.3)
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    soft = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    lit = np.asarray(soft, dtype=np.float32) + noise * grain
    if loss > 0.8:  # else stored without loss
        step = DCT_STEP * loss
        blocks = lit.reshape(6, 8, 6, 8).swapaxes(1, 2)
        blocks = DCT.T @ (np.round(DCT @ blocks @ DCT.T / step) * step) @ DCT
        lit = blocks.swapaxes(1, 2).reshape(SIZE, SIZE)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


def _expression(emotion: str, rng: np.random.Generator) -> tuple[Upper, Mouth]:
    """The action units of one picture: those of the emotion, each half at its own intensity, with jitter."""
    upper = np.array(UPPERS[emotion]) * rng.uniform(*UPPER_INTENSITY) + rng.normal(0, JITTER, 8)
    upper[2:] = np.maximum(upper[2:], (-0.15, 0, 0, 0, 0, 0))
    mouth = np.array(MOUTHS[emotion][rng.integers(len(MOUTHS[emotion]))], dtype=float)
    mouth[[0, 1, 3, 4, 5, 8, 9]] *= rng.uniform(*MOUTH_INTENSITY)
    mouth[[0, 3, 4, 5, 8, 9]] += rng.normal(0, JITTER, 6)
    mouth[1] += max(rng.normal(-0.1, 0.1), 0)
    mouth[5] = min(max(mouth[5], 0), 1)
    return Upper(*upper.tolist()), Mouth(*mouth.tolist())


def _face(who: Identity, emotion: str, rng: np.random.Generator, *, one_mouth: bool) -> np.ndarray:
    up, mouth = _expression(emotion, rng)
    mouth = AT_REST if one_mouth else mouth
    stronger, favoured = rng.normal(0, 1, 2)  # sides of the mouth and of the upper half
    light, yaw = rng.uniform(-1, 1), rng.uniform(-0.35, 0.35)
    pose = (*rng.uniform(-1, 1, 2), rng.normal(0, 0.06), rng.uniform(1.12, 1.26), yaw)
    backdrop, gaze = rng.uniform(0.3, 1.1) * who.skin, rng.normal(0, (0.45, 0.2))
    drop = 2.2 * mouth.open
    lines = strokes.head(who, drop) + strokes.nose(who, up, light) + strokes.wrinkles(who, up)
    for side in (-1, 1):
        less = 1 - 0.12 * max(side * favoured, 0)
        half = Upper(*(less * unit for unit in up))
        lines += [*strokes.eye(who, half, side, gaze), strokes.brow(who, half, side)]
    lines += strokes.beard(who, drop) + strokes.mouth(who, mouth, stronger) + strokes.glasses(who)
    exposure = (165 / who.skin) ** 0.9  # a camera brings most faces to about the same grey
    return _develop(_paint(lines, backdrop, pose) * exposure, light, rng)


def demo_faces(identities: int, *, seed: int, one_mouth: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every emotion of every identity, rendered: images, labels, identity.

    Images are (7 * identities, 48, 48) uint8; labels (index into CLASSES) and identity are int64 of that length.
    The same seed gives the same pixels, and identity i looks the same whatever `identities` is.
    With `one_mouth` every face has its identity's mouth at rest; all else is unchanged.
    """
    images = []
    for i in range(identities):
        who = Identity(np.random.default_rng([seed, i]))
        for label, emotion in enumerate(CLASSES):
            images.append(_face(who, emotion, np.random.default_rng([seed, i, label]), one_mouth=one_mouth))
    identity, labels = np.divmod(np.arange(len(images)), len(CLASSES))
    return np.stack(images), labels, identity


def demo_source() -> Source:
    """The demo dataset as a source; some identities are for validation."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    key = hashlib.sha256(code + bytes(f"{IDENTITIES} {VAL_IDENTITIES}", "ascii")).hexdigest()

    def items() -> list[Item]:
        faces = zip(*demo_faces(IDENTITIES + VAL_IDENTITIES, seed=0), strict=True)
        return [
            Item("", "train" if identity < IDENTITIES else "val", CLASSES[label], load=partial(np.asarray, image))
            for image, label, identity in faces
        ]

    total = len(CLASSES) * (IDENTITIES + VAL_IDENTITIES)
    return Source(Path("the rendered demo faces"), "demo", lambda: key, items, total, rendered=True)


def write_folder(folder: Path, *, identities: int, seed: int, one_mouth: bool = False) -> int:
    """Write FOLDER/train/<class>/*.png and, for the last fifth of the identities, FOLDER/val; exit status 0.

    Raises UserError where the folder exists or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): name a new folder with --out") from error
    (folder / RENDERED_MARK).touch()
    images, labels, who = demo_faces(identities, seed=seed, one_mouth=one_mouth)
    for image, label, i in zip(images, labels, who, strict=True):
        part = folder / ("train" if i < identities - max(identities // 5, 1) else "val") / CLASSES[label]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"face_{i:05d}.png")
    print(f"{len(images)} faces in {folder}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m demo.faces", "Render the demo faces and write them as a dataset.")
    parser.add_argument("--out", dest="folder", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--identities", type=int, default=500, metavar="N", help="people, 7 pictures each (500)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of every random number (0)")
    parser.add_argument("--one-mouth", action="store_true", help="render every mouth at rest")
    return exit_status(partial(write_folder, **vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())

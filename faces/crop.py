"""Cut a face out of a photo as FER2013's faces were cut.

    pixels = crop(image, box)  # (48, 48) uint8, for the network

The rule: a square around the centre of the detector's box, its side `SIDE` times the square root of the box's width
times height; where it leaves the photo, the edge is repeated. It is the median that YuNet's boxes of 2,198 training
faces of FER2013, pasted into scenes, have to their frames; it also is what OpenCV's cascade, which cut FER2013, gives
on photos. Landmarks give no better frame, and turning the face until the eyes are level changes nothing: the figures
are in docs/results.md, "Faces in photos" (`python -m bench.crops`).

The filter is Lanczos: after it, crops of photos have as much fine detail as FER2013's (in the finest quarter of the
frequencies 1.3 % of the power, FER2013 1.4, a bilinear filter 0.6), which is 1 point of accuracy.
"""

import numpy as np
from PIL import Image

from faces.detect import Box
from readers.decode import SIZE

SIDE = 1.15
WHOLE_SIDE = 64  # pixels: an image without a longer side is a face crop already; a photo has no room in it
SMALL_FACE = 40  # pixels: smaller ones are blurred at 48x48
DARK = 20  # mean grey level: 2 of 4,000 faces of FER2013 are darker
FLAT = 10  # standard deviation of the grey levels: the least of 4,000 is 14


def is_crop(width: int, height: int) -> bool:
    """Return whether an image of this size is taken whole, as a face crop: no side is above `WHOLE_SIDE`."""
    return max(width, height) <= WHOLE_SIDE


def frame(box: Box) -> tuple[float, float, float]:
    """Return left, top and side of the square around a face, in pixels of the photo."""
    side = SIDE * (box.width * box.height) ** 0.5
    return box.x + (box.width - side) / 2, box.y + (box.height - side) / 2, side


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Return the face in `box` as (48, 48) uint8 grey; `image` is (H, W, 3) uint8 RGB."""
    left, top, side = frame(box)
    reach = int(3 * max(1.0, side / SIZE)) + 2  # what the filter also reads around the square
    rows, columns = (np.arange(int(start) - reach, int(start + side) + reach) for start in (top, left))
    height, width = image.shape[:2]
    part = image[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    x, y = left - columns[0], top - rows[0]
    grey = Image.fromarray(part).convert("L")
    return np.array(grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)))


def notes(pixels: np.ndarray, box: Box | None = None) -> list[str]:
    """Return what makes the answer about a face doubtful: its (48, 48) uint8 pixels, and its box in the photo."""
    found = []
    if box and min(box.width, box.height) < SMALL_FACE:
        found.append(f"a small face ({box.width:.0f}x{box.height:.0f} pixels)")
    if pixels.std() < FLAT:
        found.append("nearly one colour")
    if pixels.mean() < DARK:
        found.append("very dark")
    return found

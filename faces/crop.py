"""Cut a face out of a photo as FER2013's faces were cut.

    pixels = crop(image, box)  # (48, 48) uint8, for the network

The rule: the photo is turned until the eyes are level, and a square is cut around the centre of the detector's box.
Its side is `SIDE` times the square root of the box's width times height: 1.10 is the median that YuNet's boxes of
training faces of FER2013, pasted into scenes, have to their frames. Where the square leaves the photo, the edge is
repeated. On 1,000 validation faces of 200 pixels the network is right for 70.6 % (without turning 69.8), for 71.1 %
from FER2013's own pixels; a box with 20 % margin gives 68.1 %: docs/results.md, "Faces in photos".

The filter is Lanczos: after it, crops of photos have as much fine detail as FER2013's (in the finest quarter of the
frequencies 1.3 % of the power, FER2013 1.4, a bilinear filter 0.6). That is worth 1 point.
"""

import numpy as np
from PIL import Image

from faces.detect import Box
from readers.decode import SIZE

SIDE = 1.1
WHOLE_SIDE = 64  # pixels: an image without a longer side is a face crop already; a photo has no room in it
SMALL_FACE = 40  # pixels: smaller ones are blurred at 48x48
DARK = 20  # mean grey level: 2 of 4,000 faces of FER2013 are darker
FLAT = 10  # standard deviation of the grey levels: the least of 4,000 is 14


def is_crop(width: int, height: int) -> bool:
    """Return whether an image of this size is taken whole, as a face crop: no side is above `WHOLE_SIDE`."""
    return max(width, height) <= WHOLE_SIDE


def frame(box: Box) -> tuple[float, float, float]:
    """Return left, top and side of the square around a face, in pixels of the photo."""
    side = SIDE * box.area**0.5
    return box.x + (box.width - side) / 2, box.y + (box.height - side) / 2, side


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Return the face in `box` as (48, 48) uint8 grey; `image` is (H, W, 3) uint8 RGB. Landmarks turn it upright."""
    left, top, side = frame(box)
    reach = int(3 * max(1.0, side / SIZE) + 0.21 * side) + 2  # what the filter and turning also read around the square
    rows, columns = (np.arange(int(start) - reach, int(start + side) + reach) for start in (top, left))
    height, width = image.shape[:2]
    part = image[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    x, y = left - columns[0], top - rows[0]
    grey = Image.fromarray(part).convert("L")
    if box.landmarks is not None:
        across, down = box.landmarks[1] - box.landmarks[0]
        angle = np.degrees(np.arctan2(down, across))
        grey = grey.rotate(angle, Image.Resampling.BICUBIC, center=(x + side / 2, y + side / 2))
    return np.array(grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)))


def notes(pixels: np.ndarray, box: Box | None = None) -> list[str]:
    """Return what makes the answer about a face doubtful: its (48, 48) uint8 pixels, and its box in the photo."""
    found = []
    if box and min(box.width, box.height) < SMALL_FACE:
        found.append(f"a small face ({box.width:.0f}x{box.height:.0f} pixels)")
    grey = pixels.astype(np.float32).ravel()
    if grey @ grey / grey.size - grey.mean() ** 2 < FLAT**2:  # the variance; np.var takes twice the time
        found.append("nearly one colour")
    if grey.mean() < DARK:
        found.append("very dark")
    return found

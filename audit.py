"""What is odd about a dataset, as `python dataset.py` prints it: copies, contradictions, empty or uncropped images."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np

from errors import UserError, counted, quoted
from readers.cache import DIGEST, digest_of
from readers.decode import SIZE
from splits import Split

# Training images in which faces are looked for, and the share of the side that a cropped face fills at least. Of 120
# images of FER2013, 6 show none to the detector and in 1 it fills less; in portraits it fills about a quarter.
LOOKED_AT, FILLED = 20, 0.6
FEW = 5  # images of a class


def audit(splits: Mapping[str, Split]) -> list[str]:
    """Lines about what a person would want to know of; nothing is changed or left out for it."""
    train = splits["train"]
    _, group, size = np.unique(train.digests, return_inverse=True, return_counts=True)
    lines = []
    few = [f"{name} ({count})" for name, count in zip(train.classes, train.counts(), strict=True) if count < FEW]
    lines += [f"  few train images to learn from: {', '.join(few)}"] if few else []
    if extra := len(train) - len(size):
        lines.append(f"  {counted(extra, 'train image')} with the pixels of another one")
    low, high = np.full(len(size), len(train.classes)), np.full(len(size), -1)
    np.minimum.at(low, group, train.labels)
    np.maximum.at(high, group, train.labels)
    if (torn := low != high).any():
        lines.append(
            f"  {counted(int(size[torn].sum()), 'train image')} in {counted(int(torn.sum()), 'group')} of one picture "
            f"under several classes"
        )
    for split in splits.values():
        flat = sum(int((part.min((1, 2)) == part.max((1, 2))).sum()) for part in parts(split))
        lines += [f"  {counted(flat, f'{split.name} image')} of one grey value"] if flat else []
        if split is not train and (mirrored := int((np.isin(flipped(split), train.digests) & ~split.copies).sum())):
            lines.append(f"  {mirrored} of the {split.name} images are in train too, mirrored")
    return lines


def parts(split: Split, size: int = 4096) -> Iterator[np.ndarray]:
    """The images of `split`, some at a time."""
    return (np.asarray(split.images[start : start + size]) for start in range(0, len(split), size))


def flipped(split: Split) -> np.ndarray:
    """The digests (N,) of the mirrored images of `split`."""
    mirrored = (image[:, ::-1].tobytes() for part in parts(split) for image in part)
    return np.frombuffer(b"".join(map(digest_of, mirrored)), DIGEST)


def uncropped_notes(train: Split, source: str) -> list[str]:
    """A note if most of some training images show no face, or one that fills less than `FILLED` of their side."""
    from faces.crop import frame  # late: OpenCV
    from faces.detect import Detector

    small = 0
    some = train.images[np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(int)]
    with suppress(UserError):  # without OpenCV there is no note
        detector = Detector()
        for pixels in some:
            sides = [frame(box)[2] / SIZE for box in detector.find(np.repeat(pixels[:, :, None], 3, axis=2))]
            small += max(sides, default=0) < FILLED
    if small <= len(some) / 2:
        return []
    return [
        f"note: these look like uncropped photos: in {small} of {len(some)} training images no face is found, or it "
        f"fills less than {FILLED:.0%} of the side. Crop them first: "
        f"python dataset.py --data {quoted(source)} --crop NEW_FOLDER"
    ]

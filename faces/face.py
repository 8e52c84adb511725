"""One face and what the network says about it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from config import CLASSES
from faces.crop import notes
from faces.detect import Box

NOT_SURE = "not sure"  # the answer below the threshold


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Face:
    """A face that was found, or an image that is one, and its probabilities."""

    box: Box | None  # in pixels of the photo; None where the image is a face crop that was taken whole
    pixels: np.ndarray  # (48, 48) uint8, as the network saw it
    probabilities: np.ndarray  # (C,) float32 in the order of `classes`
    threshold: float  # the least probability that makes an answer
    classes: tuple[str, ...] = CLASSES

    @property
    def emotion(self) -> str:
        """The likeliest class, whatever its probability."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Of `emotion`, in [0, 1]."""
        return float(self.probabilities.max())

    @property
    def sure(self) -> bool:
        return self.probability >= self.threshold

    @property
    def answer(self) -> str:
        """`emotion`, or "not sure" below the threshold."""
        return self.emotion if self.sure else NOT_SURE

    @property
    def notes(self) -> list[str]:
        """What makes the face doubtful: too small, too dark, ..."""
        return notes(self.pixels, self.box)


class Tracked(NamedTuple):
    """A face in a frame of a video: the number of its track, from 1, and what is said of it."""

    track: int
    face: Face  # of this frame alone
    smooth: Face  # with probabilities that are smoothed over time


class Frame(NamedTuple):
    """A frame of a video: its time and how long it is shown, (H, W, 3) uint8 RGB pixels, and the faces in it."""

    seconds: float
    duration: float
    image: np.ndarray
    faces: list[Tracked]

"""Which face is whose over time, by place and motion alone: no face is recognised.

    tracker = Tracker()
    for seconds, boxes in ...:  # in order of time
        numbers = tracker.update(seconds, boxes)  # one for each box

Boxes are given to tracks by the Hungarian method: the pairs whose overlaps have the largest sum. It is written out
here: prediction does not need scipy otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from faces.detect import Box, overlap

FORGET_SECONDS = 2.0  # a face that was away for longer gets a new number
LEAST_OVERLAP = 0.2  # intersection over union of a box and where its track is expected
MOTION_SECONDS = 0.3  # time constant of the velocity
COAST_SECONDS = 1.0  # a face that is not seen (another one is before it) is expected to move on for so long
REACH = 1.5  # in sides of the face, how far from where it was last seen or is expected a lost face is found
SMOOTH_SECONDS = 0.5  # time constant of the probabilities
GROWTH = 2.0  # and how many times as large or small


class Tracker:
    """Numbers the faces of one video, from 1. A face that is lost for at most `forget` seconds keeps its number."""

    def __init__(self, forget: float = FORGET_SECONDS) -> None:
        self.forget = forget
        self.tracks: dict[int, _Track] = {}
        self.count = 0  # of all tracks so far

    def update(self, seconds: float, boxes: Sequence[Box]) -> list[int]:
        """Return the track of each of the boxes found at `seconds`, which is later than before."""
        self.tracks = {number: each for number, each in self.tracks.items() if seconds - each.seconds <= self.forget}
        numbers, found = list(self.tracks), [0] * len(boxes)
        expected = [each.expected(seconds) for each in self.tracks.values()]
        overlaps = np.array([[overlap(box, place) for place in expected] for box in boxes])
        for row, column in assign(np.where(overlaps >= LEAST_OVERLAP, overlaps, 0.0)):
            found[row] = numbers[column]
        # A face that returns, or moved too fast for its boxes to overlap: the nearest track without a box
        near = sorted(
            (distance, row, number)
            for row, box in enumerate(boxes)
            for number, each in self.tracks.items()
            if (distance := each.distance(box, seconds)) <= REACH
        )
        for _, row, number in near:
            if not found[row] and number not in found:
                found[row] = number
        for row, box in enumerate(boxes):
            if found[row]:
                self.tracks[found[row]].move(box, seconds)
            else:
                self.count += 1
                found[row] = self.count
                self.tracks[self.count] = _Track(box, seconds)
        return found


@dataclass
class _Track:
    box: Box  # where it was last seen
    seconds: float  # when
    velocity: tuple[float, float] = (0.0, 0.0)  # of the box's centre, in pixels per second

    def expected(self, seconds: float) -> Box:
        """Where the face is at `seconds` if it moves on."""
        since = min(seconds - self.seconds, COAST_SECONDS)
        return self.box._replace(x=self.box.x + since * self.velocity[0], y=self.box.y + since * self.velocity[1])

    def distance(self, box: Box, seconds: float) -> float:
        """From where it was last seen or is expected to `box`, in sides of the face; infinite if sizes do not fit."""
        side, other = (math.sqrt(each.area) for each in (self.box, box))
        if max(side, other) > GROWTH * min(side, other):
            return math.inf
        places = (self.box, self.expected(seconds))
        return min(math.dist(_centre(place), _centre(box)) for place in places) / max(side, other)

    def move(self, box: Box, seconds: float) -> None:
        passed = seconds - self.seconds
        weight = step_weight(passed, MOTION_SECONDS)
        moved = (new - old for new, old in zip(_centre(box), _centre(self.box), strict=True))
        self.velocity = tuple(  # type: ignore[assignment]
            old + weight * (way / passed - old) for old, way in zip(self.velocity, moved, strict=True)
        )
        self.box, self.seconds = box, seconds


def _centre(box: Box) -> tuple[float, float]:
    return box.x + box.width / 2, box.y + box.height / 2


def between(one: Box, other: Box, share: float) -> Box:
    """Return the box at `share` of the way from `one` to `other`, a number from 0 to 1; landmarks too."""
    place = (a + share * (b - a) for a, b in zip(one[:5], other[:5], strict=True))
    if one.landmarks is None or other.landmarks is None:
        return Box(*place)
    return Box(*place, one.landmarks + share * (other.landmarks - one.landmarks))


def assign(gains: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (row, column), each row and column in one at most, whose `gains` (R, C) have the largest sum.

    Gains are at least 0; pairs of gain 0 are left out. The Hungarian method with potentials, O(R^2 C) (Kuhn 1955, in
    the form of Jonker and Volgenant 1987, doi.org/10.1007/BF02278710).
    """
    if not gains.size:
        return []
    if len(gains) > len(gains[0]):
        return sorted((row, column) for column, row in assign(gains.T))
    rows, columns = gains.shape
    costs = np.zeros((rows + 1, columns + 1))  # row 0 and column 0 stand for "none"
    costs[1:, 1:] = -gains
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, int)  # the row that has each column
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, used = np.full(columns + 1, math.inf), np.zeros(columns + 1, bool)
        came_from = np.zeros(columns + 1, int)
        while owner[column]:
            used[column] = True
            reduced = costs[owner[column]] - row_price[owner[column]] - column_price
            better = ~used & (reduced < least)
            least[better], came_from[better] = reduced[better], column
            free = np.where(used, math.inf, least)
            free[0] = math.inf
            nearest = int(free.argmin())
            step = free[nearest]
            row_price[owner[used]] += step
            column_price[used] -= step
            least[~used] -= step
            column = nearest
        while column:
            owner[column] = owner[came_from[column]]
            column = int(came_from[column])
    pairs = ((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])
    return sorted(pair for pair in pairs if gains[pair] > 0)


# --- Smoothing ---


def step_weight(seconds: float, constant: float) -> float:
    """Return the weight of a new value `seconds` after the last one, in a mean with that time constant in seconds.

    1 - exp(-seconds / constant): two short steps weigh what one long step does, so it is exact for any time stamps.
    """
    return -math.expm1(-seconds / constant) if constant > 0 else 1.0


class Smoother:
    """Exponential means of the probabilities of each track; after `constant` seconds 63 % of a change is seen."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self.means: dict[int, tuple[float, np.ndarray]] = {}

    def update(self, track: int, seconds: float, probabilities: np.ndarray) -> np.ndarray:
        """Return the smoothed probabilities (7,) float32 of `track` at `seconds`, of all it had so far."""
        before, mean = self.means.get(track, (seconds, probabilities))
        mean = mean + step_weight(seconds - before, self.constant) * (probabilities - mean)
        self.means[track] = seconds, mean
        return mean

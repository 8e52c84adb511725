"""How sure a figure is: intervals over seeds and over images, paired tests, and corrections for many of them.

Hits are (S, N) bool: whether the networks of S seeds name each of N images right. Two kinds of chance are kept apart:
`interval` asks whether other trainings would show a difference, everything else whether other images would, with the
networks as they are.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, stdtrit

from config import CLASSES

PAIRS = tuple((a, b) for a in range(len(CLASSES)) for b in range(a + 1, len(CLASSES)))  # 21, by index into CLASSES
LEVEL = 0.05  # an adjusted p below this is called shown
DRAWS = 10_000  # of the bootstrap
AT_ONCE = 200  # of them, to bound the memory


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, all in percent (or points, where it is a difference)."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 where all of the interval is above zero, -1 where all is below, else 0."""
        return (self.low > 0) - (self.high < 0)


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of 2 or more paired differences, and half of its 95 % interval by Student's t, in their unit.

    With the difference of each seed it says what other seeds would show.
    """
    count = len(differences)
    half = stdtrit(count - 1, 0.975) * statistics.stdev(differences) / math.sqrt(count)
    return float(statistics.mean(differences)), float(half)


def proportion(hits: np.ndarray) -> Interval:
    """The mean of hits (S, N) bool in percent, with its 95 % interval over images."""
    return bootstrap(hits, np.zeros_like(hits))


def bootstrap(first: np.ndarray, second: np.ndarray) -> Interval:
    """The mean of the hits `first` less `second`, (S, N) bool each, in points, with its 95 % interval over images.

    The N images are sampled anew DRAWS times, the same for both and for all S seeds (the percentile bootstrap, see
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Those with the same difference, summed over the
    seeds, are interchangeable, so their counts are sampled: a few numbers, not N.
    """
    sums, total = gaps(first, second), first[0].size
    values, counts = np.unique(sums, return_counts=True)
    rng = np.random.default_rng(0)
    sampled = [rng.multinomial(total, counts / total, AT_ONCE) @ values for _ in range(DRAWS // AT_ONCE)]
    low, high = np.quantile(np.concatenate(sampled), (0.025, 0.975))
    return Interval(*(float(100 * value / first.size) for value in (sums.sum(), low, high)))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(S,) the macro-F1 of each seed in percent: the mean F1 of the classes that have images.

    `labels` (N,) and `predicted` (S, N) hold indices into CLASSES.
    """
    marks = np.eye(len(CLASSES))
    true, named = marks[labels], marks[predicted]  # (N, C) and (S, N, C)
    f1 = 2 * (true * named).sum(1) / np.maximum(true.sum(0) + named.sum(1), 1)
    return 100 * f1[:, true.sum(0) > 0].mean(1)


def sign_flip(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p-value of the difference between `first` and `second`, (S, N) bool each, over images.

    An image's difference is averaged over the seeds. If the two kinds of network were alike, its sign would be a fair
    coin: p is the probability that the sum over images is then as far from zero as it is, over all 2^N signs (the
    sign-flip permutation test). With one seed this is McNemar's exact test. McNemar's test over the pooled images of
    several seeds would count each image once per seed: the networks of all seeds fail on the same hard images, so
    those are not S N independent trials, and p would come out too small.
    """
    sums = gaps(first, second)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    total = np.ones(1)  # probabilities of the sums -end, -end + 2, ... end of the images so far
    for size, count in zip(sizes, counts, strict=True):
        heads = np.arange(count + 1)  # images of this size whose sign is positive: binomial
        chances = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * math.log(2)
        own = np.zeros(size * count + 1)
        own[size * heads] = np.exp(chances)
        total = np.convolve(total, own)
    there = np.arange(len(total)) * 2 - (len(total) - 1)
    return float(min(1.0, total[np.abs(there) >= abs(int(sums.sum()))].sum()))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p-values of several tests, adjusted by Holm's step-down method (1979), in the order given.

    Calling those below 0.05 shown keeps the chance of even one false call below 5 %, however the tests depend on each
    other.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def confused(labels: np.ndarray, predicted: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """Whether an image of either class of `pair` is named as the other: bool in the shape of `predicted`, (..., N).

    `labels` (N,) and `predicted` hold indices into CLASSES.
    """
    a, b = pair
    return ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))


def gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) int64, the hits of `first` less those of `second`, summed over the seeds."""
    return (first.astype(np.int64) - second).sum(0)

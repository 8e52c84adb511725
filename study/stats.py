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

from config import CLASSES

PAIRS = tuple((a, b) for a in range(len(CLASSES)) for b in range(a + 1, len(CLASSES)))  # 21, by index into CLASSES
LEVEL = 0.05  # an adjusted p below this is called shown
DRAWS = 10_000  # of the bootstrap
F1_DRAWS = 2_000  # of the bootstrap of macro-F1, each of which counts classes anew
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


class Discordant(NamedTuple):
    """Images that count for only one of two networks, and the two-sided p-value of their difference."""

    first: int
    second: int
    p: float


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of 2 or more paired differences, and half of its 95 % interval by Student's t, in their unit.

    With the difference of each seed it says what other seeds would show. Raises ValueError for fewer than 2.
    """
    from scipy.special import stdtrit  # late: --help need not wait for scipy

    count = len(differences)
    if count < 2:
        raise ValueError(f"differences: 2 or more are needed for an interval, got {count}")
    spread = statistics.stdev(map(float, differences)) / math.sqrt(count)
    return statistics.mean(map(float, differences)), float(stdtrit(count - 1, 0.975)) * spread


def proportion(hits: np.ndarray) -> Interval:
    """The mean of hits (S, N) bool in percent, with its 95 % interval over images.

    The images are drawn anew together for all seeds. Raises ValueError where there is no image.
    """
    return _resampled(_by_seed(hits, "hits").sum(0), len(hits))


def bootstrap(first: np.ndarray, second: np.ndarray) -> Interval:
    """The mean of the hits `first` less `second`, (S, N) bool each, in points, with its 95 % interval over images.

    The N images are drawn anew DRAWS times, the same for both and for all S seeds (the percentile bootstrap, see
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Raises ValueError where the shapes differ.
    """
    return _resampled(_gaps(first, second), len(first))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(S,) float64, the macro-F1 of each seed in percent: the mean F1 of the classes that have images.

    `labels` (N,) and `predicted` (S, N) hold indices into CLASSES. Raises ValueError where shapes do not fit.
    """
    kinds, counts = _kinds(labels, predicted)
    return 100 * _mean_f1(kinds, counts[None])[:, 0]


def macro_f1_interval(labels: np.ndarray, predicted: np.ndarray, draws: int = F1_DRAWS, seed: int = 0) -> Interval:
    """The macro-F1 in percent, mean over the seeds, with its 95 % interval over images.

    As in `bootstrap` the images are drawn anew together for all seeds. A class that a draw leaves without images does
    not count in that draw. Takes what `macro_f1` does.
    """
    kinds, counts = _kinds(labels, predicted)
    rng, total, found = np.random.default_rng(seed), int(counts.sum()), []
    for start in range(0, draws, AT_ONCE):
        drawn = rng.multinomial(total, counts / total, min(AT_ONCE, draws - start))
        found.append(_mean_f1(kinds, drawn).mean(0))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    mean = _mean_f1(kinds, counts[None]).mean()
    return Interval(*(float(100 * value) for value in (mean, low, high)))


def sign_flip(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p-value of the difference between `first` and `second`, (S, N) bool each, over images.

    An image's difference is averaged over the seeds. If the two kinds of network were alike, its sign would be a fair
    coin: p is the probability that the sum over images is then as far from zero as it is, over all 2^N signs (the
    sign-flip permutation test). With one seed this is McNemar's exact test. McNemar's test over the pooled images of
    several seeds would count each image once per seed: the networks of all seeds fail on the same hard images, so
    those are not S N independent trials, and p would come out too small. Raises ValueError where the shapes differ.
    """
    from scipy.special import gammaln  # late: --help need not wait for scipy

    gaps = _gaps(first, second)  # in S-ths, whole numbers
    sizes, counts = np.unique(np.abs(gaps[gaps != 0]), return_counts=True)
    total = np.ones(1)  # probabilities of the sums -end, -end + 2, ... end of the images so far
    for size, count in zip(sizes, counts, strict=True):
        heads = np.arange(count + 1)  # images of this size whose sign is positive: binomial
        chances = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * math.log(2)
        own = np.zeros(size * count + 1)
        own[size * heads] = np.exp(chances)
        total = np.convolve(total, own)
    sums = np.arange(len(total)) * 2 - (len(total) - 1)
    return float(min(1.0, total[np.abs(sums) >= abs(int(gaps.sum()))].sum()))


def mcnemar(first: np.ndarray, second: np.ndarray) -> Discordant:
    """McNemar's exact test of two networks on the same images: hits, or misses, (N,) bool of each.

    Of the images that count for one of them alone, either has half by chance (two-sided binomial; doi
    10.1007/BF02295996). It is for one network against one, not for several seeds: see `sign_flip`.
    """
    from scipy.special import bdtr

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"first and second: expected (N,) both, got {first.shape} and {second.shape}")
    only = int((first & ~second).sum()), int((second & ~first).sum())
    return Discordant(*only, min(1.0, 2 * float(bdtr(min(only), sum(only), 0.5))) if sum(only) else 1.0)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p-values of several tests, adjusted by Holm's step-down method (1979), in the order given.

    Calling those below 0.05 shown keeps the chance of even one false call below 5 %, however the tests depend on each
    other. Raises ValueError for a value outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: expected a list of numbers in [0, 1], got {p_values!r}")
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


def _by_seed(hits: np.ndarray, name: str) -> np.ndarray:
    hits = np.asarray(hits)
    if hits.ndim != 2 or not hits.size:
        raise ValueError(f"{name}: expected (S, N) with a seed and an image at least, got {hits.shape}")
    return hits.astype(np.int64)


def _gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) int64, the hits of `first` less those of `second`, summed over the seeds."""
    one, other = _by_seed(first, "first"), _by_seed(second, "second")
    if one.shape != other.shape:
        raise ValueError(f"first and second: expected the same seeds and images, got {one.shape} and {other.shape}")
    return (one - other).sum(0)


def _resampled(sums: np.ndarray, seeds: int) -> Interval:
    """The mean of (N,) int64 sums over `seeds` seeds, in percent, and its percentile interval over images.

    Images with the same sum are interchangeable, so it is their numbers that are drawn: a few at a time, not N.
    """
    values, counts = np.unique(sums, return_counts=True)
    rng, total = np.random.default_rng(0), len(sums)
    drawn = [rng.multinomial(total, counts / total, AT_ONCE) @ values for _ in range(DRAWS // AT_ONCE)]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return Interval(*(float(100 * value / (seeds * total)) for value in (sums.sum(), low, high)))


def _kinds(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kinds of images, (1 + S, K) of their label and what each seed names them, and how many of each there are.

    Images of one kind are interchangeable, as in `_resampled`.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if predicted.ndim != 2 or not predicted.size or labels.shape != predicted.shape[1:]:
        raise ValueError(
            f"labels and predicted: expected (N,) and (S, N) with a seed and an image at least, "
            f"got {labels.shape} and {predicted.shape}"
        )
    return np.unique(np.vstack([labels, predicted]), axis=1, return_counts=True)


def _mean_f1(kinds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(S, D) macro-F1 in [0, 1] of each seed where there are `counts` (D, K) images of each of the `kinds`."""
    marks = np.eye(len(CLASSES))[kinds]  # (1 + S, K, classes)
    weights = counts.astype(np.float64)
    true, named = weights @ marks[0], weights @ marks[1:]  # (D, classes) and (S, D, classes)
    hits = weights @ (marks[0] * marks[1:])
    f1 = 2 * hits / np.maximum(true + named, 1)  # 0 for a class without images: it has no hits
    return f1.sum(2) / (true > 0).sum(1)

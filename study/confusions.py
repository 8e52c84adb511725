"""Which classes a study's networks take for each other: rates with intervals, and paired tests of two of them.

Everything is counted without the validation images that also stand in train.
"""

from typing import NamedTuple

import numpy as np

from config import CLASSES
from study.results import Configuration, Study
from study.stats import (
    LEVEL,
    PAIRS,
    Discordant,
    Interval,
    bootstrap,
    confused,
    holm,
    interval,
    mcnemar,
    proportion,
    sign_flip,
)


class PairResult(NamedTuple):
    """How often two classes are taken for each other, by the base, or what else it is held to, and the best mixture."""

    pair: tuple[int, int]
    images: int  # of both classes
    base: float  # images confused, the mean over seeds
    best: float
    change: Interval  # best less base, in images, with its interval over images
    seeds: tuple[float, float] | None  # its mean and half of its interval over seeds; None with one seed
    p: float  # of McNemar's exact test with one seed, else of the sign-flip test
    adjusted: float  # over all pairs
    together: bool | None  # whether an expert has both classes; None where that differs between seeds
    discordant: Discordant | None  # with one seed; first are the images that the base alone confuses

    @property
    def name(self) -> str:
        return " / ".join(CLASSES[index] for index in self.pair)

    @property
    def sign(self) -> int:
        """1 where fewer images are shown to be confused by the mixture, -1 where more are, else 0."""
        return -self.change.sign if self.adjusted < LEVEL else 0


class SeedTest(NamedTuple):
    """McNemar's test of one seed's two networks on a pair of classes, adjusted for all tests made so."""

    pair: PairResult
    seed: int
    found: Discordant  # first are the images that the base alone confuses
    adjusted: float


class Share(NamedTuple):
    """Images confused within the experts' groups, or across them: means over seeds, their difference, adjusted p."""

    base: float
    best: float
    change: Interval  # best less base, in images
    seeds: tuple[float, float] | None  # its mean and half of its interval over seeds; None with one seed
    adjusted: float

    @property
    def sign(self) -> int:
        """1 where more images are shown to be confused by the mixture, -1 where fewer are, else 0."""
        return self.change.sign if self.adjusted < LEVEL else 0


def confusion_shares(study: Study, configuration: Configuration) -> np.ndarray:
    """(7, 7) shares of the images of a true class (row) named as a class, mean over seeds; NaN without images."""
    size = len(CLASSES)
    true, predicted = study.labels[study.deduplicated], configuration.predicted[:, study.deduplicated]
    counts = np.stack([np.bincount(true * size + row, minlength=size**2).reshape(size, size) for row in predicted])
    images = counts.sum(2, keepdims=True)
    shares = counts / np.maximum(images, 1)
    return np.where(images > 0, shares, np.nan).mean(0)


def wrong_pairs(study: Study, configuration: Configuration, pair: tuple[int, int]) -> np.ndarray:
    """(S, images) bool, the images of `pair` that are taken for the other class."""
    return confused(study.labels[study.deduplicated], configuration.predicted[:, study.deduplicated], pair)


def pair_rate(study: Study, configuration: Configuration, pair: tuple[int, int]) -> Interval | None:
    """The images of `pair` that are taken for the other class, in % of both classes' images, mean over seeds.

    Its interval is over the images of the two classes. None where there are none.
    """
    own = np.isin(study.labels[study.deduplicated], pair)
    return proportion(wrong_pairs(study, configuration, pair)[:, own]) if own.any() else None


def in_images(gap: Interval, images: int) -> Interval:
    """A difference in points of all `images` as one in images."""
    return Interval(*(value * images / 100 for value in gap))


def over_seeds(base: np.ndarray, mixed: np.ndarray) -> tuple[float, float] | None:
    """How many more images (S, images) are confused by the second: the mean and half of its interval over seeds."""
    return interval(mixed.sum(1) - base.sum(1)) if len(base) > 1 else None


def compare_pairs(study: Study, base_of: Configuration, best: Configuration) -> list[PairResult]:
    """How often each of the 21 pairs is confused, by `base_of` and by `best`."""
    shared, labels = share_expert(best), study.labels[study.deduplicated]
    known = not study.has_other_groups(best)
    both = [(wrong_pairs(study, base_of, pair), wrong_pairs(study, best, pair)) for pair in PAIRS]
    alone = [mcnemar(base[0], mixed[0]) if len(base) == 1 else None for base, mixed in both]
    p_values = [one.p if one else sign_flip(*each) for one, each in zip(alone, both, strict=True)]
    found = []
    for pair, (base, mixed), one, p, adjusted in zip(PAIRS, both, alone, p_values, holm(p_values), strict=True):
        found.append(
            PairResult(
                pair=pair,
                images=int(np.isin(labels, pair).sum()),
                base=float(base.sum(1).mean()),
                best=float(mixed.sum(1).mean()),
                change=in_images(bootstrap(mixed, base), len(labels)),
                seeds=over_seeds(base, mixed),
                p=p,
                adjusted=float(adjusted),
                together=bool(shared[pair]) if known else None,
                discordant=one,
            )
        )
    return found


def each_seed(study: Study, pairs: list[PairResult], best: Configuration) -> list[SeedTest]:
    """McNemar's test of the base against `best` on each of `pairs` and with each of several seeds; none with one.

    With one seed `compare_pairs` makes these very tests, for all pairs.
    """
    if len(study.seeds) == 1:
        return []
    both = [
        (one, seed, mcnemar(base, mixed))
        for one in pairs
        for seed, base, mixed in zip(
            study.seeds, wrong_pairs(study, study.base, one.pair), wrong_pairs(study, best, one.pair), strict=True
        )
    ]
    adjusted = holm([found.p for _, _, found in both])
    return [SeedTest(*each, float(p)) for each, p in zip(both, adjusted, strict=True)]


def share_expert(mixture: Configuration) -> np.ndarray:
    """(7, 7) bool, whether one of the experts has both classes."""
    has = np.array([[name in group for name in CLASSES] for group in mixture.groups])
    return np.einsum("ea,eb->ab", has.astype(int), has.astype(int)) > 0


def compare_groups(study: Study, base_of: Configuration, best: Configuration) -> tuple[Share, Share] | None:
    """Confusions, by `base_of` and by `best`, of classes that share an expert of `best`, and of others.

    None where all share one or none does, and where that differs between seeds.
    """
    shared = share_expert(best)
    if len({bool(shared[pair]) for pair in PAIRS}) == 1 or study.has_other_groups(best):
        return None
    labels, found = study.labels[study.deduplicated], []
    for inside in (True, False):
        both = []
        for one in (base_of, best):
            predicted = one.predicted[:, study.deduplicated]
            both.append((predicted != labels) & (shared[labels, predicted] == inside))
        found.append(both)
    adjusted = holm([sign_flip(*both) for both in found])
    within, across = (
        Share(
            float(base.sum(1).mean()),
            float(mixed.sum(1).mean()),
            in_images(bootstrap(mixed, base), len(labels)),
            over_seeds(base, mixed),
            float(p),
        )
        for (base, mixed), p in zip(found, adjusted, strict=True)
    )
    return within, across

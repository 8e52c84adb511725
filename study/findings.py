"""What a study found: accuracies, paired differences with verdicts, confusions, the gate's choices.

Everything is deduplicated: scored without the validation images that are also in train, unless it is called official.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config import CLASSES
from study.results import Configuration, Study
from study.stats import LEVEL, PAIRS, Interval, bootstrap, confused, holm, interval, macro_f1, proportion, sign_flip


class Gap(NamedTuple):
    """A paired difference, first less second, in points: its intervals, and p corrected for the tests made together."""

    images: Interval
    seeds: tuple[float, float] | None  # mean and half width over seeds; None with one seed
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 where a difference is shown over images: by the interval and by p; else 0."""
        return self.images.sign if self.p < LEVEL else 0

    @property
    def shown(self) -> int:
        """The sign, where the interval over seeds agrees, if there are several. One without width shows nothing."""
        if self.seeds is None:
            return self.sign
        mean, half = self.seeds
        return self.sign if half and self.sign * mean > half else 0

    def verdict(self, more: str = "better", less: str = "worse") -> str:
        if not self.sign:
            return "no difference shown"
        word = more if self.sign > 0 else less
        return word if self.shown else f"{word}, but not over seeds"


class Score(NamedTuple):
    """What a configuration reached, in percent, for each seed; `gain` is over the base, None for the base."""

    of: Configuration
    official: list[float]
    accuracy: list[float]  # deduplicated
    macro_f1: list[float]  # deduplicated
    interval: Interval  # of accuracy, over images
    gain: Gap | None


class Against(NamedTuple):
    """Two configurations and how far the first is ahead."""

    first: Configuration
    second: Configuration
    gap: Gap


class Pair(NamedTuple):
    """Images of two classes, or of several pairs, that are taken for the other class: means over seeds."""

    name: str
    shared: bool | None  # whether an expert of the best mixture has both classes; None where seeds differ
    images: int
    first: float
    second: float
    gap: Gap  # second less first, in images


class Gate(NamedTuple):
    """What the gate of the best mixture does with its E experts; shares in [0, 1], over deduplicated images."""

    load: np.ndarray  # (E,) mean weight
    chosen: np.ndarray  # (E,) share of images for which an expert has the most weight
    per_class: np.ndarray  # (C, E) mean weight over the images of a class
    least: float  # the smallest mean weight of an expert with any seed
    own: float  # weight on the experts that have the true class
    blind: float  # the same if every image had the mean weights of its seed


class Findings(NamedTuple):
    study: Study
    scores: list[Score]  # in the order of the configurations
    base: Score
    best: Score  # the mixture with the highest mean accuracy
    controls: list[Against]  # the best mixture against each control; of control mixtures those of its variant
    variants: list[Against]  # soft gating against top-1, and the last stage against none, of each grouping
    rival: Configuration  # what pairs are compared with: the control with an expert's schedule, or the base
    pairs: list[Pair]  # base against best mixture: 21, then those that share an expert and those that do not
    pairs_rival: list[Pair]  # the same, rival against best mixture
    gate: Gate


def find(study: Study) -> Findings:
    """The Findings of `study`."""
    base, best, others = study.base, study.best, study.configurations[1:]
    gains = [None, *(one.gap for one in compare(study, [(one, base) for one in others]))]
    scores = [score(study, one, gain) for one, gain in zip(study.configurations, gains, strict=True)]
    controls = [one for one in others if one.control and one.variant in ("", best.variant) and one is not best]
    variants = [
        (first, second)
        for first in others
        for second in others
        if first.grouping == second.grouping != "" and first.variant == "together" != second.variant
    ]
    rival = next((one for one in others if one.name == "schedule"), base)
    return Findings(
        study=study,
        scores=scores,
        base=scores[0],
        best=next(one for one in scores if one.of is best),
        controls=compare(study, [(best, one) for one in controls]),
        variants=compare(study, variants),
        rival=rival,
        pairs=compare_pairs(study, base, best),
        pairs_rival=compare_pairs(study, rival, best),
        gate=look_at_gate(study),
    )


def score(study: Study, one: Configuration, gain: Gap | None) -> Score:
    hits, official = study.hits(one), one.predicted == study.labels
    accuracies = ((100 * each.mean(1)).tolist() for each in (official, hits))
    return Score(one, *accuracies, macro_f1(study.true, study.named(one)).tolist(), proportion(hits), gain)


def compare(study: Study, both: Sequence[tuple[Configuration, Configuration]]) -> list[Against]:
    """How far each first configuration is ahead of its second in accuracy; p is corrected for all of them."""
    gaps = gaps_of([(study.hits(first), study.hits(second)) for first, second in both])
    return [Against(first, second, gap) for (first, second), gap in zip(both, gaps, strict=True)]


def gaps_of(both: Sequence[tuple[np.ndarray, np.ndarray]], scale: float = 1.0) -> list[Gap]:
    """The Gap of each first (S, N) bool over its second, times `scale`; p is corrected for all of them."""
    found = []
    for (first, second), p in zip(both, holm([sign_flip(*each) for each in both]), strict=True):
        per_seed = 100 * scale * (first.mean(1) - second.mean(1))
        images = Interval(*(scale * value for value in bootstrap(first, second)))
        found.append(Gap(images, interval(per_seed) if len(per_seed) > 1 else None, float(p)))
    return found


def compare_pairs(study: Study, one: Configuration, best: Configuration) -> list[Pair]:
    """How often the classes of each of the 21 pairs are confused by `one` and by the mixture `best`.

    Then two rows, corrected together: all pairs that share an expert of `best`, and all others. They are left out
    where all pairs share one or none does, and where the groups differ between seeds.
    """
    labels, groups = study.true, [{CLASSES.index(name) for name in group} for group in best.groups[0]]
    shared = np.array([any({*pair} <= group for group in groups) for pair in PAIRS])
    wrong = np.array([[confused(labels, study.named(each), pair) for each in (one, best)] for pair in PAIRS])
    parts = [([" / ".join(CLASSES[c] for c in pair) for pair in PAIRS], np.eye(len(PAIRS), dtype=bool))]
    if best.same_groups and shared.any() and not shared.all():
        parts.append((["all that share an expert", "all that share none"], np.array([shared, ~shared])))
    found = []
    for names, masks in parts:
        both = [wrong[mask].any(0) for mask in masks]  # (2, S, N) each
        gaps = gaps_of([(second, first) for first, second in both], scale=len(labels) / 100)
        for name, mask, (first, second), gap in zip(names, masks, both, gaps, strict=True):
            images = int(np.isin(labels, np.array(PAIRS)[mask]).sum())
            means = float(first.sum(1).mean()), float(second.sum(1).mean())
            found.append(Pair(name, bool(shared[mask.argmax()]) if best.same_groups else None, images, *means, gap))
    return found


def look_at_gate(study: Study) -> Gate:
    """What the gate of the best mixture does, over all seeds, or over the first where the groups differ."""
    best, inside = study.best, study.inside[study.best.name]
    seeds = slice(None if best.same_groups else 1)
    chosen, means = inside.chosen[seeds][:, ~study.copies], inside.gate[seeds]
    has = np.array([[name in group for group in best.groups[0]] for name in CLASSES])  # (C, E)
    shares = np.bincount(study.true, minlength=len(CLASSES)) / len(study.true)
    load = np.einsum("c,sce->se", shares, means)
    return Gate(
        load=load.mean(0),
        chosen=np.bincount(chosen.ravel(), minlength=has.shape[1]) / chosen.size,
        per_class=means.mean(0),
        least=float(load.min()),
        own=float(np.einsum("c,sce,ce->s", shares, means, has).mean()),
        blind=float(np.einsum("c,se,ce->s", shares, load, has).mean()),
    )


def confusion_shares(study: Study, one: Configuration) -> np.ndarray:
    """(C, C) shares of the images of a true class (row) that are named as a class, mean over seeds."""
    named, marks = study.named(one), np.eye(len(CLASSES))
    return np.stack([marks[named[:, study.true == label]].mean((0, 1)) for label in range(len(CLASSES))])

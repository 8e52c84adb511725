"""What a study found: accuracies, paired differences, the gate's choices, the features' neighbours.

Everything is scored without the validation images that also stand in train, unless it is called official.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np

from config import CLASSES
from study.confusions import PairResult, SeedTest, Share, compare_groups, compare_pairs, each_seed
from study.results import Configuration, Study
from study.stats import LEVEL, Interval, bootstrap, holm, interval, macro_f1, macro_f1_interval, proportion, sign_flip

WORST = 3  # pairs of classes that are looked at closely
NEIGHBOURS = 10  # of an image, by its features


class Gap(NamedTuple):
    """How far one configuration is ahead of another, in points."""

    images: Interval
    seeds: tuple[float, float] | None  # the mean and half of its interval over seeds; None with one seed
    p: float  # of the sign-flip test
    adjusted: float  # p after Holm's correction for the comparisons made together
    together: int  # how many these are

    @property
    def sign(self) -> int:
        """1 or -1 where the difference is shown over images, by its interval and its adjusted p, else 0."""
        return self.images.sign if self.adjusted < LEVEL else 0

    @property
    def seeds_sign(self) -> int:
        """1 or -1 where the interval over seeds leaves out zero, else 0: also where few seeds agree by chance."""
        if self.seeds is None or not self.seeds[1]:
            return 0
        mean, half = self.seeds
        return (mean - half > 0) - (mean + half < 0)

    @property
    def unsure(self) -> bool:
        """Whether a difference is shown over images that the interval over seeds does not bear out."""
        return bool(self.sign) and self.seeds is not None and self.seeds_sign != self.sign


class Result(NamedTuple):
    """What a configuration reached: accuracies and macro-F1 in percent, one for each seed, and their intervals."""

    configuration: Configuration
    official: list[float]
    deduplicated: list[float]
    f1: list[float]  # deduplicated
    official_interval: Interval
    deduplicated_interval: Interval
    f1_interval: Interval
    official_gain: Interval | None  # over the base; None for the base itself
    gain: Gap | None

    @property
    def title(self) -> str:
        return self.configuration.title

    @property
    def mean(self) -> float:
        return statistics.mean(self.deduplicated)


class GateResult(NamedTuple):
    """What the gate of the best mixture does with its E experts; weights and shares are in [0, 1]."""

    load: np.ndarray  # (E,) mean weight
    chosen: np.ndarray  # (E,) share of images for which an expert has the most weight
    least: np.ndarray  # (E,) the smallest mean weight of any seed
    per_class: np.ndarray  # (7, E) mean weight over the images of a class
    own: float  # weight on the experts that have the true class, mean over images
    blind: float  # the same if every image had each seed's mean weights
    hits_own: float | None  # accuracy where the expert with the most weight has the true class, None without images
    hits_other: float | None  # accuracy where it has not
    misled: float | None  # share of the wrong images where it has not
    missed: float  # share of all images where it has not


@dataclass(frozen=True)
class Findings:
    """All that the report says of a study. The best mixture has the highest mean accuracy deduplicated."""

    study: Study
    results: list[Result]
    base: Result
    best: Result
    controls: list[tuple[Result, Gap]]  # the best mixture over each; of control mixtures those trained like it
    gatings: list[tuple[Result, Result, Gap]]  # soft over top-1, of the same groups and stages
    further: list[tuple[Result, Result, Gap]]  # trained for further stages over not, of the same groups and gating
    extremes: tuple[Result, Gap] | None  # the grouping whose highest mixture is lowest, and the best mixture over it
    pairs: list[PairResult]  # 21, in the order of PAIRS
    worst: list[PairResult]  # those that the base confuses most, the highest rate first
    tests: list[SeedTest]  # of the worst pairs, where there are several seeds
    groups: tuple[Share, Share] | None  # within and across
    longer: Result | None  # the base trained on for as long as the best mixture, where it is a control
    pairs_longer: list[PairResult]  # the best mixture held to `longer`; empty without it
    groups_longer: tuple[Share, Share] | None
    gate: GateResult
    neighbours: tuple[float, float]  # agreement of base and best mixture

    @property
    def mixtures(self) -> list[Result]:
        return [one for one in self.results if one.configuration in self.study.mixtures]

    @property
    def only_controls(self) -> bool:
        """Whether the study has no mixture but those that serve as controls."""
        return all(one.configuration.control for one in self.mixtures)


def find(study: Study) -> Findings:
    """The Findings of `study`."""
    results = score_all(study)
    by_name = {one.configuration.name: one for one in results}
    base = by_name[study.base.name]
    mixtures = [by_name[one.name] for one in study.mixtures]
    best = max(mixtures, key=lambda one: one.mean)
    controls = trained_alike(
        [one for one in results if one.configuration.is_control and one not in (base, *mixtures)], best
    )
    gatings, further = alike(mixtures)
    lowest = lowest_grouping(mixtures)
    pairs = compare_pairs(study, base.configuration, best.configuration)
    longer = as_long(controls, base, best)
    against = (study, longer.configuration, best.configuration) if longer else None
    worst = sorted(pairs, key=lambda one: -one.base / max(one.images, 1))[:WORST]
    return Findings(
        study=study,
        results=results,
        base=base,
        best=best,
        controls=list(zip(controls, compare(study, [(best, one) for one in controls]), strict=True)),
        gatings=[(*both, gap) for both, gap in zip(gatings, compare(study, gatings), strict=True)],
        further=[(*both, gap) for both, gap in zip(further, compare(study, further), strict=True)],
        extremes=(lowest, compare(study, [(best, lowest)])[0]) if lowest is not best else None,
        pairs=pairs,
        worst=worst,
        tests=each_seed(study, worst, best.configuration),
        groups=compare_groups(study, base.configuration, best.configuration),
        longer=longer,
        pairs_longer=compare_pairs(*against) if against else [],
        groups_longer=compare_groups(*against) if against else None,
        gate=look_at_gate(study, best.configuration),
        neighbours=(agreement(study, base.configuration), agreement(study, best.configuration)),
    )


def trained_alike(controls: list[Result], best: Result) -> list[Result]:
    """The controls without those mixtures that differ from `best` in more than their groups.

    They stay where no mixture of the same groups has the gating and the last stage, gate or together, of `best`.
    """

    def way(one: Result) -> tuple[str, str]:
        return one.configuration.gating, one.configuration.stages[-1].rpartition("-")[2]

    like = {repr(one.configuration.groups) for one in controls if way(one) == way(best)}
    return [one for one in controls if way(one) == way(best) or repr(one.configuration.groups) not in like]


def trained_on(controls: list[Result], base: Result) -> list[Result]:
    """The controls that are the base, trained for longer."""
    own = base.configuration
    return [
        one
        for one in controls
        if one.configuration.kind == "single"
        and one.configuration.parameters == own.parameters
        and one.configuration.epochs > own.epochs
    ]


def as_long(controls: list[Result], base: Result, best: Result) -> Result | None:
    """The control that is the base trained for as long as `best` or longer, the least of them, or None.

    None too where `best` was trained for no longer than the base.
    """
    enough = [one for one in trained_on(controls, base) if one.configuration.epochs >= best.configuration.epochs]
    if best.configuration.epochs <= base.configuration.epochs or not enough:
        return None
    return min(enough, key=lambda one: one.configuration.epochs)


def alike(mixtures: list[Result]) -> tuple[list[tuple[Result, Result]], list[tuple[Result, Result]]]:
    """Pairs with the same groups: soft and top-1 gating after the same stages, and one trained for further stages."""
    gatings, further = [], []
    for one, other in permutations(mixtures, 2):
        a, b = one.configuration, other.configuration
        goes_on = len(a.stages) > len(b.stages) and a.stages[: len(b.stages)] == b.stages
        if a.groups == b.groups and (a.gating, b.gating) == ("soft", "top-1") and a.stages == b.stages:
            gatings.append((one, other))
        if a.groups == b.groups and a.gating == b.gating and goes_on:
            further.append((one, other))
    return gatings, further


def lowest_grouping(mixtures: list[Result]) -> Result:
    """The highest mixture of the grouping whose highest is the lowest."""
    highest: dict[str, Result] = {}
    for one in mixtures:
        key = repr(one.configuration.groups)
        if key not in highest or one.mean > highest[key].mean:
            highest[key] = one
    return min(highest.values(), key=lambda one: one.mean)


def score_all(study: Study) -> list[Result]:
    """The Result of every configuration; their differences to the base are adjusted together."""
    gaps = iter(gaps_of(study, [(one, study.base) for one in study.configurations if one is not study.base]))
    results = []
    for one in study.configurations:
        official, deduplicated = study.hits(one, official=True), study.hits(one)
        named = study.labels[study.deduplicated], one.predicted[:, study.deduplicated]
        other = one is not study.base
        results.append(
            Result(
                configuration=one,
                official=[100 * float(hits.mean()) for hits in official],
                deduplicated=[100 * float(hits.mean()) for hits in deduplicated],
                f1=macro_f1(*named).tolist(),
                official_interval=proportion(official),
                deduplicated_interval=proportion(deduplicated),
                f1_interval=macro_f1_interval(*named),
                official_gain=bootstrap(official, study.hits(study.base, official=True)) if other else None,
                gain=next(gaps) if other else None,
            )
        )
    return results


def compare(study: Study, both: Sequence[tuple[Result, Result]]) -> list[Gap]:
    """The Gap of each first Result over its second, adjusted together."""
    return gaps_of(study, [(first.configuration, second.configuration) for first, second in both])


def gaps_of(study: Study, both: Sequence[tuple[Configuration, Configuration]]) -> list[Gap]:
    """The Gap of each first Configuration over its second, adjusted together."""
    hits = [(study.hits(first), study.hits(second)) for first, second in both]
    p_values = [sign_flip(*each) for each in hits]
    gaps = []
    for (first, second), p, adjusted in zip(hits, p_values, holm(p_values), strict=True):
        per_seed = 100 * (first.mean(1) - second.mean(1))
        seeds = interval(per_seed) if len(per_seed) > 1 else None
        gaps.append(Gap(bootstrap(first, second), seeds, p, float(adjusted), len(hits)))
    return gaps


# --- The gate and the features ---


def look_at_gate(study: Study, best: Configuration) -> GateResult:
    """What the gate of `best` does, over the images deduplicated and all seeds, or the first with its own groups."""
    seeds = slice(1 if study.has_other_groups(best) else None)
    gate, labels = best.gate[seeds, study.deduplicated].astype(np.float64), study.labels[study.deduplicated]
    has = np.array([[name in group for group in best.groups] for name in CLASSES])  # (7, E)
    chosen = gate.argmax(2)
    own = has[labels[None], chosen]
    hits = study.hits(best)[seeds]
    per_class = [
        gate[:, labels == index].mean((0, 1)) if (labels == index).any() else np.full(len(best.groups), np.nan)
        for index in range(len(CLASSES))
    ]

    def share(values: np.ndarray) -> float | None:
        return float(values.mean()) if values.size else None

    return GateResult(
        load=gate.mean((0, 1)),
        chosen=np.bincount(chosen.ravel(), minlength=len(best.groups)) / chosen.size,
        least=gate.mean(1).min(0),
        per_class=np.stack(per_class),
        own=float((gate * has[labels]).sum(2).mean()),
        blind=float((gate.mean(1, keepdims=True) * has[labels]).sum(2).mean()),
        hits_own=share(hits[own]),
        hits_other=share(hits[~own]),
        misled=share(~own[~hits]),
        missed=float((~own).mean()),
    )


def agreement(study: Study, configuration: Configuration) -> float:
    """The share of an image's NEIGHBOURS nearest by features that are of its class, mean over the images shown."""
    features = configuration.features[study.shown].astype(np.float64)
    features -= features.mean(0)
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    count = min(NEIGHBOURS, len(features) - 1)
    near = np.argpartition(distances, count - 1, axis=1)[:, :count]
    labels = study.labels[study.rows[study.shown]]
    return float((labels[near] == labels[:, None]).mean())

"""What goes on inside a study's networks, in sentences: confused classes, the gate, training, features.

Each is chosen and nonempty by rules from the figures of that study; report_words.py says what is called shown.
"""

import math
import statistics

from config import CLASSES
from study.confusions import PairResult, Share
from study.findings import NEIGHBOURS, Findings, GateResult, Result
from study.report_words import listed, named, p_text, span
from study.stats import Interval

UNUSED = 0.1  # an expert whose mean weight is below this share of an even load is called hardly used


def pairs(found: Findings) -> list[str]:
    """Whether any of the 21 pairs changed, first of all; then the pairs that the base confuses most."""
    said = [f"{_changed(found.pairs, 'the base')}{_one_seed(found)}."]
    for one in found.worst:
        rate = 100 * one.base / max(one.images, 1)
        shown = {1: "fewer, which is shown", -1: "more, which is shown", 0: "no change is shown"}[one.sign]
        together = {True: ", share an expert", False: ", have no expert in common", None: ""}[one.together]
        said.append(
            f"{one.name}, {rate:.1f} % of whose images the base takes for the other{together}: "
            f"{one.base:.1f} images to {one.best:.1f}, {_change(one.change)} ({shown}, adjusted p "
            f"{p_text(one.adjusted)}{_over_seeds(one.seeds)})."
        )
    return said


def pairs_by_length(found: Findings) -> list[str]:
    """The same against the base trained for as long as the mixture, which tells structure from length."""
    if found.longer is not None:
        return [f"{_changed(found.pairs_longer, named(found.longer))}{_one_seed(found)}."]
    if found.best.configuration.epochs > found.base.configuration.epochs:
        return [
            "The mixture was trained for longer than the base, and no control for as long: what is confused more "
            "or less than by the base may be owed to length."
        ]
    return []


def _changed(ones: list[PairResult], than: str) -> str:
    """Which of all pairs are confused less or more by the mixture than by another network, named by `than`."""
    better, worse = [one for one in ones if one.sign > 0], [one for one in ones if one.sign < 0]
    if not better and not worse:
        least = min(ones, key=lambda one: one.adjusted)
        which = f" ({least.name})" if least.adjusted < 1 else ""
        return (
            f"No pair of classes is shown to be confused more or less by the mixture than by {than}: after "
            f"correction for {len(ones)} pairs the smallest p is {p_text(least.adjusted)}{which}"
        )
    parts = [
        f"{word}: {listed([_pair(one) for one in some])}"
        for word, some in (("fewer confusions", better), ("more confusions", worse))
        if some
    ]
    rest = "" if better and worse else f"; none is shown to be confused {'more' if better else 'less'}"
    what = f"{'; '.join(parts)}{rest}"
    return f"Of {len(ones)} pairs of classes, after correction, the mixture shows, against {than}, {what}"


def _pair(one: PairResult) -> str:
    figures = f"adjusted p {p_text(one.adjusted)}{_over_seeds(one.seeds)}"
    return f"{one.name} ({one.base:.1f} images to {one.best:.1f}, {figures})"


def _change(gap: Interval) -> str:
    return f"a change of {gap.mean:+.1f}, 95 % interval {gap.low:+.1f} to {gap.high:+.1f}"


def _over_seeds(seeds: tuple[float, float] | None) -> str:
    return "" if seeds is None else f"; over seeds {span(seeds, 1)}"


def _one_seed(found: Findings) -> str:
    return "" if len(found.study.seeds) > 1 else "; one seed cannot say whether another training would show the same"


def never_named(found: Findings) -> list[str]:
    """Classes that the base, the mixture or both never name, with any seed: a rare one that accuracy would hide."""
    deduplicated = found.study.deduplicated
    base, best = (
        {name for index, name in enumerate(CLASSES) if not (one.predicted[:, deduplicated] == index).any()}
        for one in (found.base.configuration, found.best.configuration)
    )
    where = " on images deduplicated" + (", with any seed" if len(found.study.seeds) > 1 else "")
    said = [
        ("Neither the base nor the mixture ever names", base & best),
        ("The base never names", base - best),
        ("The mixture never names", best - base),
    ]
    return [f"{who} {listed([name for name in CLASSES if name in names])}{where}." for who, names in said if names]


def within_groups(found: Findings) -> list[str]:
    """Whether classes that share an expert fare otherwise than those that do not."""
    if found.pairs[0].together is None:
        return ["The groups are drawn anew with each seed, so that confusions within them are not set apart."]
    if found.groups is None:
        word = "Every pair of classes shares" if found.pairs[0].together else "No pair of classes shares"
        return [f"{word} an expert of the mixture, so that confusions within groups cannot be set apart."]
    said = _shares(found.groups, "the base")
    if found.groups_longer:
        said += _shares(found.groups_longer, named(found.longer))
    return said


def _shares(groups: tuple[Share, Share], than: str) -> list[str]:
    said = []
    for one, what in zip(groups, ("share an expert", "have no expert in common"), strict=True):
        shown = {1: "more, which is shown", -1: "fewer, which is shown", 0: "no change is shown"}[one.sign]
        said.append(
            f"Classes that {what} are confused on {one.base:,.1f} images by {than} and on {one.best:,.1f} by "
            f"the mixture, {_change(one.change)} ({shown}, p {p_text(one.adjusted)} after correction for 2 "
            f"comparisons{_over_seeds(one.seeds)})."
        )
    return said


# --- The gate ---


def gate(found: Findings) -> list[str]:
    """Whether the gate uses all experts, whether it follows their groups, and where its mistakes could come from."""
    use, groups = found.gate, found.best.configuration.groups
    if len(groups) == 1:
        return ["The best mixture has one expert, so its gate has nothing to choose."]
    several = len(found.study.seeds) > 1
    always, once = (" with every seed", " with one seed or more") if several else ("", "")
    if found.study.has_other_groups(found.best.configuration):  # of the others they are not known
        always = once = " with the first seed"
    experts = zip(found.best.configuration.experts, use.least, strict=True)
    idle = [name for name, least in experts if least * len(groups) < UNUSED]
    lowest, highest = use.load.min(), use.load.max()
    span = f"mean weights from {lowest:.1%} to {highest:.1%}, {1 / len(groups):.1%} being even"
    if idle:
        said = [f"The gate hardly uses {len(idle)} of {len(groups)} experts{once} ({'; '.join(idle)}; {span})."]
    else:
        said = [f"The gate uses all {len(groups)} experts{always} ({span})."]
    return said + _routing(use, plain=found.best.configuration.is_plain)


def _routing(use: GateResult, *, plain: bool) -> list[str]:
    if plain:
        return ["Every expert has every class, so no choice of the gate can miss the true one."]
    more = use.own - use.blind
    word = "follows" if more > 0.05 else "hardly follows" if more > 0.01 else "does not follow"
    said = [
        f"It {word} the groups: the experts that have the true class get {use.own:.1%} of its weight, and would "
        f"get {use.blind:.1%} if every image had the same mean weights."
    ]
    if use.hits_own is not None and use.hits_other is not None:
        said.append(
            f"Where the expert with the most weight has the true class, {use.hits_own:.1%} of the images are "
            f"named right; where it has not, {use.hits_other:.1%}."
        )
    if use.misled is not None:
        blame = "many" if use.misled > 0.5 else "a part"
        said.append(
            f"Of the mixture's mistakes, {use.misled:.1%} have their most weight on an expert without the true "
            f"class, of all images {use.missed:.1%}: {blame} of the mistakes could be the gate's."
        )
    return said


# --- Training and features ---


def training(one: Result) -> list[str]:
    """How the last stage ended, averaged over the seeds: still rising or past its best, and how far from training."""
    ends, tops, gaps = [], [], []
    for stages in one.configuration.histories:
        epochs = stages[-1]["epochs"]
        curve = [epoch.get("val_accuracy_deduplicated") for epoch in epochs]
        known = [value for value in curve if value is not None and math.isfinite(value)]
        if not known or curve[-1] != known[-1]:
            return []
        ends.append(100 * known[-1])
        tops.append(100 * max(known))
        seen = epochs[-1].get("train_accuracy")
        gaps.append(100 * (seen - known[-1]) if seen is not None else math.nan)
    end, top, gap = statistics.mean(ends), statistics.mean(tops), statistics.mean(gaps)
    stage = one.configuration.histories[0][-1]["stage"]
    gating = ", with the soft gating that it was trained with," if one.configuration.gating == "top-1" else ""
    after = f"{top - end:.2f} points below its highest" if top - end >= 0.005 else "its highest"
    against = ""
    if math.isfinite(gap):
        side = "above" if gap > 0 else "below"
        against = f"; the accuracy measured on training images in passing is {abs(gap):.2f} points {side} it"
    where = f"its last stage ({stage}){gating}"
    return [f"{named(one)} ends {where} at {end:.2f} % on validation images, {after}{against}."]


def features(found: Findings) -> list[str]:
    """Whether images of one class lie closer together by the mixture's features, with the first seed."""
    base, best = found.neighbours
    if round(base, 3) == round(best, 3):
        word = "alike in both"
    else:
        word = f"{'more' if best > base else 'less'} often in the mixture's than in the base's"
    images = f"first seed, {int(found.study.shown.sum())} images deduplicated"
    return [
        f"Among the {NEIGHBOURS} nearest neighbours by features ({images}), images of the same class are found "
        f"{word}: {best:.1%} against {base:.1%}, a description without an interval."
    ]

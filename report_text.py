"""What a study's figures say, in sentences: each is chosen and filled by rules from the figures of that study.

A difference is called shown where its 95 % interval over images leaves out zero and its p-value, adjusted by Holm for
the comparisons made together, is below 0.05; else the sentence says that none is shown.
"""

import math
import statistics

from config import CLASSES
from findings import LEVEL, NEIGHBOURS, Findings, Gap, GateResult, PairResult, Result

UNUSED = 0.1  # an expert whose mean weight is below this share of an even load is called hardly used
MORE = {1: "more", -1: "fewer", 0: "as many"}


def discussion(found: Findings) -> list[tuple[str, list[str]]]:
    """Headings, each with its sentences."""
    parts = [
        ("The mixtures against the base", best_against_base(found) + all_mixtures(found)),
        ("Groupings, gating, stages", groupings(found) + gatings(found) + longer(found)),
        ("Against the controls", [sentence for one in found.controls for sentence in control(found, *one)]
         + missing_controls(found)),
        ("What is confused", pairs(found) + within_groups(found)),
        ("What the gate does", gate(found)),
        ("Cost", costs(found)),
        ("Training and features", training(found.base) + training(found.best) + features(found)),
        ("Limits", limits(found)),
    ]  # fmt: skip
    return [(heading, sentences) for heading, sentences in parts if sentences]


def summary(found: Findings) -> list[str]:
    """The few sentences that a reader in a hurry needs."""
    return [*best_against_base(found)[:1], *controls_counted(found), pairs(found)[0], gate(found)[0],
            verdict_on_size(found)]  # fmt: skip


def warnings(found: Findings) -> list[str]:
    """What stands above everything else: drawn faces, and a study that is too small."""
    about, said = found.study.about, []
    if about["data"]["demo"]:
        said.append(
            "These are the drawn demo faces, not photographs: no figure here says anything about real emotions."
        )
    if not about["conclusive"]:
        said.append(verdict_on_size(found))
    return said


def verdict_on_size(found: Findings) -> str:
    about = found.study.about
    why = f": {about['why']}" if about["why"] else ""
    return f"This study counts as {'conclusive' if about['conclusive'] else 'too small to conclude from'}{why}."


# --- Words for figures ---


def named(one: Result) -> str:
    return f"“{one.title}”"


def listed(names: list[str]) -> str:
    """The names with commas and an "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def amount(value: float) -> str:
    """A large number in two or three digits: 308k, 2.71M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def p_text(p: float) -> str:
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"  # so that what is below 0.05 looks so


def in_figures(gap: Gap) -> str:
    """The interval over images and the p-value."""
    adjusted = f"p {p_text(gap.p)}" + (
        f", {p_text(gap.adjusted)} after correction for {gap.together} comparisons" if gap.together > 1 else ""
    )
    return f"95 % interval over images {gap.images.low:+.2f} to {gap.images.high:+.2f}; {adjusted}"


def verdict(first: str, second: str, gap: Gap) -> str:
    """Whether `first` is better than `second`, worse, or neither is shown, as one sentence."""
    if gap.sign:
        word, size = "better" if gap.sign > 0 else "worse", abs(gap.images.mean)
        subject = first[0].upper() + first[1:]
        return f"{subject} is {word} than {second}, by {size:.2f} points ({in_figures(gap)}){_seeds(gap)}."
    alone = "; the interval leaves out zero, but the corrected p-value does not bear it out" if gap.images.sign else ""
    difference = f"{gap.images.mean:+.2f} points ({in_figures(gap)}{alone})"
    return f"No difference between {first} and {second} is shown: {difference}."


def _seeds(gap: Gap) -> str:
    """What the seeds add to a difference that is shown over images."""
    if gap.seeds is None:
        return "; one seed cannot say whether another training would show it"
    low, high = gap.seeds[0] - gap.seeds[1], gap.seeds[0] + gap.seeds[1]
    if gap.seeds_sign == gap.sign:
        return f"; the interval over seeds, {low:+.2f} to {high:+.2f}, bears it out"
    return f"; the interval over seeds, {low:+.2f} to {high:+.2f}, does not: other trainings may not show it"


# --- The sentences ---


def best_against_base(found: Findings) -> list[str]:
    """Whether the best mixture is better than the base, and how it was picked."""
    count = len(found.mixtures)
    if count > 1:
        picked = (
            f"It was picked as the highest of {count} mixtures on the very images it is scored on, so its accuracy, "
            f"its gain and every comparison of it are flattered; of these, only the corrected p-value of the gain "
            f"allows for the picking."
        )
    else:
        picked = "It is the only mixture of the study, so none was picked."
    return [verdict(f"the mixture {named(found.best)}", f"the base {named(found.base)}", found.best.gain), picked]


def all_mixtures(found: Findings) -> list[str]:
    """How many of the mixtures differ from the base; nothing where there is one."""
    if len(found.mixtures) == 1:
        return []
    better = [named(one) for one in found.mixtures if one.gain.sign > 0]
    worse = [named(one) for one in found.mixtures if one.gain.sign < 0]
    sides = (("better", better), ("worse", worse))
    parts = [f"{word} than the base: {listed(names)}" for word, names in sides if names]
    rest = len(found.mixtures) - len(better) - len(worse)
    if rest:
        parts.append(f"no difference from the base shown: {rest} of {len(found.mixtures)}")
    return [f"Of all {len(found.mixtures)} mixtures, {'; '.join(parts)}."]


def groupings(found: Findings) -> list[str]:
    """How far the best and the lowest grouping are apart."""
    if found.extremes is None:
        return []
    lowest, gap = found.extremes
    count = len({repr(one.configuration.groups) for one in found.mixtures})
    said = [verdict(f"the best grouping ({named(found.best)})", f"the lowest ({named(lowest)})", gap)]
    if count > 2:
        said.append(f"Each of the {count} groupings stands for its highest mixture there; being the extremes, the two "
                    f"are further apart than two named beforehand would be.")  # fmt: skip
    return said


def gatings(found: Findings) -> list[str]:
    """Soft against top-1 gating, for the same groups after the same stages."""
    said = [
        verdict(f"soft gating ({named(soft)})", f"top-1 gating ({named(top)})", gap) for soft, top, gap in found.gatings
    ]
    return said or ["No mixture was tried with both soft and top-1 gating on the same groups."]


def longer(found: Findings) -> list[str]:
    """Whether the further stages of training are worth it, for the same groups and gating."""
    said = []
    for more, less, gap in found.longer:
        stages = more.configuration.stages[len(less.configuration.stages) :]
        said.append(verdict(f"{named(more)}, trained further ({', '.join(stages)}),", named(less), gap))
    return said


def control(found: Findings, one: Result, ahead: Gap) -> list[str]:
    """What the mixture's gain is worth beside a control. `ahead` is the best mixture over the control."""
    gain, its_gain = found.best.gain.sign, one.gain.sign
    size = (
        f"{amount(one.configuration.parameters)} parameters and {amount(one.configuration.macs)} MACs against the "
        f"mixture's {amount(found.best.configuration.parameters)} and {amount(found.best.configuration.macs)}"
    )
    kind = {"ensemble": "ensemble", "mixture": "control mixture"}.get(one.configuration.kind, "control")
    name, over = f"the {kind} {named(one)}", f"{one.gain.images.mean:+.2f} points over the base"
    first = f"{kind.capitalize()} {named(one)} ({size}): {over}, "
    first += {1: "a gain that is shown", -1: "a loss that is shown", 0: "no difference that is shown"}[its_gain]
    first += f" ({in_figures(one.gain)})."
    direct = verdict("the mixture", name, ahead)
    if gain > 0:
        if ahead.sign > 0:
            meaning = f"The mixture's gain is more than {name} brings."
        elif ahead.sign < 0:
            meaning = f"What the mixture gains, {name} gains too, and more."
        elif its_gain > 0:
            meaning = f"What the mixture gains, {name} gains too, as far as these images can tell."
        else:
            meaning = f"Whether the mixture gains more than {name} is left open."
    elif its_gain > 0:
        meaning = f"The mixture is not shown to gain anything, {name} is."
    else:
        meaning = f"Neither the mixture nor {name} is shown to gain anything over the base."
    return [first, direct, meaning]


def controls_counted(found: Findings) -> list[str]:
    """How the best mixture fares against the controls, in one sentence."""
    if not found.controls:
        return missing_controls(found)
    words = {1: "better than", -1: "worse than", 0: "not shown to differ from"}
    parts = []
    for sign, word in words.items():
        names = [named(one) for one, ahead in found.controls if ahead.sign == sign]
        if names:
            parts.append(f"{word} {listed(names)}")
    return [f"Against the controls, the mixture is {'; '.join(parts)}."]


def missing_controls(found: Findings) -> list[str]:
    """What cannot be told for want of a control."""
    kinds = {one.configuration.kind for one, _ in found.controls}
    lacking = []
    if "ensemble" not in kinds:
        lacking.append("an ensemble of as many networks")
    if "single" not in kinds:
        lacking.append("a single network of the same size")
    return [f"Whether {' or '.join(lacking)} gains as much was not tried."] if lacking else []


def pairs(found: Findings) -> list[str]:
    """Whether any of the 21 pairs changed, first of all; then the pairs that the base confuses most."""
    better = [one for one in found.pairs if one.sign > 0]
    worse = [one for one in found.pairs if one.sign < 0]
    count = len(found.pairs)
    if not better and not worse:
        least = min(found.pairs, key=lambda one: one.adjusted)
        said = [f"No pair of classes is shown to be confused more or less by the mixture than by the base, after "
                f"correction for {count} pairs (the smallest adjusted p is {p_text(least.adjusted)}, "
                f"{least.name})."]  # fmt: skip
    else:
        parts = [f"{word}: {listed([_pair(one) for one in ones])}"
                 for word, ones in (("fewer confusions", better), ("more confusions", worse)) if ones]  # fmt: skip
        rest = "" if better and worse else f"; none is shown to be confused {'more' if better else 'less'}"
        said = [f"Of {count} pairs of classes, after correction, the mixture shows {'; '.join(parts)}{rest}."]
    for one in found.worst:
        rate = 100 * one.base / max(one.images, 1)
        shown = {1: "fewer, which is shown", -1: "more, which is shown", 0: "no change is shown"}[one.sign]
        together = "share an expert" if one.together else "have no expert in common"
        change = f"{one.base:.1f} images to {one.best:.1f} ({shown}, adjusted p {p_text(one.adjusted)})"
        said.append(f"{one.name}, {rate:.1f} % of whose images the base takes for the other, {together}: {change}.")
    return said


def _pair(one: PairResult) -> str:
    return f"{one.name} ({one.base:.1f} images to {one.best:.1f}, adjusted p {p_text(one.adjusted)})"


def within_groups(found: Findings) -> list[str]:
    """Whether classes that share an expert fare otherwise than those that do not."""
    if found.groups is None:
        return ["Every pair of classes shares an expert, or none does: confusions within groups cannot be set apart."]
    said = []
    for one, what in zip(found.groups, ("share an expert", "have no expert in common"), strict=True):
        change = one.best - one.base
        sign = ((change > 0) - (change < 0)) if one.adjusted < LEVEL else 0
        word = f"{MORE[sign]}, which is shown" if sign else "no change is shown"
        said.append(f"Classes that {what} are confused on {one.base:.1f} images by the base and on {one.best:.1f} by "
                    f"the mixture ({word}, p {p_text(one.adjusted)} after correction for 2 comparisons).")  # fmt: skip
    return said


def gate(found: Findings) -> list[str]:
    """Whether the gate uses all experts, whether it follows their groups, and what its mistakes cost."""
    use, groups = found.gate, found.best.configuration.groups
    if len(groups) == 1:
        return ["The best mixture has one expert, so its gate has nothing to choose."]
    experts = zip(found.best.configuration.experts, use.least, strict=True)
    idle = [name for name, least in experts if least * len(groups) < UNUSED]
    lowest, highest = use.load.min(), use.load.max()
    span = f"mean weights from {lowest:.1%} to {highest:.1%}, {1 / len(groups):.1%} being even"
    if idle:
        said = [f"The gate hardly uses {len(idle)} of {len(groups)} experts with one seed or more "
                f"({'; '.join(idle)}; {span})."]  # fmt: skip
    else:
        said = [f"The gate uses all {len(groups)} experts with every seed ({span})."]
    return said + _routing(use)


def _routing(use: GateResult) -> list[str]:
    if use.even == 1:
        return ["Every expert has every class, so no choice of the gate can miss the true one."]
    more = use.own - use.even
    word = "follows" if more > 0.05 else "hardly follows" if more > 0.01 else "does not follow"
    said = [f"It {word} the groups: the experts that have the true class get {use.own:.1%} of its weight, and would "
            f"get {use.even:.1%} if all weighed alike."]  # fmt: skip
    if use.hits_own is not None and use.hits_other is not None:
        said.append(f"Where the expert with the most weight has the true class, {use.hits_own:.1%} of the images are "
                    f"named right; where it has not, {use.hits_other:.1%}.")  # fmt: skip
    if use.misled is not None:
        blame = "most" if use.misled > 0.5 else "a part"
        said.append(f"Of the mixture's mistakes, {use.misled:.1%} have their most weight on an expert without the true "
                    f"class: {blame} of them could be the gate's.")  # fmt: skip
    return said


def costs(found: Findings) -> list[str]:
    """What the best mixture costs, and who does as well for less."""
    best, base = found.best.configuration, found.base.configuration
    said = [f"The mixture has {best.parameters / base.parameters:.1f} times the parameters of the base and takes "
            f"{best.macs / base.macs:.1f} times its multiply-adds for an image."]  # fmt: skip
    for field, name in (("parameters", "parameters"), ("macs", "MACs")):
        limit = getattr(best, field)
        others = [one for one in found.results if one is not found.best]
        no_dearer = [one for one in others if getattr(one.configuration, field) <= limit]
        above = [one for one in no_dearer if one.mean > found.best.mean]
        if above:
            top = max(above, key=lambda one: one.mean)
            said.append(f"With no more {name}, {named(top)} has the higher mean ({top.mean:.2f} % against "
                        f"{found.best.mean:.2f} %).")  # fmt: skip
        elif no_dearer:
            said.append(f"None of the {len(no_dearer)} others with no more {name} has a higher mean.")
    return said


def training(one: Result) -> list[str]:
    """How the last stage ended, averaged over the seeds: still rising or past its best, and how far from training."""
    ends, tops, gaps = [], [], []
    for stages in one.configuration.histories:
        epochs = stages[-1]["epochs"]
        curve = [epoch.get("val_accuracy_unseen") for epoch in epochs]
        known = [value for value in curve if value is not None and math.isfinite(value)]
        if not known or curve[-1] != known[-1]:
            return []
        ends.append(100 * known[-1])
        tops.append(100 * max(known))
        seen = epochs[-1].get("train_accuracy")
        gaps.append(100 * (seen - known[-1]) if seen is not None else math.nan)
    end, top, gap = statistics.mean(ends), statistics.mean(tops), statistics.mean(gaps)
    stage = one.configuration.histories[0][-1]["stage"]
    after = f"{top - end:.2f} points below its highest" if top - end >= 0.005 else "its highest"
    against = ""
    if math.isfinite(gap):
        where = "above" if gap > 0 else "below"
        against = f"; the accuracy measured on training images in passing is {abs(gap):.2f} points {where} it"
    return [f"{named(one)} ends its last stage ({stage}) at {end:.2f} % on validation images, {after}{against}."]


def features(found: Findings) -> list[str]:
    """Whether images of one class lie closer together by the mixture's features, with the first seed."""
    base, best = found.neighbours
    if round(base, 3) == round(best, 3):
        word = "alike in both"
    else:
        word = f"{'more' if best > base else 'less'} often in the mixture's than in the base's"
    images = f"first seed, {len(found.study.rows)} images"
    return [f"Among the {NEIGHBOURS} nearest neighbours by features ({images}), images of the same class are found "
            f"{word}: {best:.1%} against {base:.1%}, a description without an interval."]  # fmt: skip


def limits(found: Findings) -> list[str]:
    """What this study cannot tell, in its own numbers."""
    study, gap = found.study, found.best.gain
    seeds, images = len(study.seeds), int(study.unseen.sum())
    if seeds == 1:
        said = ["There is one seed: nothing is known about what other trainings would give."]
    else:
        spread = statistics.stdev(found.base.unseen)
        said = [f"There are {seeds} seeds; the base's accuracy has a standard deviation of {spread:.2f} points over "
                f"them, and the mixture's gain is known over seeds to within {gap.seeds[1]:.2f} points."]  # fmt: skip
    copies = f", {int(study.copies.sum())} copies left out," if study.copies.any() else ""
    half = (gap.images.high - gap.images.low) / 2
    said.append(f"On {images} images{copies} the gain over the base is known to within {half:.2f} points: a smaller "
                f"one would not be told from none.")  # fmt: skip
    counts = {name: int((study.labels[study.unseen] == index).sum()) for index, name in enumerate(CLASSES)}
    rare = min(counts, key=counts.__getitem__)
    if counts[rare]:
        said.append(f"Of {rare} there are {counts[rare]} images, so that one image is {100 / counts[rare]:.1f} points "
                    f"of its recall.")  # fmt: skip
    else:
        said.append(f"There is no image of {rare}: nothing is known about it.")
    official = found.best.official_gain
    if study.copies.any():
        agrees = "points the same way" if official.mean * gap.images.mean > 0 else "does not point the same way"
        said.append(f"With the copies the gain is {official.mean:+.2f} points, which {agrees}.")
    return [*said, verdict_on_size(found)]

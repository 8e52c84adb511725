"""The discussion of a study and its summary, in sentences that are chosen and nonempty by rules from its figures.

Here are what it cost and what it cannot tell; report_gains.py and report_inside.py have the other sentences, and
report_words.py says what is called shown.
"""

import statistics

from config import CLASSES
from study.findings import Findings, trained_on
from study.report_gains import (
    all_mixtures,
    best_against_base,
    controls,
    controls_counted,
    further_stages,
    gatings,
    groupings,
    picked,
    picked_in_short,
)
from study.report_inside import features, gate, never_named, pairs, pairs_by_length, training, within_groups
from study.report_words import listed, named


def discussion(found: Findings) -> list[tuple[str, list[str]]]:
    """Headings, each with its sentences."""
    parts = [
        ("The mixtures against the base", [*best_against_base(found), picked(found), *all_mixtures(found)]),
        ("Groupings, gating, stages", groupings(found) + gatings(found) + further_stages(found)),
        ("Against the controls", controls(found)),
        ("What is confused", [*pairs(found), *pairs_by_length(found), *within_groups(found), *never_named(found)]),
        ("What the gate does", gate(found)),
        ("Cost", costs(found)),
        ("Training and features", training(found.base) + training(found.best) + features(found)),
        ("Limits", limits(found)),
    ]
    return [(heading, sentences) for heading, sentences in parts if sentences]


def summary(found: Findings) -> list[str]:
    """The few sentences that a reader in a hurry needs."""
    return [
        *best_against_base(found),
        *picked_in_short(found),
        *controls_counted(found),
        pairs(found)[0],
        *pairs_by_length(found),
        gate(found)[0],
        verdict_on_size(found),
    ]


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


def costs(found: Findings) -> list[str]:
    """What the best mixture costs, and who does as well for less."""
    best, base = found.best.configuration, found.base.configuration
    said = [
        f"The mixture has {best.parameters / base.parameters:.1f} times the parameters of the base and takes "
        f"{best.macs / base.macs:.1f} times its multiply-adds for an image.",
        f"Its training is {best.work:,.1f} epochs of the base's work, {best.work / base.work:.1f} times the "
        f"{base.work:,.1f} of the base.",
    ]
    for field, name in (("parameters", "parameters"), ("macs", "MACs"), ("work", "training work")):
        limit = getattr(best, field)
        others = [one for one in found.results if one is not found.best]
        no_dearer = [one for one in others if getattr(one.configuration, field) <= limit]
        above = [one for one in no_dearer if one.mean > found.best.mean]
        if above:
            top = max(above, key=lambda one: one.mean)
            said.append(
                f"With no more {name}, {named(top)} has the higher mean ({top.mean:.2f} % against "
                f"{found.best.mean:.2f} %)."
            )
        elif no_dearer:
            said.append(f"None of the {len(no_dearer)} others with no more {name} has a higher mean.")
    return said


def limits(found: Findings) -> list[str]:
    """What this study cannot tell, in its own numbers."""
    study, gap = found.study, found.best.gain
    seeds, images = len(study.seeds), int(study.deduplicated.sum())
    if seeds == 1:
        said = ["There is one seed: nothing is known about what other trainings would give."]
    else:
        spread = statistics.stdev(found.base.deduplicated)
        said = [
            f"There are {seeds} seeds; the base's accuracy has a standard deviation of {spread:.2f} points over "
            f"them, and the mixture's gain is known over seeds to within {gap.seeds[1]:.2f} points."
        ]
    copies = f", {int(study.copies.sum())} copies left out," if study.copies.any() else ""
    half = (gap.images.high - gap.images.low) / 2
    said.append(
        f"On {images:,} images{copies} the gain over the base is known to within {half:.2f} points: a smaller "
        f"one would not be told from none."
    )
    counts = {name: int((study.labels[study.deduplicated] == index).sum()) for index, name in enumerate(CLASSES)}
    rare = min(counts, key=counts.__getitem__)
    if counts[rare]:
        said.append(
            f"Of {rare} there are {counts[rare]} images, so that one image is {100 / counts[rare]:.1f} points "
            f"of its recall."
        )
    else:
        said.append(f"There is no image of {rare}: nothing is known about it.")
    official = found.best.official_gain
    if study.copies.any():
        agrees = "points the same way" if official.mean * gap.images.mean > 0 else "does not point the same way"
        said.append(f"With the copies the gain is {official.mean:+.2f} points, which {agrees}.")
    return [*said, *length(found), *fitted_groups(found), *single_draw(found), verdict_on_size(found)]


def length(found: Findings) -> list[str]:
    """Whether the mixture was trained for longer than the base, and what tells that from its structure."""
    base, best = found.base.configuration, found.best.configuration
    if best.epochs <= base.epochs:
        return [
            f"No weights of the mixture went through more epochs than the base's ({best.epochs} and {base.epochs})."
        ]
    said = f"Weights of the mixture went through up to {best.epochs} epochs, the base's through {base.epochs}: "
    ahead = dict((one.configuration.name, gap) for one, gap in found.controls)
    alone = trained_on([one for one, _ in found.controls], found.base)
    if not alone:
        return [f"{said}a longer training of the base alone was not tried, so length cannot be told from structure."]
    if found.longer is None:
        longest = max(alone, key=lambda one: one.configuration.epochs)
        return [
            f"{said}a training of the base alone for as long was not tried ({named(longest)} went through "
            f"{longest.configuration.epochs}), so length cannot quite be told from structure."
        ]
    words = {1: "better than it", -1: "worse than it", 0: "not shown to differ from it"}
    one = found.longer
    return [
        f"{said}{named(one)}, with {one.configuration.epochs} epochs, is what tells length from structure, and the "
        f"mixture is {words[ahead[one.configuration.name].sign]}."
    ]


def fitted_groups(found: Findings) -> list[str]:
    """That clusters were made of what is scored, where a mixture has them."""
    fitted = [named(one) for one in found.results if one.configuration.is_clustered]
    if not fitted:
        return []
    return [
        f"The groups of {listed(fitted)} were made of the first single network's confusions on the very images "
        f"that are scored{', for all seeds' if len(found.study.seeds) > 1 else ''}: no p-value and no interval "
        f"allows for that, so their figures may be too good."
    ]


def single_draw(found: Findings) -> list[str]:
    """That groups drawn at random were drawn once, where there is one seed."""
    drawn = [named(one) for one in found.results if one.configuration.is_drawn]
    if len(found.study.seeds) > 1 or not drawn:
        return []
    return [f"The random control ({listed(drawn)}) is a single draw of groups: another draw may do better or worse."]

"""What a study's accuracies say, in sentences: the mixtures against the base, each other and the controls.

Each is chosen and nonempty by rules from the figures of that study; report_words.py says what is called shown.
"""

from errors import counted
from study.findings import Findings, Gap, Result
from study.report_words import amount, in_figures, listed, named, verdict

MORE = 1.05  # times the size of another network is called larger


def best_against_base(found: Findings) -> list[str]:
    """Whether the best mixture is better than the base, and what stands for the mixtures."""
    return [
        verdict(f"the mixture {named(found.best)}", f"the base {named(found.base)}", found.best.gain),
        *groups_of_its_own(found),
    ]


def groups_of_its_own(found: Findings) -> list[str]:
    """That the best mixture is a control, and that it has no groups of its own, where that is so."""
    best, said = found.best.configuration, []
    if found.only_controls:
        said.append(
            "The study has no mixtures but those that serve as controls: whether experts for groups of "
            "emotions that were chosen help was not tried."
        )
    if best.is_plain:
        said.append(
            f"Every expert of {named(found.best)} has all classes: it has no groups of its own, so nothing "
            f"that it gains or loses is owed to groups of emotions."
        )
    elif best.is_drawn:
        said.append(f"The groups of {named(found.best)} are drawn at random.")
    return said


def picked(found: Findings) -> str:
    """How the best mixture was picked, and what that does to its figures."""
    count = len(found.mixtures)
    if count == 1:
        return "It is the only mixture of the study, so none was picked."
    return (
        f"It was picked as the highest of {count} mixtures on the very images it is scored on, so its accuracy, "
        f"its gain and every comparison of it are flattered; of these, only the corrected p-value of the gain "
        f"allows for the picking."
    )


def picked_in_short(found: Findings) -> list[str]:
    """The same for a reader in a hurry; nothing where there was nothing to pick."""
    count = len(found.mixtures)
    if count == 1:
        return []
    return [f"It is the highest of {count} mixtures on the very images it is scored on, which flatters its figures."]


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


# --- Among the mixtures ---


def groupings(found: Findings) -> list[str]:
    """How far the best and the lowest grouping are apart."""
    if found.extremes is None:
        return []
    lowest, gap = found.extremes
    count = len({repr(one.configuration.groups) for one in found.mixtures})
    said = [verdict(f"the best grouping ({named(found.best)})", f"the lowest ({named(lowest)})", gap)]
    if count > 2:
        said.append(
            f"Each of the {count} groupings stands for its highest mixture there; being the extremes, the two "
            f"are further apart than two named beforehand would be."
        )
    return said


def gatings(found: Findings) -> list[str]:
    """Soft against top-1 gating, for the same groups after the same stages."""
    said = [
        verdict(
            f"soft gating ({named(soft)})", f"top-1 gating ({named(top)}, trained with soft gating, top-1 in use)", gap
        )
        for soft, top, gap in found.gatings
    ]
    return said or ["No mixture was tried with both soft and top-1 gating on the same groups."]


def further_stages(found: Findings) -> list[str]:
    """Whether the further stages of training are worth it, for the same groups and gating."""
    said = []
    for more, less, gap in found.further:
        stages = more.configuration.stages[len(less.configuration.stages) :]
        said.append(verdict(f"{named(more)}, trained further ({', '.join(stages)}),", named(less), gap))
    return said


# --- Against the controls ---


def controls(found: Findings) -> list[str]:
    """What the mixture's gain is worth beside each control, and what cannot be told for want of one."""
    said = [f"The mixture is {named(found.best)} ({_cost(found.best)})."] if found.controls else []
    said += [" ".join(control(found, *one)) for one in found.controls]
    mixtures = [one for one in found.study.configurations if one.kind == "mixture" and one.control]
    compared = sum(one.configuration.kind == "mixture" for one, _ in found.controls)
    if 0 < compared < len(mixtures):
        said.append(
            f"Control mixtures are compared with it here where their gating and last stage are the mixture's "
            f"({compared} of {len(mixtures)}); the tables have the others."
        )
    return said + missing_controls(found)


def control(found: Findings, one: Result, ahead: Gap) -> list[str]:
    """What the mixture's gain is worth beside a control. `ahead` is the best mixture over the control."""
    kind = {"ensemble": "ensemble", "mixture": "control mixture"}.get(one.configuration.kind, "control")
    name, over = f"the {kind} {named(one)}", f"{one.gain.images.mean:+.2f} points over the base"
    first = f"{kind.capitalize()} {named(one)} ({_cost(one)}): {over}, "
    first += {1: "a gain that is shown", -1: "a loss that is shown", 0: "no difference that is shown"}[one.gain.sign]
    first += f" ({in_figures(one.gain)})."
    own = ["Each of its experts has all classes."] if one.configuration.is_plain else []
    direct = verdict("the mixture", name, ahead)
    return [first, *own, *unequal(found, one), direct, _meaning(found.best.gain.sign, one.gain.sign, ahead, name)]


def _cost(one: Result) -> str:
    own = one.configuration
    size = f"{amount(own.parameters)} parameters, {amount(own.macs)} MACs"
    return f"{size}, {counted(own.epochs, 'epoch')}, training work {own.work:,.1f}"


def _meaning(gain: int, its_gain: int, ahead: Gap, name: str) -> str:
    """What three comparisons make of the mixture's gain: over the base, the control's, and over the control."""
    if gain > 0:
        if ahead.sign > 0:
            here = "With these trainings the" if ahead.unsure else "The"
            return f"{here} mixture's gain is more than {name} brings."
        if ahead.sign < 0:
            more = "with these trainings more" if ahead.unsure else "more"
            return f"What the mixture gains, {name} gains too, and {more}."
        if its_gain > 0:
            return f"The mixture is not shown to gain more than {name}, which gains too."
        return f"Whether the mixture gains more than {name} is left open."
    if its_gain > 0:
        return f"The mixture is not shown to gain anything, {name} is."
    return f"Neither the mixture nor {name} is shown to gain anything over the base."


def sized(found: Findings) -> list[Result]:
    """The single controls that are larger than the base: what is held to a mixture's size."""
    base = found.base.configuration
    singles = [one for one, _ in found.controls if one.configuration.kind == "single"]
    return [one for one in singles if one.configuration.parameters > MORE * base.parameters]


def unequal(found: Findings, one: Result) -> list[str]:
    """How far a control is from the size of the best mixture: an ensemble, or the single one that comes nearest."""
    best, larger = found.best.configuration, sized(found)
    ensemble = one.configuration.kind == "ensemble"
    if one not in larger and not ensemble:
        return []
    parts = []
    for field, name in (("parameters", "parameters"), ("macs", "MACs")):
        wanted, own = getattr(best, field), getattr(one.configuration, field)
        sizes = [own] if ensemble else [getattr(each.configuration, field) for each in larger]
        nearest = min(sizes, key=lambda size: max(size / wanted, wanted / size))
        if own == nearest and not 1 / MORE <= own / wanted <= MORE:
            parts.append((name, f"{100 * abs(1 - own / wanted):.0f} % {'fewer' if own < wanted else 'more'} {name}"))
    if not parts:
        return []
    figures = listed([part for _, part in parts])
    if ensemble:
        return [f"It has {figures} than the mixture."]
    what = listed([name for name, _ in parts])
    return [f"It comes nearest to the mixture in {what} of the single controls, but has {figures}."]


def controls_counted(found: Findings) -> list[str]:
    """How the best mixture fares against the controls, in one sentence."""
    if not found.controls:
        return missing_controls(found)
    words = {1: "better than", -1: "worse than", 0: "not shown to differ from"}
    parts = []
    for sign, word in words.items():
        names = [
            f"{named(one)}{' (not borne out over seeds)' if ahead.unsure else ''}"
            for one, ahead in found.controls
            if ahead.sign == sign
        ]
        if names:
            parts.append(f"{word} {listed(names)}")
    return [f"Against the controls, the mixture is {'; '.join(parts)}."]


def missing_controls(found: Findings) -> list[str]:
    """What cannot be told for want of a control."""
    lacking = []
    if not any(one.configuration.kind == "ensemble" for one, _ in found.controls):
        lacking.append("an ensemble of as many networks")
    if not sized(found):
        lacking.append("a single network of the same size")
    return [f"Whether {' or '.join(lacking)} gains as much was not tried."] if lacking else []

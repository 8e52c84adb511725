"""Words for figures: names, amounts, intervals, and whether a difference is shown.

A difference is called shown where its 95 % interval over images leaves out zero and its p-value, adjusted by Holm for
the comparisons made together, is below 0.05; else the sentence says that none is shown.
"""

from study.findings import Gap, Result
from study.stats import LEVEL


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
    """A p-value in two or four digits, so that one below 0.05 looks so."""
    if p < 0.00005:
        return "<0.0001"
    if p < LEVEL and round(p, 4) >= LEVEL:
        return f"<{LEVEL}"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


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


def span(seeds: tuple[float, float], digits: int) -> str:
    """The ends of an interval given by its mean and half of it."""
    mean, half = seeds
    return f"{mean - half:+.{digits}f} to {mean + half:+.{digits}f}"


def _seeds(gap: Gap) -> str:
    """What the seeds add to a difference that is shown over images."""
    if gap.seeds is None:
        return "; one seed cannot say whether another training would show it"
    if gap.unsure:
        return f"; the interval over seeds, {span(gap.seeds, 2)}, does not bear it out: other trainings may not show it"
    return f"; the interval over seeds, {span(gap.seeds, 2)}, bears it out"

"""The report of a study: figures, and a Markdown page from report.md.j2, made of its results alone."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from config import CLASSES
from errors import write_file
from study import figures
from study.findings import Findings, Gap, confusion_shares, find
from study.results import Configuration, Study
from study.stats import mean_sd

FIRST_ROWS = ("single", "ensemble", "schedule", "longer")  # of the table at the top; then mixtures


def write_report(study: Study, out: Path) -> Path:
    """Write report.md and five PNG files into the folder `out`; the path of report.md. Raises UserError."""
    found = find(study)
    plot_all(found, out)
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    page.filters |= {"p": p_text, "amount": amount, "gap": gap_text, "span": span_text}
    page.filters |= {"schedule": schedule_text, "further": further, "mean_sd": mean_sd}
    top = {"about": study.about, "answer": answer(found), "first": first_rows(found), "classes": CLASSES}
    text = page.get_template("report.md.j2").render(**found._asdict(), **top)
    write_file(out / "report.md", text.encode())
    return out / "report.md"


def first_rows(found: Findings) -> list[str]:
    """The names of the configurations in the table at the top."""
    best, there = found.best.of, found.study.configurations
    plain = [one.name for one in there if (one.grouping, one.variant) == ("all-classes", best.variant)]
    return list(dict.fromkeys([*(one.name for one in there if one.name in FIRST_ROWS), *plain, best.name]))


def answer(found: Findings) -> str:
    """The answer to the study's question in one sentence, by what is shown."""
    best, gain, controls = found.best.of, found.best.gain, len(found.controls)
    side = "above" if gain.images.mean >= 0 else "below"
    fact = f"the best mixture ({best.grouping}) is {abs(gain.images.mean):.2f} points {side} the single network"
    unbeaten = sum(one.gap.shown <= 0 for one in found.controls)
    if gain.shown <= 0:
        return f"No gain is shown: {fact}, {'a loss' if gain.shown else 'which may be chance'}."
    if unbeaten:
        return f"No gain from the groups is shown: {fact}, but not above {unbeaten} of the {controls} controls."
    return f"A gain from the groups is shown: {fact}, and above all {controls} controls."


# --- Filters of the template ---


def p_text(p: float) -> str:
    """A p-value in two or four digits."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def amount(value: float) -> str:
    """A large number in millions."""
    return f"{value / 1e6:,.2f}M"


def gap_text(gap: Gap, digits: int = 2) -> str:
    """A difference with its 95 % interval over images."""
    middle, low, high = gap.images
    return f"{middle:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def span_text(gap: Gap, digits: int = 2) -> str:
    """The 95 % interval over seeds."""
    if gap.seeds is None:
        return "one seed"
    middle, half = gap.seeds
    return f"{middle - half:+.{digits}f} to {middle + half:+.{digits}f}"


def schedule_text(one: Configuration) -> str:
    """Epochs times the share of the recipe's learning rate, of each stage."""
    return " + ".join(f"{epochs:g} × {Fraction(rate).limit_denominator(100)}" for epochs, rate in one.schedule)


def further(one: Configuration, base: Configuration) -> str:
    """The sum of epochs times rate that a network's weights have more than those of the base."""
    totals = [sum(epochs * rate for epochs, rate in each.schedule) for each in (one, base)]
    return f"{totals[0] - totals[1]:.2f}"


# --- Figures ---


def plot_all(found: Findings, out: Path) -> None:
    """Write the five PNG files."""
    study, base, best = found.study, found.base.of, found.best.of
    inside = [study.inside[one.name] for one in (base, best)]
    others = [one for one in found.scores if one.gain]
    titles, looks = [one.of.title for one in others], [look(study, one.of) for one in others]
    values = np.array([one.gain.images for one in others])
    seeds = np.array([one.accuracy for one in others]) - found.base.accuracy
    figures.gains(titles, looks, values, seeds, out / "gains.png", base=base.title)
    shares = [confusion_shares(study, one) for one in (base, best)]
    figures.confusions(*shares, out / "confusion.png", names=(base.title, best.title))
    models = [(one.title, each.curves) for one, each in zip((base, best), inside, strict=True)]
    figures.stage_curves(models, out / "curves.png")
    gate = found.gate
    figures.gate_use(gate.load, gate.chosen, gate.per_class, best.groups[0], best.experts, out / "gate.png")
    labels, experts = study.labels[study.rows], inside[1].chosen[0][study.rows]
    points = [(each.pca, each.variance, each.tsne) for each in inside]
    panels = [
        figures.Panel(f"{base.title}, by class", *points[0], labels, CLASSES),
        figures.Panel(f"{best.title}, by class", *points[1], labels, CLASSES),
        figures.Panel(f"{best.title}, by expert", *points[1], experts, best.experts),
    ]
    figures.feature_maps(panels, out / "features.png")


def look(study: Study, one: Configuration) -> str:
    """The role of a configuration, one of figures.LOOKS."""
    if one in study.mixtures:
        return "mixture"
    return "control mixture" if one.kind == "mixture" else "control"

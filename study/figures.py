"""The figures of a study's report that compare its networks: stages of training, accuracies, costs.

Takes plain arrays and writes PNG files, as plots.py does; each configuration has one of LOOKS.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from plots import BLUE, FAINT, GREEN, GREY, INK, ORANGE, bare, column, epoch_axis, write_png

DPI = 100
LINE = 14  # pixels from number to number
COLUMN = 46  # pixels: points nearer than that in one direction share a column of numbers
# Colour and marker by the role that a configuration has
LOOKS = {"base": (INK, "o"), "mixture": (BLUE, "s"), "control": (ORANGE, "^"), "other": (GREEN, "D")}


def stage_curves(models: Sequence[tuple[str, Sequence[list[dict]]]], path: Path, *, title: str) -> None:
    """Write a PNG with a row per model: loss and accuracy against the epochs of all stages, one after the other.

    `models` holds a name and, for each seed, a list of stages: {"stage", "epochs"}, an epoch as in history.json
    (losses in nats per image, accuracies as fractions, None leaves a gap). Every seed is a line of its own.
    Raises ValueError where there is no model.
    """
    from matplotlib.figure import Figure

    if not models:
        raise ValueError("models is empty: nothing to plot")
    figure = Figure(figsize=(12, 0.5 + 4 * len(models)), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    parts = figure.subfigures(len(models), 1, squeeze=False)[:, 0]
    for part, (name, seeds) in zip(parts, models, strict=True):
        part.suptitle(fill(name, 110), fontsize=11, color=INK)
        lengths = [max(len(stage["epochs"]) for stage in stages) for stages in zip(*seeds, strict=True)]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        part.supxlabel(_stage_names([stage["stage"] for stage in seeds[0]]), fontsize=9, color=GREY)
        loss, hits = part.subplots(1, 2)
        _stage_lines(loss, seeds, starts, {"train_loss": BLUE, "val_loss_deduplicated": ORANGE}, 1)
        _stage_lines(hits, seeds, starts, {"train_accuracy": BLUE, "val_accuracy_deduplicated": ORANGE}, 100)
        loss.set_ylabel("loss (nats per image)", color=INK)
        hits.set_ylabel("accuracy (% of images)", color=INK)
    handles = [handle(color=BLUE, label="train"), handle(color=ORANGE, label="val (deduplicated)")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    write_png(figure, path)


def _stage_names(names: Sequence[str]) -> str:
    """The stages with their numbers, on lines that break between two of them only."""
    whole = [f"{number} {name}".replace(" ", "\N{NO-BREAK SPACE}") for number, name in enumerate(names, 1)]
    return fill("stages:  " + ",  ".join(whole), 140, break_on_hyphens=False).replace("\N{NO-BREAK SPACE}", " ")


def _stage_lines(axes, seeds, starts: np.ndarray, colours: dict[str, str], scale: float) -> None:
    """Draw the curves of each key in its colour, of every seed and stage, the stages side by side, numbered above."""
    for number, (start, end) in enumerate(pairwise(starts)):
        axes.axvspan(start + 0.5, end + 0.5, color="#f3f4f6" if number % 2 else "white", zorder=0, linewidth=0)
        if number:
            axes.axvline(start + 0.5, color=GREY, linewidth=0.7, zorder=0.5)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 8, "color": GREY}
        axes.annotate(str(number + 1), ((start + end + 1) / 2, 1.01), **place)
        for stages in seeds:
            epochs = stages[number]["epochs"]
            look = {"linewidth": 1.3, "alpha": 0.75, "marker": "o" if len(epochs) < 4 else None, "markersize": 3}
            for key, colour in colours.items():
                axes.plot(start + 1 + np.arange(len(epochs)), scale * column(epochs, key), color=colour, **look)
    epoch_axis(axes, 1, starts[-1], label="epoch, counted over all stages")


def accuracies(
    names: Sequence[str],
    looks: Sequence[str],
    official: np.ndarray,
    deduplicated: np.ndarray,
    gains: np.ndarray,
    path: Path,
    *,
    seeds: np.ndarray,
) -> None:
    """Write a PNG with a row per configuration: its accuracies, and its gain over the base, with 95 % intervals.

    `official`, `deduplicated` and `gains` are (K, 3): mean, low and high in percent or points; a gain of NaN is the
    base's own. `seeds` (K, S) are the accuracies deduplicated of each seed; `looks` names one of LOOKS for each.
    """
    from matplotlib.figure import Figure

    rows = np.arange(len(names))
    figure = Figure(figsize=(12.5, 2 + 0.5 * len(names)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    for row, look in enumerate(looks):
        colour, marker = LOOKS[look]
        _dot(left, row + 0.2, official[row], {"color": GREY, "marker": "x", "linewidth": 0.9, "markersize": 5})
        _dot(left, row - 0.1, deduplicated[row], {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 7})
        if seeds.shape[1] > 1:
            left.plot(seeds[row], [row - 0.1] * seeds.shape[1], "|", color=colour, markersize=9, markeredgewidth=1)
        _dot(right, row - 0.1, gains[row], {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 7})
    left.set_yticks(rows, [fill(f"{number}  {name}", 40) for number, name in enumerate(names, 1)], fontsize=9)
    left.set_ylim(len(names) - 0.5, -0.6)
    left.set_xlabel("accuracy (% of images)", color=INK)
    right.set_xlabel("gain over the base deduplicated (points)", color=INK)
    right.axvline(0, color=INK, linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        bare(axes)
    official_look = {"color": GREY, "marker": "x", "linewidth": 0.9, "label": "official"}
    handles = [*_look_handles(looks, ", deduplicated"), handle(**official_look)]
    if seeds.shape[1] > 1:
        handles.append(handle(color=GREY, marker="|", linewidth=0, label="one seed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    write_png(figure, path)


def _dot(axes, y: float, values: np.ndarray, style: dict[str, Any]) -> None:
    mean, low, high = values
    axes.plot([low, high], [y, y], color=style["color"], linewidth=style["linewidth"])
    axes.plot([mean], [y], color=style["color"], marker=style["marker"], markersize=style["markersize"])


def handle(**style: Any) -> Any:
    """A line that is in a legend only."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _look_handles(looks: Sequence[str], what: str = "") -> list[Any]:
    """What a legend needs to explain the LOOKS that occur."""
    return [
        handle(color=colour, marker=marker, linewidth=0, label=look + what)
        for look, (colour, marker) in LOOKS.items()
        if look in looks
    ]


def costs(
    names: Sequence[str],
    looks: Sequence[str],
    deduplicated: np.ndarray,
    parameters: Sequence[int],
    macs: Sequence[int],
    path: Path,
) -> None:
    """Write a PNG with the accuracy deduplicated against the parameters, and against the MACs for one image.

    `deduplicated` is (K, 3): mean, low and high in percent; each point carries its number, which the key explains.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(14, max(5.0, 1.6 + 0.3 * len(names))), dpi=DPI, layout="constrained")
    left, right, key = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    for axes, values, label in (
        (left, parameters, "parameters (log scale)"),
        (right, macs, "multiply-adds (MACs) for one image (log scale)"),
    ):
        for value, (mean, _, _), look in zip(values, deduplicated, looks, strict=True):
            colour, marker = LOOKS[look]
            axes.plot([value], [mean], color=colour, marker=marker, markersize=7, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.35, max(values) * 1.35)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.set_xlabel(label, color=INK)
        axes.grid(color=FAINT, linewidth=0.6)
        bare(axes)
    left.set_ylabel("accuracy deduplicated (% of images)", color=INK)
    half = (
        deduplicated[:, 2] - deduplicated[:, 1]
    ).mean() / 2  # many have one size: their intervals would hide each other
    left.set_title(f"95 % intervals reach {half:.1f} points up and down", loc="left", fontsize=9, color=GREY)
    key.set_axis_off()
    lines = "\n".join(fill(f"{number}  {name}", 40, subsequent_indent="     ") for number, name in enumerate(names, 1))
    key.text(0, 1, lines, va="top", fontsize=9, color=INK, transform=key.transAxes)
    figure.legend(handles=_look_handles(looks), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # the layout must stand before the numbers find their places
    for axes, values in ((left, parameters), (right, macs)):
        _number_points(axes, values, deduplicated[:, 0])
    write_png(figure, path)


def _number_points(axes, xs: Sequence[float], ys: np.ndarray) -> None:
    """Write 1, 2, ... to the right of the points; of points near each other, in a column with lines to them."""
    points = axes.transData.transform(np.column_stack([xs, ys]))
    places = points + np.array([10, 0])  # where the numbers begin, in pixels
    crowded = np.zeros(len(points), bool)
    box, order = axes.get_window_extent(), np.argsort(points[:, 0], kind="stable")
    for near in np.split(order, np.flatnonzero(np.diff(points[order, 0]) > COLUMN) + 1):
        group = near[np.lexsort((-near, points[near, 1]))]  # from below
        heights = spaced(points[group, 1], LINE, box.y0 + LINE / 2, box.y1 - LINE / 2)
        if np.abs(heights - points[group, 1]).max() > 1:
            places[group] = np.column_stack([np.full(len(group), points[group, 0].max() + 26), heights])
            crowded[group] = True
    for index, (point, place) in enumerate(zip(points, places, strict=True)):
        line = {"arrowprops": {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "relpos": (0, 0.5)}}
        style = {"textcoords": "offset points", "ha": "left", "va": "center"}
        away = (place - point) * 72 / DPI
        axes.annotate(
            str(index + 1),
            (xs[index], ys[index]),
            xycoords="data",
            xytext=away,
            **style,
            fontsize=9,
            color=INK,
            **(line if crowded[index] else {}),
        )


def spaced(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Ascending places with `gap` between neighbours, as near to `wanted`, ascending, as can be (least squares).

    They are between `low` and `high` where there is room for them.
    """
    count = len(wanted)
    slack = wanted - gap * np.arange(count)  # what must not fall: isotonic regression, by its max-min formula
    means = np.array([[slack[a : b + 1].mean() if a <= b else np.nan for b in range(count)] for a in range(count)])
    rising = [np.max([np.min(means[a, at:]) for a in range(at + 1)]) for at in range(count)]
    return np.clip(rising, low, max(low, high - gap * (count - 1))) + gap * np.arange(count)

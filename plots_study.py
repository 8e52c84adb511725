"""The figures of a study's report: stages of training, confusions, accuracies, costs, features, the gate.

Takes plain arrays and writes PNG files, as plots.py does; each configuration has one of LOOKS.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from config import CLASSES
from plots import BLUE, FAINT, GREEN, GREY, INK, ORANGE, bare, column, ink_on, write_png

DPI = 100
# Okabe and Ito's colours without the yellow, which is hard to see on white: seven, as there are classes
SEVEN = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
MARKERS = "oD^sPvX"  # a second sign beside the colour
LAYERS = 20  # in which points are drawn, so that no class hides another
# Colour and marker by the role that a configuration has
LOOKS = {"base": (INK, "o"), "mixture": (BLUE, "s"), "control": (ORANGE, "^"), "other": (GREEN, "D")}


class Panel(NamedTuple):
    """A column of `feature_maps`: points (M, 2) by two methods, with a title, and what each point belongs to."""

    title: str
    pca: np.ndarray
    pca_axes: tuple[str, str]
    tsne: np.ndarray
    members: np.ndarray  # (M,) indices into `names`
    names: Sequence[str]


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
        names = [f"{number} {stage['stage']}" for number, stage in enumerate(seeds[0], 1)]
        part.supxlabel(fill("stages:  " + ",  ".join(names), 140), fontsize=9, color=GREY)
        loss, hits = part.subplots(1, 2)
        _stage_lines(loss, seeds, starts, {"train_loss": BLUE, "val_loss_unseen": ORANGE}, 1)
        _stage_lines(hits, seeds, starts, {"train_accuracy": BLUE, "val_accuracy_unseen": ORANGE}, 100)
        loss.set_ylabel("loss (nats per image)", color=INK)
        hits.set_ylabel("accuracy (% of images)", color=INK)
    handles = [_handle(color=BLUE, label="train"), _handle(color=ORANGE, label="val (without copies)")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    write_png(figure, path)


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
    axes.set_xlim(0.5, starts[-1] + 0.5)
    axes.set_xlabel("epoch, counted over all stages", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    bare(axes)


def confusions(
    first: np.ndarray, second: np.ndarray, path: Path, *, names: tuple[str, str], classes: Sequence[str] = CLASSES
) -> None:
    """Write a PNG of two confusion matrices and of the second less the first.

    Both are (K, K) shares in [0, 1] of the true class (row) named as a class (column); a class without images is a
    row of NaN. Raises ValueError where a shape does not fit.
    """
    from matplotlib.figure import Figure

    size = (len(classes), len(classes))
    if np.shape(first) != size or np.shape(second) != size:
        raise ValueError(f"first and second: expected {size} shares, got {np.shape(first)} and {np.shape(second)}")
    figure = Figure(figsize=(16.5, 5.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3)
    gap = 100 * (np.asarray(second) - np.asarray(first))
    most = max(1.0, float(np.nanmax(np.abs(gap), initial=0.0)))
    titles = [*names, "second less first; blue is more, orange less"]
    for axes, title, values, limits, form in zip(
        panels,
        titles,
        (100 * np.asarray(first), 100 * np.asarray(second), gap),
        ((0, 100), (0, 100), (-most, most)),
        ("{:.1f}", "{:.1f}", "{:+.1f}"),
        strict=True,
    ):
        unit = "points of the true class" if limits[0] else "% of the true class"
        _cells(axes, values, limits, form)
        axes.set_title(f"{fill(title, 44)}\n({unit})", fontsize=11, color=INK)
        axes.set_xticks(range(len(classes)), classes, fontsize=9, color=INK)
        axes.set_yticks(range(len(classes)), classes, fontsize=9, color=INK)
        axes.set_xlabel("predicted class", color=INK)
    panels[0].set_ylabel("true class", color=INK)
    write_png(figure, path)


def _cells(axes, values: np.ndarray, limits: tuple[float, float], form: str) -> None:
    """Draw (R, C) numbers as coloured cells with the number in each; NaN is left grey. Below zero is orange."""
    ends = np.array([[0.78, 0.30, 0.02], [0.03, 0.27, 0.55]])
    known = np.nan_to_num(values)
    depth = np.clip(np.abs(known) / limits[1], 0, 1)[..., None]
    colours = 1 - depth * (1 - ends[(known >= 0).astype(int)])
    colours[np.isnan(values)] = 0.9
    axes.imshow(colours, aspect="equal")
    for row, place in np.ndindex(*values.shape):
        if not np.isnan(values[row, place]):
            text = "0.0" if abs(values[row, place]) < 0.05 else form.format(values[row, place])  # no sign of nothing
            style = {"ha": "center", "va": "center", "fontsize": 10.5, "color": ink_on(colours[row, place])}
            axes.text(place, row, text, **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def accuracies(
    names: Sequence[str],
    looks: Sequence[str],
    official: np.ndarray,
    unseen: np.ndarray,
    gains: np.ndarray,
    path: Path,
    *,
    seeds: np.ndarray,
) -> None:
    """Write a PNG with a row per configuration: its accuracies, and its gain over the base, with 95 % intervals.

    `official`, `unseen` and `gains` are (K, 3): mean, low and high in percent or points; a gain of NaN is the base's
    own. `seeds` (K, S) are the accuracies without copies of each seed; `looks` names one of LOOKS for each.
    """
    from matplotlib.figure import Figure

    rows = np.arange(len(names))
    figure = Figure(figsize=(12.5, 2 + 0.5 * len(names)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    for row, look in enumerate(looks):
        colour, marker = LOOKS[look]
        _dot(left, row + 0.2, official[row], {"color": GREY, "marker": "x", "linewidth": 0.9, "markersize": 5})
        _dot(left, row - 0.1, unseen[row], {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 7})
        if seeds.shape[1] > 1:
            left.plot(seeds[row], [row - 0.1] * seeds.shape[1], "|", color=colour, markersize=9, markeredgewidth=1)
        _dot(right, row - 0.1, gains[row], {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 7})
    left.set_yticks(rows, [fill(f"{number}  {name}", 40) for number, name in enumerate(names, 1)], fontsize=9)
    left.set_ylim(len(names) - 0.5, -0.6)
    left.set_xlabel("accuracy (% of images)", color=INK)
    right.set_xlabel("gain over the base without copies (points)", color=INK)
    right.axvline(0, color=INK, linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        bare(axes)
    official_look = {"color": GREY, "marker": "x", "linewidth": 0.9, "label": "official"}
    handles = [*_look_handles(looks, ", without copies"), _handle(**official_look)]
    if seeds.shape[1] > 1:
        handles.append(_handle(color=GREY, marker="|", linewidth=0, label="one seed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    write_png(figure, path)


def _dot(axes, y: float, values: np.ndarray, style: dict[str, Any]) -> None:
    mean, low, high = values
    axes.plot([low, high], [y, y], color=style["color"], linewidth=style["linewidth"])
    axes.plot([mean], [y], color=style["color"], marker=style["marker"], markersize=style["markersize"])


def _handle(**style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _look_handles(looks: Sequence[str], what: str = "") -> list[Any]:
    """What a legend needs to explain the LOOKS that occur."""
    return [
        _handle(color=colour, marker=marker, linewidth=0, label=look + what)
        for look, (colour, marker) in LOOKS.items()
        if look in looks
    ]


def costs(
    names: Sequence[str],
    looks: Sequence[str],
    unseen: np.ndarray,
    parameters: Sequence[int],
    macs: Sequence[int],
    path: Path,
) -> None:
    """Write a PNG with the accuracy without copies against the parameters, and against the MACs for one image.

    `unseen` is (K, 3): mean, low and high in percent; each point carries its number, which the key explains.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(14, max(5.0, 1.6 + 0.3 * len(names))), dpi=DPI, layout="constrained")
    left, right, key = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    for axes, values, label in (
        (left, parameters, "parameters (log scale)"),
        (right, macs, "multiply-adds (MACs) for one image (log scale)"),
    ):
        for value, (mean, _, _), look in zip(values, unseen, looks, strict=True):
            colour, marker = LOOKS[look]
            axes.plot([value], [mean], color=colour, marker=marker, markersize=7, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.35, max(values) * 1.35)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.set_xlabel(label, color=INK)
        axes.grid(color=FAINT, linewidth=0.6)
        bare(axes)
    left.set_ylabel("accuracy without copies (% of images)", color=INK)
    half = (unseen[:, 2] - unseen[:, 1]).mean() / 2  # many have one size: their intervals would hide each other
    left.set_title(f"95 % intervals reach {half:.1f} points up and down", loc="left", fontsize=9, color=GREY)
    key.set_axis_off()
    lines = "\n".join(fill(f"{number}  {name}", 40, subsequent_indent="     ") for number, name in enumerate(names, 1))
    key.text(0, 1, lines, va="top", fontsize=9, color=INK, transform=key.transAxes)
    figure.legend(handles=_look_handles(looks), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # the layout must stand before the numbers find their places
    for axes, values in ((left, parameters), (right, macs)):
        _number_points(axes, values, unseen[:, 0])
    write_png(figure, path)


def _number_points(axes, xs: Sequence[float], ys: np.ndarray) -> None:
    """Write 1, 2, ... beside the points, each in the first free place around its point, in pixels."""
    points = axes.transData.transform(np.column_stack([xs, ys]))
    taken = [(x, y, 6.0) for x, y in points]  # centres and half sides of what is drawn
    for number, (x, y) in enumerate(points, 1):
        spots = [
            (x + radius * math.cos(turn * math.pi / 6), y + radius * math.sin(turn * math.pi / 6), radius)
            for radius in (14, 20, 27, 35, 44)
            for turn in (1, 0, 11, 2, 10, 4, 6, 8, 5, 7, 3, 9)
        ]
        free = [spot for spot in spots if all(max(abs(spot[0] - a), abs(spot[1] - b)) > 7 + r for a, b, r in taken)]
        clear = [spot for spot in free if np.hypot(*(points - spot[:2]).T).min() > spot[2] - 1]  # its own is nearest
        at_x, at_y, radius = (clear or free or spots)[0]
        taken.append((at_x, at_y, 7.0))
        arrow = {"arrowprops": {"arrowstyle": "-", "color": GREY, "linewidth": 0.5}} if radius > 14 else {}
        place = {"xycoords": "data", "xytext": ((at_x - x) * 72 / DPI, (at_y - y) * 72 / DPI)}
        style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9, "color": INK}
        axes.annotate(str(number), (xs[number - 1], ys[number - 1]), **place, **style, **arrow)


def feature_maps(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG with a column per panel: features by their two principal components, and by t-SNE below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 10.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False)
    for panel, (above, below) in zip(panels, grid.T, strict=True):
        for axes, points in ((above, panel.pca), (below, panel.tsne)):
            _scatter(axes, points, panel.members)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(FAINT)
        above.set_title(fill(panel.title, 46), fontsize=11, color=INK)
        above.set_xlabel(panel.pca_axes[0], fontsize=9, color=INK)
        above.set_ylabel(panel.pca_axes[1], fontsize=9, color=INK)
        below.set_xlabel("t-SNE 1 (no unit)", fontsize=9, color=INK)
        below.set_ylabel("t-SNE 2 (no unit)", fontsize=9, color=INK)
        handles = [
            _handle(linewidth=0, markersize=5, label=fill(name, 26), **_sign(index))
            for index, name in enumerate(panel.names)
        ]
        below.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=9,
                     frameon=False)  # fmt: skip
    write_png(figure, path)


def _sign(index: int) -> dict[str, str]:
    return {"color": SEVEN[index % len(SEVEN)], "marker": MARKERS[index % len(MARKERS)]}


def _scatter(axes, points: np.ndarray, members: np.ndarray) -> None:
    """Draw points (M, 2), each with the sign of the class or expert that it belongs to, in a random order."""
    for layer in np.array_split(np.random.default_rng(0).permutation(len(points)), LAYERS):
        for index in np.unique(members[layer]):
            own = layer[members[layer] == index]
            axes.scatter(*points[own].T, s=13, alpha=0.75, linewidths=0, **_sign(index))


def gate_use(load: np.ndarray, chosen: np.ndarray, per_class: np.ndarray, groups: Sequence[Sequence[str]],
             names: Sequence[str], path: Path) -> None:  # fmt: skip
    """Write a PNG of what a gate does with its E experts, called `names`, which have the classes in `groups`.

    `load` (E,) are mean weights and `chosen` (E,) the shares of images for which an expert has the most weight;
    `per_class` (K, E) are mean weights over the images of each of CLASSES, NaN without images. All in [0, 1]. Framed
    cells are those of an expert's own classes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(groups)
    figure = Figure(figsize=(11.5, 5.6), dpi=DPI, layout="constrained")
    bars, cells = figure.subplots(1, 2, width_ratios=(1, 1.5))
    rows = np.arange(count)
    bars.barh(rows - 0.17, 100 * load, height=0.32, color=BLUE, label="mean weight")
    bars.barh(rows + 0.17, 100 * chosen, height=0.32, color=ORANGE, label="images with the most weight there")
    for row in rows:
        for shift, value in ((-0.17, load[row]), (0.17, chosen[row])):
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            bars.annotate(
                f"{100 * value:.1f}", (100 * value, row + shift), fontsize=9, color=INK, bbox=box, zorder=3, **place
            )
    bars.axvline(100 / count, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="even load")
    bars.set_xlim(0, max(20.0, 118 * max(load.max(), chosen.max(), 1 / count)))
    bars.set_yticks(rows, [fill(name, 18) for name in names], fontsize=9)
    bars.set_ylim(count - 0.5, -0.5)
    bars.set_xlabel("% of the weight, % of the images", color=INK)
    bare(bars)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=1, fontsize=9, frameon=False)
    _cells(cells, 100 * per_class, (0, 100), "{:.1f}")
    for place, group in enumerate(groups):
        for name in group:
            corner = (place - 0.47, CLASSES.index(name) - 0.47)
            cells.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.6))
    cells.set_aspect("auto")
    cells.set_title("mean weight over the images of a class (%); framed: the expert's own classes", fontsize=10,
                    color=GREY)  # fmt: skip
    narrow = max(9, 64 // count)
    cells.set_xticks(rows, [fill(name, narrow) for name in names], fontsize=9)
    cells.set_yticks(range(len(CLASSES)), CLASSES, fontsize=9)
    cells.set_xlabel("expert", color=INK)
    cells.set_ylabel("true class", color=INK)
    write_png(figure, path)

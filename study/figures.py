"""The figures of a study's report. Takes plain arrays and writes PNG files, as plots.py does."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from config import CLASSES
from plots import BLUE, FAINT, GREEN, GREY, INK, ORANGE, bare, column, epoch_axis, ink_on, write_figure

DPI = 100
# Colour and marker by the role of a configuration
LOOKS = {"mixture": (BLUE, "s"), "control": (ORANGE, "^"), "control mixture": (GREEN, "D")}
# Okabe and Ito's colours without the yellow, which is hard to see on white; a marker beside the colour
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
CLASS_LOOKS = [{"color": colour, "marker": marker} for colour, marker in zip(COLOURS, "oD^sPvX", strict=True)]


def gains(
    names: Sequence[str], looks: Sequence[str], values: np.ndarray, seeds: np.ndarray, path: Path, *, base: str
) -> None:
    """Write a PNG with a row per configuration: its gain over the base with the 95 % interval over images.

    `values` are (K, 3) mean, low and high in points; `seeds` (K, S) the gain of each seed; `looks` names one of LOOKS.
    """
    figure = Figure(figsize=(9, 1.6 + 0.27 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for row, (look, (mean, low, high)) in enumerate(zip(looks, values, strict=True)):
        colour, marker = LOOKS[look]
        axes.plot([low, high], [row, row], color=colour, linewidth=1.8)
        axes.plot([mean], [row], color=colour, marker=marker, markersize=6.5)
        axes.plot(seeds[row], [row] * seeds.shape[1], "|", color=colour, markersize=9, markeredgewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"accuracy above the {base} (points, deduplicated)", color=INK)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    bare(axes)
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=0, label=look)
        for look, (colour, marker) in LOOKS.items()
        if look in looks
    ]
    handles.append(Line2D([], [], color=GREY, marker="|", linewidth=0, label="one seed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    write_figure(figure, path)


def stage_curves(models: Sequence[tuple[str, Sequence[list[dict]]]], path: Path) -> None:
    """Write a PNG with a row per model: loss and accuracy against the epochs of all stages, one after the other.

    `models` holds a name and, for each seed, a list of stages: {"stage", "epochs"}, an epoch as a row of metrics.jsonl
    (losses in nats per image, accuracies as fractions, None leaves a gap). Every seed has a line of its own.
    """
    figure = Figure(figsize=(12, 0.5 + 3.6 * len(models)), dpi=DPI, layout="constrained")
    for part, (name, seeds) in zip(figure.subfigures(len(models), 1), models, strict=True):
        part.suptitle(name, fontsize=11, color=INK)
        lengths = [max(len(stage["epochs"]) for stage in stages) for stages in zip(*seeds, strict=True)]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        stages = ",  ".join(f"{number} {stage['stage']}" for number, stage in enumerate(seeds[0], 1))
        part.supxlabel(fill(f"stages:  {stages}", 140, break_on_hyphens=False), fontsize=9, color=GREY)
        loss, accuracy = part.subplots(1, 2)
        _stage_lines(loss, seeds, starts, "loss", 1)
        loss.set_ylabel("loss (nats per image)", color=INK)
        _stage_lines(accuracy, seeds, starts, "accuracy", 100)
        accuracy.set_ylabel("accuracy (%)", color=INK)
    handles = [Line2D([], [], color=BLUE, label="train"), Line2D([], [], color=ORANGE, label="val (deduplicated)")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    write_figure(figure, path)


def _stage_lines(axes: Axes, seeds: Sequence[list[dict]], starts: np.ndarray, what: str, scale: float) -> None:
    """Plot the loss or accuracy of train and val, for every seed and stage; the stages side by side, numbered above."""
    for number, (start, end) in enumerate(pairwise(starts)):
        axes.axvspan(start + 0.5, end + 0.5, color="#f3f4f6" if number % 2 else "white", zorder=0, linewidth=0)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 8, "color": GREY}
        axes.annotate(str(number + 1), ((start + end + 1) / 2, 1.01), **place)
        for stages in seeds:
            epochs = stages[number]["epochs"]
            look = {"linewidth": 1.3, "alpha": 0.75, "marker": "o" if len(epochs) < 4 else None, "markersize": 3}
            for key, colour in ((f"train_{what}", BLUE), (f"val_{what}_deduplicated", ORANGE)):
                axes.plot(start + 1 + np.arange(len(epochs)), scale * column(epochs, key), color=colour, **look)
    epoch_axis(axes, 1, starts[-1], label="epoch, counted over all stages")


def confusions(first: np.ndarray, second: np.ndarray, path: Path, *, names: tuple[str, str]) -> None:
    """Write a PNG of two confusion matrices, and of the second less the first.

    Both are (C, C) shares in [0, 1] of the true class (row) named as a class (column).
    """
    figure = Figure(figsize=(16.5, 5.9), dpi=DPI, layout="constrained")
    gap = 100 * (second - first)
    parts = [
        (f"{names[0]}\n(% of the true class)", 100 * first, 100),
        (f"{names[1]}\n(% of the true class)", 100 * second, 100),
        ("second less first\n(points; blue is more)", gap, max(1.0, float(np.abs(gap).max()))),
    ]
    for axes, (title, values, most) in zip(figure.subplots(1, 3), parts, strict=True):
        _cells(axes, values, most)
        axes.set_title(title, fontsize=11, color=INK)
        axes.set_xticks(range(len(CLASSES)), CLASSES, fontsize=9, color=INK)
        axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=9, color=INK)
        axes.set_xlabel("predicted class", color=INK)
    figure.axes[0].set_ylabel("true class", color=INK)
    write_figure(figure, path)


def _cells(axes: Axes, values: np.ndarray, most: float) -> None:
    """Fill `axes` with (R, C) numbers up to `most` as coloured cells with the number in each; below zero is orange."""
    form = "{:+.1f}" if (values < 0).any() else "{:.1f}"
    ends = np.array([[0.78, 0.30, 0.02], [0.03, 0.27, 0.55]])
    depth = np.clip(np.abs(values) / most, 0, 1)[..., None]
    colours = 1 - depth * (1 - ends[(values >= 0).astype(int)])
    axes.imshow(colours, aspect="equal")
    for row, place in np.ndindex(*values.shape):
        text = "0.0" if abs(values[row, place]) < 0.05 else form.format(values[row, place])  # zero has no sign
        style = {"ha": "center", "va": "center", "fontsize": 10.5, "color": ink_on(colours[row, place])}
        axes.text(place, row, text, **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


class Panel(NamedTuple):
    """A column of `feature_maps`: points (M, 2) by two methods, and what each point belongs to."""

    title: str
    pca: np.ndarray
    variance: Sequence[float]  # shares of the two components
    tsne: np.ndarray
    members: np.ndarray  # (M,) indices into `names`, of up to seven
    names: Sequence[str]


def feature_maps(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG with a column per panel: features by their two principal components, and by t-SNE below."""
    figure = Figure(figsize=(5.2 * len(panels), 10.6), dpi=DPI, layout="constrained")
    for panel, (above, below) in zip(panels, figure.subplots(2, len(panels), squeeze=False).T, strict=True):
        for axes, points in ((above, panel.pca), (below, panel.tsne)):
            for part in np.array_split(np.random.default_rng(0).permutation(len(points)), 20):  # none hides another
                for index in np.unique(panel.members[part]):
                    own = part[panel.members[part] == index]
                    axes.scatter(*points[own].T, s=13, alpha=0.75, linewidths=0, **CLASS_LOOKS[index])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(FAINT)
        above.set_title(panel.title, fontsize=11, color=INK)
        for share, label in zip(panel.variance, (above.set_xlabel, above.set_ylabel), strict=True):
            label(f"principal component ({100 * share:.1f} % of the variance)", fontsize=9, color=INK)
        below.set_xlabel("t-SNE 1 (no unit)", fontsize=9, color=INK)
        below.set_ylabel("t-SNE 2 (no unit)", fontsize=9, color=INK)
        handles = [
            Line2D([], [], linewidth=0, markersize=5, label=fill(name, 26), **look)
            for name, look in zip(panel.names, CLASS_LOOKS, strict=False)
        ]
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.07), "ncols": 2}
        below.legend(handles=handles, fontsize=9, frameon=False, **place)
    write_figure(figure, path)


def gate_use(
    load: np.ndarray, chosen: np.ndarray, per_class: np.ndarray, groups: Sequence, names: Sequence[str], path: Path
) -> None:
    """Write a PNG of what a gate does with its E experts, called `names`, which have the classes in `groups`.

    `load` (E,) are mean weights and `chosen` (E,) the shares of images for which an expert has the most weight;
    `per_class` (C, E) are mean weights over the images of each class. All in [0, 1]. Cells of an expert's own classes
    have a frame.
    """
    count = len(groups)
    rows = np.arange(count)
    figure = Figure(figsize=(11.5, 5.6), dpi=DPI, layout="constrained")
    bars, cells = figure.subplots(1, 2, width_ratios=(1, 1.5))
    bars.barh(rows - 0.17, 100 * load, height=0.32, color=BLUE, label="mean weight")
    bars.barh(rows + 0.17, 100 * chosen, height=0.32, color=ORANGE, label="images with the most weight there")
    for found in bars.containers:
        bars.bar_label(found, fmt="%.1f", padding=4, fontsize=9, color=INK)
    bars.axvline(100 / count, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="even load")
    bars.set_xlim(0, max(20.0, 118 * max(load.max(), chosen.max(), 1 / count)))
    bars.set_yticks(rows, [fill(name, 18) for name in names], fontsize=9)
    bars.set_ylim(count - 0.5, -0.5)
    bars.set_xlabel("% of the weight, % of the images", color=INK)
    bare(bars)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=1, fontsize=9, frameon=False)
    _cells(cells, 100 * per_class, 100)
    for place, group in enumerate(groups):
        for name in group:
            corner = (place - 0.47, CLASSES.index(name) - 0.47)
            cells.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.6))
    cells.set_aspect("auto")
    cells.set_title("mean weight by true class (%); framed: the expert's own classes", fontsize=10, color=GREY)
    cells.set_xticks(rows, [fill(name, max(9, 64 // count)) for name in names], fontsize=9)
    cells.set_yticks(range(len(CLASSES)), CLASSES, fontsize=9)
    cells.set_xlabel("expert", color=INK)
    cells.set_ylabel("true class", color=INK)
    write_figure(figure, path)

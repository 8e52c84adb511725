"""The figures of a study's report that look inside its networks: confusions, features, the gate.

Takes plain arrays and writes PNG files, as plots.py does.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np

from config import CLASSES
from plots import BLUE, FAINT, GREY, INK, ORANGE, bare, ink_on, write_png
from study.figures import DPI, handle

# Okabe and Ito's colours without the yellow, which is hard to see on white: seven, as there are classes
SEVEN = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
MARKERS = "oD^sPvX"  # a second sign beside the colour
SIGNS = tuple(zip(SEVEN, MARKERS, strict=True))  # of classes
# Of experts, so that none is taken for a class: of Tol's muted colours
MUTED = ("#332288", "#999933", "#cc6677", "#44aa99", "#882255", "#117733", "#aa4499")
OTHERS = tuple(zip(MUTED, "<>phd*H", strict=True))
LAYERS = 20  # in which points are drawn, so that no class hides another


class Panel(NamedTuple):
    """A column of `feature_maps`: points (M, 2) by two methods, with a title, and what each point belongs to."""

    title: str
    pca: np.ndarray
    pca_axes: tuple[str, str]
    tsne: np.ndarray
    members: np.ndarray  # (M,) indices into `names`
    names: Sequence[str]
    signs: Sequence[tuple[str, str]] = SIGNS  # the colour and marker of each of `names`, in turn


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


def feature_maps(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG with a column per panel: features by their two principal components, and by t-SNE below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 10.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False)
    for panel, (above, below) in zip(panels, grid.T, strict=True):
        for axes, points in ((above, panel.pca), (below, panel.tsne)):
            _scatter(axes, points, panel.members, panel.signs)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(FAINT)
        above.set_title(fill(panel.title, 46), fontsize=11, color=INK)
        above.set_xlabel(panel.pca_axes[0], fontsize=9, color=INK)
        above.set_ylabel(panel.pca_axes[1], fontsize=9, color=INK)
        below.set_xlabel("t-SNE 1 (no unit)", fontsize=9, color=INK)
        below.set_ylabel("t-SNE 2 (no unit)", fontsize=9, color=INK)
        handles = [
            handle(linewidth=0, markersize=5, label=fill(name, 26), **_sign(panel.signs, index))
            for index, name in enumerate(panel.names)
        ]
        below.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=9, frameon=False
        )
    write_png(figure, path)


def _sign(signs: Sequence[tuple[str, str]], index: int) -> dict[str, str]:
    color, marker = signs[index % len(signs)]
    return {"color": color, "marker": marker}


def _scatter(axes, points: np.ndarray, members: np.ndarray, signs: Sequence[tuple[str, str]]) -> None:
    """Draw points (M, 2), each with the sign of the class or expert that it belongs to, in a random order."""
    for layer in np.array_split(np.random.default_rng(0).permutation(len(points)), LAYERS):
        for index in np.unique(members[layer]):
            own = layer[members[layer] == index]
            axes.scatter(*points[own].T, s=13, alpha=0.75, linewidths=0, **_sign(signs, index))


def gate_use(
    load: np.ndarray,
    chosen: np.ndarray,
    per_class: np.ndarray,
    groups: Sequence[Sequence[str]],
    names: Sequence[str],
    path: Path,
) -> None:
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
    cells.set_title(
        "mean weight over the images of a class (%); framed: the expert's own classes", fontsize=10, color=GREY
    )
    narrow = max(9, 64 // count)
    cells.set_xticks(rows, [fill(name, narrow) for name in names], fontsize=9)
    cells.set_yticks(range(len(CLASSES)), CLASSES, fontsize=9)
    cells.set_xlabel("expert", color=INK)
    cells.set_ylabel("true class", color=INK)
    write_png(figure, path)

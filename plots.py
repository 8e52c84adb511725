"""The figures of a run: training curves, confusion matrix, reliability, mistakes; and a contact sheet of the data.

Takes plain arrays and writes PNG files. matplotlib is imported inside the functions, so that importing this
module costs little, and without pyplot, so that no global state is left behind and no display is needed.
"""

import io
import math
from pathlib import Path

import numpy as np

from config import CLASSES
from errors import write_png
from metrics import Metrics

DPI = 110
# Colours of Okabe and Ito, which colour-blind readers can distinguish too
BLUE, ORANGE, GREEN, RED = "#0072b2", "#d55e00", "#007a5a", "#c1121f"
INK, GREY, FAINT = "#222222", "#6b6b6b", "#d9d9d9"


def plainly(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: between two $ it would be a formula."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float, title: str, caption: str):
    """An empty figure with a title and, below everything, a small caption (both may be empty)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(plainly(title), fontsize=13, fontweight="bold", color=INK)
    if caption:
        figure.supxlabel(plainly(caption), fontsize=9, color=GREY)
    return figure


def curves(history: list[dict], path: Path, *, title: str, caption: str = "") -> None:
    """Write a PNG with two panels, loss and accuracy against epochs, to `path`.

    A row of `history` has epoch (counted from 1), lr, train_loss and val_loss (mean nats per image),
    train_accuracy, val_accuracy and val_accuracy_deduplicated (fractions in [0, 1]; the last one may be None),
    best (bool). The last row with `best` is marked. A value that is None or not finite leaves a gap.
    """
    from matplotlib.ticker import FuncFormatter

    epochs, rates = column(history, "epoch"), column(history, "lr")
    peak = f", up to {rates.max():.3g}" if rates.max() > rates[0] else ""
    course = f"{rates[0]:.3g}{peak}" + (f", down to {rates[-1]:.3g}" if rates[-1] < rates.max() else "")
    accuracy, deduplicated = column(history, "val_accuracy"), column(history, "val_accuracy_deduplicated")
    panels = {
        "loss": {"train": column(history, "train_loss"), "val": column(history, "val_loss")},
        "accuracy": {"train": column(history, "train_accuracy"), "val": accuracy},
    }
    if np.isfinite(deduplicated).any() and not np.array_equal(accuracy, deduplicated, equal_nan=True):
        panels["accuracy"]["val (deduplicated)"] = deduplicated
    looks = {"train": (BLUE, "-"), "val": (ORANGE, "-"), "val (deduplicated)": (GREEN, (0, (4, 1.5)))}
    marker = "o" if len(history) <= 15 else None
    size = 9 if len(history) == 1 else 3.5  # one epoch is a lone point
    best = max((i for i, row in enumerate(history) if row.get("best")), default=None)

    figure = new_figure(11.5, 4.8, title, caption)
    for axes, (quantity, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        shown = "{:.3f}".format if quantity == "loss" else "{:.1%}".format
        for name, values in lines.items():
            colour, style = looks[name]
            look = {"color": colour, "linestyle": style, "linewidth": 1.8, "marker": marker, "markersize": size}
            label = f"{name}: {shown(values[0])}" if len(history) == 1 else name
            axes.plot(epochs, values, label=label, **look)
        epoch_axis(axes, epochs.min(), epochs.max(), label="epoch")
        axes.set_title(f"learning rate {course}", loc="left", fontsize=8.5, color=GREY)
        if best is not None and len(history) > 1:
            value = list(lines.values())[-1][best]  # deduplicated, where that is shown
            ring = {"marker": "o", "s": 90, "facecolors": "none", "edgecolors": INK, "linewidths": 1.6}
            axes.axvline(epochs[best], color=INK, linewidth=0.7, zorder=0.6)
            axes.scatter(epochs[best], value, label=f"best: epoch {epochs[best]:.0f}, {shown(value)}", zorder=5, **ring)
        axes.legend(loc="best", fontsize=9, framealpha=0.9, edgecolor=FAINT)
        axes.set_ylabel("loss (nats per image)" if quantity == "loss" else "accuracy (% of images)", color=INK)
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    write_figure(figure, path)


def epoch_axis(axes, first: float, last: float, *, label: str) -> None:
    """Whole epochs from `first` to `last` below the panel, and a faint grid of the values."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    bare(axes)


def confusion(matrix, path: Path, *, title: str, caption: str = "", classes=CLASSES) -> None:
    """Write a PNG of a confusion matrix to `path`: what each true class was predicted as; the diagonal is its recall.

    `matrix` is (K, K) counts, row = true class, column = predicted class, both in the order of `classes`.
    Each cell gives its share of the row and its count, where these are not 0; blue is right, orange is wrong.
    """
    counts, size = np.asarray(matrix, dtype=np.int64), len(classes)
    per_class = counts.sum(axis=1)
    share = counts / np.maximum(per_class, 1)[:, None]
    accuracy = "no images"
    if per_class.any():
        right, recall = np.trace(counts), np.diag(share)[per_class > 0].mean()
        accuracy = (
            f"accuracy {right / counts.sum():.1%} ({right:,} of {counts.sum():,} images), mean recall {recall:.1%}"
        )

    side = max(0.86 * size, 4.3)  # inches; the accuracy above needs so many
    figure = new_figure(side + 1.9, side + 1.7, title, caption)
    axes, colours = figure.subplots(), _cell_colours(share)
    axes.imshow(colours, aspect="equal")
    for row, column in zip(*np.nonzero(counts), strict=True):
        style = {"ha": "center", "va": "center", "color": ink_on(colours[row, column])}
        weight = "bold" if row == column else "normal"
        if share[row, column] >= 0.005:  # else it would be 0%
            axes.text(column, row - 0.12, f"{share[row, column]:.0%}", fontsize=12, fontweight=weight, **style)
        axes.text(column, row + 0.24, f"{counts[row, column]:,}", fontsize=8.5, **style)
    axes.set_xticks(range(size), classes, fontsize=10, color=INK)
    names = [f"{name}\n{count:,} images" for name, count in zip(classes, per_class, strict=True)]
    axes.set_yticks(range(size), names, fontsize=10, color=INK)
    axes.set_xlabel("predicted class", fontsize=11, color=INK)
    axes.set_ylabel("true class", fontsize=11, color=INK)
    axes.set_title(accuracy, fontsize=10, color=GREY)
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e6e8", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    write_figure(figure, path)


def reliability(before: Metrics, after: Metrics, path: Path, *, title: str, caption: str = "") -> None:
    """Write a PNG of accuracy against confidence, before and after the temperature.

    The larger a point, the more images are in its bin; on the diagonal, probabilities are right on average.
    Where both are the same (a temperature of 1) there is one line.
    """
    figure = new_figure(6.4, 6.4, title, caption)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="calibrated perfectly")
    shown = [("before: ", ORANGE, "o", before), ("after: ", BLUE, "s", after)]
    if before == after:
        shown = [("", BLUE, "o", after)]
    for name, colour, marker, metrics in shown:
        bins = np.array(metrics.bins)
        count, confidence, accuracy = bins[bins[:, 0] > 0].T
        axes.plot(confidence, accuracy, color=colour, linewidth=1.6, label=f"{name}calibration error {metrics.ece:.3f}")
        size = 15 + 400 * count / max(metrics.count, 1)
        axes.scatter(confidence, accuracy, s=size, color=colour, marker=marker, alpha=0.7)
    axes.set_xlabel("confidence: the probability of the predicted class", color=INK)
    axes.set_ylabel("accuracy of the images in a bin; large points: many images", color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor=FAINT)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    bare(axes)
    write_figure(figure, path)


def mistakes(
    images, labels, probabilities, path: Path, *, title: str, caption: str = "", per_class: int = 10, classes=CLASSES
) -> None:
    """Write a PNG of the most confident mistakes, a row per true class, with prediction and probability below each.

    `images` is (N, 48, 48) uint8, `labels` (N,) places in `classes`, `probabilities` (N, K). Wrong labels show up too.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    rows = [order[(predicted != labels)[order] & (labels[order] == index)] for index in range(len(classes))]
    counts = [f"{len(row):,} of {(labels == index).sum():,} wrong" for index, row in enumerate(rows)]
    below = [f"{classes[index]} {value:.0%}" for index, value in zip(predicted, confidence, strict=True)]
    caption = f"Rows: the true class; red: the predicted class and its probability. {caption}".strip()
    names = list(zip(classes, counts, strict=True))
    _sheet(images, [row[:per_class] for row in rows], names, path, title=title, caption=caption, below=below)


def contact_sheet(images, labels, path: Path, *, title: str, per_class: int = 10, classes=CLASSES) -> None:
    """Write a PNG of the first `per_class` images of each class to `path`: one row per class, pixels doubled.

    `images` is (N, 48, 48) uint8, `labels` (N,) places in `classes`.
    """
    rows = [np.flatnonzero(labels == index) for index in range(len(classes))]
    names = [(name, f"{len(row):,}" if len(row) else "none") for name, row in zip(classes, rows, strict=True)]
    _sheet(images, [row[:per_class] for row in rows], names, path, title=title, columns=per_class)


def _sheet(images, rows, names, path: Path, *, title: str, caption: str = "", below=None, columns: int = 10) -> None:
    """Write a PNG with a row of `images` per class, beside it its name and a word; `below` are the images' words."""
    from matplotlib.figure import Figure

    scale, gap, left, top = 2, 4, 118, 44
    tile = images[0].shape[0] * scale
    width, step = left + columns * (tile + gap) + gap, tile + gap + (15 if below else 0)
    height = top + len(rows) * step + gap + (18 if caption else 0)
    canvas = np.full((height, width), 255, dtype=np.uint8)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def write(x: float, y: float, text: str, **style) -> None:
        figure.text(x / width, 1 - y / height, plainly(text), **{"color": INK, "va": "center", **style})

    write(gap + 6, top / 2, title, fontsize=11, fontweight="bold")
    write(gap + 6, height - 12, caption, fontsize=8, color=GREY)
    for index, ((name, word), row) in enumerate(zip(names, rows, strict=True)):
        y = top + index * step
        write(left - 12, y + tile / 2 - 8, name, ha="right", fontsize=11)
        write(left - 12, y + tile / 2 + 10, word, ha="right", fontsize=8, color=GREY)
        for place, member in enumerate(row):
            x = left + place * (tile + gap)
            canvas[y : y + tile, x : x + tile] = images[member].repeat(scale, axis=0).repeat(scale, axis=1)
            if below:
                write(x + tile / 2, y + tile + 8, below[member], ha="center", fontsize=7.5, color=RED)
    figure.figimage(canvas, cmap="gray", vmin=0, vmax=255, origin="upper", zorder=-1)
    write_figure(figure, path)


def column(history: list[dict], key: str) -> np.ndarray:
    """(rows,) float64 of one key; NaN where a row has None or a value that is not finite."""
    values = np.array([math.nan if row.get(key) is None else row[key] for row in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _cell_colours(share: np.ndarray) -> np.ndarray:
    """(K, K, 3) colours in [0, 1]: white to blue on the diagonal, else white to orange, full at half the row."""
    blue, orange = np.array([0.03, 0.27, 0.55]), np.array([0.78, 0.30, 0.02])
    diagonal = np.eye(len(share), dtype=bool)[..., None]
    depth = np.where(diagonal, share[..., None], np.minimum(2 * share[..., None], 1))
    return 1 - depth * (1 - np.where(diagonal, blue, orange))


def ink_on(colour: np.ndarray) -> str:
    """Dark ink or white, whichever has the higher contrast to an RGB colour in [0, 1]."""
    luminance = colour**2.2 @ (0.2126, 0.7152, 0.0722)
    return "white" if luminance < 0.21 else INK  # at 0.21 both have a contrast of 4 (WCAG 2.1)


def bare(axes) -> None:
    """Leave an axes its left and bottom lines only, in grey."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)


def write_figure(figure, path: Path) -> None:
    """Write the figure as PNG of at most 128 colours, which the eye does not miss in half of the bytes.

    They are spread over all colours that occur, however few pixels have them: chosen by number of pixels (Pillow's
    default) they would leave a legend's marks in other colours than what they stand for.
    """
    from PIL import Image

    rendered = io.BytesIO()
    figure.savefig(rendered, format="png")
    spread = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
    write_png(Image.open(rendered).convert("RGB").quantize(128, **spread), path)

"""Every figure of the project: training curves, confusion matrix, contact sheet.

Takes plain arrays and writes PNG files. matplotlib is imported inside the functions, so that importing this
module costs little, and without pyplot, so that no global state is left behind and no display is needed.
"""

import io
import math
from pathlib import Path

import numpy as np

from config import CLASSES
from errors import write_file

DPI = 110
# Colours of Okabe and Ito, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#d55e00", "#007a5a", "#c1121f"
INK, GREY, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
MAX_CUTS = 12  # more changes of the learning rate than this are a smooth schedule: said in words, not drawn


def plainly(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: what stands between two $ would be a formula."""
    return text.replace("$", r"\$")


def curves(history: list[dict], path: Path, *, title: str) -> None:
    """Write a PNG with two panels, loss and accuracy against epochs, to `path`.

    A row of `history` holds epoch (counted from 1), lr, train_loss and val_loss (mean nats per image),
    train_accuracy, val_accuracy and val_accuracy_deduplicated (fractions in [0, 1]; the last leaves out the validation
    images that also stand in train, and may be None), best (bool). The last row with `best` is marked.
    A value that is None or not finite leaves a gap. Raises ValueError if there is no row.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    if not history:
        raise ValueError("history is empty: nothing to plot")
    epochs = column(history, "epoch")
    val, deduplicated = column(history, "val_accuracy"), column(history, "val_accuracy_deduplicated")
    train, val_loss = column(history, "train_accuracy"), column(history, "val_loss")
    lines = {
        "loss": [("train", BLUE, "-", column(history, "train_loss")), ("val", ORANGE, "-", val_loss)],
        "accuracy": [("train", BLUE, "-", train), ("val", ORANGE, "-", val)],
    }
    if np.isfinite(deduplicated).any() and not np.array_equal(val, deduplicated, equal_nan=True):
        lines["accuracy"].append(("val (deduplicated)", GREEN, (0, (4, 1.5)), deduplicated))

    figure = Figure(figsize=(11.5, 4.8), dpi=DPI, layout="constrained")
    figure.suptitle(plainly(title), fontsize=13, fontweight="bold", color=INK)
    panels = dict(zip(lines, figure.subplots(1, 2), strict=True))
    look = {"linewidth": 1.8, "marker": "o" if len(history) <= 15 else None, "markersize": 3.5}
    for quantity, axes in panels.items():
        for name, colour, style, values in lines[quantity]:
            axes.plot(epochs, values, color=colour, linestyle=style, label=name, **look)
        epoch_axis(axes, epochs.min(), epochs.max(), label="epoch")
    panels["loss"].set_ylabel("loss (nats per image)", color=INK)
    panels["accuracy"].set_ylabel("accuracy (% of images)", color=INK)
    panels["accuracy"].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))

    _mark_rates(panels.values(), epochs, column(history, "lr"))
    best = max((i for i, row in enumerate(history) if row.get("best")), default=None)
    for quantity, axes in panels.items():
        if best is not None:
            value = lines[quantity][-1][-1][best]
            _mark_best(axes, epochs[best], value, f"{value:.3f}" if quantity == "loss" else f"{value:.1%}")
        axes.legend(loc="best", fontsize=9, framealpha=0.9, edgecolor=FAINT)
    write_png(figure, path)


def epoch_axis(axes, first: float, last: float, *, label: str) -> None:
    """Whole epochs from `first` to `last` below the panel, and a faint grid of the values."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    bare(axes)


def confusion(matrix, path: Path, *, title: str, classes=CLASSES) -> None:
    """Write a PNG of a confusion matrix to `path`: what each true class was taken for, and its recall.

    `matrix` is (K, K) counts, row = true class, column = predicted class, both in the order of `classes`.
    Each cell gives its share of the row and its count (0 is left blank); blue is right, orange is wrong.
    Raises ValueError if the shape does not fit or a count is negative.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=np.int64)
    size = len(classes)
    if counts.shape != (size, size) or (counts < 0).any():
        raise ValueError(f"matrix: expected ({size}, {size}) counts >= 0, got shape {counts.shape}")
    per_class = counts.sum(axis=1)
    share = counts / np.maximum(per_class, 1)[:, None]
    total, right = int(counts.sum()), int(np.trace(counts))

    side = 0.86 * size
    figure = Figure(figsize=(side + 4.0, side + 1.7), dpi=DPI, layout="constrained")
    figure.suptitle(plainly(title), fontsize=13, fontweight="bold", color=INK)
    cells, bars = figure.subplots(1, 2, width_ratios=(side, 1.9), sharey=True)
    colours = _cell_colours(share)
    cells.imshow(colours, aspect="equal")
    for row, column in zip(*np.nonzero(counts), strict=True):
        style = {"ha": "center", "va": "center", "color": ink_on(colours[row, column])}
        weight = "bold" if row == column else "normal"
        cells.text(column, row - 0.12, f"{share[row, column]:.0%}", fontsize=12, fontweight=weight, **style)
        cells.text(column, row + 0.24, f"{counts[row, column]:,}", fontsize=8.5, **style)
    cells.set_xticks(range(size), classes, fontsize=10, color=INK)
    cells.set_yticks(range(size), classes, fontsize=10, color=INK)
    cells.set_xlabel("predicted class", fontsize=11, color=INK)
    cells.set_ylabel("true class", fontsize=11, color=INK)
    accuracy = f"accuracy {right / total:.1%} ({right:,} of {total:,} images)" if total else "no images"
    cells.set_title(f"{accuracy}; each row adds up to 100%", fontsize=10, color=GREY)
    cells.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    cells.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    cells.grid(which="minor", color="#e3e6e8", linewidth=1)
    cells.tick_params(which="both", length=0)
    cells.spines[:].set_visible(False)
    _recall_bars(bars, np.diag(share), per_class)
    write_png(figure, path)


def contact_sheet(images, labels, path: Path, *, title: str, per_class: int = 10, predictions=None) -> None:
    """Write a PNG of the first `per_class` images of each class to `path`: one row per class, pixels doubled.

    `images` is (N, 48, 48) uint8, `labels` (N,) class indices in the order of CLASSES. With `predictions`
    ((N,) class indices) the predicted class stands under each image, red and framed where it is wrong.
    Raises ValueError if lengths, types or indices do not fit.
    """
    from matplotlib.figure import Figure

    images, labels = np.asarray(images), np.asarray(labels)
    predictions = None if predictions is None else np.asarray(predictions)
    _check_sheet(images, labels, predictions, per_class)
    scale, gap, left, top = 2, 4, 118, 44
    tile = images.shape[1] * scale
    caption = 0 if predictions is None else 15
    width, step = left + per_class * (tile + gap) + gap, tile + gap + caption
    height = top + len(CLASSES) * step + gap

    canvas = np.full((height, width), 255, dtype=np.uint8)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def write(x: float, y: float, text: str, **style) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": INK, "va": "center", **style})

    write(gap + 6, top / 2, plainly(title), fontsize=11, fontweight="bold")
    for index, name in enumerate(CLASSES):
        members = np.flatnonzero(labels == index)
        y = top + index * step
        write(left - 12, y + tile / 2 - 8, name, ha="right", fontsize=11)
        count = f"{len(members):,}" if len(members) else "none"
        write(left - 12, y + tile / 2 + 10, count, ha="right", fontsize=8, color=GREY)
        for place, member in enumerate(members[:per_class]):
            x = left + place * (tile + gap)
            canvas[y : y + tile, x : x + tile] = images[member].repeat(scale, axis=0).repeat(scale, axis=1)
            if predictions is None:
                continue
            wrong = predictions[member] != index
            style = {"color": RED, "fontweight": "bold"} if wrong else {"color": GREY}
            style |= {"ha": "center", "fontsize": 7.5}
            write(x + tile / 2, y + tile + 8, CLASSES[predictions[member]], **style)
            if wrong:
                _frame(figure, x, height - y - tile, tile)
    figure.figimage(canvas, cmap="gray", vmin=0, vmax=255, origin="upper", zorder=-1)
    write_png(figure, path)


def column(history: list[dict], key: str) -> np.ndarray:
    """(rows,) float64 of one key; NaN where a row has None or a value that is not finite."""
    values = np.array([math.nan if row.get(key) is None else row[key] for row in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _rate_cuts(rates: np.ndarray) -> list[int]:
    """Rows before which the learning rate fell; none if it falls so often that it is a smooth schedule."""
    cuts = [i for i in range(1, len(rates)) if rates[i] < 0.98 * rates[i - 1]]
    return cuts if len(cuts) <= min(MAX_CUTS, max(1, len(rates) // 3)) else []


def _mark_rates(panels, epochs: np.ndarray, rates: np.ndarray) -> None:
    """Draw each cut of the learning rate as a thin line with the new rate; say its course above the panel."""
    known = rates[np.isfinite(rates)]
    if not len(known):
        return
    cuts = _rate_cuts(rates)
    if cuts:
        course = f"{rates[cuts[0] - 1]:.3g}, then"
    else:
        peak = f", up to {known.max():.3g}" if known.max() > known[0] else ""
        course = f"{known[0]:.3g}{peak}" + (f", down to {known[-1]:.3g}" if known[-1] < known.max() else "")
    for axes in panels:
        axes.set_title(f"learning rate {course}", loc="left", fontsize=8.5, color=GREY, pad=16 if cuts else 6)
        # Two labels closer than this would touch.
        room, labelled = 0.1 * (epochs[-1] - epochs[0] + 1), -math.inf
        for cut in cuts:
            x = (epochs[cut - 1] + epochs[cut]) / 2
            axes.axvline(x, color=GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0.5)
            if x - labelled >= room:
                place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
                style = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5, "color": GREY}
                axes.annotate(f"{rates[cut]:.3g}", (x, 1), **place, **style)
                labelled = x


def _mark_best(axes, epoch: float, value: float, text: str) -> None:
    """Mark the chosen epoch with a line and a ring, and give its number and value in the legend."""
    axes.axvline(epoch, color=INK, linewidth=0.7, zorder=0.6)
    ring = {"marker": "o", "s": 90, "facecolors": "none", "edgecolors": INK, "linewidths": 1.6}
    axes.scatter([epoch], [value], label=f"best: epoch {epoch:.0f}, {text}", zorder=5, **ring)


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


def _recall_bars(axes, recall: np.ndarray, per_class: np.ndarray) -> None:
    """Draw one bar per class with its recall and number of images, beside the rows of the matrix."""
    rows = range(len(recall))
    axes.barh(rows, np.ones(len(recall)), height=0.26, color="#eef1f4")
    axes.barh(rows, recall, height=0.26, color=_cell_colours(np.eye(1))[0, 0])
    for row, value in enumerate(recall):
        text = f"{value:.1%} of {per_class[row]:,}" if per_class[row] else "no images"
        axes.text(0, row - 0.27, text, ha="left", va="center", fontsize=10, color=INK)
    mean = f"mean {recall[per_class > 0].mean():.1%}" if per_class.any() else ""
    axes.set_title(f"recall\n{mean}", fontsize=10, color=GREY, loc="left")
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(which="both", labelleft=False, length=0)
    axes.spines[:].set_visible(False)


def _check_sheet(images: np.ndarray, labels: np.ndarray, predictions, per_class: int) -> None:
    """Raise ValueError naming the argument of `contact_sheet` that does not fit."""
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.dtype != np.uint8:
        raise ValueError(f"images: expected (N, 48, 48) uint8, got {images.shape} {images.dtype}")
    if per_class < 1:
        raise ValueError(f"per_class: expected at least 1, got {per_class}")
    for name, indices in (("labels", labels), ("predictions", predictions)):
        if indices is None:
            continue
        if indices.shape != images.shape[:1]:
            raise ValueError(f"{name}: expected one for each of {len(images)} images, got shape {indices.shape}")
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(CLASSES)):
            found = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"{name}: expected class indices 0 to {len(CLASSES) - 1}, got {found}")


def _frame(figure, x: float, y: float, side: float) -> None:
    """Draw a red frame just outside a tile; `x` and `y` are the pixels of its lower left corner."""
    from matplotlib.patches import Rectangle

    style = {"fill": False, "edgecolor": RED, "linewidth": 1.5, "transform": None}
    figure.add_artist(Rectangle((x - 1, y - 1), side + 2, side + 2, **style))


def bare(axes) -> None:
    """Leave an axes its left and bottom lines only, in grey."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)


def write_png(figure, path: Path) -> None:
    """Write the figure as PNG of at most 128 colours, which the eye does not miss in half of the bytes.

    They are spread over all colours that occur, however few pixels have them: chosen by number of pixels (Pillow's
    default) they would leave a legend's marks in other colours than what they stand for.
    """
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    spread = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
    image = Image.open(drawn).convert("RGB").quantize(128, **spread)
    image.save(packed, "PNG", optimize=True)
    write_file(path, packed.getvalue())

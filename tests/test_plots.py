"""plots.py, plots_*.py: each figure is a small, whole PNG of what it was given; wrong arguments are named."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import plots
from config import CLASSES
from metrics import measure

ROOT = Path(plots.__file__).parent


def rows(count: int, *, rates=None, deduplicated=0.01) -> list[dict]:
    """`count` epochs of a run that gets better until the last but one."""
    return [
        {
            "epoch": i + 1,
            "lr": 0.1 if rates is None else rates[i],
            "train_loss": 1.9 - i / count,
            "train_accuracy": 0.2 + 0.6 * i / count,
            "val_loss": 1.8 - 0.5 * i / count,
            "val_accuracy": 0.2 + 0.4 * i / count,
            "val_accuracy_deduplicated": None if deduplicated is None else 0.2 + 0.4 * i / count - deduplicated,
            "best": i < max(1, count - 1),
        }
        for i in range(count)
    ]


def texts(figure: Figure) -> str:
    """All that is written in a figure, one piece a line."""
    return "\n".join(piece.get_text() for piece in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


def faces(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48), dtype=np.uint8)


def check_png(path: Path) -> Image.Image:
    """The picture in `path`, which is whole, small, alone in its folder, and not empty."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size < 250_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        shown = image.convert("RGB")
    assert len(shown.getcolors(1_000_000)) > 10
    return shown


# --- curves ---


def test_a_name_with_dollars_is_no_formula(tmp_path, saved):
    plots.curves(rows(3), tmp_path / "curves.png", title="lr$_$0.1")
    plots.confusion(np.eye(7), tmp_path / "confusion.png", title="lr$_$0.1")
    plots.contact_sheet(faces(7), np.arange(7), tmp_path / "sheet.png", title="lr$_$0.1")
    plots.reliability(calibrated(1), calibrated(1), tmp_path / "reliability.png", title="lr$_$0.1")
    assert all(r"lr\$_\$0.1" in texts(figure) for figure in saved)


def test_curves_has_two_panels_with_units_and_the_last_best_epoch(tmp_path, saved):
    history = rows(20)
    plots.curves(history, tmp_path / "curves.png", title="a run")
    loss, accuracy = saved[0].axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (nats per image)", "accuracy (% of images)")
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch" and "a run" in texts(saved[0])
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (loss, accuracy)]
    assert labels[0] == ["train", "val", f"best: epoch 19, {history[18]['val_loss']:.3f}"]
    best = f"best: epoch 19, {history[18]['val_accuracy_deduplicated']:.1%}"
    assert labels[1] == ["train", "val", "val (deduplicated)", best]


@pytest.mark.parametrize("deduplicated", [None, 0.0, math.nan], ids=["absent", "equal", "nan"])
def test_curves_leaves_out_a_third_line_that_would_say_nothing(tmp_path, saved, deduplicated):
    plots.curves(rows(20, deduplicated=deduplicated), tmp_path / "curves.png", title="")
    assert "deduplicated" not in texts(saved[0])


@pytest.mark.parametrize(
    ("rates", "course"),
    [
        ([0.1] * 20, "learning rate 0.1"),
        (np.linspace(0.1, 0.001, 20), "learning rate 0.1, down to 0.001"),
        ([*np.linspace(0.02, 0.1, 5), *np.linspace(0.1, 0.001, 15)], "learning rate 0.02, up to 0.1, down to 0.001"),
    ],
    ids=["constant", "falling", "one cycle"],
)
def test_curves_gives_the_course_of_the_learning_rate(tmp_path, saved, rates, course):
    plots.curves(rows(20, rates=rates), tmp_path / "curves.png", title="")
    assert saved[0].axes[0].get_title(loc="left") == course


@pytest.mark.parametrize("count", [2, 400])
def test_curves_of_any_length(tmp_path, count):
    plots.curves(rows(count), tmp_path / "curves.png", title=f"{count} epochs")
    check_png(tmp_path / "curves.png")


def test_one_epoch_is_a_large_point_each_with_its_value(tmp_path, saved):
    plots.curves(rows(1), tmp_path / "curves.png", title="")
    wanted = ["train: 1.900", "val: 1.800"], ["train: 20.0%", "val: 20.0%"]
    for axes, labels in zip(saved[0].axes, wanted, strict=True):
        assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == labels
        assert min(line.get_markersize() for line in axes.lines) >= 8


def test_curves_without_a_best_epoch_and_with_gaps(tmp_path, saved):
    history = [row | {"best": False, "train_loss": math.inf if row["epoch"] == 3 else 1.0} for row in rows(5)]
    plots.curves(history, tmp_path / "curves.png", title="")
    assert "best" not in texts(saved[0])
    assert np.isnan(saved[0].axes[0].lines[0].get_ydata()).tolist() == [False, False, True, False, False]


# --- confusion ---


def test_confusion_writes_share_and_count_in_each_cell_but_no_zeros(tmp_path, saved):
    matrix = np.diag([1500] * 6 + [0])
    matrix[2, 4], matrix[2, 5] = 500, 2
    plots.confusion(matrix, tmp_path / "confusion.png", title="a run, val")
    check_png(tmp_path / "confusion.png")
    axes, cells = saved[0].axes[0], {}
    for text in axes.texts:
        column, row = text.get_position()
        cells.setdefault((column, round(row)), []).append(text.get_text())
    assert (cells[2, 2], cells[4, 2], cells[0, 0]) == (["75%", "1,500"], ["25%", "500"], ["100%", "1,500"])
    assert cells[5, 2] == ["2"] and len(cells) == 8
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)
    assert [label.get_text() for label in axes.get_yticklabels()][::6] == ["angry\n1,500 images", "neutral\n0 images"]
    assert "accuracy 94.7% (9,000 of 9,502 images), mean recall 95.8%" in texts(saved[0])  # of classes with images


def test_confusion_text_stands_out_from_every_cell(tmp_path, saved):
    shares = np.linspace(0, 1000, 49).astype(int).reshape(7, 7)
    plots.confusion(shares + np.eye(7, dtype=int) * 3000, tmp_path / "confusion.png", title="")
    cells = saved[0].axes[0]
    colours = cells.images[0].get_array()

    def light(colour) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for text in cells.texts:
        column, row = text.get_position()
        ink = 1.0 if text.get_color() == "white" else light(np.full(3, 0x22 / 255))
        dark, bright = sorted((ink, light(colours[round(row), column])))
        assert (bright + 0.05) / (dark + 0.05) > 3.5, (row, column)


def test_confusion_takes_other_classes_lists_and_no_images(tmp_path, saved):
    for matrix in ([[3, 1], [0, 2]], [[0, 0], [0, 0]]):
        plots.confusion(matrix, tmp_path / "confusion.png", title="", classes=("happy", "other"))
    assert "happy\n4 images" in texts(saved[0]) and "no images" in saved[1].axes[0].get_title()


# --- reliability ---


def calibrated(sharpness: float, *, seed: int = 0):
    """Metrics of labels sampled from probabilities that are then made sharper."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(7, 0.4), 2000)
    labels = (probabilities.cumsum(1) > rng.random((2000, 1))).argmax(1)
    sharper = probabilities**sharpness
    return measure(sharper / sharper.sum(1, keepdims=True), labels)


def test_reliability_shows_both_curves_with_their_errors(tmp_path, saved):
    before, after = calibrated(0.5), calibrated(1.0)
    assert after.ece < 0.05 < before.ece
    plots.reliability(before, after, tmp_path / "reliability.png", title="a run", caption="temperature 0.5")
    check_png(tmp_path / "reliability.png")
    written = texts(saved[0])
    assert f"before: calibration error {before.ece:.3f}" in written and "temperature 0.5" in written
    assert f"after: calibration error {after.ece:.3f}" in written
    _, orange, blue = saved[0].axes[0].lines
    assert (orange.get_ydata() > orange.get_xdata()).mean() > 0.8, "underconfident"
    assert np.abs(blue.get_ydata() - blue.get_xdata()).max() < 0.2


@pytest.mark.parametrize("figures_of", [calibrated(1.0), measure(np.zeros((0, 7)), np.zeros(0, int))])
def test_reliability_of_one_temperature_is_one_curve(tmp_path, saved, figures_of):
    plots.reliability(figures_of, figures_of, tmp_path / "reliability.png", title="")
    check_png(tmp_path / "reliability.png")
    assert len(saved[0].axes[0].lines) == 2 and "before" not in texts(saved[0])


# --- contact sheet ---


def test_contact_sheet_doubles_the_pixels_and_names_and_counts_every_class(tmp_path, saved):
    images = np.repeat(np.arange(7, dtype=np.uint8) * 30, 48 * 48).reshape(7, 48, 48)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    plots.contact_sheet(images[order], order, tmp_path / "sheet.png", title="seven")
    shown = np.asarray(check_png(tmp_path / "sheet.png").convert("L"))
    for index in range(7):
        tile = shown[44 + index * 100 : 44 + index * 100 + 96, 118 : 118 + 96]
        assert abs(int(tile.min()) - index * 30) <= 3
        assert tile.max() - tile.min() == 0, "one flat tile, cut at whole pixels"
    plots.contact_sheet(faces(13), np.array([0] * 12 + [2]), tmp_path / "sheet.png", title="some", per_class=5)
    written = texts(saved[1]).splitlines()
    assert [name for name in written if name in CLASSES] == list(CLASSES)
    assert (written[written.index("angry") + 1], written[written.index("disgust") + 1]) == ("12", "none")


def test_mistakes_come_in_rows_of_the_true_class_the_most_confident_first(tmp_path, saved):
    labels = np.array([0, 0, 0, 3, 3])
    probabilities = np.full((5, 7), 0.05)
    for row, (predicted, value) in enumerate([(4, 0.6), (0, 0.7), (1, 0.9), (3, 0.7), (6, 0.55)]):
        probabilities[row, predicted] = value
    images = np.repeat(np.arange(5, dtype=np.uint8) * 40 + 40, 48 * 48).reshape(5, 48, 48)
    plots.mistakes(images, labels, probabilities, tmp_path / "m.png", title="a run", caption="rendered faces")
    shown = np.asarray(check_png(tmp_path / "m.png").convert("L"))
    captions = [text.get_text() for text in saved[0].texts if text.get_color() == plots.RED]
    assert captions == ["disgust 90%", "sad 60%", "neutral 55%"]
    assert [int(shown[92, x]) for x in (166, 266)] == pytest.approx([120, 40], abs=3), "images beside their captions"
    assert {"2 of 3 wrong", "1 of 2 wrong", "0 of 0 wrong"} <= set(texts(saved[0]).splitlines())
    assert "\nRows: the true class; red: the predicted class and its probability. rendered" in texts(saved[0])


# --- all ---


def test_a_figure_replaces_the_old_one_and_is_the_same_each_time(tmp_path):
    path = tmp_path / "confusion.png"
    path.write_text("old")
    plots.confusion(np.eye(7), path, title="")
    first = path.read_bytes()
    plots.confusion(np.eye(7), path, title="")
    assert path.read_bytes() == first
    check_png(path)

"""plots.py, plots_*.py: each figure is a small, whole PNG of what it was given; wrong arguments are named."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import plots
from config import CLASSES
from errors import UserError
from metrics import measure
from study import figures as plots_study
from study import figures_inside as plots_inside

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


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved from now on, to be asked what they show."""
    saved, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


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


def test_curves_has_two_panels_with_units(tmp_path, figures):
    plots.curves(rows(20), tmp_path / "curves.png", title="a run")
    check_png(tmp_path / "curves.png")
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["loss (nats per image)", "accuracy (% of images)"]
    assert [axes.get_xlabel() for axes in figures[0].axes] == ["epoch", "epoch"]
    assert "a run" in texts(figures[0])


def test_a_name_with_dollars_is_no_formula(tmp_path, figures):
    plots.curves(rows(3), tmp_path / "curves.png", title="lr$_$0.1")
    plots.confusion(np.eye(7), tmp_path / "confusion.png", title="lr$_$0.1")
    plots.contact_sheet(faces(7), np.arange(7), tmp_path / "sheet.png", title="lr$_$0.1")
    plots.reliability(calibrated(1), calibrated(1), tmp_path / "reliability.png", title="lr$_$0.1")
    assert all(r"lr\$_\$0.1" in texts(figure) for figure in figures)


def test_curves_shows_train_val_and_val_without_copies(tmp_path, figures):
    plots.curves(rows(20), tmp_path / "curves.png", title="")
    loss, accuracy = ([line.get_label() for line in axes.lines] for axes in figures[0].axes)
    assert loss[:2] == ["train", "val"]
    assert accuracy[:3] == ["train", "val", "val (deduplicated)"]


@pytest.mark.parametrize("deduplicated", [None, 0.0, math.nan], ids=["absent", "equal", "nan"])
def test_curves_leaves_out_a_third_line_that_would_say_nothing(tmp_path, figures, deduplicated):
    plots.curves(rows(20, deduplicated=deduplicated), tmp_path / "curves.png", title="")
    assert "deduplicated" not in texts(figures[0])


def test_curves_marks_the_last_best_epoch_by_its_accuracy_without_copies(tmp_path, figures):
    history = rows(20)
    plots.curves(history, tmp_path / "curves.png", title="")
    assert f"best: epoch 19, {history[18]['val_accuracy_deduplicated']:.1%}" in texts(figures[0])
    assert f"best: epoch 19, {history[18]['val_loss']:.3f}" in texts(figures[0])


def test_curves_marks_where_the_rate_is_cut(tmp_path, figures):
    plots.curves(rows(30, rates=[0.1] * 10 + [0.05] * 10 + [0.0125] * 10), tmp_path / "curves.png", title="")
    for axes in figures[0].axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [10.5, 20.5]
        assert axes.get_title(loc="left") == "learning rate 0.1, down to 0.0125"


@pytest.mark.parametrize(
    ("rates", "course"),
    [
        ([0.1] * 20, "learning rate 0.1"),
        (np.linspace(0.1, 0.001, 20), "learning rate 0.1, down to 0.001"),
        ([*np.linspace(0.02, 0.1, 5), *np.linspace(0.1, 0.001, 15)], "learning rate 0.02, up to 0.1, down to 0.001"),
        ([math.nan] * 20, ""),
    ],
    ids=["constant", "falling", "one cycle", "unknown"],
)
def test_curves_says_the_course_of_a_rate_without_cuts(tmp_path, figures, rates, course):
    plots.curves(rows(20, rates=rates), tmp_path / "curves.png", title="")
    assert figures[0].axes[0].get_title(loc="left") == course
    assert not [line for line in figures[0].axes[0].lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize("count", [1, 2, 400])
def test_curves_of_any_length(tmp_path, count):
    plots.curves(rows(count), tmp_path / "curves.png", title=f"{count} epochs")
    check_png(tmp_path / "curves.png")


def test_curves_without_a_best_epoch_and_with_gaps(tmp_path, figures):
    history = [row | {"best": False, "train_loss": math.inf if row["epoch"] == 3 else 1.0} for row in rows(5)]
    plots.curves(history, tmp_path / "curves.png", title="")
    assert "best" not in texts(figures[0])
    assert np.isnan(figures[0].axes[0].lines[0].get_ydata()).tolist() == [False, False, True, False, False]


def test_curves_of_no_epochs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="history is empty"):
        plots.curves([], tmp_path / "curves.png", title="")


# --- confusion ---


def test_confusion_writes_share_and_count_in_each_cell(tmp_path, figures):
    matrix = np.eye(7, dtype=int) * 1500
    matrix[2, 4] = 500
    plots.confusion(matrix, tmp_path / "confusion.png", title="a run, val")
    check_png(tmp_path / "confusion.png")
    cells = {}
    for text in figures[0].axes[0].texts:
        column, row = text.get_position()
        cells.setdefault((column, round(row)), []).append(text.get_text())
    assert cells[2, 2] == ["75%", "1,500"]
    assert cells[4, 2] == ["25%", "500"]
    assert cells[0, 0] == ["100%", "1,500"]
    assert len(cells) == 8, "cells without images are left blank"


def test_confusion_writes_recall_beside_each_class_and_the_accuracy(tmp_path, figures):
    matrix = np.diag([1, 2, 3, 4, 5, 6, 0])
    matrix[0, 1] = 3
    plots.confusion(matrix, tmp_path / "confusion.png", title="")
    cells, bars = figures[0].axes
    assert [text.get_text() for text in bars.texts][::6] == ["25.0% of 4", "no images"]
    assert "mean 87.5%" in bars.get_title(loc="left"), "a class without images has no recall"
    assert "accuracy 87.5% (21 of 24 images)" in cells.get_title()
    assert [label.get_text() for label in cells.get_yticklabels()] == list(CLASSES)
    assert [label.get_text() for label in cells.get_xticklabels()] == list(CLASSES)


def test_confusion_text_stands_out_from_every_cell(tmp_path, figures):
    shares = np.linspace(0, 1000, 49).astype(int).reshape(7, 7)
    plots.confusion(shares + np.eye(7, dtype=int) * 3000, tmp_path / "confusion.png", title="")
    cells = figures[0].axes[0]
    colours = cells.images[0].get_array()

    def light(colour) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for text in cells.texts:
        column, row = text.get_position()
        ink = 1.0 if text.get_color() == "white" else light(np.full(3, 0x22 / 255))
        dark, bright = sorted((ink, light(colours[round(row), column])))
        assert (bright + 0.05) / (dark + 0.05) > 3.5, (row, column)


def test_confusion_of_no_images(tmp_path, figures):
    plots.confusion(np.zeros((7, 7)), tmp_path / "confusion.png", title="")
    assert "no images" in figures[0].axes[0].get_title()


def test_confusion_takes_other_classes_and_lists(tmp_path, figures):
    plots.confusion([[3, 1], [0, 2]], tmp_path / "confusion.png", title="", classes=("happy", "other"))
    assert "75.0% of 4" in texts(figures[0])


# --- reliability ---


def calibrated(sharpness: float, *, seed: int = 0):
    """Metrics of labels sampled from probabilities that are then made sharper."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(7, 0.4), 2000)
    labels = (probabilities.cumsum(1) > rng.random((2000, 1))).argmax(1)
    sharper = probabilities**sharpness
    return measure(sharper / sharper.sum(1, keepdims=True), labels)


def test_reliability_shows_both_curves_with_their_errors(tmp_path, figures):
    before, after = calibrated(0.5), calibrated(1.0)
    assert after.ece < 0.05 < before.ece
    plots.reliability(before, after, tmp_path / "reliability.png", title="a run", caption="temperature 0.5")
    check_png(tmp_path / "reliability.png")
    written = texts(figures[0])
    assert f"before: calibration error {before.ece:.3f}" in written and "temperature 0.5" in written
    assert f"after: calibration error {after.ece:.3f}" in written
    _, orange, blue = figures[0].axes[0].lines
    assert (orange.get_ydata() > orange.get_xdata()).mean() > 0.8, "underconfident"
    assert np.abs(blue.get_ydata() - blue.get_xdata()).max() < 0.2


@pytest.mark.parametrize("figures_of", [calibrated(1.0), measure(np.zeros((0, 7)), np.zeros(0, int))])
def test_reliability_of_one_temperature_is_one_curve(tmp_path, figures, figures_of):
    plots.reliability(figures_of, figures_of, tmp_path / "reliability.png", title="")
    check_png(tmp_path / "reliability.png")
    assert len(figures[0].axes[0].lines) == 2 and "before" not in texts(figures[0])


# --- contact sheet ---


def test_contact_sheet_doubles_the_pixels_and_keeps_the_class_order(tmp_path):
    images = np.repeat(np.arange(7, dtype=np.uint8) * 30, 48 * 48).reshape(7, 48, 48)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    plots.contact_sheet(images[order], order, tmp_path / "sheet.png", title="seven")
    shown = np.asarray(check_png(tmp_path / "sheet.png").convert("L"))
    for index in range(7):
        tile = shown[44 + index * 100 : 44 + index * 100 + 96, 118 : 118 + 96]
        assert abs(int(tile.min()) - index * 30) <= 3
        assert tile.max() - tile.min() == 0, "one flat tile, cut at whole pixels"


def test_contact_sheet_names_every_class_and_counts_its_images(tmp_path, figures):
    labels = np.array([0] * 12 + [2])
    plots.contact_sheet(faces(13), labels, tmp_path / "sheet.png", title="some", per_class=5)
    written = texts(figures[0]).splitlines()
    assert [name for name in written if name in CLASSES] == list(CLASSES)
    assert written[written.index("angry") + 1] == "12"
    assert written[written.index("disgust") + 1] == "none"


def test_mistakes_come_in_rows_of_the_true_class_the_most_confident_first(tmp_path, figures):
    labels = np.array([0, 0, 0, 3, 3])
    probabilities = np.full((5, 7), 0.05)
    for row, (predicted, value) in enumerate([(4, 0.6), (0, 0.7), (1, 0.9), (3, 0.7), (6, 0.55)]):
        probabilities[row, predicted] = value
    images = np.repeat(np.arange(5, dtype=np.uint8) * 40 + 40, 48 * 48).reshape(5, 48, 48)
    plots.mistakes(images, labels, probabilities, tmp_path / "m.png", title="a run", caption="rendered faces")
    shown = np.asarray(check_png(tmp_path / "m.png").convert("L"))
    captions = [text.get_text() for text in figures[0].texts if text.get_color() == plots.RED]
    assert captions == ["disgust 90%", "sad 60%", "neutral 55%"]
    assert [int(shown[92, x]) for x in (166, 266)] == pytest.approx([120, 40], abs=3), "images beside their captions"
    assert {"2 of 3 wrong", "1 of 2 wrong", "0 of 0 wrong"} <= set(texts(figures[0]).splitlines())
    assert "rendered faces" in texts(figures[0])


def test_contact_sheet_of_noise_stays_small(tmp_path):
    plots.contact_sheet(faces(70), np.repeat(np.arange(7), 10), tmp_path / "sheet.png", title="the worst case")
    check_png(tmp_path / "sheet.png")


# --- the figures of a study ---

GROUPS = [["angry", "fear"], ["disgust", "happy", "surprise"], ["sad", "neutral", "fear"]]
NAMES = ["single", "a mixture with a rather long name, of three experts, soft", "wide"]
LOOKS = ["base", "mixture", "control"]


def stages(*lengths) -> list[dict]:
    rows = [
        {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss_deduplicated": None, "val_accuracy_deduplicated": 0.25}
    ] * 9
    return [{"stage": f"stage {chr(97 + i)}", "epochs": rows[:length]} for i, length in enumerate(lengths)]


def intervals(*means) -> np.ndarray:
    return np.array([(mean, mean - 1, mean + 1) for mean in means])


def test_stage_curves_puts_stages_side_by_side(tmp_path, figures):
    models = [("base", [stages(4)]), ("mixture", [stages(3, 1, 2), stages(2, 1, 2)])]
    plots_study.stage_curves(models, tmp_path / "curves.png", title="a study")
    check_png(tmp_path / "curves.png")
    loss, accuracy = figures[0].subfigs[1].axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (nats per image)", "accuracy (% of images)")
    starts = sorted(line.get_xdata()[0] for line in accuracy.lines if len(line.get_ydata()) and line.get_alpha())
    assert starts == [1] * 4 + [4] * 4 + [5] * 4, "two lines of two seeds in each stage"
    assert "1 stage a,  2 stage b,  3 stage c" in texts(figures[0])
    assert max(np.nanmax(line.get_ydata()) for line in accuracy.lines if line.get_alpha()) == 50
    for part in figures[0].subfigs:
        assert all(tick == int(tick) for axes in part.axes for tick in axes.get_xticks()), "whole epochs"
    with pytest.raises(ValueError, match="models is empty"):
        plots_study.stage_curves([], tmp_path / "none.png", title="")


def test_confusions_shows_both_and_their_difference(tmp_path, figures):
    first, second = np.full((7, 7), 0.1), np.full((7, 7), 0.1)
    first[0, 2], second[0, 2], second[1] = 0.4, 0.25, np.nan
    plots_inside.confusions(first, second, tmp_path / "confusion.png", names=("one", "other"))
    check_png(tmp_path / "confusion.png")
    cells = [{text.get_position(): text.get_text() for text in axes.texts} for axes in figures[0].axes]
    assert [each[2, 0] for each in cells] == ["40.0", "25.0", "-15.0"]
    assert [len(each) for each in cells] == [49, 42, 42], "a class without images is left blank"
    assert cells[2][3, 3] == "0.0"
    with pytest.raises(ValueError, match=r"expected \(7, 7\) shares, got \(7, 7\) and \(2, 2\)"):
        plots_inside.confusions(first, np.zeros((2, 2)), tmp_path / "none.png", names=("", ""))


def test_accuracies_has_a_row_for_each_and_no_gain_of_the_base(tmp_path, figures):
    gains, seeds = intervals(np.nan, 1.5, -0.5), np.array([[59.5, 60.5], [61, 62], [59, 60]])
    means = intervals(60, 61.5, 59.5)
    plots_study.accuracies(NAMES, LOOKS, means, means, gains, tmp_path / "accuracy.png", seeds=seeds)
    check_png(tmp_path / "accuracy.png")
    left, right = figures[0].axes
    assert left.get_xlabel() == "accuracy (% of images)" and "points" in right.get_xlabel()
    assert [label.get_text()[:2] for label in left.get_yticklabels()] == ["1 ", "2 ", "3 "]
    dots = [line for line in right.lines if line.get_marker() in "os^" and np.isfinite(line.get_xdata()).all()]
    assert [(line.get_marker(), line.get_xdata()[0]) for line in dots] == [("s", 1.5), ("^", -0.5)]
    assert "control, deduplicated" in texts(figures[0]) and "other" not in texts(figures[0])


def test_costs_numbers_points_so_that_no_two_numbers_touch(tmp_path, figures):
    names, looks = [f"network {i}" for i in range(12)], ["base", *["mixture"] * 11]
    plots_study.costs(names, looks, intervals(*[60.0] * 12), [300_000] * 12, [10**6] * 12, tmp_path / "cost.png")
    check_png(tmp_path / "cost.png")
    left, right, _ = figures[0].axes
    assert "parameters" in left.get_xlabel() and "MACs" in right.get_xlabel() and "12  network 11" in texts(figures[0])
    for axes in (left, right):
        assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 13)]
        places = np.array([text.get_position() for text in axes.texts]) * plots_study.DPI / 72
        gaps = np.abs(places[:, None] - places).max(2) + 99 * np.eye(12)
        assert gaps.min() > 13


def test_places_are_spaced_and_stay_where_they_are_if_there_is_room():
    spaced = plots_study.spaced
    assert spaced(np.array([0.0, 20, 40]), 14, -99, 99).tolist() == [0, 20, 40]
    assert spaced(np.array([50.0, 50, 50]), 14, 0, 99).tolist() == [36, 50, 64], "around their mean"
    assert spaced(np.array([50.0, 50, 50]), 14, 0, 60).tolist() == [32, 46, 60], "below the top"
    assert spaced(np.array([1.0, 1, 90]), 14, 0, 99).tolist() == [0, 14, 90], "above the bottom, the far one alone"
    rng = np.random.default_rng(0)
    for count in range(1, 9):
        wanted = np.sort(rng.random(count)) * 200
        assert (np.diff(spaced(wanted, 14, 0, 200)) > 13.999).all()


def test_feature_maps_show_every_point_with_its_sign(tmp_path, figures):
    points = np.random.default_rng(0).standard_normal((50, 2))
    panel = plots_inside.Panel("base", points, ("first (9 %)", "second (8 %)"), points, np.arange(50) % 7, CLASSES)
    experts = panel._replace(members=np.zeros(50, int), names=["angry + fear"])
    plots_inside.feature_maps([panel, experts], tmp_path / "features.png")
    check_png(tmp_path / "features.png")
    for axes in figures[0].axes:
        assert sum(len(group.get_offsets()) for group in axes.collections) == 50
        assert axes.get_xlabel() and axes.get_ylabel()
    assert {"angry + fear", *CLASSES} <= set(texts(figures[0]).splitlines())
    assert len(plots_inside.SEVEN) == len(plots_inside.MARKERS) == len(CLASSES)


def test_gate_use_frames_the_own_classes(tmp_path, figures):
    per_class = np.full((7, 3), 1 / 3)
    per_class[1] = np.nan
    load = np.array([0.5, 0.3, 0.2])
    plots_inside.gate_use(load, load[::-1], per_class, GROUPS, ["one", "two", "three"], tmp_path / "gate.png")
    check_png(tmp_path / "gate.png")
    bars, cells = figures[0].axes
    assert [text.get_text() for text in bars.texts] == ["50.0", "20.0", "30.0", "30.0", "20.0", "50.0"]
    assert [label.get_text() for label in cells.get_xticklabels()] == ["one", "two", "three"]
    assert len(cells.patches) == 8 and len(cells.texts) == 18
    assert cells.get_xlabel() == "expert" and cells.get_ylabel() == "true class" and "%" in bars.get_xlabel()


# --- all ---


def test_a_figure_replaces_the_old_one_and_is_the_same_each_time(tmp_path):
    path = tmp_path / "confusion.png"
    path.write_text("old")
    plots.confusion(np.eye(7), path, title="")
    first = path.read_bytes()
    plots.confusion(np.eye(7), path, title="")
    assert path.read_bytes() == first
    check_png(path)


def test_rare_colours_stay_what_they_are(tmp_path):
    figure, random = Figure(figsize=(8, 6)), np.random.default_rng(0)
    axes = figure.subplots()
    for colour, marker in plots_inside.SIGNS + plots_inside.OTHERS:
        axes.scatter(*random.normal(size=(2, 200)), s=12, color=colour, marker=marker, alpha=0.75, linewidths=0)
        axes.scatter([], [], color=colour, marker=marker, label=colour)
    axes.legend()
    figure.savefig(tmp_path / "drawn.png")
    plots.write_png(figure, tmp_path / "written.png")
    pictures = (Image.open(tmp_path / name).convert("RGB") for name in ("drawn.png", "written.png"))
    drawn, written = (np.asarray(picture, int) for picture in pictures)
    assert np.abs(written - drawn).max() < 40, "a mark is in another colour"


def test_a_figure_that_cannot_be_written_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"confusion\.png"):
        plots.confusion(np.eye(7), tmp_path / "missing" / "confusion.png", title="")


def test_import_is_late_and_without_pyplot(tmp_path):
    code = (
        "import sys, pathlib, plots; assert 'matplotlib' not in sys.modules\n"
        "plots.confusion([[1]], pathlib.Path(sys.argv[1]), title='', classes=('one',))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "one.png")], cwd=ROOT, check=True, timeout=120)

"""The figures of a study's report: what they show, and that they are whole and small."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import plots
from config import CLASSES
from study import figures

GROUPS = [["angry", "fear"], ["disgust", "happy", "surprise"], ["sad", "neutral", "fear"]]


def check_png(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name] and path.stat().st_size < 250_000
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10


def test_gains_have_a_row_for_each_configuration(tmp_path, saved):
    values, seeds = np.array([(1.5, 0.5, 2.5), (-0.5, -1.5, 0.5)]), np.array([[1, 2], [0, -1]])
    figures.gains(["one", "two"], ["mixture", "control"], values, seeds, tmp_path / "gains.png", base="single")
    check_png(tmp_path / "gains.png")
    axes = saved[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"] and "points" in axes.get_xlabel()
    dots = [(line.get_marker(), *line.get_xdata()) for line in axes.lines if line.get_marker() in ("s", "^")]
    assert dots == [("s", 1.5), ("^", -0.5)]
    assert {text.get_text() for text in saved[0].legends[0].texts} == {"mixture", "control", "one seed"}


def test_stage_curves_put_stages_side_by_side(tmp_path, saved):
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss_deduplicated": None, "val_accuracy_deduplicated": 0.25}

    def stages(*lengths):
        return [{"stage": f"stage {at}", "epochs": [row] * length} for at, length in enumerate(lengths)]

    models = [("base", [stages(4)]), ("mixture", [stages(3, 1, 2), stages(2, 1, 2)])]
    figures.stage_curves(models, tmp_path / "curves.png")
    check_png(tmp_path / "curves.png")
    loss, accuracy = saved[0].subfigs[1].axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (nats per image)", "accuracy (%)")
    starts = sorted(line.get_xdata()[0] for line in accuracy.lines)
    assert starts == [1] * 4 + [4] * 4 + [5] * 4, "two lines of two seeds in each stage"
    assert max(np.nanmax(line.get_ydata()) for line in accuracy.lines) == 50


def test_confusions_show_both_and_their_difference(tmp_path, saved):
    first, second = np.full((7, 7), 0.1), np.full((7, 7), 0.1)
    first[0, 2], second[0, 2] = 0.4, 0.25
    figures.confusions(first, second, tmp_path / "confusion.png", names=("one", "other"))
    check_png(tmp_path / "confusion.png")
    cells = [{text.get_position(): text.get_text() for text in axes.texts} for axes in saved[0].axes]
    assert [each[2, 0] for each in cells] == ["40.0", "25.0", "-15.0"]
    assert [len(each) for each in cells] == [49, 49, 49] and cells[2][3, 3] == "0.0"


def test_feature_maps_show_every_point_with_its_look(tmp_path, saved):
    points = np.random.default_rng(0).standard_normal((50, 2))
    panel = figures.Panel("base", points, (0.09, 0.08), points, np.arange(50) % 7, CLASSES)
    experts = panel._replace(members=np.zeros(50, int), names=["angry + fear"])
    figures.feature_maps([panel, experts], tmp_path / "features.png")
    check_png(tmp_path / "features.png")
    for axes in saved[0].axes:
        assert sum(len(group.get_offsets()) for group in axes.collections) == 50
        assert axes.get_xlabel() and axes.get_ylabel()
    legends = [{text.get_text() for text in axes.get_legend().texts} for axes in saved[0].axes if axes.get_legend()]
    assert legends == [set(CLASSES), {"angry + fear"}]


def test_gate_use_frames_the_own_classes(tmp_path, saved):
    load, per_class = np.array([0.5, 0.3, 0.2]), np.full((7, 3), 1 / 3)
    figures.gate_use(load, load[::-1], per_class, GROUPS, ["one", "two", "three"], tmp_path / "gate.png")
    check_png(tmp_path / "gate.png")
    bars, cells = saved[0].axes
    assert [text.get_text() for text in bars.texts] == ["50.0", "30.0", "20.0", "20.0", "30.0", "50.0"]
    assert len(cells.patches) == 8 and len(cells.texts) == 21
    assert cells.get_xlabel() == "expert" and cells.get_ylabel() == "true class" and "%" in bars.get_xlabel()


def test_rare_colours_stay_what_they_are(tmp_path):
    figure, random = Figure(figsize=(8, 6)), np.random.default_rng(0)
    axes = figure.subplots()
    for look in figures.CLASS_LOOKS:
        axes.scatter(*random.normal(size=(2, 200)), s=12, alpha=0.75, linewidths=0, **look)
        axes.scatter([], [], label=look["color"], **look)
    axes.legend()
    figure.savefig(tmp_path / "plotted.png")
    plots.write_figure(figure, tmp_path / "written.png")
    pictures = (Image.open(tmp_path / name).convert("RGB") for name in ("plotted.png", "written.png"))
    plotted, written = (np.asarray(picture, int) for picture in pictures)
    assert np.abs(written - plotted).max() < 40, "a mark is in another colour"

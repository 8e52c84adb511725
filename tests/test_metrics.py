"""metrics.py: the figures agree with scikit-learn's, and with counts by hand."""

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from config import CLASSES
from metrics import ECE_BINS, find_threshold, measure, summary, table


def probabilities_and_labels(count: int = 500, *, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(classes, 0.4), count), rng.integers(0, classes, count)


@pytest.mark.parametrize("absent", [None, 2])  # a class without images
def test_the_figures_are_those_of_scikit_learn(absent):
    probabilities, labels = probabilities_and_labels()
    kept = labels != absent
    probabilities, labels = probabilities[kept], labels[kept]
    predicted, present = probabilities.argmax(1), np.unique(labels)
    figures = measure(probabilities, labels)
    assert figures.count == len(labels)
    assert figures.accuracy == pytest.approx(reference.accuracy_score(labels, predicted))
    assert figures.correct == reference.accuracy_score(labels, predicted, normalize=False)
    macro_f1 = reference.f1_score(labels, predicted, labels=present, average="macro")
    assert figures.macro_f1 == pytest.approx(macro_f1)
    assert figures.loss == pytest.approx(reference.log_loss(labels, probabilities, labels=range(7)))
    assert figures.confusion == reference.confusion_matrix(labels, predicted, labels=range(7)).tolist()
    recall = reference.recall_score(labels, predicted, labels=present, average=None)
    assert [value for value in figures.recall if value is not None] == pytest.approx(recall.tolist())
    assert [name for name, value in enumerate(figures.recall) if value is None] == ([] if absent is None else [absent])


def test_the_bins_are_those_of_scikit_learn():
    probabilities, labels = probabilities_and_labels(2000)
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=ECE_BINS)
    bins = np.array([row for row in measure(probabilities, labels).bins if row[0]])
    np.testing.assert_allclose(bins[:, 1:], np.stack([mean, accuracy], 1))
    assert bins[:, 0].sum() == 2000


def test_calibration_error_is_the_mean_gap_weighted_by_images():
    probabilities = np.array([[0.95, 0.05]] * 10 + [[0.5001, 0.4999]] * 10)
    labels = np.array([0] * 5 + [1] * 5 + [0] * 10)
    assert measure(probabilities, labels).ece == pytest.approx((10 * 0.45 + 10 * 0.4999) / 20)
    assert measure(np.eye(2)[labels], labels).ece == 0.0  # sure and right, in the last bin


def test_the_loss_given_is_averaged_over_images_and_a_probability_of_zero_costs_much_but_not_infinitely():
    probabilities, labels = probabilities_and_labels(4)
    assert measure(probabilities, labels, np.array([1.0, 2, 3, 6])).loss == 3.0
    assert 100 < measure(np.array([[0.0, 1.0]]), np.array([0])).loss < 1000


def test_no_images_give_zeros():
    figures = measure(np.zeros((0, 7)), np.zeros(0, np.int64))
    assert (figures.count, figures.accuracy, figures.macro_f1, figures.ece, figures.loss) == (0, 0, 0, 0, 0)
    assert figures.recall == [None] * 7


def test_summary_and_table_show_the_figures():
    figures = measure(np.eye(7)[[0, 0, 1]], np.array([0, 1, 1]))
    assert summary(figures).startswith("accuracy 0.6667 (2 of 3)  macro-F1 0.6667  ECE ")
    lines = table(figures)
    assert lines[0].split()[-7:] == list(CLASSES)
    assert lines[2].split() == ["disgust", "0.500", "1", "1", "0", "0", "0", "0", "0"]
    assert lines[3].split()[:2] == ["fear", "-"]


def test_above_the_threshold_four_of_five_answers_are_right():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 4000)
    labels = np.where(rng.random(4000) < confidence, 0, 1)  # calibrated: as often right as it says
    probabilities = np.zeros((4000, 7))
    probabilities[:, 0], probabilities[:, 2:] = confidence, (1 - confidence[:, None]) / 5
    threshold, coverage, right = find_threshold(probabilities, labels)
    answered = confidence >= threshold
    assert threshold == pytest.approx(0.6, abs=0.05) and coverage == pytest.approx(answered.mean())
    assert right == (labels[answered] == 0).mean() == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(("right", "expected"), [(10, (0.6, 1.0, 1.0)), (0, (1.0, 0.0, 0.0))])
def test_a_network_that_is_always_or_never_right_answers_always_or_never(right, expected):
    probabilities = np.tile([0.6, 0.4], (10, 1))
    assert find_threshold(probabilities, np.arange(10) >= right) == expected

"""stats.py: intervals and tests against answers that are known."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from metrics import measure
from study.stats import PAIRS, bootstrap, confused, holm, interval, macro_f1, proportion, sign_flip

few = settings(max_examples=40, deadline=None)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_interval_is_students():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(14)
    low, high = t.interval(0.95, 13, values.mean(), values.std(ddof=1) / 14**0.5)
    mean, half = interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))


# --- Bootstrap ---


def test_bootstrap_pairs_images_and_draws_them_once_for_all_seeds():
    rng = np.random.default_rng(0)
    second = rng.random((2, 4000)) < 0.6
    assert bootstrap(second, second) == (0.0, 0.0, 0.0)
    assert bootstrap(np.ones((2, 50)), np.zeros((2, 50))) == (100.0, 100.0, 100.0)
    first = second.copy()
    first[:, :40] = True  # both seeds gain on the same few images
    second[:, :40] = False
    mean, low, high = bootstrap(first, second)
    half = 196 * (0.01 * 0.99 / 4000) ** 0.5  # of a share of 1 %: unpaired it would be five times as much
    assert mean == pytest.approx(1.0) and low == pytest.approx(1 - half, abs=0.05)
    assert high == pytest.approx(1 + half, abs=0.05)
    cancel = np.zeros((2, 100), bool)
    cancel[0] = True  # what one seed gains on an image, the other loses on it
    assert bootstrap(cancel, ~cancel) == (0.0, 0.0, 0.0)


def test_bootstrap_covers_the_true_difference_in_95_of_100_samples():
    rng, inside, samples = np.random.default_rng(1), 0, 400
    for _ in range(samples):
        hard = rng.random(300)
        second = hard + 0.1 * rng.standard_normal((3, 300)) < 0.6
        first = second | (rng.random(300) < 0.1)  # mends a tenth of what is wrong
        true = 100 * 0.1 * 0.4
        _, low, high = bootstrap(first, second)
        inside += low <= true <= high
    assert 0.91 < inside / samples < 0.98  # the standard error is 0.011, the percentile bootstrap a little narrow


def test_proportion_is_as_wide_as_the_binomial_for_one_seed_and_for_alike_seeds():
    hits = np.random.default_rng(0).random((1, 3000)) < 0.7
    half = 196 * (0.7 * 0.3 / 3000) ** 0.5
    for seeds in (1, 3):  # the same images: more seeds of the same hits tell nothing more
        mean, low, high = proportion(hits.repeat(seeds, 0))
        assert mean == pytest.approx(100 * hits.mean()) and (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert proportion(np.ones((2, 9))) == (100, 100, 100)


def test_macro_f1_is_that_of_the_scoring_script():
    rng = np.random.default_rng(5)
    labels = rng.choice(6, 200, p=(0.3, 0.02, 0.2, 0.18, 0.2, 0.1))  # none of the last class
    predicted = np.where(rng.random((2, 200)) < 0.6, labels, rng.integers(0, 7, (2, 200)))
    scores = [measure(np.eye(7)[row], labels) for row in predicted]
    assert macro_f1(labels, predicted) == pytest.approx([100 * each.macro_f1 for each in scores])


# --- Tests of differences ---


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (10, 3), (3, 10), (60, 31), (1, 300)])
def test_sign_flip_of_one_seed_is_mcnemars_exact_test(first, second):
    one = np.array([[True] * first + [False] * second + [True, False, True]])
    other = np.array([[False] * first + [True] * second + [True, False, True]])
    assert sign_flip(one, other) == pytest.approx(binomtest(first, first + second).pvalue if first + second else 1.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 9))
@few
def test_sign_flip_counts_all_signs(seed, seeds, images):
    first, second = np.random.default_rng(seed).random((2, seeds, images)) < 0.5
    gaps = (first.astype(int) - second).sum(0)
    sums = np.abs(np.array(list(product((-1, 1), repeat=images))) @ np.abs(gaps))
    assert sign_flip(first, second) == sign_flip(second, first) == pytest.approx((sums >= abs(gaps.sum())).mean())


def test_a_p_value_is_not_the_floor_of_a_number_of_draws():
    first, second = np.ones((3, 200), bool), np.zeros((3, 200), bool)
    assert sign_flip(first, second) == pytest.approx(2 / 2**200)
    adjusted = holm([sign_flip(first, second), *[1.0] * 18])
    assert adjusted[0] < 1e-50  # 10,000 draws would end at 0.0001, and 0.0019 after correction


def test_sign_flip_counts_an_image_once_whatever_the_seeds():
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 1, 500)) < 0.64
    second &= rng.random((1, 500)) < 0.93
    alone, thrice = sign_flip(first, second), sign_flip(first.repeat(3, 0), second.repeat(3, 0))
    assert thrice == pytest.approx(alone, abs=0.02)
    pooled = sign_flip(first.repeat(3, 0).reshape(1, -1), second.repeat(3, 0).reshape(1, -1))
    assert pooled < 0.5 * thrice  # what pooling the seeds would have claimed


# --- Many tests ---


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, and none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).tolist() == []


@given(p_lists)
@few
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values):
    p, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * p + 1e-15)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


# --- Pairs ---


def test_confused_is_both_ways_and_of_the_pair_alone():
    labels, predicted = np.array([0, 2, 0, 2, 0, 4]), np.array([2, 0, 0, 2, 4, 0])
    assert confused(labels, predicted, (0, 2)).tolist() == [True, True, False, False, False, False]
    assert confused(labels, np.stack([predicted, labels]), (0, 2)).sum(1).tolist() == [2, 0]


@given(st.integers(0, 2**32 - 1))
@few
def test_every_mistake_belongs_to_one_pair(seed):
    labels, predicted = np.random.default_rng(seed).integers(0, 7, (2, 50))
    assert len(set(PAIRS)) == 21
    assert (sum(confused(labels, predicted, pair).astype(int) for pair in PAIRS) == (labels != predicted)).all()

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.roc import auc_delong, compare_auc_delong, hand_till, one_vs_rest


def wins(high, low):
    """Return for each pair whether the first is larger, half for a tie, (n, m)."""
    return np.array([[(a > b) + 0.5 * (a == b) for b in low] for a in high])


def slow_delong(truth, *scores):
    """Return areas and their covariance from placement values, pair by pair, as in DeLong et al. (1988), equations 4 to 7."""
    truth = np.asarray(truth, dtype=bool)
    tables = [wins(np.asarray(score)[truth], np.asarray(score)[~truth]) for score in scores]
    positive = np.atleast_2d(np.cov([table.mean(axis=1) for table in tables]))
    negative = np.atleast_2d(np.cov([table.mean(axis=0) for table in tables]))
    covariance = positive / truth.sum() + negative / (~truth).sum()
    return np.array([table.mean() for table in tables]), covariance


def cases(seed, n=40, gain=1.0):
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 3 == 0
    shared = generator.normal(size=n)
    first = np.round(gain * truth + shared + 0.5 * generator.normal(size=n), 1)  # rounded: there are ties
    second = np.round(1.4 * gain * truth + shared + 0.5 * generator.normal(size=n), 1)
    return truth, first, second


def class_scores(seed, n=90, classes=3):
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=n)
    logits = generator.normal(size=(n, classes)) + 1.2 * np.eye(classes)[truth]
    return truth, np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 3)


@pytest.mark.parametrize("seed", range(4))
def test_area_and_variance_are_those_of_all_pairs(seed):
    truth, score, _ = cases(seed)
    (area,), covariance = slow_delong(truth, score)
    found = auc_delong(truth, score)
    assert found.estimate == pytest.approx(area)
    reach = 1.959964 * np.sqrt(covariance[0, 0]) / (area * (1 - area))
    odds = area / (1 - area) * np.exp([-reach, reach])
    assert (found.low, found.high) == pytest.approx(tuple(odds / (1 + odds)))
    assert (found.n, found.reason) == (40, None)
    assert found.estimate == pytest.approx(stats.mannwhitneyu(score[truth], score[~truth]).statistic / (14 * 26))


def test_an_area_worked_by_hand():
    # Positives 3 and 1, negatives 2 and 0: three pairs of four are in order.
    assert auc_delong([1, 1, 0, 0], [3, 1, 2, 0]).estimate == 0.75
    assert auc_delong([1, 1, 0, 0], [3, 2, 2, 0]).estimate == 0.875


@pytest.mark.parametrize("seed", range(4))
def test_two_areas_are_compared_with_their_covariance(seed):
    truth, first, second = cases(seed)
    areas, covariance = slow_delong(truth, first, second)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = compare_auc_delong(truth, first, second)
    assert (found.first, found.second) == pytest.approx(tuple(areas))
    assert found.difference == pytest.approx(areas[1] - areas[0])
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(areas[1] - areas[0]) / error))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error)


def test_the_variance_is_that_of_the_bootstrap():
    truth, first, second = cases(0, n=150)
    generator, areas = np.random.default_rng(0), []
    for _ in range(800):
        drawn = np.concatenate([generator.choice(np.flatnonzero(truth == label), (truth == label).sum()) for label in (0, 1)])
        found = [
            stats.mannwhitneyu(score[drawn][truth[drawn]], score[drawn][~truth[drawn]]).statistic for score in (first, second)
        ]
        areas.append(np.array(found) / (truth.sum() * (~truth).sum()))
    errors = np.sqrt(np.diag(slow_delong(truth, first, second)[1]))
    assert np.std(areas, axis=0) == pytest.approx(errors, rel=0.1)
    found = compare_auc_delong(truth, first, second)
    assert np.std(np.diff(areas, axis=1)) == pytest.approx((found.high - found.low) / (2 * 1.96), rel=0.1)


def test_intervals_and_tests_hold():
    held, rejected, repeats = 0, 0, 1000
    true_area = stats.norm.cdf(1.6 / np.sqrt(2))
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        truth = np.repeat([True, False], 20)
        score = 1.6 * truth + generator.normal(size=40)
        found = auc_delong(truth, score)
        held += found.reason is None and found.low <= true_area <= found.high
        noise = generator.normal(size=(2, 40))
        rejected += compare_auc_delong(truth, score + noise[0], score + noise[1]).p <= 0.05
    assert 0.93 <= held / repeats <= 0.98
    assert 0.03 <= rejected / repeats <= 0.075


def test_the_same_score_twice_does_not_differ():
    truth, first, _ = cases(0)
    for second in (first, 2 * first + 1):
        found = compare_auc_delong(truth, first, second)
        assert (found.difference, found.low, found.high, found.p, found.reason) == (0, 0, 0, 1, None)


def test_what_has_no_variance_says_why():
    assert auc_delong([1, 1, 0, 0], [4, 3, 2, 1]).reason.startswith("the classes are separated perfectly")
    assert auc_delong([1, 0, 0], [2, 1, 3]).reason.startswith("fewer than two cases of a class")
    assert np.isnan(auc_delong([0, 0, 0], [2, 1, 3]).estimate)
    assert np.isnan(auc_delong([], []).estimate)
    found = compare_auc_delong([1, 1, 0, 0], [4, 3, 2, 1], [1, 2, 3, 4])
    assert (found.first, found.second, found.difference) == (1, 0, -1)
    assert np.isnan([found.low, found.high, found.p]).all()
    assert found.reason.startswith("the classes are separated perfectly")
    assert compare_auc_delong([1, 0, 0], [2, 1, 3], [1, 2, 3]).reason.startswith("fewer than two cases of a class")
    for truth in ([], [1, 1], [0, 0]):
        found = compare_auc_delong(truth, np.arange(len(truth)), np.arange(len(truth)))
        assert np.isnan([found.first, found.second, found.difference, found.p]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=4, max_size=25))
def test_the_area_of_the_other_class_is_the_rest_to_one(rows):
    truth, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=float)
    found, mirrored, stretched = auc_delong(truth, score), auc_delong(~truth, score), auc_delong(truth, score**3)
    assert mirrored.estimate == pytest.approx(1 - found.estimate, nan_ok=True)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), nan_ok=True)
    assert (stretched.low, stretched.high) == pytest.approx((found.low, found.high), nan_ok=True)
    if found.reason is None:
        assert 0 < found.low <= found.estimate <= found.high < 1


def test_each_class_against_the_rest():
    truth, scores = class_scores(0)
    found = one_vs_rest(truth, scores)
    assert [one.estimate for one in found] == pytest.approx([slow_delong(truth == k, scores[:, k])[0][0] for k in range(3)])


def test_hand_and_till_is_the_mean_over_pairs_of_classes():
    truth, scores = class_scores(1, classes=4)
    pairs = [wins(scores[truth == i, i], scores[truth == j, i]).mean() for i, j in itertools.permutations(range(4), 2)]
    found = hand_till(truth, scores)
    assert found.estimate == pytest.approx(np.mean(pairs))
    frequent = np.concatenate([np.arange(len(truth)), np.flatnonzero(truth == 2)])
    assert hand_till(truth[frequent], scores[frequent]).estimate == pytest.approx(found.estimate)


def test_hand_and_till_of_two_classes_is_the_area():
    truth, score, _ = cases(2)
    score = (score - score.min()) / np.ptp(score)
    found, area = hand_till(truth.astype(int), np.stack([1 - score, score], axis=1)), auc_delong(truth, score)
    assert (found.estimate, found.low, found.high) == pytest.approx((area.estimate, area.low, area.high))


def test_the_interval_of_hand_and_till_is_that_of_the_bootstrap():
    truth, scores = class_scores(3, n=150)
    generator, drawn = np.random.default_rng(0), []
    for _ in range(500):
        rows = np.concatenate([generator.choice(np.flatnonzero(truth == k), (truth == k).sum()) for k in range(3)])
        drawn.append(hand_till(truth[rows], scores[rows]).estimate)
    found = hand_till(truth, scores)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.12)


def test_a_class_without_cases_has_no_area():
    found = hand_till([0, 0, 1, 1], [[0.5, 0.3, 0.2]] * 4)
    assert np.isnan(found.estimate)
    assert found.reason.startswith("fewer than two cases of a class")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc_delong([1, 0], [0.5]), "as long"),
        (lambda: auc_delong([1, 2], [0.5, 0.6]), "true or false"),
        (lambda: auc_delong([1, 0], [0.5, np.nan]), "but got NaN"),
        (lambda: compare_auc_delong([1, 0], [0.5, 0.6], [0.5]), "`second` to be as long"),
        (lambda: hand_till([0, 3], [[0.5, 0.5]] * 2), "classes from 0 to 1, but got 3"),
        (lambda: one_vs_rest([0, 1], [0.5, 0.5]), "shape"),
        (lambda: one_vs_rest([0, 1], [[0.5, np.nan]] * 2), "but got NaN"),
        (lambda: one_vs_rest([0, 1], [[0.5], [0.4, 0.6]]), "table of numbers"),
    ],
)
def test_senseless_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.evaluation.statistics.calibration import brier, chosen_class, fit_temperature, reliability


def drawn(temperature, n=4000, classes=4, seed=0):
    """Return logits that are `temperature` times too confident, and classes drawn from what they should have said."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (n, classes))
    chances = special.softmax(logits, axis=1).cumsum(axis=1)
    truth = (generator.random((n, 1)) > chances).sum(axis=1)
    return temperature * logits, np.minimum(truth, classes - 1)


def test_bins_worked_by_hand():
    # Bins of 0.25: {0.1, 0.25} with one of two true, {0.6} true, {0.9, 1.0} with one of two true.
    found = reliability([0.1, 0.25, 0.6, 0.9, 1.0], [1, 0, 1, 0, 1], bins=4)
    assert found.counts.tolist() == [2, 0, 1, 2]
    assert found.said == pytest.approx([0.175, np.nan, 0.6, 0.95], nan_ok=True)
    assert found.happened == pytest.approx([0.5, np.nan, 1.0, 0.5], nan_ok=True)
    assert found.expected_error == pytest.approx((2 * 0.325 + 0.4 + 2 * 0.45) / 5)
    assert found.largest_error == pytest.approx(0.45)
    assert found.edges == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_the_error_is_that_of_a_loop_over_bins(rows, bins):
    said, true = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    error, edges = 0.0, np.linspace(0, 1, bins + 1)
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (said > low) & (said <= high) | ((said == 0) & (index == 0))
        if inside.any():
            error += inside.mean() * abs(said[inside].mean() - true[inside].mean())
    found = reliability(said, true, bins=bins)
    assert found.expected_error == pytest.approx(error, abs=1e-12)
    assert found.counts.sum() == len(rows)
    assert found.expected_error <= found.largest_error + 1e-12


def test_no_case_has_no_error():
    found = reliability([], [])
    assert np.isnan([found.expected_error, found.largest_error]).all()


def test_calibrated_probabilities_have_a_small_error_and_confident_ones_a_large():
    for temperature, low, high in ((1, 0, 0.02), (3, 0.15, 0.4)):
        logits, truth = drawn(temperature, n=20_000)
        found = reliability(*chosen_class(special.softmax(logits, axis=1), truth))
        assert low <= found.expected_error <= high


def test_the_brier_score_is_a_mean_with_its_interval():
    said, truth = np.array([0.9, 0.2, 0.6, 0.4, 0.7]), np.array([1, 0, 0, 1, 1])
    found, groups = brier(said, truth), ["a", "a", "b", "c", "d"]
    assert found.estimate == pytest.approx((0.01 + 0.04 + 0.36 + 0.36 + 0.09) / 5)
    assert found == mean_interval((said - truth) ** 2, limits=(0, 1))
    assert brier(said, truth, groups) == mean_interval((said - truth) ** 2, groups, limits=(0, 1))
    both = brier(np.stack([1 - said, said], axis=1), truth)
    assert both.estimate == pytest.approx(2 * found.estimate)  # Brier's sum over two classes


def test_the_chosen_class_is_the_most_probable():
    said, right = chosen_class([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], [1, 2])
    assert said.tolist() == [0.5, 0.6]
    assert right.tolist() == [True, False]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 1e6])
def test_the_temperature_that_was_put_in_is_found(temperature):
    logits, truth = drawn(temperature)
    found = fit_temperature(logits, truth)
    assert found.temperature == pytest.approx(temperature, rel=0.07)
    assert found.loss <= found.loss_before
    assert found.reason is None


def test_the_temperature_is_the_best_of_all():
    logits, truth = drawn(1.7, n=60)

    def loss(temperature):
        return -np.mean(special.log_softmax(logits / temperature, axis=1)[np.arange(60), truth])

    best = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(logits, truth)
    assert found.temperature == pytest.approx(best.x, rel=1e-5)
    assert (found.loss, found.loss_before) == pytest.approx((best.fun, loss(1)))
    shifted = fit_temperature(logits + np.arange(60)[:, None], truth)
    assert shifted.temperature == pytest.approx(found.temperature)


def test_two_cases_in_closed_form():
    # Three cases with a margin of 2, one wrong: sigmoid(2 / T) = 2 / 3, so T = 2 / log 2.
    found = fit_temperature([[2, 0], [2, 0], [2, 0]], [0, 0, 1])
    assert found.temperature == pytest.approx(2 / np.log(2))


@pytest.mark.parametrize(
    ("logits", "truth", "reason"),
    [
        ([[3.0, 0.0], [0.0, 1.0]], [0, 1], "no case is clearly wrong"),
        ([[3.0, 0.0], [0.0, 1.0]], [1, 0], "the logits do not tell the classes apart"),
        ([[1.0, 1.0], [0.0, 0.0]], [1, 0], "the logits do not tell the classes apart"),
    ],
)
def test_where_no_temperature_is_best_it_stays_one(logits, truth, reason):
    found = fit_temperature(logits, truth)
    assert found.temperature == 1
    assert found.loss == found.loss_before
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability([0.5], [1, 0]), "as long"),
        (lambda: reliability([1.5], [1]), "between 0 and 1"),
        (lambda: reliability([np.nan], [1]), "between 0 and 1"),
        (lambda: reliability([0.5], [1], bins=0), "at least 1"),
        (lambda: brier([[2.0, -1.0]], [1]), "between 0 and 1"),
        (lambda: fit_temperature([[np.inf, 0.0]], [1]), "finite"),
        (lambda: fit_temperature(np.empty((0, 2)), []), "at least one case"),
        (lambda: fit_temperature([[1.0, 0.0]], [2]), "classes from 0 to 1"),
    ],
)
def test_senseless_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()

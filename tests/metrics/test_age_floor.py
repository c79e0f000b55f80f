"""The least error with which an age can be told: against simulation, quadrature on a grid, and limits in closed form."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import truncnorm

from medseg_se.metrics.age_floor import AgeFloor

FLOOR = AgeFloor(20, 80, 5)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(4)
    age = rng.uniform(20, 80, 1_000_000)
    return age, age + 5 * rng.standard_normal(age.size)


def test_the_median_errs_as_much_as_the_floor_says(people):
    age, seen = people
    assert np.abs(FLOOR.median(seen) - age).mean() == pytest.approx(FLOOR.mae(), abs=0.01)
    assert np.abs(seen - age).mean() == pytest.approx(5 * math.sqrt(2 / math.pi), abs=0.01)
    assert FLOOR.mae() < 0.93 * 5 * math.sqrt(2 / math.pi)


def test_no_other_answer_errs_less(people):
    """A table of answers, one for each half year that is seen, learnt from the people themselves, gains nothing."""
    age, seen = people
    bins = np.floor(2 * seen).astype(int)
    order = np.argsort(bins, kind="stable")
    parts = np.split(age[order], np.flatnonzero(np.diff(bins[order])) + 1)
    learnt = sum(np.abs(part - np.median(part)).sum() for part in parts) / age.size
    assert FLOOR.mae() == pytest.approx(learnt, abs=0.01)


@pytest.mark.parametrize("seen", [-10, 12, 20, 23.5, 50, 79, 96, 110])
def test_the_median_is_that_of_a_normal_cut_off_at_both_ends(seen):
    low, high = (20 - seen) / 5, (80 - seen) / 5
    assert float(FLOOR.median(seen)) == pytest.approx(truncnorm.median(low, high, loc=seen, scale=5), abs=1e-6)
    ages = np.linspace(20, 80, 20001)
    weight = np.exp(-(((ages - seen) / 5) ** 2) / 2 + (np.clip(seen, 20, 80) - seen) ** 2 / 50)
    best = minimize_scalar(lambda guess: weight @ np.abs(ages - guess), bounds=(20, 80), method="bounded")
    assert float(FLOOR.median(seen)) == pytest.approx(best.x, abs=0.01)


def test_the_correlation_is_that_of_the_mean(people):
    age, seen = people
    order = np.argsort(seen)
    means = age[order].reshape(-1, 500).mean(axis=1)
    explained = means.var() / age.var()  # 500 neighbours are as good as the same
    assert FLOOR.pearson() == pytest.approx(math.sqrt(explained), abs=0.001)
    assert np.corrcoef(seen, age)[0, 1] < FLOOR.pearson() < 1


def test_a_wide_range_tells_nothing_and_a_narrow_one_everything():
    assert AgeFloor(0, 100_000, 5).mae() == pytest.approx(5 * math.sqrt(2 / math.pi), rel=1e-3)
    narrow = AgeFloor(40, 41, 500)  # what is seen says nothing: the middle of the range errs by a quarter of it
    assert narrow.mae() == pytest.approx(0.25, rel=1e-5)
    assert narrow.pearson() < 0.01
    assert float(narrow.median(0)) == pytest.approx(40.5, abs=0.01)


def test_without_a_deviation_the_age_is_seen():
    exact = AgeFloor(20, 80, 0)
    assert (exact.mae(), exact.pearson()) == (0, 1)
    assert exact.median([20, 50.5]).tolist() == [20, 50.5]


def test_years_are_only_a_unit():
    months = AgeFloor(240, 960, 60)
    assert months.mae() == pytest.approx(12 * FLOOR.mae())
    assert months.pearson() == pytest.approx(FLOOR.pearson())
    assert (months.median([250, 600]) / 12).tolist() == pytest.approx(FLOOR.median([250 / 12, 50]).tolist())

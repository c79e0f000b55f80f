"""The interval of the mean over structures, against brute force and against the interval of one structure."""

import numpy as np
import pytest

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import LEAST_ERROR, drawn_weights, mean_interval
from medseg_se.evaluation.statistics.foreground import mean_of_means_interval


def dice(shape, seed=0):
    return np.random.default_rng(seed).beta(18, 2, shape)


def gappy(cases, seed=0):
    """Three structures whose values hang together within a case, the last two not counted everywhere."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=cases)
    table = 1 / (1 + np.exp(-(2 + 0.7 * hard + rng.normal(size=(3, cases)) / 2)))
    table[1, rng.random(cases) > 0.8] = np.nan
    table[2, rng.random(cases) > 0.5] = np.nan
    return table


def by_hand(table, subject_of, weights):
    """The mean of means of one resample and its standard error, case by case; None in place of a structure without values."""
    subjects = sorted(set(subject_of))
    whole = [np.nanmean(row) for row in table]
    means, influences = [], np.zeros(len(subjects))
    for row, mean in zip(table, whole, strict=True):
        drawn = [
            (place, value)
            for place, subject in enumerate(subjects)
            for _ in range(int(weights[place]))
            for value, owner in zip(row, subject_of, strict=True)
            if owner == subject and not np.isnan(value)
        ]
        means.append(np.mean([value for _, value in drawn]) if drawn else mean)
        for place, subject in enumerate(subjects):
            own = [value for value, owner in zip(row, subject_of, strict=True) if owner == subject and not np.isnan(value)]
            influences[place] += sum(value - means[-1] for value in own) / len(drawn) / len(table) if drawn else 0.0
    count = len(subjects)
    return np.mean(means), np.sqrt(count / (count - 1) * sum(weights * influences**2))


def test_the_interval_is_that_of_brute_force():
    table, subject_of = gappy(11), [0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6]
    estimate, error = by_hand(table, subject_of, np.ones(7))
    found = mean_of_means_interval(table, subject_of, resamples=300, seed=4)
    drawn = [by_hand(table, subject_of, row) for row in np.concatenate(list(drawn_weights(7, 300, 4)))]
    t = [(mean - estimate) / max(one, LEAST_ERROR * error) for mean, one in drawn]
    lowest, highest = np.quantile(t, [0.025, 0.975])
    assert found.estimate == pytest.approx(np.mean([np.nanmean(row) for row in table]))
    assert (found.low, found.high) == pytest.approx((estimate - highest * error, estimate - lowest * error), rel=1e-12)
    assert (found.n, found.reason, found.method) == (11, None, "studentised bootstrap")


def test_the_error_is_that_of_means_drawn_anew():
    table = gappy(60, seed=1)
    _, error = by_hand(table, range(60), np.ones(60))
    drawn = np.random.default_rng(0).integers(60, size=(4000, 60))
    assert np.std([np.nanmean(table[:, rows], axis=1).mean() for rows in drawn]) == pytest.approx(error, rel=0.05)


def test_one_structure_has_its_own_interval():
    values, groups = dice(12), list(np.repeat(range(5), [1, 2, 3, 4, 2]))
    found, alone = mean_of_means_interval(values[None], groups), mean_interval(values, groups)
    assert (found.estimate, found.low, found.high) == pytest.approx((alone.estimate, alone.low, alone.high))


def test_where_all_is_counted_it_is_the_interval_of_the_mean_of_each_case():
    table = dice((4, 9))
    found, alone = mean_of_means_interval(table), mean_interval(table.mean(axis=0))
    assert (found.estimate, found.low, found.high) == pytest.approx((alone.estimate, alone.low, alone.high))


def test_structures_that_go_together_leave_more_doubt_than_such_that_do_not():
    values = dice(20)
    together = mean_of_means_interval(np.stack([values] * 4))
    apart = mean_of_means_interval(np.stack([np.roll(values, 5 * shift) for shift in range(4)]))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    alone = mean_interval(values)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_it_holds_as_often_as_it_says():
    truth = np.nanmean(gappy(400_000, seed=99), axis=1).mean()
    found = [mean_of_means_interval(gappy(20, seed), resamples=400, seed=seed) for seed in range(400)]
    assert 0.91 < np.mean([one.low <= truth <= one.high for one in found]) < 0.98


def test_what_is_counted_nowhere_is_left_out():
    table = dice((2, 6))
    wider = np.vstack([table, np.full(6, np.nan)])
    wider = np.hstack([wider, np.full((3, 1), np.nan)])
    assert mean_of_means_interval(wider) == mean_of_means_interval(table)


@pytest.mark.parametrize(
    ("table", "groups", "estimate", "reason"),
    [
        ([[0.8], [0.6]], None, 0.7, "one subject only"),
        ([[0.8, 0.6], [0.6, 0.4]], ["a", "a"], 0.6, "one subject only"),
        ([[0.8, 0.6], [0.6, np.nan]], None, 0.65, "1 of 2 structures counted in one subject only"),
        ([[1.0, 2.0], [np.inf, 3.0]], None, np.inf, "1 of 4 values are infinite"),
        ([[np.nan, np.nan]], None, np.nan, "no value was counted"),
        (np.empty((0, 3)), None, np.nan, "no value was counted"),
    ],
)
def test_where_there_is_no_interval_it_says_why(table, groups, estimate, reason):
    found = mean_of_means_interval(table, groups)
    assert found.estimate == pytest.approx(estimate, nan_ok=True)
    assert reason in found.reason
    assert np.isnan([found.low, found.high]).all()


def test_values_that_are_all_alike_have_an_interval_of_no_width():
    found = mean_of_means_interval([[1.0, 1.0, 1.0], [0.5, 0.5, np.nan]])
    assert (found.low, found.high, found.reason) == (0.75, 0.75, None)


def test_the_interval_is_cut_where_a_measure_ends():
    assert mean_of_means_interval([[0.99, 0.7, 1.0], [1.0, 0.9, 1.0]], limits=(0, 1)).high == 1
    with pytest.raises(UsageError, match="a row a structure"):
        mean_of_means_interval([0.5, 0.6])

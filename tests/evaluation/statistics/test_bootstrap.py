import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import interval_of_sums, mean_interval, median_interval

BOTH = pytest.mark.parametrize("interval", [mean_interval, median_interval])


def dice(n, seed=0):
    return np.random.default_rng(seed).beta(18, 2, n)


def every_resample(n):
    return np.array(list(itertools.product(range(n), repeat=n)))


def coverage(interval, draw, truth, n, repeats, resamples=400, **options):
    held = 0
    for seed in range(repeats):
        found = interval(draw(np.random.default_rng([n, seed]), n), resamples=resamples, seed=seed, **options)
        held += found.low <= truth <= found.high
    return held / repeats


def test_the_mean_interval_is_that_of_all_resamples():
    values = np.array([0.91, 0.85, 0.95, 0.60, 0.88, 0.93])
    error = values.std(ddof=1) / np.sqrt(6)
    drawn = values[every_resample(6)]
    errors = np.maximum(drawn.std(axis=1, ddof=1) / np.sqrt(6), 0.2 * error)
    t = (drawn.mean(axis=1) - values.mean()) / errors
    lowest, highest = np.quantile(t, [0.025, 0.975])
    found = mean_interval(values, resamples=200_000)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - highest * error, abs=0.002)
    assert found.high == pytest.approx(values.mean() - lowest * error, abs=0.002)
    assert (found.n, found.reason, found.method) == (6, None, "studentised bootstrap")


def test_the_median_interval_is_that_of_all_resamples():
    values = np.array([0.91, 0.85, 0.95, 0.60, 0.88, 0.93])
    tail = stats.norm.cdf(-np.sqrt(6 / 5) * stats.t.isf(0.025, 5))
    low, high = np.quantile(np.median(values[every_resample(6)], axis=1), [tail, 1 - tail], method="nearest")
    found = median_interval(values, resamples=200_000)
    assert (found.estimate, found.low, found.high) == (np.median(values), low, high)


def test_many_values_have_the_interval_of_scipy():
    values = dice(300)
    scipy = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    found = mean_interval(values)
    width = found.high - found.low
    assert found.low == pytest.approx(scipy.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(scipy.confidence_interval.high, abs=0.05 * width)
    scipy = stats.bootstrap((values,), np.median, n_resamples=5_000, method="percentile", rng=np.random.default_rng(1))
    found = median_interval(values)
    assert found.low == pytest.approx(scipy.confidence_interval.low, abs=0.1 * (found.high - found.low))
    assert found.high == pytest.approx(scipy.confidence_interval.high, abs=0.1 * (found.high - found.low))


def test_two_values_have_the_interval_of_student():
    low, high = stats.t.interval(0.95, 1, loc=0.85, scale=0.05)
    found = mean_interval([0.8, 0.9])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_groups_of_equal_cases_count_as_one_case_each():
    values = dice(12)
    single, repeated = mean_interval(values), mean_interval(np.repeat(values, 5), np.repeat(np.arange(12), 5).tolist())
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))
    assert repeated.n == 60
    single, repeated = median_interval(values), median_interval(np.repeat(values, 5), np.repeat(np.arange(12), 5).tolist())
    assert (repeated.low, repeated.high) == (single.low, single.high)


def test_groups_of_unequal_size_have_the_error_of_a_ratio():
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 6, 400)
    groups = np.repeat(np.arange(400), sizes)
    values = generator.normal(size=400)[groups] + generator.normal(0, 0.1, len(groups))
    sums = np.bincount(groups, values - values.mean())
    error = np.sqrt(400 / 399 * (sums**2).sum()) / len(values)
    found = mean_interval(values, groups.tolist())
    assert found.high - found.low == pytest.approx(2 * 1.97 * error, rel=0.04)


@BOTH
def test_a_case_without_a_group_is_its_own(interval):
    values = dice(9)
    assert interval(values, [None] * 9) == interval(values) == interval(values, "abcdefghi")
    assert interval(values, ["a", None, None, "a", "b", "b", None, 1, "1"]) != interval(values)


@BOTH
def test_what_is_not_counted_is_left_out(interval):
    values = dice(9)
    gaps = np.insert(values, [0, 4, 9], np.nan)
    assert interval(gaps) == interval(values)
    groups = ["a", "b", "c"] * 3
    assert interval(gaps, np.insert(groups, [0, 4, 9], "z").tolist()) == interval(values, groups)


@BOTH
@pytest.mark.parametrize(
    ("values", "groups", "n", "reason"),
    [
        ([], None, 0, "no value was counted"),
        ([np.nan], None, 0, "no value was counted"),
        ([0.9], None, 1, "one subject only"),
        ([0.9, 0.9], ["a", "a"], 2, "one subject only"),
    ],
)
def test_too_few_subjects_have_no_interval_and_it_says_why(interval, values, groups, n, reason):
    found = interval(values, groups)
    assert found.n == n
    assert found.reason.startswith(reason)
    assert np.isnan([found.low, found.high]).all()
    assert found.estimate == pytest.approx(0.9) if n else np.isnan(found.estimate)


@BOTH
def test_values_that_are_all_alike_have_an_interval_of_no_width(interval):
    found = interval([0.1] * 7)
    assert (found.estimate, found.low, found.high, found.reason) == (0.1, 0.1, 0.1, None)


def test_an_infinite_distance_has_no_mean_but_a_median():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, np.inf]
    found = mean_interval(values)
    assert found.estimate == np.inf
    assert np.isnan([found.low, found.high]).all()
    assert found.reason == "1 of 8 values are infinite, so their mean has no interval"
    found, large = median_interval(values), median_interval([*values[:-1], 1e6])
    assert (found.estimate, found.low, found.high) == (4.5, large.low, np.inf)
    assert large.high > 1e5
    assert median_interval([-np.inf, -np.inf, np.inf, np.inf]).reason.startswith("values are infinite in both directions")


def test_the_interval_of_a_dice_stays_a_dice():
    assert mean_interval([1, 1, 1, 0.5]).high > 1
    found = mean_interval([1, 1, 1, 0.5], limits=(0, 1))
    assert found.high == 1
    assert found.low == mean_interval([1, 1, 1, 0.5]).low


def test_one_outlier_does_not_make_the_interval_absurd():
    values = np.append(0.95 + 1e-4 * np.arange(9), 0.0)
    student = stats.t.interval(0.95, 9, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(10))
    found = mean_interval(values)
    assert found.high - found.low < 2.5 * (student[1] - student[0])


def test_more_confidence_is_wider_and_the_seed_decides():
    values = dice(15)
    narrow, wide = mean_interval(values, confidence=0.8), mean_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert mean_interval(values) == mean_interval(values, seed=0) != mean_interval(values, seed=1)


def test_many_cases_are_drawn_block_by_block():
    values = dice(20_000)
    found = mean_interval(values, resamples=300)
    error = values.std(ddof=1) / np.sqrt(20_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12), st.integers(-5, 5), st.sampled_from([0.5, 2.0, 8.0]))
def test_the_interval_follows_a_change_of_unit_and_origin(values, shift, scale):
    array = np.array(values, dtype=float)
    for interval in (mean_interval, median_interval):
        found, moved, mirrored = interval(array), interval(scale * array + shift), interval(-array)
        assert found.low <= found.estimate <= found.high
        expected = scale * np.array([found.estimate, found.low, found.high]) + shift
        assert [moved.estimate, moved.low, moved.high] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert [mirrored.low, mirrored.high] == pytest.approx([-found.high, -found.low], rel=1e-9, abs=1e-9)


def scores(generator, n):
    return generator.beta(18, 2, n)


def skewed(generator, n):
    return generator.beta(6, 0.6, n)


@pytest.mark.parametrize("n", [5, 10, 20, 40])
@pytest.mark.parametrize(("draw", "parameters"), [(scores, (18, 2)), (skewed, (6, 0.6))])
def test_intervals_hold_as_often_as_they_say(draw, parameters, n):
    truth = stats.beta(*parameters)
    assert 0.91 <= coverage(mean_interval, draw, truth.mean(), n, 800) <= 0.98
    assert 0.92 <= coverage(median_interval, draw, truth.median(), n, 300) <= 1


def test_an_interval_that_ignores_groups_does_not_hold():
    def draw(generator, n):
        return (generator.beta(18, 2, n)[:, None] + generator.normal(0, 0.01, (n, 4))).ravel()

    groups = np.repeat(np.arange(12), 4).tolist()
    assert coverage(mean_interval, draw, 0.9, 12, 600) < 0.8
    assert 0.92 <= coverage(mean_interval, draw, 0.9, 12, 600, groups=groups) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 8, 12, 20, 40])
@pytest.mark.parametrize(("draw", "parameters"), [(scores, (18, 2)), (skewed, (6, 0.6))])
def test_intervals_hold_in_a_large_simulation(draw, parameters, n):
    truth = stats.beta(*parameters)
    assert (0.93 if n > 3 else 0.9) - 0.02 * (draw is skewed and n < 8) <= coverage(
        mean_interval, draw, truth.mean(), n, 10_000, resamples=2000
    )
    if n > 3:
        assert coverage(median_interval, draw, truth.median(), n, 4_000, resamples=2000) >= 0.93


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1.0]],), {}, "shape"),
        ((["a"],), {}, "numbers"),
        (([1.0, 2.0], ["a"]), {}, "2 values, but got 1"),
        (([1.0, 2.0],), {"confidence": 95}, "between 0 and 1"),
        (([1.0, 2.0],), {"resamples": 10}, "at least 100"),
    ],
)
@BOTH
def test_senseless_arguments_are_refused(interval, arguments, options, message):
    with pytest.raises(UsageError, match=message):
        interval(*arguments, **options)


def test_statistics_import_neither_torch_nor_the_rest_of_the_package():
    code = (
        "import pkgutil, importlib, sys, medseg_se.evaluation.statistics as package\n"
        "for module in pkgutil.iter_modules(package.__path__): importlib.import_module(package.__name__ + '.' + module.name)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    modules = done.stdout.split()
    assert "medseg_se.evaluation.statistics.roc" in modules
    assert not {"torch", "monai", "nibabel", "rich"} & set(modules)
    ours = {name for name in modules if name.startswith("medseg_se.") and ".statistics" not in name}
    allowed = {"medseg_se.errors", "medseg_se.evaluation", "medseg_se.version"}
    assert ours <= allowed | {"medseg_se.metrics", "medseg_se.metrics.calibration"}


def test_a_function_of_sums_is_that_of_the_resampled_cases():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 24))
    y += x
    groups = [f"g{place % 8}" for place in range(24)]

    def ratio(sums):
        return sums[:, 1] / sums[:, 0]

    found = interval_of_sums(np.stack([np.exp(x), np.exp(y)], axis=1), ratio, groups)
    assert found.estimate == pytest.approx(np.exp(y).sum() / np.exp(x).sum())
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([np.arange(24)[np.arange(24) % 8 == group] for group in rng.integers(8, size=8)])
        drawn.append(np.exp(y[rows]).sum() / np.exp(x[rows]).sum())
    tail = stats.norm.sf(np.sqrt(8 / 7) * stats.t.isf(0.025, 7))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [tail, 1 - tail])), rel=0.08)


def test_a_function_of_sums_says_why_it_has_no_interval():
    terms = np.ones((5, 1))
    assert "same in every resample" in interval_of_sums(terms, lambda sums: sums[:, 0]).reason
    assert "not defined for these" in interval_of_sums(terms, lambda sums: sums[:, 0] * np.nan).reason
    assert "one subject" in interval_of_sums(terms, lambda sums: sums[:, 0], ["a"] * 5).reason
    rare = np.eye(5)[:, :1]  # a third of the resamples are without the only case that counts
    assert "many of the resamples" in interval_of_sums(rare, lambda sums: np.where(sums[:, 0] > 0, 1.0, np.nan)).reason
    with pytest.raises(UsageError, match="finite"):
        interval_of_sums([[np.nan]], lambda sums: sums[:, 0])

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.bootstrap import mean_interval
from medseg_se.evaluation.statistics.paired import compare_paired

# Darwin's cross- and self-fertilised plants, fifteen pairs, in eighths of an inch (Fisher, The Design of Experiments, 1935,
# chapter III): the sum is 314, and 863 + 863 of the 2^15 flips are as extreme, p = 0.05267 (Fisher, section 21).
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)


def pair(n, seed=0, effect=0.005):
    generator = np.random.default_rng(seed)
    first = generator.beta(18, 2, n)
    return first, first + generator.normal(effect, 0.02, n)


def flipped(sums):
    """Return the share of sign flips whose sum is as extreme, one flip after the other."""
    as_extreme = [abs(np.dot(signs, sums)) >= abs(sum(sums)) - 1e-9 for signs in itertools.product((-1, 1), repeat=len(sums))]
    return np.mean(as_extreme)


def test_darwins_plants():
    found = compare_paired(np.zeros(15), DARWIN)
    assert found.permutation_p == pytest.approx(1726 / 2**15)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(DARWIN, method="exact").pvalue)
    assert found.difference == pytest.approx(314 / 15)
    assert found.effect_size * np.sqrt(15) == pytest.approx(2.148, abs=0.0005)  # Student's t, as Fisher gives it
    assert (found.wins, found.ties, found.losses) == (13, 0, 2)
    assert found.rank_biserial == pytest.approx((96 - 24) / 120)


@pytest.mark.parametrize("n", [3, 6, 10, 16, 25, 50])
def test_the_signed_rank_test_is_that_of_scipy(n):
    first, second = pair(n)
    assert compare_paired(first, second).wilcoxon_p == pytest.approx(stats.wilcoxon(second, first, method="exact").pvalue)


def test_the_signed_rank_test_of_many_cases_is_the_normal_one():
    first, second = pair(1000, effect=0.001)
    expected = stats.wilcoxon(second, first, method="asymptotic", correction=False).pvalue
    assert compare_paired(first, second).wilcoxon_p == pytest.approx(expected)


def test_ties_and_zeros_are_ranked_as_pratt_does():
    differences = np.array([0, 0, 1, 1, -1, 2, 2, 3, -4, 5], dtype=float)
    signed = stats.rankdata(np.abs(differences)) * np.sign(differences)
    found = compare_paired(np.full(10, 7.0), 7 + differences)
    assert found.wilcoxon_p == pytest.approx(flipped(signed))
    assert found.wilcoxon_p == pytest.approx(
        stats.wilcoxon(differences, zero_method="pratt", method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
    )
    assert (found.wins, found.ties, found.losses) == (6, 2, 2)


@pytest.mark.parametrize("n", [2, 5, 9, 13])
def test_the_permutation_test_is_that_of_scipy(n):
    first, second = pair(n, seed=n)
    expected = stats.permutation_test(
        (second, first), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert compare_paired(first, second).permutation_p == pytest.approx(expected)


def test_random_flips_agree_with_all_flips():
    differences = np.random.default_rng(3).normal(0.3, 1, 18)
    found = compare_paired(np.zeros(18), differences)
    signs = 1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    assert found.permutation_p == pytest.approx(expected, abs=4 * np.sqrt(expected / 100_000))
    assert found.permutation_p == compare_paired(np.zeros(18), differences).permutation_p
    assert found.permutation_p != compare_paired(np.zeros(18), differences, seed=1).permutation_p


def test_a_random_p_is_never_zero():
    assert compare_paired(np.zeros(60), np.linspace(1, 2, 60)).permutation_p == pytest.approx(1 / 100_001)


def test_subjects_are_flipped_and_resampled_whole():
    generator = np.random.default_rng(8)
    groups = [0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 5]
    differences = generator.normal(0.5, 1, 12)
    found = compare_paired(np.zeros(12), differences, groups)
    assert found.permutation_p == pytest.approx(flipped(np.bincount(groups, differences)))
    signed = stats.rankdata(np.abs(differences)) * np.sign(differences)
    assert found.wilcoxon_p == pytest.approx(flipped(np.bincount(groups, signed)))
    interval = mean_interval(differences, groups)
    assert (found.low, found.high) == (interval.low, interval.high)
    means = np.bincount(groups, differences) / np.bincount(groups)
    assert found.effect_size == pytest.approx(means.mean() / means.std(ddof=1))
    assert (found.n, found.subjects, found.smallest_p) == (12, 6, 2**-5)


def test_a_case_repeated_is_no_more_evidence():
    first, second = pair(6, effect=0.1)
    once = compare_paired(first, second)
    often = compare_paired(np.tile(first, 10), np.tile(second, 10), list(range(6)) * 10)
    assert often.permutation_p == once.permutation_p == 1 / 32
    assert often.wilcoxon_p == once.wilcoxon_p == 1 / 32
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2]])
def test_identical_runs_do_not_differ(groups):
    values = [0.9, 0.8, np.nan, 0.7, 0.3]
    found = compare_paired(values, values, groups)
    assert (found.difference, found.median, found.low, found.high) == (0, 0, 0, 0)
    assert (found.wilcoxon_p, found.permutation_p, found.effect_size, found.rank_biserial) == (1, 1, 0, 0)
    assert (found.n, found.wins, found.ties, found.losses, found.reason) == (4, 0, 4, 0, None)


def test_rounding_is_no_difference():
    first = np.array([0.1 + 0.2, 0.9, 0.7])
    found = compare_paired(first, [0.3, 0.9 + 1e-15, 0.7])
    assert (found.difference, found.low, found.high, found.permutation_p, found.ties) == (0, 0, 0, 1, 3)
    equal_steps = compare_paired([0.7, 0.8, 0.6, 0.9], [0.8, 0.9, 0.7, 0.8])
    assert equal_steps.rank_biserial == pytest.approx(0.5)  # four equal ranks, three of them for the second


def test_one_subject_has_no_interval_and_proves_nothing():
    for found in (compare_paired([0.5], [0.6]), compare_paired([0.5, 0.4], [0.6, 0.5], ["a", "a"])):
        assert found.difference == pytest.approx(0.1)
        assert np.isnan([found.low, found.high, found.effect_size]).all()
        assert (found.wilcoxon_p, found.permutation_p, found.smallest_p, found.subjects) == (1, 1, 1, 1)
        assert found.reason.startswith("one subject only")


def test_no_case_in_common():
    found = compare_paired([np.nan, 0.5], [0.6, np.nan])
    assert (found.n, found.wins, found.ties, found.losses, found.reason) == (0, 0, 0, 0, "no value was counted")
    assert np.isnan(
        [found.difference, found.median, found.low, found.wilcoxon_p, found.permutation_p, found.rank_biserial]
    ).all()


def test_a_missed_structure_has_ranks_but_no_mean():
    first = [3.0, 4.0, 5.0, np.inf, 6.0, np.inf, 2.0]
    second = [2.0, 3.5, 4.0, 5.0, np.inf, np.inf, 1.0]
    found = compare_paired(first, second, better="lower")
    assert np.isnan([found.difference, found.low, found.high, found.permutation_p, found.effect_size]).all()
    assert found.reason == "2 of 7 differences are infinite, so they have no mean"
    assert (found.wins, found.ties, found.losses) == (5, 1, 1)
    assert found.median == -1
    signed = stats.rankdata([1, 0.5, 1, 99, 99, 0, 1]) * [-1, -1, -1, -1, 1, 0, -1]
    assert found.wilcoxon_p == pytest.approx(flipped(signed))
    assert found.rank_biserial == pytest.approx(signed.sum() / np.abs(signed).sum())


def test_what_is_a_win_depends_on_the_measure():
    first, second = [1.0, -2.0, 3.0, 4.0], [2.0, -1.0, -3.0, 0.5]
    wins = {}
    for better in ("higher", "lower", "zero"):
        found = compare_paired(first, second, better=better)
        wins[better] = (found.wins, found.ties, found.losses)
        assert found.difference == pytest.approx(-1.875)
    assert wins == {"higher": (2, 0, 2), "lower": (2, 0, 2), "zero": (2, 1, 1)}


def test_a_constant_difference_is_an_infinite_effect():
    assert compare_paired([0.7, 0.8, 0.6], [0.8, 0.9, 0.7]).effect_size == np.inf
    assert compare_paired([0.8, 0.9, 0.7], [0.7, 0.8, 0.6]).effect_size == -np.inf


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 8)), min_size=2, max_size=14))
def test_swapping_the_runs_mirrors_everything(rows):
    first, second, groups = np.array(rows).T
    one, other = compare_paired(first, second, groups.tolist()), compare_paired(second, first, groups.tolist())
    for name in ("difference", "median", "effect_size", "rank_biserial"):
        assert getattr(one, name) == pytest.approx(-getattr(other, name), nan_ok=True)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), nan_ok=True)
    assert one.wilcoxon_p == pytest.approx(other.wilcoxon_p)
    assert one.permutation_p == pytest.approx(other.permutation_p)
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert min(one.wilcoxon_p, one.permutation_p) >= one.smallest_p - 1e-12


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(10)), st.sampled_from([0.5, 100.0]))
def test_neither_order_nor_unit_change_the_tests(order, unit):
    first, second = pair(10)
    plain, other = compare_paired(first, second), compare_paired(unit * first[order], unit * second[order])
    assert other.wilcoxon_p == pytest.approx(plain.wilcoxon_p)
    assert other.permutation_p == pytest.approx(plain.permutation_p)
    assert other.effect_size == pytest.approx(plain.effect_size)


def test_tests_reject_no_more_often_than_they_say_and_intervals_hold():
    rejected, held, repeats = np.zeros(2), 0, 400
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        differences = generator.exponential(1, 12) - generator.exponential(1, 12)
        found = compare_paired(np.zeros(12), differences, seed=seed)
        rejected += [found.wilcoxon_p <= 0.05, found.permutation_p <= 0.05]
        held += found.low <= 0 <= found.high
    assert (rejected / repeats <= 0.075).all()
    assert (rejected / repeats >= 0.02).all()
    assert 0.91 <= held / repeats <= 0.98


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0], [1.0, 2.0]), {}, "as long"),
        (([1.0, 2.0], [1.0, 2.0], ["a"]), {}, "2 values, but got 1"),
        (([1.0], [1.0]), {"better": "bigger"}, "higher, lower, zero"),
        (([1.0], [1.0]), {"confidence": 0}, "between 0 and 1"),
    ],
)
def test_senseless_arguments_are_refused(arguments, options, message):
    with pytest.raises(UsageError, match=message):
        compare_paired(*arguments, **options)

import itertools

import numpy as np
import pytest
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.proportions import mcnemar, two_proportion_z, wilson_interval


def paired(both, only_first, only_second, neither):
    first = np.repeat([1, 1, 0, 0], [both, only_first, only_second, neither])
    second = np.repeat([1, 0, 1, 0], [both, only_first, only_second, neither])
    return first, second


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (148, 263), (1, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(successes, n, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.estimate, found.n) == (successes / n, n)


def test_the_example_of_newcombe():
    """Newcombe (1998), table II, contrast (a): 56/70 less 48/80, method 10: 0.0524 to 0.3339."""
    found = two_proportion_z((48, 56), (80, 70))
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_z_test_is_the_chi_squared_test():
    expected = stats.chi2_contingency([[48, 32], [56, 14]], correction=False).pvalue
    assert two_proportion_z((48, 56), (80, 70)).p == pytest.approx(expected)
    mirrored, plain = two_proportion_z((56, 48), (70, 80)), two_proportion_z((48, 56), (80, 70))
    assert (mirrored.low, mirrored.high, mirrored.p) == pytest.approx((-plain.high, -plain.low, plain.p))


@pytest.mark.parametrize("successes", [(0, 0), (7, 9)])
def test_proportions_that_are_all_or_nothing_do_not_differ(successes):
    found = two_proportion_z(successes, (7, 9))
    assert (found.difference, found.p) == (0, 1)
    assert found.low < 0 < found.high


def test_nothing_counted_has_no_difference():
    assert wilson_interval(0, 0).reason == "no case was counted"
    found = two_proportion_z((0, 3), (0, 5))
    assert np.isnan([found.difference, found.low, found.high, found.p]).all()
    assert np.isnan(mcnemar([], []).p)


def test_the_example_of_agresti():
    """Agresti, Categorical Data Analysis, section 10.1: approval 794, 150, 86, 570; z = −4.17, difference −0.04."""
    found = mcnemar(*paired(794, 150, 86, 570))
    assert found.difference == pytest.approx(-0.04)
    assert found.p == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert found.p == pytest.approx(2 * stats.norm.sf(4.17), rel=0.35)
    assert (found.low, found.high) == pytest.approx((-0.0585, -0.0213), abs=5e-4)  # by Wald: −0.059 to −0.021


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (3, 3), (1, 6), (6, 1)])
def test_few_pairs_are_tested_by_all_flips(lost, gained):
    n = lost + gained
    sums = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=n)]
    found = mcnemar(*paired(4, lost, gained, 2))
    assert found.p == pytest.approx(np.mean(np.array(sums) >= abs(gained - lost)))
    assert found.difference == pytest.approx((gained - lost) / (n + 6))
    mirrored = mcnemar(*paired(4, gained, lost, 2))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_identical_classifiers_do_not_differ_but_few_cases_prove_little():
    found = mcnemar([1, 1, 0, 1], [1, 1, 0, 1])
    assert (found.difference, found.p) == (0, 1)
    assert found.low < 0 < found.high


def test_the_paired_interval_holds():
    generator, held = np.random.default_rng(0), 0
    for counts in generator.multinomial(25, [0.6, 0.08, 0.22, 0.1], size=1500):
        found = mcnemar(*paired(*counts))
        held += found.low <= 0.14 <= found.high
    assert 0.93 <= held / 1500 <= 0.98


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(5, 4), "0 and the 4 cases, but got 5"),
        (lambda: two_proportion_z((1, -1), (4, 4)), "but got -1"),
        (lambda: mcnemar([1, 0], [1]), "as long"),
        (lambda: mcnemar([1, 2], [1, 0]), "true or false"),
        (lambda: wilson_interval(1, 4, confidence=1), "between 0 and 1"),
    ],
)
def test_senseless_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()

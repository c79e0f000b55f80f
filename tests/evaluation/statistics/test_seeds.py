import numpy as np
import pytest
from scipy import optimize, stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.seeds import average_over_seeds, random_effect


def drawn(seed, seeds=4, subjects=12, of_seed=0.5, of_subject=1.0, rest=0.7):
    generator = np.random.default_rng(seed)
    table = generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_subject, (1, subjects))
    return table + generator.normal(0, rest, (seeds, subjects))


def restricted_likelihood(logarithms, table):
    """Return minus twice the restricted log-likelihood from the full covariance matrix, and the variance of the mean."""
    of_seed, of_subject, rest = np.exp(logarithms)
    seeds, subjects = table.shape
    covariance = of_seed * np.kron(np.eye(seeds), np.ones((subjects, subjects)))
    covariance += of_subject * np.kron(np.ones((seeds, seeds)), np.eye(subjects)) + rest * np.eye(table.size)
    inverse, ones, y = np.linalg.inv(covariance), np.ones(table.size), table.ravel()
    information = ones @ inverse @ ones
    residual = y - (ones @ inverse @ y) / information
    return np.linalg.slogdet(covariance)[1] + np.log(information) + residual @ inverse @ residual, 1 / information


@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_is_restricted_maximum_likelihood(seed):
    table = drawn(seed)
    found = random_effect(table)
    best = optimize.minimize(
        lambda x: restricted_likelihood(x, table)[0],
        [-1.0, -1.0, -1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-9},
    )
    components = np.exp(best.x / 2)
    assert [found.seed_sd, found.subject_sd, found.residual_sd] == pytest.approx(components, rel=1e-3)
    error = np.sqrt(restricted_likelihood(best.x, table)[1])
    reach = stats.t.isf(0.025, found.degrees_of_freedom) * error
    assert (found.low, found.high) == pytest.approx((found.estimate - reach, found.estimate + reach), rel=1e-3)
    assert found.estimate == pytest.approx(table.mean())


def test_numbers_worked_by_hand():
    # Rows 1 2 6 and 3 5 10: means 3, 6; 2, 3.5, 8; 4.5. Sums of squares 13.5, 39, 1 on 1, 2, 2 degrees of freedom.
    found = random_effect([[1, 2, 6], [3, 5, 10]])
    variance = (13.5 + 19.5 - 0.5) / 6
    freedom = 32.5**2 / (13.5**2 / 1 + 19.5**2 / 2 + 0.5**2 / 2)
    assert found.degrees_of_freedom == pytest.approx(freedom)
    assert found.seed_sd**2 == pytest.approx((13.5 - 0.5) / 3)
    assert found.subject_sd**2 == pytest.approx((19.5 - 0.5) / 2)
    assert found.residual_sd**2 == pytest.approx(0.5)
    assert found.high - found.estimate == pytest.approx(stats.t.isf(0.025, freedom) * np.sqrt(variance))
    assert found.p == pytest.approx(2 * stats.t.sf(4.5 / np.sqrt(variance), freedom))
    assert (found.n, found.seeds, found.left_out, found.reason) == (3, 2, 0, None)
    assert "random effects" in found.method


def test_seeds_that_are_all_alike_leave_the_test_of_student():
    values = np.random.default_rng(0).normal(0.3, 1, 15)
    found, student = random_effect(np.tile(values, (3, 1))), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(student.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(student.confidence_interval()))
    assert (found.seed_sd, found.residual_sd) == pytest.approx((0, 0), abs=1e-12)


def test_the_interval_covers_other_seeds_where_the_average_does_not():
    held, averaged = 0, 0
    for seed in range(1000):
        table = drawn(seed, seeds=3, subjects=20, of_seed=0.5)
        found = random_effect(table)
        held += found.low <= 0 <= found.high
        low, high = stats.ttest_1samp(average_over_seeds(table).values, 0).confidence_interval()
        averaged += low <= 0 <= high
    assert 0.92 <= held / 1000 <= 0.98
    assert averaged / 1000 < 0.85


def test_without_an_effect_of_seeds_the_interval_still_holds():
    found = [random_effect(drawn(seed, seeds=2, subjects=15, of_seed=0.0)) for seed in range(1000)]
    assert 0.94 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99
    assert all((one.p <= 0.05) != (one.low <= 0 <= one.high) for one in found)


def test_the_average_leaves_out_what_is_not_counted():
    found = average_over_seeds([[0.8, np.nan, np.nan, np.inf], [0.6, 0.5, np.nan, 1.0]])
    assert found.values.tolist() == pytest.approx([0.7, 0.5, np.nan, np.inf], nan_ok=True)
    assert (found.seeds, found.method) == (2, "averaged over seeds for each subject")


def test_the_model_leaves_out_subjects_that_one_seed_lacks_and_says_so():
    table = drawn(1)
    gaps = np.insert(table, 3, np.nan, axis=1)
    gaps[1:, 3] = 0.5
    found, plain = random_effect(gaps), random_effect(table)
    assert (found.left_out, found.n) == (1, 12)
    assert (found.low, found.high) == (plain.low, plain.high)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([[0.1, 0.2, 0.3]], "one seed only"),
        ([[0.1], [0.2]], "one subject is counted"),
        ([[np.nan, 0.1], [0.2, np.nan]], "no subject is counted"),
        ([[0.1, np.inf], [0.2, 0.3]], "1 of 4 values are infinite"),
    ],
)
def test_what_cannot_be_modelled_says_why(table, reason):
    found = random_effect(table)
    assert found.reason.startswith(reason)
    assert np.isnan([found.low, found.high, found.p, found.seed_sd, found.degrees_of_freedom]).all()


def test_identical_runs_do_not_differ():
    found = random_effect(np.zeros((3, 5)))
    assert (found.estimate, found.low, found.high, found.p, found.reason) == (0, 0, 0, 1, None)
    found = random_effect(np.full((3, 5), 0.1))
    assert (found.estimate, found.low, found.high, found.p) == (0.1, 0.1, 0.1, 0)


@pytest.mark.parametrize("function", [average_over_seeds, random_effect])
@pytest.mark.parametrize("values", [[0.1, 0.2], [[0.1, 0.2], [0.3]], np.empty((0, 3))])
def test_what_is_no_table_is_refused(function, values):
    with pytest.raises(UsageError, match="`values`"):
        function(values)

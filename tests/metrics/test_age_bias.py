"""The bias of predicted ages and its two corrections: against NumPy's fit and what they promise of people not fitted on."""

import numpy as np
import pytest

from medseg_se.metrics.age_bias import BiasLine


@pytest.fixture(scope="module")
def people():
    """Return ages, and predictions that are shrunk towards 50 years with an error of their own."""
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 80, (2, 50_000))
    return age, 50 + 0.7 * (age - 50) + 2 + rng.normal(0, 3, age.shape)


def test_the_line_is_that_of_least_squares(people):
    age, predicted = people
    line = BiasLine.fit(predicted[0, :50], age[0, :50])
    assert [line.slope, line.intercept] == pytest.approx(np.polyfit(age[0, :50], predicted[0, :50], 1).tolist())
    known = BiasLine.fit(predicted[0], age[0])
    assert [known.slope, known.intercept] == pytest.approx([0.7, 17], abs=0.1)


def test_corrected_ages_of_others_have_no_bias_but_more_spread(people):
    age, predicted = people
    corrected = BiasLine.fit(predicted[0], age[0]).corrected(predicted[1])
    assert BiasLine.fit(corrected, age[1]).slope == pytest.approx(1, abs=0.01)
    assert (corrected - age[1]).mean() == pytest.approx(0, abs=0.05)
    assert (corrected - age[1]).std() == pytest.approx(3 / 0.7, rel=0.02)
    assert np.corrcoef(corrected, age[1])[0, 1] == pytest.approx(np.corrcoef(predicted[1], age[1])[0, 1])


def test_corrected_differences_of_others_do_not_follow_the_age(people):
    age, predicted = people
    assert np.corrcoef(predicted[1] - age[1], age[1])[0, 1] < -0.8
    difference = BiasLine.fit(predicted[0], age[0]).difference(predicted[1], age[1])
    assert np.corrcoef(difference, age[1])[0, 1] == pytest.approx(0, abs=0.02)
    assert difference.std() == pytest.approx(3, rel=0.02)


def test_what_no_line_can_be_fitted_to_is_not_a_number():
    for predicted, age in (([1.0], [1.0]), ([], []), ([1.0, 2.0], [40.0, 40.0])):
        line = BiasLine.fit(predicted, age)
        assert np.isnan([line.slope, line.intercept]).all()
        assert np.isnan(line.corrected([3.0])).all()
    falling = BiasLine.fit([3.0, 2.0], [1.0, 2.0])
    assert falling.slope == -1
    assert np.isnan(falling.corrected([3.0])).all()

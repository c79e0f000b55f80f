import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg_se.errors import UsageError
from medseg_se.evaluation.statistics.multiple import benjamini_hochberg, holm

# Benjamini and Hochberg (1995), section 3.2: fifteen hypotheses on thrombolysis after myocardial infarction.
THROMBOLYSIS = [
    0.0001,
    0.0004,
    0.0019,
    0.0095,
    0.0201,
    0.0278,
    0.0298,
    0.0344,
    0.0459,
    0.3240,
    0.4262,
    0.5719,
    0.6528,
    0.7590,
    1,
]

p_values = st.lists(st.floats(0, 1), max_size=12)


def test_the_example_of_benjamini_and_hochberg():
    assert (benjamini_hochberg(THROMBOLYSIS) <= 0.05).sum() == 4
    assert (holm(THROMBOLYSIS) <= 0.05).sum() == 3


def test_holm_on_numbers_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@given(p_values)
def test_benjamini_hochberg_is_that_of_scipy(p):
    expected = stats.false_discovery_control(p) if p else []
    assert benjamini_hochberg(p) == pytest.approx(expected)


@given(p_values, st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p, level):
    rejected, order = np.zeros(len(p), dtype=bool), np.argsort(p, kind="stable")
    for step, index in enumerate(order):
        if p[index] * (len(p) - step) > level:
            break
        rejected[index] = True
    assert (holm(p) <= level).tolist() == rejected.tolist()


@given(p_values)
def test_what_was_not_tested_stays_so_and_counts_for_nothing(p):
    gaps = np.insert(np.array(p, dtype=float), [0, len(p) // 2, len(p)], np.nan)
    for correct in (holm, benjamini_hochberg):
        adjusted = correct(gaps)
        assert np.isnan(adjusted).tolist() == np.isnan(gaps).tolist()
        assert adjusted[~np.isnan(gaps)] == pytest.approx(correct(p))
        assert (correct(p) >= p).all()


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@pytest.mark.parametrize("p", [[-0.1, 0.5], [0.5, 1.1]])
def test_what_is_no_p_value_is_refused(correct, p):
    with pytest.raises(UsageError, match="between 0 and 1"):
        correct(p)

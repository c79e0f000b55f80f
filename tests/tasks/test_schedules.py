import math

import numpy as np
import pytest

from medseg_se.errors import UsageError
from medseg_se.tasks.schedules import learning_rate_factor

DONE = np.linspace(0, 1, 101)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("cosine", lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2),
        ("poly", lambda done: (1 - done) ** 0.9),
        ("constant", lambda done: 1.0),
    ],
    ids=["cosine", "poly", "constant"],
)
def test_each_schedule_is_its_closed_form(schedule, formula):
    for done in DONE:
        assert learning_rate_factor(schedule, done, 0) == pytest.approx(formula(done))


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.505, 0.01), ("poly", 0.5**0.9, 0.0), ("constant", 1.0, 1.0)], ids=str
)
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_the_schedule_spans_what_the_warmup_leaves(schedule, middle, end, warmup):
    assert learning_rate_factor(schedule, warmup, warmup) == pytest.approx(1)
    assert learning_rate_factor(schedule, (1 + warmup) / 2, warmup) == pytest.approx(middle)
    assert learning_rate_factor(schedule, 1.0, warmup) == pytest.approx(end)


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_warmup_rises_linearly_from_one_percent(schedule):
    assert learning_rate_factor(schedule, 0.0, 0.25) == 0.01
    for done in np.linspace(0.01, 0.249, 20):
        assert learning_rate_factor(schedule, done, 0.25) == pytest.approx(done / 0.25)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_the_rate_only_falls_after_the_warmup_and_never_jumps(schedule):
    factors = np.array([learning_rate_factor(schedule, done, 0.1) for done in np.linspace(0, 1, 1001)])
    assert (np.diff(factors[101:]) < 0).all()
    assert np.abs(np.diff(factors)).max() < 0.0101


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_a_share_beyond_the_run_counts_as_its_begin_or_end(schedule):
    for warmup in (0, 0.3):
        assert learning_rate_factor(schedule, 1.7, warmup) == learning_rate_factor(schedule, 1.0, warmup)
        assert learning_rate_factor(schedule, -0.1, warmup) == learning_rate_factor(schedule, 0.0, warmup)


def test_a_schedule_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"Unknown schedule 'cosin'\. Did you mean 'cosine'\?"):
        learning_rate_factor("cosin", 0.5, 0.1)

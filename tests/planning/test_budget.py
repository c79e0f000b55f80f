import math
from itertools import pairwise

import pytest

from medseg_se.errors import UsageError
from medseg_se.planning.budget import (
    Costs,
    clock,
    parse_budget,
    parse_memory,
    preferred,
    smallest_budget,
    spoken_memory,
    spoken_time,
    timetable,
    written_time,
)

COSTS = Costs(startup=5.0, preparing=20.0, step=0.1, validation=2.0, judging=30.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("30min", 1800),
        ("2h", 7200),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("1D", 86400),
    ],
)
def test_times_are_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "-5m", "5 weeks", "h", "1h30", "900d", "1m?"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match=r"Expected `budget` to be a time such as 30m"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("800 mb", 8 * 10**8), ("1.5TB", 15 * 10**11), ("1MiB", 2**20)]
)
def test_sizes_are_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8", "8G B", "GB", "0GB", "-1GB", "8 bytes"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"Expected `memory` to be a size such as 8GB"):
        parse_memory(text)


def test_preferred_numbers_are_near_and_far_apart():
    values = [1.01**number * 1e-4 for number in range(2000)]
    found = [preferred(value) for value in values]
    assert all(abs(math.log(made / value)) <= math.log(1.26) / 2 + 0.01 for made, value in zip(found, values, strict=True))
    distinct = sorted(set(found))
    assert all(1.24 < after / before < 1.3 for before, after in pairwise(distinct))
    assert all(preferred(made) == made for made in distinct)
    assert preferred(0.0) == 0


def test_times_and_sizes_in_words():
    assert [spoken_time(seconds) for seconds in (0.0125, 2.5, 90, 5400, 108000)] == [
        "12.5 ms",
        "2.5 s",
        "1 min 30 s",
        "1 h 30 min",
        "1 d 6 h",
    ]
    assert [spoken_memory(size) for size in (8e8, 2.5e9)] == ["800 MB", "2.5 GB"]
    assert [clock(seconds) for seconds in (59.9, 100_000)] == ["00:00:00:59", "01:03:46:40"]


@pytest.mark.parametrize("seconds", [50, 90 * 60, 7200, 2 * 86400])
def test_written_times_are_read_back(seconds):
    assert parse_budget(written_time(seconds)) == seconds


@pytest.mark.parametrize("budget", [120, 1200, 7200, 86400])
def test_a_timetable_spends_the_budget(budget):
    table = timetable(budget, COSTS)
    assert table.training + COSTS.around == pytest.approx(budget)
    epoch = table.batches_per_epoch * COSTS.step + COSTS.validation
    assert table.steps == pytest.approx(table.training / epoch * table.batches_per_epoch, abs=1)
    assert table.epochs == pytest.approx(table.training / epoch, abs=1)
    assert table.epochs * COSTS.validation <= 0.13 * table.training
    assert epoch <= 700


def test_two_hours_hold_about_fifty_epochs():
    assert 40 <= timetable(7200, COSTS).epochs <= 60


def test_a_budget_that_does_not_suffice_leaves_no_steps():
    assert timetable(COSTS.around, COSTS).steps == 0
    assert timetable(1, COSTS).training == 0


@pytest.mark.parametrize("costs", [COSTS, Costs(1, 0, 0.04, 0, 0), Costs(30, 4000, 2.0, 100, 900)])
def test_the_smallest_budget_suffices_and_half_of_it_does_not(costs):
    smallest = smallest_budget(costs, 250)
    assert timetable(smallest, costs).steps >= 250
    assert timetable(smallest / 2, costs).steps < 250

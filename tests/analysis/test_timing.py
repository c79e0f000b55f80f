import pytest
import torch

from medseg_se.analysis.timing import Timing, time_in_turns


class Recorded:
    """Notes that it ran; from the round `breaks` on it raises."""

    def __init__(self, name, log, breaks=99):
        self.name, self.log, self.breaks, self.rounds = name, log, breaks, 0

    def prepare(self):
        self.log.append("prepare")

    def __call__(self):
        self.log.append(self.name)
        self.rounds += 1
        if self.rounds > self.breaks:
            raise ValueError("broken")


def in_turns(repeats, **breaks):
    log, failures = [], {}
    runs = {name: Recorded(name, log, after) for name, after in breaks.items()}
    timings = time_in_turns(runs, repeats, torch.device("cpu"), lambda key, error: failures.update({key: str(error)}))
    return timings, [entry for entry in log if entry != "prepare"], failures, log


def test_runs_take_turns_and_each_round_begins_with_the_next():
    timings, ran, failures, log = in_turns(3, a=99, b=99, c=99)
    assert "".join(ran) == "abc" + "bca" + "cab"
    assert log[:3] == ["prepare", "a", "prepare"]
    assert not failures
    assert all(len(timing.values) == 3 and min(timing.values) > 0 for timing in timings.values())


def test_a_broken_run_leaves_the_others_their_numbers():
    timings, ran, failures, _ = in_turns(4, a=99, b=1, c=99)
    assert failures == {"b": "broken"}
    assert list(timings) == ["a", "c"]
    assert [len(timing.values) for timing in timings.values()] == [4, 4]
    assert ran.count("b") == 2


def test_all_may_break():
    timings, _, failures, _ = in_turns(2, a=0)
    assert timings == {}
    assert list(failures) == ["a"]


def test_ratios_are_taken_round_by_round():
    slow_machine = Timing((1.0, 2.0, 4.0))
    assert Timing((2.0, 4.0, 8.0)).over(slow_machine) == Timing((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="longer"):
        Timing((1.0,)).over(slow_machine)


def test_median_and_quartiles():
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert timing.to_dict() == {"median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0, "n": 5}

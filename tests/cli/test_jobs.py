import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from medseg_se.cli.jobs import Job, run_jobs
from medseg_se.errors import UsageError

SAVES = "trap 'echo saved; exit 130' TERM; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.05; done"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="uses a shell")


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a job of a shell script."""

    def job(name, script):
        return Job(name, ["/bin/sh", "-c", script], tmp_path / name / "run.log")

    return job


@pytest.fixture
def console():
    return Console(file=StringIO(), width=200)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def interrupt_when(condition, number=signal.SIGINT):
    """Send a signal to this process as soon as the condition holds."""

    def send():
        wait_for(condition)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_one_that_fails_does_not_take_the_others_and_says_its_last_line(make, console):
    jobs = [
        make("a", "echo one; echo two"),
        make("b", "echo start; echo the reason >&2; echo; exit 3"),
        make("c", "kill -9 $$"),
    ]
    finished = []
    run_jobs([*jobs, make("d", "echo last")], [{}], console, lambda job: finished.append(job.name))
    assert finished == ["a", "d"]
    assert [job.state for job in jobs] == ["finished", "failed", "failed"]
    assert jobs[0].log.read_text() == "one\ntwo\n"
    assert jobs[1].last_line() == "the reason"
    assert jobs[2].last_line().startswith("ended by signal 9")
    printed = console.file.getvalue().splitlines()
    assert [line for line in printed if line.startswith("b: ")] == [f"b: started, see {jobs[1].log}", "b: failed: the reason"]


def test_each_place_takes_one_at_a_time_with_its_own_environment(make, console, monkeypatch, tmp_path):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    script = f'echo "$DEVICE $PL_GLOBAL_SEED" >> {tmp_path}/begun; echo "$DEVICE"; sleep 0.3; test -z "$PL_GLOBAL_SEED"'
    jobs = [make(f"job {number}", script) for number in range(4)]
    run_jobs(jobs, [{"DEVICE": "0"}, {"DEVICE": "5"}], console)
    assert [job.state for job in jobs] == ["finished"] * 4
    assert sorted(job.log.read_text().strip() for job in jobs) == ["0", "0", "5", "5"]
    assert all(job.seconds >= 0.3 for job in jobs)
    started = [line for line in console.file.getvalue().splitlines() if "started" in line]
    assert len(started) == 4


def test_what_is_not_waiting_is_not_run_and_logs_are_continued(make, console):
    done, again = make("done", "echo ran"), make("again", "echo second")
    done.state = "finished"
    again.log.parent.mkdir()
    again.log.write_text("first\n")
    run_jobs([done, again], [{}], console)
    assert not done.log.exists()
    assert again.log.read_text() == "first\nsecond\n"
    assert (done.last_line(), again.last_line()) == ("", "second")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_lets_jobs_save_their_state(make, console, number):
    jobs = [make("a", SAVES), make("b", SAVES), make("c", "echo never")]
    before = signal.getsignal(signal.SIGTERM)
    interrupt_when(lambda: all(job.last_line() == "ready" for job in jobs[:2]), number)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, [{}, {}], console)
    assert [job.last_line() for job in jobs] == ["saved", "saved", ""]
    assert signal.getsignal(signal.SIGTERM) is before
    assert "saves its state first" in console.file.getvalue()


def test_those_that_do_not_listen_are_killed_after_a_while_or_a_second_ctrl_c(make, console):
    first, second = make("first", DEAF), make("second", DEAF)
    interrupt_when(lambda: first.last_line() == "ready")
    with pytest.raises(KeyboardInterrupt):
        run_jobs([first], [{}], console, grace=0.3)
    interrupt_when(lambda: second.last_line() == "ready")
    interrupt_when(lambda: console.file.getvalue().count("Stopping") == 2)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([second], [{}], console, grace=600)
    assert time.monotonic() - started < 60
    for job in (first, second):
        pid = int(job.log.with_suffix(".pid").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_job_whose_command_was_killed_is_not_started_twice(make, console, tmp_path):
    job = make("fold 0", SAVES)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; from medseg_se.cli.jobs import Job, run_jobs; "
        "run_jobs([Job('fold 0', ['/bin/sh', '-c', sys.argv[1]], Path(sys.argv[2]))], [{}], Console())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, SAVES, str(job.log)], stdout=subprocess.DEVNULL)
    wait_for(lambda: job.last_line() == "ready" and job.log.with_suffix(".pid").is_file())
    parent.kill()
    parent.wait()
    pid = int(job.log.with_suffix(".pid").read_text())
    with pytest.raises(UsageError, match=f"fold 0 still runs as the process {pid} of a command that was killed"):
        run_jobs([job], [{}], console)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: job.last_line() == "saved")
    job.command = ["/bin/sh", "-c", "echo continued"]

    def runs():
        try:
            run_jobs([job], [{}], console)
        except UsageError:  # it has said its last word, and is about to end
            return False
        return True

    wait_for(runs)
    assert job.state == "finished"
    assert Path(job.log).read_text() == "ready\nsaved\ncontinued\n"


def test_the_overview_in_a_terminal(make):
    console = Console(file=StringIO(), width=120, force_terminal=True)
    run_jobs([make("fold 0", "echo epoch 3/9"), make("fold 1", "echo out of luck; false")], [{}], console)
    last = console.file.getvalue().split("\x1b[2K")[-1]
    for word in ("fold 0", "finished", "epoch 3/9", "fold 1", "failed", "out of luck"):
        assert word in last

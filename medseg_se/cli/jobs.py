"""Commands in processes of their own, one a place: a crash of one does not take the others, and Ctrl-C ends them gently."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from medseg_se.errors import UsageError, describe_os_error
from medseg_se.files import write_text

_TAIL = 8192  # bytes at the end of a log in which its last line is looked for
_NOT_INHERITED = ("FORCE_COLOR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@dataclass
class Job:
    """A command and what has become of it.

    Attributes:
        name: For messages.
        command: The program and its arguments.
        log: Takes what it prints; what is there already is kept.
        state: Where it stands.
        seconds: How long it has run.
    """

    name: str
    command: Sequence[str]
    log: Path
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    seconds: float = 0.0

    def last_line(self) -> str:
        """Return the last line of its log that is not empty."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
                lines = stream.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_jobs(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    console: Console,
    done: Callable[[Job], None] = lambda job: None,
    grace: float = 60.0,
) -> None:
    """Run every job that is waiting, as many side by side as there are places, and return when all have ended.

    On Ctrl-C or SIGTERM, those that run get SIGTERM, on which a training saves its state, and after `grace` seconds or another
    Ctrl-C they are killed.

    Args:
        jobs: The jobs; their `state` tells what became of them.
        places: The environment variables that are set for a job in each place, such as the device it gets.
        console: Shows an overview, live in a terminal, else a line whenever a job starts or ends.
        done: Called with each job that has finished, at once.
        grace: In seconds.

    Raises:
        KeyboardInterrupt: A person or the system asked to stop.
        UsageError: A job of an earlier run is still running.
        OutputError: A log cannot be written.
    """
    waiting = [job for job in jobs if job.state == "waiting"]
    free, running = list(places), dict[str, _Running]()
    with _Requests() as requests, _overview(jobs, console):
        try:
            while waiting or running:
                while waiting and free:
                    job, place = waiting.pop(0), free.pop(0)
                    running[job.name] = _Running(job, place)
                    _say(console, f"{job.name}: started, see {job.log}")
                for name in [name for name, one in running.items() if one.ended()]:
                    ended = running.pop(name)
                    free.append(ended.place)
                    if ended.job.state == "finished":
                        done(ended.job)
                    why = f": {ended.job.last_line()}" if ended.job.state == "failed" else f" in {_clock(ended.job.seconds)}"
                    _say(console, f"{name}: {ended.job.state}{why}")
                if requests.count:
                    raise KeyboardInterrupt
                time.sleep(0.1)
        except BaseException:
            _end([one.process for one in running.values()], console, requests, grace)
            raise


class _Running:
    """A job with its process, in a session of its own, so that a terminal's Ctrl-C does not reach it."""

    def __init__(self, job: Job, place: Mapping[str, str]) -> None:
        self.job, self.place, self.started = job, place, time.monotonic()
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        self._pid = job.log.with_suffix(".pid")
        with _open_log(job, self._pid) as log:
            self.process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **place},
                start_new_session=True,
            )
        try:
            write_text(self._pid, f"{self.process.pid}\n")
        except BaseException:
            self.process.terminate()
            raise
        job.state = "running"

    def ended(self) -> bool:
        """Tell whether it has ended, and keep its job's account."""
        self.job.seconds = time.monotonic() - self.started
        code = self.process.poll()
        if code is None:
            return False
        self.job.state = "finished" if code == 0 else "failed"
        if code < 0:
            with self.job.log.open("a", encoding="utf-8") as log:
                log.write(f"\nended by signal {-code}, {signal.strsignal(-code)}\n")
        self._pid.unlink(missing_ok=True)
        return True


def _open_log(job: Job, pid: Path) -> BinaryIO:
    """Open a log to be continued, locked for as long as the process that gets it lives, also if this one is killed.

    Raises:
        UsageError: Such a process is still there.
        OutputError: The file cannot be opened.
    """
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        stream = job.log.open("ab")
    except OSError as error:
        raise describe_os_error(job.log, error) from error
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # a system without such locks
        pass
    except OSError as error:
        stream.close()
        number = pid.read_text(encoding="utf-8").strip() if pid.is_file() else "of unknown number"
        raise UsageError(
            f"{job.name} still runs as the process {number} of a command that was killed. Wait until it has ended, or end it, "
            "and run this again."
        ) from error
    return stream


def _end(processes: Sequence[subprocess.Popen[bytes]], console: Console, requests: _Requests, grace: float) -> None:
    """Ask processes to end, and kill those that have not after `grace` seconds or when another request comes."""
    known, until = requests.count, time.monotonic() + grace
    for process in processes:
        process.terminate()
    if processes:
        console.print("Stopping; what runs saves its state first. Ctrl-C once more kills it.", soft_wrap=True)
    while any(process.poll() is None for process in processes):
        if requests.count > known or time.monotonic() > until:
            for process in processes:
                process.kill()
        time.sleep(0.05)


class _Requests:
    """Counts how often a person or the system asks to stop, in place of an exception that might come between any two lines."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Requests:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last: the terminal is closed
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._add)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _add(self, *_: object) -> None:
        self.count += 1


@contextmanager
def _overview(jobs: Sequence[Job], console: Console) -> Iterator[None]:
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: _table(jobs), console=console, refresh_per_second=2):
        yield


def _table(jobs: Sequence[Job]) -> Table:
    table = Table("", "", Column("time", justify="right"), Column("last line", no_wrap=True, overflow="ellipsis", ratio=1))
    for job in jobs:
        style = {"failed": "red", "finished": "green", "waiting": "dim"}.get(job.state, "")
        table.add_row(job.name, job.state, _clock(job.seconds) if job.seconds else "", Text(job.last_line()), style=style)
    return table


def _say(console: Console, line: str) -> None:
    if not console.is_terminal:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

"""Preparing cases in parallel: what ails one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from medseg_se.data.datalist import Case
from medseg_se.errors import DataError
from medseg_se.processors import at_once

T = TypeVar("T")


def for_every_case(
    cases: Sequence[Case],
    prepare: Callable[[Case], T],
    progress: bool = True,
    workers: int | None = None,
    advice: str = "",
    doing: str = "preparing scans",
) -> list[T]:
    """Return what `prepare` makes of every case, in order; several are prepared at a time.

    Args:
        cases: The cases.
        prepare: What is done with each.
        progress: Whether to show a progress bar.
        workers: Cases prepared at the same time.
        advice: What to do where cases cannot be used.
        doing: What the progress bar, on a terminal, says is done.

    Raises:
        DataError: Cases cannot be used; says how many, and what ails the first.
    """
    ready, broken = attempt_every_case(cases, prepare, progress, workers, doing)
    if broken:
        first = " ".join(filter(None, (broken[min(broken)], advice)))
        raise DataError(f"{len(broken)} of {len(cases)} cases cannot be used, the first being {first}")
    return [ready[place] for place in range(len(cases))]


def attempt_every_case(
    cases: Sequence[Case],
    prepare: Callable[[Case], T],
    progress: bool = True,
    workers: int | None = None,
    doing: str = "preparing scans",
) -> tuple[dict[int, T], dict[int, str]]:
    """Return place → what `prepare` makes of a case, and place → "id: reason" of those that cannot be used; as above."""
    ready: dict[int, T] = {}
    broken: dict[int, str] = {}
    pool = ThreadPoolExecutor(workers or at_once())
    jobs = {pool.submit(prepare, case): place for place, case in enumerate(cases)}
    console = Console(stderr=True)
    hidden = not progress or not console.is_terminal
    done = track(as_completed(jobs), doing, len(jobs), disable=hidden, transient=True, console=console)
    try:
        for job in done:
            try:
                ready[jobs[job]] = job.result()
            except DataError as error:
                broken[jobs[job]] = f"{cases[jobs[job]].id}: {error}"
    finally:  # after Ctrl-C or on a full disk, the cases that wait are not begun
        pool.shutdown(cancel_futures=True)
    return ready, broken

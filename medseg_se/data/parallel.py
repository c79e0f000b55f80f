"""Preparing cases in parallel: what ails one does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from rich.progress import track

from medseg_se.data.datalist import Case
from medseg_se.errors import DataError

T = TypeVar("T")


def for_every_case(
    cases: Sequence[Case],
    prepare: Callable[[Case], T],
    progress: bool = True,
    workers: int | None = None,
    advice: str = "",
) -> list[T]:
    """Return what `prepare` makes of every case, in order; several are prepared at a time.

    Args:
        cases: The cases.
        prepare: What is done with each.
        progress: Whether to show a progress bar.
        workers: Cases prepared at the same time.
        advice: What to do where cases cannot be used.

    Raises:
        DataError: Cases cannot be used; says how many, and what ails the first.
    """
    ready: dict[int, T] = {}
    broken: dict[int, str] = {}
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    jobs = {pool.submit(prepare, case): place for place, case in enumerate(cases)}
    done = track(as_completed(jobs), description="preparing scans", total=len(jobs), disable=not progress, transient=True)
    try:
        for job in done:
            try:
                ready[jobs[job]] = job.result()
            except DataError as error:
                broken[jobs[job]] = f"{cases[jobs[job]].id}: {error}"
    finally:  # after Ctrl-C or on a full disk, the cases that wait are not begun
        pool.shutdown(cancel_futures=True)
    if broken:
        first = " ".join(filter(None, (broken[min(broken)], advice)))
        raise DataError(f"{len(broken)} of {len(cases)} cases cannot be used, the first being {first}")
    return [ready[place] for place in range(len(cases))]

"""Answers about a cohort of whole scans: `predictions.csv`, and a record of what became of each case.

The record is that of label maps (`medseg_se.inference.record`) and holds the answers, so that a run which is killed goes on
where it stood, and several runs may write to one folder.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medseg_se.data.answers import FILE, Answers
from medseg_se.data.datalist import MANIFEST, Case
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.inference.job import close
from medseg_se.inference.journal import locked
from medseg_se.inference.predict import Which, progress_bar
from medseg_se.inference.reading import digest_of_scan
from medseg_se.inference.record import TABLE, Record, read_record
from medseg_se.inference.scans.panel import Panel
from medseg_se.inference.shard import Shard
from medseg_se.inference.status import Outcome, Status

_FARTHEST = 1e6  # distances are cut off here: JSON has no infinity
Note = Callable[[str, Status], None]


def choose_scans(cases: Sequence[Case], panel: Panel, which: Which) -> list[Case]:
    """Return all cases, those that chose the checkpoint in validation, or those that played no part in either.

    Scans are recognised by their content. One that cannot be read played no part, and is reported when its turn comes.

    Raises:
        DataError: None is left.
    """
    if which == "all":
        return list(cases)
    if which not in ("validation", "unseen"):
        raise UsageError(f"Expected `cases` to be all, validation or unseen, but got {which!r}.")
    chosen = []
    for case in cases:
        try:
            digest = digest_of_scan(case)
        except DataError:
            digest = ""
        if (digest in panel.validation) if which == "validation" else (digest not in panel.training | panel.validation):
            chosen.append(case)
    if not chosen:
        what = "a validation scan of" if which == "validation" else "new to"
        raise DataError(f"None of the {len(cases)} scans is {what} this model.")
    return chosen


def predict_scans(
    panel: Panel,
    cases: Sequence[Case],
    output: Path,
    mirror: Sequence[str] = (),
    *,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    shard: Shard | None = None,
    readers: int = 1,
) -> Outcome:
    """Answer for every case that is not done yet and write `predictions.csv` to `output`; returns what became of each.

    A broken case is recorded, has a line without an answer, and the rest go on.

    Args:
        panel: The models.
        cases: The cases.
        output: Folder for `predictions.csv`, `status.csv` and `predictions.json`.
        mirror: Directions along which mirror images are asked too.
        strict: Whether a scan that is unlike those of the training is refused rather than answered with a warning.
        overwrite: Replace what another model or other options left in the folder.
        progress: Whether to show a progress bar.
        shard: The part of the cases to answer for; the record lists all of them.
        readers: Scans that are read and prepared at the same time.

    Raises:
        UsageError: The folder holds results of another model or files that are not ours, or an argument makes no sense.
        OutputError: The results cannot be written.
    """
    if readers < 1:
        raise UsageError(f"Expected `readers` to be at least 1, but got {readers}.")
    for name in (FILE, TABLE):
        if (output / name).exists() and not (output / MANIFEST).exists() and not overwrite:
            raise UsageError(
                f"{output / name} exists and was not written by this command. Choose another folder, or --overwrite."
            )
    started = time.perf_counter()
    precision = panel.members[0].engine.precision if panel.members[0].engine is not None else "fp32"
    options: dict[str, Any] = {"model": panel.digest, "task": panel.task, "mirror": list(mirror), "precision": precision}
    mine = shard.of_cases(cases) if shard else list(cases)
    answered = 0
    names = [case.id for case in cases]
    with (
        Record(output, options, overwrite, names, lambda _: FILE) as record,
        progress_bar(len(mine), progress) as advance,
    ):
        before = {case.id: record.statuses[case.id] for case in mine}

        def note(name: str, status: Status) -> None:
            nonlocal answered
            if status != before[name]:
                record.note(name, status)
                answered += status.status == "done"
            advance()

        _Run(panel, mirror, strict, note).run(((case, before[case.id]) for case in mine), readers)
    with locked(output):
        answers_of(read_record(output, options), panel).write(output / FILE)
    return Outcome({case.id: record.statuses[case.id] for case in mine}, time.perf_counter() - started, answered)


def answers_of(statuses: dict[str, Status], panel: Panel) -> Answers:
    """Return the table of what a record holds; cases that failed have no answer, and those that wait are left out."""
    ended = {name: status for name, status in statuses.items() if status.status != "waiting"}
    empty = [np.nan] * len(panel.names)
    told = [status.answer or {} for status in ended.values()]
    numbers = np.array([one.get("numbers") or empty for one in told], dtype=np.float64).reshape(len(ended), len(panel.names))
    far = [one.get("distance") for one in told]
    distance = np.array([np.nan if one is None else one for one in far], dtype=np.float64)
    return Answers(
        ids=tuple(ended),
        images=tuple(one.get("image", "") for one in told),
        names=panel.names,
        numbers=numbers,
        is_classification=panel.task == "classification",
        unlike=distance > 1,
        distance=distance,
    )


@dataclass
class _Read:
    """A case on its way: what is known of it, and the prepared scan; without one it has ended."""

    case: Case
    status: Status
    scan: tuple[Tensor, ...] | None


class _Run:
    def __init__(self, panel: Panel, mirror: Sequence[str], strict: bool, note: Note) -> None:
        self.panel, self.mirror, self.strict, self.note = panel, mirror, strict, note

    def run(self, tasks: Iterator[tuple[Case, Status]], readers: int) -> None:
        """Read ahead, and ask in batches."""
        waiting: deque[Future[_Read]] = deque()
        ready: list[_Read] = []
        pool = ThreadPoolExecutor(readers)
        try:
            for case, recorded in tasks:
                waiting.append(pool.submit(self._load, case, recorded))
                if len(waiting) >= 2 * self.panel.batch + readers:
                    ready = self._take(waiting.popleft().result(), ready)
            while waiting:
                ready = self._take(waiting.popleft().result(), ready)
            self._ask(ready)
        finally:
            pool.shutdown(cancel_futures=True)

    def _take(self, read: _Read, ready: list[_Read]) -> list[_Read]:
        """Note a case that has ended, and ask for the others once there are enough of them."""
        if read.scan is None:
            self.note(read.case.id, read.status)
            return ready
        ready = [*ready, read]
        if len(ready) < self.panel.batch:
            return ready
        self._ask(ready)
        return []

    def _load(self, case: Case, recorded: Status) -> _Read:
        started = time.perf_counter()
        status = Status("waiting", FILE, answer={"image": ";".join(map(str, case.images))})
        try:
            status.input = digest_of_scan(case)
            answered = recorded.status == "done" and bool(recorded.answer) and not (self.strict and recorded.warnings)
            if answered and recorded.input == status.input:
                return _Read(case, recorded, None)
            seen = "validation" if status.input in self.panel.validation else ""
            status.known = "training" if status.input in self.panel.training else seen
            scan = self.panel.read(case)
        except Exception as error:  # whatever is wrong with a file, the others go on
            return _Read(case, close(status, case, error), None)
        status.parts["read"] = time.perf_counter() - started
        return _Read(case, status, scan)

    def _ask(self, ready: list[_Read]) -> None:
        """Answer for cases together; where that fails, one by one, so that none takes others along."""
        if not ready:
            return
        started = time.perf_counter()
        try:
            numbers, distance = self.panel.answer([read.scan for read in ready if read.scan is not None], self.mirror)
        except (UsageError, OutputError):
            raise
        except Exception as error:
            if len(ready) == 1:
                self.note(ready[0].case.id, close(ready[0].status, ready[0].case, error))
                return
            for read in ready:
                self._ask([read])
            return
        seconds = (time.perf_counter() - started) / len(ready)
        for read, row, far in zip(ready, numbers, distance.tolist(), strict=True):
            read.status.parts["network"] = seconds
            self.note(read.case.id, self._ended(read, row, far))

    def _ended(self, read: _Read, numbers: Tensor, distance: float) -> Status:
        status, case = read.status, read.case
        if distance > 1:
            status.warnings = [f"unlike the scans of the training: {min(distance, _FARTHEST):.3g} times the limit away"]
            if self.strict:
                refused = DataError(f"{case.images[0]}: {status.warnings[0]}. Leave out `--strict` to answer all the same.")
                return close(status, case, refused)
        known = distance == distance
        status.status, status.notes = "done", list(self.panel.notes)
        status.answer = {
            **(status.answer or {}),
            "numbers": numbers.tolist(),
            "distance": min(distance, _FARTHEST) if known else None,
        }
        return close(status, case)

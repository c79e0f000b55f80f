"""Successive scans overlap: while the network looks at one, the next is read and prepared and the last one is written.

Memory stays bounded: each reader holds one scan that the network has not taken, and one result waits for the writer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from medseg_se.data.datalist import Case
from medseg_se.errors import OutputError
from medseg_se.inference.ensemble import Ensemble
from medseg_se.inference.job import Job, Stage, Task, ask, close, discard, load, write
from medseg_se.inference.model import Model
from medseg_se.inference.status import Status

Note = Callable[[str, Status], None]


def run_pipeline(
    model: Model | Ensemble,
    job: Job,
    tasks: Iterator[Task],
    note: Note,
    readers: int = 1,
    stop: threading.Event | None = None,
) -> None:
    """Do the job to every case; one that fails is noted and the rest go on.

    Args:
        model: The model; the calling thread alone asks it, the readers alone let it prepare.
        job: What is done.
        tasks: The cases, taken one by one when there is room for them.
        note: Called by several threads with every case that has ended.
        readers: Scans that are read and prepared at the same time.
        stop: Set when no more cases are to be taken: by the caller, or here if anything ends the run.

    Raises:
        OutputError: A result cannot be written; the rest would fail too. What waited to be written is lost, the rest is noted.
    """
    _Pipeline(model, job, tasks, note, readers, stop or threading.Event()).run()


class _Pipeline:
    def __init__(
        self, model: Model | Ensemble, job: Job, tasks: Iterator[Task], note: Note, readers: int, stop: threading.Event
    ) -> None:
        self.model, self.job, self.tasks, self.note, self.stop = model, job, tasks, note, stop
        self.error: BaseException | None = None
        self.turn, self.room = threading.Lock(), threading.Semaphore(readers)
        self.prepared: queue.SimpleQueue[Stage | None] = queue.SimpleQueue()
        self.answered: queue.Queue[Stage | None] = queue.Queue(1)
        self.readers = [threading.Thread(target=self._read, daemon=True) for _ in range(readers)]
        self.writer = threading.Thread(target=self._write, daemon=True)

    def run(self) -> None:
        """Run until all is done, or something ends it; what the network has answered is written in any case."""
        for thread in (*self.readers, self.writer):
            thread.start()
        try:
            self._ask()
        except OutputError as error:
            self._fail(error)
        finally:
            self.stop.set()
            self.room.release(len(self.readers))
            for thread in self.readers:
                thread.join()
            self.answered.put(None)
            self.writer.join()
        if self.error is not None:
            raise self.error

    def _read(self) -> None:
        try:
            while True:
                self.room.acquire()
                with self.turn:
                    task = None if self.stop.is_set() else next(self.tasks, None)
                if task is None:
                    break
                stage = self._load(*task)
                if stage is None:
                    self.room.release()
                else:
                    self.prepared.put(stage)
                    del stage  # or this thread would hold it while it reads the next one
        except BaseException as error:  # crosses over to the thread that called
            self._fail(error)
        self.prepared.put(None)

    def _load(self, case: Case, recorded: Status) -> Stage | None:
        status = Status("waiting", f"{case.id}.nii.gz")
        stage, ended = None, recorded
        try:
            stage = load(self.model, self.job, case, recorded, status)
        except Exception as error:
            ended = self._failed(status, case, error)
        if stage is None:
            self.note(case.id, ended)
        return stage

    def _ask(self) -> None:
        reading = len(self.readers)
        while reading and self.error is None:
            stage = self.prepared.get()
            if stage is None:
                reading -= 1
                continue
            self.room.release()
            try:
                self.answered.put(ask(self.model, self.job, stage))
            except Exception as error:
                self.note(stage.case.id, self._failed(stage.status, stage.case, error))
            del stage

    def _write(self) -> None:
        while (stage := self.answered.get()) is not None:
            if self.error is None:
                try:
                    self._finish(stage)
                except BaseException as error:  # crosses over to the thread that called
                    self._fail(error)
            else:
                discard(stage)
            del stage

    def _finish(self, stage: Stage) -> None:
        try:
            write(self.model, self.job, stage)
            ended = close(stage.status, stage.case)
        except Exception as error:
            discard(stage)
            ended = self._failed(stage.status, stage.case, error)
        self.note(stage.case.id, ended)

    def _failed(self, status: Status, case: Case, error: Exception) -> Status:
        """Return the status of a case that failed; an error that the rest would meet too ends the run."""
        status = close(status, case, error)
        if isinstance(error, OutputError):
            with suppress(OutputError):  # the first says more
                self.note(case.id, status)
            raise error
        return status

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.stop.set()
        self.prepared.put(None)  # wakes the thread that called

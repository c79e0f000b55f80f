"""Several processes share a cohort, each with a model of its own; if one is killed, a fresh one goes on.

Which of the scans that a killed process held was to blame is found out rather than guessed: each of them is tried once more
with a process to itself. What ends that one has failed; the others have not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from medseg_se.errors import MedsegError, UsageError
from medseg_se.inference.job import Job, Task
from medseg_se.inference.pipeline import Note
from medseg_se.inference.source import ModelSource
from medseg_se.inference.status import Status
from medseg_se.processors import cores

GRACE = 30.0
"""Seconds in which a worker that is told to end may finish the file it is writing."""


@dataclass
class _Worker:
    """A process, and what it was given.

    Attributes:
        number: Its place among the workers.
        process: The process.
        pipe: Our end of the line to it.
        ready: Whether it has loaded its model.
        held: Case → task of what it has not ended yet.
        alone: Whether it holds a single case on purpose.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    held: dict[str, Task] = field(default_factory=dict)
    alone: bool = False


def run_workers(source: ModelSource, job: Job, tasks: Sequence[Task], note: Note, workers: int, readers: int = 1) -> None:
    """Do the job to every case with `workers` processes that share the processors; one that fails is noted.

    Args:
        source: What every process loads.
        job: What is done.
        tasks: The cases.
        note: Called with every case that has ended.
        workers: Number of processes.
        readers: Scans that each reads and prepares at the same time.

    Raises:
        OutputError: A result cannot be written; the rest would fail too.
        UsageError: A process was killed while it loaded its model.
    """
    _Crew(source, job, tasks, note, min(workers, len(tasks)), readers).run()


class _Crew:
    def __init__(self, source: ModelSource, job: Job, tasks: Sequence[Task], note: Note, workers: int, readers: int) -> None:
        self.source, self.job, self.note, self.readers, self.count = source, job, note, readers, workers
        self.waiting, self.suspects = deque(tasks), deque[Task]()
        self.workers: list[_Worker] = []
        self.context = multiprocessing.get_context("spawn")  # a fork would inherit threads of PyTorch that are not there

    def run(self) -> None:
        try:
            for number in range(self.count):
                self.workers.append(self._start(number))
            while self._left():
                for pipe in wait([worker.pipe for worker in self.workers]):
                    worker = next(one for one in self.workers if one.pipe is pipe)
                    try:
                        self._hear(worker, worker.pipe.recv())
                    except (EOFError, OSError):
                        self._replace(worker)
            for worker in self.workers:
                worker.pipe.close()  # which tells it to end
            for worker in self.workers:
                worker.process.join(GRACE)
        finally:
            self._end()

    def _left(self) -> bool:
        return bool(self.waiting or self.suspects or any(worker.held for worker in self.workers))

    def _start(self, number: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        threads = max(1, cores() // self.count)
        given = (theirs, self.source.on_card(number), self.job, threads, self.readers)
        process = self.context.Process(target=work, args=given, daemon=True)
        process.start()
        theirs.close()  # or its end would not be noticed
        return _Worker(number, process, ours)

    def _hear(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, BaseException):
            raise message
        if message is None:
            worker.ready = True
        else:
            name, status = message
            if worker.held.pop(name, None) is not None:
                self.note(name, status)
        worker.alone = worker.alone and bool(worker.held)
        self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        """Give a worker one case for each stage, so that none waits; a suspect only when it holds nothing else."""
        with contextlib.suppress(OSError):  # it has just ended; we shall hear of that
            if self.suspects:
                if not worker.held:
                    worker.alone = True
                    self._give(worker, self.suspects.popleft())
                return
            while not worker.alone and self.waiting and len(worker.held) < self.readers + 2:
                self._give(worker, self.waiting.popleft())

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.held[task[0].id] = task
        worker.pipe.send(task)

    def _replace(self, worker: _Worker) -> None:
        """Note or put aside what an ended worker held, and start a fresh one if there is work for it."""
        worker.process.join(GRACE)
        how = _how_it_ended(worker.process.exitcode)
        if not worker.ready:
            raise UsageError(f"A process {how} while it loaded the model. Give fewer `--workers`, or more memory.")
        held = list(worker.held.values())
        if len(held) == 1:
            case, _ = held[0]
            named = case.images[0] if case.images else case.id
            error = f"{named}: the process that segmented it {how}"
            self.note(case.id, Status("failed", f"{case.id}.nii.gz", error))
        else:
            self.suspects.extend(held)
        worker.pipe.close()
        self.workers.remove(worker)
        if self.waiting or self.suspects:
            self.workers.append(self._start(worker.number))
        for other in self.workers:
            if other.ready and not other.held:
                self._feed(other)

    def _end(self) -> None:
        """End what still runs, and note what it has finished; a worker removes what it had begun to write."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
            with contextlib.suppress(EOFError, MedsegError, OSError), worker.pipe:
                while worker.pipe.poll():
                    message = worker.pipe.recv()
                    if isinstance(message, tuple):
                        self.note(*message)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name}), perhaps for want of memory,"
    return f"ended with the code {code}"


# ------------------------------------------------------------------------------------------------------------- in the process


def work(pipe: Connection, source: ModelSource, job: Job, threads: int, readers: int) -> None:
    """Load the model, say so, and do the job to what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the process that started us tells us to end
    signal.signal(signal.SIGTERM, _end)
    import torch

    from medseg_se.hardware import keep_freed_memory
    from medseg_se.inference.pipeline import run_pipeline

    keep_freed_memory()
    torch.set_num_threads(threads)
    stop, turn = threading.Event(), threading.Lock()

    def say(message: object) -> None:
        with turn:
            try:
                pipe.send(message)
            except OSError:  # nobody listens any more
                stop.set()

    try:
        model = source.load()
        say(None)
        run_pipeline(model, job, _tasks(pipe, stop), lambda name, status: say((name, status)), readers, stop)
    except MedsegError as error:
        say(error)
    except Exception:
        say(RuntimeError(f"A process failed:\n{traceback.format_exc()}"))


def _tasks(pipe: Connection, stop: threading.Event) -> Iterator[Task]:
    while not stop.is_set():
        try:
            if pipe.poll(0.1):
                yield pipe.recv()
        except (EOFError, OSError):
            return


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)

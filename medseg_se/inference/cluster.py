"""The cases of a cohort over the machines of a Ray cluster: a model for each actor, and only names of files travel.

All machines must see the scans and the output folder under the same paths, and have this package installed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medseg_se.errors import OutputError, UsageError
from medseg_se.inference.job import Job, Task
from medseg_se.inference.pipeline import Note, run_pipeline
from medseg_se.inference.source import ModelSource
from medseg_se.inference.status import Status
from medseg_se.optional import load_optional

BATCH = 4
"""Cases that an actor is given together, so that its reading, network and writing overlap."""


def run_cluster(address: str, source: ModelSource, job: Job, tasks: Sequence[Task], note: Note, actors: int) -> None:
    """Do the job to every case with Ray Data; one that fails is noted.

    What an actor held that was killed is tried once more, each case by itself; what ends an actor again has failed.

    Args:
        address: Of the cluster, such as ray://host:10001 or host:6379; "local" starts one on this machine.
        source: What every actor loads.
        job: What is done.
        tasks: The cases.
        note: Called with every case that has ended.
        actors: Number of actors, which share the processors and the graphics cards of the cluster.

    Raises:
        OutputError: A result cannot be written; the rest would fail too.
        UsageError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = load_optional("ray")
    data = load_optional("ray.data")
    places = tuple(Path(path).absolute() for path in source.checkpoints)
    source, job = replace(source, checkpoints=places), replace(job, output=job.output.absolute())
    missing = {case.id: (case, recorded) for case, recorded in tasks}
    with _connected(ray, address):
        resources = ray.cluster_resources()
        cards = min(1.0, resources.get("GPU", 0.0) / actors) if source.device in ("auto", "cuda") else 0.0
        threads = max(1, int(resources.get("CPU", 1.0)) // actors)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # what a killed actor held must not end the rest
        for size in (BATCH, 1):
            rows = [{"task": pack(task)} for task in missing.values()]
            if not rows:
                break
            given = data.from_items(rows, override_num_blocks=-(-len(rows) // size))
            pool = data.ActorPoolStrategy(size=min(actors, len(rows)), max_tasks_in_flight_per_actor=1)
            # A scan that ends its actor would do so again and again: it is not given to the next one.
            limits = {"num_cpus": threads, "num_gpus": cards, "max_restarts": -1, "max_task_retries": 0}
            with warnings.catch_warnings(action="ignore"):  # the last two have no names of their own yet
                answers = given.map_batches(
                    Segmenter, fn_constructor_args=(source, job, threads), batch_size=size, compute=pool, **limits
                )
            try:
                for row in answers.iter_rows():
                    if row["fatal"]:
                        raise OutputError(row["fatal"])
                    note(row["case"], Status(**json.loads(row["status"])))
                    del missing[row["case"]]
            except ray.exceptions.RayError as error:
                reason = [line for line in str(error).splitlines() if line.strip()][-1]
                raise UsageError(f"The cluster at {address!r} gave up: {reason}") from error
    for case, _ in missing.values():
        reason = f"{case.images[0]}: the process that segmented it was killed, perhaps for want of memory"
        note(case.id, Status("failed", f"{case.id}.nii.gz", reason))


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to the cluster, unless the program already is."""
    if ray.is_initialized():
        yield
        return
    try:
        if place := re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address):
            with socket.create_connection((place[1], int(place[2])), timeout=10):
                pass  # somebody is there; Ray itself would try for minutes
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ImportError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"Cannot reach a Ray cluster at {address!r}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


# -------------------------------------------------------------------------------------------------------------- in the actors


class Segmenter:
    """An actor: it loads the model once and segments what it is given.

    Args:
        source: Where the model comes from.
        job: What is done.
        threads: Processors that it may use.
    """

    def __init__(self, source: ModelSource, job: Job, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model, self.job = source.load(), job

    def __call__(self, batch: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
        """Return the columns case, status and fatal of the cases whose descriptions are in the column task."""
        return segment(self.model, self.job, batch["task"])


def segment(model: Any, job: Job, descriptions: Sequence[bytes]) -> dict[str, list[str]]:
    """Do the job to the cases that `pack` described.

    Returns:
        The columns case, status (JSON) and fatal: empty, or why nothing more can be written.
    """
    ended: dict[str, Status] = {}
    fatal = ""
    tasks: list[Task] = [pickle.loads(content) for content in descriptions]
    try:
        run_pipeline(model, job, iter(tasks), ended.__setitem__)
    except OutputError as error:
        fatal = str(error)
        ended |= {case.id: recorded for case, recorded in tasks if case.id not in ended}
    names = [case.id for case, _ in tasks]
    return {
        "case": names,
        "status": [json.dumps(asdict(ended[name])) for name in names],
        "fatal": [fatal] * len(names),
    }


def pack(task: Task) -> bytes:
    """Describe a case, with absolute paths, and what is recorded of it."""
    case, recorded = task
    return pickle.dumps((replace(case, images=tuple(path.absolute() for path in case.images)), recorded))

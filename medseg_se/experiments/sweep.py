"""The runs of an experiment on several machines: workers of submitit take them from one grid of Optuna's, in a shared folder.

Each worker asks Optuna's `GridSampler` for the next run, whose record lies in a journal in the experiment's folder, and does it
with the very command that is used for runs in sequence. A run is finished by what lies in its folder, not by what the journal
says: workers may be killed, and the next sweep does the rest.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from medseg_se.data.datalist import read_json
from medseg_se.errors import UsageError
from medseg_se.experiments.folder import RunFolder
from medseg_se.optional import load_optional
from medseg_se.processors import thread_share

Executor = Literal["slurm", "local", "debug"]


class Task(Protocol):
    """A run to be done.

    Attributes:
        name: Its name in the grid.
        command: What does it.
        log: Takes what it prints.
    """

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Sweep:
    """Where runs are fanned out to.

    Attributes:
        executor: "slurm"; or "local", processes of this machine; or "debug", one worker in this process.
        workers: How many workers take runs at the same time.
        parameters: Of submitit's executor, such as `timeout_min` and `slurm_partition`.
    """

    executor: Executor
    workers: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"Expected `workers` to be at least 1, but got {self.workers}.")


def fan_out(sweep: Sweep, output: Path, tasks: Sequence[Task]) -> None:
    """Do the tasks with several workers, and return when all have ended; what failed is told by its folder.

    Raises:
        UsageError: A package is not installed, or the executor refuses its parameters.
    """
    load_optional("optuna")
    submitit = load_optional("submitit")
    study = f"sweep-{time.time_ns()}"
    executor = submitit.AutoExecutor(folder=output / "sweep", cluster=sweep.executor)
    try:
        executor.update_parameters(name="medseg-se", **{"timeout_min": 24 * 60, **sweep.parameters})
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"submitit refuses its parameters: {' '.join(str(error).split())}.") from error
    plain = [(task.name, list(task.command), str(task.log)) for task in tasks]
    shared = thread_share(sweep.workers) if sweep.executor == "local" else {}
    workers = [executor.submit(work, output, study, plain, shared) for _ in range(min(sweep.workers, len(plain)))]
    failures = [why for worker in workers if (why := worker.exception()) is not None]
    if len(failures) == len(workers):
        raise UsageError(f"No worker could work, see {output / 'sweep'}: {str(failures[0]).strip().splitlines()[-1]}")


def work(output: Path, study: str, tasks: Sequence[tuple[str, list[str], str]], shared: Mapping[str, str]) -> None:
    """Do tasks of a study, name, command and log of each, until none is left; `shared` is added to their environment."""
    optuna = load_optional("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    commands = {name: (command, Path(log)) for name, command, log in tasks}
    grid = {"run": list(commands)}
    made = optuna.create_study(
        study_name=study,
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(output / "sweep.journal"))),
        sampler=optuna.samplers.GridSampler(grid, seed=0),
        direction="maximize",
        load_if_exists=True,
    )

    def objective(trial: Any) -> float:
        name = trial.suggest_categorical("run", grid["run"])
        (command, log), folder = commands[name], RunFolder.of(output, name)
        if not folder.finished() and _do(command, log, shared):  # the sampler may hand out one that another worker had
            raise UsageError(f"{name} failed, see {log}.")
        return float(read_json(folder.evaluation)["mean_foreground"])

    made.optimize(objective, catch=(UsageError,))


def _do(command: Sequence[str], log: Path, shared: Mapping[str, str]) -> int:
    """Run a command and return its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **shared},
            check=False,
        ).returncode

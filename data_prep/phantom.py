"""Procedural heads (MR) or trunks (CT) with exact labels: a dataset to try everything on, made in a minute."""

from __future__ import annotations

import os
from pathlib import Path

from medseg_se.data.phantom import Kind, write_phantoms
from medseg_se.data.phantom_ages import Ages
from medseg_se.errors import UsageError


def phantom(
    output: str,
    *,
    kind: Kind = "brain",
    cases: int = 20,
    test: int = 4,
    seed: int = 0,
    resolution: float | None = None,
    ages: tuple[float, float] | None = None,
    age_deviation: float = 5.0,
    workers: int | None = None,
) -> int:
    """Make a dataset of phantoms; run again after an interruption, it makes what is missing.

    Args:
        output: Folder for the dataset.
        kind: "brain" (T1-weighted MR with FreeSurfer's label values) or "torso" (CT).
        cases: How many cases in all.
        test: How many of them are held out; their labels lie in labelsTs.
        seed: Another seed gives other subjects.
        resolution: Edge of a voxel in mm, about; 2.4 for a brain and 6 for a torso if left out.
        ages: The youngest and the oldest in years, such as [20,80], for heads whose age is known and seen: the datalist gives
            age and sex of each. People without an age if left out.
        age_deviation: Standard deviation of how old a brain looks from how old it is, in years; only with `ages`.
        workers: Processes that draw at once; as many as there are cores if left out.
    """
    if not 0 <= test <= cases:
        raise UsageError(f"Expected `test` between 0 and the number of cases, {cases}, but got {test}.")
    folder = Path(output)
    before = _finished(folder)
    processes = workers or os.cpu_count() or 1
    people = None if ages is None else Ages(*ages, age_deviation)
    description = write_phantoms(folder, kind, cases - test, test, seed, resolution, processes, progress=True, ages=people)
    print(f"{description}: made {_finished(folder) - before} {kind} phantoms, {before} were there already.")
    return 0


def _finished(output: Path) -> int:
    """Count the images, which are written after their labels."""
    return sum(not path.name.startswith(".") for path in output.glob("images*/*"))

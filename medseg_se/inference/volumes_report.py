"""The volume of every structure in a label map: voxels, millilitres, and whether the border of the scan cuts it off."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.files import write_text
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

COHORT = "volumes.csv"
COLUMNS = ("structure", "label", "voxels", "ml", "touches_border", "uncertainty")
CHUNK = 2**22
"""Voxels that are counted together: NumPy counts in 64 bits, and a whole scan of those would be large."""


@dataclass(frozen=True)
class StructureVolume:
    """What a label map holds of one structure or region.

    Attributes:
        structure: Its name.
        values: Label values that mean it.
        voxels: How many voxels it has.
        ml: Their volume in millilitres.
        touches_border: Whether a voxel lies on the border of the scan, which may have cut the structure off. An axis of a
            single voxel has no border.
        uncertainty: Mean uncertainty in it, if that was asked for; None or NaN if there is none.
    """

    structure: str
    values: tuple[int, ...]
    voxels: int
    ml: float
    touches_border: bool
    uncertainty: float | None = None


def measure(
    labels: Volume, structures: Structures, uncertainty: Mapping[str, float] | None = None
) -> tuple[StructureVolume, ...]:
    """Return the volumes of all structures, then of all regions, in one pass over the voxels.

    Args:
        labels: Label values (1, I, J, K).
        structures: What they mean.
        uncertainty: Structure → its uncertainty.
    """
    array = labels.array[0]
    counted, at_border = count_values(array), _values_at_border(array)
    ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    members = {**{name: (name,) for name in structures.names}, **structures.regions}
    rows = []
    for name, parts in members.items():
        values = tuple(value for part in parts for value in structures.values[part])
        voxels = sum(counted[value] for value in values)
        doubt = None if uncertainty is None else uncertainty.get(name)
        rows.append(StructureVolume(name, values, voxels, voxels * ml, not at_border.isdisjoint(values), doubt))
    return tuple(rows)


def count_values(array: npt.NDArray[Any]) -> Counter[int]:
    """Return value → how often an array of integers holds it."""
    found: Counter[int] = Counter()
    flat = array.ravel("K")  # in the order in which it lies in memory: nothing is copied
    for first in range(0, flat.size, CHUNK):
        part = flat[first : first + CHUNK]
        low, high = int(part.min()), int(part.max())
        if high - low < 2**16:
            numbers = np.bincount(part if low == 0 else part.astype(np.int64) - low)
            present = np.flatnonzero(numbers)
            numbers = numbers[present]
            present = present + low
        else:  # far apart: too long for a table by value
            present, numbers = np.unique(part, return_counts=True)
        found.update(dict(zip(present.tolist(), numbers.tolist(), strict=True)))
    return found


def _values_at_border(array: npt.NDArray[Any]) -> set[int]:
    found: set[int] = set()
    for axis, length in enumerate(array.shape):
        for place in (0, length - 1) if length > 1 else ():
            found.update(count_values(array.take(place, axis)))
    return found


def write_volumes(rows: Sequence[StructureVolume], path: Path) -> None:
    """Write the volumes of one case as a table, atomically.

    Raises:
        OutputError: The folder is not writable, or the disk is full.
    """
    told = any(row.uncertainty is not None for row in rows)
    _write_table(path, COLUMNS if told else COLUMNS[:-1], [_line(row)[: None if told else -1] for row in rows])


def write_cohort(output: Path, cases: Iterable[str]) -> None:
    """Write `volumes.csv`: the tables of all `cases` that have one, in one; atomically.

    Raises:
        OutputError: The folder is not writable, or the disk is full.
    """
    lines: list[list[str]] = []
    told = False
    for case in cases:
        try:
            with (output / f"{case}_volumes.csv").open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
        except (OSError, UnicodeDecodeError, csv.Error):  # removed or changed by hand: the case's own affair
            continue
        told = told or any(row.get("uncertainty") for row in rows)
        lines += [[case, *(row.get(column) or "" for column in COLUMNS)] for row in rows]
    columns = ("case", *COLUMNS)
    _write_table(output / COHORT, columns if told else columns[:-1], [line[: None if told else -1] for line in lines])


def _line(row: StructureVolume) -> list[str]:
    doubt = "" if row.uncertainty is None or math.isnan(row.uncertainty) else f"{row.uncertainty:.4f}"
    values = " ".join(map(str, row.values))
    return [row.structure, values, str(row.voxels), f"{row.ml:.4f}", "yes" if row.touches_border else "no", doubt]


def _write_table(path: Path, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text(path, text.getvalue())

"""Label maps alone, to train on synthetic scans: every .nii, .nii.gz or .mgz in a folder, with a table of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from medseg_se.data.datalist import read_structures
from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.processors import at_once
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

from .collection import Collection, Item, Scan
from .reading import ANY_SUFFIXES, read_any_labels

TABLES = ("labels.json", "structures.json", "dataset.json")

Unnamed = Literal["refuse", "background", "number"]


def find(source: Path, *, labels: str | None = None, unnamed: Unnamed = "refuse") -> Collection:
    """Convert label maps that have no scans; each becomes a case.

    Args:
        source: Folder of label maps, searched with all folders in it.
        labels: JSON with the names of the values; labels.json, structures.json or dataset.json of the folder if not given.
        unnamed: What becomes of values that the table does not name. "refuse" leaves the case out; "background" keeps them in
            the files, for a generator to draw as tissues of their own, but as nothing to segment; "number" makes a structure
            "label_7" of a 7. The last two read every file once more beforehand.
    """
    paths = sorted(path for path in files_below(source) if _is_map(path)) if source.is_dir() else []
    if not paths:
        raise DataError(f"Expected {source} to be a folder of label maps ({', '.join(ANY_SUFFIXES)}), but it holds none.")
    table = _table(source, labels)
    structures, notes = _structures(table, paths, unnamed)
    items = [Item(_name(path, source), (path,), partial(_read, path, structures)) for path in paths]
    return Collection(source.resolve().name, ("image",), structures, items, notes=notes)


def _is_map(path: Path) -> bool:
    return path.name.lower().endswith(ANY_SUFFIXES)


def _table(source: Path, labels: str | None) -> Structures | None:
    if labels is not None:
        return read_structures(labels)
    return next((read_structures(source / name) for name in TABLES if (source / name).is_file()), None)


def _structures(table: Structures | None, paths: Sequence[Path], unnamed: Unnamed) -> tuple[Structures, list[str]]:
    if unnamed == "refuse":
        if table is None:
            raise DataError(_without_names(paths[0]))
        return table, []
    named = set(_named(table))
    extra = [value for value in sorted(_values_of_all(paths)) if value not in named]
    if not extra and table is not None:
        return table, []
    listed = ", ".join(map(str, extra))
    if unnamed == "background":
        if table is None:
            raise DataError("Expected a table of names (`--labels FILE`) beside `--unnamed background`, else nothing is named.")
        return replace(table, background=(*table.background, *extra)), [f"Kept, but counted as background: values {listed}."]
    numbered = {f"label_{value}": (value,) for value in extra}
    return replace(table, values={**table.values, **numbered}) if table else Structures(numbered), [
        f"Numbered: values {listed}."
    ]


def _named(table: Structures | None) -> Iterable[int]:
    if table is None:
        return (0,)
    ignored = () if table.ignore is None else (table.ignore,)
    return (*table.background, *ignored, *(value for values in table.values.values() for value in values))


def _without_names(path: Path) -> str:
    values = sorted(_values(read_any_labels(path)))
    shown = ", ".join(map(str, values[:40])) + (", …" if len(values) > 40 else "")
    return (
        f"No table says what the label values mean; {path} holds {shown}. Give one with `--labels FILE` (a JSON such as "
        '{"Left-Hippocampus": 17}), or number them with `--unnamed number`.'
    )


def _values_of_all(paths: Sequence[Path]) -> set[int]:
    with ThreadPoolExecutor(at_once()) as pool:
        return set().union(*pool.map(_values_if_readable, paths))


def _values_if_readable(path: Path) -> set[int]:
    try:
        return _values(read_any_labels(path))
    except DataError:
        return set()  # the conversion leaves it out and says why


def _values(labels: Volume) -> set[int]:
    array = labels.array
    low, high = int(array.min()), int(array.max())
    if max(-low, high) >= 2**31:
        worst = low if -low > high else high
        raise DataError(f"{labels.path} holds the value {worst}, too large for a label. Is it a label map, and intact?")
    if high - low < 2**20:  # counting is quicker than sorting
        return set((np.flatnonzero(np.bincount(array.ravel().astype(np.int64) - low)) + low).tolist())
    return set(np.unique(array).tolist())


def _name(path: Path, source: Path) -> str:
    relative = path.relative_to(source).as_posix()
    return next(relative[: -len(suffix)] for suffix in ANY_SUFFIXES if relative.lower().endswith(suffix))


def _read(path: Path, structures: Structures) -> Scan:
    labels = read_any_labels(path)
    if extra := sorted(_values(labels).difference(_named(structures))):
        shown = ", ".join(map(str, extra[:12])) + (", …" if len(extra) > 12 else "")
        raise DataError(
            f"{path} holds values that no name is known of: {shown}. Name them in the table, or say what becomes of them with "
            "`--unnamed background` or `--unnamed number`."
        )
    return Scan(None, labels)

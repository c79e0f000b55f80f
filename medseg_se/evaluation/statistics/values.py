"""The checks that all statistics ask of what they are given, and the numbering of groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError

Array = npt.NDArray[np.float64]
BLOCK = 1 << 20  # numbers drawn at once: 8 MB, however many values there are
Groups = Sequence[Hashable | None]


def as_values(values: npt.ArrayLike, name: str = "values") -> Array:
    """Return `values` as float64 (n,); raise `UsageError` for any other shape or what is no number."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Expected `{name}` to be numbers, but got {values!r}.") from error
    if array.ndim != 1:
        raise UsageError(f"Expected `{name}` to be a list of numbers, but got an array of shape {array.shape}.")
    return array


def as_pairs(first: npt.ArrayLike, second: npt.ArrayLike, names: tuple[str, str] = ("first", "second")) -> tuple[Array, Array]:
    """Return both as float64 (n,); raise `UsageError` where their lengths differ."""
    one, other = as_values(first, names[0]), as_values(second, names[1])
    if len(one) != len(other):
        raise UsageError(f"Expected `{names[0]}` and `{names[1]}` to be as long, but got {len(one)} and {len(other)} numbers.")
    return one, other


def as_truths(values: npt.ArrayLike, name: str) -> npt.NDArray[np.bool_]:
    """Return `values` (n,) as true or false; raise `UsageError` where they are neither that nor 0 or 1."""
    array = as_values(values, name)
    if not np.isin(array, (0, 1)).all():
        raise UsageError(f"Expected `{name}` to be true or false for each case, but got {array[~np.isin(array, (0, 1))][0]}.")
    return array.astype(bool)


def as_classes(truth: npt.ArrayLike, scores: npt.ArrayLike, name: str) -> tuple[npt.NDArray[np.intp], Array]:
    """Return `truth` (n,) as classes 0 to C - 1 and `scores` as float64 (n, C); raise `UsageError` where they do not fit."""
    labels = as_values(truth, "truth")
    try:
        table = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Expected `{name}` to be a table of numbers with as many classes for each case.") from error
    if table.ndim != 2 or table.shape[1] < 2 or len(table) != len(labels):
        raise UsageError(f"Expected `{name}` to be ({len(labels)}, classes) as `truth` says, but got the shape {table.shape}.")
    if np.isnan(table).any():
        raise UsageError(f"Expected `{name}` to have a number for each case and class, but got NaN.")
    wrong = labels[~np.isin(labels, np.arange(table.shape[1]))]
    if len(wrong):
        raise UsageError(f"Expected `truth` to be classes from 0 to {table.shape[1] - 1}, but got {wrong[0]}.")
    return labels.astype(np.intp), table


def number_groups(groups: Groups | None, count: int) -> npt.NDArray[np.intp]:
    """Return the number 0..K-1 of the group of each of `count` values; a value whose group is None is a group of its own."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise UsageError(f"Expected a group for each of the {count} values, but got {len(groups)} groups.")
    numbers: dict[Hashable, int] = {}
    keys = [("alone", index) if group is None else ("group", group) for index, group in enumerate(groups)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def check_confidence(confidence: float) -> None:
    """Raise `UsageError` unless `confidence` lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise UsageError(f"Expected `confidence` to lie between 0 and 1, such as 0.95, but got {confidence}.")

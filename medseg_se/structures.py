"""Structures: the names of what is segmented, tied to whatever integers the label files hold.

Inside, a label map holds indices 0 (background), 1 … N, and `IGNORE` where the truth is unknown. Files keep the values of
their dataset; `Structures.encode` and `Structures.decode` translate on the way in and out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError, unknown_name

IGNORE = -1
BACKGROUND_NAMES = ("background", "bg", "clear label", "unknown")
_SIDES = {"left": "right", "lh": "rh", "lt": "rt", "l": "r"}


@dataclass(frozen=True)
class Structures:
    """Structure names with the label values that mean them.

    Attributes:
        values: Name → the label values in the files that mean it. With several values the structure is their union, and
            the first one is written back. No value belongs to two structures. Order gives the indices 1 … N.
        background: Label values that mean "none of these"; the first one is written back.
        ignore: Label value of voxels whose truth is unknown, if the dataset has one.
        regions: Name → structures whose union is judged besides the structures themselves, for example "tumour".
    """

    values: Mapping[str, tuple[int, ...]]
    background: tuple[int, ...] = (0,)
    ignore: int | None = None
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise DataError("Expected at least one structure besides the background, but got none.")
        owner: dict[int, str] = dict.fromkeys(self.background, "background")
        if self.ignore is not None:
            if self.ignore in owner:
                raise DataError(f"Label value {self.ignore} means both 'background' and 'ignore'; give each its own.")
            owner[self.ignore] = "ignore"
        for name, values in self.values.items():
            if not values:
                raise DataError(f"Structure {name!r} has no label value.")
            for value in values:
                if value in owner:
                    raise DataError(f"Label value {value} means both {owner[value]!r} and {name!r}; give each its own.")
                owner[value] = name
        for region, members in self.regions.items():
            missing = [member for member in members if member not in self.values]
            if missing or not members:
                raise DataError(f"Region {region!r} names {missing or 'no structure'}; valid: {', '.join(self.values)}.")
            if region in self.values and set(members) != {region}:
                raise DataError(f"{region!r} names a structure and a region of others too; give each its own name.")

    @property
    def names(self) -> tuple[str, ...]:
        """Structure names in the order of their indices 1 … N."""
        return tuple(self.values)

    @property
    def num_classes(self) -> int:
        """Number of classes a network predicts: the structures and the background."""
        return len(self.values) + 1

    def index(self, name: str) -> int:
        """Return the index 1 … N of the structure `name`."""
        try:
            return self.names.index(name) + 1
        except ValueError:
            raise unknown_name("structure", name, self.names) from None

    def judged(self) -> dict[str, tuple[int, ...]]:
        """Return what is evaluated: every structure and region → the indices whose union it is."""
        single = {name: (index,) for index, name in enumerate(self.names, start=1)}
        union = {name: tuple(self.index(member) for member in members) for name, members in self.regions.items()}
        return {**single, **union}

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the index pairs (left, right) of structures whose names differ only in their side."""
        by_key = {key: index for index, name in enumerate(self.names, start=1) if (key := _side_key(name))}
        found = []
        for (stem, side), index in by_key.items():
            partner = by_key.get((stem, _SIDES.get(side, "")))
            if partner is not None:
                found.append((index, partner))
        return tuple(found)

    def mirrored(self) -> npt.NDArray[np.int16]:
        """Return a table index → index of the structure on the other side (itself if unpaired)."""
        table = np.arange(self.num_classes, dtype=np.int16)
        for left, right in self.pairs():
            table[left], table[right] = right, left
        return table

    def encode(self, labels: npt.NDArray[Any], where: str = "the label map") -> npt.NDArray[np.int16]:
        """Translate label values to indices 0 … N (`IGNORE` for the ignore value).

        Args:
            labels: Integer label values of any shape.
            where: Name of the file for the error message.

        Raises:
            DataError: A value is not declared.
        """
        table = self._index_of_value()
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if high - low >= 2**16 or high >= 2**31 or low < -(2**31):  # far apart: too long for a lookup by value
            present, positions = np.unique(labels, return_inverse=True)
            offsets = positions.reshape(labels.shape)
        else:
            offsets = labels.astype(np.int32, copy=False) - np.int32(low)
            present = np.arange(low, high + 1)
        undeclared = np.iinfo(np.int16).min
        lookup = np.array([table.get(int(value), undeclared) for value in present], dtype=np.int16)
        indices: npt.NDArray[np.int16] = lookup[offsets]
        if indices.size and indices.min() == undeclared:
            unknown = np.unique(labels[indices == undeclared]).tolist()
            raise DataError(
                f"{where} holds label value{'s' if len(unknown) > 1 else ''} {_short(unknown)}, not declared among "
                f"{_short(sorted(table))}. Add the structure to the dataset's labels, or correct the file."
            )
        return indices

    def decode(self, indices: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """Translate indices 0 … N back to label values.

        Args:
            indices: Indices of any shape.
            dtype: Type of the result; the smallest unsigned (or signed) type that holds all values if None.

        Raises:
            DataError: An index is `IGNORE` and no label value means that.
        """
        if self.ignore is None and indices.size and indices.min() < 0:
            raise DataError("Expected indices from 0, but got a negative one, and no label value means 'ignore'.")
        values: npt.NDArray[Any] = np.array(self._written(), dtype=self.dtype(dtype))
        return np.take(values, indices)

    def dtype(self, wanted: npt.DTypeLike | None = None) -> np.dtype[Any]:
        """Return `wanted` if it holds every value that is written, else the smallest type that does."""
        written = self._written()
        low, high = min(written), max(written)
        if wanted is not None:
            kind = np.dtype(wanted)
            if kind.kind in "iu" and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return kind
        candidates = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
        for candidate in candidates:
            if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
                return np.dtype(candidate)
        return np.dtype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object."""
        return {
            "values": {name: list(values) for name, values in self.values.items()},
            "background": list(self.background),
            "ignore": self.ignore,
            "regions": {name: list(members) for name, members in self.regions.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Structures:
        """Make the object that `to_dict` described."""
        try:
            return cls(
                values={name: tuple(values) for name, values in content["values"].items()},
                background=tuple(content["background"]),
                ignore=content["ignore"],
                regions={name: tuple(members) for name, members in content["regions"].items()},
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"Expected values, background, ignore and regions, but got {dict(content)}.") from error

    def to_labels(self) -> dict[str, int | list[int]]:
        """Return the `labels` table of a dataset, name → value or values, from which `from_labels` makes an equal object.

        Regions stand apart from it.
        """
        named = {BACKGROUND_NAMES[0]: self.background, **self.values}
        table: dict[str, int | list[int]] = {
            name: values[0] if len(values) == 1 else list(values) for name, values in named.items()
        }
        return table if self.ignore is None else {**table, "ignore": self.ignore}

    @classmethod
    def from_labels(cls, labels: Mapping[str, Any], regions: Mapping[str, Sequence[str]] | None = None) -> Structures:
        """Read a `labels` table as datasets write it.

        Three forms are understood: value → name (Decathlon), name → value (nnU-Net v2, FreeSurfer tables) and name → list of
        values. In the last form values may be shared between names, as nnU-Net's regions share them: then every distinct
        value becomes a structure and every shared list a region.

        Raises:
            DataError: The table is not of these forms or contradicts itself.
        """
        named = _name_to_values(labels)
        background: tuple[int, ...] = (0,)
        ignore: int | None = None
        for name in list(named):
            if name.lower() in BACKGROUND_NAMES and 0 in named[name]:
                background = named.pop(name)
            elif name.lower() == "ignore":
                ignore = named.pop(name)[0]
        if not named:
            raise DataError("Expected at least one structure besides the background in `labels`, but got none.")
        shared = _shared_values(named)
        if not isinstance(regions, (Mapping, type(None))):
            raise DataError(f"Expected `regions` to be a table of names and structures, but got {regions!r}.")
        found_regions = {name: tuple(members) for name, members in (regions or {}).items()}
        if shared:
            named, from_overlap = _split_regions(named)
            found_regions = {**from_overlap, **found_regions}
        return cls(values=named, background=background, ignore=ignore, regions=found_regions)

    def _written(self) -> list[int]:
        """Return index → value that is written; the ignore value stands last, where the index `IGNORE` (-1) finds it."""
        unknown = [] if self.ignore is None else [self.ignore]
        return [self.background[0], *(values[0] for values in self.values.values()), *unknown]

    def _index_of_value(self) -> dict[int, int]:
        table = dict.fromkeys(self.background, 0)
        for index, values in enumerate(self.values.values(), start=1):
            table.update(dict.fromkeys(values, index))
        if self.ignore is not None:
            table[self.ignore] = IGNORE
        return table


def _name_to_values(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(f"Expected `labels` to be a non-empty table of names and values, but got {labels!r}.")
    value_first = all(_is_integer(key) for key in labels) and all(isinstance(name, str) for name in labels.values())
    if value_first:
        named: dict[str, tuple[int, ...]] = {}
        for value, name in labels.items():
            named[name] = (*named.get(name, ()), int(value))
        return named
    result = {}
    for name, values in labels.items():
        listed = list(values) if isinstance(values, (list, tuple)) else [values]
        if not listed or not all(_is_integer(value) for value in listed):
            raise DataError(f"Expected the value of label {name!r} to be an integer or a list of them, but got {values!r}.")
        result[str(name)] = tuple(int(value) for value in listed)
    return result


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d+", value.strip()) is not None)


def _shared_values(named: Mapping[str, tuple[int, ...]]) -> bool:
    every = [value for values in named.values() for value in values]
    return len(every) != len(set(every))


def _split_regions(
    named: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    single: dict[int, str] = {}
    for name, values in named.items():
        if len(values) == 1 and single.setdefault(values[0], name) != name:
            raise DataError(f"Label value {values[0]} means both {single[values[0]]!r} and {name!r}; give each its own.")
    every = sorted({value for values in named.values() for value in values})
    name_of = {value: single.get(value, f"label_{value}") for value in every}
    regions = {name: tuple(name_of[v] for v in values) for name, values in named.items() if len(values) > 1}
    return {name_of[value]: (value,) for value in every}, regions


def _side_key(name: str) -> tuple[str, str] | None:
    """Split "Left-Hippocampus", "kidney_right" or "LungL" into (the rest, the side as one of left/right, l/r, …)."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    tokens = [token for token in re.split(r"[^A-Za-z0-9]+", words.lower()) if token]
    every_side = set(_SIDES) | set(_SIDES.values())
    positions = [position for position, token in enumerate(tokens) if token in every_side]
    if len(positions) != 1 or len(tokens) < 2:
        return None
    place = positions[0]
    return " ".join([*tokens[:place], "@", *tokens[place + 1 :]]), tokens[place]


def _short(values: Sequence[int], most: int = 12) -> str:
    text = ", ".join(str(value) for value in values[:most])
    return f"{{{text}{', …' if len(values) > most else ''}}}"

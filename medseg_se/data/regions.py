"""Regions as targets: sets of structures, nested or side by side, each of which a network finds by itself.

BraTS judges whole tumour, tumour core and enhancing tumour. A network that finds these learns what is judged; from where they
lie follows a label map, for every region adds one structure to those inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.structures import Structures

Targets = Literal["structures", "regions"] | list[str]


@dataclass(frozen=True)
class Regions:
    """What the maps of a network mean that finds regions. Make one with `Regions.named`.

    Attributes:
        names: Their names in the order of the maps.
        members: For each the indices of the structures whose union it is.
        written: (Region's place, structure index) in the order in which a label map is written, from large to small.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    written: tuple[tuple[int, int], ...]

    @classmethod
    def named(cls, names: Sequence[str], structures: Structures) -> Regions:
        """Return the regions, or structures, called `names`.

        Raises:
            UsageError: There is no such region or structure, or a name stands twice.
            DataError: A label map does not follow from them: two overlap and neither holds the other, one does not add exactly
                one structure to those inside it, or a structure is in none.
        """
        judged = structures.judged()
        for name in names:
            if name not in judged:
                raise unknown_name("region or structure in `targets`", name, judged)
        if not names or len(set(names)) < len(names):
            raise UsageError(f"Expected `targets` to name each region once, but got {list(names)}.")
        sets = {name: frozenset(judged[name]) for name in names}
        _check_nesting(sets)
        lost = [name for index, name in enumerate(structures.names, start=1) if not any(index in one for one in sets.values())]
        if lost:
            raise DataError(
                f"Expected every structure in one of `targets`, but {', '.join(lost)} would never be found; add it."
            )
        order = sorted(range(len(names)), key=lambda place: -len(sets[names[place]]))
        written = tuple((place, _added(names[place], sets, structures)) for place in order)
        return cls(tuple(names), tuple(judged[name] for name in names), written)

    def label_map(self, inside: Callable[[int], Tensor]) -> Tensor:
        """Return structure indices int64 (*spatial).

        Background first, then each region from the largest to the smallest, with the structure that it adds to those inside it.

        Args:
            inside: Place of a region → which voxels it holds, bool (*spatial); one is asked for at a time.
        """
        labels: Tensor | None = None
        for place, index in self.written:
            held = inside(place)
            labels = torch.zeros_like(held, dtype=torch.int64) if labels is None else labels
            labels[held] = index
        if labels is None:
            raise UsageError("Expected at least one region, but there is none.")
        return labels


def find_regions(targets: Targets, structures: Structures) -> Regions | None:
    """Return the regions that `targets` asks for; None for the structures as they are.

    Args:
        targets: "structures"; "regions", all that the dataset declares; or names of regions and structures.
        structures: Those of the dataset.

    Raises:
        UsageError: Another word, or as `Regions.named`.
        DataError: The dataset declares no region, or as `Regions.named`.
    """
    if targets == "structures":
        return None
    if not isinstance(targets, str):
        return Regions.named(targets, structures)
    if targets != "regions":
        raise UsageError(f"Expected `targets` to be structures, regions, or a list of names, but got {targets!r}.")
    if not structures.regions:
        raise DataError("Expected regions where `targets` is regions, but the dataset declares none beside its labels.")
    return Regions.named(list(structures.regions), structures)


def _check_nesting(sets: dict[str, frozenset[int]]) -> None:
    for name, one in sets.items():
        for other_name, other in sets.items():
            if name != other_name and one & other and not (one < other or other < one):
                how = "are the same" if one == other else "overlap, and neither holds the other"
                raise DataError(f"Expected regions that are nested or apart, but {name!r} and {other_name!r} {how}.")


def _added(name: str, sets: dict[str, frozenset[int]], structures: Structures) -> int:
    """Return the one structure of a region that is in none of the regions inside it."""
    inside = frozenset[int]().union(*(other for other in sets.values() if other < sets[name]))
    own = sorted(sets[name] - inside)
    if len(own) != 1:
        listed = ", ".join(structures.names[index - 1] for index in own[:4]) or "none"
        raise DataError(
            f"Expected region {name!r} to add one structure to the regions inside it, so that a label map follows from them, "
            f"but it adds {listed}{', …' if len(own) > 4 else ''}. List other `targets`, structures among them where needed."
        )
    return own[0]

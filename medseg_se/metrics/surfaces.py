"""The surface elements of every structure, found in one pass over a label map, by either of two definitions.

- "voxel": an element is the centre of a voxel of the structure with a face neighbour outside it, and every one weighs the same.
  It is what an erosion takes away, as in MONAI, MedPy and most published Hausdorff distances.
- "surfel": an element is a corner of voxels with some of the four (2D) or eight (3D) around it inside and some outside. It
  weighs the length in mm or area in mm² of the marching-squares or marching-cubes surface there: Nikolov et al., 2018,
  https://arxiv.org/abs/1809.04430, and the package surface-distance.

Beyond the border of the scan there is background. What lies beyond a boundary with unknown voxels (`IGNORE`) nobody knows: such
a boundary is no surface.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_se.structures import IGNORE

Family = Literal["voxel", "surfel"]
FAMILIES: Mapping[str, str] = {
    "voxel": "voxel boundary: distances between the centres of surface voxels, each weighing the same",
    "surfel": "surfels: distances between the places of surface elements, weighted with their areas",
}
Indices = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Surface:
    """The surface elements of one structure.

    Attributes:
        places: Flat indices (n,) on the lattice, ascending.
        areas: What each weighs (n,): its area in mm² (3D) or length in mm (2D); 1 for voxels.
        lattice: Number of places along every axis.
    """

    places: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    lattice: tuple[int, ...]

    def points(self, spacing: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the places in mm (n, dims), from the first place of the lattice."""
        places = np.stack(np.unravel_index(self.places, self.lattice), axis=-1)
        points: npt.NDArray[np.float64] = places.astype(np.float64) * np.asarray(spacing, dtype=np.float64)
        return points


def surfaces(
    labels: Indices, groups: Sequence[tuple[int, ...]], spacing: Sequence[float], family: Family = "voxel"
) -> list[Surface]:
    """Return the surface of each group.

    Args:
        labels: Indices 0 … N or `IGNORE`, in two or three dimensions.
        groups: Indices above 0 whose union is taken as one, as `Structures.judged` gives them.
        spacing: Edges of a voxel in mm.
        family: The definition.
    """
    return _voxels(labels, groups) if family == "voxel" else _surfels(labels, groups, spacing)


# -------------------------------------------------------------------------------------------------------------------- voxels


def _voxels(labels: Indices, groups: Sequence[tuple[int, ...]]) -> list[Surface]:
    places = np.flatnonzero(_touches_another(labels))
    values = labels.ravel()[places]
    order = np.argsort(values, kind="stable")
    places, values = places[order], values[order]
    found = []
    for group in groups:
        bounds = [np.searchsorted(values, (index, index + 1)) for index in group]
        own = np.concatenate([places[start:stop] for start, stop in bounds])
        if len(group) > 1:  # what touches another member of the group is inside
            own = np.sort(own)
            own = own[_touches_outside(labels, own, group)]
        found.append(Surface(own, np.ones(len(own)), labels.shape))
    return found


def _touches_another(labels: Indices) -> npt.NDArray[np.bool_]:
    """Tell which voxels of any structure have a face neighbour that is something else, or the border of the scan."""
    found = np.zeros(labels.shape, dtype=bool)
    unknown = labels == IGNORE if labels.size and labels.min() == IGNORE else None
    for axis in range(labels.ndim):
        along, here = np.moveaxis(labels, axis, 0), np.moveaxis(found, axis, 0)
        differs = along[1:] != along[:-1]
        if unknown is not None:
            hidden = np.moveaxis(unknown, axis, 0)
            differs &= ~(hidden[1:] | hidden[:-1])
        here[1:] |= differs
        here[:-1] |= differs
        here[0] = here[-1] = True
    found &= labels > 0
    return found


def _touches_outside(labels: Indices, places: npt.NDArray[np.int64], group: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Tell which voxels at `places` have a known face neighbour outside the group, or lie at the border of the scan."""
    inside = np.zeros(max(int(labels.max()), *group) + 2, dtype=bool)
    inside[[*group, IGNORE]] = True
    found = np.zeros(len(places), dtype=bool)
    coordinates = np.unravel_index(places, labels.shape)
    for axis, (step, last) in itertools.product(range(labels.ndim), ((-1, 0), (1, None))):
        end = labels.shape[axis] - 1 if last is None else last
        at_end = coordinates[axis] == end
        there = list(coordinates)
        there[axis] = np.where(at_end, coordinates[axis], coordinates[axis] + step)
        found |= at_end | ~inside[labels[tuple(there)]]
    return found


# ------------------------------------------------------------------------------------------------------------------- surfels


def _surfels(labels: Indices, groups: Sequence[tuple[int, ...]], spacing: Sequence[float]) -> list[Surface]:
    padded = np.pad(labels, 1)
    lowest = highest = padded
    for axis in range(labels.ndim):
        lowest, highest = (_paired(extreme, values, axis) for extreme, values in ((np.minimum, lowest), (np.maximum, highest)))
    lattice = lowest.shape
    places = np.flatnonzero((lowest != highest) & (lowest > IGNORE))
    row = int(np.prod(lattice[1:]))
    corners = list(itertools.product((0, 1), repeat=labels.ndim))
    at = np.unravel_index(places, lattice)
    around = np.stack([padded[tuple(index + step for index, step in zip(at, corner, strict=True))] for corner in corners])
    areas = _areas(spacing)
    boxes = ndimage.find_objects(labels)
    found = []
    for group in groups:
        member = np.zeros(max(int(padded.max()), *group) + 1, dtype=bool)
        member[list(group)] = True
        rows = [boxes[index - 1][0] for index in group if index <= len(boxes) and boxes[index - 1] is not None]
        first, stop = (min(one.start for one in rows), max(one.stop for one in rows) + 1) if rows else (0, 0)
        some = slice(*np.searchsorted(places, (first * row, stop * row)))
        code = np.packbits(member[around[:, some]], axis=0, bitorder="big")[0] >> (8 - len(corners))
        mixed = np.flatnonzero((code > 0) & (code < 2 ** len(corners) - 1))
        found.append(Surface(places[some][mixed], areas[code[mixed]], lattice))
    return found


def _paired(extreme: Any, values: Indices, axis: int) -> Indices:
    """Return the extreme of every two neighbours along an axis."""
    along = np.moveaxis(values, axis, 0)
    paired: Indices = np.moveaxis(extreme(along[1:], along[:-1]), 0, axis)
    return paired


def _areas(spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the length or area of the surface for each of the 16 or 256 ways in which the voxels at a corner can be inside."""
    from monai.metrics.utils import get_code_to_measure_table

    table: npt.NDArray[np.float64] = get_code_to_measure_table([float(edge) for edge in spacing])[0].double().numpy()
    return table

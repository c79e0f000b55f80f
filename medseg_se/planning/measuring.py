"""Measuring one case of a dataset: its arrays are read once, and only a summary is kept.

Beside the scan and its label map, no array larger than one byte a voxel is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from medseg_se.data.datalist import Case, Datalist
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.errors import DataError
from medseg_se.planning.facts import CaseFacts, Millimetres
from medseg_se.structures import IGNORE, Structures
from medseg_se.volumes import Volume, read_labels

Array = npt.NDArray[Any]
MOST_VOXELS = 10_000  # that a case gives to the statistics of intensities
AXES = ("LR", "PA", "IS")  # letters of an orientation that lie along each axis of the world
AIR = (-1100.0, -850.0)  # HU
CT_WORDS = {"ct", "cbct", "cect", "ncct", "hu"}
FEWEST_OF_AIR = 1e-3  # share of the voxels; a scan of the trunk has far more even where the table is cut away


@dataclass(frozen=True)
class Measured:
    """What is kept of a case.

    Attributes:
        facts: What goes into the fingerprint as it is.
        known: Voxels whose truth is known.
        voxels: Structure → voxels, of those that are present.
        extents: Structure → extent in mm along the world's axes, of those that are present.
        places: Structure → R coordinate of its centre in mm, of those that are present and have a partner on the other side.
        drawn: Intensities (C, n) of voxels inside the structures, evenly drawn in the order of the file, at most
            `MOST_VOXELS`; of nonzero voxels if there is no structure.
        minimum: Lowest intensity of each channel where `drawn` was drawn.
        maximum: Highest of them.
        like_ct: Whether the values of each channel could be Hounsfield units.
    """

    facts: CaseFacts
    known: int
    voxels: Mapping[str, int]
    extents: Mapping[str, Millimetres]
    places: Mapping[str, float]
    drawn: npt.NDArray[np.float32]
    minimum: npt.NDArray[np.float32]
    maximum: npt.NDArray[np.float32]
    like_ct: tuple[bool, ...]


def measure_case(case: Case, datalist: Datalist) -> Measured:
    """Read and measure one case; of a label map alone, all but intensities.

    Raises:
        DataError: It has no label map, a file is unreadable or holds a voxel that is not finite, or files contradict each
            other or the datalist.
    """
    image = read_channels(case.images, len(datalist.channels)) if case.images else _without_channels(case)
    lowest, highest = image.array.min(axis=(1, 2, 3)), image.array.max(axis=(1, 2, 3))
    if not np.isfinite([lowest, highest]).all():
        raise DataError(f"{case.images[0]} holds voxels that are NaN or infinite. Repair it or leave it out.")
    truth = read_truth(case, datalist.structures, image)
    nonzero: Array = np.any(image.array, axis=0) if case.images else np.ones(image.shape, dtype=bool)
    order = [next(axis for axis in range(3) if image.orientation[axis] in letters) for letters in AXES]
    cropped = _box_shape(nonzero)
    spacing = [round(length, 6) for length in image.spacing]  # headers hold 2.4 as 2.39999986
    voxels, extents, places = _measure_structures(truth, datalist.structures, order)
    inside = truth.array[0] > 0 if voxels else nonzero
    drawn, minimum, maximum = _draw(image.array, inside)
    facts = CaseFacts(
        id=case.id,
        group=case.group,
        shape=(image.shape[order[0]], image.shape[order[1]], image.shape[order[2]]),
        cropped=(cropped[order[0]], cropped[order[1]], cropped[order[2]]),
        spacing=(spacing[order[0]], spacing[order[1]], spacing[order[2]]),
        orientation=image.orientation,
        lowest=tuple(lowest.tolist()),
        highest=tuple(highest.tolist()),
        nonzero=int(np.count_nonzero(nonzero)) / nonzero.size,
        bytes=(4 * len(image.array) + 2) * nonzero.size,
        volumes={name: count * math.prod(spacing) / 1000 for name, count in voxels.items()},
    )
    known = nonzero.size - int(np.count_nonzero(truth.array == IGNORE))
    like_ct = tuple(_like_ct(channel, name) for channel, name in zip(image.array, datalist.channels, strict=False))
    return Measured(facts, known, voxels, extents, places, drawn, minimum, maximum, like_ct)


def _without_channels(case: Case) -> Volume:
    """Return the grid of a case of a label map alone, as a scan of no channel."""
    labels = read_labels(case.label or "")
    return replace(labels, array=np.empty((0, *labels.shape), dtype=np.float32))


def called_ct(name: str) -> bool:
    """Tell whether the name of a channel says that it is a CT."""
    return not CT_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _box_shape(inside: Array) -> tuple[int, ...]:
    """Return the size of the smallest box around `inside` (I, J, K), the whole size if nothing is inside."""
    sizes = []
    for axis in range(3):
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        sizes.append(int(places[-1] - places[0]) + 1 if places.size else inside.shape[axis])
    return tuple(sizes)


def _measure_structures(
    truth: Volume, structures: Structures, order: list[int]
) -> tuple[dict[str, int], dict[str, Millimetres], dict[str, float]]:
    """Return structure → voxels, extent in mm and, if it has a partner on the other side, R coordinate of its centre."""
    labels, paired = truth.array[0], {index for pair in structures.pairs() for index in pair}
    voxels: dict[str, int] = {}
    extents: dict[str, Millimetres] = {}
    places: dict[str, float] = {}
    for index, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        name, mask = structures.names[index - 1], labels[box] == index
        voxels[name] = int(np.count_nonzero(mask))
        x, y, z = (mask.shape[axis] * truth.spacing[axis] for axis in order)
        extents[name] = (x, y, z)
        if index in paired:
            centre = [_mean_position(mask, axis) + box[axis].start for axis in range(3)]
            places[name] = float(truth.affine[0] @ [*centre, 1.0])
    return voxels, extents, places


def _mean_position(mask: Array, axis: int) -> float:
    profile = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
    return float(np.average(np.arange(len(profile)), weights=profile))


def _draw(image: Array, inside: Array) -> tuple[Array, Array, Array]:
    """Return evenly drawn intensities (C, n) of the voxels `inside`, and the lowest and highest of all of them (C,)."""
    last = np.cumsum(np.count_nonzero(inside, axis=(1, 2)))
    ranks = _evenly(int(last[-1]), MOST_VOXELS)
    parts = [image[:, 0, 0, :0]]
    minimum = np.full(len(image), np.inf, dtype=np.float32)
    maximum = -minimum
    for plane in np.flatnonzero(np.diff(last, prepend=0)):  # plane by plane, so that no list of positions gets long
        values = image[:, plane][:, inside[plane]]
        first, stop = np.searchsorted(ranks, (last[plane] - values.shape[1], last[plane]))
        parts.append(values[:, ranks[first:stop] - (last[plane] - values.shape[1])])
        minimum, maximum = np.minimum(minimum, values.min(axis=1)), np.maximum(maximum, values.max(axis=1))
    return np.concatenate(parts, axis=1), minimum, maximum


def _evenly(total: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` numbers below `total`, evenly spread from the first to the last, none twice."""
    return np.linspace(0, total - 1, min(total, most)).astype(np.int64)


def _like_ct(channel: Array, name: str) -> bool:
    """Tell whether the values (I, J, K) could be Hounsfield units: from air near -1000 up to tissue, and whole.

    Scans that were resampled are not whole any more; of a channel that is called CT that is believed.
    """
    values = channel.reshape(-1)[_evenly(channel.size, 10 * MOST_VOXELS)]
    air = np.mean((values >= AIR[0]) & (values <= AIR[1]))
    whole = called_ct(name) or np.array_equal(values, np.rint(values))
    return bool(whole and air >= FEWEST_OF_AIR and values.max() > 0 and values.min() > -5000)

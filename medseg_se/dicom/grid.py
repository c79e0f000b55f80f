"""Where the slices of a DICOM series lie: their order, the affine of the volume that they make, or why they make none.

The numbering of slices is not trusted; only the positions and directions in their headers are (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError

Array = npt.NDArray[Any]

SAME = 0.01  # nearer than this part of a pixel, two slices lie in one place
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def lay_out(
    positions: Array, orientation: Array, spacing: tuple[float, float], names: Sequence[str]
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Sort slices by where they lie and return their order with the affine of the volume.

    Args:
        positions: Centre of the first pixel of each slice, (N, 3), LPS+ mm; N is at least 2.
        orientation: Direction of a row (towards higher columns) and of a column (towards higher rows), (6,), LPS+.
        spacing: Distance between rows and between columns in mm, as DICOM orders them.
        names: What to call each slice in messages.

    Returns:
        The order of the slices along their normal, and the (4, 4) affine from (column, row, slice) to RAS+ mm.

    Raises:
        DataError: The slices make no volume. The text is what follows the name of the series: "has a gap …".
    """
    row, column, normal = directions_of(orientation)
    along = positions @ normal
    order = [int(index) for index in np.argsort(along, kind="stable")]
    called = [names[index] for index in order]
    steps = np.diff(along[order])
    _check_steps(steps, min(spacing), called)
    offsets = positions[order] - positions[order[0]]
    _check_line(offsets - np.outer(offsets @ normal, normal), float(steps.sum()), min(spacing), called)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([row * spacing[1], column * spacing[0], normal * steps.mean()], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ positions[order[0]]
    return order, affine


def directions_of(orientation: Array) -> tuple[Array, Array, Array]:
    """Return row, column and normal as unit vectors, freed from the rounding of the header.

    Raises:
        DataError: Rows and columns are not at right angles.
    """
    row, column = orientation[:3], orientation[3:]
    if not (np.abs(np.linalg.norm([row, column], axis=1) - 1) < 1e-2).all() or abs(row @ column) > 1e-2:
        raise DataError(f"claims directions of rows and columns that are not at right angles, {orientation.round(3).tolist()}.")
    u, _, v = np.linalg.svd(np.stack([row, column]), full_matrices=False)
    row, column = u @ v
    return row, column, np.cross(row, column)


def count_places(positions: Array, orientation: Array, pixel: float) -> int:
    """Count the different places along their normal at which slices lie; arguments as of `lay_out`."""
    along = np.sort(positions @ directions_of(orientation)[2])
    return 1 + int((np.diff(along) >= SAME * pixel).sum())


def _check_steps(steps: Array, pixel: float, called: Sequence[str]) -> None:
    """Refuse slices that lie in one place or at unequal distances."""
    twice = np.flatnonzero(steps < SAME * pixel)
    if twice.size:
        raise DataError(
            f"has {twice.size} slices that lie where another one does, the first {called[twice[0] + 1]}, at the place of "
            f"{called[twice[0]]}, and no tag tells them apart as several volumes. Export its volumes one by one."
        )
    usual = float(np.median(steps))
    allowed = min(max(0.01 * usual, 0.1), 0.25 * usual)  # headers round to 0.1 mm at worst
    uneven = np.flatnonzero(np.abs(steps - usual) > allowed)
    if uneven.size:
        places = [f"{steps[i]:.2f} mm between {called[i]} and {called[i + 1]}" for i in uneven[:3]]
        more = f" and {uneven.size - 3} more" if uneven.size > 3 else ""
        raise DataError(
            f"has slices {usual:.2f} mm apart, but {', '.join(places)}{more}. "
            "Slices are missing or were taken at uneven distances; copy the series again."
        )


def _check_line(sideways: Array, length: float, pixel: float, called: Sequence[str]) -> None:
    """Refuse slices whose corners do not lie in a line along the normal.

    Args:
        sideways: How far each slice lies beside the normal through the first one, (N, 3) in mm.
        length: Distance between the first and the last slice in mm.
        pixel: The smaller distance between pixels in mm.
        called: What to call each slice.
    """
    allowed = max(0.25 * pixel, 1e-3 * length)  # what rounded directions amount to, and too little to see
    drift = sideways[-1]
    apart = np.linalg.norm(sideways - np.linspace(0, 1, len(sideways))[:, None] * drift, axis=1)
    if apart.max() > allowed:
        worst = int(apart.argmax())
        raise DataError(f"has slices that are shifted sideways, {called[worst]} by {apart[worst]:.2f} mm. They make no volume.")
    if np.linalg.norm(drift) > allowed:
        angle = math.degrees(math.atan2(float(np.linalg.norm(drift)), length))
        raise DataError(
            f"was taken with a gantry tilted by {angle:.1f} degrees: its slices do not lie straight above each other. "
            "Resample it onto an upright grid first, for example with dcm2niix."
        )

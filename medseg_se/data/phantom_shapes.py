"""The geometry under the phantoms: oblique grids, smooth random fields, and solids as signed distances in mm.

Points are (3, N) float32 arrays of RAS coordinates in mm. A solid is a function of points that is negative inside, positive
outside and close to the distance from the surface near it; so "two millimetres below the surface" is a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates

Array = npt.NDArray[np.float32]
FINER = 2  # points along each axis of a voxel; their mean and majority make its intensity and label


@dataclass(frozen=True)
class Grid:
    """A voxel grid in RAS order whose axes may be turned a little against the world's.

    Attributes:
        shape: Voxels along (i, j, k).
        spacing: Distance between voxels in mm.
        rotation: (3, 3) directions of the axes in the world.
        centre: World coordinates of the grid's centre in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rotation: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) matrix from voxel indices to RAS mm."""
        result = np.eye(4)
        result[:3, :3] = self.rotation * np.array(self.spacing)
        result[:3, 3] = self.centre - result[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return result

    @property
    def fine_shape(self) -> tuple[int, int, int]:
        """Points along (i, j, k) of the finer grid."""
        i, j, k = (length * FINER for length in self.shape)
        return i, j, k

    def offsets(self, finer: int = FINER) -> list[npt.NDArray[np.float64]]:
        """Return, for each axis, the distance in mm of its points from the centre."""
        pairs = zip(self.shape, self.spacing, strict=True)
        return [(np.arange(n * finer) - (n * finer - 1) / 2) * (step / finer) for n, step in pairs]

    def points(self, place: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]) -> Array:
        """Return `origin` + `place` @ (world point - centre) for every fine point, (3, N)."""
        turned = place @ self.rotation
        i, j, k = self.offsets()
        rows = [
            (row[0] * i + start)[:, None, None] + (row[1] * j)[None, :, None] + (row[2] * k)[None, None, :]
            for row, start in zip(turned, origin, strict=True)
        ]
        return np.stack(rows).astype(np.float32).reshape(3, -1)

    def waves(self, coefficients: npt.NDArray[np.float64], finer: int = FINER) -> Array:
        """Return a sum of cosines over the field of view, with `coefficients` (A, B, C) along the axes; (I, J, K)."""
        field = coefficients.astype(np.float32)
        for offsets, step, length in zip(self.offsets(finer), self.spacing, self.shape, strict=True):
            phase = offsets / (step * length) + 0.5
            basis = np.cos(np.pi * np.outer(np.arange(field.shape[0]), phase)).astype(np.float32)
            field = np.tensordot(field, basis, axes=(0, 0))  # the next axis comes to the front
        return field

    def blocks(self, fine: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Group the fine points (N,) by voxel: (FINER**3, I, J, K)."""
        i, j, k = self.shape
        parts = fine.reshape(i, FINER, j, FINER, k, FINER).transpose(1, 3, 5, 0, 2, 4)
        return parts.reshape(FINER**3, i, j, k)


def majority(parts: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the most frequent value along the first axis; the first one met wins a tie."""
    votes = np.stack([(parts == part).sum(axis=0, dtype=np.uint8) for part in parts])
    winner: npt.NDArray[np.uint8] = np.take_along_axis(parts, votes.argmax(axis=0)[None], axis=0)[0]
    return winner


def rotation(degrees: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the (3, 3) rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=np.float64))):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
        result = turn @ result
    return result


# -------------------------------------------------------------------------------------------------------------------- solids


def ellipsoid(points: Array, centre: Sequence[float], radii: Sequence[float], tilt: Sequence[float] = (0, 0, 0)) -> Array:
    """Return the signed distance (to first order) from an ellipsoid turned by `tilt` degrees about x, y, z."""
    local = points - np.array(centre, dtype=np.float32)[:, None]
    if any(tilt):
        local = rotation(tilt).T.astype(np.float32) @ local
    scaled = local / np.array(radii, dtype=np.float32)[:, None]
    radius = np.sqrt(np.einsum("in,in->n", scaled, scaled))
    scaled /= np.array(radii, dtype=np.float32)[:, None]
    slope = np.sqrt(np.einsum("in,in->n", scaled, scaled))
    result: Array = radius * (radius - 1) / np.maximum(slope, 1e-6)
    return result


def tube(points: Array, path: Sequence[Sequence[float]], grow: float = 1.0, pieces: int = 12) -> Array:
    """Return the signed distance from a tube along a smooth curve.

    Args:
        points: (3, N).
        path: Rows (x, y, z, radius) in mm through which the curve runs.
        grow: Factor on the radii.
        pieces: Straight pieces that stand for the curve.
    """
    knots = np.asarray(path, dtype=np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    curve = CubicSpline(lengths, knots)(np.linspace(0, lengths[-1], pieces + 1)).astype(np.float32)
    reach = curve[:, 3].max() * grow + 2
    low, high = curve[:, :3].min(axis=0) - reach, curve[:, :3].max(axis=0) + reach
    near = np.flatnonzero(((points > low[:, None]) & (points < high[:, None])).all(axis=0))
    local, nearest = points[:, near], np.full(near.size, np.inf, dtype=np.float32)
    for start, stop in zip(curve[:-1], curve[1:], strict=True):
        along, away = (stop - start)[:3], local - start[:3, None]
        share = np.clip((along @ away) / max(float(along @ along), 1e-6), 0, 1)
        away -= along[:, None] * share
        distance = np.sqrt(np.einsum("in,in->n", away, away)) - grow * (start[3] + (stop[3] - start[3]) * share)
        np.minimum(nearest, distance, out=nearest)
    result = np.full(points.shape[1], reach, dtype=np.float32)
    result[near] = nearest
    return result


def blend(a: Array, b: Array, width: float) -> Array:
    """Return the union of two solids with their seam rounded over `width` mm."""
    near = np.clip(width - np.abs(a - b), 0, None) / width
    result: Array = np.minimum(a, b) - near * near * (width / 4)
    return result


class Noise:
    """Smooth noise with zero mean, unit variance and waves of about one length, anywhere in a cube about the origin."""

    def __init__(self, rng: np.random.Generator, wavelength: float, extent: float = 110.0) -> None:
        """Draw the noise: `wavelength` and half the cube's edge, `extent`, in mm."""
        self.step, self.extent = wavelength / 8, extent
        count = math.ceil(2 * extent / self.step) + 1
        white = rng.standard_normal((count, count, count), dtype=np.float32)
        sigma = wavelength / 5.7 / self.step  # where the difference of these two Gaussians passes most
        lattice = gaussian_filter(white, sigma, truncate=3) - gaussian_filter(white, 1.6 * sigma, truncate=3)
        self.lattice = lattice / lattice.std()

    def __call__(self, points: Array) -> Array:
        """Return the noise at `points`; beyond the cube the value at its face is repeated."""
        places = (points + np.float32(self.extent)) * np.float32(1 / self.step)
        result: Array = map_coordinates(self.lattice, places, order=1, mode="nearest")
        return result

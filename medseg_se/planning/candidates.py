"""Candidates: patches and networks from small to large, of which the plan takes the largest that fits time and memory.

Depth, strides and kernels follow nnU-Net (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z): an axis is halved
while it has eight voxels or more and is not yet twice as coarse as the finest; a kernel does not reach along an axis before its
spacing is within twice the finest. Patch and width grow together, for a wide network that sees little is as poor as a narrow
one that sees all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg_se.errors import DataError
from medseg_se.planning.facts import Fingerprint, Millimetres, Voxels
from medseg_se.planning.rules import Grid

Kind = Literal["cpu", "cuda", "mps"]
_RUNGS_3D = (
    (32, 8),
    (40, 8),
    (48, 12),
    (56, 16),
    (64, 16),
    (64, 24),
    (80, 24),
    (80, 32),
    (96, 32),
    (112, 32),
    (128, 32),
    (144, 32),
)
_RUNGS_2D = ((64, 8), (96, 12), (128, 16), (160, 16), (192, 24), (224, 32), (256, 32), (320, 32), (384, 32), (512, 32))
"""The edge of a cubic (square) patch and the channels at full resolution."""
_LARGEST = {"cpu": {3: 80, 2: 256}, "mps": {3: 112, 2: 384}, "cuda": {3: 144, 2: 512}}
"""The largest edge by the kind of device and the number of axes."""
_MOST_CHANNELS = {3: 320, 2: 512}
_MOST_LEVELS = 6
_LEAST_VOXELS = 4  # along an axis at the last level


@dataclass(frozen=True)
class Candidate:
    """A patch, a batch and a network.

    Attributes:
        patch: Voxels of a patch along the axes that the network sees.
        batch: Patches a batch.
        channels: Channels of each level.
        strides: Strides into each level after the first, along each axis.
        kernels: Kernel of each level, along each axis.
    """

    patch: tuple[int, ...]
    batch: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def work(self) -> float:
        """About what a step takes, in no unit: voxels times channels to the power of 1.5, for wide layers run better."""
        return math.prod(self.patch) * self.batch * math.sqrt(self.channels[0]) * self.channels[0]

    @property
    def maps(self) -> float:
        """About what a step keeps in memory, in no unit: voxels times channels."""
        return float(self.batch * math.prod(self.patch) * self.channels[0])


def reach(kind: Kind, dims: int = 3) -> int:
    """Return the voxels of the largest patch on this kind of device."""
    return int(_LARGEST[kind][dims] ** dims)


def ladder(fingerprint: Fingerprint, grid: Grid, kind: Kind) -> list[Candidate]:
    """Return the candidates in the order of their work.

    On a CPU a batch is two patches (four slices): many small steps learn more than few large ones. A graphics card is better
    used by larger batches, as long as a batch has no more than a twentieth of all voxels.

    Raises:
        DataError: The scans are too small for any network.
    """
    dims = 3 if grid.flat_axis is None else 2
    seen = [axis for axis in range(3) if axis != grid.flat_axis]
    spacing = [grid.spacing[axis] for axis in seen]
    typical, large = ([shape[axis] for axis in seen] for shape in _shapes(fingerprint, grid.spacing))
    if max(typical) < 2 * _LEAST_VOXELS:
        raise DataError(
            f"Expected scans of at least {2 * _LEAST_VOXELS} voxels along some axis at {grid.spacing} mm, but got typically "
            f"{' x '.join(map(str, typical))}."
        )
    every = math.prod(fingerprint.median_shape(grid.spacing)) * len(fingerprint.cases)
    found = {}
    for edge, width in _RUNGS_3D if dims == 3 else _RUNGS_2D:
        if edge <= _LARGEST[kind][dims]:
            made = _candidate(edge**dims, width, 2 if dims == 3 else 4, spacing, typical, large)
            found[made.patch, width] = made
        if width == 32 and _covers(list(found)[-1][0], large):
            break  # larger patches would hold nothing more
    steps = sorted(found.values(), key=lambda candidate: candidate.work)
    widest = steps[-1]
    for batch in (4, 8, 16, 32) if kind == "cuda" else ():
        if batch > widest.batch and batch * math.prod(widest.patch) <= every / 20:
            steps.append(Candidate(widest.patch, batch, widest.channels, widest.strides, widest.kernels))
    return steps


def _shapes(fingerprint: Fingerprint, spacing: Millimetres) -> tuple[Voxels, Voxels]:
    """Return the voxels of a typical and of a large scan at this spacing."""
    held = np.array([[n * mm for n, mm in zip(case.cropped, case.spacing, strict=True)] for case in fingerprint.cases])
    i, j, k = np.maximum(1, np.rint(np.percentile(held, 95, axis=0) / spacing)).astype(int).tolist()
    return fingerprint.median_shape(spacing), (i, j, k)


def _covers(patch: Sequence[int], shape: Sequence[int]) -> bool:
    return all(size >= 0.9 * length for size, length in zip(patch, shape, strict=True))


def _candidate(
    voxels: int, width: int, batch: int, spacing: Sequence[float], typical: Sequence[int], large: Sequence[int]
) -> Candidate:
    sizes = list(large) if math.prod(large) <= voxels else _fitting(voxels, spacing, typical)
    strides, kernels = pool(sizes, spacing)
    whole = [math.prod(steps) for steps in zip(*strides, strict=True)]
    patch = tuple(max(1, int(size / unit + 0.5)) * unit for size, unit in zip(sizes, whole, strict=True))
    channels = tuple(min(width * 2**level, _MOST_CHANNELS[len(patch)]) for level in range(len(strides) + 1))
    return Candidate(patch, batch, channels, tuple(strides), tuple(kernels))


def _fitting(voxels: int, spacing: Sequence[float], shape: Sequence[int]) -> list[int]:
    """Return a patch of about as many voxels, as long in mm along each axis as along the others, but no longer than a scan."""
    sizes = [0.0] * len(spacing)
    free = set(range(len(spacing)))
    while free:
        left = voxels / math.prod(shape[axis] for axis in range(len(spacing)) if axis not in free)
        edge = (left * math.prod(spacing[axis] for axis in free)) ** (1 / len(free))
        full = {axis for axis in free if edge / spacing[axis] >= shape[axis]}
        for axis in full or free:
            sizes[axis] = min(edge / spacing[axis], shape[axis])
        free = free - full if full else set()
    return [max(1, round(size)) for size in sizes]


def pool(shape: Sequence[int], spacing: Sequence[float]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the strides between the levels and the kernel of each level for patches of `shape` voxels at `spacing` mm."""
    sizes, distances = list(shape), list(spacing)
    strides: list[tuple[int, ...]] = []
    kernels = [_kernel(distances)]
    while len(kernels) < _MOST_LEVELS:
        large = [axis for axis, size in enumerate(sizes) if size >= 2 * _LEAST_VOXELS]
        if not large:
            break
        finest = min(distances[axis] for axis in large)
        halved = [axis for axis in large if distances[axis] < 2 * finest]
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(sizes))))
        for axis in halved:
            sizes[axis], distances[axis] = sizes[axis] // 2, 2 * distances[axis]
        kernels.append(tuple(map(max, kernels[-1], _kernel(distances))))
    return strides, kernels


def _kernel(distances: Sequence[float]) -> tuple[int, ...]:
    return tuple(3 if distance < 2 * min(distances) else 1 for distance in distances)

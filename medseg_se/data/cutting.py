"""Cutting patches out of scans: straight, or turned, scaled and warped with interpolation.

Only the box of the scan that a patch touches is read. What is done with it afterwards needs no more than the box and a
`Placement`, so that it can be done at once by the process that reads, or later on a GPU.

PyTorch's own `grid_sample` in three dimensions takes two to five times as long on a CPU: it wants the place of every voxel
written out and looks up one voxel at a time. Here places follow from a row, a column and a line, each corner of the cells is
looked up for a slab of the patch that fits the processor's cache, and image and labels share the places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_se.data.augmentation import SpatialChange
from medseg_se.data.separable import spreading

Array = npt.NDArray[Any]
SLAB = 2**17  # voxels that are worked on at once, so that what is computed for them stays in the cache


class Scan(Protocol):
    """What can be cut: a `StoredCase`, or anything that reads boxes as it does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (I, J, K)."""

    @property
    def lowest(self) -> tuple[float, ...]:
        """Lowest intensity per channel, which continues the scan beyond its border."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm."""

    def read(self, box: Sequence[slice]) -> tuple[Array, Array]:
        """Return image (C, *box) float32 and labels (*box) int16 of a box within the scan."""


@dataclass(frozen=True)
class Placement:
    """Where the voxels of a patch lie in the box that was read for it, in voxels of the box.

    The voxel `o` off the voxel `size // 2` of the patch lies at `origin + matrix @ o`, displaced by `warp`.

    Attributes:
        origin: (3,), where the voxel `size // 2` of the patch lies.
        matrix: (3, 3), from offsets in the patch to offsets in the box.
        warp: (3, a, b, c), displacement at control points spread over the patch; None if there is none.
    """

    origin: Array
    matrix: Array
    warp: Array | None


@dataclass(frozen=True)
class RawPatch:
    """What was read of a scan for one patch, from which it can be cut on any device.

    Attributes:
        image: The box that the patch touches, float32 (C, *box).
        labels: Its structure indices, int16 (*box).
        size: Voxels of the patch.
        placement: Where they lie in the box; None if the box is the patch.
        mirrored: The axes of the patch that are flipped.
    """

    image: Tensor
    labels: Tensor
    size: tuple[int, ...]
    placement: Placement | None
    mirrored: tuple[int, ...]

    def cut(self) -> tuple[Tensor, Tensor]:
        """Return the patch, (C, *size), and its structure indices, (*size)."""
        patch, truth = self.image, self.labels
        if self.placement is not None:
            patch, truth = interpolate(patch, truth, self.size, self.placement)
        if self.mirrored:
            patch, truth = patch.flip([axis + 1 for axis in self.mirrored]), truth.flip(self.mirrored)
        return patch, truth


def read_patch(case: Scan, centre: Array, size: Sequence[int], change: SpatialChange) -> RawPatch:
    """Read what a patch touches whose voxel `size // 2` is `centre`, turned, scaled, warped and mirrored by `change`."""
    sizes = np.array(size)
    if change.matrix is None:
        start = centre - sizes // 2
        stop, placement = start + sizes, None
    else:
        start, stop, placement = _place(case, centre, sizes, change.matrix, change.warp)
    image, labels = _read_box(case, start, stop)
    return RawPatch(image, labels, tuple(size), placement, change.mirrored)


def _read_box(case: Scan, start: Array, stop: Array) -> tuple[Tensor, Tensor]:
    """Read the box from `start` to `stop`; beyond the scan lie the lowest intensity of each channel, and background.

    Returns:
        The image, float32 (C, *box), and the labels, int16 (*box).
    """
    shape = np.array(case.shape)
    first, last = np.clip(start, 0, shape), np.clip(stop, 0, shape)
    image, labels = case.read([slice(int(a), int(b)) for a, b in zip(first, last, strict=True)])
    if (first == start).all() and (last == stop).all():
        return torch.from_numpy(image), torch.from_numpy(labels)
    size = [int(length) for length in stop - start]
    inside = tuple(slice(int(a), int(b)) for a, b in zip(first - start, last - start, strict=True))
    whole, truth = torch.empty(len(image), *size), torch.zeros(*size, dtype=torch.int16)
    for channel, values, low in zip(whole, torch.from_numpy(image), case.lowest, strict=True):
        channel.fill_(low)[inside] = values
    truth[inside] = torch.from_numpy(labels)
    return whole, truth


def _place(case: Scan, centre: Array, sizes: Array, turn: Array, bend: Array | None) -> tuple[Array, Array, Placement]:
    """Return start and stop of the box that a patch touches which is turned and bent, and where it lies in it.

    The box reaches beyond the scan by one voxel at most, since all voxels there are the same.

    Args:
        case: The scan.
        centre: The voxel at the centre of the patch.
        sizes: Voxels of the patch.
        turn: (3, 3), see `SpatialChange.matrix`.
        bend: (3, a, b, c), see `SpatialChange.warp`.
    """
    spacing, shape = np.array(case.spacing), np.array(case.shape)
    matrix = turn * spacing / spacing[:, None]  # patch voxels -> mm -> turned mm -> scan voxels
    warp = None if bend is None else bend / spacing.reshape(3, 1, 1, 1)
    ends = np.stack([matrix * -(sizes // 2), matrix * (sizes - 1 - sizes // 2)])
    low, high = centre + ends.min(axis=0).sum(axis=1), centre + ends.max(axis=0).sum(axis=1)
    if warp is not None:
        low, high = low + warp.min(axis=(1, 2, 3)), high + warp.max(axis=(1, 2, 3))
    start = np.clip(np.floor(low - 1e-3), -1, shape - 1).astype(np.int64)
    stop = np.clip(np.ceil(high + 1e-3) + 1, start + 2, np.maximum(shape + 1, start + 2)).astype(np.int64)
    exact = (low == high) & (low == np.floor(low))  # across a slice: one voxel is enough
    start, stop = np.where(exact, low, start).astype(np.int64), np.where(exact, low + 1, stop).astype(np.int64)
    return start, stop, Placement(centre - start, matrix, warp)


def interpolate(image: Tensor, labels: Tensor, size: Sequence[int], placement: Placement) -> tuple[Tensor, Tensor]:
    """Sample a box at the voxels of a patch: intensities linearly, labels from the nearest voxel.

    Beyond the box, its outermost voxels go on. An axis of one voxel is not interpolated along.

    Args:
        image: The box, (C, *box).
        labels: Its structure indices, (*box).
        size: Voxels of the patch.
        placement: Where they lie.

    Returns:
        The patch, (C, *size), and its labels, (*size).
    """
    patch, truth = image.new_empty(len(image), *size), labels.new_empty(*size)
    box, flat_labels = labels.shape, labels.reshape(-1)
    channels = [channel.reshape(-1) for channel in image]
    strides = (box[1] * box[2], box[2], 1)
    axes = [axis for axis in range(3) if box[axis] > 1]
    for start, stop, places in _places(size, placement, image.device):
        nearest = corner = torch.zeros(1, dtype=torch.int32, device=image.device)
        shares: list[tuple[int, Tensor]] = []
        for axis in axes:
            along = places[axis].clamp_(0, box[axis] - 1)
            nearest = (along + 0.5).int().mul_(strides[axis]).add_(nearest)
            low = along.int().clamp_(max=box[axis] - 2)
            shares.append((strides[axis], along.sub_(low).view(-1)))
            corner = low.mul_(strides[axis]).add_(corner)
        count = (stop - start) * size[1] * size[2]
        nearest, corner = nearest.reshape(-1).expand(count), corner.reshape(-1).long().expand(count)  # long is looked up faster
        truth[start:stop] = flat_labels.index_select(0, nearest).view(-1, *size[1:])
        for channel, flat in zip(patch, channels, strict=True):
            channel[start:stop] = _linear(flat, corner, 0, shares).view(-1, *size[1:])
    return patch, truth


def _linear(flat: Tensor, corner: Tensor, offset: int, shares: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Interpolate between the corners of cells, one axis after another.

    Args:
        flat: All voxels of the box in a row.
        corner: The place in it of each cell's lowest corner.
        offset: How far the corner that is meant lies behind that one.
        shares: For each axis left, the distance between its neighbours in `flat` and the way gone from lower to upper.
    """
    if not shares:
        return flat[offset:].index_select(0, corner)
    step, share = shares[0]
    lower, upper = (_linear(flat, corner, offset + more, shares[1:]) for more in (0, step))
    return lower.lerp_(upper, share)


def slabs(size: Sequence[int], device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the slabs along the first axis in which a patch is worked on; on a GPU all of it is one."""
    rows = max(1, SLAB // (size[1] * size[2])) if device.type == "cpu" else size[0]
    for start in range(0, size[0], rows):
        yield start, min(start + rows, size[0])


def _places(size: Sequence[int], placement: Placement, device: torch.device) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Yield start and stop of every slab, and for each axis of the box where the slab's voxels lie along it."""
    offsets = [torch.arange(length, dtype=torch.float32, device=device) - length // 2 for length in size]
    matrix, origin = placement.matrix.tolist(), placement.origin.tolist()
    planes = [
        offsets[1].mul(matrix[axis][1])[:, None] + offsets[2].mul(matrix[axis][2]).add_(origin[axis]) for axis in range(3)
    ]
    rows = [offsets[0].mul(matrix[axis][0])[:, None, None] for axis in range(3)]
    if placement.warp is not None:
        points = torch.from_numpy(placement.warp.astype(np.float32)).to(device)
        spread = [spreading(length, count, device) for length, count in zip(size, points.shape[1:], strict=True)]
        bent = (spread[1] @ points @ spread[2].T).flatten(2)  # (3, a, J * K)
    for start, stop in slabs(size, device):
        places = [plane + row[start:stop] for plane, row in zip(planes, rows, strict=True)]
        if placement.warp is not None:
            for along, displacement in zip(places, spread[0][start:stop] @ bent, strict=True):
                along += displacement.view(along.shape)
        yield start, stop, places

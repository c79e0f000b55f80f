"""Applying a drawn change to the intensities of a patch, on any device.

A blur is summed from shifted copies, a slab at a time: on a CPU that takes a tenth of the time of PyTorch's convolutions,
which are made for many channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_se.data.augmentation import IntensityChange
from medseg_se.data.cutting import slabs


def apply_intensity(patch: Tensor, change: IntensityChange) -> Tensor:
    """Apply `change` to a patch (C, I, J, K); an axis of one voxel is left alone.

    Noise is drawn on the device of the patch: the same seed gives the same noise on all CPUs, and other noise on a GPU.
    """
    if change == IntensityChange() or not len(patch):
        return patch
    return torch.stack([_change_channel(channel, change, number) for number, channel in enumerate(patch)])


def _change_channel(channel: Tensor, change: IntensityChange, number: int) -> Tensor:
    """Apply the changes of channel `number` to it, (I, J, K)."""
    if change.blur is not None and change.blur[number] > 0:
        channel = _blurred(channel, change.blur[number])
    if change.noise is not None:
        deviation, seed = change.noise
        source = torch.Generator(channel.device).manual_seed(seed + number)
        channel = torch.randn(channel.shape, generator=source, device=channel.device).mul_(deviation).add_(channel)
    if change.brightness is not None:
        channel = channel * change.brightness[number]
    if change.contrast is not None:
        factor = change.contrast[number]
        channel = torch.add(channel.mean() * (1 - factor), channel, alpha=factor)
    if change.low_resolution is not None:
        channel = _coarsened(channel, change.low_resolution[number])
    if change.inverted_gamma is not None:
        channel = _bent(channel.neg(), change.inverted_gamma[number]).neg_()
    if change.gamma is not None:
        channel = _bent(channel, change.gamma[number])
    return channel


def _bent(channel: Tensor, exponent: float) -> Tensor:
    """Raise the intensities, scaled to [0, 1], to a power; mean and standard deviation stay."""
    low, high = torch.aminmax(channel)
    unit = channel.sub(low).div_((high - low).clamp(min=1e-7)).pow_(exponent)
    mean, bent_mean = channel.mean(), unit.mean()
    scale = channel.reshape(-1).std() / unit.reshape(-1).std().clamp(
        min=1e-7
    )  # along several axes it takes eight times as long
    return unit.mul_(scale).add_(mean - bent_mean * scale)


def _coarsened(channel: Tensor, factor: float) -> Tensor:
    """Take the nearest voxels of a grid that is coarser by `factor`, and interpolate between them."""
    coarse = [max(1, round(size / factor)) for size in channel.shape]
    if coarse == list(channel.shape):
        return channel
    small = F.interpolate(channel[None, None], size=coarse, mode="nearest-exact")
    return F.interpolate(small, size=channel.shape, mode="trilinear")[0, 0]


def _blurred(channel: Tensor, deviation: float) -> Tensor:
    """Average with a Gaussian along each axis; at the border the outermost voxels are repeated."""
    radius = max(1, math.ceil(3 * deviation))
    weights = [math.exp(-0.5 * (place / deviation) ** 2) for place in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    kernel = [weight / total for weight in weights]
    size, blurred = channel.shape, torch.empty_like(channel)
    source = _continued(channel, 0, radius) if size[0] > 1 else channel
    for start, stop in slabs(size, channel.device):
        slab = source[start:stop] if size[0] == 1 else _averaged(source[start : stop + 2 * radius], 0, kernel)
        for axis in (1, 2):
            if size[axis] > 1:
                slab = _averaged(_continued(slab, axis, radius), axis, kernel)
        blurred[start:stop] = slab
    return blurred


def _continued(slab: Tensor, axis: int, by: int) -> Tensor:
    """Repeat the outermost voxels along an axis."""
    shape = list(slab.shape)
    shape[axis] = by
    first, last = slab.narrow(axis, 0, 1), slab.narrow(axis, slab.shape[axis] - 1, 1)
    return torch.cat([first.expand(shape), slab, last.expand(shape)], dim=axis)


def _averaged(slab: Tensor, axis: int, kernel: Sequence[float]) -> Tensor:
    """Sum shifted copies along an axis that is `len(kernel) - 1` voxels longer than the result at each end.

    Args:
        slab: (I, J, K).
        axis: The axis.
        kernel: The weight of the voxel itself, of its neighbours, of the next ones and so on.
    """
    radius = len(kernel) - 1
    length = slab.shape[axis] - 2 * radius
    result = slab.narrow(axis, radius, length) * kernel[0]
    for distance, weight in enumerate(kernel[1:], start=1):
        result.add_(slab.narrow(axis, radius - distance, length), alpha=weight)
        result.add_(slab.narrow(axis, radius + distance, length), alpha=weight)
    return result

"""Synthetic scans from label maps, with the parameters that `synthesis` draws: any device, one scan like many.

In the order in which a scan comes about: each tissue has its texture, the coil its bias field, the sequence its contrast
(gamma); the scanner averages over thick slices (partial volume) and adds its noise to the voxels that it acquires; these are
interpolated back to the grid of the label map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_se.data.intensity import Scaling
from medseg_se.data.separable import along_axes, coarsening, refining, spreading
from medseg_se.data.synthesis import Look, SyntheticChange
from medseg_se.data.synthetic_head import TISSUES, paint_head
from medseg_se.errors import UsageError

SORTED = 2**16  # voxels of which percentiles are taken: to sort all would take longer than to make them


def synthesise(labels: Tensor, changes: Sequence[SyntheticChange]) -> Tensor:
    """Return the synthetic scans float32 (N, C, I, J, K) of `labels`, on the same device.

    Each channel reaches from 0 to 1. The same labels and changes give the same scan on the same kind of device, whatever
    shares the batch: scans are made one by one, as their resolutions differ.

    Args:
        labels: Integer indices (N, I, J, K) of the structures; 0 and below (unknown) count as background.
        changes: One for each of the N.

    Raises:
        UsageError: The changes were drawn for another number of scans, channels or structures.
    """
    if labels.ndim != 4 or len(changes) != len(labels):
        raise UsageError(f"Expected labels (N, I, J, K) and N changes, but got {tuple(labels.shape)} and {len(changes)}.")
    if len({len(change.looks) for change in changes}) > 1:
        raise UsageError(f"Expected scans of equally many channels, but got {[len(change.looks) for change in changes]}.")
    return torch.stack([_scan(one, change) for one, change in zip(labels, changes, strict=True)])


def rescale(scans: Tensor, scalings: Sequence[Scaling]) -> Tensor:
    """Return synthetic scans (N, C, I, J, K) on the scale on which a network sees real ones.

    Real scans are scaled by statistics of the whole scan. Here the patch is all there is, and its own statistics take their
    place: a patch inside the brain has zero mean here, where one cut from a real scan is brighter than the air in that scan.
    "window" and "dataset" take the range 0 to 1 for the window; "none" leaves it, whatever the range of real scans.

    Args:
        scans: As `synthesise` returns them.
        scalings: One a channel.

    Raises:
        UsageError: There are more or fewer scalings than channels.
    """
    if len(scalings) != scans.shape[1]:
        raise UsageError(f"Expected one scaling a channel, {scans.shape[1]}, but got {len(scalings)}.")
    channels = [[_rescaled(channel, scaling) for channel, scaling in zip(scan, scalings, strict=True)] for scan in scans]
    return torch.stack([torch.stack(one) for one in channels])


def _rescaled(channel: Tensor, scaling: Scaling) -> Tensor:
    if scaling.scheme in ("none", "minmax"):
        return channel
    if scaling.scheme == "window":
        return 2 * channel - 1
    if scaling.scheme == "dataset":
        low, high = scaling.window
        return (low + (high - low) * channel - scaling.mean) / scaling.deviation
    if scaling.scheme == "percentile":
        some = channel.flatten()[:: _stride(channel.numel())]
        low, high = torch.quantile(some, torch.tensor([0.005, 0.995], device=channel.device))
        channel = channel.clamp(low, high)
    nonzero = scaling.scheme == "zscore_nonzero"
    values = channel[channel != 0] if nonzero else channel
    if not values.numel() or not values.max() > values.min():
        return torch.zeros_like(channel)
    variance, mean = torch.var_mean(values, correction=0)
    scaled = (channel - mean) / variance.sqrt()
    return scaled * (channel != 0) if nonzero else scaled


def _stride(count: int) -> int:
    """Return a step through `count` voxels in a row that takes about `SORTED` of them and meets every plane alike."""
    step = max(1, count // SORTED)
    while math.gcd(step, count) > 1:  # a common factor with the length of a row would keep to some columns or planes
        step += 1
    return step


def _scan(labels: Tensor, change: SyntheticChange) -> Tensor:
    labels = labels.clamp(min=0).to(torch.int32)
    indices = len(change.looks[0].means) - len(TISSUES)
    highest = int(labels.max())
    if highest >= indices:
        raise UsageError(f"Expected labels of at most {indices - 1}, for which the change was drawn, but got {highest}.")
    inside = labels > 0
    tissue = labels if change.head is None else torch.where(inside, labels, indices + paint_head(inside, change.head))
    generator = torch.Generator(labels.device).manual_seed(change.seed)
    channels = [_channel(tissue, look, generator) for look in change.looks]
    if change.head is None:  # stripped after the scan: what lay around the brain has mixed into its rim
        channels = [channel * inside for channel in channels]
    return torch.stack([_unit(channel) for channel in channels])


def _channel(tissue: Tensor, look: Look, generator: torch.Generator) -> Tensor:
    device, shape = tissue.device, tissue.shape

    def noise(like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=generator)

    def lookup(values: npt.NDArray[Any]) -> Tensor:
        return _tensor(values, device).index_select(0, tissue.flatten()).view(shape)

    picture = lookup(look.means)
    picture = picture.addcmul_(lookup(look.deviations), noise(picture)).clamp_(min=0)
    bias = _tensor(look.bias, device)
    spread = [spreading(length, points, device) for length, points in zip(shape, bias.shape, strict=True)]
    picture = _unit(picture.mul_(along_axes(bias, spread).exp_())).pow_(look.gamma)
    picture = along_axes(picture, [_acquire(*one, device) for one in zip(shape, look.slices, look.blur, strict=True)])
    picture = picture.add_(noise(picture), alpha=look.noise).abs_()  # a scanner shows magnitudes
    back = [
        None if n == length else refining(length, n, length / n, device) for length, n in zip(shape, look.slices, strict=True)
    ]
    return along_axes(picture, back)


def _acquire(length: int, slices: int, blur: float, device: torch.device) -> Tensor | None:
    return None if slices == length and blur == 0 else coarsening(length, slices, blur, device)


def _tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _unit(channel: Tensor) -> Tensor:
    low, high = channel.aminmax()
    return (channel - low) / (high - low).clamp(min=torch.finfo(channel.dtype).tiny)

"""Where the voxels of a network's coarse maps lie in its input, and the way from there to the scan's own grid.

A strided convolution of kernel k and padding p centres its voxel i on the voxel i · stride − p + (k − 1) / 2 of its input: with
the usual padding that is the first voxel of those that it stands for, not their middle. A map that is simply stretched over the
input, as is the custom, lies half a stride off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from medseg_se.data.preprocessing import Prepared
from medseg_se.data.whole_scan import WholeScan, fitted_shape
from medseg_se.volumes import Volume

Array = npt.NDArray[Any]
STRIDED = (nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
"""What makes maps coarser."""


@dataclass(frozen=True)
class FeatureGrid:
    """Where the voxels of a map are centred in the network's input.

    Attributes:
        shape: Voxels of the map along each axis.
        start: Voxel of the input, along each axis, on which the first voxel of the map is centred.
        step: Voxels of the input from one to the next.
    """

    shape: tuple[int, ...]
    start: tuple[float, ...]
    step: tuple[float, ...]

    @classmethod
    def stretched(cls, shape: Sequence[int], full: Sequence[int]) -> FeatureGrid:
        """Return the grid of a map that covers an input of `full` voxels evenly."""
        steps = [length / count for length, count in zip(full, shape, strict=True)]
        return cls(tuple(shape), tuple((step - 1) / 2 for step in steps), tuple(steps))


class GridTrace:
    """Follows the strided layers of a pass, in the order in which they run.

    Of layers side by side, such as a shortcut beside its block, the first counts.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]] = []

    def note(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Note a layer of `STRIDED`, as a forward hook."""
        axes = output.ndim - 2
        kernel, stride, padding, dilation = (_each(getattr(layer, name, 1), axes) for name in _SETTINGS)
        if max(stride) > 1:
            parts = zip(kernel, padding, dilation, strict=True)
            shift = tuple(wide * (size - 1) / 2 - border for size, border, wide in parts)
            self._steps.append((tuple(inputs[0].shape[2:]), tuple(output.shape[2:]), shift, stride))

    def grid(self, shape: Sequence[int], full: Sequence[int]) -> FeatureGrid:
        """Return the grid of a map of `shape` in an input of `full` voxels.

        Where the layers do not lead from one to the other, the map is taken to cover the input evenly.
        """
        start, step = np.zeros(len(full)), np.ones(len(full))
        now = self._steps[0][0] if self._steps else tuple(full)  # a network may lengthen its input at the ends
        for before, after, shift, stride in self._steps:
            if before == now:
                start, step, now = start + step * shift, step * stride, after
        if now != tuple(shape):
            return FeatureGrid.stretched(shape, full)
        return FeatureGrid(tuple(shape), tuple(start.tolist()), tuple(step.tolist()))


_SETTINGS = ("kernel_size", "stride", "padding", "dilation")


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


# ----------------------------------------------------------------------------------------------------------------- to the scan


def on_scan(maps: Array, grid: FeatureGrid, scan: WholeScan, prepared: Prepared) -> Volume:
    """Bring maps from a network's coarse grid to the grid of the scan, linearly, as float32 (K, I, J, K).

    Beyond the centres of the outermost voxels the map goes on as it is there. What the network did not see is NaN: what was cut
    away, and for a network on slices all other slices.

    Args:
        maps: (K, *coarse).
        grid: Where their voxels lie in the network's input.
        scan: How the network's input was made.
        prepared: The scan after `scan.preprocessing`.
    """
    array = np.asarray(maps, dtype=np.float64)
    array = array if scan.flat_axis is None else np.expand_dims(array, scan.flat_axis + 1)
    for axis, weight in enumerate(axis_weights(grid, scan, prepared), start=1):
        array = np.moveaxis(np.tensordot(weight, array, axes=(1, axis)), 0, axis)
    return replace(prepared.restore(array.astype(np.float32), fill=np.nan), header=None)


def axis_weights(grid: FeatureGrid, scan: WholeScan, prepared: Prepared) -> list[Array]:
    """Return for each axis of the kept box of a scan the weights (voxels of the box, voxels of the map) of interpolation.

    Those of voxels that the network does not see are NaN.
    """
    shape, spacing = prepared.image.shape, prepared.image.spacing
    seen = [axis for axis in range(3) if axis != scan.flat_axis]
    fitted = [shape[axis] for axis in seen]
    if scan.preprocessing.spacing is None:
        fitted = fitted_shape(fitted, [spacing[axis] for axis in seen], scan.size)
    weights = []
    for axis, count in enumerate(prepared.cut_shape):
        places = (np.arange(count) + 0.5) * shape[axis] / count - 0.5  # of voxels of the box among the prepared ones
        if axis == scan.flat_axis:
            weights.append(_one_slice(places, shape[axis] // 2))
            continue
        number = seen.index(axis)
        length, size = fitted[number], scan.size[number]
        places = (places + 0.5) * length / shape[axis] - 0.5
        # As `centred` cuts and continues.
        places = places - max(0, length - size) // 2 + max(0, size - length) // 2
        seen_there = np.where((places >= -0.5) & (places <= size - 0.5), 1.0, np.nan)[:, None]
        weights.append(seen_there * _linear((places - grid.start[number]) / grid.step[number], grid.shape[number]))
    return weights


def _linear(places: Array, count: int) -> Array:
    """Return the weights (n, count) of linear interpolation at places among `count` voxels, held at the ends."""
    held = np.clip(places, 0, count - 1)
    weights: Array = np.maximum(0, 1 - np.abs(held[:, None] - np.arange(count)))
    return weights


def _one_slice(places: Array, number: int) -> Array:
    """Return weights (n, 1): 1 for voxels in the slice `number`, or for the one next to it where none is; NaN for others."""
    inside = np.floor(places + 0.5) == number
    if not inside.any():
        inside[int(np.abs(places - number).argmin())] = True
    weights: Array = np.where(inside, 1.0, np.nan)[:, None]
    return weights

"""How a prepared scan lies in its file: which axis is which, what was cut away, and the way back for one slab at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation, ornt_transform
from torch import Tensor

from medseg_se.data.preprocessing import Box, Prepared


@dataclass(frozen=True)
class Frame:
    """The way from the axes of a prepared scan to those of its file.

    Attributes:
        shape: Voxels of the file along (i, j, k).
        axes: For each axis of the prepared scan the axis of the file.
        flipped: Whether it runs the other way there.
        box: (start, stop) along each axis of the prepared scan, at the file's own spacing, of what was not cut away.
    """

    shape: tuple[int, int, int]
    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    box: Box

    @classmethod
    def of(cls, prepared: Prepared) -> Frame:
        """Return the frame of a prepared scan."""
        change = ornt_transform(io_orientation(prepared.turned.affine), io_orientation(prepared.original.affine))
        axes, signs = change[:, 0].astype(int).tolist(), change[:, 1]
        return cls(prepared.original.shape, tuple(axes), tuple(bool(sign < 0) for sign in signs), prepared.box)

    @property
    def cut_shape(self) -> tuple[int, int, int]:
        """Voxels of what was not cut away, along the axes of the prepared scan, at the file's own spacing."""
        i, j, k = (stop - start for start, stop in self.box)
        return i, j, k

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """What was not cut away, along the axes of the file."""
        found = [slice(0)] * 3
        for axis, flipped, (start, stop) in zip(self.axes, self.flipped, self.box, strict=True):
            length = self.shape[axis]
            found[axis] = slice(length - stop, length - start) if flipped else slice(start, stop)
        return found[0], found[1], found[2]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cut away."""
        return self.inside == tuple(slice(0, length) for length in self.shape)

    def prepared_axis(self, axis: int) -> tuple[int, bool]:
        """Return the axis of the prepared scan that is `axis` of the file, and whether it runs the other way."""
        own = self.axes.index(axis)
        return own, self.flipped[own]

    def in_file(self, plane: Tensor, axis: int) -> Tensor:
        """Return a slab (A, B, …) across the file's `axis`, with the axes of the prepared scan, as it lies in the file."""
        own = [place for place in range(3) if self.axes[place] != axis]
        plane = plane.flip([number for number, place in enumerate(own) if self.flipped[place]])
        return plane if self.axes[own[0]] < self.axes[own[1]] else plane.transpose(0, 1)


def plane_of(box: tuple[slice, slice, slice], axis: int) -> tuple[slice, slice]:
    """Return what a box (i, j, k) is in a slab across `axis`."""
    first, second = (part for place, part in enumerate(box) if place != axis)
    return first, second


def across(axis: int, number: int) -> tuple[slice | int, ...]:
    """Return the index of slab `number` along `axis` of an array (i, j, k)."""
    index: list[slice | int] = [slice(None)] * 3
    index[axis] = number
    return tuple(index)


def without(shape: tuple[int, int, int], axis: int) -> tuple[int, int]:
    """Return the lengths of the two axes other than `axis`."""
    first, second = np.delete(shape, axis).tolist()
    return first, second

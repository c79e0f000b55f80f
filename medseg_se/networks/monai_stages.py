"""Where the stages of MONAI's networks are, and what sizes of scans they can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from medseg_se.dims import per_axis
from medseg_se.errors import UsageError

U_SHAPE = ("encoder", "bottleneck", "decoder")


class Stage(NamedTuple):
    """A module of MONAI's network that returns a map (N, C, *spatial), and the place and level that it stands for."""

    place: str
    level: int
    path: str


class Sizes(NamedTuple):
    """What sizes of scans a network can take, in voxels per axis.

    Attributes:
        multiple: What must divide a size.
        least: The smallest size; `multiple` divides it.
        exact: The only size, where there is one.
    """

    multiple: tuple[int, ...]
    least: tuple[int, ...]
    exact: tuple[int, ...] | None = None

    def fitted(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the next size that works."""
        if self.exact:
            return self.exact
        return tuple(max(low, -(-n // step) * step) for n, step, low in zip(shape, self.multiple, self.least, strict=True))


def u_shape(down: Sequence[str | None], up: Sequence[str | None]) -> list[Stage]:
    """Return the stages of a U-shaped network: paths from the finest level down, the last of `down` being the bottleneck."""
    places = [*["encoder"] * (len(down) - 1), "bottleneck", *["decoder"] * len(up)]
    levels = [*range(len(down)), *range(len(up))]
    return [Stage(place, level, path) for place, level, path in zip(places, levels, [*down, *up], strict=True) if path]


def multiples_of(steps: Sequence[int]) -> Sizes:
    """Return the sizes that `steps` divide."""
    return Sizes(tuple(steps), tuple(steps))


def product(strides: Sequence[Any], spatial_dims: int) -> list[int]:
    """Return the product of strides, each a number or one number an axis, for each axis."""
    return [math.prod(axis) for axis in zip(*(per_axis(stride, spatial_dims, "strides") for stride in strides), strict=True)]


def check_length(name: str, values: Any, length: int) -> None:
    """Refuse another number of entries."""
    if not isinstance(values, Sequence) or len(values) != length:
        raise UsageError(f"Expected `{name}` to hold {length} entries, but got {values}.")


def divided(name: str, size: Any, divisor: Any, spatial_dims: int) -> tuple[int, ...]:
    """Return a size an axis, which the divisor divides."""
    sizes, steps = per_axis(size, spatial_dims, name), per_axis(divisor, spatial_dims, "patch_size")
    if any(n % step for n, step in zip(sizes, steps, strict=True)):
        raise UsageError(f"Expected `{name}` to be multiples of {steps}, but got {size}.")
    return sizes

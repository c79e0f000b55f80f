"""What every network of this package has in common: its arguments, what it says of itself, and how sizes are fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.attention.checks import check_map
from medseg_se.dims import NormName, check_dims
from medseg_se.errors import UsageError

Kind = Literal["segmentation", "classification"]
T = TypeVar("T")


class Network(nn.Module):
    """A network for scans (N, in_channels, *spatial).

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background; or classes; or values to regress.
        spatial_dims: 2 or 3.

    Attributes:
        kind: What it returns: "segmentation" logits (N, num_classes, *spatial), or "classification" (N, num_classes), which
            regression takes as they are.
        paper: Who described it, with a link.
        places: Where attention can sit, some of `medseg_se.networks.placement.PLACES`.
        dims: The dimensions in which it exists.

    Raises:
        UsageError: An argument that makes no sense.
    """

    kind: ClassVar[Kind] = "segmentation"
    paper: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ()
    dims: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(self, in_channels: int, num_classes: int, spatial_dims: int) -> None:
        super().__init__()
        check_dims(spatial_dims)
        if in_channels < 1 or num_classes < 1:
            raise UsageError(
                f"Expected `in_channels` and `num_classes` to be at least 1, but got {in_channels} and {num_classes}."
            )
        self.in_channels, self.num_classes, self.spatial_dims = in_channels, num_classes, spatial_dims

    def check_input(self, x: Tensor, smallest: int | Sequence[int] = 1) -> None:
        """Refuse a map that is not this network's.

        Raises:
            UsageError: Other axes or channels, or fewer voxels along an axis than `smallest`.
        """
        check_map(x, self.in_channels, self.spatial_dims, f"the {type(self).__name__}")
        least = [smallest] * self.spatial_dims if isinstance(smallest, int) else smallest
        if any(size < needed for size, needed in zip(x.shape[2:], least, strict=True)):
            raise UsageError(
                f"Expected the {type(self).__name__} to get at least {' x '.join(map(str, least))} voxels, but got "
                f"{' x '.join(map(str, x.shape[2:]))}; take a larger patch or fewer levels."
            )


class Preset(partial[nn.Module]):
    """A network with other defaults under a name of its own. Make one with `preset`."""

    paper: str


def preset(network: type[Network], paper: str | None = None, **options: Any) -> Preset:
    """Return `network` with other defaults.

    Args:
        network: The class.
        paper: Who described this variant, with a link; the class's paper if not given.
        options: The other defaults.
    """
    made = Preset(network, **options)
    made.paper = paper or network.paper
    return made


def per_level(value: int | Sequence[T], levels: int, name: str) -> list[T] | list[int]:
    """Spread one number over all `levels`, or check that there is one entry a level.

    Raises:
        UsageError: Another number of entries.
    """
    if isinstance(value, int):
        return [value] * levels
    if not isinstance(value, Sequence):
        raise UsageError(f"Expected `{name}` to be one number or {levels} entries, but got {value!r}.")
    if len(value) != levels:
        raise UsageError(f"Expected `{name}` to be one number or {levels} entries, but got {len(value)}.")
    return list(value)


def check_statistics(x: Tensor, norm: NormName, shrinkage: Sequence[int], training: bool) -> None:
    """Refuse scans of which too little is left at the last level for its normalisation to have a mean and a spread.

    Args:
        x: The scans, (N, C, *spatial).
        norm: Normalisation of the network.
        shrinkage: Product of all strides, along each axis; what they leave is rounded up.
        training: Whether batch normalisation takes its statistics from these scans.

    Raises:
        UsageError: One voxel is left of each scan (instance), or of the whole batch in training (batch).
    """
    if norm not in ("instance", "batch") or (norm == "batch" and not training):
        return
    left = math.prod(-(-size // step) for size, step in zip(x.shape[2:], shrinkage, strict=True))
    if left * (len(x) if norm == "batch" else 1) == 1:
        remedy = "larger batches, larger patches" if norm == "batch" else "larger patches"
        raise UsageError(
            f"Expected more than one voxel for {norm} normalisation at the last level, but a batch of {tuple(x.shape)} shrinks "
            f"to one under strides of {tuple(shrinkage)} in all; take {remedy}, fewer levels or group normalisation."
        )


def pad_to_multiple(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Lengthen the axes of (N, C, *spatial) with copies of their last voxels until `multiples` divide them."""
    missing = [-size % multiple for size, multiple in zip(x.shape[2:], multiples, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [amount for length in reversed(missing) for amount in (0, length)], mode="replicate")


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut the ends of the axes of (N, C, *spatial) down to `shape`."""
    for axis, size in enumerate(shape, start=2):
        if x.shape[axis] != size:  # a cut that takes all would cost a copy in the backward pass
            x = x.narrow(axis, 0, size)
    return x

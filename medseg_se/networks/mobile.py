"""What MobileNetV2 and MobileNeXt have in common: a table of stages, widths in multiples of 8, and slots for attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from medseg_se.dims import Size, per_axis
from medseg_se.errors import UsageError
from medseg_se.networks.base import per_level
from medseg_se.networks.blocks import ResidualStage
from medseg_se.networks.placement import AttentionPlan

Slot = Callable[[str, int], nn.Module]
"""Returns the attention block for a place and a number of channels; Identity where there is none."""

MobileBlock = Callable[[int, int, Sequence[int], int, Slot], nn.Module]
"""Returns a block for its channels in and out, its stride per axis, its ratio and its attention."""


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table: blocks of equal width, the first of which changes channels and size.

    Attributes:
        entering: Channels of its input.
        channels: Channels of its blocks.
        blocks: Number of blocks.
        stride: Stride of the first one, per axis.
        ratio: By how much its blocks widen their map, or narrow it.
        level: Its resolution, counted from 0.
    """

    entering: int
    channels: int
    blocks: int
    stride: tuple[int, ...]
    ratio: int
    level: int

    @property
    def has_sum(self) -> bool:
        """Whether one of its blocks adds its input."""
        return self.blocks > 1 or keeps_shape(self.entering, self.channels, self.stride)


def read_stages(
    entering: int,
    channels: Sequence[int],
    blocks: int | Sequence[int],
    strides: int | Sequence[Size],
    ratio_name: str,
    ratios: int | Sequence[int],
    spatial_dims: int,
) -> list[Stage]:
    """Return the rows of the table; after the first one, every stride above 1 begins a level.

    Raises:
        UsageError: Not one entry a stage, or numbers below 1.
    """
    number = len(channels)
    if number < 1:
        raise UsageError("Expected `channels` to hold at least one number, but it is empty.")
    counts, factors = per_level(blocks, number, "blocks"), per_level(ratios, number, ratio_name)
    for name, values in (("blocks", counts), (ratio_name, factors)):
        if min(values) < 1:
            raise UsageError(f"Expected `{name}` to be at least 1, but got {values}.")
    steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, number, "strides")]
    levels = [sum(max(step) > 1 for step in steps[1 : row + 1]) for row in range(number)]
    rows = zip([entering, *channels[:-1]], channels, counts, steps, factors, levels, strict=True)
    return [Stage(*row) for row in rows]


def encoder(stages: Sequence[Stage], block: MobileBlock, plan: AttentionPlan, spatial_dims: int) -> nn.ModuleList:
    """Return the levels, each with its stages one after the other."""
    levels = [nn.Sequential() for _ in range(stages[-1].level + 1)]
    for stage in stages:

        def attention(place: str, channels: int, level: int = stage.level) -> nn.Module:
            return plan.build(place, level, channels, spatial_dims)

        ways = [(stage.entering, stage.stride), *[(stage.channels, (1,) * spatial_dims)] * (stage.blocks - 1)]
        blocks = [block(entering, stage.channels, stride, stage.ratio, attention) for entering, stride in ways]
        levels[stage.level].append(ResidualStage(blocks, attention("encoder", stage.channels)))
    return nn.ModuleList(levels)


def shrinkage(stem_stride: Sequence[int], stages: Sequence[Stage]) -> tuple[int, ...]:
    """Return the product of all strides along each axis."""
    return tuple(math.prod(along) for along in zip(stem_stride, *(stage.stride for stage in stages), strict=True))


def keeps_shape(in_channels: int, out_channels: int, stride: Sequence[int]) -> bool:
    """Tell whether a block with this stride returns maps of the shape that it gets."""
    return in_channels == out_channels and max(stride) == 1


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width` rounded to a multiple of 8; as they are at width 1.

    Raises:
        UsageError: Channels or width not above 0.
    """
    if channels < 1 or width <= 0:
        raise UsageError(f"Expected all channels and `width` to be above 0, but got {channels} channels and width {width}.")
    return channels if width == 1 else rounded(channels * width, 8)


def rounded(channels: float, multiple: int) -> int:
    """Return the nearest multiple, at least one of it; the next one up where rounding would lose more than a tenth."""
    nearest = max(1, math.floor(channels / multiple + 0.5)) * multiple
    return nearest if nearest >= 0.9 * channels else nearest + multiple

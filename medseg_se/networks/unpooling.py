"""Max-pooling that remembers where each maximum was, unpooling that puts it back there, and what networks built on them share.

Noh et al., Learning Deconvolution Network for Semantic Segmentation, 2015, https://arxiv.org/abs/1505.04366, figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.dims import NormName, Size, conv, per_axis
from medseg_se.errors import UsageError
from medseg_se.networks.base import Network, check_statistics, per_level
from medseg_se.networks.blocks import he_initialised
from medseg_se.networks.placement import AttentionPlan


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Halve the axes of (N, C, *spatial), odd ones rounded up: their last voxels form windows of their own.

    Returns:
        The maximum of every window of two voxels along each axis, and its place in the flattened axes of ``x``.
    """
    if x.ndim == 4:
        return F.max_pool2d_with_indices(x, [2, 2], ceil_mode=True)
    return F.max_pool3d_with_indices(x, [2, 2, 2], ceil_mode=True)


def unpool(x: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Put the voxels of (N, C, *smaller) where `indices` say in a map (N, C, *shape) of zeros.

    The same as `torch.nn.functional.max_unpool2d` and `max_unpool3d`, which have no deterministic implementation.
    """
    samples, channels = x.shape[:2]
    voxels, places = x.flatten(2), indices.flatten(2)
    if x.is_contiguous():
        flat = x.new_zeros(samples, channels, math.prod(shape)).scatter_(2, places, voxels)
        return flat.view(samples, channels, *shape)
    flat = x.new_zeros(samples, math.prod(shape), channels).scatter_(1, places.mT, voxels.mT)
    return flat.view(samples, *shape, channels).movedim(-1, 1)  # channels-last, as the map is


class EncoderLevel(nn.Module):
    """One level on the way down: its block, the pooling, and what goes over the skip connection.

    Args:
        block: The block.
        skip: Attention on the skip connection (Identity when off).
    """

    def __init__(self, block: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.skip = skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pooled features for the next level, those for the skip connection, and where the maxima were."""
        x = self.block(x)
        pooled, indices = max_pool(x)
        return pooled, self.skip(x), indices


class DecoderLevel(nn.Module):
    """One level on the way up: unpool to where the encoder's maxima were, join with the skip connection, convolve.

    Args:
        match: Gives the map the channels of the skip connection (Identity where it has them).
        block: The block.
    """

    def __init__(self, match: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.match = match
        self.block = block

    def forward(self, x: Tensor, skip: Tensor, indices: Tensor) -> Tensor:
        """Join (N, C', *smaller) with the skip (N, C, *spatial)."""
        x = unpool(self.match(x), indices, skip.shape[2:])
        return self.block(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]


class UnpoolingNetwork(Network):
    """Encoder, bottleneck and decoder with skip connections, where the decoder unpools with the encoder's indices.

    Any input size works, also one that the poolings do not divide: windows at the far end are then smaller.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        block: Returns the block with these channels at its entry and its exit, this kernel, this share of channels dropped at
            its end, and this attention.
        channels: Feature channels per level, the last one being the bottleneck. The published networks have the same number
            everywhere; where two levels differ, a 1×1 convolution before the unpooling leads from one to the other.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        dropout: Share of channels dropped after each block of encoder and decoder in training.
        norm: Normalisation in every block.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    places: ClassVar[tuple[str, ...]] = ("encoder", "bottleneck", "decoder", "skip")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int,
        block: Callable[[int, int, Size, float, nn.Module], nn.Module],
        channels: Sequence[int],
        kernel_size: int | Sequence[Size],
        dropout: float,
        norm: NormName,
        attention: str | Sequence[str],
        attention_at: Sequence[str],
        attention_options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(channels)
        if levels < 2 or min(channels) < 1:
            raise UsageError(f"Expected `channels` to hold at least two positive numbers, but got {list(channels)}.")
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        self.norm_name = norm

        def at(place: str, level: int, entering: int) -> nn.Module:
            """Return the block of a level; nothing is dropped in the bottleneck."""
            after = plan.build(place, level, channels[level], spatial_dims)
            rate = 0.0 if place == "bottleneck" else dropout
            return block(entering, channels[level], kernels[level], rate, after)

        def match(level: int) -> nn.Module:
            """Return what leads from the level below to this one."""
            if channels[level + 1] == channels[level]:
                return nn.Identity()
            return he_initialised(conv(spatial_dims, channels[level + 1], channels[level], 1))

        entering = [in_channels, *channels]
        self.encoder = nn.ModuleList(
            EncoderLevel(at("encoder", level, entering[level]), plan.build("skip", level, channels[level], spatial_dims))
            for level in range(levels - 1)
        )
        self.bottleneck = at("bottleneck", levels - 1, channels[-2])
        self.decoder = nn.ModuleList(
            DecoderLevel(match(level), at("decoder", level, 2 * channels[level])) for level in reversed(range(levels - 1))
        )
        self.head = he_initialised(conv(spatial_dims, channels[0], num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small for its normalisation.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, [2 ** len(self.encoder)] * self.spatial_dims, self.training)
        passed = []
        for level in self.encoder:
            x, skip, indices = level(x)
            passed.append((skip, indices))
        x = self.bottleneck(x)
        for level, (skip, indices) in zip(self.decoder, reversed(passed), strict=True):
            x = level(x, skip, indices)
        return self.head(x)  # type: ignore[no-any-return]

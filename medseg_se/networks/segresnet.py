"""SegResNet in 2D and 3D: pre-activation residual blocks, sums in place of concatenations, linear up-sampling.

Myronenko, 2018, https://arxiv.org/abs/1810.11654, without the branch that reconstructs the scan (the autoencoder, which
training alone uses).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, conv, per_axis, resized
from medseg_se.dims import dropout as dropout_layer
from medseg_se.errors import UsageError
from medseg_se.execution import fast_layout
from medseg_se.networks.base import Network, check_statistics, per_level
from medseg_se.networks.blocks import ConvStyle, ResidualStage, he_initialised
from medseg_se.networks.placement import AttentionPlan
from medseg_se.networks.preactivation import PreActivation


class SegResNet(Network):
    """Encoder, bottleneck and decoder, joined by sums.

    Any input size works: the decoder's map is interpolated to the size of the skip connection.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        channels: Feature channels per level, the last one being the bottleneck; in the paper doubled from 32.
        strides: Stride into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        blocks: Residual blocks one after the other in encoder and bottleneck: a number, or one a level.
        decoder_blocks: The same in the decoder: a number, or one a level without the bottleneck.
        norm: Normalisation before each activation; "group" has groups of 8 channels, as the paper says.
        activation: Activation before each convolution of a block.
        dropout: Share of channels dropped after the first convolution in training.
        attention: Name of an attention block, or one name a level, from the full resolution down to the bottleneck.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Myronenko, 2018, https://arxiv.org/abs/1810.11654"
    places = ("encoder", "bottleneck", "decoder", "skip", "residual", "after_sum", "pre_activation")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: int | Sequence[Size] = 2,
        kernel_size: int | Sequence[Size] = 3,
        blocks: int | Sequence[int] = (1, 2, 2, 4),
        decoder_blocks: int | Sequence[int] = 1,
        norm: NormName = "group",
        activation: ActivationName = "relu",
        dropout: float = 0.2,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(channels)
        if levels < 2 or min(channels) < 1:
            raise UsageError(f"Expected `channels` to hold at least two positive numbers, but got {list(channels)}.")
        down_blocks = per_level(blocks, levels, "blocks")
        up_blocks = per_level(decoder_blocks, levels - 1, "decoder_blocks")
        if min(*down_blocks, *up_blocks) < 1:
            raise UsageError(f"Expected `blocks` and `decoder_blocks` to be at least 1, but got {down_blocks} and {up_blocks}.")
        steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, levels - 1, "strides")]
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        self.norm_name: NormName = norm
        self.shrinkage = [math.prod(axis) for axis in zip(*steps, strict=True)]
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation, bias=norm == "none")

        def plain_conv(entering: int, leaving: int, kernel: Size, stride: Size = 1, bias: bool = style.bias) -> nn.Module:
            return he_initialised(conv(spatial_dims, entering, leaving, kernel, stride, bias=bias))

        def stage(level: int, number: int, place: str) -> nn.Module:
            """Return the blocks of a level."""
            width, kernel = channels[level], kernels[level]
            inner = []
            for _ in range(number):
                slots = plan.in_residual(level, width, spatial_dims)
                units = nn.Sequential(
                    PreActivation(style, width, slots["before_act"]),
                    plain_conv(width, width, kernel),
                    PreActivation(style, width),
                    plain_conv(width, width, kernel),
                )
                inner.append(PreActivationBlock(units, slots["before_sum"], slots["after_sum"]))
            return ResidualStage(inner, plan.build(place, level, width, spatial_dims))

        self.stem = plain_conv(in_channels, channels[0], kernels[0])
        self.dropout = dropout_layer(spatial_dims, dropout)
        self.encoder = nn.ModuleList(
            EncoderLevel(
                stage(level, down_blocks[level], "encoder"),
                plan.build("skip", level, channels[level], spatial_dims),
                plain_conv(channels[level], channels[level + 1], kernels[level + 1], steps[level]),
            )
            for level in range(levels - 1)
        )
        self.bottleneck = stage(levels - 1, down_blocks[-1], "bottleneck")
        self.decoder = nn.ModuleList(
            DecoderLevel(plain_conv(channels[level + 1], channels[level], 1), stage(level, up_blocks[level], "decoder"))
            for level in reversed(range(levels - 1))
        )
        self.head = nn.Sequential(PreActivation(style, channels[0]), plain_conv(channels[0], num_classes, 1, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small for its normalisation.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        x = self.dropout(fast_layout(self.stem(x)))
        skips = []
        for level in self.encoder:
            x, skip = level(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for level, skip in zip(self.decoder, reversed(skips), strict=True):
            x = level(x, skip)
        return self.head(x)  # type: ignore[no-any-return]


class EncoderLevel(nn.Module):
    """One level on the way down: its blocks, what goes over the skip connection, and the step to the next level."""

    def __init__(self, block: nn.Module, skip: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.block, self.skip, self.down = block, skip, down

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features for the next level and those for the skip connection."""
        x = self.block(x)
        return self.down(x), self.skip(x)


class DecoderLevel(nn.Module):
    """One level on the way up: fewer channels, enlarge, add the skip connection, convolve."""

    def __init__(self, reduce: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.reduce, self.block = reduce, block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Add (N, C', *smaller) to the skip (N, C, *spatial)."""
        return self.block(resized(self.reduce(x), skip.shape[2:]) + skip)  # type: ignore[no-any-return]


class PreActivationBlock(nn.Module):
    """Two pre-activated convolutions beside an identity path (He et al., 2016, https://arxiv.org/abs/1603.05027, figure 4e).

    Args:
        units: Normalisation, activation, convolution, twice.
        before_sum: Attention on the residual before it is added (Identity when off).
        after_sum: Attention on the sum.
    """

    def __init__(self, units: nn.Module, before_sum: nn.Module, after_sum: nn.Module) -> None:
        super().__init__()
        self.units, self.before_sum, self.after_sum = units, before_sum, after_sum

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to the same shape."""
        return self.after_sum(x + self.before_sum(self.units(x)))  # type: ignore[no-any-return]

"""U-Net in 2D and 3D, plain or residual, with attention at named places.

Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597; strided convolutions, instance normalisation and deep supervision
as in nnU-Net, Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_map
from medseg_se.dims import ActivationName, NormName, Size, check_dims, conv, per_axis, transposed_conv
from medseg_se.errors import UsageError
from medseg_se.networks.blocks import AttentionPlan, ConvBlock, ConvStyle, ResidualBlock, he_initialised


class UNet(nn.Module):
    """Encoder, bottleneck and decoder with skip connections.

    Any input size works: where a stride does not divide it, the decoder's map is cropped to the skip's size.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        channels: Feature channels per level, the last one being the bottleneck.
        strides: Stride into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        convs: Convolutions in each block.
        residual: Whether blocks have an identity path.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation.
        dropout: Share of channels dropped after each convolution in training.
        deep_supervision: In training, return the logits of every decoder level.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits; see `AttentionPlan`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320),
        strides: int | Sequence[Size] = 2,
        kernel_size: int | Sequence[Size] = 3,
        convs: int = 2,
        residual: bool = False,
        norm: NormName = "instance",
        activation: ActivationName = "leaky_relu",
        dropout: float = 0.0,
        deep_supervision: bool = False,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        if in_channels < 1 or num_classes < 1:
            raise UsageError(
                f"Expected `in_channels` and `num_classes` to be at least 1, but got {in_channels} and {num_classes}."
            )
        levels = len(channels)
        if levels < 2 or min(channels) < 1:
            raise UsageError(f"Expected `channels` to hold at least two positive numbers, but got {list(channels)}.")
        steps = _per_level(strides, levels - 1, "strides")
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in _per_level(kernel_size, levels, "kernel_size")]
        self.strides = [(1,) * spatial_dims, *(per_axis(step, spatial_dims, "strides") for step in steps)]
        self.in_channels, self.spatial_dims, self.norm_name = in_channels, spatial_dims, norm
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options)
        if "residual" in plan.places and not residual and set(plan.names) != {"none"}:
            raise UsageError("Expected `residual` to be true, because `attention_at` has 'residual', but got false.")
        style = ConvStyle(spatial_dims, norm, activation, dropout)

        def block(level: int, entering: int, stride: Size, place: str) -> nn.Module:
            after = plan.build(place, level, channels[level], spatial_dims)
            arguments = (style, entering, channels[level], kernels[level], stride, convs, after)
            if not residual:
                return ConvBlock(*arguments)
            return ResidualBlock(*arguments, before_sum=plan.build("residual", level, channels[level], spatial_dims))

        entering = [in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            EncoderLevel(
                block(level, entering[level], self.strides[level], "encoder"),
                plan.build("skip", level, channels[level], spatial_dims),
            )
            for level in range(levels - 1)
        )
        self.bottleneck = block(levels - 1, entering[-1], self.strides[-1], "bottleneck")
        self.decoder = nn.ModuleList(
            DecoderLevel(
                he_initialised(transposed_conv(spatial_dims, channels[level + 1], channels[level], self.strides[level + 1])),
                block(level, 2 * channels[level], 1, "decoder"),
            )
            for level in reversed(range(levels - 1))
        )
        self.head = he_initialised(conv(spatial_dims, channels[0], num_classes, 1))
        self.deep_heads = nn.ModuleList(
            he_initialised(conv(spatial_dims, channels[level], num_classes, 1))
            for level in range(1, levels - 1)
            if deep_supervision
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        In training with deep supervision: a tuple of logits from the full resolution down, each level at its own size.

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small.
        """
        check_map(x, self.in_channels, self.spatial_dims, "the U-Net")
        self._check_size(x)
        skips = []
        for level in self.encoder:
            x, skip = level(x)
            skips.append(skip)
        x = self.bottleneck(x)
        maps = []
        for level, skip in zip(self.decoder, reversed(skips), strict=True):
            x = level(x, skip)
            maps.append(x)
        logits: Tensor = self.head(x)
        if self.training and len(self.deep_heads):
            coarse = reversed(maps[:-1])
            return (logits, *(head(features) for head, features in zip(self.deep_heads, coarse, strict=True)))
        return logits

    def _check_size(self, x: Tensor) -> None:
        """Refuse a patch whose bottleneck is a single voxel: its instance norm would erase everything."""
        if self.norm_name != "instance":
            return
        total = [1] * (x.ndim - 2)
        for stride in self.strides:
            total = [product * step for product, step in zip(total, stride, strict=True)]
        if all(size <= product for size, product in zip(x.shape[2:], total, strict=True)):
            raise UsageError(
                f"A patch of {tuple(x.shape[2:])} shrinks to one voxel under strides of {tuple(total)} in all; "
                "take a larger patch or fewer levels."
            )


class EncoderLevel(nn.Module):
    """One level on the way down: its block, and what goes over the skip connection."""

    def __init__(self, block: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.skip = skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features for the next level and those for the skip connection."""
        x = self.block(x)
        return x, self.skip(x)


class DecoderLevel(nn.Module):
    """One level on the way up: enlarge, join with the skip connection, convolve."""

    def __init__(self, up: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.block = block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join (N, C', *smaller) with the skip (N, C, *spatial)."""
        x = self.up(x)
        for axis, size in enumerate(skip.shape[2:], start=2):
            x = x.narrow(axis, 0, size)
        return self.block(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]


def _per_level(value: int | Sequence[Size], levels: int, name: str) -> list[Size]:
    if isinstance(value, int):
        return [value] * levels
    if len(value) != levels:
        raise UsageError(f"Expected `{name}` to be one number or {levels} entries, but got {len(value)}.")
    return list(value)

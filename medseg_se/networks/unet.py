"""U-Net in 2D and 3D, plain, residual or with nnU-Net's residual encoder, with attention at named places.

Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597; strided convolutions, instance normalisation and deep supervision
as in nnU-Net, Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z; its residual encoder (ResEnc) as in Isensee et
al., 2024, https://arxiv.org/abs/2404.09556.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, conv, max_pool, per_axis, transposed_conv
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.base import Network, check_statistics, crop, per_level, preset
from medseg_se.networks.blocks import ConvBlock, ConvStyle, ResidualBlock, ResidualStage, he_initialised
from medseg_se.networks.placement import AttentionPlan


class UNet(Network):
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
        convs: Convolutions in each block: a number, or one a level.
        decoder_convs: Convolutions in the decoder's blocks: a number, or one a level without the bottleneck; as in the encoder
            if not given.
        residual: Whether blocks have an identity path; "encoder": those of encoder and bottleneck.
        blocks: Residual blocks one after the other in encoder and bottleneck: a number, or one a level.
        stem: Whether a convolution comes before the first level, as nnU-Net's residual encoder has it.
        pooling: What shrinks the maps: the "stride" of the next level's first convolution, or the "max" of blocks of voxels.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation.
        dropout: Share of channels dropped after each convolution in training.
        conv_bias: Whether convolutions before a normalisation have a bias, which changes nothing, as nnU-Net's have.
        deep_supervision: In training, return the logits of every decoder level.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597"
    places = ("encoder", "bottleneck", "decoder", "skip", "residual", "after_sum", "pre_activation")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320),
        strides: int | Sequence[Size] = 2,
        kernel_size: int | Sequence[Size] = 3,
        convs: int | Sequence[int] = 2,
        decoder_convs: int | Sequence[int] | None = None,
        residual: bool | Literal["encoder"] = False,
        blocks: int | Sequence[int] = 1,
        stem: bool = False,
        pooling: Literal["stride", "max"] = "stride",
        norm: NormName = "instance",
        activation: ActivationName = "leaky_relu",
        dropout: float = 0.0,
        conv_bias: bool = False,
        deep_supervision: bool = False,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(channels)
        if levels < 2 or min(channels) < 1:
            raise UsageError(f"Expected `channels` to hold at least two positive numbers, but got {list(channels)}.")
        if residual not in (False, True, "encoder"):
            raise UsageError(f"Expected `residual` to be true, false or encoder, but got {residual!r}.")
        if pooling not in ("stride", "max"):
            raise unknown_name("pooling", pooling, ("stride", "max"))
        steps = per_level(strides, levels - 1, "strides")
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        down_convs = per_level(convs, levels, "convs")
        up_convs = down_convs[:-1] if decoder_convs is None else per_level(decoder_convs, levels - 1, "decoder_convs")
        counts = per_level(blocks, levels, "blocks")
        if min(counts) < 1 or (not residual and max(counts) > 1):
            raise UsageError(f"Expected `blocks` to be at least 1, and 1 where `residual` is false, but got {blocks}.")
        self.strides = [(1,) * spatial_dims, *(per_axis(step, spatial_dims, "strides") for step in steps)]
        self.norm_name, self.shrinkage = norm, [math.prod(steps) for steps in zip(*self.strides, strict=True)]
        places = self.places if residual else tuple(place for place in self.places if place not in ("residual", "after_sum"))
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, places)
        style = ConvStyle(spatial_dims, norm, activation, dropout, conv_bias)

        def block(level: int, entering: int, stride: Size, place: str) -> nn.Module:
            """Return the blocks of a level; only those on the way down are several."""
            leaving, down = channels[level], place != "decoder"
            after = plan.build(place, level, leaving, spatial_dims)
            number = (down_convs if down else up_convs)[level]
            if residual is False or (residual == "encoder" and not down):
                before = plan.build("pre_activation", level, leaving, spatial_dims)
                return ConvBlock(style, entering, leaving, kernels[level], stride, number, after, before)
            ways = [(entering, stride), *[(leaving, 1)] * ((counts[level] if down else 1) - 1)]
            inner = [
                ResidualBlock(
                    style, come, leaving, kernels[level], step, number, **plan.in_residual(level, leaving, spatial_dims)
                )
                for come, step in ways
            ]
            return ResidualStage(inner, after)

        self.stem = style.unit(in_channels, channels[0], kernels[0]) if stem else nn.Identity()
        pooled = [per_axis(1, spatial_dims), *self.strides[1:]] if pooling == "max" else [per_axis(1, spatial_dims)] * levels
        self.pools = nn.ModuleList(max_pool(spatial_dims, size) if max(size) > 1 else nn.Identity() for size in pooled)
        down = [per_axis(1, spatial_dims)] * levels if pooling == "max" else self.strides
        entering = [channels[0] if stem else in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            EncoderLevel(
                block(level, entering[level], down[level], "encoder"),
                plan.build("skip", level, channels[level], spatial_dims),
            )
            for level in range(levels - 1)
        )
        self.bottleneck = block(levels - 1, entering[-1], down[-1], "bottleneck")
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
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        x = self.stem(x)
        skips = []
        *pools, last_pool = self.pools
        for pool, level in zip(pools, self.encoder, strict=True):
            x, skip = level(pool(x))
            skips.append(skip)
        x = self.bottleneck(last_pool(x))
        maps = []
        for level, skip in zip(self.decoder, reversed(skips), strict=True):
            x = level(x, skip)
            maps.append(x)
        logits: Tensor = self.head(x)
        if self.training and len(self.deep_heads):
            coarse = reversed(maps[:-1])
            return (logits, *(head(features) for head, features in zip(self.deep_heads, coarse, strict=True)))
        return logits


unet_resenc = preset(
    UNet,
    "Isensee et al., 2024, https://arxiv.org/abs/2404.09556",
    channels=(32, 64, 128, 256, 320, 320),
    residual="encoder",
    blocks=(1, 3, 4, 6, 6, 6),
    decoder_convs=1,
    stem=True,
)
"""nnU-Net's residual-encoder U-Net of medium size (M)."""

unet_roy2018 = preset(
    UNet,
    "Roy et al., 2018, https://arxiv.org/abs/1808.08127",
    channels=(64, 64, 64, 64, 64),
    kernel_size=5,
    pooling="max",
    norm="batch",
    activation="relu",
    conv_bias=True,
    attention_at=("encoder", "decoder"),
)
"""The U-Net of the scSE paper: 64 channels and two 5×5 convolutions at each of 4 + 1 + 4 levels, attention after encoder and
decoder blocks."""


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
        x = crop(self.up(x), skip.shape[2:])
        return self.block(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]

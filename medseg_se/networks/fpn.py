"""Feature pyramid network in 2D and 3D: features of every scale, enriched from the coarser ones, meet at the finest.

Lin et al., 2017, https://arxiv.org/abs/1612.03144 for the pyramid; the head that segments from it as in Kirillov et al., 2019,
https://arxiv.org/abs/1901.02446 (panoptic feature pyramid networks, figure 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, conv, per_axis, resized
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.base import Network, check_statistics, per_level
from medseg_se.networks.blocks import ConvBlock, ConvStyle, ResidualBlock, ResidualStage, he_initialised
from medseg_se.networks.placement import AttentionPlan
from medseg_se.networks.unet import EncoderLevel

Merge = Literal["add", "concat"]


class FPN(Network):
    """Encoder and bottleneck, a pyramid on their maps, and a head that joins the pyramid's levels.

    Any input size works: maps are enlarged to the size of those they join.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        channels: Feature channels per level of the encoder, the last one being the bottleneck.
        strides: Stride into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        stem_stride: Stride into the first level, a number or one per axis; the logits are enlarged by it at the end. The papers
            work from a quarter of the resolution on, here it is the full one if not given.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        convs: Convolutions in each block of the encoder: a number, or one a level.
        residual: Whether the encoder's blocks have an identity path.
        pyramid_channels: Feature channels of every level of the pyramid and of the head; in the papers 256 and 128.
        merge: How the head joins the levels: "add", or "concat".
        norm: Normalisation after each convolution of encoder and head; the pyramid's own have none.
        activation: Activation after each normalisation.
        dropout: Share of channels dropped after each of these convolutions in training.
        deep_supervision: In training, return the logits of every coarser level of the pyramid, too.
        attention: Name of an attention block, or one name a level, from the finest down to the bottleneck.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`. "decoder" is after the pyramid's levels, "skip"
            before the 1×1 convolutions that lead into it.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Lin et al., 2017, https://arxiv.org/abs/1612.03144; Kirillov et al., 2019, https://arxiv.org/abs/1901.02446"
    places = ("encoder", "bottleneck", "decoder", "skip", "residual", "after_sum", "pre_activation")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320),
        strides: int | Sequence[Size] = 2,
        stem_stride: Size = 1,
        kernel_size: int | Sequence[Size] = 3,
        convs: int | Sequence[int] = 2,
        residual: bool = False,
        pyramid_channels: int = 32,
        merge: Merge = "add",
        norm: NormName = "instance",
        activation: ActivationName = "leaky_relu",
        dropout: float = 0.0,
        deep_supervision: bool = False,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(channels)
        if levels < 2 or min(*channels, pyramid_channels) < 1:
            raise UsageError(
                "Expected `channels` to hold at least two positive numbers and `pyramid_channels` to be one, but got "
                f"{list(channels)} and {pyramid_channels}."
            )
        steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, levels - 1, "strides")]
        steps.insert(0, per_axis(stem_stride, spatial_dims, "stem_stride"))
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        counts = per_level(convs, levels, "convs")
        self.norm_name: NormName = norm
        self.shrinkage = [math.prod(axis) for axis in zip(*steps, strict=True)]
        places = self.places if residual else tuple(place for place in self.places if place not in ("residual", "after_sum"))
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, places)
        style = ConvStyle(spatial_dims, norm, activation, dropout)
        entering = [in_channels, *channels[:-1]]

        def block(level: int, place: str) -> nn.Module:
            """Return the block of a level of the encoder."""
            leaving = channels[level]
            parts = (style, entering[level], leaving, kernels[level], steps[level], counts[level])
            after = plan.build(place, level, leaving, spatial_dims)
            if not residual:
                return ConvBlock(*parts, after, plan.build("pre_activation", level, leaving, spatial_dims))
            slots = plan.in_residual(level, leaving, spatial_dims)
            inner = ResidualBlock(*parts, slots["before_sum"], slots["before_act"], slots["after_sum"])
            return ResidualStage([inner], after)

        self.encoder = nn.ModuleList(
            EncoderLevel(block(level, "encoder"), plan.build("skip", level, channels[level], spatial_dims))
            for level in range(levels - 1)
        )
        self.bottleneck = block(levels - 1, "bottleneck")
        self.decoder = nn.ModuleList(
            PyramidLevel(
                he_initialised(conv(spatial_dims, channels[level], pyramid_channels, 1)),
                he_initialised(conv(spatial_dims, pyramid_channels, pyramid_channels, kernels[level])),
                plan.build("decoder", level, pyramid_channels, spatial_dims),
            )
            for level in reversed(range(levels))
        )
        self.head = PyramidHead(style, pyramid_channels, kernels, num_classes, merge)
        self.deep_heads = nn.ModuleList(
            he_initialised(conv(spatial_dims, pyramid_channels, num_classes, 1)) for _ in range(levels - 1) if deep_supervision
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        In training with deep supervision: a tuple of these logits and those of the pyramid's levels after the finest, each at
        its own size.

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small for its normalisation.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        shape = x.shape[2:]
        features = []
        for level in self.encoder:
            x, skip = level(x)
            features.append(skip)
        features.append(self.bottleneck(x))
        above: Tensor | None = None
        pyramid: list[Tensor] = []
        for level, skip in zip(self.decoder, reversed(features), strict=True):
            above, x = level(skip, above)
            pyramid.insert(0, x)
        logits = resized(self.head(pyramid), shape)
        if self.training and len(self.deep_heads):
            return (logits, *(head(x) for head, x in zip(self.deep_heads, pyramid[1:], strict=True)))
        return logits


class PyramidLevel(nn.Module):
    """One level on the way up: bring the encoder's map to the pyramid's channels, add the level above, smooth."""

    def __init__(self, lateral: nn.Module, conv: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.lateral, self.conv, self.attention = lateral, conv, attention

    def forward(self, skip: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum, for the level below, and the map of this level."""
        x = self.lateral(skip)
        if above is not None:
            x = x + resized(above, x.shape[2:], "nearest")
        return x, self.attention(self.conv(x))


class PyramidHead(nn.Module):
    """Bring every level of the pyramid to the finest one, step by step, join them, and classify each voxel.

    A level passes through a convolution before each step up; the finest through one. The last step, which all but the finest
    share, comes after they are joined: to enlarge a sum or to sum what is enlarged is the same.

    Args:
        style: What the convolutions share.
        channels: Channels of every level.
        kernels: Kernel of each level, from the finest.
        num_classes: Structures and background.
        merge: "add" or "concat".
    """

    def __init__(self, style: ConvStyle, channels: int, kernels: Sequence[Size], num_classes: int, merge: Merge) -> None:
        super().__init__()
        if merge not in ("add", "concat"):
            raise unknown_name("merge", merge, ("add", "concat"))
        paths = [[0], *(range(level, 0, -1) for level in range(1, len(kernels)))]
        self.branches = nn.ModuleList(
            PyramidBranch([style.unit(channels, channels, kernels[level]) for level in path]) for path in paths
        )
        self.merge = merge
        merged = channels * len(kernels) if merge == "concat" else channels
        self.project = he_initialised(conv(style.spatial_dims, merged, num_classes, 1))

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map the levels (N, C, *spatial), from the finest, to logits (N, num_classes, *spatial of the finest)."""
        sizes = [x.shape[2:] for x in pyramid]
        paths = [sizes[:1], *(sizes[level:0:-1] for level in range(1, len(sizes)))]
        finest, *coarse = [branch(x, path) for branch, x, path in zip(self.branches, pyramid, paths, strict=True)]
        return self.project(self._join([finest, resized(self._join(coarse), sizes[0])]))  # type: ignore[no-any-return]

    def _join(self, maps: Sequence[Tensor]) -> Tensor:
        if self.merge == "concat":
            return torch.cat(list(maps), dim=1)
        total = maps[0]
        for x in maps[1:]:
            total = total + x
        return total


class PyramidBranch(nn.Module):
    """Convolutions, each at a size of its own."""

    def __init__(self, units: Sequence[nn.Module]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor, sizes: Sequence[torch.Size]) -> Tensor:
        """Enlarge (N, C, *spatial) to each of the `sizes` in turn and convolve it there."""
        for unit, size in zip(self.units, sizes, strict=True):
            x = unit(resized(x, size))
        return x

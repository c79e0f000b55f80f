"""Fully convolutional DenseNet in 2D and 3D: every layer of a block sees all maps before it.

Jégou et al., 2017, https://arxiv.org/abs/1611.09326 ("The One Hundred Layers Tiramisu").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.dims import (
    ActivationName,
    NormName,
    Size,
    activation,
    conv,
    max_pool,
    norm,
    overlapping_transposed_conv,
    per_axis,
)
from medseg_se.dims import dropout as dropout_layer
from medseg_se.errors import UsageError
from medseg_se.execution import fast_layout
from medseg_se.networks.base import Network, check_statistics, per_level, preset
from medseg_se.networks.blocks import ConvStyle, he_initialised
from medseg_se.networks.placement import AttentionPlan
from medseg_se.networks.recompute import REPEATABLE, is_watched, normalised_again, recomputed


class FCDenseNet(Network):
    """Dense blocks on the way down, at the bottom and on the way up, with skip connections.

    On the way up only what a block has added is enlarged, so that its maps do not pile up; the last block passes on all.

    Any input size works: pooling rounds up, and transposed convolutions return the size of the skip connection.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background.
        spatial_dims: 2 or 3.
        layers: Layers in each dense block on the way down, from the full resolution, and back on the way up.
        bottleneck_layers: Layers in the dense block at the bottom.
        growth: Channels that each layer adds.
        stem_channels: Channels of the first convolution.
        strides: Pooling into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        kernel_size: A number for all levels, the bottom included, or one entry a level (numbers or one number per axis).
        norm: Normalisation before each activation. Each map that enters a layer is normalised by itself, which for batch and
            instance normalisation is the same as all of them together.
        activation: Activation before each convolution.
        dropout: Share of channels dropped after each convolution in training (in the paper, of single voxels).
        attention: Name of an attention block, or one name a level, from the full resolution down to the bottom.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Jégou et al., 2017, https://arxiv.org/abs/1611.09326"
    places = ("encoder", "bottleneck", "decoder", "skip", "pre_activation")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        layers: Sequence[int] = (4, 4, 4, 4),
        bottleneck_layers: int = 4,
        growth: int = 12,
        stem_channels: int = 24,
        strides: int | Sequence[Size] = 2,
        kernel_size: int | Sequence[Size] = 3,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.2,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder", "bottleneck", "decoder"),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(layers) + 1
        if levels < 2 or min(*layers, bottleneck_layers, growth, stem_channels) < 1:
            raise UsageError(
                "Expected `layers` to hold at least one number, and all of `layers`, `bottleneck_layers`, `growth` and "
                f"`stem_channels` to be at least 1, but got {list(layers)}, {bottleneck_layers}, {growth} and {stem_channels}."
            )
        steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, levels - 1, "strides")]
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        self.norm_name: NormName = norm
        self.shrinkage = [math.prod(axis) for axis in zip(*steps, strict=True)]
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation, dropout, bias=norm == "none")
        counts = [*layers, bottleneck_layers]
        added = [growth * count for count in counts]

        def block(level: int, entering: Sequence[int], place: str, keeps_input: bool) -> nn.Module:
            """Return a dense block for maps of `entering` channels."""
            units = []
            for number in range(counts[level]):
                seen = [*entering, *[growth] * number]
                before_act = plan.build("pre_activation", level, sum(seen), spatial_dims)
                units.append(DenseUnit(style, seen, growth, kernels[level], before_act))
            leaving = added[level] + sum(entering) * keeps_input
            return DenseBlock(units, keeps_input, plan.build(place, level, leaving, spatial_dims))

        self.stem = he_initialised(conv(spatial_dims, in_channels, stem_channels, kernels[0], bias=style.bias))
        self.encoder = nn.ModuleList()
        channels, passed = stem_channels, []
        for level in range(levels - 1):
            dense = block(level, [channels], "encoder", keeps_input=True)
            channels += added[level]
            passed.append(channels)
            skip = plan.build("skip", level, channels, spatial_dims)
            squeeze = DenseUnit(style, [channels], channels, 1)
            self.encoder.append(EncoderLevel(dense, skip, squeeze, max_pool(spatial_dims, steps[level])))
        self.bottleneck = block(levels - 1, [channels], "bottleneck", keeps_input=False)
        self.decoder = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            below = added[level + 1]
            up = he_initialised(overlapping_transposed_conv(spatial_dims, below, below, steps[level]))
            dense = block(level, [below, passed[level]], "decoder", keeps_input=level == 0)
            self.decoder.append(DecoderLevel(up, dense))
        self.head = he_initialised(conv(spatial_dims, added[1] + passed[0] + added[0], num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small for its normalisation.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        x = fast_layout(self.stem(x))
        skips = []
        for level in self.encoder:
            x, skip = level(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for level, skip in zip(self.decoder, reversed(skips), strict=True):
            x = level(x, skip)
        return self.head(x)  # type: ignore[no-any-return]


fc_densenet56 = preset(FCDenseNet, FCDenseNet.paper, layers=(4, 4, 4, 4, 4), bottleneck_layers=4, growth=12, stem_channels=48)
"""FC-DenseNet56 of the paper: 4 layers in each of 11 blocks."""

fc_densenet67 = preset(FCDenseNet, FCDenseNet.paper, layers=(5, 5, 5, 5, 5), bottleneck_layers=5, growth=16, stem_channels=48)
"""FC-DenseNet67 of the paper: 5 layers in each of 11 blocks."""

fc_densenet103 = preset(
    FCDenseNet, FCDenseNet.paper, layers=(4, 5, 7, 10, 12), bottleneck_layers=15, growth=16, stem_channels=48
)
"""FC-DenseNet103 of the paper: 4 to 15 layers a block, more of them further down."""


class EncoderLevel(nn.Module):
    """One level on the way down: its block, what goes over the skip connection, and the step to the next level."""

    def __init__(self, block: nn.Module, skip: nn.Module, squeeze: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.block, self.skip, self.squeeze, self.pool = block, skip, squeeze, pool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features for the next level and those for the skip connection."""
        x = self.block(x)
        return self.pool(self.squeeze(x)), self.skip(x)


class DecoderLevel(nn.Module):
    """One level on the way up: enlarge, join with the skip connection, convolve."""

    def __init__(self, up: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.up, self.block = up, block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join (N, C', *smaller) with the skip (N, C, *spatial)."""
        return self.block(self.up(x, output_size=skip.shape[2:]), skip)  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Layers of which each sees the maps that enter and those of all layers before it, and a slot for attention.

    Args:
        units: The layers.
        keeps_input: Whether the maps that enter are part of the result.
        attention: The block after the last layer (Identity when off).
    """

    def __init__(self, units: Sequence[nn.Module], keeps_input: bool, attention: nn.Module) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.keeps_input = keeps_input
        self.attention = attention

    def forward(self, *maps: Tensor) -> Tensor:
        """Map one or more (N, C, *spatial) to the new ones, with or without them, as one."""
        features = list(maps)
        for unit in self.units:
            features.append(unit(*features))
        kept = features if self.keeps_input else features[len(maps) :]
        return self.attention(torch.cat(kept, dim=1))  # type: ignore[no-any-return]


class DenseUnit(nn.Module):
    """Normalisation, activation, convolution, dropout of several maps as one: (N, C, *spatial) each to (N, out, *spatial).

    Each map is normalised by itself. So training keeps the maps alone, which the layers of a block share, and neither their
    concatenations nor what the convolutions take, which would grow with the square of the number of layers: see `recomputed`.

    Args:
        style: What the convolutions share.
        entering: Channels of each map.
        leaving: Channels of the result.
        kernel_size: Kernel, odd along every axis.
        before_act: Attention between normalisation and activation (Identity when off).
    """

    def __init__(
        self,
        style: ConvStyle,
        entering: Sequence[int],
        leaving: int,
        kernel_size: Size,
        before_act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(style.norm_name, style.spatial_dims, channels) for channels in entering)
        self.before_act = before_act or nn.Identity()
        self.act = activation(style.act, inplace=style.norm_name != "none")  # a map that enters alone goes on beside it, too
        self.conv = he_initialised(conv(style.spatial_dims, sum(entering), leaving, kernel_size, bias=style.bias))
        self.dropout = dropout_layer(style.spatial_dims, style.dropout_rate)

    def forward(self, *maps: Tensor) -> Tensor:
        """Run the layer."""
        if self._can_run_again():
            again = partial(self._activated_again, training=self.norms[0].training)
            x = recomputed(self._activated, self.conv, *maps, again=again)
        else:
            x = self.conv(self._activated(*maps))
        return self.dropout(fast_layout(x))  # type: ignore[no-any-return]

    def _activated(self, *maps: Tensor) -> Tensor:
        normalised = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return self.act(self.before_act(_joined(normalised)))  # type: ignore[no-any-return]

    def _activated_again(self, *maps: Tensor, training: bool) -> Tensor:
        normalised = [normalised_again(norm, x, training) for norm, x in zip(self.norms, maps, strict=True)]
        return self.act(_joined(normalised))  # type: ignore[no-any-return]

    def _can_run_again(self) -> bool:
        """Tell whether a second run gives the same values and nobody counts the runs."""
        known = all(isinstance(norm, (*REPEATABLE, nn.Identity)) for norm in self.norms)
        return known and isinstance(self.before_act, nn.Identity) and not is_watched(self)


def _joined(maps: Sequence[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)

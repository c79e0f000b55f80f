"""DenisNet: a densely connected classifier whose layers recalibrate the features they add, with sparse (grouped) convolutions.

Aggregated squeeze-and-excitation transformations for densely connected convolutional networks, The Visual Computer, 2021; the
authors' code is at https://github.com/voriarty/DenisNet. Without attention it is the DenseNet-BC of Huang et al., 2017,
https://arxiv.org/abs/1608.06993.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, average_pool, conv, per_axis
from medseg_se.dims import activation as activation_layer
from medseg_se.dims import dropout as dropout_layer
from medseg_se.dims import norm as norm_layer
from medseg_se.errors import UsageError
from medseg_se.networks.base import per_level, preset
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.placement import AttentionPlan

_SPLIT_WIDTHS = {1: 25, 2: 34, 3: 39, 4: 44, 6: 48}
"""The authors' width of a split layer that adds 12 channels, for each number of groups: networks of 40 layers then have about
98,000 parameters each."""


class DenisNet(Classifier):
    """Dense blocks with transitions between them, mean over the voxels, linear head.

    The defaults are the authors' DenisNet-SE of 100 layers (771,466 parameters for 10 classes of RGB images). Their code drops
    the last row of an odd map where a transition halves it; here every size is rounded up. Any input size works. Only in
    training is a batch refused of which a single voxel is left at the last level: one scan of at most 4 voxels along each axis,
    with the authors' strides.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        layers: Dense layers in each block, one entry a level.
        growth: Channels that each layer adds.
        split: Whether a layer has three convolutions, 1×1, a grouped 3×3 and 1×1, rather than 1×1 and 3×3.
        groups: Groups of the 3×3 convolutions.
        width: Channels inside a layer. If not given 4 · growth; with `split` and a growth of 12 the authors' 25, 34, 39, 44 and
            48 for 1, 2, 3, 4 and 6 groups.
        compression: Share of the channels that a transition keeps.
        stem_stride: Stride of the first convolution; volumes want 2, since a dense block keeps every map it has made.
        strides: Stride into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        norm: Normalisation before each activation.
        activation: Activation before each convolution.
        dropout: Share of channels dropped after each convolution in training.
        attention: Name of an attention block, or one name a level, that is a dense block; "none" for a DenseNet.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = (
        "Aggregated squeeze-and-excitation transformations for densely connected convolutional networks, 2021, "
        "https://github.com/voriarty/DenisNet"
    )
    places = ("new_features", "encoder")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        layers: Sequence[int] = (16, 16, 16),
        growth: int = 12,
        split: bool = False,
        groups: int = 1,
        width: int | None = None,
        compression: float = 0.5,
        stem_stride: Size = 1,
        strides: int | Sequence[Size] = 2,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        attention: str | Sequence[str] = "denis_se",
        attention_at: Sequence[str] = ("new_features",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(layers)
        if levels < 1 or min(layers) < 1 or growth < 1:
            raise UsageError(f"Expected `layers` and `growth` to be positive numbers, but got {list(layers)} and {growth}.")
        if not 0 < compression <= 1:
            raise UsageError(f"Expected `compression` to be above 0 and at most 1, but got {compression}.")
        usual = _SPLIT_WIDTHS.get(groups, 48) if split and growth == 12 else 4 * growth
        inner = usual if width is None else width
        grouped = (inner, inner if split else growth)
        if inner < 1 or groups < 1 or any(channels % groups for channels in grouped):
            raise UsageError(
                f"Expected `groups` to divide the {grouped[0]} channels that enter a grouped convolution and the {grouped[1]} "
                f"that leave it, but got {groups}; choose another `width` or `growth`."
            )
        steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, levels - 1, "strides")]
        all_steps = [per_axis(stem_stride, spatial_dims, "stem_stride"), *steps]
        self.norm_name, self.shrinkage = norm, tuple(math.prod(along) for along in zip(*all_steps, strict=True))
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation, dropout)

        channels = 2 * growth
        self.stem = _initialised(conv(spatial_dims, in_channels, channels, 3, stem_stride, bias=False))
        self.encoder = nn.ModuleList()
        for level, (count, stride) in enumerate(zip(layers, [*steps, None], strict=True)):
            dense = []
            for _ in range(count):
                block = plan.build("new_features", level, growth, spatial_dims)
                dense.append(DenseLayer(style, channels, growth, inner, split, groups, block))
                channels += growth
            after = plan.build("encoder", level, channels, spatial_dims)
            transition: nn.Module = nn.Identity()
            if stride is not None:
                kept = max(1, math.floor(channels * compression))
                transition = DenisUnit(style, channels, kept, 1, pool=average_pool(spatial_dims, stride))
                channels = kept
            self.encoder.append(DenisLevel(dense, after, transition))
        last = nn.Sequential(norm_layer(norm, spatial_dims, channels), activation_layer(activation))
        self.head = ClassificationHead(channels, num_classes, before=last)


denisnet_split = preset(DenisNet, layers=(24, 24, 24), split=True, groups=6)
"""The inter-sparse form of 220 layers: split layers with six groups."""


class DenisLevel(nn.Module):
    """A dense block, a slot for attention on all its channels, and the transition to the next level."""

    def __init__(self, layers: Sequence[nn.Module], attention: nn.Module, transition: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.attention = attention
        self.transition = transition

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, C', *spatial / stride)."""
        return self.transition(self.attention(self.layers(x)))  # type: ignore[no-any-return]


class DenseLayer(nn.Module):
    """Compute a few new channels from all that there are, recalibrate them and join them to the others.

    Args:
        style: Dimensions, normalisation, activation and dropout.
        in_channels: Channels of the input.
        growth: Channels that the layer adds.
        width: Channels between its convolutions.
        split: Whether the 3×3 convolution keeps the width and a 1×1 convolution follows.
        groups: Groups of the 3×3 convolution.
        attention: The block for the new channels (Identity when off).
    """

    def __init__(
        self, style: ConvStyle, in_channels: int, growth: int, width: int, split: bool, groups: int, attention: nn.Module
    ) -> None:
        super().__init__()
        self.reduce = DenisUnit(style, in_channels, width, 1)
        self.convolve = DenisUnit(style, width, width if split else growth, 3, groups)
        self.project = DenisUnit(style, width, growth, 1) if split else nn.Identity()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, C + growth, *spatial)."""
        new = self.attention(self.project(self.convolve(self.reduce(x))))
        return torch.cat([x, new], dim=1)


class DenisUnit(nn.Sequential):
    """Normalisation, activation, convolution, dropout: (N, C, *spatial) to (N, out_channels, *spatial / stride).

    Args:
        style: Dimensions, normalisation, activation and dropout.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel of the convolution.
        groups: Groups of the convolution.
        pool: Means before the convolution (Identity when off). The authors take them after it, which for a 1×1 convolution is
            the same and costs a multiple.
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        dims = style.spatial_dims
        self.norm = norm_layer(style.norm_name, dims, in_channels)
        self.act = activation_layer(style.act, inplace=style.norm_name != "none")  # the map itself is passed on, too
        self.pool = pool or nn.Identity()
        self.conv = _initialised(conv(dims, in_channels, out_channels, kernel_size, bias=False, groups=groups))
        self.dropout = dropout_layer(dims, style.dropout_rate)


def _initialised(layer: nn.Module) -> nn.Module:
    """Return a convolution initialised as the authors do, for the number of values that each voxel goes to."""
    nn.init.kaiming_normal_(layer.get_parameter("weight"), mode="fan_out", nonlinearity="relu")
    return layer

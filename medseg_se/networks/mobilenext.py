"""MobileNeXt: sandglass blocks for classification and regression, with attention in them.

Zhou et al., 2020, https://arxiv.org/abs/2007.02269, tables 1 and 2; coordinate attention after the first depthwise convolution
as in Hou et al., 2021, https://arxiv.org/abs/2103.02907, figure 3b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, per_axis
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.mobile import Slot, encoder, keeps_shape, read_stages, rounded, scaled, shrinkage
from medseg_se.networks.placement import AttentionPlan

LARGEST_REDUCTION = 6
"""How many times narrower than its output a block is at most, rounded to multiples of 16, as in the authors' code."""


class MobileNeXt(Classifier):
    """A stem, stages of sandglass blocks, the mean over space and a linear layer.

    Every block is the one of the paper's table 1, and the last stage but one has the 3 blocks of the authors' code:
    3,567,624 parameters in 2D with 1000 classes. The paper says 3.4 million; the authors' code leaves out depthwise
    convolutions of blocks that change the number of channels, and has 3,535,416.

    Any input size works: strides round sizes up. Only where the last map is one voxel, normalisation over it is refused: batch
    normalisation in training on a single scan, and instance normalisation.

    Attention has one level per resolution: the first stage, and with every stride above 1 a new one. The 8 stages of the paper
    have 4 levels: (96, 144), (192), (288, 384) and (576, 960, 1280) channels. Its places:

    - "depthwise": after the activation of every block's first depthwise convolution;
    - "residual": before the sum, in blocks that have one;
    - "after_sum": at the end of every sandglass block, whether it has a sum or not;
    - "encoder": after every stage.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        channels: Channels of each stage.
        blocks: Sandglass blocks in each stage: a number, or one a stage.
        strides: Stride of the first block of each stage: a number, or one entry a stage (numbers or one number per axis).
        reduction: By how much blocks narrow their map: a number, or one a stage.
        stem_channels: Channels of the first convolution.
        stem_stride: Its stride: a number, or one number per axis.
        kernel_size: Kernel of the stem and of the depthwise convolutions.
        width: Multiplies all channels but, below 1, those of the last stage; they are rounded to multiples of 8.
        norm: Normalisation after each convolution.
        activation: Activation after the first depthwise convolution and the widening one of each block.
        dropout: Share of features dropped before the linear layer in training.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Zhou et al., 2020, https://arxiv.org/abs/2007.02269"
    places = ("depthwise", "residual", "after_sum", "encoder")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (96, 144, 192, 288, 384, 576, 960, 1280),
        blocks: int | Sequence[int] = (1, 1, 3, 3, 4, 4, 3, 1),
        strides: int | Sequence[Size] = (2, 1, 2, 2, 1, 2, 1, 1),
        reduction: int | Sequence[int] = (2, 6, 6, 6, 6, 6, 6, 6),
        stem_channels: int = 32,
        stem_stride: Size = 2,
        kernel_size: Size = 3,
        width: float = 1.0,
        norm: NormName = "batch",
        activation: ActivationName = "relu6",
        dropout: float = 0.2,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("depthwise",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        stem, steps = scaled(stem_channels, width), per_axis(stem_stride, spatial_dims, "stem_stride")
        widths = [scaled(number, width) for number in channels[:-1]]
        widths += [scaled(number, max(1.0, width)) for number in channels[-1:]]
        stages = read_stages(stem, widths, blocks, strides, "reduction", reduction, spatial_dims)
        there = {"residual": any(stage.has_sum for stage in stages)}
        places = [place for place in self.places if there.get(place, True)]
        plan = AttentionPlan.make(attention, attention_at, stages[-1].level + 1, attention_options, places)
        style = ConvStyle(spatial_dims, norm, activation)
        self.norm_name, self.shrinkage = norm, shrinkage(steps, stages)
        self.stem = style.unit(in_channels, stem, kernel_size, steps)
        self.encoder = encoder(stages, partial(Sandglass, style, kernel_size), plan, spatial_dims)
        self.head = ClassificationHead(widths[-1], num_classes, dropout)


class Sandglass(nn.Module):
    """Filter each channel, narrow without activation, widen, filter without activation; a sum where the shape stays.

    Args:
        style: What the convolutions share.
        kernel_size: Kernel of the depthwise convolutions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the second depthwise convolution, per axis.
        reduction: By how much the map is narrowed; less where the output would be more than 6 times wider.
        attention: Returns the block for a place and a number of channels; Identity where there is none.
    """

    def __init__(
        self,
        style: ConvStyle,
        kernel_size: Size,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        reduction: int,
        attention: Slot,
    ) -> None:
        super().__init__()
        narrow = in_channels // reduction
        if narrow < out_channels / LARGEST_REDUCTION:
            narrow = rounded(math.ceil(out_channels / LARGEST_REDUCTION), 16)
        self.has_sum = keeps_shape(in_channels, out_channels, stride)
        self.first_depthwise = style.unit(in_channels, in_channels, kernel_size, groups=in_channels)
        self.depthwise_attention = attention("depthwise", in_channels)
        self.reduce = style.unit(in_channels, narrow, 1, act=False)
        self.expand = style.unit(narrow, out_channels, 1)
        self.last_depthwise = style.unit(out_channels, out_channels, kernel_size, stride, act=False, groups=out_channels)
        self.before_sum = attention("residual", out_channels) if self.has_sum else nn.Identity()
        self.after_sum = attention("after_sum", out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride), rounded up."""
        residual = self.first_depthwise.with_attention(x, self.depthwise_attention)
        residual = self.last_depthwise(self.expand(self.reduce(residual)))
        residual = self.before_sum(residual)
        x = x + residual if self.has_sum else residual
        return self.after_sum(x)  # type: ignore[no-any-return]

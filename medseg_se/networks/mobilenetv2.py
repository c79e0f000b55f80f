"""MobileNetV2: inverted residual blocks for classification and regression, with attention in them.

Sandler et al., 2018, https://arxiv.org/abs/1801.04381, tables 1 and 2; coordinate attention after the depthwise convolutions
as in Hou et al., 2021, https://arxiv.org/abs/2103.02907, figure 3a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, per_axis
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.mobile import Slot, encoder, keeps_shape, read_stages, scaled, shrinkage
from medseg_se.networks.placement import AttentionPlan


class MobileNetV2(Classifier):
    """A stem, stages of inverted residual blocks, a wide 1×1 convolution, the mean over space and a linear layer.

    Any input size works: strides round sizes up. Only where the last map is one voxel, normalisation over it is refused: batch
    normalisation in training on a single scan, and instance normalisation.

    Attention has one level per resolution: the first stage, and with every stride above 1 a new one. The 7 stages of the paper
    have 5 levels: (16), (24), (32), (64, 96) and (160, 320) channels. Its places:

    - "depthwise": after the depthwise convolution's activation, in blocks that widen their map, so not in the first one;
    - "residual": before the sum, in blocks that have one;
    - "after_sum": at the end of every inverted residual block, whether it has a sum or not;
    - "encoder": after every stage.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        channels: Channels of each stage.
        blocks: Inverted residual blocks in each stage: a number, or one a stage.
        strides: Stride of the first block of each stage: a number, or one entry a stage (numbers or one number per axis).
        expansion: By how much blocks widen their map: a number, or one a stage.
        stem_channels: Channels of the first convolution.
        stem_stride: Its stride: a number, or one number per axis.
        head_channels: Channels before the mean over space.
        kernel_size: Kernel of the stem and of the depthwise convolutions.
        width: Multiplies all channels but, below 1, `head_channels`; they are rounded to multiples of 8.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation but those that narrow the map.
        dropout: Share of features dropped before the linear layer in training.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Sandler et al., 2018, https://arxiv.org/abs/1801.04381"
    places = ("depthwise", "residual", "after_sum", "encoder")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 24, 32, 64, 96, 160, 320),
        blocks: int | Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
        strides: int | Sequence[Size] = (1, 2, 2, 2, 1, 2, 1),
        expansion: int | Sequence[int] = (1, 6, 6, 6, 6, 6, 6),
        stem_channels: int = 32,
        stem_stride: Size = 2,
        head_channels: int = 1280,
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
        stem, last = scaled(stem_channels, width), scaled(head_channels, max(1.0, width))
        steps = per_axis(stem_stride, spatial_dims, "stem_stride")
        widths = [scaled(number, width) for number in channels]
        stages = read_stages(stem, widths, blocks, strides, "expansion", expansion, spatial_dims)
        there = {"depthwise": any(stage.ratio > 1 for stage in stages), "residual": any(stage.has_sum for stage in stages)}
        places = [place for place in self.places if there.get(place, True)]
        plan = AttentionPlan.make(attention, attention_at, stages[-1].level + 1, attention_options, places)
        style = ConvStyle(spatial_dims, norm, activation)
        self.norm_name, self.shrinkage = norm, shrinkage(steps, stages)
        self.stem = style.unit(in_channels, stem, kernel_size, steps)
        self.encoder = encoder(stages, partial(InvertedResidual, style, kernel_size), plan, spatial_dims)
        self.head = ClassificationHead(last, num_classes, dropout, style.unit(widths[-1], last, 1))

    def pretrained_names(self) -> dict[str, str]:
        """Return the names of the modules in the usual files of weights, each with ours."""
        blocks = [(name, block) for name, block in self.named_modules() if isinstance(block, InvertedResidual)]
        units = [("features.0", "stem"), (f"features.{len(blocks) + 1}", "head.before")]
        names = {"classifier.1": "head.linear"}
        for number, (ours, block) in enumerate(blocks, start=1):
            theirs, place = f"features.{number}.conv", 0
            for unit in ("expand", "depthwise"):
                if not isinstance(block.get_submodule(unit), nn.Identity):
                    units.append((f"{theirs}.{place}", f"{ours}.{unit}"))
                    place += 1
            names |= {f"{theirs}.{place}": f"{ours}.project.conv", f"{theirs}.{place + 1}": f"{ours}.project.norm"}
        for theirs, ours in units:
            names |= {f"{theirs}.0": f"{ours}.conv", f"{theirs}.1": f"{ours}.norm"}
        return names


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel, narrow without activation; a sum with the input if that has its shape.

    Args:
        style: What the convolutions share.
        kernel_size: Kernel of the depthwise convolution.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution, per axis.
        expansion: By how much the map is widened; 1: not at all.
        attention: Returns the block for a place and a number of channels; Identity where there is none.
    """

    def __init__(
        self,
        style: ConvStyle,
        kernel_size: Size,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        expansion: int,
        attention: Slot,
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.has_sum = keeps_shape(in_channels, out_channels, stride)
        self.expand = style.unit(in_channels, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = style.unit(wide, wide, kernel_size, stride, groups=wide)
        self.depthwise_attention = attention("depthwise", wide) if expansion > 1 else nn.Identity()
        self.project = style.unit(wide, out_channels, 1, act=False)
        self.before_sum = attention("residual", out_channels) if self.has_sum else nn.Identity()
        self.after_sum = attention("after_sum", out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial / stride), rounded up."""
        residual = self.depthwise.with_attention(self.expand(x), self.depthwise_attention)
        residual = self.before_sum(self.project(residual))
        x = x + residual if self.has_sum else residual
        return self.after_sum(x)  # type: ignore[no-any-return]

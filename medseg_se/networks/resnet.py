"""ResNet in 2D and 3D for whole scans, with attention at named places.

He et al., 2016, https://arxiv.org/abs/1512.03385, table 1 and figure 5; with pre-activation see
`medseg_se.networks.resnetv2`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, Size, activation, max_pool, per_axis
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks.base import per_level, preset
from medseg_se.networks.blocks import ConvStyle, ResidualStage
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.placement import AttentionPlan

Layer = tuple[int, int, Size]
"""A convolution of a residual block: kernel, channels that leave it, stride."""


class PostActivationBlock(nn.Module):
    """Convolution units around an identity path, which is a strided 1×1 convolution where the shape changes (figure 5).

    Args:
        style: What the convolutions share.
        plan: The attention: before the sum, before the activation of the sum, after it.
        level: The stage.
        entering: Channels of the input.
        layers: The convolutions.
        activated: Whether the input is activated already; in these networks it always is.
    """

    def __init__(
        self, style: ConvStyle, plan: AttentionPlan, level: int, entering: int, layers: Sequence[Layer], activated: bool = True
    ) -> None:
        super().__init__()
        leaving, stride = layers[-1][1], total_stride(layers, style.spatial_dims)
        units, channels = [], entering
        for place, (kernel, width, step) in enumerate(layers, start=1):
            units.append(style.unit(channels, width, kernel, step, act=place < len(layers)))
            channels = width
        slots = plan.in_residual(level, leaving, style.spatial_dims)
        same = entering == leaving and max(stride) == 1
        self.units = nn.Sequential(*units)
        self.before_sum = slots["before_sum"]
        self.shortcut = nn.Identity() if same else style.unit(entering, leaving, 1, stride, act=False)
        self.before_act = slots["before_act"]
        self.act = activation(style.act)
        self.after_sum = slots["after_sum"]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, channels of the last layer, *spatial / stride)."""
        residual = self.before_sum(self.units(x))
        x = self.act(self.before_act(self.shortcut(x) + residual))
        return self.after_sum(x)  # type: ignore[no-any-return]


class ResNet(Classifier):
    """Stages of residual blocks, global mean, linear layer.

    Any input size works. Only in training is a batch refused of which a single voxel is left at the last stage (one scan of at
    most 32 voxels along each axis, with the usual strides): batch normalisation cannot take a spread from it. As in every
    framework today, the stride of a bottleneck block is in its 3×3 convolution; in the paper it is in the first 1×1.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        channels: Width of each stage; bottleneck blocks end four times as wide.
        blocks: Residual blocks of each stage: a number, or one a stage.
        bottleneck: Whether a block is a 3×3 convolution between two of 1×1, rather than two of 3×3.
        strides: Stride of the first block of each stage: one entry a stage, each a number or one number per axis.
        stem: "pooled", a 7×7 convolution and a max-pool with a stride of 2 each; or "small", for small scans, one 3×3
            convolution that keeps the size.
        norm: Normalisation.
        activation: Activation after each normalisation.
        dropout: Share of the global means dropped in training.
        attention: Name of an attention block, or one name a stage.
        attention_at: Where it sits; "encoder" is after each stage. See `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "He et al., 2016, https://arxiv.org/abs/1512.03385"
    places = ("encoder", "residual", "after_sum", "pre_activation")
    block_type: ClassVar[Callable[..., nn.Module]] = PostActivationBlock

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: int | Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        strides: int | Sequence[Size] = (1, 2, 2, 2),
        stem: Literal["pooled", "small"] = "pooled",
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("residual",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        if not channels or min(channels) < 1:
            raise UsageError(f"Expected `channels` to be positive numbers, one a stage, but got {list(channels)}.")
        counts = per_level(blocks, len(channels), "blocks")
        if min(counts) < 1:
            raise UsageError(f"Expected `blocks` to be at least 1, but got {blocks}.")
        if stem not in ("pooled", "small"):
            raise unknown_name("stem", stem, ("pooled", "small"))
        steps = [per_axis(step, spatial_dims, "strides") for step in per_level(strides, len(channels), "strides")]
        self.norm_name = norm
        self.shrinkage = [(4 if stem == "pooled" else 1) * math.prod(along) for along in zip(*steps, strict=True)]
        plan = AttentionPlan.make(attention, attention_at, len(channels), attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation)
        self.stem = _stem(style, in_channels, channels[0], stem == "pooled")
        self.encoder = nn.ModuleList()
        entering = channels[0]
        for level, (width, count, stride) in enumerate(zip(channels, counts, steps, strict=True)):
            inner = []
            for index in range(count):
                layers = _layers(width, stride if index == 0 else 1, bottleneck)
                inner.append(self.block_type(style, plan, level, entering, layers, activated=level == index == 0))
                entering = layers[-1][1]
            self.encoder.append(ResidualStage(inner, plan.build("encoder", level, entering, spatial_dims)))
        self.head = ClassificationHead(entering, num_classes, dropout, self._before_head(style, entering))

    def _before_head(self, style: ConvStyle, channels: int) -> nn.Module:
        """Return what comes between the last stage and the global mean."""
        return nn.Identity()

    def pretrained_names(self) -> dict[str, str]:
        """Return the names of the modules in published files of weights, each with its name here."""
        names = {"conv1": "stem.unit.conv", "bn1": "stem.unit.norm", "fc": "head.linear"}
        blocks = [name for name, module in self.named_modules() if isinstance(module, PostActivationBlock)]
        for ours in blocks:
            _, level, _, index = ours.split(".")
            theirs, block = f"layer{int(level) + 1}.{index}", self.get_submodule(ours)
            for number, _ in enumerate(block.get_submodule("units").children()):
                names[f"{theirs}.conv{number + 1}"] = f"{ours}.units.{number}.conv"
                names[f"{theirs}.bn{number + 1}"] = f"{ours}.units.{number}.norm"
            if not isinstance(block.shortcut, nn.Identity):
                names[f"{theirs}.downsample.0"] = f"{ours}.shortcut.conv"
                names[f"{theirs}.downsample.1"] = f"{ours}.shortcut.norm"
        return names


resnet18 = preset(ResNet, blocks=(2, 2, 2, 2), bottleneck=False)
"""18 layers: two basic blocks a stage."""

resnet34 = preset(ResNet, blocks=(3, 4, 6, 3), bottleneck=False)
"""34 layers of basic blocks."""

resnet50 = preset(ResNet, blocks=(3, 4, 6, 3))
"""50 layers of bottleneck blocks."""

resnet101 = preset(ResNet, blocks=(3, 4, 23, 3))
"""101 layers of bottleneck blocks."""

resnet152 = preset(ResNet, blocks=(3, 8, 36, 3))
"""152 layers of bottleneck blocks."""


def _stem(style: ConvStyle, entering: int, leaving: int, pooled: bool) -> nn.Module:
    """Return the first convolution, and a max-pool if `pooled`."""
    if not pooled:
        return nn.Sequential(OrderedDict(unit=style.unit(entering, leaving, 3)))
    unit = style.unit(entering, leaving, 7, 2)
    return nn.Sequential(OrderedDict(unit=unit, pool=max_pool(style.spatial_dims, 2, 3)))


def _layers(width: int, stride: Size, bottleneck: bool) -> list[Layer]:
    """Return the convolutions of a block (figure 5)."""
    if bottleneck:
        return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
    return [(3, width, stride), (3, width, 1)]


def total_stride(layers: Sequence[Layer], spatial_dims: int) -> tuple[int, ...]:
    """Return the product of the strides of a block, along each axis."""
    steps = [per_axis(stride, spatial_dims, "strides") for _, _, stride in layers]
    return tuple(math.prod(along) for along in zip(*steps, strict=True))

"""DenseNet in 2D and 3D for whole scans, with attention at named places: the variant with bottlenecks and compression.

Huang et al., 2017, https://arxiv.org/abs/1608.06993, table 1 (DenseNet-BC).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, average_pool, max_pool
from medseg_se.errors import UsageError
from medseg_se.networks.base import preset
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.placement import AttentionPlan
from medseg_se.networks.preactivation import PreActivation, PreActivationUnit


class DenseClassifier(Classifier):
    """Dense blocks with transitions between them that halve size and channels, global mean, linear layer.

    Any input size works: the transitions take means of what is there at the edges. Only in training is a batch refused of which
    a single voxel is left at the last level (one scan of at most 32 voxels along each axis): batch normalisation cannot take a
    spread from it.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        blocks: Layers of each dense block.
        growth: Channels that each layer adds.
        stem_channels: Channels of the first convolution.
        compression: Share of the channels that a transition keeps.
        norm: Normalisation before each activation.
        activation: Activation before each convolution.
        dropout: Share of the global means dropped in training.
        attention: Name of an attention block, or one name a dense block.
        attention_at: Where it sits; "encoder" is after each dense block. See `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Huang et al., 2017, https://arxiv.org/abs/1608.06993"
    places = ("encoder", "transition")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        stem_channels: int = 64,
        compression: float = 0.5,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(blocks)
        if not blocks or min(*blocks, growth, stem_channels) < 1:
            raise UsageError(
                "Expected `blocks`, `growth` and `stem_channels` to be positive, but got "
                f"{list(blocks)}, {growth} and {stem_channels}."
            )
        if not 0 < compression <= 1:
            raise UsageError(f"Expected `compression` to be above 0 and at most 1, but got {compression}.")
        self.norm_name = norm
        self.shrinkage = [4 * 2 ** (levels - 1)] * spatial_dims
        style = ConvStyle(spatial_dims, norm, activation)
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        unit, pool = style.unit(in_channels, stem_channels, 7, 2), max_pool(spatial_dims, 2, 3)
        self.stem = nn.Sequential(OrderedDict(unit=unit, pool=pool))
        self.encoder = nn.ModuleList()
        channels = stem_channels
        for level, count in enumerate(blocks):
            last, full = level == levels - 1, channels + count * growth
            kept = full if last else max(1, int(full * compression))
            self.encoder.append(
                DenseLevel(
                    DenseBlock(style, channels, count, growth),
                    plan.build("encoder", level, full, spatial_dims),
                    nn.Identity() if last else Transition(style, full, kept),
                    nn.Identity() if last else plan.build("transition", level, kept, spatial_dims),
                )
            )
            channels = kept
        self.head = ClassificationHead(channels, num_classes, dropout, PreActivation(style, channels))

    def pretrained_names(self) -> dict[str, str]:
        """Return the names of the modules in published files of weights, each with its name here."""
        names = {"features.conv0": "stem.unit.conv", "features.norm0": "stem.unit.norm"}
        for level, part in enumerate(self.encoder):
            for index, _ in enumerate(part.get_submodule("block.layers").children()):
                theirs, ours = f"features.denseblock{level + 1}.denselayer{index + 1}", f"encoder.{level}.block.layers.{index}"
                for number, unit in enumerate(("narrow", "grow"), start=1):
                    names[f"{theirs}.norm{number}"] = f"{ours}.{unit}.pre.norm"
                    names[f"{theirs}.conv{number}"] = f"{ours}.{unit}.conv"
            if level < len(self.encoder) - 1:
                theirs, ours = f"features.transition{level + 1}", f"encoder.{level}.transition.unit"
                names[f"{theirs}.norm"], names[f"{theirs}.conv"] = f"{ours}.pre.norm", f"{ours}.conv"
        return {**names, "features.norm5": "head.before.norm", "classifier": "head.linear"}


densenet121 = preset(DenseClassifier, blocks=(6, 12, 24, 16))
"""121 layers."""

densenet169 = preset(DenseClassifier, blocks=(6, 12, 32, 32))
"""169 layers."""

densenet201 = preset(DenseClassifier, blocks=(6, 12, 48, 32))
"""201 layers."""


class DenseLevel(nn.Module):
    """A dense block, attention, the transition to the next level, attention."""

    def __init__(self, block: nn.Module, attention: nn.Module, transition: nn.Module, after_transition: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.transition = transition
        self.attention_after = after_transition

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to the channels and the size of the next level."""
        x = self.attention(self.block(x))
        return self.attention_after(self.transition(x))  # type: ignore[no-any-return]


class DenseBlock(nn.Module):
    """Layers that each see the maps of all layers before: (N, C, *spatial) to (N, C + layers · growth, *spatial)."""

    def __init__(self, style: ConvStyle, channels: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(style, channels + index * growth, growth) for index in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and what every layer adds."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class DenseLayer(nn.Module):
    """Convolutions, 1×1 to four times the growth, 3×3 to the growth: (N, C, *spatial) to (N, growth, *spatial)."""

    def __init__(self, style: ConvStyle, channels: int, growth: int) -> None:
        super().__init__()
        self.narrow = PreActivationUnit(style, channels, 4 * growth, 1)
        self.grow = PreActivationUnit(style, 4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer adds."""
        return self.grow(self.narrow(x))  # type: ignore[no-any-return]


class Transition(nn.Module):
    """A 1×1 convolution and means over blocks of two voxels along each axis: (N, C, *spatial) to (N, kept, *spatial / 2)."""

    def __init__(self, style: ConvStyle, channels: int, kept: int) -> None:
        super().__init__()
        self.unit = PreActivationUnit(style, channels, kept, 1)
        self.pool = average_pool(style.spatial_dims, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        return self.pool(self.unit(x))  # type: ignore[no-any-return]

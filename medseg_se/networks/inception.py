"""Inception modules with attention on their output, and the network of nine of them for classification and regression.

Szegedy et al., 2015, https://arxiv.org/abs/1409.4842, figure 2b and table 1 (GoogLeNet), with batch normalisation in place of
local response normalisation and without auxiliary classifiers; attention as in SE-Inception, Hu et al., 2018,
https://arxiv.org/abs/1709.01507, figure 2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_se.dims import ActivationName, NormName, max_pool
from medseg_se.errors import UsageError
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.classifier import ClassificationHead, Classifier
from medseg_se.networks.placement import AttentionPlan

GOOGLENET = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""The widths of the modules 3a to 5b, in the order of `InceptionModule`."""


class InceptionModule(nn.Module):
    """Convolutions of three sizes and a max-pool side by side, joined, and attention on the result.

    Args:
        in_channels: Channels of the input.
        widths: Channels as in the columns of the paper's table: of the 1×1 convolution; of the 1×1 convolution before the 3×3
            one, and of that one; the same for 5×5; and of the 1×1 convolution after the pool.
        spatial_dims: 2 or 3.
        attention: Attention on the joined branches (Identity when off).
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation.

    Attributes:
        out_channels: Channels of the output, those of the four branches together.

    Raises:
        UsageError: Not six widths above 0.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        spatial_dims: int = 3,
        attention: nn.Module | None = None,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
    ) -> None:
        super().__init__()
        self.out_channels = joined_channels(widths)
        one, before_three, three, before_five, five, after_pool = widths
        style = ConvStyle(spatial_dims, norm, activation)
        self.one = style.unit(in_channels, one, 1)
        self.three = nn.Sequential(style.unit(in_channels, before_three, 1), style.unit(before_three, three, 3))
        self.five = nn.Sequential(style.unit(in_channels, before_five, 1), style.unit(before_five, five, 5))
        self.pool = nn.Sequential(max_pool(spatial_dims, 1, 3), style.unit(in_channels, after_pool, 1))
        self.attention = attention or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to (N, out_channels, *spatial)."""
        joined = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)
        return self.attention(joined)  # type: ignore[no-any-return]


class Inception(Classifier):
    """A stem, stages of inception modules, each after a max-pool, the mean over space and a linear layer.

    Any input size works: strides round sizes up. Only where the last map is one voxel, normalisation over it is refused: batch
    normalisation in training on a single scan, and instance normalisation.

    Attention has one level per stage (GoogLeNet has three, at an 8th, a 16th and a 32nd of the size). Its places: "module" is
    after every inception module, "encoder" after every stage.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress.
        spatial_dims: 2 or 3.
        modules: The modules of each stage, each by the six widths of `InceptionModule`.
        stem_channels: Channels of the 7×7, 1×1 and 3×3 convolutions before the first stage.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation.
        dropout: Share of features dropped before the linear layer in training.
        attention: Name of an attention block, or one name a stage.
        attention_at: Where it sits.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    paper = "Szegedy et al., 2015, https://arxiv.org/abs/1409.4842"
    places = ("module", "encoder")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        modules: Sequence[Sequence[Sequence[int]]] = GOOGLENET,
        stem_channels: Sequence[int] = (64, 64, 192),
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.4,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("module",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        if not modules or not all(modules):
            raise UsageError(f"Expected `modules` to hold stages of at least one module each, but got {modules}.")
        if len(stem_channels) != 3 or min(stem_channels) < 1:
            raise UsageError(f"Expected `stem_channels` to be three positive numbers, but got {list(stem_channels)}.")
        plan = AttentionPlan.make(attention, attention_at, len(modules), attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation)
        self.norm_name = norm
        self.shrinkage = (2 ** (2 + len(modules)),) * spatial_dims
        first, second, entering = stem_channels
        self.stem = nn.Sequential(
            style.unit(in_channels, first, 7, 2),
            max_pool(spatial_dims, 2, 3),
            style.unit(first, second, 1),
            style.unit(second, entering, 3),
        )
        self.encoder = nn.ModuleList()
        for level, stage in enumerate(modules):
            blocks = []
            for widths in stage:
                leaving = joined_channels(widths)
                block = plan.build("module", level, leaving, spatial_dims)
                blocks.append(InceptionModule(entering, widths, spatial_dims, block, norm, activation))
                entering = leaving
            after = plan.build("encoder", level, entering, spatial_dims)
            parts = {"pool": max_pool(spatial_dims, 2, 3), "blocks": nn.Sequential(*blocks), "attention": after}
            self.encoder.append(nn.Sequential(OrderedDict(parts)))
        self.head = ClassificationHead(entering, num_classes, dropout)


def joined_channels(widths: Sequence[int]) -> int:
    """Return the channels of a module's four branches together.

    Raises:
        UsageError: Not six widths above 0.
    """
    if len(widths) != 6 or min(widths) < 1:
        raise UsageError(f"Expected the widths of an inception module to be six positive numbers, but got {list(widths)}.")
    one, _, three, _, five, after_pool = widths
    return one + three + five + after_pool

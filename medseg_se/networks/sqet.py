"""A classifier or regressor in the style of SQET, the squeeze-and-excitation transformer for brain age.

SQET: Squeeze and Excitation Transformer for High-accuracy Brain Age Estimation, IEEE BIBM 2022,
https://openreview.net/forum?id=w76M31qV38s. There is no public code, and the abstract says no more than that a squeeze and
excitation is fused with the self-attention of a transformer on the features of a CNN: what is below is our derivation. Where
tokens sit is told by a convolution, as in Chu et al., Conditional Positional Encodings, 2021, https://arxiv.org/abs/2102.10882.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention.se import SqueezeExcitation
from medseg_se.dims import ActivationName, NormName, Size, conv, per_axis
from medseg_se.errors import UsageError
from medseg_se.networks.base import Network, check_statistics, per_level
from medseg_se.networks.blocks import ConvBlock, ConvStyle, he_initialised
from medseg_se.networks.placement import AttentionPlan


class SQET(Network):
    """CNN stem, its voxels as tokens, transformer with gated self-attention, mean over the tokens, linear head.

    The authors report a mean absolute error of 2.55 years and r = .983 on 6,318 healthy T1 scans of nine public datasets;
    this network has not been trained on those. Any input size works of which more than one voxel is left at the last level of
    the stem, for instance normalisation to work on (with group normalisation: any). Time grows with the square of the number of
    tokens: a brain of 160 × 192 × 160 voxels has 1200 at the defaults.

    Args:
        in_channels: Channels of the scan.
        num_classes: Classes, or values to regress, such as one for the age.
        spatial_dims: 2 or 3.
        channels: Feature channels per level of the stem; the last ones are those of a token.
        strides: Stride into each level after the first: one entry a step, each a number or one number per axis; a single
            number stands for all steps.
        kernel_size: A number for all levels, or one entry a level (numbers or one number per axis).
        convs: Convolutions at each level of the stem: a number, or one a level.
        depth: Transformer layers.
        heads: Heads of the self-attention; they divide the channels of a token.
        mlp_ratio: Hidden channels of the multilayer perceptrons per channel of a token.
        gate: Whether squeeze and excitation gates what self-attention has gathered; without it this is a plain transformer.
        reduction: Of the gate: its hidden layer has ``max(1, channels[-1] // reduction)`` units.
        norm: Normalisation after each convolution of the stem.
        activation: Activation after each normalisation of the stem.
        dropout: Share dropped in training: of channels after each convolution, of numbers after each part of a layer.
        attention: Name of an attention block, or one name a level of the stem.
        attention_at: Where it sits; see `medseg_se.networks.placement.PLACES`.
        attention_options: Options of the attention block, or of each kind of block under its name.

    Raises:
        UsageError: An argument that makes no sense.
    """

    kind = "classification"
    paper = "SQET (our derivation), 2022, https://openreview.net/forum?id=w76M31qV38s"
    places = ("encoder", "pre_activation")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: int | Sequence[Size] = 2,
        kernel_size: int | Sequence[Size] = 3,
        convs: int | Sequence[int] = 2,
        depth: int = 4,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        gate: bool = True,
        reduction: int = 16,
        norm: NormName = "instance",
        activation: ActivationName = "leaky_relu",
        dropout: float = 0.0,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] = ("encoder",),
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        levels = len(channels)
        if levels < 1 or min(channels) < 1:
            raise UsageError(f"Expected `channels` to hold positive numbers, but got {list(channels)}.")
        width = channels[-1]
        if depth < 1 or heads < 1 or width % heads:
            raise UsageError(
                f"Expected `depth` to be at least 1 and `heads` to divide the {width} channels of a token, the last of "
                f"`channels`, but got {depth} and {heads}."
            )
        hidden = round(mlp_ratio * width)
        if hidden < 1:
            raise UsageError(f"Expected `mlp_ratio` to give at least one hidden channel, but got {mlp_ratio}.")
        steps = [
            (1,) * spatial_dims,
            *(per_axis(step, spatial_dims, "strides") for step in per_level(strides, levels - 1, "strides")),
        ]
        self.norm_name, self.shrinkage = norm, tuple(math.prod(along) for along in zip(*steps, strict=True))
        kernels = [per_axis(size, spatial_dims, "kernel_size") for size in per_level(kernel_size, levels, "kernel_size")]
        counts = per_level(convs, levels, "convs")
        plan = AttentionPlan.make(attention, attention_at, levels, attention_options, self.places)
        style = ConvStyle(spatial_dims, norm, activation, dropout)

        def block(level: int) -> ConvBlock:
            entering, leaving = channels[level - 1] if level else in_channels, channels[level]
            after = plan.build("encoder", level, leaving, spatial_dims)
            before = plan.build("pre_activation", level, leaving, spatial_dims)
            return ConvBlock(style, entering, leaving, kernels[level], steps[level], counts[level], after, before)

        self.encoder = nn.Sequential(*map(block, range(levels)))
        self.position = he_initialised(conv(spatial_dims, width, width, 3, groups=width))
        self.transformer = nn.Sequential(
            *(
                GatedTransformerLayer(
                    width, heads, hidden, dropout, SqueezeExcitation(width, spatial_dims, reduction) if gate else nn.Identity()
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = _linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map scans (N, C, *spatial) to (N, num_classes).

        Raises:
            UsageError: Not a map of this network's axes and channels, or one that is too small.
        """
        self.check_input(x)
        check_statistics(x, self.norm_name, self.shrinkage, self.training)
        x = self.encoder(x)
        x = x + self.position(x)
        tokens = self.transformer(x.movedim(1, -1)).flatten(1, -2)
        return self.head(self.norm(tokens.mean(1)))  # type: ignore[no-any-return]

    def last_maps(self) -> nn.Module:
        """Return the module that puts out the last maps: the stem, for every token has looked at all others."""
        return self.encoder


class GatedTransformerLayer(nn.Module):
    """``x ← x + y ⊙ s`` with y = attention(norm(x)) and s = σ(W₂ relu(W₁ mean(y))); then ``x ← x + mlp(norm(x))``.

    Args:
        channels: Channels of a token.
        heads: Heads of the self-attention.
        hidden: Hidden channels of the multilayer perceptron.
        dropout: Share of numbers dropped after attention, and after each layer of the perceptron, in training.
        gate: What recalibrates what each token has gathered, as a map (Identity when off).
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float, gate: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        # No biases here: one for all keys changes no softmax, and the norm before has its own.
        self.queries_keys_values = _linear(channels, 3 * channels, bias=False)
        self.project = nn.Sequential(_linear(channels, channels), nn.Dropout(dropout))
        self.gate = gate
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            _linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), _linear(hidden, channels), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, *grid, C) to tokens of the same shape."""
        gathered = self.attend(self.attention_norm(x))
        x = x + self.gate(gathered.movedim(-1, 1)).movedim(1, -1)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        """Let every token (N, *grid, C) gather from all others, head by head."""
        size = x.shape[-1] // self.heads
        parts = self.queries_keys_values(x).reshape(len(x), -1, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind()
        gathered = F.scaled_dot_product_attention(queries, keys, values)
        return self.project(gathered.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def _linear(in_channels: int, out_channels: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer initialised as is usual for transformers."""
    layer = nn.Linear(in_channels, out_channels, bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer

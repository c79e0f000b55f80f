"""Concurrent spatial and channel squeeze and excitation (scSE).

Roy et al., 2018, https://arxiv.org/abs/1803.02579, section 2.3; the ways to join the two branches are compared in Roy et
al., Recalibrating Fully Convolutional Networks with Spatial and Channel "Squeeze & Excitation" Blocks, IEEE TMI 2019,
https://arxiv.org/abs/1808.08127, section III-D.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.sse import SpatialSE
from medseg_se.attention.tiles import is_recorded
from medseg_se.dims import conv
from medseg_se.errors import unknown_name

Aggregation = Literal["max", "add", "multiply", "concat"]
_AGGREGATIONS = ("max", "add", "multiply", "concat")


class ChannelSpatialSE(Recalibration):
    """Join the channel-wise and the voxel-wise recalibration of a map.

    The branches are joined as recalibrated *maps*: for negative activations the largest map is not the map of the largest
    gate.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: Of the channel branch, see `ChannelSE`.
        aggregation: "max" (the authors' choice), "add", "multiply" or "concat". "multiply" squares the activations, and so
            overflows float16 beyond 255 or so. "concat" brings both maps back to C channels with a 1×1 convolution, so that
            the block fits where any other does.
        bias: Whether the layers of both branches, and of "concat", have biases.
    """

    label = "scSE"

    def __init__(
        self, channels: int, spatial_dims: int, reduction: int = 2, aggregation: Aggregation = "max", bias: bool = True
    ) -> None:
        super().__init__()
        if aggregation not in _AGGREGATIONS:
            raise unknown_name("aggregation", aggregation, _AGGREGATIONS)
        self.channels, self.spatial_dims, self.aggregation = channels, spatial_dims, aggregation
        self.channel = ChannelSE(channels, spatial_dims, reduction, bias)
        self.spatial = SpatialSE(channels, spatial_dims, bias)
        if aggregation == "concat":
            self.join = conv(spatial_dims, 2 * channels, channels, 1, bias=bias)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the channel gate, the spatial projection, and for "concat" the weights (C, 2C) and bias that join the maps."""
        join: tuple[Tensor, ...] = ()
        if self.aggregation == "concat":
            weight, *bias = self.join.parameters()
            join = (weight.flatten(1), *(value.reshape(1, -1, *[1] * self.spatial_dims) for value in bias))
        return *self.channel.gates(*statistics), *self.spatial.gates(), *join

    def apply_gates(self, a: Tensor, *gates: Tensor) -> Tensor:
        """Recalibrate twice and join the maps."""
        channel, spatial, join = self._split(a, gates)
        if self.aggregation == "max":
            return larger(a * channel, a * spatial)
        if self.aggregation == "add":
            return a * (channel + spatial)
        if self.aggregation == "multiply":
            return (a * channel) * (a * spatial)
        weight, *bias = join
        joined: Tensor = (weight @ torch.cat([a * channel, a * spatial], dim=1).flatten(2)).unflatten(2, a.shape[2:])
        return joined + bias[0] if bias else joined

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return both gates."""
        channel, spatial, _ = self._split(a, gates)
        return {"channel": channel, "spatial": spatial}

    def _split(self, a: Tensor, gates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the channel gate, the spatial gate and what joins the maps."""
        count = 1 + len(list(self.spatial.parameters()))
        return gates[0], self.spatial.gate(a, *gates[1:count]), gates[count:]


def larger(a: Tensor, b: Tensor) -> Tensor:
    """Return the elementwise maximum; its gradient needs no masks, which `torch.maximum` fills slowly on CPUs."""
    return torch.maximum(a, b) if is_recorded(a) else _Larger.apply(a, b)  # type: ignore[no-any-return, no-untyped-call]


class _Larger(torch.autograd.Function):
    """The gradient goes to the larger of the two, and half to each where they are equal."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        first = grad * ((a - b).sign() + 1) * 0.5
        return first, grad - first

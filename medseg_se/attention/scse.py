"""Concurrent spatial and channel squeeze and excitation (scSE).

Roy et al., 2018, https://arxiv.org/abs/1803.02579, section 2.3; the ways to join the two branches are compared in Roy et
al., Recalibrating Fully Convolutional Networks with Spatial and Channel "Squeeze & Excitation" Blocks, IEEE TMI 2019,
https://arxiv.org/abs/1808.08127, section III-D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.precision import flat_parameters, mixed_channels
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.sse import SpatialSE
from medseg_se.attention.tiles import larger
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
            weight, *bias = flat_parameters(self.join)
            join = (weight, *(value.reshape(1, -1, *[1] * self.spatial_dims) for value in bias))
        return *self.channel.gates(*statistics), *self.spatial.gates(), *join

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Recalibrate twice and join the maps."""
        channel, spatial, join = self._split(a, gates)
        if self.aggregation == "max":
            return larger(a * channel, a * spatial, out)
        if self.aggregation == "add":
            return torch.mul(a, channel + spatial, out=out)
        if self.aggregation == "multiply":
            return torch.mul(a * channel, a * spatial, out=out)
        weight, *bias = join
        joined = mixed_channels(weight, torch.cat([a * channel, a * spatial], dim=1))
        return torch.add(joined, bias[0] if bias else 0, out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...] | None:
        """Return the gradients of the map and of the gates for "max"; half goes to each branch where they are equal.

        With s = sign(a·(channel − spatial)), the larger gate is ½(channel + spatial) + ½s·(channel − spatial).
        """
        if self.aggregation != "max":
            return None
        channel, spatial, _ = self._split(a, gates)
        half = (channel - spatial).mul_(0.5)
        first = (a * half).sign_()
        d_a = torch.addcmul(spatial + half, first, half).mul_(dy)
        both = dy * a
        first.mul_(both)
        axes = tuple(range(2, a.ndim))
        d_channel = 0.5 * (both.sum(axes, keepdim=True) + first.sum(axes, keepdim=True))
        d_spatial = 0.5 * (both.sum(1, keepdim=True) - first.sum(1, keepdim=True))
        weight, d_logit, *d_projection = self.spatial.gate_gradient(d_spatial, spatial, a, *gates[1:])
        return d_a.addcmul_(weight, d_logit), d_channel, *d_projection

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return both gates."""
        channel, spatial, _ = self._split(a, gates)
        return {"channel": channel, "spatial": spatial}

    def _split(self, a: Tensor, gates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the channel gate, the spatial gate and what joins the maps."""
        count = 1 + len(self.spatial.gates())
        return gates[0], self.spatial.gate(a, *gates[1:count]), gates[count:]

"""Concurrent spatial and channel squeeze and excitation (scSE).

Roy et al., 2018, https://arxiv.org/abs/1803.02579, section 2.3; the ways to join the two branches are compared in Roy et
al., Recalibrating Fully Convolutional Networks with Spatial and Channel "Squeeze & Excitation" Blocks, IEEE TMI 2019,
https://arxiv.org/abs/1808.08127, section III-D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_map
from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.sse import SpatialSE
from medseg_se.errors import unknown_name

Aggregation = Literal["max", "add", "multiply"]


class ChannelSpatialSE(nn.Module):
    """Join the channel-wise and the voxel-wise recalibration of a map.

    The branches are joined as recalibrated *maps*: for negative activations the largest map is not the map of the largest
    gate.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: Of the channel branch, see `ChannelSE`.
        aggregation: "max" (the authors' choice), "add" or "multiply"; the last squares the activations, and so overflows
            float16 beyond 255 or so.
        bias: Whether the layers of both branches have biases.
    """

    def __init__(
        self, channels: int, spatial_dims: int, reduction: int = 2, aggregation: Aggregation = "max", bias: bool = True
    ) -> None:
        super().__init__()
        if aggregation not in ("max", "add", "multiply"):
            raise unknown_name("aggregation", aggregation, ("max", "add", "multiply"))
        self.channels, self.spatial_dims, self.aggregation = channels, spatial_dims, aggregation
        self.channel = ChannelSE(channels, spatial_dims, reduction, bias)
        self.spatial = SpatialSE(channels, spatial_dims, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate ``x`` (N, C, *spatial)."""
        check_map(x, self.channels, self.spatial_dims, "scSE")
        channel_gate, spatial_gate = self.channel.gate(x).to(x.dtype), self.spatial.gate(x).to(x.dtype)
        if self.aggregation == "max":
            return torch.maximum(x * channel_gate, x * spatial_gate)
        if self.aggregation == "add":
            return x * (channel_gate + spatial_gate)
        return (x * channel_gate) * (x * spatial_gate)

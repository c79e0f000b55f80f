"""Spatial squeeze and excitation (sSE).

Roy et al., Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, 2018,
https://arxiv.org/abs/1803.02579, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments, check_map
from medseg_se.attention.precision import in_float32
from medseg_se.dims import conv


class SpatialSE(nn.Module):
    """Scale each voxel by a gate computed from its own channels: ``x · σ(conv₁ₓ₁(x))``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        bias: Whether the 1×1 convolution has a bias.
    """

    def __init__(self, channels: int, spatial_dims: int, bias: bool = True) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims)
        self.channels, self.spatial_dims = channels, spatial_dims
        self.project = conv(spatial_dims, channels, 1, 1, bias=bias)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate (N, 1, *spatial) in (0, 1), computed in float32 (float64 stays)."""
        return torch.sigmoid(in_float32(self.project, x))

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate ``x`` (N, C, *spatial)."""
        check_map(x, self.channels, self.spatial_dims, "sSE")
        return x * self.gate(x).to(x.dtype)

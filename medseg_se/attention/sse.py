"""Spatial squeeze and excitation (sSE).

Roy et al., Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, 2018,
https://arxiv.org/abs/1803.02579, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.recalibration import Recalibration
from medseg_se.dims import conv


class SpatialSE(Recalibration):
    """Scale each voxel by a gate computed from its own channels: ``x · σ(conv₁ₓ₁(x))``.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        bias: Whether the 1×1 convolution has a bias.
    """

    label = "sSE"

    def __init__(self, channels: int, spatial_dims: int, bias: bool = True) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims)
        self.channels, self.spatial_dims = channels, spatial_dims
        self.project = conv(spatial_dims, channels, 1, 1, bias=bias)

    def statistic(self) -> None:
        """Nothing: a voxel's gate depends on the voxel alone."""

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the weights (1, C) and the bias (1) of the projection."""
        return tuple(parameter.flatten() if parameter.ndim == 1 else parameter.flatten(1) for parameter in self.project.parameters())

    def gate(self, a: Tensor, *projection: Tensor) -> Tensor:
        """Return the gate (N, 1, *spatial) in (0, 1)."""
        weight, *bias = projection
        logit = (weight @ a.flatten(2)).unflatten(2, a.shape[2:])
        return torch.sigmoid(logit + bias[0] if bias else logit)

    def apply_gates(self, a: Tensor, *gates: Tensor) -> Tensor:
        """Scale the voxels."""
        return a * self.gate(a, *gates)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the spatial gate."""
        return {"spatial": self.gate(a, *gates)}

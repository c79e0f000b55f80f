"""Spatial squeeze and excitation (sSE).

Roy et al., Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, 2018,
https://arxiv.org/abs/1803.02579, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.precision import flat_parameters, mixed_channels
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
        return flat_parameters(self.project)

    def gate(self, a: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        """Return the gate (N, 1, *spatial) in (0, 1)."""
        logit = mixed_channels(weight, a)
        return torch.sigmoid(logit + bias[0] if bias else logit)

    def gate_gradient(self, d_gate: Tensor, gate: Tensor, a: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of the map, as two factors, and those of the projection."""
        d_logit = d_gate * gate * (1 - gate)
        d_weight = (a.flatten(2) @ d_logit.flatten(2).mT).sum(0).mT
        return weight.reshape(1, -1, *[1] * self.spatial_dims), d_logit, d_weight, *(d_logit.sum().reshape(1) for _ in bias)

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the voxels."""
        return torch.mul(a, self.gate(a, *gates), out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the projection."""
        gate = self.gate(a, *gates)
        weight, d_logit, *d_projection = self.gate_gradient((dy * a).sum(1, keepdim=True), gate, a, *gates)
        return (dy * gate).addcmul_(weight, d_logit), *d_projection

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the spatial gate."""
        return {"spatial": self.gate(a, *gates)}

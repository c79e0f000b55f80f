"""SimAM, an attention without parameters.

Yang et al., SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks, 2021,
https://proceedings.mlr.press/v139/yang21o.html, equation 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.statistics import Moments
from medseg_se.errors import UsageError


class SimAM(Recalibration):
    """Scale each voxel by how far it lies from its channel's mean: ``x · σ((x − μ)² / 4(v + λ) + ½)``.

    v is the unbiased variance of the channel; that of a map of one voxel counts as 0.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        smoothing: λ; the authors take 1e-4, and 0.1 on ImageNet.
    """

    label = "SimAM"

    def __init__(self, channels: int, spatial_dims: int, smoothing: float = 1e-4) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims)
        if not (smoothing > 0 and math.isfinite(smoothing)):
            raise UsageError(f"Expected `smoothing` to be above 0, but got {smoothing}.")
        self.channels, self.spatial_dims, self.smoothing = channels, spatial_dims, smoothing

    def statistic(self) -> Moments:
        """Mean and variance of every channel."""
        return Moments(unbiased=True)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return μ and 1 / √4(v + λ), each (N, C, 1, 1[, 1])."""
        mean, variance = statistics
        return mean, torch.rsqrt(4 * (variance + self.smoothing))

    def gate(self, a: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the gate (N, C, *spatial) in (½, 1)."""
        z = (a - mean) * scale
        return z.square().add_(0.5).sigmoid_()

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the voxels of every channel."""
        return torch.mul(a, self.gate(a, *gates), out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map, of μ and of 1 / √4(v + λ)."""
        mean, scale = gates
        z = (a - mean) * scale
        gate = z.square().add_(0.5).sigmoid_()
        d_z = torch.ops.aten.sigmoid_backward(dy * a, gate).mul_(z)  # half of it: z² counts twice
        axes = tuple(range(2, a.ndim))
        d_scale = 2 * (d_z * z).sum(axes, keepdim=True) / scale
        d_a = d_z.mul_(2 * scale)
        d_mean = -d_a.sum(axes, keepdim=True)
        return d_a.addcmul_(dy, gate), d_mean, d_scale

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gate of every voxel and channel."""
        return {"voxel": self.gate(a, *gates)}

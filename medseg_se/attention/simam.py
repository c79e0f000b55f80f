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
        return torch.sigmoid(((a - mean) * scale).square() + 0.5)

    def apply_gates(self, a: Tensor, *gates: Tensor) -> Tensor:
        """Scale the voxels of every channel."""
        return a * self.gate(a, *gates)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gate of every voxel and channel."""
        return {"voxel": self.gate(a, *gates)}

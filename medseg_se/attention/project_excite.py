"""Project & Excite (PE).

Rickmann et al., 'Project & Excite' Modules for Segmentation of Volumetric Medical Scans, 2019,
https://arxiv.org/abs/1906.04649, section 2; the same with two axes is its form for 2D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.precision import flat_parameters
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.statistics import Averages, profiles


class ProjectExcite(Recalibration):
    """Scale each voxel of each channel by a gate computed from the means of the slices that it lies in.

    ``x · σ(W₂ relu(W₁ (p_D + p_H + p_W)))``, where the profile p_D, (N, C, D), is the mean over the other axes.

    W₁ of the sum is the sum of W₁ of the profiles, which are small. Only what follows it is done voxel by voxel.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
    """

    label = "PE"

    def __init__(self, channels: int, spatial_dims: int, reduction: int = 2) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        self.channels, self.spatial_dims = channels, spatial_dims
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def statistic(self) -> Averages:
        """One profile along every axis."""
        return profiles(self.spatial_dims)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the terms of the hidden layer, one along each axis, and the weights (C, hidden) and bias (C, 1) after it."""
        joint = torch.cat([profile.flatten(2) for profile in statistics], dim=2)
        w_1, b_1, w_2, b_2 = (
            parameter.to(joint.dtype) for layer in (self.squeeze, self.excite) for parameter in flat_parameters(layer)
        )
        first, *rest = torch.split(w_1 @ joint, [profile.shape[2:].numel() for profile in statistics], dim=2)
        terms = (first + b_1[:, None], *rest)
        shaped = (term.reshape(*term.shape[:2], *profile.shape[2:]) for term, profile in zip(terms, statistics, strict=True))
        return *shaped, w_2, b_2[:, None]

    def gate(self, *gates: Tensor) -> Tensor:
        """Return the gate (N, C, *spatial) in (0, 1)."""
        *terms, weight, bias = gates
        hidden = terms[0]
        for term in terms[1:]:
            hidden = hidden + term
        logit = weight @ torch.relu(hidden).flatten(2) + bias
        return torch.sigmoid(logit).reshape(*logit.shape[:2], *hidden.shape[2:])

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the voxels of every channel."""
        return torch.mul(a, self.gate(*gates), out=out)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gate of every voxel and channel."""
        return {"voxel": self.gate(*gates)}

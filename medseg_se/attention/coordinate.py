"""Coordinate attention.

Hou et al., Coordinate Attention for Efficient Mobile Network Design, 2021, https://arxiv.org/abs/2103.02907, equations 4 to
9; in 3D there is a third axis with an encoding and a gate of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.norms import GateNorm, GateNormName
from medseg_se.attention.precision import flat_parameters
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.statistics import Averages, profiles
from medseg_se.errors import UsageError, unknown_name

CoordinateActivation = Literal["h_swish", "relu", "silu"]

_ACTIVATIONS = {"h_swish": F.hardswish, "relu": F.relu, "silu": F.silu}


class CoordinateAttention(Recalibration):
    """Scale each voxel by one gate per axis, which depends on the channel and on the place along that axis.

    ``x · a_D · a_H · a_W`` with ``a = σ(W_axis f)``, where f = δ(norm(W z)) encodes the profiles z, the means over all axes but
    one. W, norm and δ are shared by the axes: they work on the profiles one after the other, D, H, W.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The encoding has ``max(min_hidden, channels // reduction)`` channels.
        min_hidden: See there.
        norm: "batch" (the authors' choice; its statistics run over samples and places, so that one sample is enough to
            train), "layer", "group" or "none", see `GateNorm`.
        activation: δ: "h_swish" (the authors' choice), "relu" or "silu".
    """

    label = "coordinate attention"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        reduction: int = 32,
        min_hidden: int = 8,
        norm: GateNormName = "batch",
        activation: CoordinateActivation = "h_swish",
    ) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        if min_hidden < 1:
            raise UsageError(f"Expected `min_hidden` to be at least 1, but got {min_hidden}.")
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self.channels, self.spatial_dims, self.activation = channels, spatial_dims, activation
        hidden = max(min_hidden, channels // reduction)
        self.encode = nn.Linear(channels, hidden)
        self.norm = GateNorm(norm, hidden)
        self.excite = nn.ModuleList(nn.Linear(hidden, channels) for _ in range(spatial_dims))

    def statistic(self) -> Averages:
        """One profile along every axis."""
        return profiles(self.spatial_dims)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return a_D (N, C, D, 1, 1), a_H (N, C, 1, H, 1) and a_W (N, C, 1, 1, W), in 2D the last two, in (0, 1)."""
        joint = torch.cat([profile.flatten(2) for profile in statistics], dim=2)
        encoding = _ACTIVATIONS[self.activation](self.norm(_mixed(self.encode, joint)))
        pieces = torch.split(encoding, [profile.shape[2:].numel() for profile in statistics], dim=2)
        logits = [_mixed(excite, piece) for excite, piece in zip(self.excite, pieces, strict=True)]
        return tuple(torch.sigmoid(logit).reshape(z.shape) for logit, z in zip(logits, statistics, strict=True))

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the voxels."""
        product = gates[-1]
        for gate in reversed(gates[:-1]):  # the last axes first: without the first one the product is small
            product = product * gate
        return torch.mul(a, product, out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the gates."""
        first, *others = gates
        product = others[0] if len(others) == 1 else others[0] * others[1]  # (n, C, 1, H, W), in 2D (n, C, 1, W)
        both = dy * a
        d_first = (both * product).sum(tuple(range(3, a.ndim)), keepdim=True)
        d_product = both.mul_(first).sum(2, keepdim=True)
        if len(others) == 1:
            return dy * (first * product), d_first, d_product
        d_others = ((d_product * others[1]).sum(4, keepdim=True), (d_product * others[0]).sum(3, keepdim=True))
        return dy * (first * product), d_first, *d_others

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gates along the axes."""
        return {f"axis {axis}": gate for axis, gate in enumerate(gates)}


def _mixed(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer to the channels of (N, C, length), in the type of ``x``."""
    weight, bias = (parameter.to(x.dtype) for parameter in flat_parameters(layer))
    return weight @ x + bias[:, None]

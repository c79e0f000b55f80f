"""Squeeze and excitation with a squeeze that keeps some of where things are: SPSE and RGSE.

Jin et al., Delving Deep into Spatial Pooling for Squeeze-and-Excitation Networks, 2022,
https://doi.org/10.1016/j.patcog.2021.108159, section 3.2: averages over regions, then each channel's averages joined by
weights of its own, then the gate of an SE block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_arguments
from medseg_se.attention.norms import GateNorm, GateNormName
from medseg_se.attention.precision import in_float32
from medseg_se.attention.recalibration import ChannelGate
from medseg_se.attention.statistics import Averages
from medseg_se.errors import UsageError


class _PooledSE(ChannelGate):
    """Averages over grids of g regions along each axis; `fuse` joins those of each grid, and the sums make the gate."""

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        grids: tuple[int, ...],
        reduction: int,
        norm: GateNormName,
        bias: bool,
    ) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims, reduction)
        self.channels, self.spatial_dims, self.grids = channels, spatial_dims, grids
        hidden = max(1, channels // reduction)
        depthwise = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.fuse = nn.ModuleList(depthwise(channels, channels, grid, groups=channels, bias=bias) for grid in grids)
        self.norm = GateNorm(norm, channels)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def statistic(self) -> Averages:
        """The averages over every grid; regions overlap where the grid is finer than the map."""
        return Averages(*((grid,) * self.spatial_dims for grid in self.grids))

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the gate (N, C, 1, 1[, 1]) in (0, 1) for the averages."""
        fused = [in_float32(layer, averages) for layer, averages in zip(self.fuse, statistics, strict=True)]
        descriptor = torch.relu(self.norm(torch.stack(fused).sum(0).flatten(1)))
        hidden = torch.relu(in_float32(self.squeeze, descriptor))
        return (torch.sigmoid(in_float32(self.excite, hidden)).reshape(fused[0].shape),)


class PyramidSE(_PooledSE):
    """Scale each channel by a gate computed from averages over 1, 2 and 4 regions along each axis (SPSE).

    x · σ(W₂ relu(W₁ relu(norm(Σ_g Σ_regions w_g ⊙ mean_g(x) + b_g)))), the w_g and b_g being each channel's own.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
        norm: See `GateNorm`; it sees one value per sample and channel. "batch" is the authors' choice and cannot train on
            one scan at a time; "layer", between the layers of a gate as in GCNet (https://arxiv.org/abs/1904.11492), can.
    """

    label = "SPSE"

    def __init__(self, channels: int, spatial_dims: int, reduction: int = 16, norm: GateNormName = "layer") -> None:
        super().__init__(channels, spatial_dims, (1, 2, 4), reduction, norm, bias=True)


class GridSE(_PooledSE):
    """Scale each channel by a gate computed from averages over one fixed grid of regions (RGSE).

    As `PyramidSE`, with one grid and without the b_g. The authors pool 7×7 pixels whatever the size of the map, which comes
    to this grid for their pictures of 224×224; pooling to the grid suits maps of any size.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        grid: Regions along each axis: the authors take 8, 4 and 2 from the first stage on.
        reduction: As of `PyramidSE`.
        norm: As of `PyramidSE`.
    """

    label = "RGSE"

    def __init__(
        self, channels: int, spatial_dims: int, grid: int = 4, reduction: int = 16, norm: GateNormName = "layer"
    ) -> None:
        if grid < 1:
            raise UsageError(f"Expected `grid` to be at least 1, but got {grid}.")
        super().__init__(channels, spatial_dims, (grid,), reduction, norm, bias=False)

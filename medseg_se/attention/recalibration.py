"""What nearly all blocks are: statistics of a map, gates computed from them, and the map changed voxel by voxel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from medseg_se.attention.checks import check_map
from medseg_se.attention.modes import evaluated
from medseg_se.attention.statistics import Averages
from medseg_se.attention.tiles import Statistic, compute_type, full_precision, modulate, summarise


class Recalibration(nn.Module):
    """A block in three steps: squeeze (`statistic`), excite (`gates`) and scale (`apply_gates`).

    The base runs them so that training keeps nothing of the map's size besides the input; see `tiles`. All three compute in
    float32 (float64 for such maps).

    Attributes:
        label: How the block is called in the literature.
        channels: Channels of the map.
        spatial_dims: 2 or 3.
    """

    label: ClassVar[str]
    channels: int
    spatial_dims: int

    def __init_subclass__(cls) -> None:
        """A class that changes the map in its own way does not inherit a derivative written for another."""
        super().__init_subclass__()
        if "derivative" not in vars(cls) and {"apply_gates", "gate"} & set(vars(cls)):
            cls.derivative = Recalibration.derivative  # type: ignore[method-assign]

    def statistic(self) -> Statistic | None:
        """What is asked about the map: by default the mean of every channel."""
        return Averages((1,) * self.spatial_dims)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Compute from the statistics, and from parameters, what `apply_gates` takes beside the map."""
        raise NotImplementedError

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the map changed, in `out` if given: voxel by voxel, so that the map can come in tiles."""
        raise NotImplementedError

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...] | None:
        """Return the gradients of the map and of the gates, given that of the result; None leaves it to autograd."""
        return None

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gates as a reader would look at them, each (N, C or 1, *spatial or 1)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate ``x`` (N, C, *spatial)."""
        x, gates = self.gated(x)
        return modulate(self.apply_gates, x, *gates, derivative=self.derivative)

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates that `forward` uses on ``x``, as `views` names them, in evaluation."""
        with evaluated(self), full_precision(x):
            x, gates = self.gated(x)
            return self.views(x.to(compute_type(x)), *gates)

    def gated(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x``, to be used from here on, and the gates for it."""
        check_map(x, self.channels, self.spatial_dims, self.label)
        statistic = self.statistic()
        statistics: list[Tensor] = []
        if statistic is not None:
            x, *statistics = summarise(statistic, x)
        with full_precision(x):
            return x, self.gates(*statistics)


class ChannelGate(Recalibration):
    """A block with one gate (N, C, 1, 1[, 1]) that scales the channels."""

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale the channels."""
        return torch.mul(a, gates[0], out=out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the gate."""
        return dy * gates[0], (dy * a).sum(tuple(range(2, a.ndim)), keepdim=True)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the channel gate."""
        return {"channel": gates[0]}

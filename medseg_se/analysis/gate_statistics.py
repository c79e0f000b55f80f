"""Statistics of gates that arrive pass by pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_se.errors import DataError

CLOSED, OPEN = 0.05, 0.95
"""Gates below the first count as closed, above the second as open."""


@dataclass(frozen=True)
class GateStatistics:
    """Gates of one kind at one insertion point, over every value of every pass.

    Attributes:
        n: Number of values.
        mean: Their mean.
        sd: Their standard deviation, n in the denominator.
        minimum: The lowest.
        p5: 5th percentile; percentiles are rounded to half precision, about 0.0005 near 1.
        p25: 25th percentile.
        median: 50th percentile.
        p75: 75th percentile.
        p95: 95th percentile.
        maximum: The highest.
        closed: Share below `CLOSED`.
        open: Share above `OPEN`.
        channel_means: Mean of each channel; None for gates that all channels share.
    """

    n: int
    mean: float
    sd: float
    minimum: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    maximum: float
    closed: float
    open: float
    channel_means: tuple[float, ...] | None


class GateSummary:
    """Statistics of gates that arrive pass by pass; what it keeps does not grow with their number."""

    def __init__(self) -> None:
        self.n = self.closed = self.open = 0
        self.squares, self.minimum, self.maximum = 0.0, math.inf, -math.inf
        self.sums: npt.NDArray[np.float64] = np.zeros(0)
        self.counts: npt.NDArray[np.int64] = np.zeros(2**16, dtype=np.int64)  # of each value that half precision has

    def add(self, gate: Tensor) -> None:
        """Count in gates (N, C or 1, *spatial or 1).

        Raises:
            DataError: A gate is not finite.
        """
        gate = gate.detach().float()
        if not torch.isfinite(gate).all():
            raise DataError("A gate of the network is not finite; the scan's intensities or the checkpoint are out of order.")
        sums = gate.double().sum(dim=(0, *range(2, gate.ndim))).cpu().numpy()
        self.sums = self.sums + sums if self.sums.size else sums
        self.n += gate.numel()
        self.squares += float(gate.double().square().sum())
        self.minimum, self.maximum = min(self.minimum, float(gate.min())), max(self.maximum, float(gate.max()))
        self.closed += int((gate < CLOSED).sum())
        self.open += int((gate > OPEN).sum())
        values = gate.flatten()
        for start in range(0, len(values), 2**20):
            bins = values[start : start + 2**20].half().view(torch.int16).int() & 0xFFFF
            self.counts += torch.bincount(bins, minlength=2**16).cpu().numpy()

    def result(self) -> GateStatistics:
        """Return the statistics of what was counted in, at least one gate."""
        mean = float(self.sums.sum()) / self.n
        sd = math.sqrt(max(0.0, self.squares / self.n - mean**2))
        p5, p25, median, p75, p95 = self._percentiles(5, 25, 50, 75, 95)
        channels = len(self.sums)
        means = tuple((self.sums * channels / self.n).tolist()) if channels > 1 else None
        shares = self.closed / self.n, self.open / self.n
        return GateStatistics(self.n, mean, sd, self.minimum, p5, p25, median, p75, p95, self.maximum, *shares, means)

    def _percentiles(self, *wanted: float) -> list[float]:
        present = np.flatnonzero(self.counts)
        values = present.astype(np.uint16).view(np.float16).astype(float)
        order = np.argsort(values)
        reached = np.cumsum(self.counts[present][order])
        places = np.searchsorted(reached, [share / 100 * self.n for share in wanted])
        return [float(np.clip(value, self.minimum, self.maximum)) for value in values[order][places]]

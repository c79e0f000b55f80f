"""Intensity schemes: how the values of one channel become what a network sees.

Statistics are taken in float64, piece by piece, so that a large scan needs no second copy of itself; the result is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Intensity = Literal["zscore", "zscore_nonzero", "percentile", "minmax", "window", "dataset", "none"]
Window = tuple[float, float]
PIECE = 2**16  # values at a time: as float64 they stay in a processor's cache
TAIL = 0.005  # share of the values that "percentile" clips at either end


@dataclass(frozen=True)
class Scaling:
    """How one channel is scaled; see `Preprocessing` for what the schemes do.

    Attributes:
        scheme: The name of the scheme.
        window: Lower and upper intensity of "window" and "dataset".
        mean: What "dataset" subtracts.
        deviation: What "dataset" divides by.
    """

    scheme: Intensity
    window: Window
    mean: float
    deviation: float

    def __call__(self, channel: Array) -> Array:
        """Return a scaled copy of `channel` (I, J, K), float32. Where its own statistics count, a constant one becomes 0."""
        if self.scheme == "none":
            return channel.astype(np.float32)
        if self.scheme == "window":
            low, high = self.window
            return _standardised(np.clip(channel, low, high), (low + high) / 2, (high - low) / 2)
        if self.scheme == "dataset":
            return _standardised(np.clip(channel, *self.window), self.mean, self.deviation)
        if not channel.max() > channel.min():
            return np.zeros(channel.shape, dtype=np.float32)
        if self.scheme == "minmax":
            low, high = float(channel.min()), float(channel.max())
            return _standardised(channel, low, high - low)
        if self.scheme == "percentile":
            channel = np.clip(channel, *np.percentile(channel, [100 * TAIL, 100 * (1 - TAIL)]).astype(np.float32))
        inside = channel[channel != 0] if self.scheme == "zscore_nonzero" else channel
        if not inside.max() > inside.min():
            return np.zeros(channel.shape, dtype=np.float32)
        scaled = _standardised(channel, *mean_and_deviation(inside))
        if self.scheme == "zscore_nonzero":
            scaled[channel == 0] = 0
        return scaled


def mean_and_deviation(values: Array) -> tuple[float, float]:
    """Return mean and standard deviation of all `values`, without the loss of digits that float32 sums suffer."""
    mean = math.fsum(float(piece.sum()) for piece in _pieces(values)) / values.size
    square = math.fsum(float(np.square(piece - mean).sum()) for piece in _pieces(values)) / values.size
    return mean, math.sqrt(square)


def _standardised(values: Array, centre: float, unit: float) -> Array:
    """Return (values - centre) / unit, computed in float64 and kept as float32."""
    result = np.empty(values.size, dtype=np.float32)
    place = 0
    for piece in _pieces(values):
        result[place : place + piece.size] = (piece - centre) / unit
        place += piece.size
    return result.reshape(values.shape)


def _pieces(values: Array) -> Iterator[Array]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        yield flat[start : start + PIECE].astype(np.float64)

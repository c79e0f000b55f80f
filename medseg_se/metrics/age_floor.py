"""The least error with which an age can be told from a brain that looks older or younger than it is.

The age a is uniform on [L, H], what can be seen is b = a + N(0, σ²). Given b, the age has the normal density N(b, σ²) cut off
at L and H. Its median m(b) has the least expected absolute error of all answers, its mean the greatest correlation. With φ and
Φ of the standard normal, t = (b - L) / σ and w = (H - L) / σ,

    m(b) = b + σ z(t),      z(t) = Φ⁻¹((Φ(-t) + Φ(w - t)) / 2),
    E|a - m(b)| = σ / w ∫ (2 φ(z(t)) - φ(-t) - φ(w - t)) dt = (2 σ / w) (∫ φ(z(t)) dt - 1),

since E(|x - z|; x in (α, β)) = 2 φ(z) - φ(α) - φ(β) where z parts the mass in halves, and the density of b is that mass
divided by H - L.
For w → ∞ it is σ √(2 / π), the error of reading b as the age; a narrower range makes it smaller, for what is known of the range
helps. `docs/brain_age.md` has the derivation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.special import ndtr, ndtri

Array = npt.NDArray[np.float64]
_FAR = 9.0  # standard deviations beyond the range, where the density of b is below 1e-18
_UNSEEN = 1e-12


@dataclass(frozen=True)
class AgeFloor:
    """Who the ages belong to and how well a brain tells them.

    Attributes:
        youngest: Years, L.
        oldest: Years, H.
        deviation: Standard deviation of what is seen from the age, σ, in years.
    """

    youngest: float
    oldest: float
    deviation: float

    def median(self, brain_age: npt.ArrayLike) -> Array:
        """Return the median of the age given what is seen, in years: the answer with the least mean absolute error."""
        seen = np.asarray(brain_age, dtype=np.float64)
        if self.deviation < _UNSEEN:
            return seen
        return seen + self.deviation * _median((seen - self.youngest) / self.deviation, self._width)

    def mae(self) -> float:
        """Return the mean absolute error of `median`, in years; no predictor has a smaller one on many people."""
        if self.deviation < _UNSEEN:
            return 0.0
        width = self._width
        inside = self._integral(lambda t: _normal(_median(np.array(t), width)) - (_normal(t) + _normal(width - t)) / 2)
        return 2 * self.deviation / width * inside

    def pearson(self) -> float:
        """Return the correlation of the mean of the age given what is seen with the age; no predictor has a greater one."""
        if self.deviation < _UNSEEN:
            return 1.0

        def explained(t: float) -> float:
            mass = float(ndtr(t) - ndtr(t - self._width))
            if mass < _UNSEEN:
                return 0.0
            mean = t + (_normal(t) - _normal(self._width - t)) / mass
            return mass * (mean - self._width / 2) ** 2

        return math.sqrt(self._integral(explained) / self._width / (self._width**2 / 12))

    @property
    def _width(self) -> float:
        return (self.oldest - self.youngest) / self.deviation

    def _integral(self, function: Callable[[float], float]) -> float:
        """Integrate over all that can be seen; the function bends at the ends of the range."""
        ends = (-_FAR, 0.0, self._width / 2, self._width, self._width + _FAR)
        return float(sum(quad(function, low, high, limit=200)[0] for low, high in itertools.pairwise(ends)))


def _median(t: Array, width: float) -> Array:
    """Return z(t); from the lower half of the range, where the tails of Φ keep their digits, for z(t) = -z(w - t)."""
    upper = t > width / 2
    near = np.where(upper, width - t, t)
    middle = -ndtri((ndtr(near) + ndtr(near - width)) / 2)
    result: Array = np.where(upper, -middle, middle)
    return result


def _normal(x: npt.ArrayLike) -> float:
    return float(np.exp(-0.5 * np.square(np.asarray(x, dtype=np.float64))) / math.sqrt(2 * math.pi))

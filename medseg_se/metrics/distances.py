"""How far two surfaces lie apart: Hausdorff distances, average distance and the share of the surface within a tolerance.

Distances are exact: each element that is not in both surfaces looks for its nearest neighbour in the other one. The time goes
with the size of the surfaces; see decision 15 for why it is no distance transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from medseg_se.metrics.surfaces import Surface

Values = npt.NDArray[np.float64]
ROUNDING = 1e-5
"""Relative excess at which a distance still counts as within a tolerance: files keep the spacing in single precision."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm of every element of two surfaces to the nearest of the other one; neither surface is empty.

    Attributes:
        of_truth: From the elements of the truth to the prediction (n,).
        of_prediction: From the elements of the prediction to the truth (m,).
        truth_areas: What each element of the truth weighs (n,).
        predicted_areas: What each element of the prediction weighs (m,).
    """

    of_truth: Values
    of_prediction: Values
    truth_areas: Values
    predicted_areas: Values

    def hausdorff(self) -> float:
        """Return the largest distance."""
        return float(max(self.of_truth.max(), self.of_prediction.max()))

    def percentile(self, percent: float, weighted: bool) -> float:
        """Return the larger of the two percentiles, one of each direction.

        Args:
            percent: 0 … 100.
            weighted: Whether it is the smallest distance within which lies that share of the area, as in surface-distance;
                otherwise every element counts the same and values are interpolated, as in MONAI.
        """
        if not weighted:
            return float(max(np.percentile(self.of_truth, percent), np.percentile(self.of_prediction, percent)))
        sides = ((self.of_truth, self.truth_areas), (self.of_prediction, self.predicted_areas))
        return max(_weighted_percentile(distances, areas, percent) for distances, areas in sides)

    def average(self) -> float:
        """Return the mean over both surfaces together, weighted with the areas (ASSD)."""
        total = self.of_truth @ self.truth_areas + self.of_prediction @ self.predicted_areas
        return float(total / (self.truth_areas.sum() + self.predicted_areas.sum()))

    def within(self, tolerance: float) -> float:
        """Return the share of the area of both surfaces that is no further than `tolerance` mm from the other one (NSD)."""
        most = tolerance * (1 + ROUNDING)
        near = self.truth_areas[self.of_truth <= most].sum() + self.predicted_areas[self.of_prediction <= most].sum()
        return float(near / (self.truth_areas.sum() + self.predicted_areas.sum()))


def surface_distances(truth: Surface, prediction: Surface, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure two surfaces on the same lattice, neither of them empty, with `spacing` in mm."""
    return SurfaceDistances(
        of_truth=_to_nearest(truth, prediction, spacing),
        of_prediction=_to_nearest(prediction, truth, spacing),
        truth_areas=truth.areas,
        predicted_areas=prediction.areas,
    )


def _to_nearest(surface: Surface, other: Surface, spacing: Sequence[float]) -> Values:
    """Return the distance of every element of `surface` to the nearest of `other`."""
    distances = np.zeros(len(surface.places))
    position = np.searchsorted(other.places, surface.places).clip(max=len(other.places) - 1)
    apart = np.flatnonzero(other.places[position] != surface.places)
    if len(apart):
        # A tree that is not balanced is built in half the time, and answers as fast where places are spread evenly.
        tree = KDTree(other.points(spacing), leafsize=16, balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(surface.points(spacing)[apart])[0]
    return distances


def _weighted_percentile(distances: Values, areas: Values, percent: float) -> float:
    order = np.argsort(distances)
    reached = np.cumsum(areas[order])
    place = int(np.searchsorted(reached / reached[-1], percent / 100))
    return float(distances[order[min(place, len(order) - 1)]])

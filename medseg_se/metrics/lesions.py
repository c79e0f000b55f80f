"""Lesion-wise counts: the connected components of a structure in truth and prediction, and how many of them match.

Voxels that share a face, an edge or a corner are connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Matching = Literal["any"] | float


@dataclass(frozen=True)
class Lesions:
    """How many components there are.

    Attributes:
        truth: In the truth.
        predicted: In the prediction.
        found: Of those in the truth, how many match one in the prediction.
        right: Of those in the prediction, how many match one in the truth.
    """

    truth: int
    predicted: int
    found: int
    right: int

    def measures(self) -> dict[str, float]:
        """Return every measure of `medseg_se.metrics.measures.LESIONS`; the shares are NaN where there is no lesion at all.

        Where only one side has lesions, both shares are 0.
        """
        nothing = 0.0 if self.truth or self.predicted else np.nan
        return {
            "truth_lesions": float(self.truth),
            "predicted_lesions": float(self.predicted),
            "lesion_recall": self.found / self.truth if self.truth else nothing,
            "lesion_precision": self.right / self.predicted if self.predicted else nothing,
        }


def count_lesions(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], matching: Matching = "any") -> Lesions:
    """Count the components of two masks of the same shape and how many match.

    Args:
        prediction: The predicted structure.
        truth: The true structure.
        matching: "any": two components match where they share a voxel. A number: where their IoU is at least that; unless it
            is above ½, one may match several others.
    """
    touching = np.ones((3,) * truth.ndim, dtype=bool)
    true, truth_count = ndimage.label(truth, touching)
    predicted, predicted_count = ndimage.label(prediction, touching)
    shared = (true > 0) & (predicted > 0)
    pairs, overlap = np.unique(np.stack([true[shared], predicted[shared]]), axis=1, return_counts=True)
    if matching != "any":
        union = np.bincount(true.ravel())[pairs[0]] + np.bincount(predicted.ravel())[pairs[1]] - overlap
        pairs = pairs[:, overlap >= float(matching) * union]
    return Lesions(int(truth_count), int(predicted_count), _distinct(pairs[0]), _distinct(pairs[1]))


def _distinct(numbers: npt.NDArray[Any]) -> int:
    return len(np.unique(numbers))

"""Boundary loss: Kervadec et al., 2019, https://arxiv.org/abs/1812.07032."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from medseg_se.errors import UsageError
from medseg_se.losses.dice_ce import DiceCELoss
from medseg_se.losses.sums import Rows, mean_over_devices
from medseg_se.losses.weights import EdgeWeight
from medseg_se.structures import IGNORE


class BoundaryLoss(DiceCELoss):
    """Dice and cross-entropy plus the mean of probability times signed distance to the true boundary, over all structures.

    The last term may be negative. Distances are in voxels of the patch, whatever their spacing, and at coarser levels of deep
    supervision in voxels of those; they are found on the CPU, which may take longer than the step of a small network.

    Args:
        dice_weight: See `DiceCELoss`, as the other options.
        ce_weight: Factor of the cross-entropy term.
        batch_dice: Sum over the batch, and over all devices, before dividing.
        smooth: Added to numerator and denominator.
        class_weights: What a voxel of each class weighs in the cross-entropy.
        edge_weight: What a voxel at an edge weighs more there.
        boundary_weight: Factor of the boundary term, the same throughout; the paper lets it grow by 0.01 an epoch.

    Raises:
        UsageError: As `DiceCELoss`, or a negative `boundary_weight`.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        class_weights: Sequence[float] | Tensor | None = None,
        edge_weight: EdgeWeight = 0.0,
        boundary_weight: float = 0.01,
    ) -> None:
        super().__init__(dice_weight, ce_weight, batch_dice, smooth, class_weights, edge_weight)
        if not 0 <= boundary_weight < math.inf:
            raise UsageError(f"Expected `boundary_weight` to be at least 0, but got {boundary_weight}.")
        self.boundary_weight = boundary_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a float32 scalar (float64 for float64 logits).

        Raises:
            UsageError: The shapes do not match, or there is no class beside the background.
        """
        rows = Rows.of(logits, target)
        structures = logits.shape[1] - 1
        distances = signed_distances(target, structures).flatten(2, -2).to(logits.device)
        along = (rows.log_probability[:, 1:].exp() * distances).sum((2, 3)).sum()
        boundary = mean_over_devices(along, rows.counted.sum() * structures)
        return self.of_rows(rows, target) + self.boundary_weight * boundary


def signed_distances(target: Tensor, structures: int) -> Tensor:
    """Return how far every voxel of a target (N, *spatial) lies from each of structures 1 … S: float32 (N, S, *spatial), CPU.

    As in the authors' code: outside, the distance in voxels to the nearest voxel of the structure; inside, 1 less than that to
    the nearest voxel outside, and negative, so that it is 0 along the rim. It is 0 where the truth is not known, and everywhere
    for a structure that the patch does not show, or shows nothing else but.
    """
    truth = target.detach().cpu().numpy()
    found = np.zeros((len(truth), structures, *truth.shape[1:]), dtype=np.float32)
    for number, labels in enumerate(truth):
        unknown = labels == IGNORE
        for index in range(1, structures + 1):
            inside = labels == index
            if inside.any() and (outside := ~(inside | unknown)).any():
                found[number, index - 1] = _signed_distance(inside, outside)
    return torch.from_numpy(found)


def _signed_distance(inside: npt.NDArray[np.bool_], outside: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    to_inside, to_outside = distance_transform_edt(~inside), distance_transform_edt(~outside)
    distance: npt.NDArray[Any] = to_inside * outside - (to_outside - 1) * inside
    return distance

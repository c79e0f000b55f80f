"""How much a voxel weighs in the cross-entropy: more in rare structures, and more at edges.

Median frequency balancing, Eigen & Fergus, 2015, https://arxiv.org/abs/1411.4734; with a weight for edges in Roy et al., 2019
(QuickNAT), https://arxiv.org/abs/1801.04161: ``ω(x) = Σ_c [S(x) = c] median(f) / f_c + ω₀ [|∇S(x)| > 0]``. In volumes the
quotient spans four orders of magnitude, and the background is hardly learnt from; its square root spans two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medseg_se.errors import UsageError
from medseg_se.structures import IGNORE

EdgeWeight = float | Literal["auto"]


def median_frequency_weights(frequencies: Sequence[float], power: float = 1.0) -> tuple[float, ...]:
    """Return ``(median(f) / f_c)^power`` for each class c; 0 for a class that is nowhere, which the median leaves out.

    Args:
        frequencies: Share of each class, background first, of the voxels of the scans that show it.
        power: 1 balances the classes in full, 0.5 by half of their orders of magnitude.

    Raises:
        UsageError: Nothing is there to be balanced.
    """
    present = [share for share in frequencies if share > 0]
    if not present or not all(0 <= share < math.inf for share in frequencies):
        raise UsageError(f"Expected frequencies of at least 0 and not all 0, but got {list(frequencies)}.")
    median = float(torch.tensor(present, dtype=torch.float64).quantile(0.5))
    return tuple((median / share) ** power if share > 0 else 0.0 for share in frequencies)


def checked_class_weights(weights: Sequence[float] | Tensor) -> Tensor:
    """Return the weights as a tensor (C,).

    Raises:
        UsageError: One is below 0 or not finite, or there are less than two.
    """
    listed = torch.as_tensor(weights, dtype=torch.float32).detach().clone()
    if listed.ndim != 1 or len(listed) < 2 or not (listed.isfinite() & (listed >= 0)).all():
        raise UsageError(f"Expected `class_weights` to be a number of at least 0 for each class, but got {listed.tolist()}.")
    return listed


def check_edge_weight(weight: EdgeWeight, balanced: bool) -> None:
    """Refuse an edge weight that makes no sense; "auto" follows from class weights.

    Args:
        weight: The weight, or "auto".
        balanced: Whether classes have weights.

    Raises:
        UsageError: It is below 0, not finite, or there is nothing it could follow from.
    """
    if isinstance(weight, str):
        if weight != "auto":
            raise UsageError(f"Expected `edge_weight` to be a number of at least 0 or auto, but got {weight!r}.")
        if not balanced:
            raise UsageError("Expected `class_weights` where `edge_weight` is auto: it is twice the largest of them.")
    elif not 0 <= weight < math.inf:
        raise UsageError(f"Expected `edge_weight` to be at least 0, but got {weight}.")


def voxel_weights(target: Tensor, class_weights: Tensor | None, edge_weight: EdgeWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight of every voxel of a target (N, *spatial), of the same shape; 0 where the truth is not known.

    Args:
        target: Structure indices.
        class_weights: One for each class (C,); 1 if not given.
        edge_weight: What a voxel at an edge weighs more; "auto" is twice the largest class weight, which QuickNAT's text takes.
        dtype: Type of the result.
    """
    target = target.long()
    weights = (target != IGNORE).to(dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(dtype)[target.clamp(min=0)]
    if edge_weight == "auto":
        if class_weights is not None:
            weights = weights + 2 * class_weights.max().to(dtype) * edges(target)
    elif edge_weight:
        weights = weights + edge_weight * edges(target)
    return weights


def edges(target: Tensor) -> Tensor:
    """Return which voxels of a target (N, *spatial) have a neighbour along an axis that belongs to another class.

    Next to a voxel whose truth is not known there is no edge. A central difference, often taken for ``∇S``, would find no edge
    within a structure that is one voxel thin.
    """
    found = torch.zeros_like(target, dtype=torch.bool)
    known = target != IGNORE
    for axis in range(1, target.ndim):
        length = target.shape[axis] - 1
        first, second = target.narrow(axis, 0, length), target.narrow(axis, 1, length)
        differ = (first != second) & known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        found.narrow(axis, 0, length).logical_or_(differ)
        found.narrow(axis, 1, length).logical_or_(differ)
    return found

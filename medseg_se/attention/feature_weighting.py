"""Squeeze and excitation of feature vectors, and the contrastive loss between two perturbed views that it was made for.

Chen et al., Squeeze and Excitation: A Weighted Graph Contrastive Learning for Collaborative Filtering (WeightedGCL), 2025,
https://arxiv.org/abs/2504.04443: `perturb` the features of the last layer twice, weight both views with one
`FeatureWeighting`, and compare them with `info_nce`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention.precision import in_float32
from medseg_se.attention.tiles import compute_type, full_precision
from medseg_se.errors import UsageError


class FeatureWeighting(nn.Module):
    """Weight the features of each node by what their mean says: ``f ⊙ σ(W₃(W₂(W₁ mean(f) + b₁) + b₂) + b₃)``.

    As in the authors' code nothing bends between the linear layers.

    Args:
        channels: Features of a node, C.
        hidden: Units of the layers between the mean and the C weights; the authors take C/16 and C/4 for C = 64.
    """

    label = "feature weighting"

    def __init__(self, channels: int, hidden: Sequence[int] = (4, 16)) -> None:
        super().__init__()
        if channels < 1:
            raise UsageError(f"Expected `channels` to be at least 1, but got {channels}.")
        if any(units < 1 for units in hidden):
            raise UsageError(f"Expected `hidden` to hold positive numbers, but got {list(hidden)}.")
        self.channels = channels
        widths = itertools.pairwise([1, *hidden, channels])
        self.excitation = nn.Sequential(*(nn.Linear(before, after) for before, after in widths))

    def forward(self, features: Tensor) -> Tensor:
        """Weight ``features`` (N, C).

        Raises:
            UsageError: Not a matrix of C columns.
        """
        kind = compute_type(features)
        return (features.to(kind) * self.weights(features)).to(features.dtype)

    def weights(self, features: Tensor) -> Tensor:
        """Return the weights (N, C) in (0, 1) that `forward` uses, in float32 or float64."""
        if features.ndim != 2 or features.shape[1] != self.channels:
            wanted = f"(N, C) with C = {self.channels}"
            raise UsageError(f"Expected {self.label} to get {wanted}, but got a tensor of shape {tuple(features.shape)}.")
        means = features.to(compute_type(features)).mean(1, keepdim=True)
        return torch.sigmoid(in_float32(self.excitation, means))


def perturb(features: Tensor, strength: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Move each row of ``features`` (N, C) by a random vector of length `strength`, away from zero in every feature.

    The vector's direction is uniform in [0, 1) per feature before it is scaled; where a feature is 0 it stays 0.

    Args:
        features: One row per node.
        strength: Length of the step; the authors take 0.1.
        generator: Source of randomness, on the features' device.
    """
    noise = torch.rand(features.shape, generator=generator, dtype=compute_type(features), device=features.device)
    step = features.sign() * F.normalize(noise, dim=1) * strength
    return (features + step).to(features.dtype)


def info_nce(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """Return the InfoNCE loss of two views (N, C), summed over the nodes: −Σᵢ log(exp(sᵢᵢ/τ) / Σⱼ exp(sᵢⱼ/τ)).

    sᵢⱼ is the cosine of node i in the first view and node j in the second.

    Args:
        first: One row per node.
        second: The same nodes in the same order.
        temperature: τ.

    Raises:
        UsageError: Views of different shapes, or a temperature that is not above 0.
    """
    if first.ndim != 2 or first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UsageError(f"Expected two views of the same shape (N, C), but got {shapes}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"Expected `temperature` to be above 0, but got {temperature}.")
    with full_precision(first):
        first, second = (F.normalize(view.to(compute_type(view)), dim=1) for view in (first, second))
        target = torch.arange(len(first), device=first.device)
        return F.cross_entropy(first @ second.T / temperature, target, reduction="sum")

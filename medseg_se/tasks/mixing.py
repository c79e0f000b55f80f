"""Pairs of scans mixed for training: mixup and CutMix.

Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, https://arxiv.org/abs/1710.09412; Yun et al., CutMix, 2019,
https://arxiv.org/abs/1905.04899. Both learn from ``λ·loss(answer, y) + (1 − λ)·loss(answer, y')`` with λ ~ Beta(α, α).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_se.errors import UsageError


class Mixed(NamedTuple):
    """A batch of scans, each mixed with another of the same batch.

    Attributes:
        images: (N, C, *spatial).
        partner: Place of the other scan in the batch (N,).
        share: λ, what the first scan of each pair counts.
    """

    images: Tensor
    partner: Tensor
    share: float

    def loss(self, loss_of: Callable[[Tensor, Tensor], Tensor], answers: Tensor, target: Tensor) -> Tensor:
        """Return the loss of answers (N, …) to the mixed scans, each of which two targets are true of in part."""
        first = loss_of(answers, target)
        return first if self.share == 1 else self.share * first + (1 - self.share) * loss_of(answers, target[self.partner])


@dataclass(frozen=True)
class Mixing:
    """How scans are mixed; where both ways are wanted, each takes half of the batches.

    Attributes:
        mixup: α of mixup, which adds two scans up; 0 for none.
        cutmix: α of CutMix, which puts a box of one scan into the other; 0 for none.
        probability: Share of the batches that are mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"Expected `{name}` to be at least 0, but got {value}.")
        if not 0 <= self.probability <= 1:
            raise UsageError(f"Expected `mixing_probability` to be between 0 and 1, but got {self.probability}.")

    def __call__(self, images: Tensor) -> Mixed:
        """Mix a batch (N, C, *spatial) by PyTorch's global generator, which training seeds anew before every batch."""
        ways = [name for name in ("mixup", "cutmix") if getattr(self, name) > 0]
        partner = torch.arange(len(images), device=images.device)
        if not ways or len(images) < 2 or float(torch.rand(())) >= self.probability:
            return Mixed(images, partner, 1.0)
        way = ways[int(torch.randint(len(ways), ()))]
        alpha = torch.tensor(float(getattr(self, way)), dtype=torch.float64)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        partner = torch.randperm(len(images)).to(images.device)
        if way == "mixup":
            return Mixed(torch.lerp(images[partner], images, share), partner, share)
        return _cut(images, partner, share)


def _cut(images: Tensor, partner: Tensor, share: float) -> Mixed:
    """Put the same box of every partner into its scan; what it covers counts by its true size, cut off at the border."""
    spatial = images.shape[2:]
    side = (1 - share) ** (1 / len(spatial))  # of the box, so that it covers 1 − λ
    box: list[slice] = [slice(None), slice(None)]
    covered = 1.0
    for length in spatial:
        middle, half = float(torch.rand(())) * length, side * length / 2
        first, end = max(0, round(middle - half)), min(length, round(middle + half))
        box.append(slice(first, end))
        covered *= (end - first) / length
    cut = images.clone()
    cut[tuple(box)] = images[partner][tuple(box)]
    return Mixed(cut, partner, 1 - covered)

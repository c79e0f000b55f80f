"""How like those of the training a scan is, by the features that a network computes of it on its way to an answer.

The Mahalanobis distance to the nearest class, with one covariance for all classes, in every level of the network (Lee et al.,
2018, https://arxiv.org/abs/1807.03888, equation 2). With fewer scans than features the covariance needs shrinking: its largest
directions are kept and all others get their mean variance, which is the covariance of probabilistic principal components
(Tipping and Bishop, 1999, https://doi.org/10.1111/1467-9868.00196, equations 7 and 8), and small enough for a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DIRECTIONS = 64
"""Directions of the covariance that are kept."""
FALSE_ALARMS = 0.01
"""Share of the scans like those of the training that may be called unlike."""
_FLOOR = 0.01  # of the mean deviation: features that hardly vary in training must not decide alone
_LEAST = 0.01  # of the mean variance: in directions in which training hardly varied, engines round by as much
_TAIL = 0.95  # of the held-out scans
_TINY = 1e-12


@dataclass(frozen=True)
class Level:
    """What the features of one level were like in training.

    Attributes:
        centres: Mean of every class, (classes, F).
        scale: Deviation of each feature within the classes, (F,); what follows is in these units.
        directions: The largest directions of the covariance, (F, K).
        variances: Variance along each, (K,).
        rest: Variance along every other direction.
        unit: Distance within which 95 % of held-out scans lie, so that levels can be compared.
    """

    centres: Tensor
    scale: Tensor
    directions: Tensor
    variances: Tensor
    rest: float
    unit: float = 1.0

    def distance(self, features: Tensor) -> Tensor:
        """Return the distance of each row (N, F) to its nearest class in `unit`, (N,) float64; infinite where it is no number.

        Before the unit it is the root of the mean over the features: 1 for a typical training scan.
        """
        off = (features.double()[:, None] - self.centres) / self.scale
        along = off @ self.directions
        square = (along.square() / self.variances).sum(-1)
        square = square + (off.square().sum(-1) - along.square().sum(-1)).clamp_min(0) / self.rest
        nearest = (square / features.shape[1]).amin(dim=1).sqrt() / self.unit
        return torch.where(nearest.isnan(), math.inf, nearest)


@dataclass(frozen=True)
class Likeness:
    """What scans are like those of the training.

    Attributes:
        levels: The levels of the network, in the order in which their features stand side by side.
        limit: The largest distance, over the levels, of a scan that counts as like those of the training.
        false_alarms: Share of such scans that lie beyond the limit all the same.
        held_out: How many scans, on which the network was not trained, have set the limit.
    """

    levels: tuple[Level, ...]
    limit: float
    false_alarms: float
    held_out: int

    @property
    def features(self) -> int:
        """How many features of a scan are looked at."""
        return sum(len(level.scale) for level in self.levels)

    def distance(self, features: Tensor) -> Tensor:
        """Return how unlike scans are by their features (N, features): (N,) float64, above 1 beyond the limit."""
        return _farthest(self.levels, features) / self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain data from which `from_dict` makes an equal object."""
        levels = []
        for level in self.levels:
            tensors = {name: getattr(level, name).float() for name in ("centres", "scale", "directions", "variances")}
            levels.append({**tensors, "rest": level.rest, "unit": level.unit})
        return {
            "levels": levels,
            "limit": self.limit,
            "false_alarms": self.false_alarms,
            "held_out": self.held_out,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Likeness:
        """Make the object that `to_dict` described."""
        levels = []
        for level in content["levels"]:
            names = ("centres", "scale", "directions", "variances")
            tensors = {name: level[name].double() for name in names}
            levels.append(Level(**tensors, rest=float(level["rest"]), unit=float(level["unit"])))
        return cls(tuple(levels), float(content["limit"]), float(content["false_alarms"]), int(content["held_out"]))


def fit_likeness(
    training: Tensor,
    classes: Tensor,
    held_out: Tensor,
    sizes: Sequence[int],
    false_alarms: float = FALSE_ALARMS,
    directions: int = DIRECTIONS,
) -> Likeness:
    """Learn what scans are like those of the training.

    The limit is an order statistic of the held-out distances, so that the share of false alarms is a bound for scans that
    come from where those came from, whatever their distribution (split conformal prediction, Vovk et al., 2005). Of fewer than
    ``1 / false_alarms`` scans it is the largest distance, and the share is larger.

    Args:
        training: Features of the training scans, (n, sum of `sizes`).
        classes: Their classes, (n,); all the same where there are none.
        held_out: Features of scans on which the network was not trained, (m, sum of `sizes`).
        sizes: Features of every level.
        false_alarms: Share of scans like those of the training that may be called unlike.
        directions: Directions of the covariance that are kept.

    Raises:
        ValueError: A feature is not finite, or there are too few scans.
    """
    if not (training.isfinite().all() and held_out.isfinite().all()):
        raise ValueError("features are not finite")
    if len(training) <= len(torch.unique(classes)) or not len(held_out):
        raise ValueError("there are too few scans")
    levels = []
    for features, others in zip(*(torch.split(rows.double(), list(sizes), 1) for rows in (training, held_out)), strict=True):
        level = _fit_level(features, classes, directions)
        unit = float(level.distance(others).quantile(_TAIL))
        levels.append(Level(**{**vars(level), "unit": max(unit, _TINY)}))
    distances = _farthest(levels, held_out).sort().values
    count = len(distances)
    place = min(count, math.ceil((count + 1) * (1 - false_alarms)))
    return Likeness(tuple(levels), max(float(distances[place - 1]), _TINY), 1 - place / (count + 1), count)


def _farthest(levels: Sequence[Level], features: Tensor) -> Tensor:
    parts = torch.split(features, [len(level.scale) for level in levels], 1)
    return torch.stack([level.distance(part) for level, part in zip(levels, parts, strict=True)]).amax(dim=0)


def _fit_level(features: Tensor, classes: Tensor, directions: int) -> Level:
    present = torch.unique(classes)
    centres = torch.stack([features[classes == one].mean(dim=0) for one in present])
    off = features - centres[torch.searchsorted(present, classes)]
    freedom = len(features) - len(present)
    scale = (off.square().sum(dim=0) / freedom).sqrt()
    scale = scale + max(_FLOOR * float(scale.mean()), _TINY)
    off = off / scale
    variances, vectors = _principal(off, freedom)
    size = features.shape[1]
    total = float(off.square().sum()) / freedom
    kept = min(directions, len(variances), size - 1)
    rest = (total - float(variances[:kept].sum())) / (size - kept)
    rest = max(rest, _LEAST * total / size, _TINY)
    return Level(centres, scale, vectors[:, :kept], variances[:kept].clamp_min(rest), rest)


def _principal(off: Tensor, freedom: int) -> tuple[Tensor, Tensor]:
    """Return the variances of the rows of (n, F), the largest first, and their directions, (F, at most n or F)."""
    if off.shape[1] <= len(off):
        variances, vectors = torch.linalg.eigh(off.T @ off / freedom)
        return variances.flip(0), vectors.flip(1)
    variances, vectors = torch.linalg.eigh(off @ off.T / freedom)  # smaller, with the same variances
    variances, vectors = variances.flip(0), vectors.flip(1)
    real = variances > 1e-9 * variances[0].clamp_min(_TINY)
    variances, vectors = variances[real], vectors[:, real]
    return variances, off.T @ vectors / (variances * freedom).sqrt()

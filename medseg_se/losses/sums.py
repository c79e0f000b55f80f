"""What the losses are made of: sums over the voxels that count, of a batch, and of all devices that train together."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from medseg_se.errors import UsageError
from medseg_se.structures import IGNORE


def over_devices(sums: Tensor) -> Tensor:
    """Return `sums` added up over the devices that train together, with gradients to all of them; as they are on one device.

    A ratio of such sums is that of all batches taken as one, and so are the gradients once they are averaged over the devices.
    Outside of training nothing is exchanged: devices may judge different numbers of batches.
    """
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return sums
    total: Tensor = all_reduce(sums)  # type: ignore[no-untyped-call]
    return total


def mean_over_devices(total: Tensor, count: Tensor) -> Tensor:
    """Return `total / count`, both scalars, over all devices; 0 where nothing counts."""
    total, count = over_devices(torch.stack([total, count.to(total.dtype)])).unbind()
    return total / torch.where(count > 0, count, 1)


class Overlap(NamedTuple):
    """Sums over the voxels that count: (N, C), or (1, C) where the batch and all devices are taken as one scan.

    Attributes:
        both: Probability of each class where it is the truth.
        predicted: Probability of each class.
        true: Voxels of each class.
    """

    both: Tensor
    predicted: Tensor
    true: Tensor

    def of_batch(self) -> Overlap:
        """Return the sums over the batch, and over all devices."""
        return Overlap(*over_devices(torch.stack([sums.sum(0, keepdim=True) for sums in self])).unbind())

    def dice(self, smooth: float) -> Tensor:
        """Return the soft Dice with `smooth` added to numerator and denominator."""
        return (2 * self.both + smooth) / (self.predicted + self.true + smooth)


class Rows(NamedTuple):
    """Probabilities and truth in rows (R, L), to be summed row by row.

    float32 runs out of digits where millions of voxels are added up one by one.

    Attributes:
        log_probability: Logarithm of the probability of every class (N, C, R, L).
        truth: True class (N, R, L); 0 where it is not known.
        counted: Whether it is known (N, R, L).
        of_truth: Logarithm of the probability of the true class (N, R, L).
    """

    log_probability: Tensor
    truth: Tensor
    counted: Tensor
    of_truth: Tensor

    @classmethod
    def of(cls, logits: Tensor, target: Tensor) -> Rows:
        """Take one softmax of the logits (N, C, *spatial), in float32 at least.

        Raises:
            UsageError: The shapes do not match, or there is no class beside the background.
        """
        check_shapes(logits, target, fewest=2)
        truth = target.flatten(1, -2).long()
        counted, truth = truth != IGNORE, truth.clamp(min=0)
        log_probability = F.log_softmax(widened(logits).flatten(2, -2), dim=1)
        return cls(log_probability, truth, counted, log_probability.gather(1, truth[:, None])[:, 0])

    def overlap(self) -> Overlap:
        """Return the sums of every class, background first; no one-hot truth is made."""
        weight = self.counted.to(self.of_truth.dtype)
        zeros = weight.new_zeros(*self.truth.shape[:2], self.log_probability.shape[1])
        both = zeros.scatter_add(2, self.truth, self.of_truth.exp() * weight).sum(1)
        predicted = (self.log_probability.exp() * weight[:, None]).sum((2, 3))
        return Overlap(both, predicted, zeros.scatter_add(2, self.truth, weight).sum(1))


def widened(logits: Tensor) -> Tensor:
    """Return the logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_shapes(logits: Tensor, target: Tensor, fewest: int = 1) -> None:
    """Refuse a target that does not fit the logits, and logits of fewer than `fewest` maps."""
    if target.shape != logits.shape[:1] + logits.shape[2:] or logits.shape[1] < fewest:
        what = "two classes or more" if fewest == 2 else "one map or more"
        raise UsageError(
            f"Expected logits (N, C, *spatial) of {what} and a target (N, *spatial), but got shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}."
        )

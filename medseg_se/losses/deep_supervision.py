"""A loss at every level of the decoder, and targets shrunk to their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg_se.errors import UsageError


class DeepSupervisionLoss(nn.Module):
    """Apply a loss at every decoder level with weights in the ratio 1 : 1/2 : 1/4 …, which sum to 1.

    nnU-Net's scheme, but for the coarsest level: nnU-Net leaves that out.

    Args:
        loss: The loss of one level.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the weighted sum; the target (N, *spatial) is shrunk from each output's size to the next, see `shrink`."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = [0.5**level for level in range(len(levels))]
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(weights, levels, strict=True):
            target = shrink(target, logits.shape[2:])
            total = total + weight / sum(weights) * self.loss(logits, target)
        return total


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Pick voxels of `target` (N, *spatial) so that it has `shape`; values are not mixed.

    Along each axis it takes the first voxel and every second, or third, after it, as strided convolutions do; where no such
    step gives the size, the voxels nearest below evenly spread places.

    Raises:
        UsageError: Another number of axes.
    """
    if target.ndim != len(shape) + 1:
        raise UsageError(f"Expected a target (N, *spatial) to shrink to {tuple(shape)}, but got shape {tuple(target.shape)}.")
    for axis, (old, new) in enumerate(zip(target.shape[1:], shape, strict=True), start=1):
        if old != new:
            places = torch.arange(0, old, -(-old // new), device=target.device)
            if len(places) != new:
                places = torch.arange(new, device=target.device) * old // new
            target = target.index_select(axis, places)
    return target

"""Attention that is learnt: several blocks behind weights that training sets, one set of weights at every place in a network.

Liu et al., DARTS: Differentiable Architecture Search, 2019, https://arxiv.org/abs/1806.09055, equation 2, with attention blocks
as the operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medseg_se.attention.choice import LearntChoice
from medseg_se.attention.hybrid import Joined
from medseg_se.attention.recalibration import Recalibration
from medseg_se.errors import UsageError


class AdaptiveAttention(LearntChoice, Joined):
    """Weigh the results of several blocks: ``Σ softmax(α)ₖ · blockₖ(x)``, until `discretise` keeps the heaviest alone.

    A checkpoint of a network whose choices were made loads into one where they are open: it makes the same choices. Where they
    were open, or others, loading takes up what was dropped again.

    Args:
        blocks: Two or more, by name.
    """

    label = "adaptive attention"

    def __init__(self, blocks: Mapping[str, Recalibration]) -> None:
        if len(blocks) < 2:
            raise UsageError(f"Expected `blocks` to name two blocks or more, but got {', '.join(blocks) or 'none'}.")
        super().__init__(list(blocks.values()))
        self.names = list(blocks)
        self.alpha = nn.Parameter(torch.zeros(len(blocks)))
        self.register_buffer("chosen", torch.tensor(-1))
        self._open: tuple[nn.ModuleList, list[int], nn.Parameter] | None = None  # in a tuple: neither weights nor state

    def choice(self) -> dict[str, float]:
        """Return the weight of every block; once the choice is made, 1 for the one that is left."""
        if self.alpha is None:
            return {self.names[int(self.chosen)]: 1.0}
        return dict(zip(self.names, torch.softmax(self.alpha.detach().float(), 0).tolist(), strict=True))

    def discretise(self, winner: int | None = None) -> str:
        """Keep one block, the heaviest if no number is given, drop the others and the weights; return its name.

        Parameters go, so do this before an optimiser is made. Again it changes nothing.
        """
        if self.alpha is not None:
            winner = int(self.alpha.argmax()) if winner is None else winner
            if not 0 <= winner < len(self.names):
                raise UsageError(f"Expected `winner` to be from 0 to {len(self.names) - 1}, but got {winner}.")
            self.chosen.fill_(winner)
            self._open = (self.blocks, self.counts, self.alpha)
            self.blocks, self.counts, self.alpha = nn.ModuleList([self.blocks[winner]]), [self.counts[winner]], None
        return self.names[int(self.chosen)]

    def gated(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x``, the gates of all blocks and the weights (1, 1, 1, 1[, 1]) of their results."""
        x, gates = super().gated(x)
        if self.alpha is None:
            return x, gates
        weights = torch.softmax(self.alpha.to(torch.promote_types(x.dtype, torch.float32)), 0)
        return x, (*gates, *(weight.reshape(*[1] * x.ndim) for weight in weights))

    def join_maps(self, maps: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor | None) -> Tensor:
        """Return the weighted sum of the maps."""
        if not weights:
            return maps[0] if out is None else out.copy_(maps[0])
        total = maps[0] * weights[0]
        for one, weight in zip(maps[1:-1], weights[1:-1], strict=True):
            total = total + one * weight
        return torch.add(total, maps[-1] * weights[-1], out=out)

    def split_gradient(
        self, dy: Tensor, maps: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        """Return the weighted gradients of the maps, and those of the weights."""
        if not weights:
            return [dy], ()
        return [dy * weight for weight in weights], tuple((dy * one).sum().reshape(weights[0].shape) for one in maps)

    def follow_choice(self, saved: Tensor) -> None:
        """Make the choice of the block whose `chosen` is given, or open it again if that one had made none."""
        if self._open is not None and int(saved) != int(self.chosen):
            self.blocks, self.counts, self.alpha = self._open
            self.to(self.chosen.device).train(self.training)  # as is all that has not been dropped
            self.chosen.fill_(-1)
            self._open = None
        if int(saved) >= 0:
            self.discretise(int(saved))


class Unchanged(Recalibration):
    """No attention, where a choice may fall on it."""

    label = "no attention"

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.channels, self.spatial_dims = channels, spatial_dims

    def statistic(self) -> None:
        """Nothing."""

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the map as it is."""
        return a if out is None else out.copy_(a)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient as it is."""
        return (dy,)

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Nothing to look at."""
        return {}

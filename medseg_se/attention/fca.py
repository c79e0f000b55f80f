"""Frequency channel attention (FcaNet).

Qin et al., FcaNet: Frequency Channel Attention Networks, 2021, https://arxiv.org/abs/2012.11879, section 3: a mean is the
lowest frequency of a discrete cosine transform (DCT), so the squeeze can ask for other frequencies, too. The frequencies are
the lowest ones (LF in the paper), those that did best one at a time (TS), or are found while training (NAS).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from medseg_se.attention.choice import LearntChoice
from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.statistics import Averages
from medseg_se.errors import UsageError, unknown_name

Selection = Literal["low", "top", "bottom"]
Frequency = tuple[int, ...]
"""Half-waves along each spatial axis."""

_SIDE = 7
"""Frequencies are counted on a grid of 7×7: 0 to 6 half-waves along an axis."""

_RANKINGS = {
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "bottom": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
}
"""The authors' rankings in 2D, the first to be taken first, each as half-waves along the height and the width."""


class _FrequencySqueeze(ChannelSE):
    """SE whose squeeze takes a DCT coefficient of the map, averaged to a small grid, in place of its mean.

    The channels are dealt to parts, neighbours together; where they do not divide evenly, the first parts get one more. All
    channels of a part are squeezed with the same map of the grid.

    Attributes:
        candidates: The frequencies whose cosines `basis` holds.
        parts: How many there are.
        basis: The cosines (candidates, positions of the grid), at least float32 whatever the parameters are.
    """

    basis: Tensor
    part: Tensor

    def __init__(
        self, channels: int, spatial_dims: int, candidates: Sequence[Frequency], parts: int, reduction: int, grid: int
    ) -> None:
        super().__init__(channels, spatial_dims, reduction, bias=False)
        if grid < _SIDE:
            raise UsageError(f"Expected `grid` to be at least {_SIDE}, which its highest frequency needs, but got {grid}.")
        self.candidates, self.parts, self.grid = list(candidates), min(parts, channels), grid
        self.register_buffer("basis", None, persistent=False)
        self.register_buffer("part", None, persistent=False)
        self._make_constants()

    def maps(self) -> Tensor:
        """Return the map (parts, positions of the grid) of every part."""
        raise NotImplementedError

    def statistic(self) -> Averages:
        """The map, averaged to the grid."""
        return Averages((self.grid,) * self.spatial_dims)

    def gates(self, *statistics: Tensor) -> tuple[Tensor, ...]:
        """Return the gate (N, C, 1, 1[, 1]) in (0, 1) for the averages over the grid."""
        pooled = statistics[0].flatten(2)
        squeezed = torch.einsum("ncp,cp->nc", pooled, self.maps().to(pooled.dtype)[self.part])
        return super().gates(squeezed.reshape(*squeezed.shape, *[1] * self.spatial_dims))

    def _make_constants(self) -> None:
        like = self.squeeze.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.basis = _cosines(self.candidates, self.grid).to(like.device, dtype)
        size, more = divmod(self.channels, self.parts)
        owner = [part for part in range(self.parts) for _ in range(size + (part < more))]
        self.part = torch.tensor(owner, device=like.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the parameters to another device or to float64, but compute the cosines anew instead of rounding them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_constants()
        return self


class FrequencyAttention(_FrequencySqueeze):
    """Scale each channel by a gate computed from one DCT coefficient of each: ``x · σ(W₂ relu(W₁ DCT(x)))``.

    The authors' best are the 16 "top" frequencies and the 2 "low" ones.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        selection: The frequencies from the "low" end, or those from the "top" or "bottom" of the authors' ranking. There is no
            ranking of frequencies in 3D, which has "low" only: there they come in the order of the sum of their half-waves
            along D, H and W, and of the half-waves along D, then H, then W, where the sums are equal. That is our choice.
        frequencies: How many parts the channels are dealt to, each with its own frequency: 1 to 32. With fewer channels than
            that only as many are used.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
        grid: The map is averaged to this length along each axis before the transform, which a map of another size needs for
            its frequencies to mean the same. Beyond 13 the frequencies are multiplied by ``grid // 7``, as the authors do.
    """

    label = "FcaNet"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        selection: Selection = "low",
        frequencies: int = 16,
        reduction: int = 16,
        grid: int = 7,
    ) -> None:
        ranking = _ranking(selection, spatial_dims)
        if not 1 <= frequencies <= len(ranking):
            raise UsageError(f"Expected `frequencies` to be from 1 to {len(ranking)}, but got {frequencies}.")
        super().__init__(channels, spatial_dims, ranking[: min(frequencies, channels)], frequencies, reduction, grid)

    def maps(self) -> Tensor:
        """Return the cosines of every part's frequency."""
        return self.basis


class FrequencySearch(LearntChoice, _FrequencySqueeze):
    """Find each part's frequency while training (FcaNet-NAS): ``x · σ(W₂ relu(W₁ Σ_f softmax(α)_f DCT_f(x)))``.

    α is trained along with the other parameters and weights all 49 frequencies, 343 in 3D. `discretise` then leaves each part
    only the frequency of its largest α.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        parts: How many parts the channels are dealt to, at most one per channel.
        reduction: The hidden layer has ``max(1, channels // reduction)`` units.
        grid: See `FrequencyAttention`.

    Attributes:
        alpha: α (parts, frequencies); None after the search.
        chosen: For each part the number of its frequency in `candidates`, -1 while searching.
    """

    label = "FcaNet-NAS"

    def __init__(self, channels: int, spatial_dims: int, parts: int = 16, reduction: int = 16, grid: int = 7) -> None:
        if parts < 1:
            raise UsageError(f"Expected `parts` to be at least 1, but got {parts}.")
        super().__init__(channels, spatial_dims, _all_frequencies(spatial_dims), parts, reduction, grid)
        self.alpha = nn.Parameter(torch.zeros(self.parts, len(self.candidates)))
        self.register_buffer("chosen", torch.full((self.parts,), -1))

    def maps(self) -> Tensor:
        """Return the weighted cosines, or those of the chosen frequencies."""
        if self.alpha is None:
            return self.basis[self.chosen]
        return torch.softmax(self.alpha.to(self.basis.dtype), dim=1) @ self.basis

    @torch.no_grad()
    def discretise(self) -> list[Frequency]:
        """End the search and return each part's frequency: from here on there is no α.

        An optimiser that still holds it changes nothing any more.
        """
        if self.alpha is not None:
            self.chosen.copy_(self.alpha.argmax(dim=1))
            self.alpha = None
        return self.chosen_frequencies()

    def chosen_frequencies(self) -> list[Frequency]:
        """Return the frequency of every part, or that which it would get now while the search goes on."""
        numbers = self.chosen if self.alpha is None else self.alpha.argmax(dim=1)
        return [self.candidates[number] for number in numbers.tolist()]

    def follow_choice(self, saved: Tensor) -> None:
        """End the search, or take it up again, as the block did whose `chosen` is given."""
        if (saved >= 0).all():
            self.alpha = None
        elif self.alpha is None:
            self.alpha = nn.Parameter(self.basis.new_zeros(self.parts, len(self.candidates)))


def _all_frequencies(spatial_dims: int) -> list[Frequency]:
    return list(itertools.product(range(_SIDE), repeat=spatial_dims))


def _ranking(selection: str, spatial_dims: int) -> list[Frequency]:
    if selection not in _RANKINGS:
        raise unknown_name("selection", selection, _RANKINGS)
    if spatial_dims == 3:
        if selection != "low":
            raise UsageError(
                f"Expected `selection` to be 'low' in 3D, where no ranking of the frequencies is known, but got {selection!r}."
            )
        return sorted(_all_frequencies(3), key=lambda waves: (sum(waves), waves))[:32]
    return [(int(pair[0]), int(pair[1])) for pair in _RANKINGS[selection].split()]


def _cosines(frequencies: Sequence[Frequency], grid: int) -> Tensor:
    """Return the orthonormal DCT-II (frequencies, positions of the grid), in float64 on the CPU."""
    waves = torch.tensor(frequencies, dtype=torch.float64, device="cpu") * (grid // _SIDE)
    place = torch.arange(grid, dtype=torch.float64, device="cpu") + 0.5
    rows = torch.cos(waves[..., None] * place * (math.pi / grid)) / math.sqrt(grid)  # (frequencies, axes, grid)
    rows = torch.where(waves[..., None] > 0, rows * math.sqrt(2), rows)
    basis = rows[:, 0]
    for axis in range(1, rows.shape[1]):
        basis = (basis[:, :, None] * rows[:, axis, None, :]).flatten(1)
    return basis

"""How a network is asked about tiles: with their mirror images too, and not at all where the answer is known."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_se.data.augmentation import MIRRORS
from medseg_se.data.regions import Regions
from medseg_se.errors import UsageError
from medseg_se.structures import Structures

_KEPT = 2**26
"""Bytes of an answer up to which it is kept for the next tile that is the same."""


@dataclass(frozen=True)
class Mirrors:
    """The mirror images of a tile (N, C, I, J, K) that are asked besides itself.

    Attributes:
        flips: For each the axes that are flipped, counted in the tile, and whether left and right change places.
        exchange: For each map the one that stands for the same on the other side of the body.
    """

    flips: tuple[tuple[tuple[int, ...], bool], ...] = (((), False),)
    exchange: tuple[int, ...] = ()

    @classmethod
    def along(
        cls, directions: Sequence[str], orientation: str, flat_axis: int | None, structures: Structures, regions: Regions | None
    ) -> Mirrors:
        """Return the mirror images along `directions`, each alone and all together, of scans that lie as `orientation` says.

        Raises:
            UsageError: A direction runs across the slices of a 2D network, or a region has no other side.
        """
        axes = {}
        for name in directions:
            axes[next(axis for axis, letter in enumerate(orientation) if letter in MIRRORS[name])] = name
        if flat_axis in axes:
            raise UsageError(
                f"Expected `mirror` to name directions within the slices, but {axes[flat_axis]} runs across those that the "
                "model sees."
            )
        chosen = itertools.chain.from_iterable(itertools.combinations(axes, count) for count in range(len(axes) + 1))
        flips = tuple((tuple(axis + 2 for axis in some), any(axes[axis] == "left-right" for axis in some)) for some in chosen)
        return cls(flips, _exchange(structures, regions) if "left-right" in directions else ())


def _exchange(structures: Structures, regions: Regions | None) -> tuple[int, ...]:
    other = structures.mirrored().tolist()
    if regions is None:
        return tuple(other)
    members = [frozenset(one) for one in regions.members]
    found = []
    for name, one in zip(regions.names, members, strict=True):
        opposite = frozenset(other[index] for index in one)
        if opposite not in members:
            raise UsageError(f"Expected a region for the other side of {name!r}, but there is none: mirror no scan.")
        found.append(members.index(opposite))
    return tuple(found)


class Asker:
    """Asks a network about tiles; counts the tiles it was asked about and the time it took.

    Args:
        network: Maps (N, C, *tile) to logits (N, maps, *tile); without the flat axis if there is one.
        flat_axis: The axis across the slices for a 2D network.
        mirrors: The mirror images that are asked too; the mean of the logits counts.
        repeat: Whether tiles in which every voxel is the same are asked once for all that are alike.
        known: First voxel of a tile → the logits (maps,) of every voxel of it, where they need not be asked.

    Attributes:
        seconds: Time in the network.
        asked: Tiles that went through it, mirror images not counted.
        spared: Tiles that did not.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        flat_axis: int | None = None,
        mirrors: Mirrors = Mirrors(),
        repeat: bool = False,
        known: dict[tuple[int, ...], Tensor] | None = None,
    ) -> None:
        self.network, self.flat_axis, self.mirrors, self.repeat = network, flat_axis, mirrors, repeat
        self.known = known or {}
        self.seconds, self.asked, self.spared = 0.0, 0, 0
        self._constant: tuple[tuple[float, ...], Tensor] | None = None

    def __call__(self, tiles: Sequence[Tensor], corners: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return the logits (maps, I, J, K) of tiles (C, I, J, K)."""
        answers: list[Tensor | None] = [None] * len(tiles)
        open_: list[int] = []
        keys = [_constant_values(tile) if self.repeat else None for tile in tiles]
        for number, (tile, corner, key) in enumerate(zip(tiles, corners, keys, strict=True)):
            if corner in self.known:
                answers[number] = self.known[corner][:, None, None, None].expand(-1, *tile.shape[1:])
            elif key is not None and self._constant is not None and self._constant[0] == key:
                answers[number] = self._constant[1]
            else:
                open_.append(number)
        self.spared += len(tiles) - len(open_)
        self.asked += len(open_)
        if open_:
            found = self.ask(torch.stack([tiles[number] for number in open_]))
            for number, answer in zip(open_, found, strict=True):
                answers[number] = answer
                key = keys[number]
                if key is not None and answer.numel() * answer.element_size() <= _KEPT:
                    self._constant = key, answer
        return [answer for answer in answers if answer is not None]

    def ask(self, tiles: Tensor) -> Tensor:
        """Return the logits (N, maps, I, J, K) of tiles (N, C, I, J, K), those of mirror images averaged in."""
        started = time.perf_counter()
        total: Tensor | None = None
        for axes, exchanged in self.mirrors.flips:
            answer = self._run(tiles.flip(axes) if axes else tiles)
            answer = answer.flip(axes) if axes else answer
            answer = answer[:, list(self.mirrors.exchange)] if exchanged else answer
            total = answer if total is None else total.float() + answer
        if total is None:
            raise UsageError("Expected at least the tile itself to be asked, but got no mirror image at all.")
        if len(self.mirrors.flips) > 1:
            total = total / len(self.mirrors.flips)
        self.seconds += time.perf_counter() - started
        return total

    def _run(self, tiles: Tensor) -> Tensor:
        if self.flat_axis is None:
            return self.network(tiles)
        return self.network(tiles.squeeze(self.flat_axis + 2)).unsqueeze(self.flat_axis + 2)


def _constant_values(tile: Tensor) -> tuple[float, ...] | None:
    """Return the value of every channel of a tile (C, I, J, K) that is the same everywhere; None if one is not."""
    first = tile[:, 0, 0, 0]
    corner = tile[:, -1, -1, -1]
    if not torch.equal(first, corner) or not bool((tile == first[:, None, None, None]).all()):
        return None
    return tuple(first.tolist())

"""Blocks made of blocks: ``eca+coordinate`` runs them in order, ``max(eca,coordinate)`` and ``add(…)`` side by side.

Roy et al., IEEE TMI 2019, https://arxiv.org/abs/1808.08127, compare ways to join two recalibrated maps; here any may be joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from medseg_se.attention.modes import evaluated
from medseg_se.attention.recalibration import Recalibration
from medseg_se.attention.tiles import differentiate, larger
from medseg_se.errors import UsageError

Join = Literal["max", "add"]


@dataclass(frozen=True)
class Hybrid:
    """What a name says: ``+`` in order, or ``max`` or ``add`` side by side."""

    join: Literal["+", "max", "add"]
    parts: tuple[Hybrid | str, ...]

    def names(self) -> list[str]:
        """Return the names of the blocks in it, in order."""
        return [name for part in self.parts for name in (part.names() if isinstance(part, Hybrid) else [part])]

    def build(self, block: Callable[[str], nn.Module]) -> nn.Module:
        """Build it from the blocks that `block` returns for their names."""
        built = [part.build(block) if isinstance(part, Hybrid) else block(part) for part in self.parts]
        if self.join == "+":
            return InOrder(*built)
        if all(isinstance(part, Recalibration) for part in built):
            return SideBySide(self.join, built)  # type: ignore[arg-type]
        return Separately(self.join, built)


def parse(text: str) -> Hybrid | str:
    """Read a name: a block, or blocks joined by ``+``, ``max(…)`` and ``add(…)``, nested as you like.

    Raises:
        UsageError: What is written cannot be read.
    """
    words = re.findall(r"[\w.:-]+|\S", text)
    found, rest = _in_order(words, text)
    if rest:
        raise _unreadable(text, f"did not expect {rest[0]!r}")
    return found


def _in_order(words: Sequence[str], text: str) -> tuple[Hybrid | str, Sequence[str]]:
    part, rest = _one(words, text)
    parts = [part]
    while rest and rest[0] == "+":
        part, rest = _one(rest[1:], text)
        parts.append(part)
    return parts[0] if len(parts) == 1 else Hybrid("+", tuple(parts)), rest


def _one(words: Sequence[str], text: str) -> tuple[Hybrid | str, Sequence[str]]:
    if not words or not re.fullmatch(r"[\w.:-]+", words[0]):
        raise _unreadable(text, f"expected a block before {words[0]!r}" if words else "expected a block at the end")
    name, rest = words[0], words[1:]
    if not rest or rest[0] != "(":
        return name, rest
    if name not in ("max", "add"):
        raise _unreadable(text, f"only max(…) and add(…) take blocks in parentheses, not {name}")
    parts: list[Hybrid | str] = []
    while not parts or (rest and rest[0] == ","):
        part, rest = _in_order(rest[1:], text)
        parts.append(part)
    if not rest or rest[0] != ")":
        raise _unreadable(text, "expected ')'" + (f" before {rest[0]!r}" if rest else " at the end"))
    if len(parts) < 2:
        raise _unreadable(text, f"{name}(…) joins two blocks or more")
    return Hybrid(name, tuple(parts)), rest[1:]  # type: ignore[arg-type]


def _unreadable(text: str, reason: str) -> UsageError:
    return UsageError(
        f"Cannot read attention {text!r}: {reason}. Write one name, blocks in order as 'eca+coordinate', "
        "or side by side as 'max(eca,coordinate)' or 'add(eca,coordinate)'."
    )


class InOrder(nn.Sequential):
    """Blocks one after the other."""

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates of every block, under its number and their own name."""
        found = []
        with evaluated(self):
            for block in self:
                found.append(_look(block, x))
                x = block(x)
        return _numbered(found)


class Separately(nn.Module):
    """Blocks side by side of which some are no `Recalibration`: each makes its own map.

    Args:
        join: "max" or "add".
        blocks: Two or more.
    """

    def __init__(self, join: Join, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.join, self.blocks = join, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *spatial) to the same shape."""
        joined: Tensor = reduce(larger if self.join == "max" else torch.add, [block(x) for block in self.blocks])
        return joined

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates of every block, under its number and their own name."""
        return _numbered(_look(block, x) for block in self.blocks)


def _look(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return block.look(x) if hasattr(block, "look") else {}  # type: ignore[operator]


def _numbered(found: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{number} {name}": gate for number, views in enumerate(found) for name, gate in views.items()}


class Joined(Recalibration):
    """Blocks that all get the same map, their results joined in one pass over it; the base of two ways to join.

    Args:
        blocks: One or more.
    """

    def __init__(self, blocks: Sequence[Recalibration]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.channels, self.spatial_dims = blocks[0].channels, blocks[0].spatial_dims
        self.counts = [_count_gates(block) for block in blocks]

    def join_maps(self, maps: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor | None) -> Tensor:
        """Join the blocks' results; `weights` are gates of the joining itself."""
        raise NotImplementedError

    def split_gradient(
        self, dy: Tensor, maps: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        """Return the gradient of each map and of each weight."""
        raise NotImplementedError

    def gated(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x`` and the gates of all blocks, one block after the other."""
        gates: tuple[Tensor, ...] = ()
        for block in self._blocks():
            x, own = block.gated(x)
            gates += own
        return x, gates

    def apply_gates(self, a: Tensor, *gates: Tensor, out: Tensor | None = None) -> Tensor:
        """Recalibrate with every block and join the maps."""
        own, weights = self._split(gates)
        maps = [block.apply_gates(a, *mine) for block, mine in zip(self._blocks(), own, strict=True)]
        return self.join_maps(maps, weights, out)

    def derivative(self, dy: Tensor, a: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the map and of the gates: the sum of what the blocks say."""
        own, weights = self._split(gates)
        blocks = list(zip(self._blocks(), own, strict=True))
        shares, weight_grads = self.split_gradient(dy, [block.apply_gates(a, *mine) for block, mine in blocks], weights)
        d_a, gate_grads = torch.zeros_like(a), []
        for (block, mine), share in zip(blocks, shares, strict=True):
            d_map, *d_gates = differentiate(block.apply_gates, block.derivative, share, [a, *mine])
            d_a += d_map
            gate_grads += d_gates
        return d_a, *gate_grads, *weight_grads

    def views(self, a: Tensor, *gates: Tensor) -> dict[str, Tensor]:
        """Return the gates of every block, under its number and their own name."""
        own, _ = self._split(gates)
        return _numbered(block.views(a, *mine) for block, mine in zip(self._blocks(), own, strict=True))

    def _blocks(self) -> list[Recalibration]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _split(self, gates: Sequence[Tensor]) -> tuple[list[Sequence[Tensor]], Sequence[Tensor]]:
        """Return the gates of each block, and what is left for the joining."""
        own = []
        for count in self.counts:
            own.append(gates[:count])
            gates = gates[count:]
        return own, gates


class SideBySide(Joined):
    """Maximum or sum of the blocks' results.

    Args:
        join: "max" or "add".
        blocks: Two or more.
    """

    label = "hybrid"

    def __init__(self, join: Join, blocks: Sequence[Recalibration]) -> None:
        super().__init__(blocks)
        self.join = join

    def join_maps(self, maps: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor | None) -> Tensor:
        """Return the maximum or the sum of the maps."""
        join = larger if self.join == "max" else torch.add
        return join(reduce(join, maps[:-1]), maps[-1], out=out)

    def split_gradient(
        self, dy: Tensor, maps: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        """All of the gradient to each term of a sum; to the larger of two maps in turn, half to each where they are equal."""
        if self.join == "add":
            return [dy] * len(maps), ()
        shares, largest = [dy], maps[0]
        for other in maps[1:]:
            first = (largest - other).sign_().add_(1).mul_(0.5)
            shares = [*(share * first for share in shares), dy * (1 - first)]
            largest = torch.maximum(largest, other)
        return shares, ()


@torch.no_grad()
def _count_gates(block: Recalibration) -> int:
    """Return how many gates the block hands to `apply_gates`, by asking it for those of a small map."""
    sample = next((tensor for tensor in block.parameters()), torch.empty(0))
    with evaluated(block):
        _, gates = block.gated(sample.new_zeros((1, block.channels, *[2] * block.spatial_dims)))
    return len(gates)

"""Slab after slab: the logits of a scan in the order in which they become final, without ever holding those of all voxels.

Tiles are asked row after row along one axis. What they say is added to a ring of slabs as thick as the tiles that are under
way; a slab that no later tile reaches is divided by its weights, handed on and forgotten. Memory grows with the slab and the
number of classes, never with the volume times the classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_se.inference.asking import Asker
from medseg_se.inference.tiling import at_least, gaussian_weights, tile_starts

Corner = tuple[int, ...]
_TOGETHER = 2
"""Slabs that are made of the ring together: what lies side by side in memory is read at a time."""
Ask = Callable[[Sequence[Tensor], Sequence[Corner]], Sequence[Tensor]]
"""Maps tiles (C, I, J, K) and their first voxels to logits (maps, I, J, K)."""


@dataclass(frozen=True)
class Sweep:
    """The order in which tiles cover a scan. Make one with `Sweep.over`.

    Attributes:
        tile: Voxels (I, J, K) of a tile.
        axis: The axis along which slabs become final.
        reverse: Whether they do so from its end.
        batches: The corners of the tiles, as many together as are asked together.
        finished: For each batch how many slabs are final once it has been added.
        depth: Slabs that must be kept at a time.
    """

    tile: tuple[int, ...]
    axis: int
    reverse: bool
    batches: tuple[tuple[Corner, ...], ...]
    finished: tuple[int, ...]
    depth: int

    @classmethod
    def over(
        cls, shape: Sequence[int], tile: Sequence[int], overlap: float, axis: int, reverse: bool = False, batch: int = 1
    ) -> Sweep:
        """Return the sweep over a scan of `shape` voxels, none fewer than those of `tile`."""
        length, thick = shape[axis], tile[axis]
        starts = [tile_starts(size, part, overlap) for size, part in zip(shape, tile, strict=True)]
        corners = sorted(itertools.product(*starts), key=lambda corner: _place(corner[axis], length, thick, reverse))
        batches = tuple(tuple(corners[first : first + batch]) for first in range(0, len(corners), batch))
        finished = [_place(following[0][axis], length, thick, reverse) for following in batches[1:]] + [length]
        before = [0, *finished[:-1]]
        reached = [_place(some[-1][axis], length, thick, reverse) + thick for some in batches]
        depth = max(end - start for start, end in zip(before, reached, strict=True))
        return cls(tuple(tile), axis, reverse, batches, tuple(finished), depth)

    def place(self, corner: Sequence[int], length: int) -> int:
        """Return the slab at which a tile begins, counted in the order in which slabs become final."""
        return _place(corner[self.axis], length, self.tile[self.axis], self.reverse)


def _place(start: int, length: int, thick: int, reverse: bool) -> int:
    return length - start - thick if reverse else start


def ring_bytes(shape: Sequence[int], sweep: Sweep, maps: int, kind: torch.dtype = torch.float32) -> int:
    """Return the bytes of the ring of slabs for a scan of `shape` voxels."""
    area = math.prod(max(size, part) for size, part in zip(shape, sweep.tile, strict=True)) // max(
        shape[sweep.axis], sweep.tile[sweep.axis]
    )
    return sweep.depth * area * (maps * kind.itemsize + 4)


@torch.inference_mode()
def logit_slabs(
    ask: Ask,
    image: Tensor,
    tile: Sequence[int],
    overlap: float = 0.5,
    axis: int = 0,
    reverse: bool = False,
    batch: int = 1,
    kind: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield the logits (A, B, maps), float32, of one slab of voxels after another along `axis`.

    A and B are the other two axes in their order. The sums are those of all tiles in the order of the sweep, whatever the
    number of tiles that are asked together.

    Args:
        ask: What maps tiles to logits.
        image: A prepared scan (C, I, J, K). Where it is smaller than a tile, it is continued with its lowest intensity.
        tile: Voxels (I, J, K) of a tile.
        overlap: Share of a tile that its neighbour covers too.
        axis: The axis along which slabs are yielded.
        reverse: Whether they are yielded from its end to its beginning.
        batch: Tiles that are asked together.
        kind: Type in which sums are kept; they are always made in float32.
    """
    image, inside = at_least(image, tile)
    length = image.shape[axis + 1]
    sweep = Sweep.over(image.shape[1:], tile, overlap, axis, reverse, batch)
    others = [other for other in range(3) if other != axis]
    weights = gaussian_weights(tile).to(image.device).permute(axis, *others)
    if reverse:
        weights = weights.flip(0)
    area = [image.shape[other + 1] for other in others]
    kept = tuple(inside[other] for other in others)
    wanted = range(length)[inside[axis]]
    ring, done = None, 0
    norm = torch.zeros((sweep.depth, *area), device=image.device)
    for corners, finished in zip(sweep.batches, sweep.finished, strict=True):
        boxes = [tuple(slice(s, s + n) for s, n in zip(corner, tile, strict=True)) for corner in corners]
        answers = ask([image[(slice(None), *box)] for box in boxes], corners)
        parts = [answer.permute(axis + 1, *(other + 1 for other in others), 0) for answer in answers]
        if ring is None:
            ring = _empty_ring(parts[0], (sweep.depth, *area), kind)
        for corner, box, part in zip(corners, boxes, parts, strict=True):
            part = part.flip(0) if reverse else part
            _add(ring, norm, part, weights, sweep.place(corner, length), tuple(box[other] for other in others))
        for places in _runs(done, finished, sweep.depth):
            asked = [place for place in places if (length - 1 - place if reverse else place) in wanted]
            for first in range(0, len(asked), _TOGETHER):
                some = slice(asked[first] % sweep.depth, asked[first] % sweep.depth + len(asked[first : first + _TOGETHER]))
                yield from _divided(ring[some][:, *kept], norm[some][:, *kept])
            free = slice(places[0] % sweep.depth, places[-1] % sweep.depth + 1)
            ring[free].zero_()
            norm[free].zero_()
        done = finished


def _empty_ring(part: Tensor, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Return zeros (*shape, maps) that lie in memory as a tile (T, a, b, maps) does, so that to add one is one pass."""
    sizes = (*shape, part.shape[-1])
    order = sorted(range(4), key=part.stride, reverse=True)
    places = [order.index(axis) for axis in range(4)]
    return torch.zeros([sizes[axis] for axis in order], dtype=kind, device=part.device).permute(places)


def tiled_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    flat_axis: int | None = None,
) -> Tensor:
    """Return the logits (maps, I, J, K), float32, of a whole prepared scan (C, I, J, K).

    Args:
        network: Maps (N, C, *tile) to logits; without the flat axis if there is one.
        image: See `logit_slabs`.
        tile: Voxels (I, J, K) of a tile; 1 along the flat axis.
        overlap: Share of a tile that its neighbour covers too.
        batch: Tiles that go through the network together.
        flat_axis: The axis across the slices for a 2D network.
    """
    asker = Asker(network, flat_axis)
    return torch.stack(list(logit_slabs(asker, image, tile, overlap, batch=batch))).permute(3, 0, 1, 2).contiguous()


def _add(ring: Tensor, norm: Tensor, part: Tensor, weights: Tensor, place: int, box: tuple[slice, ...]) -> None:
    """Add a tile's logits (T, a, b, maps) to the slabs from `place` on, which may run over the end of the ring."""
    for places in _runs(place, place + len(part), len(ring)):
        there = slice(places[0] % len(ring), places[-1] % len(ring) + 1)
        here = slice(places[0] - place, places[-1] - place + 1)
        own, sums, shares = part[here], ring[(there, *box)], weights[here]
        if sums.dtype == torch.float32:
            sums.addcmul_(own.float(), shares[..., None])
        else:
            outermost = max(range(3), key=own.stride)  # slice by slice, they stay in the processor's cache
            slices = (each.unbind(outermost) for each in (sums, own, shares))
            for some, ours, share in zip(*slices, strict=True):
                some.copy_(some.float().addcmul_(ours.float(), share[..., None]))
        norm[(there, *box)] += shares


def _runs(first: int, end: int, depth: int) -> Iterator[range]:
    """Yield places `first` … `end` - 1 in runs that lie side by side in a ring of `depth` slabs."""
    while first < end:
        last = min(end, (first // depth + 1) * depth)
        yield range(first, last)
        first = last


def _divided(sums: Tensor, norm: Tensor) -> Tensor:
    """Return sums (slabs, A, B, maps) over their weights (slabs, A, B), laid out voxel by voxel."""
    result = torch.empty(sums.shape, device=sums.device)
    return result.copy_(sums).div_(norm[..., None])  # faster than to divide half by single precision

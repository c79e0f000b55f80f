"""One pass of a model over a prepared scan: from its tiles to one slab after another of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medseg_se.errors import DataError
from medseg_se.hardware import free_memory, return_freed_memory
from medseg_se.inference.air import empty_tiles
from medseg_se.inference.asking import Asker, Mirrors
from medseg_se.inference.frame import Frame, without
from medseg_se.inference.planes import Between, Plane, along
from medseg_se.inference.settings import Settings
from medseg_se.inference.streaming import Sweep, logit_slabs, ring_bytes
from medseg_se.inference.tiling import at_least, fitted_tile
from medseg_se.volumes import Volume

if TYPE_CHECKING:
    from medseg_se.inference.model import Model

LARGE_RING = 3 * 2**29
"""Bytes of a ring of slabs above which sums are kept in half precision: about 100 classes on 270 x 270 voxels, 64 deep."""

LARGE_SCAN = 2**26
"""Voxels of a file from which its memory counts more than the time to take it anew."""


@dataclass(frozen=True)
class Ready:
    """A scan that is prepared for a model.

    Attributes:
        image: What the network sees, (C, I, J, K), float32, in main memory.
        frame: How that lies in the file.
        source: The scan without its voxels: grid, header and path.
    """

    image: Tensor
    frame: Frame
    source: Volume


class Passage:
    """Yields the logits of one slab of the file after another.

    Args:
        model: The model.
        ready: A scan that it has prepared.
        axis: The axis of the file along which slabs are wanted.
        settings: How the scan is looked at.

    Attributes:
        asker: Counts tiles and the time in the network.
        notes: What a person should know, once all slabs have been yielded.

    Raises:
        DataError: There is not enough memory.
        UsageError: The scan cannot be mirrored as the settings say.
    """

    def __init__(self, model: Model, ready: Ready, axis: int, settings: Settings) -> None:
        self.model, self.ready, self.axis, self.settings = model, ready, axis, settings
        self.own_axis, self.reverse = ready.frame.prepared_axis(axis)
        i, j, k = ready.image.shape[1:]
        self.shape = (i, j, k)
        self.tile = tile_of(model, ready, settings)
        mirrors = Mirrors.along(
            settings.mirror, model.preprocessing.orientation, model.flat_axis, model.structures, model.regions
        )
        self.asker = Asker(model.network_answer, model.flat_axis, mirrors, repeat=settings.skip != "none")
        self.notes: list[str] = []
        self.kind = self._kind_of_sums()
        old, new = without(self.shape, self.own_axis), without(ready.frame.cut_shape, self.own_axis)
        self.plane = Plane(old, new, model.device)

    def __iter__(self) -> Iterator[Between]:
        """Yield every slab that was not cut away, in the order in which they lie in the file.

        Along the other axes they have the prepared scan's own spacing.
        """
        image = self.ready.image.to(self.model.device)
        self._show_the_middle(image)
        if math.prod(self.ready.frame.shape) > LARGE_SCAN:
            return_freed_memory()  # of reading, preparing and checking
        if self.settings.skip == "air":
            self._leave_out_air(image)
        slabs = logit_slabs(
            self.asker, image, self.tile, self.settings.overlap, self.own_axis, self.reverse, self.model.batch, self.kind
        )
        finite = map(self._checked, self.model.watched(slabs, self.own_axis, self.reverse))
        return along(finite, self.shape[self.own_axis], self.ready.frame.cut_shape[self.own_axis])

    def decided(self, slab: Between) -> Tensor:
        """Return the structure indices (X, Y) of a slab as it lies in the file."""
        if self.model.regions is None:
            found = self.plane.largest(slab)
        else:
            every = self.plane.every(slab.maps)
            found = self.model.regions.label_map(lambda place: every[..., place] > 0)
        return self.ready.frame.in_file(found, self.axis).cpu()

    def probabilities(self, slab: Between) -> Tensor:
        """Return the probabilities (X, Y, maps) of a slab as it lies in the file, float32."""
        every = self.plane.every(slab.maps)
        found = every.softmax(-1) if self.model.regions is None else every.sigmoid()
        return self.ready.frame.in_file(found, self.axis).cpu()

    def _kind_of_sums(self) -> torch.dtype:
        """Return the type of the sums in the ring; refuse a scan whose ring exceeds the memory."""
        maps = self.model.maps
        sweep = sweep_of(self.model, self.ready, self.axis, self.settings)
        kind = torch.float32
        if ring_bytes(self.shape, sweep, maps) > LARGE_RING:
            kind = torch.float16
            self.notes.append("sums of logits were kept in half precision, for there are many classes")
        needed = ring_bytes(self.shape, sweep, maps, kind) + 4 * math.prod(self.shape)
        needed += 8 * maps * math.prod(self.plane_shape())
        free = free_memory()
        if self.model.device.type == "cpu" and needed > free:
            source = self.ready.source
            raise DataError(
                f"Expected {needed / 2**30:.1f} GiB of free memory for the {maps} classes of {source.path or 'the scan'} on "
                f"{source.shape} voxels, but got {free / 2**30:.1f} GiB. Cut the scan, or take a machine with more."
            )
        return kind

    def plane_shape(self) -> tuple[int, int]:
        """Return the voxels of a slab as it lies in the file."""
        return without(self.ready.frame.shape, self.axis)

    def _show_the_middle(self, image: Tensor) -> None:
        """Let the model check its engine on tiles from the middle of the scan, where there is most to decide."""
        padded, _ = at_least(image, self.tile)
        room = [length - size for length, size in zip(padded.shape[1:], self.tile, strict=True)]
        corners = [tuple(r // 2 for r in room), tuple(r // 3 for r in room)]
        boxes = [tuple(slice(s, s + n) for s, n in zip(corner, self.tile, strict=True)) for corner in dict.fromkeys(corners)]
        tiles = torch.stack([padded[(slice(None), *box)] for box in boxes])
        flat = self.model.flat_axis
        self.notes += self.model.warm_up(tiles if flat is None else tiles.squeeze(flat + 2))

    def _leave_out_air(self, image: Tensor) -> None:
        padded, _ = at_least(image, self.tile)
        sweep = sweep_of(self.model, self.ready, self.axis, self.settings)
        corners = [corner for batch in sweep.batches for corner in batch]
        with torch.inference_mode():
            self.asker.known, note = empty_tiles(self.asker.ask, self._structures_in, padded, self.tile, corners)
        if note:
            self.notes.append(note)

    def _structures_in(self, logits: Tensor) -> Tensor:
        """Return the structure indices of a tile's logits (maps, I, J, K)."""
        regions = self.model.regions
        return logits.argmax(0) if regions is None else regions.label_map(lambda place: logits[place] > 0)

    def _checked(self, slab: Tensor) -> Tensor:
        if not torch.isfinite(slab.sum()):
            coarse = ", or bf16 is too coarse for this model" if self.model.precision == "bf16" else ""
            raise DataError(
                f"The network's answer to {self.ready.source.path or 'the scan'} is not finite. Its intensities are out of the "
                f"ordinary{coarse}, or the checkpoint is damaged."
            )
        return slab


def tile_of(model: Model, ready: Ready, settings: Settings) -> tuple[int, ...]:
    """Return the voxels (I, J, K) of a tile."""
    return fitted_tile(ready.image.shape[1:], model.tile) if settings.tiles == "fitted" else model.tile


def sweep_of(model: Model, ready: Ready, axis: int, settings: Settings) -> Sweep:
    """Return the order in which tiles cover a scan, continued to a tile at least, along `axis` of its file."""
    tile = tile_of(model, ready, settings)
    shape = [max(size, part) for size, part in zip(ready.image.shape[1:], tile, strict=True)]
    own, reverse = ready.frame.prepared_axis(axis)
    return Sweep.over(shape, tile, settings.overlap, own, reverse, model.batch)


def cheapest_axis(models: list[tuple[Model, Ready]], settings: Settings) -> int:
    """Return the axis of the file along which the rings of all models together are smallest."""

    def bytes_along(axis: int) -> int:
        total = 0
        for model, ready in models:
            sweep = sweep_of(model, ready, axis, settings)
            total += ring_bytes(ready.image.shape[1:], sweep, model.maps)
        return total

    return min(range(3), key=bytes_along)

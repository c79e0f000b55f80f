"""Cutting training patches from stored cases: which case, where, and how it is turned, all from the number of the sample.

Sample n is the same whatever the number of workers and whenever the run was interrupted: its randomness comes from
(seed, n) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from medseg_se.data.augmentation import Augmentation, SpatialChange, apply_intensity, draw_intensity, draw_spatial
from medseg_se.data.store import StoredCase
from medseg_se.structures import Structures

Array = npt.NDArray[Any]
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class PatchSettings:
    """What every patch of a run has in common.

    Attributes:
        size: Voxels (I, J, K) of a patch; 1 along the axis across a slice.
        orientation: Where the axes of the prepared scans point.
        foreground: Share of the patches drawn around a voxel of a structure, at most a quarter of the patch off its centre;
            each structure is equally likely.
        flat_axis: The axis across the slice for 2D networks, which is left out of the result.
        seed: Seed of the whole run.
    """

    size: tuple[int, int, int]
    orientation: str
    foreground: float
    flat_axis: int | None
    seed: int


class PatchDataset(Dataset[Sample]):
    """Patches by sample number.

    Args:
        cases: The stored cases; each pass over them takes every case once, in a new order.
        settings: See `PatchSettings`.
        augmentation: Random changes; None for plain patches.
        structures: Tells which labels change places when left and right are mirrored.
    """

    def __init__(
        self, cases: Sequence[StoredCase], settings: PatchSettings, augmentation: Augmentation | None, structures: Structures
    ) -> None:
        self.cases, self.settings, self.augmentation = list(cases), settings, augmentation
        self.mirrored_labels = torch.from_numpy(structures.mirrored().astype(np.int64))
        self.positions = [case.positions() for case in self.cases]
        self.left_right = next(axis for axis, letter in enumerate(settings.orientation) if letter in "LR")

    def __len__(self) -> int:
        """Return the number of cases; sample numbers go on beyond it."""
        return len(self.cases)

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`: "image" float32 (C, *size) and "labels" int64 (*size)."""
        turn, place = divmod(number, len(self.cases))
        order = np.random.default_rng((self.settings.seed, 1, turn)).permutation(len(self.cases))
        chosen = int(order[place])
        case, settings = self.cases[chosen], self.settings
        rng = np.random.default_rng((settings.seed, 2, number))
        centre = self._centre(rng, chosen, case.labels().shape)
        if self.augmentation is None:
            patch, truth = cut_straight(case, centre, settings.size)
        else:
            change = draw_spatial(self.augmentation, rng, settings.orientation, settings.flat_axis)
            patch, truth = cut(case, centre, settings.size, change)
            if self.left_right in change.mirrored:
                truth = torch.where(truth < 0, truth, self.mirrored_labels[truth.clamp(min=0)])
            patch = apply_intensity(patch, draw_intensity(self.augmentation, rng))
        if settings.flat_axis is not None:
            patch, truth = patch.squeeze(settings.flat_axis + 1), truth.squeeze(settings.flat_axis)
        return {"image": patch.contiguous(), "labels": truth.contiguous()}

    def _centre(self, rng: np.random.Generator, chosen: int, shape: Sequence[int]) -> Array:
        """Draw the voxel at the centre of the patch; patches stay inside the scan where it is large enough."""
        positions = self.positions[chosen]
        size = np.array(self.settings.size)
        forced = rng.random() < self.settings.foreground
        if forced and positions:
            places = positions[sorted(positions)[rng.integers(len(positions))]]
            jitter = rng.integers(-(size // 4), size // 4 + 1)
            centre = places[rng.integers(len(places))] + jitter
        else:
            centre = rng.integers(0, np.array(shape))
        low, high = size // 2, np.array(shape) - (size - size // 2)
        return np.where(low <= high, np.clip(centre, low, np.maximum(low, high)), np.array(shape) // 2)


def cut_straight(case: StoredCase, centre: Array, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cut a patch of `size` whose voxel `size // 2` is `centre`; beyond the scan: lowest intensity, background."""
    image, labels = case.image(), case.labels()
    start = centre - np.array(size) // 2
    inside = [slice(max(0, s), max(0, min(n, s + p))) for s, p, n in zip(start, size, labels.shape, strict=True)]
    patch = torch.from_numpy(np.array(image[(slice(None), *inside)]))
    truth = torch.from_numpy(np.array(labels[tuple(inside)])).long()
    before = [part.start - s for part, s in zip(inside, start, strict=True)]
    after = [p - b - (part.stop - part.start) for part, p, b in zip(inside, size, before, strict=True)]
    margins = [int(m) for pair in zip(reversed(before), reversed(after), strict=True) for m in pair]
    if any(margins):
        patch = torch.stack([F.pad(channel, margins, value=low) for channel, low in zip(patch, case.lowest, strict=True)])
        truth = F.pad(truth, margins, value=0)
    return patch, truth


def cut(case: StoredCase, centre: Array, size: Sequence[int], change: SpatialChange) -> tuple[Tensor, Tensor]:
    """Cut a patch as `cut_straight` does, turned, scaled, warped and mirrored by `change`.

    Intensities are interpolated linearly, labels taken from the nearest voxel. Only the part of the scan that the patch
    touches is read.
    """
    if change.matrix is None:
        patch, truth = cut_straight(case, centre, size)
    else:
        places = _places(centre, size, np.array(case.spacing), change.matrix, change.warp)
        patch, truth = _sample(case.image(), case.labels(), places, case.lowest)
    if change.mirrored:
        patch = patch.flip([axis + 1 for axis in change.mirrored])
        truth = truth.flip(list(change.mirrored))
    return patch, truth


def _places(centre: Array, size: Sequence[int], spacing: Array, matrix: Array, warp: Array | None) -> Tensor:
    """Return the voxel coordinates (*size, 3) in the scan that the patch samples; `spacing` and `warp` are in mm."""
    to_voxels = (matrix * spacing) / spacing[:, None]  # patch voxels -> mm -> turned mm -> scan voxels
    places = torch.zeros(*size, 3)
    for axis, length in enumerate(size):
        offsets = torch.arange(length, dtype=torch.float32) - length // 2
        column = torch.from_numpy(to_voxels[:, axis].astype(np.float32))
        places += offsets.reshape([-1 if a == axis else 1 for a in range(3)])[..., None] * column
    if warp is not None:
        points = torch.from_numpy(warp.astype(np.float32))[None]
        displacement = F.interpolate(points, size=tuple(size), mode="trilinear", align_corners=True)[0]
        places += displacement.movedim(0, -1) / torch.from_numpy(spacing.astype(np.float32))
    return places + torch.from_numpy(centre.astype(np.float32))


def _sample(image: Array, labels: Array, places: Tensor, lowest: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Read the box of the scan that `places` (*size, 3) touch and interpolate in it."""
    flat = places.reshape(-1, 3)
    shape = np.array(labels.shape)
    start = np.clip(np.floor(flat.amin(0).numpy()).astype(int) - 1, 0, shape - 1)
    stop = np.clip(np.ceil(flat.amax(0).numpy()).astype(int) + 2, start + 1, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    base = torch.tensor(lowest).reshape(-1, 1, 1, 1)
    source = torch.from_numpy(np.array(image[(slice(None), *box)])) - base
    truth = torch.from_numpy(np.array(labels[box])).float()
    extent = torch.tensor([b - a for a, b in zip(start, stop, strict=True)], dtype=torch.float32)
    # grid_sample wants (x, y, z) = the axes from last to first, with -1 and 1 at the outer faces of the voxels.
    grid = ((2 * (places - torch.from_numpy(start.astype(np.float32))) + 1) / extent - 1).flip(-1)[None]
    patch = F.grid_sample(source[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + base
    nearest = F.grid_sample(truth[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return patch, nearest.round().long()


class EpochSampler(DistributedSampler[int]):
    """Sample numbers of one epoch after another; Lightning calls `set_epoch`.

    It is a `DistributedSampler`, which Lightning takes as it is: with several devices, each draws its own share of an epoch.

    Args:
        length: Samples an epoch, of all devices together.
        first: The number to begin with, where a resumed run goes on within an epoch; later epochs follow `set_epoch`.
        device: Number of this device.
        devices: Number of devices.
    """

    def __init__(self, length: int, first: int | None = None, device: int = 0, devices: int = 1) -> None:
        super().__init__(range(length), devices, device, shuffle=False)  # type: ignore[arg-type]
        self.length, self.first = length, first

    def __len__(self) -> int:
        """Return the samples an epoch on this device."""
        return self.length // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Yield the sample numbers up to the end of the epoch."""
        start = self.epoch * self.length if self.first is None else self.first
        self.first = None
        yield from range(start + self.rank, (start // self.length + 1) * self.length, self.num_replicas)

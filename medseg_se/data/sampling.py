"""Choosing training patches: which case, where, and how it is changed, all from the number of the sample.

Sample n is the same whatever the number of workers and whenever the run was interrupted: its randomness comes from
(seed, n) alone, and the arithmetic runs on one thread, for sums and powers differ in their last digits with the number of
threads. First everything random is drawn (`Draw`), then what the patch touches is read (`RawSample`), then it is changed: by
the process that read it, or later on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from medseg_se.data.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    IntensityChange,
    SpatialChange,
    draw_intensity,
    draw_spatial,
)
from medseg_se.data.cutting import RawPatch, read_patch
from medseg_se.data.intensity_changes import apply_intensity
from medseg_se.data.store import StoredCase
from medseg_se.data.synthesis import SyntheticChange
from medseg_se.data.synthesiser import Synthesiser
from medseg_se.structures import Structures

Array = npt.NDArray[Any]
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class PatchSettings:
    """What every patch of a run has in common.

    Attributes:
        size: Voxels (I, J, K) of a patch; 1 along the axis across a slice.
        orientation: Where the axes of the prepared scans point.
        foreground: Share of the patches drawn around a voxel of a structure, at most a quarter of the patch off its centre.
        flat_axis: The axis across the slice for 2D networks, which is left out of the result.
        seed: Seed of the whole run.
        weights: For each structure from index 1, how often patches are drawn around it relative to the others that the case
            has; none for equally often.
    """

    size: tuple[int, int, int]
    orientation: str
    foreground: float
    flat_axis: int | None
    seed: int
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Everything random about a sample.

    Attributes:
        case: Place of the case.
        centre: The voxel (I, J, K) of the scan at the centre of the patch.
        spatial: How the patch lies in the scan.
        intensity: How its intensities change.
        synthetic: What its intensities are made with instead; None for those of the scan.
    """

    case: int
    centre: Array
    spatial: SpatialChange
    intensity: IntensityChange
    synthetic: SyntheticChange | None = None


@dataclass(frozen=True)
class RawSample:
    """A sample as it was read, with what remains to be done to it.

    Attributes:
        patch: What was read.
        intensity: How its intensities change.
        swapped: Table of structure indices where left and right change places; None where they stay.
        flat_axis: The axis across the slice, which is left out; None for volumes.
        synthetic: Makes the intensities instead, and with what; None for those of the scan.
    """

    patch: RawPatch
    intensity: IntensityChange
    swapped: Array | None
    flat_axis: int | None
    synthetic: tuple[Synthesiser, SyntheticChange] | None = None

    def finished(self) -> Sample:
        """Return "image" float32 (C, *size) and "labels" int64 (*size), made on the device where the patch lies."""
        image, labels = self.patch.cut()
        if self.swapped is not None:
            table = torch.from_numpy(self.swapped).to(labels.device)
            known = table.index_select(0, labels.clamp(min=0).int().view(-1)).view(labels.shape)
            labels = torch.where(labels < 0, labels, known)
        if self.synthetic is None:
            image = apply_intensity(image, self.intensity)
        else:
            synthesiser, change = self.synthetic
            image = synthesiser.make(labels, change)
        if self.flat_axis is not None:
            image, labels = image.squeeze(self.flat_axis + 1), labels.squeeze(self.flat_axis)
        return {"image": image.contiguous(), "labels": labels.long()}


class PatchDataset(Dataset[Sample]):
    """Patches by sample number.

    Args:
        cases: The stored cases; each pass over them takes every case once, in a new order.
        settings: See `PatchSettings`.
        augmentation: Random changes; None for plain patches.
        structures: Tells which labels change places when left and right are mirrored.
        synthesiser: Makes scans for cases of a label map alone, and for some of the others if it is asked for; such patches
            are bent by its own ranges, unless they are plain.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        settings: PatchSettings,
        augmentation: Augmentation | None,
        structures: Structures,
        synthesiser: Synthesiser | None = None,
    ) -> None:
        self.cases, self.settings, self.augmentation = list(cases), settings, augmentation or NO_AUGMENTATION
        self.synthesiser, self.plain = synthesiser, augmentation is None
        self.swapped = structures.mirrored()
        self.weights = np.array(settings.weights or [1.0] * len(structures.names))
        self.left_right = next(axis for axis, letter in enumerate(settings.orientation) if letter in "LR")

    def __len__(self) -> int:
        """Return the number of cases; sample numbers go on beyond it."""
        return len(self.cases)

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`: "image" float32 (C, *size) and "labels" int64 (*size)."""
        with one_thread():
            return self.read(self.draw(number)).finished()

    def draw(self, number: int) -> Draw:
        """Draw everything random about sample `number`."""
        settings = self.settings
        turn, place = divmod(number, len(self.cases))
        order = np.random.default_rng((settings.seed, 1, turn)).permutation(len(self.cases))
        chosen = int(order[place])
        rng = np.random.default_rng((settings.seed, 2, number))
        case, maker = self.cases[chosen], self.synthesiser
        centre = self._centre(rng, case)
        spatial = draw_spatial(self.augmentation, rng, settings.orientation, settings.flat_axis)
        intensity = draw_intensity(self.augmentation, rng, case.channels)
        if maker is None or not maker.takes(case, rng):
            return Draw(chosen, centre, spatial, intensity)
        if not self.plain:
            spatial = maker.deform(rng, settings.size, case.spacing, settings.flat_axis, spatial.mirrored)
        return Draw(chosen, centre, spatial, intensity, maker.draw(rng, settings.size, case.spacing))

    def read(self, draw: Draw) -> RawSample:
        """Read what the drawn patch touches."""
        case, synthetic = self.cases[draw.case], None
        if self.synthesiser is not None and draw.synthetic is not None:
            case, synthetic = case.without_image(), (self.synthesiser, draw.synthetic)
        patch = read_patch(case, draw.centre, self.settings.size, draw.spatial)
        swapped = self.swapped if self.left_right in draw.spatial.mirrored else None
        return RawSample(patch, draw.intensity, swapped, self.settings.flat_axis, synthetic)

    def _centre(self, rng: np.random.Generator, case: StoredCase) -> Array:
        """Draw the voxel at the centre of the patch; patches stay inside the scan where it is large enough."""
        size, shape = np.array(self.settings.size), np.array(case.shape)
        present = [index for index in case.present() if self.weights[index - 1] > 0]
        if rng.random() < self.settings.foreground and present:
            reached = np.cumsum([self.weights[index - 1] for index in present])
            places = case.positions(present[int(np.searchsorted(reached, rng.random() * reached[-1], side="right"))])
            centre = places[rng.integers(len(places))] + rng.integers(-(size // 4), size // 4 + 1)
        else:
            centre = rng.integers(0, shape)
        low, high = size // 2, shape - (size - size // 2)
        return np.where(low <= high, np.clip(centre, low, np.maximum(low, high)), shape // 2)


class RawPatches(Dataset[RawSample]):
    """The samples of a `PatchDataset` as they are read, to be changed on the network's device.

    Args:
        patches: The patches.
    """

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __len__(self) -> int:
        """Return the number of cases; sample numbers go on beyond it."""
        return len(self.patches)

    def __getitem__(self, number: int) -> RawSample:
        """Return sample `number`, with what remains to be done to it."""
        return self.patches.read(self.patches.draw(number))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class OnceSampler(DistributedSampler[int]):
    """Every place once in all, each device its own share, so that no scan counts twice in what the devices find together.

    It is a `DistributedSampler`, which Lightning takes as it is. Where there are fewer scans than devices, each device takes
    all of them: then all count equally often.

    Args:
        length: Number of scans.
        device: Number of this device.
        devices: Number of devices.
    """

    def __init__(self, length: int, device: int = 0, devices: int = 1) -> None:
        shared = length >= devices
        super().__init__(range(length), devices, device, shuffle=False)  # type: ignore[arg-type]
        self.places = range(device, length, devices) if shared else range(length)

    def __len__(self) -> int:
        """Return the scans of this device."""
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        """Yield the places of this device's scans."""
        yield from self.places


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

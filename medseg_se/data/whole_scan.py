"""Whole scans of one size: prepared once and kept as arrays, then turned, shifted and changed at random in training.

Sample n is the same whatever the number of workers and whenever the run was interrupted: its randomness comes from
(seed, n) alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from medseg_se.data.augmentation import Augmentation, draw_intensity, draw_spatial
from medseg_se.data.datalist import Case
from medseg_se.data.entries import entry
from medseg_se.data.intensity_changes import apply_intensity
from medseg_se.data.pictures import Colour, read_picture
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.sampling import Sample, one_thread
from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError
from medseg_se.volumes import Volume

Array = npt.NDArray[Any]
FORMAT = 3
FILE = "image.npy"


@dataclass(frozen=True)
class WholeScan:
    """How a scan of any size becomes an array of one size.

    Attributes:
        preprocessing: What happens first.
        size: Voxels along each axis; two axes for slices.
        channels: Channels of a scan.
        flat_axis: The axis across the slice, of which the middle one is taken; None for volumes.
        colour: How pictures are read; None if the scans are not pictures.
    """

    preprocessing: Preprocessing
    size: tuple[int, ...]
    channels: int
    flat_axis: int | None
    colour: Colour | None

    def read(self, case: Case) -> Tensor:
        """Return the scan of a case, float32 (C, *size); see `prepare`.

        Raises:
            DataError: The scan cannot be used.
        """
        return self.prepare(
            read_channels(case.images, self.channels) if self.colour is None else read_picture(case.images[0], self.colour)
        )

    def prepare(self, image: Volume) -> Tensor:
        """Return a scan (C, I, J, K) as read from its file as float32 (C, *size).

        Without a spacing, it is shrunk or enlarged, its proportions in mm kept, until it just fits; with one, it is cut or
        continued about its middle. What lies beyond the scan has the lowest intensity of its channel.

        Raises:
            DataError: The scan cannot be used.
        """
        prepared = self.preprocessing(image).image
        array, spacing = torch.from_numpy(prepared.array), np.array(prepared.spacing)
        if self.flat_axis is not None:
            array = array.select(self.flat_axis + 1, array.shape[self.flat_axis + 1] // 2)
            spacing = np.delete(spacing, self.flat_axis)
        if self.preprocessing.spacing is None:
            array = resized(array, fitted_shape(array.shape[1:], spacing, self.size))
        return centred(array, self.size)

    @classmethod
    def from_description(cls, data: Mapping[str, Any], channels: int) -> WholeScan:
        """Make the object that the description of a checkpoint tells of; see `WholeScanData.describe`.

        Args:
            data: The part "data" of the description.
            channels: Channels that the network takes.
        """
        return cls(
            Preprocessing.from_dict(data["preprocessing"]), tuple(data["size"]), channels, data["flat_axis"], data["colour"]
        )

    def store(self, case: Case, digest: str, folder: Path) -> Path:
        """Return the file in `folder` with the scan of a case as `read` returns it; made now if it is not there yet.

        Args:
            case: The case.
            digest: Digest of the content of its files.
            folder: Where such files are kept.

        Raises:
            DataError: The scan cannot be used.
            OutputError: The folder cannot be written.
        """
        recipe = json.dumps([FORMAT, self.preprocessing.to_dict(), self.size, self.channels, self.flat_axis, self.colour])
        key = hashlib.blake2b(f"{digest}:{recipe}".encode(), digest_size=16).hexdigest()
        place = folder / f"whole-{key}"
        entry(place, lambda: ({FILE: self.read(case).numpy()}, {}))
        return place / FILE


def fitted_shape(shape: Sequence[int], spacing: Sequence[float] | Array, size: Sequence[int]) -> list[int]:
    """Return the voxels along each axis with which a scan, its proportions in mm kept, just fits into `size`."""
    extent = np.array(shape) * np.array(spacing)
    voxel = (extent / size).max()
    return [max(1, round(length / voxel)) for length in extent]


def resized(array: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample (C, *spatial) to `shape` over the same field of view: linearly, averaging where it becomes coarser."""
    for axis, size in enumerate(shape, start=1):
        if array.shape[axis] != size:
            lines = array.movedim(axis, -1)
            flat = lines.reshape(1, 1, -1, lines.shape[-1])
            scaled = F.interpolate(flat, size=(flat.shape[2], size), mode="bilinear", antialias=True)
            array = scaled.reshape(*lines.shape[:-1], size).movedim(-1, axis)
    return array.contiguous()


def centred(array: Tensor, size: Sequence[int]) -> Tensor:
    """Cut (C, *spatial) to `size` about its middle; an axis that is too short is continued with the lowest intensity."""
    inside, margins = [slice(None)], []
    for have, wanted in zip(array.shape[1:], size, strict=True):
        first = max(0, have - wanted) // 2
        inside.append(slice(first, first + min(have, wanted)))
        missing = max(0, wanted - have)
        margins.append((missing // 2, missing - missing // 2))
    kept = array[tuple(inside)]
    lowest = _lowest(array)
    return F.pad(kept - lowest, [margin for pair in reversed(margins) for margin in pair]) + lowest


def moved(array: Tensor, matrix: Array, shift: Array) -> Tensor:
    """Turn, scale and shift (C, *spatial) about its middle, interpolating linearly.

    Args:
        array: The scan.
        matrix: (d, d), from offsets in voxels in the result to those in the scan.
        shift: (d,), voxels by which the middle of the result lies off that of the scan.
    """
    half = np.array(array.shape[1:]) / 2
    # affine_grid wants (x, y, z) = the axes from last to first, with -1 and 1 at the outer faces of the voxels.
    unit = (matrix * half / half[:, None])[::-1, ::-1]
    theta = np.concatenate([unit, (shift / half)[::-1, None]], axis=1)
    places = F.affine_grid(torch.from_numpy(theta.astype(np.float32))[None], [1, *array.shape], align_corners=False)
    lowest = _lowest(array)
    return F.grid_sample((array - lowest)[None], places, padding_mode="zeros", align_corners=False)[0] + lowest


def _lowest(array: Tensor) -> Tensor:
    return array.amin(dim=tuple(range(1, array.ndim)), keepdim=True)


class WholeScanDataset(Dataset[Sample]):
    """Prepared scans with what is true of them, by sample number: one after the other, as they are.

    Args:
        files: What `WholeScan.store` returned.
        targets: What is true of each.
    """

    def __init__(self, files: Sequence[Path], targets: Tensor) -> None:
        self.files, self.targets = list(files), targets

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.files)

    def __getitem__(self, number: int) -> Sample:
        """Return "image" float32 (C, *size) and "target"."""
        return {"image": self.image(number), "target": self.targets[number]}

    def image(self, place: int) -> Tensor:
        """Return a scan, (C, *size).

        Raises:
            DataError: It was removed from the store since.
        """
        try:
            return torch.from_numpy(np.load(self.files[place]))
        except OSError as error:
            raise DataError(f"Cannot read {self.files[place]}, which was prepared for this run. Run it again.") from error


class TrainingScans(WholeScanDataset):
    """Prepared scans in an order drawn anew for each pass over them, changed at random; sample numbers have no end.

    Args:
        files: What `WholeScan.store` returned.
        targets: What is true of each.
        augmentation: Random changes.
        shift: Largest shift along each axis, as a share of the size.
        scan: How the files were made.
        seed: Seed of the whole run.
    """

    def __init__(
        self, files: Sequence[Path], targets: Tensor, augmentation: Augmentation, shift: float, scan: WholeScan, seed: int
    ) -> None:
        super().__init__(files, targets)
        self.augmentation, self.shift, self.scan, self.seed = augmentation, shift, scan, seed
        self.axes = [axis for axis in range(3) if axis != scan.flat_axis]
        self.spacing = np.array(scan.preprocessing.spacing or (1.0, 1.0, 1.0))[self.axes]

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`: "image" float32 (C, *size) and "target"."""
        turn, place = divmod(number, len(self))
        chosen = int(np.random.default_rng((self.seed, 1, turn)).permutation(len(self))[place])
        with one_thread():
            image = self._changed(self.image(chosen), np.random.default_rng((self.seed, 2, number)))
        return {"image": image, "target": self.targets[chosen]}

    def _changed(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        flat = self.scan.flat_axis
        change = draw_spatial(self.augmentation, rng, self.scan.preprocessing.orientation, flat)
        if change.matrix is not None:
            matrix = change.matrix[np.ix_(self.axes, self.axes)] * self.spacing / self.spacing[:, None]
            shift = rng.uniform(-self.shift, self.shift, size=len(self.axes)) * self.scan.size
            image = moved(image, matrix, shift)
        image = image.flip([self.axes.index(axis) + 1 for axis in change.mirrored])
        volume = image if flat is None else image.unsqueeze(flat + 1)
        volume = apply_intensity(volume, draw_intensity(self.augmentation, rng, len(volume)))
        return (volume if flat is None else volume.squeeze(flat + 1)).contiguous()

"""Volumes that a page carries with it for its 3-D viewer: cut to the structures and as fine as the room for them allows."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from medseg_se.reports.case_view import CaseView, Window
from medseg_se.reports.overlays import grey
from medseg_se.volumes import Volume, resample, resample_labels

_MOST, _LEAST = 4_000_000, 1_000  # voxels: of the finest volumes, and below which there is nothing more to see
_FLAT = 2  # voxels along an axis, below which there is nothing to turn


@dataclass(frozen=True)
class Embedded:
    """Scan, truth and prediction of a case as base64 of gzipped NIfTI, all on one grid.

    Attributes:
        image: The scan in bytes of its window, or None.
        truth: Structure indices.
        prediction: The same.
        spacing: Of their voxels, in mm.
        coarsened: Whether they are coarser than the files.
        centre: The voxel where `CaseView.slices` meet.
    """

    image: str | None
    truth: str
    prediction: str
    spacing: tuple[float, float, float]
    coarsened: bool
    centre: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.image or "") + len(self.truth) + len(self.prediction)

    def to_dict(self) -> dict[str, str | None]:
        """Return what the viewer reads."""
        return {"image": self.image, "truth": self.truth, "prediction": self.prediction}


def embed(view: CaseView, window: Window, most: int) -> Embedded | None:
    """Return the volumes of a case in at most `most` bytes, or None where even the coarsest need more or there is no depth."""
    cut = _cropped(view)
    if min(cut.truth.shape) < _FLAT:
        return None
    place = [voxel - part.start for voxel, part in zip(view.slices, view.box, strict=True)]
    voxels = min(_MOST, int(np.prod(cut.truth.shape)), max(_LEAST, 4 * most))  # hardly ever do four voxels fit a byte
    while True:
        found = _encode(cut, window, coarser_shape(cut.truth, voxels), place)
        if found.size <= most:
            return found
        voxels //= 2
        if voxels < _LEAST:
            return None


def coarser_shape(volume: Volume, most: int) -> tuple[int, int, int]:
    """Return the voxels along each axis of a grid of at most about `most` voxels: the finest axes are coarsened first."""
    lengths, spacing = np.array(volume.shape), np.array(volume.spacing)
    if lengths.prod() <= most:
        return volume.shape
    low, high = float(spacing.min()), float((lengths * spacing).max())
    for _ in range(40):  # halves, until the spacing is found to far less than a voxel
        middle = (low + high) / 2
        enough = _lengths(lengths, spacing, middle).prod() <= most
        low, high = (low, middle) if enough else (middle, high)
    i, j, k = (int(length) for length in _lengths(lengths, spacing, high))
    return i, j, k


def _lengths(lengths: Any, spacing: Any, finest: float) -> Any:
    return np.maximum(1, np.floor(lengths * spacing / np.maximum(spacing, finest) + 1e-9)).astype(np.int64)


def _cropped(view: CaseView) -> CaseView:
    box = view.box

    def cut(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        return replace(volume, array=np.ascontiguousarray(volume.array[(slice(None), *box)]), affine=affine)

    return replace(
        view,
        image=None if view.image is None else cut(view.image),
        truth=cut(view.truth),
        prediction=cut(view.prediction),
    )


def _encode(cut: CaseView, window: Window, shape: tuple[int, int, int], place: Sequence[int]) -> Embedded:
    truth, prediction = resample_labels(cut.truth, shape), resample_labels(cut.prediction, shape)
    highest = int(max(truth.array.max(initial=0), prediction.array.max(initial=0)))
    kind = np.uint8 if highest < 256 else np.int16
    image = None
    if cut.image is not None:
        # Bytes before they are resampled: what lies far outside the window, as metal does, then spoils nothing beside it.
        shown = replace(cut.image, array=grey(cut.image.array, window).astype(np.float32))
        image = _packed(resample(shown, shape), np.uint8)
    old = cut.truth.shape
    i, j, k = (int((voxel + 0.5) * new / length) for voxel, new, length in zip(place, shape, old, strict=True))
    maps = [_packed(labels, kind, "label") for labels in (truth, prediction)]
    return Embedded(image, maps[0], maps[1], truth.spacing, shape != old, (i, j, k))


def _packed(volume: Volume, kind: type[np.generic], intent: str = "none") -> str:
    """Return a volume as base64 of gzipped NIfTI; NiiVue draws what is intended as "label" with colours of its own each."""
    image = nib.Nifti1Image(np.rint(volume.array[0]).astype(kind), volume.affine)
    image.header.set_intent(intent)
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=9, mtime=0)).decode("ascii")

"""What a report shows of one case: scan, truth and prediction turned to (R, A, S), where to cut them, and in which window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import describes_dataset, read_datalist
from medseg_se.errors import DataError
from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.result import Evaluation
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, case_name, is_scan, on_grid_of, read_image, read_labels, reorient

Array = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

_MARGIN = 0.2  # of the structures' extent, shown around them on each side
_FLATTEST = 0.5  # shortest over longest side of the box that is shown, where the scan reaches that far
_AIR = -500  # HU; a scan that goes below holds Hounsfield units


@dataclass(frozen=True)
class Window:
    """The intensities that are shown as black and white, and what that window is called."""

    low: float
    high: float
    name: str


# The largest median intensity inside the structures in HU, and the window that is usual for what lies there.
_CT_WINDOWS = (
    (-400.0, Window(-1350, 150, "lung window, −1350 … 150 HU")),
    (180.0, Window(-160, 240, "soft-tissue window, −160 … 240 HU")),
    (np.inf, Window(-450, 1050, "bone window, −450 … 1050 HU")),
)


@dataclass(frozen=True)
class CaseView:
    """A case with axes (R, A, S).

    Attributes:
        id: Its name.
        image: The first channel of the scan (1, I, J, K), if there is one.
        truth: Structure indices 0 … N (1, I, J, K); 0 where the truth is unknown.
        prediction: The same; 0 where the truth is unknown, for nothing is judged there.
        note: Why there is no scan, or an empty string.
    """

    id: str
    image: Volume | None
    truth: Volume
    prediction: Volume
    note: str = ""

    @cached_property
    def box(self) -> Box:
        """The voxels that hold a structure, with a margin; all voxels if there is none."""
        shown = (self.truth.array[0] > 0) | (self.prediction.array[0] > 0)
        spans = []
        for axis, length in enumerate(shown.shape):
            places = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
            start, stop = (int(places[0]), int(places[-1]) + 1) if places.size else (0, length)
            spans.append((start, stop, length, self.truth.spacing[axis]))
        least = _FLATTEST * max((stop - start) * step for start, stop, _, step in spans)
        found = []
        for start, stop, length, step in spans:
            more = max(round(_MARGIN * (stop - start)), round((least / step - (stop - start)) / 2))
            found.append(slice(max(0, start - more), min(length, stop + more)))
        return found[0], found[1], found[2]

    def window(self) -> Window:
        """Return the usual window for what is segmented, where the scan holds HU; else one that suits its intensities."""
        if self.image is None:
            return Window(0, 1, "")
        values = self.image.array[0][self.box]
        finite = values[np.isfinite(values)]
        if finite.size and finite.min() < _AIR:
            inside = values[(self.truth.array[0][self.box] > 0) & np.isfinite(values)]
            middle = float(np.median(inside)) if inside.size else 0.0
            return next(window for most, window in _CT_WINDOWS if middle < most)
        low, high = (float(value) for value in np.percentile(finite, [0.5, 99.5])) if finite.size else (0.0, 1.0)
        high = high if high > low else low + 1
        return Window(low, high, f"window {low:.4g} … {high:.4g}")

    @cached_property
    def slices(self) -> tuple[int, int, int]:
        """Return the slice along each axis where truth and prediction differ most, every structure counted by its size.

        Where they do not differ, the slice with most of the structures.
        """
        truth, prediction = self.truth.array[0], self.prediction.array[0]
        size = np.maximum(np.bincount(truth.ravel()), 1), np.maximum(np.bincount(prediction.ravel()), 1)
        weight = np.zeros(truth.shape, dtype=np.float32)
        parted = truth != prediction
        if not parted.any():
            parted = truth > 0
        for labels, sizes in zip((truth, prediction), size, strict=True):
            share = 1 / sizes.astype(np.float32)
            share[0] = 0
            weight += np.where(parted, share[labels], np.float32(0))
        i, j, k = (_middle_of_best(weight.sum(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3))
        return i, j, k


def view_case(case: CaseResult, structures: Structures, image: Path | None) -> CaseView:
    """Read what is to be shown of a judged case; a missing or failed prediction is an empty one.

    Args:
        case: What was found of it, with its files.
        structures: What the label values mean.
        image: Its scan, if there is one.

    Raises:
        DataError: Truth or prediction cannot be read any more, or lie on other grids than when they were judged.
    """
    if case.truth is None:
        raise DataError(f"The evaluation does not say where the truth of {case.id} lies.")
    truth = _labels(case.truth, structures)
    unknown = truth.array < 0
    if case.failure is not None or case.prediction is None:
        predicted = np.zeros_like(truth.array)
    else:
        volume = _labels(case.prediction, replace(structures, ignore=None))
        difference = volume.same_grid(truth)
        if difference and case.resampled is None:
            raise DataError(f"{case.prediction} lies on a different grid: {difference} (prediction against truth).")
        predicted = np.where(unknown, np.int16(0), (on_grid_of(volume, truth) if difference else volume).array)
    truth = replace(truth, array=np.where(unknown, np.int16(0), truth.array))
    scan, note = _scan(image, truth)
    turned = [reorient(volume, "RAS") for volume in (truth, replace(truth, array=predicted))]
    return CaseView(case.id, None if scan is None else reorient(scan, "RAS"), turned[0], turned[1], note)


def find_images(evaluation: Evaluation, source: Path | None = None) -> dict[str, Path]:
    """Return case → its scan (of several channels, the first).

    Args:
        evaluation: What was judged.
        source: A dataset, or a folder of scans named as the cases (or as nnU-Net names first channels, CASE_0000). If None,
            the dataset that the truths belong to, if they do.

    Raises:
        DataError: `source` does not exist, or holds no scan of a judged case.
    """
    judged = {case.id for case in evaluation.cases}
    if source is None:
        truths = [case.truth.absolute() for case in evaluation.cases if case.truth is not None]
        roots = dict.fromkeys(folder for path in truths for folder in list(path.parents)[:2])
        found = {name: path for root in roots if _is_dataset(root) for name, path in _dataset_images(root).items()}
        return {name: path for name, path in found.items() if name in judged}
    if source.is_file() or _is_dataset(source):
        found = _dataset_images(source)
    elif source.is_dir():
        named = {case_name(path): path for path in sorted(source.iterdir()) if is_scan(path)}
        found = {name.removesuffix("_0000"): path for name, path in named.items()} | named
    else:
        raise DataError(f"No such scans: {source}. Expected a dataset, or a folder of scans named as the cases.")
    if not judged & set(found):
        raise DataError(f"{source} has no scan of a judged case, such as {min(judged, default='none')}.")
    return {name: path for name, path in found.items() if name in judged}


def _is_dataset(folder: Path) -> bool:
    return folder.is_dir() and describes_dataset(folder)


def _dataset_images(source: Path) -> dict[str, Path]:
    datalist = read_datalist(source)
    return {case.id: case.images[0] for case in (*datalist.training, *datalist.test) if case.images}


def _labels(path: Path, structures: Structures) -> Volume:
    volume = read_labels(path)
    return replace(volume, array=structures.encode(volume.array, where=str(path)))


def _scan(path: Path | None, truth: Volume) -> tuple[Volume | None, str]:
    """Return the first channel on the grid of the truth, or the reason why it cannot be shown."""
    if path is None:
        return None, "no scan was given, so the structures are shown alone"
    try:
        scan = read_image(path)
    except DataError as error:
        return None, f"the scan is not shown: {error}"
    if difference := scan.same_grid(truth):
        return None, f"the scan {path} is not shown, for it lies on a different grid than the truth: {difference}"
    return replace(scan, array=scan.array[:1], affine=truth.affine), ""


def _middle_of_best(scores: Array) -> int:
    best = np.flatnonzero(scores >= scores.max(initial=0) * (1 - 1e-6))
    return int(best[len(best) // 2])

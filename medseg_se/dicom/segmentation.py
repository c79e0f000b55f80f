"""DICOM segmentations out: a label map as one object that an archive keeps beside the series it was made from.

Binary, one segment a structure (DICOM PS3.3, A.51). Written with highdicom, https://doi.org/10.1007/s10278-022-00683-y.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.dicom import Series, find_series
from medseg_se.dicom.codes import Code, meaning_of
from medseg_se.errors import DataError
from medseg_se.files import atomic_write
from medseg_se.optional import load_optional
from medseg_se.structures import Structures
from medseg_se.version import __version__
from medseg_se.volumes import Volume

Array = npt.NDArray[Any]

PROGRAM = "medseg_se"
_EMPTY_IF_MISSING = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
    "ReferringPhysicianName",
)
"""Entries that a segmentation repeats and that may be empty, but not be absent (type 2); anonymised series lack some."""
_LONGEST_LABEL = 64  # characters of a segment's label (LO)


def write_dicom_seg(
    labels: Volume, series: Series | Path, structures: Structures, path: Path, model: str = "", every: bool = False
) -> bool:
    """Write a label map as a DICOM segmentation of the series that it was made from, atomically.

    A frame is a slice of a structure, in the place of the slice of the series that it refers to; empty ones are left out.
    Patient, study and frame of reference are those of the series.

    Args:
        labels: Label values (1, I, J, K) on the grid of the series, whichever way its axes are turned.
        series: The series, or its folder or one of its files.
        structures: What the values mean; each structure that is present becomes a segment that is called after it.
        path: The file.
        model: What identifies the model, such as the digest of its checkpoint.
        every: Whether structures that are not present become segments too, of no frame.

    Returns:
        Whether it was written. Of a label map that shows no structure at all none can be: a segmentation has frames.

    Raises:
        DataError: The series cannot be read or is not one volume, the label map lies on another grid, or holds values that are
            no structure.
        OutputError: The file cannot be written.
        UsageError: highdicom is not installed.
    """
    highdicom = load_optional("highdicom")
    series = series if isinstance(series, Series) else _only_series(Path(series))
    indices = structures.encode(on_series(labels, series), where=str(labels.path or "the label map"))
    present = [index for index in range(1, structures.num_classes) if every or (indices == index).any()]
    if not (indices > 0).any():
        with suppress(FileNotFoundError):  # what an earlier run found there would be taken for the result of this one
            path.unlink()
        return False
    numbers = np.zeros(structures.num_classes + 1, dtype=np.uint16)  # the last one: of voxels whose truth is unknown, -1
    numbers[present] = np.arange(1, len(present) + 1)
    sources = _headers(series)
    segments = [
        _segment(highdicom, number, structures.names[index - 1], model) for number, index in enumerate(present, start=1)
    ]
    # It prints names of patients that have no ^ in them.
    warnings.filterwarnings("ignore", "The string .* is unlikely to represent", UserWarning)
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=numbers[indices],
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=_series_number(sources[0]),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=PROGRAM,
        manufacturer_model_name=PROGRAM,
        software_versions=__version__,
        device_serial_number="none",  # asked for, and a program has none
        content_label="SEGMENTATION",
        content_description="Automatic segmentation",
        omit_empty_frames=True,
        series_description="Segmentation",
    )
    with atomic_write(path) as stream:
        made.save_as(stream)
    return True


def on_series(labels: Volume, series: Series) -> Array:
    """Return label values (slices, rows, columns) in the order of the slices of a series.

    Args:
        labels: Label map (1, I, J, K) on the same grid, whose axes may be in another order and point the other way.
        series: A series without a problem.

    Raises:
        DataError: The series is no volume, or the grids are not the same.
    """
    if series.affine is None:
        raise DataError(f"The series in {series.folder} {series.problem}")
    rows, columns = (int(series.slices[0].tags[tag]) for tag in ("Rows", "Columns"))
    steps = np.linalg.solve(series.affine[:3, :3], labels.affine[:3, :3])  # of the series, for one step of the label map
    turn = np.rint(steps).astype(int)
    order = np.abs(turn).argmax(axis=1)  # axis of the label map that runs along each axis of the series
    turned = np.transpose(labels.array[0], order) if sorted(order) == [0, 1, 2] else labels.array[0]
    affine = labels.affine[:, [*order, 3]].copy()
    for axis in range(3):
        if turn[axis, order[axis]] < 0:
            affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
            affine[:3, axis] *= -1
            turned = np.flip(turned, axis)
    grid = Volume(np.broadcast_to(np.uint8(0), (1, columns, rows, len(series.slices))), series.affine)
    difference = grid.same_grid(Volume(turned[None], affine))
    if difference:
        raise DataError(
            f"Expected a label map on the grid of the series in {series.folder}, but {labels.path or 'it'} lies on another: "
            f"{difference}."
        )
    return np.ascontiguousarray(turned.transpose(2, 1, 0))


def _only_series(source: Path) -> Series:
    """Return the series in a folder, or of a file.

    Raises:
        DataError: There is none, or several.
    """
    found = find_series(source).series
    readable = [one for one in found if not one.problem]
    if len(readable) == 1:
        return readable[0]
    if not found:
        raise DataError(f"Expected the series that was segmented in {source}, but found no DICOM image.")
    if not readable:
        raise DataError(f"The series in {source} {found[0].problem}")
    raise DataError(f"Expected the one series that was segmented in {source}, but found {len(readable)}; name a file of it.")


def _headers(series: Series) -> list[Any]:
    """Read the headers of the slices in their order, completed where they lack what a segmentation must repeat.

    Raises:
        DataError: A file cannot be read.
    """
    pydicom = load_optional("pydicom")
    headers = []
    for one in series.slices:
        try:
            header = pydicom.dcmread(one.path, stop_before_pixels=True, force=True)  # some have no preamble
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise DataError(f"Cannot read {one.path}: {error}. Copy it again.") from error
        for name in _EMPTY_IF_MISSING:
            if name not in header:
                setattr(header, name, "")
        if not header.get("FrameOfReferenceUID"):  # series that predate it; the same for all slices and every run
            header.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=[series.uid, "frame of reference"])
        headers.append(header)
    return headers


def _series_number(source: Any) -> int:
    """Return a number that shows from which series it was made, and that no scanner gives: the series' own, followed by 99."""
    try:
        return min(int(source.SeriesNumber or 0) * 100 + 99, 2**31 - 1)
    except (AttributeError, TypeError, ValueError):
        return 99


def _segment(highdicom: Any, number: int, name: str, model: str) -> Any:
    meaning = meaning_of(name)
    parameters: Mapping[str, str] | None = {"checkpoint": model} if model else None
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=PROGRAM, family=_coded(highdicom, ("123110", "Artificial Intelligence"), "DCM"), version=__version__,
        parameters=parameters,
    )  # fmt: skip
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_LONGEST_LABEL],
        segmented_property_category=_coded(highdicom, meaning.category),
        segmented_property_type=_coded(highdicom, meaning.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if meaning.side:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(highdicom, meaning.side)]
    return segment


def _coded(highdicom: Any, code: Code, scheme: str = "SCT") -> Any:
    value, words = code
    return highdicom.sr.CodedConcept(value, scheme, words)

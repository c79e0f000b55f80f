"""Headers of DICOM files: what a file is, and the few entries from which volumes are put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.files import files_below

Array = npt.NDArray[Any]

TAGS = {
    "ImageType": "0008|0008",
    "SOPClassUID": "0008|0016",
    "SOPInstanceUID": "0008|0018",
    "AcquisitionTime": "0008|0032",
    "Modality": "0008|0060",
    "Manufacturer": "0008|0070",
    "PatientName": "0010|0010",
    "PatientID": "0010|0020",
    "PatientBirthDate": "0010|0030",
    "EchoTime": "0018|0081",
    "EchoNumbers": "0018|0086",
    "MagneticFieldStrength": "0018|0087",
    "TriggerTime": "0018|1060",
    "DiffusionBValue": "0018|9087",
    "StudyInstanceUID": "0020|000d",
    "SeriesInstanceUID": "0020|000e",
    "AcquisitionNumber": "0020|0012",
    "InstanceNumber": "0020|0013",
    "ImagePositionPatient": "0020|0032",
    "ImageOrientationPatient": "0020|0037",
    "TemporalPositionIdentifier": "0020|0100",
    "SamplesPerPixel": "0028|0002",
    "PhotometricInterpretation": "0028|0004",
    "NumberOfFrames": "0028|0008",
    "Rows": "0028|0010",
    "Columns": "0028|0011",
    "PixelSpacing": "0028|0030",
    "RescaleSlope": "0028|1053",
    "RescaleType": "0028|1054",
    "Units": "0054|1001",
    "FrameReferenceTime": "0054|1300",
}
NO_DICOM, NO_IMAGE, SECONDARY, LOCALIZER = (
    "no DICOM file",
    "no scan (report, contour, segmentation, plan or the like)",
    "secondary capture",
    "localizer",
)
# SOP classes: the directory of a disc; waveforms, presentation states, plots, registrations and segmentations, real-world
# values, structured reports, documents, radiotherapy objects, protocols.
_NO_IMAGE = re.compile(r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|11|66|67|68|88|104|200|481))(\.|$)")
_SECONDARY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.|$)")
_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]+)", re.DOTALL)
# The identifier of the study is followed by that of the series; in references to other series it is not.
_SERIES = re.compile(rb"\x20\x00\x0d\x00(?:UI..|....)[0-9.]+\x00?\x20\x00\x0e\x00(?:UI..|....)([0-9.]+)", re.DOTALL)


@dataclass(frozen=True)
class Slice:
    """One image file.

    Attributes:
        path: The file.
        tags: The header entries of `TAGS` that it has, by name; none if it cannot be read.
    """

    path: Path
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """What messages call it; not by the name of its file, which may be that of a patient."""
        return f"instance {self.tags.get('InstanceNumber', 'without a number')}"

    def numbers(self, tag: str, count: int) -> Array | None:
        """Return a tag of `count` numbers, or None if it is missing or holds something else."""
        try:
            values = np.array([float(part) for part in self.tags.get(tag, "").split("\\")])
        except ValueError:
            return None
        return values if values.size == count and np.isfinite(values).all() else None


def files_of(source: Path) -> Iterator[Path]:
    """Yield all files in and below a folder, or those beside a file; hidden ones are left out.

    Raises:
        DataError: A folder cannot be looked into.
    """
    paths = files_below(source) if source.is_dir() else source.parent.glob("[!.]*")
    yield from (path for path in paths if path.is_file() or (path.is_symlink() and not path.is_dir()))


def look(path: Path) -> Slice | str:
    """Return the header of an image, or in words what else the file is."""
    try:
        with path.open("rb") as stream:
            head = stream.read(2048)
    except OSError:
        return Slice(path, {})
    if head[128:132] != b"DICM" and head[:2] not in (b"\x08\x00", b"\x02\x00"):  # the latter: without a preamble
        return NO_DICOM
    if (found := _CLASS.search(head)) and (kind := _passed_over(found[1].decode())):
        return kind
    try:
        reader = reader_of(path)
        reader.ReadImageInformation()
    except RuntimeError:
        return Slice(path, {})
    tags = {name: _plain(reader.GetMetaData(tag)) for name, tag in TAGS.items() if reader.HasMetaDataKey(tag)}
    if kind := _passed_over(tags.get("SOPClassUID", "")):
        return kind
    if {"LOCALIZER", "SCOUT"} & set(tags.get("ImageType", "").upper().split("\\")):
        return LOCALIZER
    return Slice(path, {name: value for name, value in tags.items() if value})


def _plain(value: str) -> str:
    """Return a value as text that can be written: letters in an encoding other than UTF-8 become question marks."""
    return value.encode(errors="surrogateescape").decode(errors="replace").strip(" \0")


def reader_of(path: Path) -> Any:
    """Return a SimpleITK reader of one DICOM file."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def series_of_damaged(path: Path) -> str:
    """Return the identifier of the series that a truncated file says it belongs to; empty if it does not get that far."""
    try:
        with path.open("rb") as stream:
            found = _SERIES.search(stream.read(2**20))
    except OSError:
        return ""
    return found[1].decode() if found else ""


def _passed_over(uid: str) -> str:
    if _NO_IMAGE.match(uid):
        return NO_IMAGE
    return SECONDARY if _SECONDARY.match(uid) else ""

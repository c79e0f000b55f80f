"""DICOM among what the user named: every series becomes a case, called after its folder and never after a patient.

A scanner's folder holds series that make no volume too. They become cases that fail with the reason when they are read, so that
nothing is passed over in silence.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg_se.data.datalist import Case
from medseg_se.dicom import Series, Slice, find_series
from medseg_se.dicom.headers import NO_DICOM, look, reader_of
from medseg_se.errors import DataError

SERIES = "dicom"
"""The attribute of a case that holds its series, one a channel."""
_IDENTITY = ("PatientName", "PatientID", "PatientBirthDate")
_SERIES_NUMBER, _IDENTITY_REMOVED = "0020|0011", "0012|0062"


@dataclass(frozen=True)
class NamedSeries:
    """A series and what its folder calls it.

    Attributes:
        name: Safe as the name of a file; several series may have the same.
        series: The series.
    """

    name: str
    series: Series


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, whatever it is called."""
    return look(path) != NO_DICOM


def find_named(source: Path) -> list[NamedSeries]:
    """Return the series in a folder and those below it, or the one that a file belongs to; none if there is no DICOM file.

    Raises:
        DataError: A file is DICOM, but no scan.
    """
    found = find_series(source)
    lost = [
        Series("", (Slice(path, {}),), problem="cannot be read: it is truncated or corrupt. Copy it again.")
        for path in found.damaged
    ]
    if source.is_file() and not found.series and not lost:
        raise DataError(f"Expected a scan, but {source} is something else: {look(source)}.")
    root = (source if source.is_dir() else source.parent).resolve()
    return [NamedSeries(_folder_name(series, root), series) for series in (*found.series, *lost)]


def cases_of(found: Sequence[NamedSeries], channels: int) -> list[Case]:
    """Make cases of series: one of each, or, for several channels, of those in folders named `CASE_0000`, `CASE_0001`, ….

    Raises:
        DataError: There are several channels, and the names of the folders do not say which series is which.
    """
    together: dict[str, list[Series]] = defaultdict(list)
    for one in found:
        together[one.name].append(one.series)
    if channels == 1:
        return [
            _case(name, [part]) for folder, series in together.items() for name, part in _told_apart(folder, series).items()
        ]
    stems: dict[str, dict[int, list[Series]]] = defaultdict(dict)
    for name, series in together.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if match:
            stems[match.group(1)][int(match.group(2))] = series
    complete = all(sorted(numbers) == list(range(channels)) for numbers in stems.values())
    single = all(len(series) == 1 for series in together.values())
    if not complete or not single or sum(map(len, stems.values())) != len(together):
        raise DataError(
            f"Expected scans of {channels} channels, but a DICOM series is one, and which belong together is not known for "
            "sure. Put the series of each channel, and nothing else, into a folder named CASE_0000, CASE_0001, …, or convert "
            "them with `medseg-prep dicom`."
        )
    return [_case(stem, [numbers[number][0] for number in range(channels)]) for stem, numbers in stems.items()]


def _case(name: str, series: Sequence[Series]) -> Case:
    if any(_identifies(name, one) for one in series):
        name = f"series_{_digest(series[0])}{f'_{series[0].part}' if series[0].part else ''}"
    images = tuple(one.path for part in series for one in part.slices)
    return Case(name, images, group=name, attributes={SERIES: tuple(_without_identity(one) for one in series)})


def _folder_name(series: Series, root: Path) -> str:
    """Return the way from the folder that was named to that of the series, or its own name if that is where the series lies."""
    folder = Path(os.path.commonpath([one.path.resolve().parent for one in series.slices]))
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return _safe("_".join(parts) or root.name) or "series"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")


def _told_apart(folder: str, series: Sequence[Series]) -> dict[str, Series]:
    """Name the series of one folder: by their numbers where these tell them apart, else by a digest of what identifies them."""
    numbers = {_digest(one): _safe(_entry(one, _SERIES_NUMBER)) for one in series}
    counted = Counter(numbers.values())
    named = {}
    for one in series:
        digest = _digest(one)
        number = numbers[digest]
        own = [number if number and counted[number] == 1 else digest] if len(numbers) > 1 else []
        named["_".join([folder, *own, *([str(one.part)] if one.part else [])])] = one
    return named


def _identifies(name: str, series: Series) -> bool:
    """Tell whether a name holds a part of the patient's name or number, unless the header says that these are made up."""
    tags = series.slices[0].tags
    told = " ".join(tags.get(tag, "") for tag in _IDENTITY).lower()
    words = [word for word in re.split(r"[\W_]+", told) if len(word) > 2]  # shorter ones are in every name
    return any(word in name.lower() for word in words) and _entry(series, _IDENTITY_REMOVED).upper() != "YES"


def _without_identity(series: Series) -> Series:
    """Return a series that can travel to other processes and machines without saying whose it is."""
    bare = [Slice(one.path, {tag: value for tag, value in one.tags.items() if tag not in _IDENTITY}) for one in series.slices]
    return replace(series, slices=tuple(bare))


def _digest(series: Series) -> str:
    return hashlib.blake2b((series.uid or str(series.slices[0].path)).encode(errors="replace"), digest_size=6).hexdigest()


def _entry(series: Series, tag: str) -> str:
    """Return an entry of the header of the first slice; empty if it has none or cannot be read."""
    reader = reader_of(series.slices[0].path)
    try:
        reader.ReadImageInformation()
        return str(reader.GetMetaData(tag)).strip(" \0") if reader.HasMetaDataKey(tag) else ""
    except RuntimeError:
        return ""

"""DICOM: the volumes in a folder of files, found by their headers and read with their place in the world.

Files are grouped by SeriesInstanceUID, whatever they are called and wherever they lie, and sorted by position. A series that
is several volumes (echoes, time points, orientations) is parted. One that makes no whole volume says why. Values are those
of the modality: rescale slope and intercept are applied slice by slice. Messages name slices by their instance number.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_se.dicom.grid import Array
from medseg_se.dicom.headers import Slice, files_of, look, reader_of, series_of_damaged
from medseg_se.dicom.series import Series, volumes_of
from medseg_se.errors import DataError
from medseg_se.nifti import MEMORY_LIMIT
from medseg_se.processors import at_once
from medseg_se.volumes import Volume

__all__ = ["Found", "Series", "Slice", "find_series", "read_series"]

_MODALITY_LUT = re.compile(rb"\x28\x00\x00\x30(?:SQ\x00\x00)?....\xfe\xff\x00\xe0", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        series: The volumes, in the order of their series' identifiers; those with a `problem` cannot be read.
        skipped: What was passed over because it is no scan, in words → how many files.
        damaged: Files that cannot be read and do not say which series they belong to.
    """

    series: tuple[Series, ...]
    skipped: Mapping[str, int]
    damaged: tuple[Path, ...]


def find_series(source: Path | str) -> Found:
    """Find the series in a folder and all folders below it; of a file, the series that it and others beside it make.

    Only headers are looked at.

    Raises:
        DataError: There is no such file or folder.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"No such file or folder: {source}.")
    paths = sorted(files_of(source))
    with ThreadPoolExecutor(at_once()) as pool:
        looked = list(pool.map(look, paths))
    whole: dict[str, list[Slice]] = defaultdict(list)
    torn: dict[str, list[Slice]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for path, one in zip(paths, looked, strict=True):
        if isinstance(one, Slice):
            uid = one.tags.get("SeriesInstanceUID", "") if one.tags else series_of_damaged(path)
            (whole if one.tags else torn)[uid].append(one)
        elif source in (path, *path.parents):  # of the files beside a single one, only slices of its series matter
            skipped[one] += 1
    damaged = tuple(one.path for one in torn.pop("", []))
    names = sorted({*whole, *torn})
    if source.is_file():
        names = [uid for uid in names if any(one.path == source for one in [*whole[uid], *torn[uid]])]
        damaged = tuple(path for path in damaged if path == source)
    series: list[Series] = []
    for uid in names:
        once = _without_copies(whole[uid])
        skipped["copy of an image"] += len(whole[uid]) - len(once)
        series += volumes_of(uid, once or torn[uid], len(torn[uid]))
    return Found(tuple(series), {what: count for what, count in sorted(skipped.items()) if count}, damaged)


def read_series(series: Series, name: str | None = None) -> Volume:
    """Read a series as float32 (1, I, J, K): columns, rows and slices.

    Args:
        series: One without a problem.
        name: What messages call it. Without one they name folder and file, which may be called like a person.

    Raises:
        DataError: It makes no volume, a file cannot be read, or its values cannot be told for sure.
    """
    where = name or f"The series in {series.folder}"
    if series.affine is None:
        raise DataError(f"{where} {series.problem}")
    rows, columns = (int(series.slices[0].tags[tag]) for tag in ("Rows", "Columns"))
    if 4 * len(series.slices) * rows * columns > MEMORY_LIMIT:
        raise DataError(f"{where} has {len(series.slices)} slices of {rows} x {columns}, more than fits in memory.")
    planes = np.empty((len(series.slices), rows, columns), dtype=np.float32)
    for plane, one in zip(planes, series.slices, strict=True):
        try:
            plane[:] = _pixels(one.path, "RescaleSlope" in one.tags, (rows, columns))
        except DataError as error:
            raise DataError(f"{where} cannot be read: {one.name}{'' if name else f' ({one.path})'} {error}") from error
    return Volume(np.ascontiguousarray(planes.transpose(2, 1, 0))[None], series.affine, path=Path(name or series.folder))


def _without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """Drop files that are the same image once more; some tools give all images one identifier, so that is not enough."""
    first: dict[tuple[str, ...], Slice] = {}
    for one in slices:
        facts = [one.tags.get(tag, "") for tag in ("SOPInstanceUID", "ImagePositionPatient", "InstanceNumber")]
        first.setdefault(tuple(facts) if facts[0] else (str(one.path),), one)
    return list(first.values())


def _pixels(path: Path, rescaled: bool, shape: tuple[int, int]) -> Array:
    """Return the values (rows, columns) of a slice; GDCM applies slope and intercept, but no lookup table."""
    import SimpleITK

    try:
        if not rescaled and _MODALITY_LUT.search(path.read_bytes()):
            raise DataError("codes its values by a lookup table (ModalityLUTSequence). Export it with rescaled values.")
        array: Array = SimpleITK.GetArrayFromImage(reader_of(path).Execute())
    except (OSError, RuntimeError) as error:
        raise DataError("is truncated, corrupt or in an unknown encoding. Copy it again.") from error
    if array.size != shape[0] * shape[1]:
        raise DataError(f"holds {array.shape} pixels where the header says {shape}. Copy it again.")
    return array.reshape(shape)

"""Series: the slices of one volume, sorted and placed, or why they make none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_se.dicom.grid import Array, count_places, directions_of, lay_out
from medseg_se.dicom.headers import Slice
from medseg_se.errors import DataError

# What can tell volumes of one series apart, tried in this order.
APART = (
    *("EchoNumbers", "EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "FrameReferenceTime"),
    *("ImageType", "AcquisitionNumber", "AcquisitionTime"),
)


# Items of an ImageType, from the third on, that say what kind of image a slice is; one volume has one kind.
_KINDS = {
    *("M", "MAGNITUDE", "P", "PHASE", "R", "REAL", "I", "IMAGINARY", "W", "WATER", "F", "FAT"),
    *("IP", "IN_PHASE", "OP", "OPP_PHASE", "OUT_PHASE", "ADC", "FA", "TRACEW"),
}


@dataclass(frozen=True)
class Series:
    """The slices of one volume.

    Attributes:
        uid: The SeriesInstanceUID.
        slices: Sorted along their normal if they make a volume.
        affine: (4, 4) from (column, row, slice) to RAS+ mm; None if they make none.
        problem: Why they make none, as what follows the name of the series: "has a gap …". Empty if they do.
        part: Number of this volume in its series, from 1; 0 if the series is one volume.
        parted_by: The tags that tell it from the other volumes of its series.
    """

    uid: str
    slices: tuple[Slice, ...]
    affine: npt.NDArray[np.float64] | None = None
    problem: str = ""
    part: int = 0
    parted_by: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its first slice lies."""
        return self.slices[0].path.parent

    @property
    def modality(self) -> str:
        """Two letters, such as CT, MR or PT; OT (other) if its files do not say so."""
        return self.slices[0].tags.get("Modality", "OT")

    @property
    def doubt(self) -> str:
        """What the numbers of its slices leave in doubt, as a sentence; empty if nothing.

        Places show gaps, but neither slices missing at an end nor every second one.
        """
        found = [one.numbers("InstanceNumber", 1) for one in self.slices]
        numbers = sorted({int(number[0]) for number in found if number is not None})
        if self.part or self.problem or len(numbers) != len(self.slices):
            return ""
        steps = set(np.diff(numbers).tolist())
        if len(steps) == 1 and max(steps) > 1:
            return f"Its slices are numbered in steps of {max(steps)}; make sure that none between them are missing."
        return (
            f"Its slices are numbered from {numbers[0]} on; make sure that none before are missing." if numbers[0] > 1 else ""
        )


def volumes_of(uid: str, slices: Sequence[Slice], damaged: int = 0) -> list[Series]:
    """Part the slices of one series into volumes.

    Args:
        uid: The SeriesInstanceUID.
        slices: All that belong to it.
        damaged: How many files of it cannot be read.
    """
    if damaged:
        problem = f"has {damaged} file{'s' if damaged > 1 else ''} that cannot be read (truncated or corrupt). Copy it again."
        return [Series(uid, tuple(slices), problem=problem)]
    if problem := _no_volume(uid, slices):
        return [Series(uid, tuple(slices), problem=problem)]
    volumes = []
    turned = _by_orientation(slices)
    for slices_of_one in turned:
        parts = _parted(slices_of_one, ("ImageOrientationPatient",) if len(turned) > 1 else ())
        fullest = max(len(part) for part, _ in parts)
        volumes += [_volume(uid, part, names, fullest) for part, names in parts]
    if len(volumes) == 1:
        return volumes
    return [replace(volume, part=number) for number, volume in enumerate(volumes, start=1)]


def _no_volume(uid: str, slices: Sequence[Slice]) -> str:
    """Say why slices cannot be a volume, wherever they lie."""
    if not uid:
        return "has no SeriesInstanceUID, so what belongs together cannot be told. Export it again."
    if any(one.tags.get("NumberOfFrames", "1") != "1" for one in slices):
        return "is an enhanced or multi-frame image, which is not read. Export it as classic DICOM, or use dcm2niix."
    if any("MOSAIC" in one.tags.get("ImageType", "").upper().split("\\") for one in slices):
        return "holds mosaics, many slices in one image, which are not read. Use dcm2niix."
    if any(one.tags.get("SamplesPerPixel", "1") != "1" for one in slices):
        return "is in colour, so it is no scan."
    kinds = {one.tags.get("PhotometricInterpretation", "MONOCHROME2") for one in slices} - {"MONOCHROME2"}
    if kinds:
        return (
            f"is stored as {', '.join(sorted(kinds))}, not MONOCHROME2, so whether bright means much cannot be told for sure."
        )
    if len(slices) == 1:
        return "is a single image."
    for tag, count, words in (
        ("ImagePositionPatient", 3, "do not say where they lie"),
        ("ImageOrientationPatient", 6, "do not say where they point"),
        ("PixelSpacing", 2, "do not say how large their pixels are"),
    ):
        without = [one.name for one in slices if one.numbers(tag, count) is None]
        if without:
            return f"has {len(without)} of {len(slices)} slices that {words} (no {tag}), the first {without[0]}."
    try:
        for one in slices:
            directions_of(_orientation(one))
    except DataError as error:
        return str(error)
    flat = [one for one in slices if (_numbers(one, "PixelSpacing", 2) <= 0).any()]
    return f"claims pixels of {flat[0].tags['PixelSpacing']} mm in {flat[0].name}." if flat else ""


def _by_orientation(slices: Sequence[Slice]) -> list[list[Slice]]:
    turned: list[list[Slice]] = []
    for one in slices:
        for others in turned:
            if np.abs(_orientation(one) - _orientation(others[0])).max() < 1e-3:
                others.append(one)
                break
        else:
            turned.append([one])
    return turned


def _parted(slices: list[Slice], tags: tuple[str, ...]) -> list[tuple[list[Slice], tuple[str, ...]]]:
    """Part slices of which several lie in one place, by tags that leave one part at least with a slice in every place."""
    places = _places(slices)
    if places in (1, len(slices)):
        return [(slices, tags)]
    for tag in APART:
        by_value: dict[str, list[Slice]] = defaultdict(list)
        for one in slices:
            by_value[one.tags.get(tag, "")].append(one)
        parts = [by_value[value] for value in sorted(by_value, key=_numerically)]
        # A tag that differs from slice to slice, such as a time, tells no volumes apart: no part of it would be whole.
        if len(parts) > 1 and max(_places(part) for part in parts) == places:
            return [found for part in parts for found in _parted(part, (*tags, tag))]
    return [(slices, tags)]


def _places(slices: Sequence[Slice]) -> int:
    positions = np.array([_numbers(one, "ImagePositionPatient", 3) for one in slices])
    return count_places(positions, _orientation(slices[0]), float(_numbers(slices[0], "PixelSpacing", 2).min()))


def _numerically(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _volume(uid: str, slices: Sequence[Slice], tags: tuple[str, ...], fullest: int) -> Series:
    """Lay out the slices of one volume, or say why that cannot be."""
    plain = Series(uid, tuple(slices), parted_by=tags)
    if len(slices) == 1:
        return replace(plain, problem="is a single image.")
    if len(slices) < fullest:
        return replace(plain, problem=f"has {len(slices)} slices where another volume of its series has {fullest}.")
    if differing := _differing(slices):
        return replace(plain, problem=differing)
    rows_apart, columns_apart = (float(mm) for mm in _numbers(slices[0], "PixelSpacing", 2))
    positions = np.array([_numbers(one, "ImagePositionPatient", 3) for one in slices])
    try:
        order, affine = lay_out(positions, _orientation(slices[0]), (rows_apart, columns_apart), [one.name for one in slices])
    except DataError as error:
        return replace(plain, problem=str(error))
    return replace(plain, slices=tuple(slices[index] for index in order), affine=affine)


def _differing(slices: Sequence[Slice]) -> str:
    """Say in what slices differ that must be alike in one volume; the values of slopes may differ, as they do in PET."""
    for words, values in (
        ("sizes (rows x columns)", [f"{one.tags.get('Rows')} x {one.tags.get('Columns')}" for one in slices]),
        ("pixel sizes", [" x ".join(f"{mm:.4g}" for mm in _numbers(one, "PixelSpacing", 2)) + " mm" for one in slices]),
        ("units", [one.tags.get("Units", one.tags.get("RescaleType", "none")) for one in slices]),
        ("scales", ["rescaled" if "RescaleSlope" in one.tags else "as stored" for one in slices]),
        ("echo times (ms)", _values(slices, "EchoTime", within=0.01)),
        ("echo numbers", _values(slices, "EchoNumbers")),
        ("b-values (s/mm2)", _values(slices, "DiffusionBValue")),
        ("time points", _time_points(slices)),
        ("kinds (ImageType)", [_kind(one) for one in slices]),
    ):
        counted = Counter(values)
        if len(counted) > 1:
            rare = min(counted, key=lambda value: counted[value])
            listed = ", ".join(f"{value} ({count})" for value, count in counted.most_common())
            return f"has slices of different {words}: {listed}, for example {slices[values.index(rare)].name}."
    if any("RescaleSlope" in one.tags and not one.numbers("RescaleSlope", 1) for one in slices):
        return "has a rescale slope that is 0 or no number."
    return ""


def _values(slices: Sequence[Slice], tag: str, within: float = 0.0) -> list[str]:
    """Return the number that a tag holds in each slice; one that is larger than another by this part of it is that one."""
    found = [one.numbers(tag, 1) for one in slices]
    taken: dict[float, float] = {}
    last = -np.inf
    for value in sorted({float(number[0]) for number in found if number is not None}):
        last = taken[value] = last if value - last <= within * value else value
    return [
        one.tags.get(tag, "none") if number is None else f"{taken[float(number[0])]:g}"
        for one, number in zip(slices, found, strict=True)
    ]


def _time_points(slices: Sequence[Slice]) -> list[str]:
    """Return the time point of each slice; none where every slice has its own, which numbers slices and not times."""
    found = _values(slices, "TemporalPositionIdentifier")
    return ["none" if len(set(found)) == len(found) else value for value in found]


def _kind(one: Slice) -> str:
    return " ".join(sorted(_KINDS.intersection(one.tags.get("ImageType", "").upper().split("\\")[2:]))) or "none"


def _orientation(one: Slice) -> Array:
    return _numbers(one, "ImageOrientationPatient", 6)


def _numbers(one: Slice, tag: str, count: int) -> Array:
    values = one.numbers(tag, count)
    if values is None:
        raise DataError(f"Expected {tag} to hold {count} numbers in {one.path}.")
    return values

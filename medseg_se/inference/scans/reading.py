"""Reading the scan of a case for a model of whole scans, whatever kind of file it is in: picture, NIfTI or DICOM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg_se.data.datalist import Case
from medseg_se.data.pictures import AFFINE, read_picture
from medseg_se.data.scan import read_channels
from medseg_se.data.whole_scan import WholeScan
from medseg_se.dicom import Series, read_series
from medseg_se.dicom.headers import Slice, look
from medseg_se.errors import DataError
from medseg_se.inference.reading import read_scan, series_of
from medseg_se.volumes import Volume, is_scan, reorient

_AS_SHOWN = {"S": "PLS", "L": "IPL", "A": "ILA"}
"""Direction across a slice → how its rows, columns and that direction run when it is looked at."""
_THICK = 2.0  # times as far apart as pixels: the slices of a scan that was made slice by slice


def read_any(case: Case, scan: WholeScan) -> Volume:
    """Read the scan of a case as `scan` takes it, float32 (C, I, J, K).

    Raises:
        DataError: A file is unreadable, of the wrong kind, or has other channels.
    """
    if series_of(case):
        return fitting(read_scan(case, scan.channels), scan)
    path = case.images[0]
    if is_scan(path):
        channels = None if scan.colour else scan.channels
        return fitting(read_channels(case.images, channels), scan)
    header = look(path)
    if isinstance(header, Slice):
        return fitting(_slice(header), scan)
    if scan.colour is None:
        raise DataError(f"Expected {path} to be a NIfTI or DICOM scan, as this model was trained on. Leave it out.")
    if len(case.images) > 1:
        raise DataError(f"Case {case.id} has {len(case.images)} pictures; only one can be read.")
    return read_picture(path, scan.colour)


def fitting(image: Volume, scan: WholeScan) -> Volume:
    """Return a scan with the channels that `scan` takes; for a model of pictures, the middle slice as it is looked at.

    Raises:
        DataError: It has other channels.
    """
    if scan.colour is not None and not _is_picture(image):
        image = as_picture(image)
    channels = len(image.array)
    if scan.colour == "rgb" and channels == 1:
        return replace(image, array=np.repeat(image.array, 3, axis=0))
    if channels != scan.channels:
        raise DataError(f"Expected {scan.channels} channels, but {image.path or 'the scan'} has {channels}.")
    return image


def as_picture(volume: Volume) -> Volume:
    """Return the middle slice of a scan (C, I, J, K) as a picture (C, height, width, 1).

    Slices run across the axis of one voxel; else across that along which voxels are more than twice as long as along the
    others; else they are axial.
    """
    turned = reorient(volume, "LAS")
    lengths, spacing = turned.shape, turned.spacing
    thin = [axis for axis in range(3) if lengths[axis] == 1]
    order = np.argsort(spacing)
    across = 2 if not thin else thin[-1]
    if not thin and spacing[order[2]] >= _THICK * spacing[order[1]]:
        across = int(order[2])
    shown = reorient(volume, _AS_SHOWN["LAS"[across]])
    middle = shown.shape[2] // 2
    rows, columns, _ = shown.spacing
    affine = AFFINE @ np.diag([rows, columns, 1.0, 1.0])
    return Volume(np.ascontiguousarray(shown.array[..., middle : middle + 1]), affine, path=volume.path)


def _is_picture(image: Volume) -> bool:
    return image.shape[2] == 1 and np.array_equal(image.affine, AFFINE)


def _slice(header: Slice) -> Volume:
    """Read one DICOM image, as a picture with the proportions of its pixels."""
    tags, path = header.tags, Path(header.path)
    if not tags:
        raise DataError(f"Cannot read {path}: it is DICOM, but truncated or corrupt. Copy it again.")
    if tags.get("NumberOfFrames", "1") != "1":
        raise DataError(
            f"Expected {path} to hold one image, but it holds {tags['NumberOfFrames']}. Export it as classic DICOM."
        )
    if tags.get("SamplesPerPixel", "1") != "1":
        raise DataError(f"Expected {path} to be a scan, but it is a DICOM image in colour. Save it as PNG, or leave it out.")
    spacing = header.numbers("PixelSpacing", 2)
    rows, columns = (1.0, 1.0) if spacing is None or (spacing <= 0).any() else (float(spacing[0]), float(spacing[1]))
    plain = Series(tags.get("SeriesInstanceUID", ""), (header,), affine=np.diag([columns, rows, 1.0, 1.0]))
    image = read_series(plain, str(path))  # (1, columns, rows, 1)
    array = np.ascontiguousarray(image.array.transpose(0, 2, 1, 3))
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":  # its low values are shown bright
        array = array.max() + array.min() - array
    return Volume(array, AFFINE @ np.diag([rows, columns, 1.0, 1.0]), path=path)

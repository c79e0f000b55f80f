"""Reading the scan of a case, whether it lies in NIfTI files or in a DICOM series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medseg_se.data.datalist import Case
from medseg_se.data.scan import read_channels
from medseg_se.dicom import Series, read_series
from medseg_se.errors import DataError
from medseg_se.files import digest_of
from medseg_se.inference.dicom_inputs import SERIES
from medseg_se.volumes import Volume


def series_of(case: Case) -> tuple[Series, ...]:
    """Return the DICOM series of a case, one a channel; none where its scan lies in NIfTI files."""
    return tuple(case.attributes.get(SERIES, ()))


def read_scan(case: Case, channels: int) -> Volume:
    """Read the scan of a case as float32 (C, I, J, K); of a DICOM series, the axes are columns, rows and slices.

    Args:
        case: As `find_cases` made it.
        channels: How many channels are expected.

    Raises:
        DataError: A file is unreadable or gone, a series makes no volume, channels lie on different grids, or their number is
            not the expected one.
    """
    series = series_of(case)
    if not series:
        return read_channels(case.images, channels)
    if len(series) != channels:
        raise DataError(f"Expected {channels} channels, but case {case.id} is a DICOM series, which is one.")
    volumes = [read_series(one) for one in series]
    for volume in volumes[1:]:
        difference = volumes[0].same_grid(volume)
        if difference:
            raise DataError(f"The channels {volumes[0].path} and {volume.path} lie on different grids: {difference}.")
    return replace(volumes[0], array=np.concatenate([volume.array for volume in volumes])) if channels > 1 else volumes[0]


def doubts_of_series(case: Case) -> tuple[str, ...]:
    """Return what the headers of a DICOM series leave in doubt, a sentence each; nothing of NIfTI files."""
    found = []
    for one in series_of(case):
        if one.doubt:
            found.append(one.doubt)
        if one.part:
            found.append(f"It is volume {one.part} of its series, whose volumes differ in {' and '.join(one.parted_by)}.")
    return tuple(found)


def digest_of_scan(case: Case) -> str:
    """Return a digest of the content of a case's image files; those of a series count in the order in which they lie.

    Raises:
        DataError: A file cannot be read.
    """
    return digest_of(case.images)

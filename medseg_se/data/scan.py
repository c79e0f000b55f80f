"""Reading one case of a datalist: its channels stacked on one grid, its label map as structure indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg_se.data.datalist import Case
from medseg_se.errors import DataError
from medseg_se.nifti import MEMORY_LIMIT
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels


def read_channels(paths: Sequence[Path], channels: int | None = None, memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read the channel files of one case as one float32 volume (C, I, J, K).

    Args:
        paths: One file per channel, or one file with all of them.
        channels: How many channels are expected; not checked if None.
        memory_limit: Bytes that one file may claim.

    Raises:
        DataError: A file is unreadable, channels lie on different grids, or their number is not the expected one.
    """
    volumes = [read_image(path, memory_limit) for path in paths]
    for volume in volumes[1:]:
        difference = volumes[0].same_grid(volume)
        if difference:
            raise DataError(f"The channels {volumes[0].path} and {volume.path} lie on different grids: {difference}.")
    stacked = volumes[0]
    if len(volumes) > 1:
        stacked = replace(volumes[0], array=np.concatenate([volume.array for volume in volumes]))
    if channels is not None and stacked.array.shape[0] != channels:
        names = ", ".join(str(path) for path in paths)
        raise DataError(f"Expected {channels} channel{'s' if channels > 1 else ''}, but {names} has {stacked.array.shape[0]}.")
    return stacked


def read_truth(case: Case, structures: Structures, image: Volume) -> Volume:
    """Read the label map of `case` as indices 0 … N (int16) and check that it lies on the grid of `image`.

    Raises:
        DataError: There is no label map, it is unreadable, lies elsewhere, or holds undeclared values.
    """
    if case.label is None:
        raise DataError(f"Case {case.id} has no label map.")
    labels = read_labels(case.label)
    difference = image.same_grid(labels)
    if difference:
        raise DataError(f"Image and label map of case {case.id} lie on different grids: {difference} ({case.label}).")
    # With the affine of the image: of two that differ in the last digit, one may count as turned where the other does not.
    return replace(labels, affine=image.affine, array=structures.encode(labels.array, where=str(case.label)))

"""How frequent each class is in prepared cases, for the weights of a loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medseg_se.data.store import StoredCase

_VOXELS = 2**22  # looked at together; bounds the memory


def class_frequencies(cases: Sequence[StoredCase], num_classes: int) -> npt.NDArray[np.float64]:
    """Return the share of each class (num_classes,), background first, of the voxels of the cases that show it.

    Only voxels whose truth is known count; a class that no case shows has 0.

    Args:
        cases: Prepared cases.
        num_classes: Structures and background.

    Raises:
        DataError: A label map of the store is gone or damaged.
    """
    counts = np.stack([_counts(case, num_classes) for case in cases])
    known = counts.sum(axis=1, keepdims=True)
    of_showing = np.where(counts > 0, known, 0).sum(axis=0)
    frequencies: npt.NDArray[np.float64] = counts.sum(axis=0) / np.maximum(of_showing, 1)
    return frequencies


def _counts(case: StoredCase, num_classes: int) -> npt.NDArray[np.int64]:
    """Return the voxels of every class, without those whose truth is not known."""
    bare = case.without_image()
    planes = max(1, _VOXELS // max(1, case.shape[1] * case.shape[2]))
    counts = np.zeros(num_classes, dtype=np.int64)
    for start in range(0, case.shape[0], planes):
        box = (slice(start, min(start + planes, case.shape[0])), slice(0, case.shape[1]), slice(0, case.shape[2]))
        _, labels = bare.read(box)
        counts += np.bincount(labels[labels >= 0], minlength=num_classes)
    return counts

"""Overlap of two label maps: one pass counts how often each pair of structures meets; every overlap measure follows from that.

The policy everywhere: a structure absent from both truth and prediction is not counted (NaN); absent from one of them, it
scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import UsageError
from medseg_se.structures import IGNORE

_CHUNK = 2**16  # voxels a step: the buffers stay in the processor's cache, and memory does not grow with the scan


def confusion(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], num_classes: int) -> npt.NDArray[np.int64]:
    """Count the voxels of every pair of true and predicted index.

    Args:
        prediction: Indices 0 … `num_classes` - 1, of any shape.
        truth: Indices of the same shape; voxels that are `IGNORE` are left out.
        num_classes: Number of classes N, background included.

    Returns:
        (N, N) matrix of voxel counts; rows are true, columns predicted indices.

    Raises:
        UsageError: The shapes differ, or an index is out of range.
    """
    if prediction.shape != truth.shape:
        raise UsageError(f"Expected `prediction` to have the shape of the truth {truth.shape}, but got {prediction.shape}.")
    counts = np.zeros((num_classes + 1) * num_classes, dtype=np.int64)
    chunks = np.nditer(
        [prediction, truth],
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[np.dtype(np.int64)] * 2,
        casting="same_kind",
        buffersize=_CHUNK,
    )
    with chunks:
        for predicted, true in chunks:
            _check_range("prediction", predicted, 0, num_classes)
            _check_range("truth", true, IGNORE, num_classes)
            # Row 0 takes the ignored voxels, so that none has to be masked out.
            counts += np.bincount((true - IGNORE) * num_classes + predicted, minlength=counts.size)
    return counts.reshape(num_classes + 1, num_classes)[1:]


def volumes_from_confusion(
    matrix: npt.NDArray[np.int64], groups: Sequence[tuple[int, ...]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many voxels of each group are in both maps, in the truth and in the prediction; three arrays (G,).

    Args:
        matrix: What `confusion` returned.
        groups: Indices whose union is judged as one, as `Structures.judged` gives them.
    """
    members = [np.array(group, dtype=np.intp) for group in groups]
    both = np.array([matrix[np.ix_(group, group)].sum() for group in members], dtype=np.int64)
    true = np.array([matrix[group].sum() for group in members], dtype=np.int64)
    predicted = np.array([matrix[:, group].sum() for group in members], dtype=np.int64)
    return both, true, predicted


def dice_from_confusion(matrix: npt.NDArray[np.int64], groups: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    """Return the Dice coefficient 2 |A ∩ B| / (|A| + |B|) of each group (G,); NaN where both maps lack it.

    Args:
        matrix: What `confusion` returned.
        groups: Indices whose union is judged as one, as `Structures.judged` gives them.
    """
    both, true, predicted = volumes_from_confusion(matrix, groups)
    return _share(2 * both, true + predicted, true + predicted > 0)


def overlap_from_confusion(
    matrix: npt.NDArray[np.int64], groups: Sequence[tuple[int, ...]], millilitres: float
) -> dict[str, npt.NDArray[np.float64]]:
    """Return every measure of `medseg_se.metrics.measures.OVERLAP` by its name, of each group (G,).

    With A the truth and B the prediction: IoU |A ∩ B| / |A ∪ B|, precision |A ∩ B| / |B|, recall |A ∩ B| / |A|, volume
    similarity 1 - ||A| - |B|| / (|A| + |B|) (Taha and Hanbury, 2015, https://doi.org/10.1186/s12880-015-0068-x), bias
    |B| - |A|. Absent from both maps, all but the two volumes are NaN; absent from one, all but volumes and bias are 0.

    Args:
        matrix: What `confusion` returned.
        groups: Indices whose union is judged as one, as `Structures.judged` gives them.
        millilitres: Volume of a voxel.
    """
    both, true, predicted = volumes_from_confusion(matrix, groups)
    total = true + predicted
    counted = total > 0
    return {
        "dice": _share(2 * both, total, counted),
        "iou": _share(both, total - both, counted),
        "precision": _share(both, predicted, counted),
        "recall": _share(both, true, counted),
        "volume_similarity": _share(2 * np.minimum(true, predicted), total, counted),
        "bias_ml": np.where(counted, (predicted - true) * millilitres, np.nan),
        "truth_ml": true * millilitres,
        "predicted_ml": predicted * millilitres,
    }


def _share(
    part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return part / whole; NaN where it is not counted, and 0 where it is but there is nothing to divide by."""
    shares = np.where(counted, 0.0, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _check_range(name: str, indices: npt.NDArray[np.int64], low: int, num_classes: int) -> None:
    found = int(indices.min()), int(indices.max())
    if found[0] < low or found[1] >= num_classes:
        raise UsageError(f"Expected `{name}` to hold indices {low} … {num_classes - 1}, but got {found[0]} … {found[1]}.")

"""Which post-processing is worth having, as the predictions of a cross-validation tell: scans no judged network was trained on.

First for the union of all structures, then for each by itself, as in nnU-Net, https://doi.org/10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.inference.postprocessing import PostProcessing, keep_largest
from medseg_se.metrics.overlap import confusion, dice_from_confusion
from medseg_se.processors import at_once
from medseg_se.structures import Structures
from medseg_se.volumes import read_labels

NOISE = 1e-12
"""Differences of a mean Dice up to this are rounding."""


@dataclass(frozen=True)
class Judged:
    """A case that was predicted by a network that had not been trained on it.

    Attributes:
        truth: Its label map.
        prediction: What was predicted; None if that failed and counts as empty.
    """

    truth: Path
    prediction: Path | None


@dataclass(frozen=True)
class Candidate:
    """A group of structures of whose union only the largest component might be kept, and what came of it.

    Attributes:
        structures: The group.
        before: Structure → mean Dice over the cases without it, but with what was accepted before.
        after: Structure → mean Dice with it.
        accepted: Whether it is done from now on.
    """

    structures: tuple[str, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    accepted: bool

    @property
    def means(self) -> tuple[float, float]:
        """The mean over the group's structures (before, after)."""
        return _mean(list(self.before.values())), _mean(list(self.after.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "structures": list(self.structures),
            "before": dict(self.before),
            "after": dict(self.after),
            "accepted": self.accepted,
        }


def choose(
    cases: Sequence[Judged], structures: Structures, workers: int | None = None
) -> tuple[PostProcessing, list[Candidate]]:
    """Return what is worth doing, and every candidate with its figures.

    The union of all structures is accepted if the mean over structures of the mean Dice over cases rises and that of no
    structure falls; a structure by itself if its own mean Dice rises. Rises within rounding are none. The policy is that of
    `medseg_se.metrics.overlap`: absent from truth and prediction is not counted.

    Args:
        cases: The cases.
        structures: What the label values mean.
        workers: Cases judged at the same time; at most four by default.

    Raises:
        DataError: A label map cannot be read.
    """
    if not cases:
        return PostProcessing(), []
    with ThreadPoolExecutor(workers or at_once(4)) as pool:
        found = np.array(list(pool.map(lambda case: _variants(case, structures), cases)))
    names = structures.names
    raw, union, single, union_single = (
        {name: _mean(found[:, variant, place]) for place, name in enumerate(names)} for variant in range(4)
    )
    candidates, base, alone = [], raw, single
    if len(names) > 1:
        rises = _mean(list(union.values())) > _mean(list(raw.values())) + NOISE
        falls = any(union[name] < raw[name] - NOISE for name in names)
        candidates.append(Candidate(names, raw, union, rises and not falls))
        if candidates[0].accepted:
            base, alone = union, union_single
    candidates += [
        Candidate((name,), {name: base[name]}, {name: alone[name]}, alone[name] > base[name] + NOISE) for name in names
    ]
    return PostProcessing(tuple(candidate.structures for candidate in candidates if candidate.accepted)), candidates


def _variants(case: Judged, structures: Structures) -> npt.NDArray[np.float64]:
    """Return the Dice of every structure (4, N): as predicted, after the union, after each by itself, and after both.

    Each structure loses voxels to the background alone, so that one map shows what becomes of all of them.
    """
    truth = structures.encode(read_labels(case.truth).array[0], where=str(case.truth))
    groups = [(index,) for index in range(1, structures.num_classes)]
    if case.prediction is None:
        empty = np.broadcast_to(np.int16(0), truth.shape)
        return np.tile(dice_from_confusion(confusion(empty, truth, structures.num_classes), groups), (4, 1))
    raw = structures.encode(read_labels(case.prediction).array[0], where=str(case.prediction))
    union = keep_largest(raw, [range(1, structures.num_classes)])
    maps = (raw, union, keep_largest(raw, groups), keep_largest(union, groups))
    return np.array([dice_from_confusion(confusion(one, truth, structures.num_classes), groups) for one in maps])


def _mean(values: Any) -> float:
    """Return the mean of what is counted; NaN if nothing is."""
    counted = np.asarray(values)[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else np.nan

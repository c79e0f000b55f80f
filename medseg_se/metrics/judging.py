"""Every measure of a predicted label map against its truth: arrays in, numbers out.

The policy everywhere: a structure absent from both truth and prediction is not counted (NaN); absent from one of them, what is
better the higher it is becomes 0, and a distance infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_se.metrics.distances import surface_distances
from medseg_se.metrics.lesions import Lesions, Matching, count_lesions
from medseg_se.metrics.measures import DISTANCES, LESIONS, names
from medseg_se.metrics.overlap import confusion, overlap_from_confusion
from medseg_se.metrics.surfaces import Family, surfaces
from medseg_se.structures import IGNORE

Groups = Sequence[tuple[int, ...]]
Scores = dict[str, npt.NDArray[np.float64]]
Labels = npt.NDArray[np.int16]


def judge(
    prediction: Labels,
    truth: Labels,
    groups: Groups,
    num_classes: int,
    spacing: Sequence[float],
    measures: Sequence[str],
    surface: Family = "voxel",
    tolerances: Sequence[float] | float = 1.0,
    lesions: Matching = "any",
) -> Scores:
    """Return each of `measures` of every group (G,).

    Args:
        prediction: Indices 0 … N of the shape of the truth (I, J, K).
        truth: Indices; voxels that are `IGNORE` are left out.
        groups: Indices whose union is judged as one, as `Structures.judged` gives them.
        num_classes: Number of classes, background included.
        spacing: Edges of a voxel in mm (3,). Along an axis of a single voxel nothing has a surface: such a scan is a picture.
        measures: Names out of `medseg_se.metrics.measures.MEASURES`.
        surface: Definition of surfaces, see `medseg_se.metrics.surfaces`.
        tolerances: Of the NSD, in mm: one for all, or one a group.
        lesions: What makes two lesions match, see `medseg_se.metrics.lesions`.

    Raises:
        UsageError: The shapes differ, or an index is out of range.
    """
    scores = overlap_from_confusion(confusion(prediction, truth, num_classes), groups, float(np.prod(spacing)) / 1000)
    hidden = truth == IGNORE
    if hidden.any():
        prediction = np.where(hidden, np.int16(IGNORE), prediction)
    plane = _plane(truth.shape)
    prediction, truth = prediction.squeeze(plane), truth.squeeze(plane)
    edges = [edge for axis, edge in enumerate(spacing) if axis not in plane]
    if set(measures) & set(names(DISTANCES)):
        sides = scores["truth_ml"] > 0, scores["predicted_ml"] > 0
        within = np.broadcast_to(np.asarray(tolerances, dtype=np.float64), len(groups))
        scores |= _distances(prediction, truth, groups, edges, sides, surface, within)
    if set(measures) & set(names(LESIONS)):
        scores |= _lesions(prediction, truth, groups, lesions)
    return {name: scores[name] for name in measures if name in scores}


def _plane(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axis across which there is one voxel only, if there is such an axis."""
    return tuple(axis for axis, length in enumerate(shape) if length == 1)[:1] if len(shape) > 2 else ()


def _distances(
    prediction: Labels,
    truth: Labels,
    groups: Groups,
    spacing: Sequence[float],
    present: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    family: Family,
    tolerances: npt.NDArray[np.float64],
) -> Scores:
    one_side, both = present[0] ^ present[1], present[0] & present[1]
    scores = {measure.name: np.full(len(groups), np.nan) for measure in DISTANCES}
    for measure in DISTANCES:
        scores[measure.name][one_side] = 0.0 if measure.better == "higher" else np.inf
    judged = np.flatnonzero(both).tolist()
    if not judged:
        return scores
    asked = [groups[place] for place in judged]
    true, predicted = (surfaces(labels, asked, spacing, family) for labels in (truth, prediction))
    for place, one, other in zip(judged, true, predicted, strict=True):
        if not len(one.places) or not len(other.places):  # all of its boundary is with unknown voxels
            continue
        found = surface_distances(one, other, spacing)
        scores["hd_mm"][place] = found.hausdorff()
        scores["hd95_mm"][place] = found.percentile(95, weighted=family == "surfel")
        scores["assd_mm"][place] = found.average()
        scores["nsd"][place] = found.within(float(tolerances[place]))
    return scores


def _lesions(prediction: Labels, truth: Labels, groups: Groups, matching: Matching) -> Scores:
    boxes = [ndimage.find_objects(labels) for labels in (prediction, truth)]
    rows = []
    for group in groups:
        known = [found[index - 1] for found in boxes for index in group if index <= len(found) and found[index - 1] is not None]
        if not known:
            rows.append(Lesions(0, 0, 0, 0).measures())
            continue
        box = tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in zip(*known, strict=True))
        rows.append(count_lesions(_inside(prediction[box], group), _inside(truth[box], group), matching).measures())
    return {name: np.array([row[name] for row in rows]) for name in names(LESIONS)}


def _inside(labels: npt.NDArray[Any], group: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    return labels == group[0] if len(group) == 1 else np.isin(labels, group)

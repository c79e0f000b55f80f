"""Surface measures against brute force, MONAI, surface-distance and SciPy's distance transform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import surface_distance
import torch
from maps import blobs, worse
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from scipy.spatial.distance import cdist

from medseg_se.metrics.distances import surface_distances
from medseg_se.metrics.judging import judge
from medseg_se.metrics.measures import DISTANCES, names
from medseg_se.metrics.surfaces import surfaces
from medseg_se.structures import IGNORE

NAMES = names(DISTANCES)
TOLERANCE = 1.3  # mm, not a distance between places of any lattice below
CASES = [((9, 8, 7), (1.0, 1.0, 1.0)), ((8, 9, 6), (0.7, 1.25, 3.0)), ((14, 12), (0.8, 2.0))]


def measured(prediction, truth, spacing, groups, family="voxel", tolerance=TOLERANCE):
    shape = truth.shape if truth.ndim == 3 else (*truth.shape, 1)
    edges = spacing if truth.ndim == 3 else (*spacing, 5.0)
    classes = max(max(group) for group in groups) + 1
    return judge(prediction.reshape(shape), truth.reshape(shape), groups, classes, edges, NAMES, family, tolerance)


def pair(shape, classes, seed, smooth=1.2):
    truth = blobs(shape, classes, seed, smooth)
    return worse(truth, seed), truth


# -------------------------------------------------------------------------------------------------------------- brute force


def voxel_surface(mask, known):
    """The voxels of a mask with a known face neighbour outside it, straight from the definition."""
    found = []
    for place in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            there = place.copy()
            there[axis] += step
            outside = not 0 <= there[axis] < mask.shape[axis]
            if outside or (known[tuple(there)] and not mask[tuple(there)]):
                found.append(place)
                break
    return np.array(found, dtype=float).reshape(-1, mask.ndim)


def by_all_pairs(prediction, truth, spacing, group, tolerance):
    known = truth != IGNORE
    masks = [np.isin(labels, group) & known for labels in (truth, prediction)]
    if not any(mask.any() for mask in masks):
        return [np.nan] * 4
    if not all(mask.any() for mask in masks):
        return [np.inf] * 3 + [0.0]
    one, other = (voxel_surface(mask, known) * spacing for mask in masks)
    if not len(one) or not len(other):
        return [np.nan] * 4
    apart = cdist(one, other)
    forth, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([forth, back])
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return [both.max(), hd95, both.mean(), (both <= tolerance).mean()]


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_voxel_boundaries_are_those_of_brute_force(shape, spacing, seed):
    prediction, truth = pair(shape, 5, seed)
    if seed % 2:
        truth[np.random.default_rng(seed).random(shape) < 0.1] = IGNORE
    groups = [(1,), (2,), (3,), (1, 4), (2, 3, 4), (5,)]
    scores = measured(prediction, truth, spacing, groups)
    expected = [by_all_pairs(prediction, truth, spacing, group, TOLERANCE) for group in groups]
    np.testing.assert_allclose(np.stack([scores[name] for name in NAMES], axis=1), expected, rtol=1e-12, atol=1e-12)


def test_nearest_neighbours_are_those_of_the_distance_transform():
    prediction, truth = pair((40, 36, 30), 4, seed=7, smooth=3.0)
    spacing = (0.9, 1.1, 2.5)
    for one, other in zip(*(surfaces(labels, [(1,), (2, 3)], spacing) for labels in (truth, prediction)), strict=True):
        found = surface_distances(one, other, spacing)
        for here, there, distances in ((one, other, found.of_truth), (other, one, found.of_prediction)):
            empty = np.ones(truth.shape, dtype=bool)
            empty.ravel()[there.places] = False
            transform = ndimage.distance_transform_edt(empty, sampling=spacing)
            np.testing.assert_allclose(distances, transform.ravel()[here.places], rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------------------------------------- MONAI


def one_hot(labels, classes):
    return torch.as_tensor(np.stack([labels == index for index in range(1, classes)])[None]).float()


@pytest.mark.parametrize(("shape", "spacing"), [((22, 20, 18), (0.7, 1.25, 3.0)), ((40, 36), (0.8, 2.0))])
@pytest.mark.parametrize("seed", range(3))
def test_voxel_boundaries_are_those_of_monai(shape, spacing, seed):
    prediction, truth = pair(shape, 5, seed)
    masks = one_hot(prediction, 5), one_hot(truth, 5)
    options = {"spacing": list(spacing), "include_background": True}
    expected = [
        compute_hausdorff_distance(*masks, **options),
        compute_hausdorff_distance(*masks, percentile=95, **options),
        compute_average_surface_distance(*masks, symmetric=True, **options),
        compute_surface_dice(*masks, class_thresholds=[TOLERANCE] * 4, **options),
    ]
    scores = measured(prediction, truth, spacing, [(1,), (2,), (3,), (4,)])
    for name, values in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(scores[name], values[0].numpy(), rtol=1e-5, err_msg=name)


# ---------------------------------------------------------------------------------------------------------- surface-distance


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("shape", "spacing"), [((22, 20, 18), (0.7, 1.25, 3.0)), ((12, 13, 14), (1, 1, 1)), ((40, 36), (0.8, 2.0))]
)
@pytest.mark.parametrize("seed", range(3))
def test_surfels_are_those_of_surface_distance(shape, spacing, seed):
    prediction, truth = pair(shape, 5, seed)
    groups = [(1,), (2,), (3,), (4,), (1, 3)]
    scores = measured(prediction, truth, spacing, groups, "surfel")
    for place, group in enumerate(groups):
        found = surface_distance.compute_surface_distances(np.isin(truth, group), np.isin(prediction, group), spacing)
        sides = [
            (found["distances_gt_to_pred"], found["surfel_areas_gt"]),
            (found["distances_pred_to_gt"], found["surfel_areas_pred"]),
        ]
        total = sum(areas.sum() for _, areas in sides)
        expected = [
            surface_distance.compute_robust_hausdorff(found, 100),
            surface_distance.compute_robust_hausdorff(found, 95),
            sum((distances * areas).sum() for distances, areas in sides) / total,
            surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE),
        ]
        np.testing.assert_allclose([scores[name][place] for name in NAMES], expected, rtol=1e-5)


def test_surfels_weigh_as_much_as_the_surface_of_a_box():
    labels = np.zeros((20, 20, 20), dtype=np.int16)
    labels[4:12, 5:15, 6:18] = 1
    (surface,) = surfaces(labels, [(1,)], (1.0, 2.0, 0.5), "surfel")
    edges = np.array([8, 10, 12]) * [1.0, 2.0, 0.5]
    faces = 2 * (edges[0] * edges[1] + edges[1] * edges[2] + edges[0] * edges[2])
    assert surface.areas.sum() == pytest.approx(faces, rel=0.1)  # marching cubes cut the corners and edges off
    assert surface.areas.sum() < faces


# ------------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_a_box_moved_by_two_voxels_lies_two_voxels_apart(family):
    truth = np.zeros((16, 16, 16), dtype=np.int16)
    truth[3:9, 3:9, 3:9] = 1
    prediction = np.roll(truth, 2, axis=1)
    scores = measured(prediction, truth, (1.0, 1.5, 1.0), [(1,)], family, tolerance=3.0)
    assert (scores["hd_mm"][0], scores["nsd"][0]) == (3.0, 1.0)
    assert 0 < scores["assd_mm"][0] < 3
    assert measured(prediction, truth, (1.0, 1.5, 1.0), [(1,)], family, tolerance=2.9)["nsd"][0] < 1


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_a_distance_is_within_a_tolerance_of_the_same_number_in_single_precision(family):
    truth = np.zeros((8, 8, 8), dtype=np.int16)
    truth[2:5, 2:5, 2:5] = 1
    edge = float(np.float32(0.3))  # as a NIfTI header holds it, above 0.3
    assert edge > 0.3
    assert measured(np.roll(truth, 1, axis=0), truth, (edge,) * 3, [(1,)], family, tolerance=0.3)["nsd"][0] == 1


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_equal_maps_are_no_distance_apart_and_swapped_ones_as_far(family):
    prediction, truth = pair((10, 12, 8), 4, seed=3)
    spacing, groups = (1.0, 0.5, 2.0), [(1,), (2,), (3,), (1, 2)]
    same = measured(truth, truth, spacing, groups, family)
    assert [same[name].tolist() for name in NAMES] == [[0.0] * 4] * 3 + [[1.0] * 4]
    forth, back = (measured(*maps, spacing, groups, family) for maps in ((prediction, truth), (truth, prediction)))
    for name in NAMES:
        np.testing.assert_allclose(forth[name], back[name], rtol=1e-12)


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_a_structure_that_fills_the_scan_has_its_surface_at_the_border(family):
    truth = np.ones((6, 6, 6), dtype=np.int16)
    prediction = truth.copy()
    prediction[0] = 0
    scores = measured(prediction, truth, (2.0, 1.0, 1.0), [(1,)], family)
    assert scores["hd_mm"][0] == 2.0


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_one_slice_is_a_picture_whichever_way_it_lies(family):
    prediction, truth = pair((20, 24), 4, seed=5)
    groups = [(1,), (2,), (3,)]
    flat = judge(prediction[..., None], truth[..., None], groups, 4, (0.8, 2.0, 5.0), NAMES, family, TOLERANCE)
    upright = judge(prediction[:, None], truth[:, None], groups, 4, (0.8, 5.0, 2.0), NAMES, family, TOLERANCE)
    inside = ndimage.binary_erosion(truth == 1)
    (surface,) = surfaces(truth, [(1,)], (0.8, 2.0), "voxel")
    assert inside.any()
    assert len(surface.places) == (truth == 1).sum() - inside.sum()
    for name in NAMES:
        np.testing.assert_array_equal(flat[name], upright[name])


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_a_boundary_with_unknown_voxels_is_no_surface(family):
    truth, prediction = np.zeros((2, 10, 10, 10), dtype=np.int16)
    truth[2:6, 2:8, 2:8] = 1
    prediction[2:7, 2:8, 2:8] = 1
    assert measured(prediction, truth, (1.0, 1.0, 1.0), [(1,)], family)["hd_mm"][0] == 1
    truth[6:8] = IGNORE  # where the two differ, nothing is known
    scores = measured(prediction, truth, (1.0, 1.0, 1.0), [(1,)], family)
    assert [scores[name][0] for name in NAMES] == [0, 0, 0, 1]
    known = surfaces(truth, [(1,)], (1.0, 1.0, 1.0), family)[0]
    whole = surfaces(np.where(truth == IGNORE, 0, truth), [(1,)], (1.0, 1.0, 1.0), family)[0]
    assert 0 < len(known.places) < len(whole.places)
    truth[truth == 0] = IGNORE  # all of its boundary
    assert all(np.isnan(measured(prediction, truth, (1.0, 1.0, 1.0), [(1,)], family)[name][0]) for name in NAMES)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg_se.errors import UsageError
from medseg_se.metrics.overlap import confusion, dice_from_confusion, volumes_from_confusion
from medseg_se.structures import IGNORE, Structures

GROUPS = [(1,), (2,), (3,), (1, 3), (1, 2, 3)]
maps = hnp.arrays(np.int16, (3, 4, 5), elements=st.integers(0, 3))


def dice(prediction, truth, groups=GROUPS):
    return dice_from_confusion(confusion(prediction, truth, 4), groups)


def brute_force(prediction, truth, groups):
    """Dice from sets of voxel places, straight from its definition."""
    places = [place for place in np.ndindex(truth.shape) if truth[place] != IGNORE]
    scores = []
    for group in groups:
        predicted = {place for place in places if prediction[place] in group}
        true = {place for place in places if truth[place] in group}
        total = len(predicted) + len(true)
        scores.append(2 * len(predicted & true) / total if total else np.nan)
    return scores


@settings(max_examples=50, deadline=None)
@given(maps, hnp.arrays(np.int16, (3, 4, 5), elements=st.integers(IGNORE, 3)))
def test_dice_is_that_of_sets_of_voxels(prediction, truth):
    np.testing.assert_allclose(dice(prediction, truth), brute_force(prediction, truth, GROUPS), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(maps, maps)
def test_swapping_truth_and_prediction_transposes_the_matrix_and_keeps_dice(a, b):
    np.testing.assert_array_equal(confusion(a, b, 4), confusion(b, a, 4).T)
    np.testing.assert_array_equal(dice(a, b), dice(b, a))


@settings(max_examples=30, deadline=None)
@given(maps, maps, st.randoms(use_true_random=False))
def test_the_order_of_voxels_does_not_matter(prediction, truth, random):
    order = list(range(truth.size))
    random.shuffle(order)
    shuffled = confusion(prediction.ravel()[order], truth.ravel()[order], 4)
    np.testing.assert_array_equal(shuffled, confusion(prediction, truth, 4))


@settings(max_examples=30, deadline=None)
@given(maps, maps, st.permutations([1, 2, 3]))
def test_renaming_structures_permutes_their_dice(prediction, truth, order):
    renamed = np.array([0, *order], dtype=np.int16)
    before = dice(prediction, truth, [(1,), (2,), (3,)])
    np.testing.assert_array_equal(dice(renamed[prediction], renamed[truth], [(index,) for index in order]), before)


def test_overlapping_cubes_have_the_dice_of_the_formula():
    truth, prediction = np.zeros((2, 20, 20, 20), dtype=np.int8)
    truth[2:12, 2:12, 2:12] = 2
    prediction[5:15, 2:12, 2:12] = 2
    matrix = confusion(prediction, truth, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[6700, 0, 300, 0], [0] * 4, [300, 0, 700, 0], [0] * 4]
    assert dice(prediction, truth)[1] == pytest.approx(0.7)


def test_absent_from_both_is_not_counted_and_absent_from_one_is_zero():
    truth, prediction = np.array([0, 1, 1]), np.array([0, 2, 2])
    absent_from_prediction, absent_from_truth, absent_from_both = dice(prediction, truth, [(1,), (2,), (3,)])
    assert absent_from_prediction == 0
    assert absent_from_truth == 0
    assert np.isnan(absent_from_both)


def test_voxels_of_unknown_truth_are_left_out():
    truth, prediction = np.array([1, 1, IGNORE, IGNORE]), np.array([1, 1, 1, 2])
    matrix = confusion(prediction, truth, 4)
    assert matrix.sum() == 2
    assert dice(prediction, truth)[0] == 1
    assert np.isnan(dice(prediction, truth)[1])


def test_a_region_is_judged_as_the_union_of_its_members():
    structures = Structures({"core": (1,), "oedema": (2,)}, regions={"tumour": ("core", "oedema")})
    truth, prediction = np.array([1, 1, 2, 0]), np.array([2, 2, 1, 0])
    matrix = confusion(prediction, truth, structures.num_classes)
    groups = list(structures.judged().values())
    assert dice_from_confusion(matrix, groups).tolist() == [0, 0, 1]
    both, true, predicted = volumes_from_confusion(matrix, groups)
    assert both.tolist() == [0, 0, 3]
    assert true.tolist() == [2, 1, 3]
    assert predicted.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_integer_type_memory_order_and_size_counts_the_same(dtype, order):
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 50, 60, 70))  # more than one buffer
    expected = np.histogram2d(truth.ravel(), prediction.ravel(), bins=(range(5), range(5)))[0]
    found = confusion(prediction.astype(dtype), np.asarray(truth.astype(dtype), order=order), 4)
    np.testing.assert_array_equal(found, expected)


def test_an_empty_array_counts_nothing():
    assert confusion(np.zeros((0, 3), np.int16), np.zeros((0, 3), np.int16), 3).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([0, 1], [0, 1, 1], r"shape of the truth \(3,\), but got \(2,\)"),
        ([0, 4], [0, 1], r"`prediction` to hold indices 0 … 3, but got 0 … 4"),
        ([IGNORE, 1], [0, 1], r"`prediction` to hold indices 0 … 3, but got -1 … 1"),
        ([0, 1], [0, 7], r"`truth` to hold indices -1 … 3, but got 0 … 7"),
    ],
)
def test_input_that_makes_no_sense_is_refused(prediction, truth, message):
    with pytest.raises(UsageError, match=message):
        confusion(np.array(prediction), np.array(truth), 4)

"""All measures together: their closed forms, what absence makes of them, and lesions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps import blobs, worse
from monai.metrics import compute_iou

from medseg_se.errors import UsageError
from medseg_se.metrics.judging import judge
from medseg_se.metrics.lesions import Lesions, count_lesions
from medseg_se.metrics.measures import DISTANCES, LESIONS, MEASURES, OVERLAP, choose_measures, names
from medseg_se.structures import IGNORE

ALL = tuple(MEASURES)


def test_overlap_and_volumes_of_two_boxes():
    truth, prediction = np.zeros((2, 10, 10, 10), dtype=np.int16)
    truth[:4, :5, :5] = 1  # 100 voxels
    prediction[1:3, :5, :5] = 1  # 50, of which all are true
    prediction[9, :5, :5] = 1  # 25 that are not
    found = judge(prediction, truth, [(1,)], 2, (1.0, 2.0, 0.5), names(OVERLAP))
    assert {name: values[0] for name, values in found.items()} == pytest.approx(
        {
            "dice": 100 / 175,
            "iou": 50 / 125,
            "precision": 50 / 75,
            "recall": 50 / 100,
            "volume_similarity": 1 - 25 / 175,
            "bias_ml": -0.025,
            "truth_ml": 0.1,
            "predicted_ml": 0.075,
        }
    )


def test_iou_is_that_of_monai():
    truth = blobs((12, 10, 8), 4, seed=2)
    prediction = worse(truth)
    one_hot = [np.stack([labels == index for index in (1, 2, 3)])[None] for labels in (prediction, truth)]
    expected = compute_iou(*(torch.as_tensor(masks).float() for masks in one_hot))[0].numpy()
    np.testing.assert_allclose(judge(prediction, truth, [(1,), (2,), (3,)], 4, (1, 1, 1), ["iou"])["iou"], expected, rtol=1e-6)


@pytest.mark.parametrize("family", ["voxel", "surfel"])
def test_absent_from_both_is_not_counted_and_from_one_as_bad_as_can_be(family):
    truth, prediction = np.zeros((2, 6, 6, 6), dtype=np.int16)
    truth[1:3, 1:3, 1:3], prediction[4:, 4:, 4:] = 1, 2
    found = judge(prediction, truth, [(1,), (2,), (3,), (1, 2)], 4, (1.0, 1.0, 1.0), ALL, family)
    missed, invented, absent, elsewhere = ({name: values[place] for name, values in found.items()} for place in range(4))
    for name, measure in MEASURES.items():
        if name in ("truth_ml", "predicted_ml", "truth_lesions", "predicted_lesions"):
            assert absent[name] == 0
            continue
        assert np.isnan(absent[name]), name
        for one in (missed, invented):
            assert one[name] == {"higher": 0, "lower": np.inf, "zero": one["predicted_ml"] - one["truth_ml"]}[measure.better]
    assert elsewhere["dice"] == 0
    assert elsewhere["hd_mm"] == pytest.approx(3 * 3**0.5)


def test_a_region_is_its_members_joined():
    truth = blobs((10, 9, 8), 4, seed=4)
    prediction = worse(truth, seed=1)
    joined = judge(prediction, truth, [(1, 2)], 4, (1.0, 1.5, 2.0), ALL)
    masks = (np.isin(labels, (1, 2)).astype(np.int16) for labels in (prediction, truth))
    alone = judge(*masks, [(1,)], 2, (1.0, 1.5, 2.0), ALL)
    for name in ALL:
        np.testing.assert_array_equal(joined[name], alone[name], err_msg=name)


def test_voxels_of_unknown_truth_count_for_nothing():
    truth = blobs((10, 9, 8), 3, seed=4)
    truth[4:6] = IGNORE
    prediction = worse(np.abs(truth), seed=1).clip(0, 2)
    other = prediction.copy()
    other[4:6] = (other[4:6] + 1) % 3
    first, second = (judge(labels, truth, [(1,), (2,), (1, 2)], 3, (1.0, 1.5, 2.0), ALL) for labels in (prediction, other))
    for name in ALL:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_tolerances_may_differ_by_structure():
    truth = np.zeros((12, 12, 12), dtype=np.int16)
    truth[2:5, 2:5, 2:5], truth[7:10, 7:10, 7:10] = 1, 2
    prediction = np.roll(truth, 1, axis=2)
    found = judge(prediction, truth, [(1,), (2,)], 3, (1, 1, 1), ["nsd"], tolerances=[1.0, 0.5])["nsd"]
    assert found[0] == 1
    assert found[1] < 1


def test_only_what_is_asked_for_is_returned_and_dice_is_free():
    truth = blobs((6, 6, 6), 3)
    assert list(judge(truth, truth, [(1,)], 3, (1, 1, 1), ("dice", "nsd"))) == ["dice", "nsd"]
    assert choose_measures(["nsd", "iou"]) == ("dice", "iou", "nsd")
    with pytest.raises(UsageError, match=r"Unknown measure 'hd95'\. Did you mean 'hd95_mm'"):
        choose_measures(["hd95"])


def test_every_measure_is_in_one_family():
    assert set(MEASURES) == {*names(OVERLAP), *names(DISTANCES), *names(LESIONS)}


# ------------------------------------------------------------------------------------------------------------------ lesions


def lesions():
    """Truth: 8, 8 and 1 voxels; prediction: one half over the first, one over both the second and far more, one elsewhere."""
    truth, prediction = np.zeros((2, 20, 8, 8), dtype=bool)
    truth[1:3, 1:3, 1:3] = truth[8:10, 1:3, 1:3] = truth[15, 5, 5] = True
    prediction[2:4, 1:3, 1:3] = prediction[8:14, 1:3, 1:3] = prediction[18:, 6:, 6:] = True
    return prediction, truth


@pytest.mark.parametrize(
    ("matching", "found", "right"), [("any", 2, 2), (1 / 3, 2, 2), (0.33, 2, 2), (0.34, 0, 0), (1.0, 0, 0)]
)
def test_lesions_match_where_they_touch_or_overlap_enough(matching, found, right):
    # The first two pairs share 4 of 12 and 8 of 24 voxels.
    counted = count_lesions(*lesions(), matching)
    assert counted == Lesions(3, 3, found, right)


def test_lesions_that_touch_at_a_corner_are_one_and_one_may_match_two():
    truth, prediction = np.zeros((2, 6, 6), dtype=bool)
    truth[0, 0] = truth[1, 1] = truth[4, 4] = True
    prediction[:] = True
    assert count_lesions(prediction, truth) == Lesions(2, 1, 2, 1)
    assert count_lesions(truth, truth, 1.0) == Lesions(2, 2, 2, 2)


def test_lesion_measures_of_a_structure():
    prediction, truth = (mask.astype(np.int16) for mask in lesions())
    found = judge(prediction, truth, [(1,), (2,)], 3, (1.0, 1.0, 1.0), names(LESIONS))
    assert [found[name][0] for name in names(LESIONS)] == pytest.approx([3, 3, 2 / 3, 2 / 3])
    assert found["truth_lesions"][1] == 0
    assert np.isnan(found["lesion_recall"][1])

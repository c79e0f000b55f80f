"""The losses beside Dice and cross-entropy, against closed forms, loops over voxels and MONAI's."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, TverskyLoss

from medseg_se.losses import BoundaryLoss, DiceBCERegionsLoss, DiceCELoss, FocalTverskyLoss
from medseg_se.structures import IGNORE

every_dims = pytest.mark.parametrize("dims", [2, 3])
both_sums = pytest.mark.parametrize("batch_dice", [True, False])


def example(dims, maps=4, seed=0, lowest=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 6, 5, 4)[: dims + 1]
    logits = 2 * torch.randn(2, maps, *shape[1:], generator=generator)
    return logits, torch.randint(lowest, 4, shape, generator=generator)


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-7)


# -------------------------------------------------------------------------------------------------------------- focal Tversky


@every_dims
@both_sums
@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.3), (0.2, 0.9), (0.5, 0.5)])
def test_without_focus_it_is_monais_tversky_loss(dims, batch_dice, alpha, beta):
    names = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": batch_dice}
    oracle = TverskyLoss(**names, alpha=beta, beta=alpha, smooth_nr=1e-3, smooth_dr=1e-3)  # MONAI's alpha is of false alarms
    logits, target = example(dims)
    target[target == 3] = 0
    ours = FocalTverskyLoss(alpha, beta, gamma=1.0, batch_dice=batch_dice, smooth=1e-3)
    assert_same(value_and_gradient(ours, logits, target), value_and_gradient(oracle, logits, target[:, None]))


def test_with_equal_weights_and_no_focus_it_is_the_dice():
    logits, target = example(3, lowest=IGNORE)
    ours = FocalTverskyLoss(0.5, 0.5, gamma=1.0, smooth=1e-5)
    dice = DiceCELoss(ce_weight=0, smooth=2e-5)
    assert_same(value_and_gradient(ours, logits, target), value_and_gradient(dice, logits, target))


@pytest.mark.parametrize("gamma", [0.75, 4 / 3, 3.0])
def test_focus_is_a_root_of_what_each_structure_lacks(gamma):
    # Of 8 voxels each: structure 1 has 4 found and 4 missed, structure 2 has all 8 and 4 false alarms.
    target = torch.tensor([1] * 8 + [2] * 8).reshape(1, 4, 4)
    predicted = torch.tensor([1] * 4 + [2] * 12).reshape(1, 4, 4)
    logits = 100.0 * F.one_hot(predicted, 3).movedim(-1, 1)
    indices = 4 / (4 + 0.7 * 4), 8 / (8 + 0.3 * 4)
    expected = sum((1 - index) ** (1 / gamma) for index in indices) / 2
    assert FocalTverskyLoss(gamma=gamma)(logits, target).item() == pytest.approx(expected, abs=2e-4)


def test_missed_voxels_cost_more_than_false_alarms_where_alpha_is_the_larger():
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, :2] = 1
    more, fewer = target.clone(), target.clone()
    more[0, 2] = 1
    fewer[0, 1] = 0
    cost = [FocalTverskyLoss()(100.0 * F.one_hot(found, 2).movedim(-1, 1), target) for found in (fewer, more)]
    assert cost[0] > cost[1]


# ------------------------------------------------------------------------------------------------------------------- boundary


def distances_by_hand(labels, index):
    """Measure from every voxel to every other one."""
    known = np.argwhere(labels != IGNORE)
    inside = [place for place in known if labels[tuple(place)] == index]
    outside = [place for place in known if labels[tuple(place)] != index]
    result = np.zeros(labels.shape)
    if inside and outside:
        for place in inside:
            result[tuple(place)] = 1 - min(math.dist(place, other) for other in outside)
        for place in outside:
            result[tuple(place)] = min(math.dist(place, other) for other in inside)
    return result


@every_dims
@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_term_is_probability_times_signed_distance(dims, seed):
    logits, target = example(dims, seed=seed, lowest=IGNORE)
    target[0][target[0] > 1] = 0  # structures 2 and 3 are absent from one scan
    distances = np.stack([[distances_by_hand(labels, index) for index in (1, 2, 3)] for labels in target.numpy()])
    assert distances.min() <= 0 < distances.max()
    counted = (target != IGNORE).sum()
    term = (logits.softmax(1)[:, 1:] * torch.from_numpy(distances)).sum() / (3 * counted)
    whole = BoundaryLoss(boundary_weight=10.0)(logits, target)
    torch.testing.assert_close((whole - DiceCELoss()(logits, target)) / 10, term.float(), rtol=1e-4, atol=1e-6)


def test_without_a_boundary_term_it_is_dice_and_cross_entropy():
    logits, target = example(3, lowest=IGNORE)
    options = {"dice_weight": 0.3, "class_weights": [0.1, 1.0, 2.0, 3.0], "edge_weight": 1.0}
    assert torch.equal(BoundaryLoss(boundary_weight=0.0, **options)(logits, target), DiceCELoss(**options)(logits, target))


def test_an_error_far_from_the_boundary_costs_more():
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[0, :4, :4] = 1
    costs = []
    for far in (5, 10, 15):
        found = target.clone()
        found[0, far, far] = 1
        logits = 20.0 * F.one_hot(found, 2).movedim(-1, 1)
        costs.append(float(BoundaryLoss()(logits, target) - DiceCELoss()(logits, target)))
    assert costs == sorted(costs)
    assert costs[0] < costs[2]


# -------------------------------------------------------------------------------------------------------------------- regions

NESTED = [[1, 2, 3], [2, 3], [3]]


def truth_by_hand(target, regions):
    truth = torch.zeros(target.shape[0], len(regions), *target.shape[1:])
    for place in itertools.product(*map(range, target.shape)):
        for number, region in enumerate(regions):
            truth[(place[0], number, *place[1:])] = int(target[place]) in region
    return truth


@every_dims
@both_sums
def test_regions_have_the_dice_of_monai_and_the_binary_cross_entropy_of_pytorch(dims, batch_dice):
    logits, target = example(dims, maps=3)
    truth = truth_by_hand(target, NESTED)
    dice = DiceLoss(sigmoid=True, batch=batch_dice, smooth_nr=1e-3, smooth_dr=1e-3)

    def oracle(logits, truth):
        return 0.4 * dice(logits, truth) + 2 * F.binary_cross_entropy_with_logits(logits, truth)

    ours = DiceBCERegionsLoss(0.4, 2.0, batch_dice, smooth=1e-3, regions=NESTED)
    assert_same(value_and_gradient(ours, logits, target), value_and_gradient(oracle, logits, truth))


def test_without_regions_each_structure_is_one():
    logits, target = example(3, maps=3, lowest=IGNORE)
    apart = DiceBCERegionsLoss(regions=[[1], [2], [3]])
    assert torch.equal(DiceBCERegionsLoss()(logits, target), apart(logits, target))


def test_ignoring_voxels_is_leaving_them_out():
    logits, target = example(2, maps=3, lowest=IGNORE)
    counted = target != IGNORE
    alone = logits.movedim(1, -1)[counted].T[None, :, None]
    loss = DiceBCERegionsLoss(regions=NESTED)
    torch.testing.assert_close(loss(logits, target), loss(alone, target[counted][None, None]))

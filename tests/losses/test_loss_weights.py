"""Weights of classes and edges in the cross-entropy, against PyTorch's and against loops over voxels."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg_se.errors import UsageError
from medseg_se.losses import DiceCELoss, median_frequency_weights
from medseg_se.structures import IGNORE

every_dims = pytest.mark.parametrize("dims", [2, 3])


def example(dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 5, 4, 3)[: dims + 1]
    logits = torch.randn(2, 4, *shape[1:], generator=generator, dtype=torch.float64)
    return logits, torch.randint(IGNORE, 4, shape, generator=generator)


def weighted_mean(logits, target, weights):
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    return (losses * weights).sum() / weights.sum()


def edges_by_hand(target):
    """Look at every neighbour of every voxel, within its own scan."""
    found = np.zeros(target.shape, dtype=bool)
    for place in itertools.product(*map(range, target.shape)):
        for axis, step in itertools.product(range(1, target.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            if 0 <= other[axis] < target.shape[axis]:
                pair = {int(target[place]), int(target[tuple(other)])}
                found[place] |= len(pair) == 2 and IGNORE not in pair
    return torch.from_numpy(found)


@every_dims
def test_class_weights_are_those_of_pytorch(dims):
    logits, target = example(dims)
    weights = [0.2, 1.0, 3.5, 0.7]
    oracle = F.cross_entropy(logits, target, torch.tensor(weights).double(), ignore_index=IGNORE)
    torch.testing.assert_close(DiceCELoss(dice_weight=0, class_weights=weights)(logits, target), oracle, check_dtype=False)
    scaled = DiceCELoss(dice_weight=0, class_weights=[7 * weight for weight in weights])(logits, target)
    torch.testing.assert_close(scaled, oracle, check_dtype=False)


def test_class_weights_leave_the_dice_as_it_is():
    logits, target = example(3)
    weighted = DiceCELoss(ce_weight=0, class_weights=[0.2, 1.0, 3.5, 0.7], edge_weight=5.0)
    assert torch.equal(weighted(logits, target), DiceCELoss(ce_weight=0)(logits, target))


@every_dims
@pytest.mark.parametrize("seed", range(5))
def test_edges_weigh_more_and_end_with_the_scan(dims, seed):
    logits, target = example(dims, seed)
    target = torch.where(target == 3, 0, target)  # some voxels are no edge
    edge = edges_by_hand(target.numpy())
    assert 0 < edge.double().mean() < 1
    weights = (target != IGNORE) * (1 + 2.5 * edge)
    loss = DiceCELoss(dice_weight=0, edge_weight=2.5)(logits, target)
    torch.testing.assert_close(loss, weighted_mean(logits, target, weights))


def test_scans_of_a_batch_and_voxels_of_unknown_truth_make_no_edge():
    target = torch.stack([torch.full((4, 4), index) for index in (0, 1, 2)])
    target[1, 2] = IGNORE
    logits = torch.randn(3, 3, 4, 4)
    assert torch.equal(DiceCELoss(edge_weight=9.0)(logits, target), DiceCELoss()(logits, target))


def test_a_structure_one_voxel_thin_is_an_edge_itself():
    target = torch.tensor([[[0, 0, 0, 1, 0, 0, 0]]])
    logits = torch.randn(1, 2, 1, 7)
    weights = torch.tensor([[[1.0, 1, 4, 4, 4, 1, 1]]])
    loss = DiceCELoss(dice_weight=0, edge_weight=3.0)(logits, target)
    torch.testing.assert_close(loss, weighted_mean(logits, target, weights))


def test_the_recipe_of_quicknat():
    logits, target = example(2, seed=3)
    frequencies = [0.9, 0.06, 0.03, 0.01]
    omega = torch.tensor([0.045 / f for f in frequencies], dtype=torch.float64)
    weights = (target != IGNORE) * (omega[target.clamp(min=0)] + 2 * 0.045 / 0.01 * edges_by_hand(target.numpy()))
    balanced = median_frequency_weights(frequencies)
    assert balanced == pytest.approx(omega.tolist())
    loss = DiceCELoss(dice_weight=0, class_weights=balanced, edge_weight="auto")(logits, target)
    torch.testing.assert_close(loss, weighted_mean(logits, target, weights), rtol=1e-6, atol=0)


def test_a_class_that_is_nowhere_weighs_nothing_and_does_not_move_the_median():
    assert median_frequency_weights([0.8, 0.0, 0.1, 0.2]) == pytest.approx((0.25, 0.0, 2.0, 1.0))


@pytest.mark.parametrize("frequencies", [[], [0.0, 0.0], [0.5, -0.1], [0.5, float("nan")]])
def test_frequencies_that_are_none_are_refused(frequencies):
    with pytest.raises(UsageError, match="frequencies of at least 0 and not all 0"):
        median_frequency_weights(frequencies)


def test_weights_of_other_classes_are_refused():
    logits, target = example(2)
    with pytest.raises(UsageError, match="Expected 3 classes, for each has a weight, but got 4"):
        DiceCELoss(class_weights=[1.0, 2.0, 3.0])(logits, target)


def test_weights_are_kept_in_a_checkpoint():
    first, second = (DiceCELoss(class_weights=weights) for weights in ([0.5, 2.0], [1.0, 1.0]))
    second.load_state_dict(first.state_dict())
    assert second.class_weights.tolist() == [0.5, 2.0]
    assert not DiceCELoss().state_dict()

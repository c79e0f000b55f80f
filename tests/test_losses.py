import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss as MonaiDiceCELoss
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.losses import DeepSupervisionLoss, DiceCELoss, shrink
from medseg_se.structures import IGNORE

GOLDEN = Path(__file__).parent / "data" / "loss_dice_old_single_softmax.npz"
every_dims = pytest.mark.parametrize("dims", [2, 3])
both_sums = pytest.mark.parametrize("batch_dice", [True, False])


def example(dims, classes=4, ignore=False, seed=0, size=(7, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, *size[:dims], generator=generator)
    target = torch.randint(IGNORE if ignore else 0, classes, (2, *size[:dims]), generator=generator)
    return logits, target


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


# ----------------------------------------------------------------------------------------------------------------- DiceCELoss


@every_dims
@both_sums
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_value_and_gradient_are_monais(dims, batch_dice, weights):
    oracle = MonaiDiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=batch_dice,
        smooth_nr=1e-3,
        smooth_dr=1e-3,
        lambda_dice=weights[0],
        lambda_ce=weights[1],
    )
    logits, target = example(dims)
    target[0][target[0] == 2] = 1  # structure 2 is absent from one scan, 3 from both
    target[target == 3] = 0
    value, gradient = value_and_gradient(DiceCELoss(*weights, batch_dice=batch_dice, smooth=1e-3), logits, target)
    expected, expected_gradient = value_and_gradient(oracle, logits, target[:, None])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_dice_is_that_of_the_authors_of_scse():
    with np.load(GOLDEN) as file:
        x, target, value, factor, dx = (torch.from_numpy(file[key]) for key in ("x", "target", "y", "w", "dx"))
    # Their Dice counts all classes. So that ours does, a background nobody predicts goes before them.
    logits = torch.cat([torch.full_like(x[:, :1], -1e4), x], dim=1)
    ours, gradient = value_and_gradient(DiceCELoss(ce_weight=0, smooth=1e-9), logits, target + 1)
    torch.testing.assert_close(ours, value[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(factor * gradient[:, 1:], dx, rtol=0, atol=1e-5)


@both_sums
def test_uniform_logits_have_the_loss_of_guessing(batch_dice):
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, 0, :] = 1
    target[1, 0, :2] = 1
    target[1, 3, 3] = 2
    value = DiceCELoss(batch_dice=batch_dice)(torch.zeros(2, 3, 4, 4), target)

    def dice(voxels, true):
        return 2 * (true / 3) / (voxels / 3 + true)

    if batch_dice:
        mean = (dice(32, 6) + dice(32, 1)) / 2
    else:
        mean = (dice(16, 4) + dice(16, 0) + dice(16, 2) + dice(16, 1)) / 4
    assert value.item() == pytest.approx(1 - mean + math.log(3), abs=1e-5)


def test_certain_predictions_score_nothing_if_right_and_all_if_wrong():
    _, target = example(3)
    right = 1000.0 * F.one_hot(target, 4).movedim(-1, 1)
    assert DiceCELoss()(right, target).item() == pytest.approx(0, abs=1e-6)
    wrong = right.roll(1, dims=1)
    assert DiceCELoss(ce_weight=0)(wrong, target).item() == pytest.approx(1, abs=1e-5)
    assert DiceCELoss(dice_weight=0)(wrong, target).item() == pytest.approx(1000, rel=1e-6)


@every_dims
@both_sums
def test_ignored_voxels_do_not_count(dims, batch_dice):
    loss = DiceCELoss(batch_dice=batch_dice)
    logits, target = example(dims, ignore=True)
    ignored = (target == IGNORE)[:, None].expand_as(logits)
    assert 0.1 < ignored.float().mean() < 0.9
    value, gradient = value_and_gradient(loss, logits, target)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()
    other, same_gradient = value_and_gradient(loss, torch.where(ignored, 50 * torch.randn_like(logits), logits), target)
    assert torch.equal(value, other)
    assert torch.equal(gradient, same_gradient)


def test_ignoring_voxels_is_leaving_them_out():
    logits, target = example(2, ignore=True)
    counted = target != IGNORE
    alone = logits.movedim(1, -1)[counted].T[None, :, None]
    torch.testing.assert_close(DiceCELoss()(logits, target), DiceCELoss()(alone, target[counted][None, None]))


@both_sums
def test_a_batch_without_a_counted_voxel_has_no_loss_and_no_gradient(batch_dice):
    logits, target = example(3)
    value, gradient = value_and_gradient(DiceCELoss(batch_dice=batch_dice), logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert (gradient == 0).all()


@every_dims
@both_sums
def test_gradient_is_that_of_finite_differences(dims, batch_dice):
    logits, target = example(dims, classes=3, ignore=True, size=(3, 2, 2))
    loss = DiceCELoss(batch_dice=batch_dice)
    logits = logits.double().requires_grad_()
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_changes_neither_value_nor_gradient(kind):
    logits, target = example(3, classes=3, size=(64, 64, 48))  # sums beyond 65504 would overflow float16
    target = (target > 0).long()
    logits = logits.to(kind)
    value, gradient = value_and_gradient(DiceCELoss(), logits.float(), target)
    with torch.autocast("cpu", kind):
        low, low_gradient = value_and_gradient(DiceCELoss(), logits, target)
    assert low.dtype == torch.float32
    assert torch.equal(low, value)
    assert low_gradient.dtype == kind
    torch.testing.assert_close(low_gradient, gradient.to(kind))
    assert (gradient != 0).all()


def test_sums_over_millions_of_voxels_keep_their_digits():
    logits = torch.zeros(1, 2, 128, 128, 96)
    logits[:, 1] = 0.8
    probability = 1 / (1 + math.exp(-0.8))
    value = DiceCELoss(ce_weight=0)(logits, torch.ones(1, 128, 128, 96, dtype=torch.uint8))
    assert value.item() == pytest.approx(1 - 2 * probability / (1 + probability), abs=2e-6)


def test_extreme_logits_give_finite_numbers():
    logits, target = example(2, ignore=True)
    value, gradient = value_and_gradient(DiceCELoss(), 1e30 * logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_integer_type(kind):
    logits, target = example(3)
    assert torch.equal(DiceCELoss()(logits, target.to(kind)), DiceCELoss()(logits, target))


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((2, 3, 4, 6), (2, 6, 4)),
        ((2, 3, 4, 6), (2, 1, 4, 6)),
        ((2, 3, 4, 6), (1, 4, 6)),
        ((2, 3, 4, 6, 5), (2, 4, 6)),
        ((2, 1, 4, 6), (2, 4, 6)),
    ],
)
def test_shapes_that_do_not_match_are_refused(logits, target):
    with pytest.raises(UsageError) as error:
        DiceCELoss()(torch.zeros(logits), torch.zeros(target, dtype=torch.long))
    assert f"{logits} and {target}" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dice_weight": -1.0}, "at least 0 and not both 0, but got -1.0 and 1.0"),
        ({"ce_weight": -0.5}, "at least 0 and not both 0, but got 1.0 and -0.5"),
        ({"dice_weight": 0.0, "ce_weight": 0.0}, "at least 0 and not both 0, but got 0.0 and 0.0"),
        ({"smooth": 0.0}, "`smooth` to be above 0, but got 0.0"),
    ],
)
def test_factors_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DiceCELoss(**options)


# ----------------------------------------------------------------------------------------------------------- deep supervision


class Mean(nn.Module):
    """The mean of the logits, whatever the target."""

    def forward(self, logits, target):
        assert target.shape[1:] == logits.shape[2:]
        return logits.mean()


def test_levels_weigh_half_of_the_level_before_and_one_in_all():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    outputs = [torch.full((1, 2, size, size), value) for size, value in ((8, 1.0), (4, 10.0), (2, 100.0))]
    assert DeepSupervisionLoss(Mean())(outputs, target).item() == pytest.approx((4 * 1 + 2 * 10 + 100) / 7)
    assert DeepSupervisionLoss(Mean())(outputs[:2], target).item() == pytest.approx((2 * 1 + 10) / 3)


@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: (logits,)])
def test_one_level_is_the_loss_itself(wrap):
    logits, target = example(3, ignore=True)
    assert torch.equal(DeepSupervisionLoss(DiceCELoss())(wrap(logits), target), DiceCELoss()(logits, target))


def test_every_level_gets_a_gradient():
    _, target = example(3, size=(9, 7, 5))
    outputs = [torch.zeros(2, 4, *size, requires_grad=True) for size in ((9, 7, 5), (5, 4, 3), (3, 2, 2))]
    DeepSupervisionLoss(DiceCELoss())(outputs, target).backward()
    assert all(output.grad.abs().max() > 0 for output in outputs)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_shrunk_voxels_are_those_under_the_centres_of_strided_convolutions(stride):
    for length in range(2, 30):
        target = torch.arange(length * 4).reshape(1, length, 4)
        kernel = torch.zeros(1, 1, 3, 3)
        kernel[..., 1, 1] = 1
        expected = F.conv2d(target[None].float(), kernel, stride=(stride, 2), padding=1)[0].long()
        if (stride, length) != (3, 4):  # from 4 to 2 is what a stride of 2 does, too
            assert torch.equal(shrink(target, expected.shape[1:]), expected)


def test_levels_are_shrunk_one_after_another_as_the_network_does():
    seen = []

    class Record(nn.Module):
        def forward(self, logits, target):
            seen.append(target[0].tolist())
            return logits.sum()

    outputs = [torch.zeros(1, 2, length) for length in (41, 21, 11, 6)]
    DeepSupervisionLoss(Record())(outputs, torch.arange(41)[None])
    assert seen == [list(range(0, 41, step)) for step in (1, 2, 4, 8)]


def test_shrinking_mixes_no_values_and_takes_sizes_that_no_stride_gives():
    target = torch.tensor([[[0, 9, IGNORE], [9, 0, 9], [IGNORE, 9, 0], [9, 9, 9], [4, 4, 4]]])
    assert set(shrink(target, (3, 2)).unique().tolist()) <= {0, 9, 4, IGNORE}
    assert shrink(torch.arange(5)[None], (4,)).tolist() == [[0, 1, 2, 3]]
    assert shrink(target, (5, 3)) is target
    with pytest.raises(UsageError, match=r"to shrink to \(2, 2, 2\), but got shape \(1, 5, 3\)"):
        shrink(target, (2, 2, 2))

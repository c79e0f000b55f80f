"""What every loss of the table has in common."""

import pytest
import torch
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.losses import LOSSES, DeepSupervisionLoss, build_loss
from medseg_se.structures import IGNORE

OPTIONS = {
    "dice_ce": {"class_weights": [0.1, 1.0, 4.0], "edge_weight": "auto"},
    "boundary": {"boundary_weight": 0.3, "edge_weight": 2.0},
    "focal_tversky": {},
    "dice_bce_regions": {"regions": [[1, 2], [2], [1]]},
}
every_loss = pytest.mark.parametrize("name", sorted(OPTIONS))
every_dims = pytest.mark.parametrize("dims", [2, 3])
both_sums = pytest.mark.parametrize("batch_dice", [True, False])


def make(name, **options):
    return build_loss(name, **OPTIONS[name], **options)


def example(dims=2, seed=0, size=(7, 6, 5), classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, *size[:dims], generator=generator)
    return logits, torch.randint(IGNORE, classes, (2, *size[:dims]), generator=generator)


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


def test_every_loss_is_tested_here():
    assert set(OPTIONS) == set(LOSSES)


@every_loss
@every_dims
@both_sums
def test_ignored_voxels_do_not_count(name, dims, batch_dice):
    logits, target = example(dims)
    ignored = (target == IGNORE)[:, None].expand_as(logits)
    assert 0.1 < ignored.float().mean() < 0.9
    loss = make(name, batch_dice=batch_dice)
    value, gradient = value_and_gradient(loss, logits, target)
    assert (gradient[ignored] == 0).all()
    assert gradient[~ignored].abs().max() > 0
    other, same = value_and_gradient(loss, torch.where(ignored, 50 * torch.randn_like(logits), logits), target)
    assert torch.equal(value, other)
    assert torch.equal(gradient, same)


@every_loss
@both_sums
def test_a_batch_without_a_counted_voxel_has_no_loss_and_no_gradient(name, batch_dice):
    logits, target = example()
    value, gradient = value_and_gradient(make(name, batch_dice=batch_dice), logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert (gradient == 0).all()


@every_loss
@both_sums
@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_class_alone_gives_finite_numbers(name, batch_dice, index):
    logits, target = example(3)
    for factor in (0.0, 1.0, 1e4):  # the last is certain, rightly or wrongly
        value, gradient = value_and_gradient(make(name, batch_dice=batch_dice), factor * logits, torch.full_like(target, index))
        assert value.isfinite()
        assert gradient.isfinite().all()


@every_loss
def test_a_right_and_certain_answer_is_no_worse_than_any_other(name):
    logits, target = example(3, classes=3)
    right = torch.stack([torch.isin(target, torch.tensor(held)) for held in right_maps(name)], dim=1)
    certain = 40.0 * right - 20
    best = build_loss(name, **OPTIONS[name])(certain, target)
    assert best < make(name)(logits, target)
    assert best < make(name)(-certain, target)
    value, gradient = value_and_gradient(make(name), 1e4 * certain, target)
    assert value.isfinite()
    assert gradient.isfinite().all()


def right_maps(name):
    return OPTIONS[name].get("regions", [[0], [1], [2]])


@every_loss
@every_dims
@both_sums
def test_gradient_is_that_of_finite_differences(name, dims, batch_dice):
    logits, target = example(dims, size=(3, 4, 2))
    logits = logits.double().requires_grad_()
    loss = make(name, batch_dice=batch_dice)
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@every_loss
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_changes_neither_value_nor_gradient(name, kind):
    logits, target = example(3)
    logits = logits.to(kind)
    value, gradient = value_and_gradient(make(name), logits.float(), target)
    with torch.autocast("cpu", kind):
        low, low_gradient = value_and_gradient(make(name), logits, target)
    assert low.dtype == torch.float32
    assert torch.equal(low, value)
    torch.testing.assert_close(low_gradient, gradient.to(kind))


@every_loss
def test_targets_of_any_integer_type(name):
    logits, target = example(3)
    target = target.clamp(min=0)
    expected = make(name)(logits, target)
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(make(name)(logits, target.to(kind)), expected)


@every_loss
def test_deep_supervision_wraps_it(name):
    _, target = example(3, size=(8, 6, 4))
    outputs = [torch.zeros(2, 3, *size, requires_grad=True) for size in ((8, 6, 4), (4, 3, 2))]
    DeepSupervisionLoss(make(name))(outputs, target).backward()
    assert all(output.grad.abs().max() > 0 for output in outputs)


@every_loss
@pytest.mark.parametrize("target", [(2, 6, 7), (2, 1, 7, 6), (1, 7, 6)])
def test_shapes_that_do_not_match_are_refused(name, target):
    logits, _ = example()
    with pytest.raises(UsageError) as error:
        make(name)(logits, torch.zeros(target, dtype=torch.long))
    assert f"(2, 3, 7, 6) and {target}" in str(error.value)


def test_a_loss_of_ones_own_is_built_by_name(monkeypatch):
    class Mine(nn.Module):
        def __init__(self, strength=1.0):
            super().__init__()
            self.strength = strength

    monkeypatch.setitem(LOSSES, "mine", Mine)
    assert build_loss("mine", strength=3.0).strength == 3.0


def test_unknown_names_and_options_are_refused_with_the_valid_ones():
    with pytest.raises(UsageError, match=r"Unknown loss 'tversky'.*'focal_tversky'.*boundary, dice_bce_regions, dice_ce"):
        build_loss("tversky")
    with pytest.raises(
        UsageError, match=r"Unknown option of loss 'focal_tversky' 'alfa'.*'alpha'.*batch_dice, beta, gamma, smooth"
    ):
        build_loss("focal_tversky", alfa=0.5)
    with pytest.raises(UsageError, match="Unknown option of loss 'focal_tversky' 'class_weights'"):
        build_loss("focal_tversky", class_weights=[1.0, 1.0])
    with pytest.raises(UsageError, match=r"Loss 'dice_bce_regions' cannot be made with regions 1\.0"):
        build_loss("dice_bce_regions", regions=1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal_tversky", {"alpha": -0.1}, "`alpha` and `beta` to be at least 0 and not both 0, but got -0.1 and 0.3"),
        ("focal_tversky", {"alpha": 0.0, "beta": 0.0}, "not both 0, but got 0.0 and 0.0"),
        ("focal_tversky", {"gamma": 0.0}, "`gamma` to be above 0, but got 0.0"),
        ("focal_tversky", {"smooth": 0.0}, "`smooth` to be above 0, but got 0.0"),
        ("boundary", {"boundary_weight": -1.0}, "`boundary_weight` to be at least 0, but got -1.0"),
        ("boundary", {"dice_weight": 0.0, "ce_weight": 0.0}, "not both 0, but got 0.0 and 0.0"),
        ("dice_bce_regions", {"bce_weight": -1.0}, "`dice_weight` and `bce_weight` to be at least 0 and not both 0"),
        ("dice_bce_regions", {"smooth": -1.0}, "`smooth` to be above 0, but got -1.0"),
        ("dice_bce_regions", {"regions": [[1], []]}, "`regions` to name structure indices from 1"),
        ("dice_bce_regions", {"regions": [[0, 1]]}, "`regions` to name structure indices from 1"),
        ("dice_ce", {"class_weights": [1.0, -1.0]}, "`class_weights` to be a number of at least 0 for each class"),
        ("dice_ce", {"class_weights": [1.0, float("nan")]}, "`class_weights` to be a number of at least 0 for each class"),
        ("dice_ce", {"edge_weight": -2.0}, "`edge_weight` to be at least 0, but got -2.0"),
        ("dice_ce", {"edge_weight": "auto"}, "`class_weights` where `edge_weight` is auto"),
        ("dice_ce", {"edge_weight": "much"}, "a number of at least 0 or auto, but got 'much'"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        build_loss(name, **options)

"""mixup and CutMix: what is mixed, by how much, and that both targets are learnt by that share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg_se.errors import UsageError
from medseg_se.tasks.mixing import Mixing


def batch(*spatial: int) -> torch.Tensor:
    """Return six scans of two channels, of which each is filled with its number."""
    return torch.arange(6.0).view(-1, 1, *[1] * len(spatial)).expand(6, 2, *spatial).contiguous()


@pytest.mark.parametrize("spatial", [(12, 10), (6, 8, 7)])
def test_mixup_adds_pairs_up_by_their_share(spatial):
    torch.manual_seed(0)
    images = batch(*spatial)
    shares = []
    for _ in range(200):
        mixed = Mixing(mixup=0.4)(images)
        expected = mixed.share * images + (1 - mixed.share) * images[mixed.partner]
        torch.testing.assert_close(mixed.images, expected)
        assert sorted(mixed.partner.tolist()) == list(range(6))
        shares.append(mixed.share)
    # Beta(α, α) has the mean ½ and the variance 1 / 4(2α + 1).
    assert torch.tensor(shares).mean() == pytest.approx(0.5, abs=0.08)
    assert torch.tensor(shares).var() == pytest.approx(1 / (4 * 1.8), abs=0.03)


@pytest.mark.parametrize("spatial", [(24, 20), (12, 16, 14)])
def test_cutmix_puts_in_one_box_and_counts_its_voxels(spatial):
    torch.manual_seed(1)
    images = batch(*spatial)
    for _ in range(50):
        mixed = Mixing(cutmix=1.0)(images)
        moved = mixed.partner != torch.arange(6)
        foreign = (mixed.images != images)[moved]
        if not moved.any():
            continue
        assert foreign.float().mean((1, 2, 3) if len(spatial) == 2 else (1, 2, 3, 4)).tolist() == pytest.approx(
            [1 - mixed.share] * int(moved.sum()), abs=1e-6
        )
        places = foreign[0, 0].nonzero()
        if len(places):
            sides = places.amax(0) - places.amin(0) + 1
            assert int(sides.prod()) == len(places)  # a box without holes
        assert torch.equal(mixed.images[moved][foreign], images[mixed.partner][moved][foreign])


def test_the_loss_is_that_of_both_targets_by_their_shares():
    torch.manual_seed(2)
    answers, target, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0.2, 1.0, 3.0])
    mixed = Mixing(mixup=1.0)(batch(4, 4))

    def loss_of(a: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(a, t, weight)

    expected = mixed.share * loss_of(answers, target) + (1 - mixed.share) * loss_of(answers, target[mixed.partner])
    assert 0 < mixed.share < 1
    assert mixed.loss(loss_of, answers, target).item() == pytest.approx(expected.item())


def test_both_ways_and_none_share_the_batches():
    torch.manual_seed(3)
    images = batch(16, 16)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(300):
        mixed = Mixing(mixup=1.0, cutmix=1.0, probability=0.6)(images)
        whole = (mixed.images % 1 == 0).all()
        kinds["none" if torch.equal(mixed.images, images) and mixed.share == 1 else "cutmix" if whole else "mixup"] += 1
    assert kinds["none"] == pytest.approx(120, abs=30)
    assert kinds["mixup"] == pytest.approx(90, abs=30)


def test_the_same_seed_mixes_alike_and_nothing_is_mixed_unasked():
    images = batch(8, 8)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(Mixing(cutmix=1.0)(images).images)
    assert torch.equal(*found)
    assert Mixing()(images).images is images
    assert Mixing(mixup=1.0)(images[:1]).share == 1  # nobody to mix with


@pytest.mark.parametrize("options", [{"mixup": -0.1}, {"cutmix": float("inf")}, {"probability": 1.5}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match="Expected `"):
        Mixing(**options)

"""Two processes that train together have the gradients of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from medseg_se.losses import LOSSES, DeepSupervisionLoss, build_loss, over_devices
from medseg_se.structures import IGNORE

CHOICES = {
    "dice_ce": ("dice_ce", {"class_weights": [0.1, 1.0, 4.0], "edge_weight": 2.0}),
    "dice_ce of each scan": ("dice_ce", {"batch_dice": False}),
    "boundary": ("boundary", {"boundary_weight": 1.0}),
    "focal_tversky": ("focal_tversky", {}),
    "dice_bce_regions": ("dice_bce_regions", {"regions": [[1, 2], [2], [1]]}),
}


def batch():
    """Four scans of which the second half has fewer known voxels and no structure 2."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(4, 1, 6, 6, generator=generator)
    target = torch.randint(0, 3, (4, 6, 6), generator=generator)
    target[2:][target[2:] == 2] = 0
    target[2:, :4] = IGNORE
    return image, target


class TwoLevels(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.fine, self.coarse = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1, stride=2)

    def forward(self, x):
        return self.fine(x), self.coarse(x)


def gradients(choice, image, target):
    name, options = CHOICES[choice]
    network = TwoLevels()
    DeepSupervisionLoss(build_loss(name, **options))(network(image), target).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def train(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    image, target = (part[2 * rank : 2 * rank + 2] for part in batch())
    found = {choice: gradients(choice, image, target) for choice in CHOICES}
    for gradient in found.values():  # averaged, as DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    with torch.no_grad():
        found["judging"] = over_devices(torch.ones(2))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    torch.multiprocessing.spawn(train, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_every_loss_is_tried():
    assert {name for name, _ in CHOICES.values()} == set(LOSSES)


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_are_those_of_the_whole_batch(found, choice):
    image, target = batch()
    whole = gradients(choice, image, target)
    for rank in range(2):
        torch.testing.assert_close(found[rank][choice], whole, rtol=1e-4, atol=1e-6)
    halves = [gradients(choice, image[part], target[part]) for part in (slice(2), slice(2, 4))]
    assert not torch.allclose(sum(halves) / 2, whole, rtol=1e-2, atol=1e-4)  # the sums have to be exchanged


def test_devices_judge_by_themselves(found):
    assert all(one["judging"].tolist() == [1.0, 1.0] for one in found)

"""How operations are run: layers that are made without drawing their weights."""

import pytest
import torch

from medseg_se.attention import ATTENTION
from medseg_se.execution import Uninitialised
from medseg_se.networks import build_network


@pytest.mark.parametrize("block", sorted(ATTENTION))
def test_a_network_without_drawn_weights_is_the_same_once_they_are_loaded(block):
    given = build_network("unet", 1, 3, 2, channels=[8, 16], attention=block).eval()
    state = torch.get_rng_state()
    with Uninitialised():
        made = build_network("unet", 1, 3, 2, channels=[8, 16], attention=block).eval()
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    made.load_state_dict(given.state_dict())
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(made(x), given(x))


def test_weights_are_drawn_again_afterwards():
    with Uninitialised():
        pass
    assert torch.nn.Linear(8, 8).weight.std() > 0.05

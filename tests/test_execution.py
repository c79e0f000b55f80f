"""How operations are run: layers that are made without drawing their weights."""

from contextlib import nullcontext

import pytest
import torch

from medseg_se.attention import ATTENTION
from medseg_se.execution import Uninitialised, sums_as_convolutions
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


@pytest.mark.parametrize("block", ["coordinate", "scse", "project_excite"])
def test_sums_recorded_as_convolutions_are_the_same_sums(block):
    network = build_network("unet", 1, 2, 3, channels=[4, 8], attention=block).eval()
    x = torch.randn(1, 1, 16, 12, 20)
    operations = []
    for context in (nullcontext(), sums_as_convolutions()):
        with context, torch.no_grad():
            recorded = torch.export.export(network, (x,), strict=False)
        graphs = [part.graph for part in recorded.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
        operations.append([str(node.target) for graph in graphs for node in graph.nodes])
        torch.testing.assert_close(recorded.module()(x), network(x), rtol=1e-5, atol=1e-5)
    plain, convolved = (sum(operation.startswith("aten.conv") for operation in each) for each in operations)
    assert convolved > plain if block != "scse" else convolved == plain

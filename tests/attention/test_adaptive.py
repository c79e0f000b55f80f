import copy

import pytest
import torch
from block_checks import assert_differentiable_twice, assert_tiles_change_nothing, random_map, seeded

from medseg_se.attention import build_attention, discretise
from medseg_se.errors import UsageError
from medseg_se.networks import UNet

every_dims = pytest.mark.parametrize("dims", [2, 3])
BLOCKS = ["none", "cse", "max(eca,simam)", "coordinate"]


def build(dims=3, alpha=(0.0, 2.0, 1.0, -1.0), blocks=("none", "cse", "simam", "coordinate"), **options):
    block = seeded(build_attention, "adaptive", 4, dims, blocks=list(blocks), **options)
    with torch.no_grad():
        block.alpha.copy_(torch.tensor(alpha))
    return block.eval()


@every_dims
def test_results_are_weighted_with_the_softmax(dims):
    block, x = build(dims), random_map(4, dims)
    weights = torch.softmax(torch.tensor([0.0, 2.0, 1.0, -1.0]), 0)
    expected = sum(weight * part(x) for weight, part in zip(weights, block.blocks, strict=True))
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-7)
    assert block.choice() == pytest.approx(dict(zip(("none", "cse", "simam", "coordinate"), weights.tolist(), strict=True)))


def test_weights_start_equal_and_are_differentiable_twice():
    block = build_attention("adaptive", 2, 2, blocks=["none", "cse", "max(simam,sse)"]).eval()
    assert list(block.choice().values()) == pytest.approx([1 / 3] * 3)
    assert_differentiable_twice(block, 2)


def test_tiles_change_nothing():
    assert_tiles_change_nothing(seeded(build_attention, "adaptive", 8, 3).eval(), 3)


@every_dims
def test_discretising_keeps_the_winner_alone(dims):
    block, x = build(dims), random_map(4, dims)
    winner = block.blocks[1]
    assert block.discretise() == "cse"
    torch.testing.assert_close(block(x), winner(x), rtol=0, atol=0)
    assert block.choice() == {"cse": 1.0}
    assert {name for name, _ in block.named_parameters()} == {f"blocks.0.{name}" for name, _ in winner.named_parameters()}
    assert block.discretise() == "cse"


def test_training_finds_the_block_that_helps():
    torch.manual_seed(0)
    target = build_attention("simam", 4, 2, smoothing=0.1)
    block = build_attention("adaptive", 4, 2, blocks=["none", "eca", "simam"], simam={"smoothing": 0.1})
    optimiser = torch.optim.Adam(block.parameters(), lr=0.05)
    for step in range(100):
        x = random_map(4, 2, seed=step)
        optimiser.zero_grad()
        (block(x) - target(x)).square().mean().backward()
        optimiser.step()
    assert block.discretise() == "simam"


@pytest.mark.parametrize("number", range(4))
def test_a_network_remembers_the_choices_in_its_state(number):
    def network():
        return UNet(1, 2, 2, channels=(4, 8), attention="adaptive", attention_options={"blocks": BLOCKS})

    torch.manual_seed(number)
    first, x = network(), torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_()
    chosen = discretise(first.eval())
    assert len(chosen) == 3
    assert set(chosen.values()) <= set(BLOCKS)
    second = network().eval()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(x), first(x))
    assert discretise(second) == chosen


def test_discretising_a_network_ends_a_search_for_frequencies_too():
    network = UNet(1, 2, 2, channels=(4, 8), attention="fca_search", attention_options={"parts": 2})
    chosen = discretise(network)
    assert chosen["bottleneck.attention"] == "[(0, 0), (0, 0)]"
    assert not [name for name, _ in network.named_parameters() if "alpha" in name]


def test_a_block_that_has_chosen_takes_up_a_state_that_had_not_or_had_chosen_otherwise():
    still_open, other, x = build(), build(), random_map(4, 3)
    other.discretise()
    assert len(other.state_dict()) < len(still_open.state_dict())  # what was dropped is no state
    block = build().train()
    block.discretise(0)
    block = copy.deepcopy(block).eval()  # as an average of the weights is made
    for saved in (still_open, other, still_open):
        block.load_state_dict(saved.state_dict())
        torch.testing.assert_close(block(x), saved(x), rtol=0, atol=0)
        assert block.choice() == saved.choice()
        assert {name for name, _ in block.named_parameters()} == {name for name, _ in saved.named_parameters()}
        assert not any(part.training for part in block.blocks)


def test_there_is_no_other_block_to_choose():
    with pytest.raises(UsageError, match="`winner` to be from 0 to 3, but got 7"):
        build().discretise(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ["cse"]}, "Expected `blocks` to name two blocks or more, but got cse."),
        ({"blocks": "cse"}, "Expected `blocks` to be a list of names, but got 'cse'."),
        ({"blocks": ["cse", "scs"]}, "Unknown attention 'scs'. Did you mean 's"),
        ({"blocks": ["cse", "gated_attention"]}, "in one pass, but got 'gated_attention'"),
        ({"blocks": ["cse", "eca+simam"]}, "in one pass, but got 'eca+simam'"),
        ({"blocks": ["cse", "eca"], "reduction": 3}, "Unknown option of attention 'adaptive' 'reduction'. Valid names: "),
    ],
)
def test_wrong_blocks_are_refused(options, message):
    with pytest.raises(UsageError) as error:
        build_attention("adaptive", 4, 2, **options)
    assert message in str(error.value)

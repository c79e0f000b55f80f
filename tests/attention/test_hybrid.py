import pytest
import torch
from block_checks import assert_differentiable_twice, assert_tiles_change_nothing, random_map, seeded
from torch import nn

from medseg_se.attention import ATTENTION, attention_names, build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import UNet

every_dims = pytest.mark.parametrize("dims", [2, 3])
WITHOUT_SPACE = ("gated_attention", "window_attention")


@every_dims
def test_plus_runs_blocks_in_order(dims):
    block, x = seeded(build_attention, "eca+coordinate+simam", 8, dims).eval(), random_map(8, dims)
    expected = x
    for part in block:
        expected = part(expected)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    assert [type(part) for part in block] == [type(build_attention(name, 8, dims)) for name in ("eca", "coordinate", "simam")]


@every_dims
@pytest.mark.parametrize(("name", "join"), [("max", torch.maximum), ("add", torch.add)])
def test_max_and_add_run_blocks_side_by_side(dims, name, join):
    block, x = seeded(build_attention, f"{name}(eca, scse, simam)", 8, dims), random_map(8, dims)
    first, second, third = (part(x) for part in block.blocks)
    torch.testing.assert_close(block(x), join(join(first, second), third), rtol=1e-6, atol=1e-7)


def test_hybrids_can_be_nested():
    block, x = seeded(build_attention, "max(eca,add(cse,simam))+sse", 4, 3), random_map(4, 3)
    side = block[0].blocks
    inner = side[1].blocks
    expected = block[1](torch.maximum(side[0](x), inner[0](x) + inner[1](x)))
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-7)
    assert attention_names("max(eca,add(cse,simam))+sse") == ["eca", "cse", "simam", "sse"]


@pytest.mark.parametrize("name", ["max(cse,simam)", "add(scse,coordinate)", "max(cse,add(sse,eca))", "eca+simam"])
def test_hybrids_are_differentiable_twice(name):
    block = build_attention(name, 2, 2).eval()
    block.channels = 2
    assert_differentiable_twice(block, 2)


@pytest.mark.parametrize("name", ["max(cse,simam)", "add(scse,coordinate)", "max(cse,simam,sse)"])
def test_tiles_change_nothing(name):
    assert_tiles_change_nothing(seeded(build_attention, name, 8, 3).eval(), 3)


def test_the_larger_map_gets_the_gradient_and_equal_maps_share_it():
    block, x = build_attention("max(cse,cse)", 3, 2), random_map(3, 2).requires_grad_()
    block.blocks[1].load_state_dict(block.blocks[0].state_dict())
    weights = random_map(3, 2, seed=1)
    (block(x) * weights).sum().backward()
    (expected,) = torch.autograd.grad((block.blocks[0](x) * weights).sum(), x)
    torch.testing.assert_close(x.grad, expected)
    first, second = (part.excite.bias.grad for part in block.blocks)
    torch.testing.assert_close(first, second)
    assert first.abs().min() > 0


@pytest.mark.parametrize("name", WITHOUT_SPACE)
def test_blocks_that_make_their_own_map_can_stand_beside_others(name):
    block, x = seeded(build_attention, f"add(eca,{name})", 4, 3), random_map(4, 3)
    torch.testing.assert_close(block(x), block.blocks[0](x) + block.blocks[1](x))


def test_looking_shows_the_gates_of_every_block():
    x = random_map(4, 3)
    for name in ("eca+scse", "max(eca,scse)"):
        assert set(build_attention(name, 4, 3).look(x)) == {"0 channel", "1 channel", "1 spatial"}


def test_options_go_to_the_block_of_their_name():
    block = build_attention("eca+max(scse,cse)", 16, 3, eca={"kernel_size": 5}, cse={"reduction": 4})
    assert block[0].conv.weight.shape[-1] == 5
    assert block[1].blocks[0].channel.squeeze.out_features == 8
    assert block[1].blocks[1].squeeze.out_features == 4
    assert build_attention("eca", 16, 3, eca={"kernel_size": 7}).conv.weight.shape[-1] == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eca+", {}, "Cannot read attention 'eca+': expected a block at the end."),
        ("+eca", {}, "expected a block before '+'"),
        ("max(eca", {}, "expected ')' at the end"),
        ("max(eca,cse))", {}, "did not expect ')'"),
        ("max(eca)", {}, "max(…) joins two blocks or more"),
        ("max()", {}, "expected a block before ')'"),
        ("mean(eca,cse)", {}, "only max(…) and add(…) take blocks in parentheses, not mean"),
        ("eca cse", {}, "did not expect 'cse'"),
        ("", {}, "expected a block at the end"),
        ("eca+coordinat", {}, "Unknown attention 'coordinat'. Did you mean 'coordinate'?"),
        ("eca+cse", {"reduction": 4}, "under the names of its blocks (eca, cse), such as eca={...}, but got 'reduction'"),
        ("eca+cse", {"simam": {}}, "under the names of its blocks (eca, cse)"),
        ("eca+cse", {"eca": {"reduction": 4}}, "Unknown option of attention 'eca' 'reduction'. Valid names: "),
    ],
)
def test_what_cannot_be_read_or_built_is_refused(name, options, message):
    with pytest.raises(UsageError) as error:
        build_attention(name, 8, 3, **options)
    assert message in str(error.value)


def test_a_block_of_ones_own_can_be_part_of_a_hybrid(monkeypatch):
    class Twice(nn.Module):
        def __init__(self, channels, spatial_dims):
            super().__init__()

        def forward(self, x):
            return 2 * x

    monkeypatch.setitem(ATTENTION, "twice", Twice)
    x = random_map(4, 2)
    torch.testing.assert_close(build_attention("twice+twice", 4, 2)(x), 4 * x)
    torch.testing.assert_close(build_attention("add(twice,none)", 4, 2)(x), 3 * x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eca", {"coordinate": {"reduction": 4}}, "Unknown option of attention 'eca' 'coordinate'"),
        ("none", {"eca": {}}, "'none' takes no options, but got eca"),
        ("eca", {"eca": 5}, "Expected the options under 'eca' to be a mapping, but got 5"),
        ("eca+cse", {"eca": 5}, "under the names of its blocks (eca, cse)"),
    ],
)
def test_options_that_no_block_has_are_refused(name, options, message):
    with pytest.raises(UsageError) as error:
        build_attention(name, 8, 3, **options)
    assert message in str(error.value)


def test_options_of_a_learnt_choice_and_of_a_block_beside_it_are_kept_apart():
    options = {"adaptive": {"blocks": ["none", "cse"], "cse": {"reduction": 4}}, "eca": {"kernel_size": 5}}
    block = build_attention("adaptive+eca", 16, 3, **options)
    assert block[0].blocks[1].squeeze.out_features == 4
    assert block[1].conv.weight.shape[-1] == 5
    flat = {"blocks": ["none", "cse"], "cse": {"reduction": 4}}
    network = UNet(1, 2, 3, channels=(8, 16), attention="adaptive", attention_options=flat)
    assert network.bottleneck.attention.blocks[1].squeeze.out_features == 4


def test_a_network_takes_hybrids_and_one_entry_a_level():
    names = ["none", "eca", "eca+coordinate", "max(cse,simam)"]
    options = {"eca": {"kernel_size": 5}, "coordinate": {"min_hidden": 4}}
    network = UNet(1, 3, 2, channels=(4, 8, 8, 16), attention=names, attention_options=options)
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert network.encoder[1].block.attention.conv.weight.shape[-1] == 5
    with pytest.raises(UsageError, match="Unknown block in `attention_options` 'simm'\\. Did you mean 'simam'"):
        UNet(1, 3, 2, channels=(4, 8, 8, 16), attention=names, attention_options={"simm": {}})

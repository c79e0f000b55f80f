import math

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import nn

from medseg_se.attention import ATTENTION, build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import UNet
from medseg_se.networks.blocks import ConvBlock, ConvStyle, ConvUnit, ResidualBlock, he_initialised
from medseg_se.networks.placement import PLACES, AttentionPlan

every_dims = pytest.mark.parametrize("dims", [2, 3])


class Record(nn.Module):
    """Multiply by a number and remember the map."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        self.seen = x
        return x * self.factor


def residual_block(style, entering, leaving, stride, kernel=3, convs=2, **slots):
    return ResidualBlock(style, entering, leaving, kernel, stride, convs, **slots)


@every_dims
@pytest.mark.parametrize("entering", [4, 3])
def test_residual_block_is_monais(dims, entering):
    block = residual_block(ConvStyle(dims), entering, 4, 1)
    oracle = UnetResBlock(dims, entering, 4, 3, 1, ("INSTANCE", {"affine": True}))
    pairs = [(block.units[0].conv, oracle.conv1.conv), (block.units[0].norm, oracle.norm1)]
    pairs += [(block.units[1].conv, oracle.conv2.conv), (block.units[1].norm, oracle.norm2)]
    if entering != 4:
        pairs += [(block.shortcut.unit.conv, oracle.conv3.conv), (block.shortcut.unit.norm, oracle.norm3)]
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
    assert sum(p.numel() for p in block.parameters()) == sum(p.numel() for p in oracle.parameters())
    x = torch.randn(2, entering, *(7, 6, 5)[:dims])
    torch.testing.assert_close(block(x), oracle(x), rtol=1e-5, atol=1e-6)


@every_dims
def test_the_identity_path_takes_means_where_the_map_shrinks(dims):
    x = torch.randn(1, 2, *(7, 6, 5)[:dims])
    block = residual_block(ConvStyle(dims, act="gelu"), 2, 2, 2)
    with torch.no_grad():
        block.units[-1].norm.weight.zero_()  # no residual
    y = block(x)
    assert y.shape[2:] == (4, 3, 3)[:dims]
    inner, corner = x[0, 0, *[slice(2, 4)] * dims].mean(), x[0, 0, 6, 4:6] if dims == 2 else x[0, 0, 6, 4:6, 4]
    torch.testing.assert_close(y[0, 0, *[1] * dims], nn.functional.gelu(inner))
    torch.testing.assert_close(y[0, 0, *[-1, -1, -1][:dims]], nn.functional.gelu(corner.mean()))


@every_dims
def test_a_unit_convolves_normalises_drops_and_activates_in_this_order(dims):
    unit = ConvUnit(dims, 2, 3, kernel_size=3, stride=2, norm_name="batch", dropout_rate=0.5).eval()
    assert [name for name, _ in unit.named_children()] == ["conv", "norm", "dropout", "before_act", "act"]
    x = torch.randn(2, 2, *(7, 6, 5)[:dims])
    expected = nn.functional.leaky_relu(unit.norm(unit.conv(x)), 0.01)
    torch.testing.assert_close(unit(x), expected)
    assert expected.shape == (2, 3, *(4, 3, 3)[:dims])
    whole_channels = unit.train().dropout(torch.ones(8, 3, *[4] * dims)).flatten(2)
    assert set(whole_channels.unique().tolist()) == {0.0, 2.0}
    assert (whole_channels == whole_channels[..., :1]).all()


def test_only_a_convolution_without_normalisation_has_a_bias():
    for name, has_bias in (("instance", False), ("batch", False), ("group", False), ("none", True)):
        assert (ConvUnit(2, 2, 8, norm_name=name).conv.bias is not None) == has_bias


def test_attention_sits_after_the_last_unit():
    after = Record(2.0)
    block = ConvBlock(ConvStyle(2), 1, 3, 3, 1, 2, after)
    x = torch.randn(1, 1, 5, 5)
    y = block(x)
    torch.testing.assert_close(after.seen, block.units(x))
    torch.testing.assert_close(y, 2 * after.seen)


def test_attention_sits_before_the_activation_that_ends_a_block():
    before = Record(-2.0)
    block = ConvBlock(ConvStyle(2), 1, 3, 3, 1, 2, nn.Identity(), before)
    y = block(torch.randn(1, 1, 5, 5))
    assert before.seen.min() < 0
    torch.testing.assert_close(y, nn.functional.leaky_relu(-2 * before.seen, 0.01))


def test_attention_sits_before_the_sum_before_the_activation_and_after_it():
    before, between, after = Record(0.0), Record(-1.0), Record(3.0)
    block = residual_block(ConvStyle(3, norm_name="batch"), 2, 4, 2, before_sum=before, before_act=between, after_sum=after)
    x = torch.randn(2, 2, 5, 4, 6)
    y = block(x)
    assert before.seen.min() < 0  # no activation between the last convolution and the sum
    torch.testing.assert_close(between.seen, block.shortcut(x))  # the residual was gated away
    torch.testing.assert_close(after.seen, nn.functional.leaky_relu(-between.seen, 0.01))
    torch.testing.assert_close(y, 3 * after.seen)


@pytest.mark.parametrize("convs", [1, 3])
def test_blocks_of_any_depth(convs):
    plain = ConvBlock(ConvStyle(2), 2, 4, 3, 2, convs, nn.Identity())
    residual = residual_block(ConvStyle(2), 2, 4, 2, convs=convs)
    for block in (plain, residual):
        assert len(block.units) == convs
        assert block(torch.randn(1, 2, 8, 9)).shape == (1, 4, 4, 5)
    assert isinstance(residual.units[-1].act, nn.Identity)


@every_dims
def test_convolutions_are_initialised_as_he_proposes(dims):
    torch.manual_seed(0)
    layer = he_initialised((nn.Conv2d if dims == 2 else nn.Conv3d)(32, 64, 3))
    assert (layer.bias == 0).all()
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (32 * 3**dims)), rel=0.03)


class Sevens(nn.Module):
    """A block whose weights nobody else may touch."""

    def __init__(self, channels, spatial_dims):
        super().__init__()
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(channels, channels, 1)
        nn.init.constant_(self.conv.weight, 7.0)
        nn.init.constant_(self.conv.bias, 7.0)

    def forward(self, x):
        return self.conv(x)


@every_dims
def test_networks_leave_the_weights_of_attention_alone(monkeypatch, dims):
    monkeypatch.setitem(ATTENTION, "sevens", Sevens)
    net = UNet(1, 2, dims, channels=(2, 4, 4), residual=True, attention="sevens", attention_at=UNet.places)
    blocks = [module for module in net.modules() if isinstance(module, Sevens)]
    assert len(blocks) == 2 + 1 + 2 + 2 + 3 * 5  # encoder, bottleneck, decoder, skips, and three in each of the five
    assert all((parameter == 7).all() for block in blocks for parameter in block.parameters())


# ------------------------------------------------------------------------------------------------------------- AttentionPlan


def test_one_name_stands_for_all_levels_and_a_list_for_one_each():
    assert AttentionPlan.make("cse", PLACES, 3, None, PLACES).names == ("cse", "cse", "cse")
    plan = AttentionPlan.make(["cse", "none", "scse"], ["encoder", "skip"], 3, {"reduction": 4}, PLACES)
    built = [plan.build(place, level, 8, 2) for place in ("encoder", "skip", "decoder") for level in range(3)]
    kinds = ["ChannelSE", "Identity", "ChannelSpatialSE"]
    assert [type(block).__name__ for block in built] == [*kinds, *kinds, "Identity", "Identity", "Identity"]
    assert built[0].squeeze.out_features == 2


@pytest.mark.parametrize(
    ("attention", "places", "message"),
    [
        (["cse", "sse"], PLACES, "`attention` to be one name or 3 of them, one a level, but got 2"),
        ([], PLACES, "`attention` to be one name or 3 of them, one a level, but got 0"),
        ("scsee", (), "Unknown attention 'scsee'. Did you mean 'scse'? Valid names: adaptive, bam, "),
        (["cse", "sse", "scsee"], ("encoder",), "Unknown attention 'scsee'. Did you mean 'scse'?"),
        ("cse", ("encoders",), "Unknown place in `attention_at` 'encoders'. Did you mean 'encoder'? Valid names: after_sum, "),
        ("none", ("everywhere",), "Unknown place in `attention_at` 'everywhere'. Valid names: "),
        ("cse", ("skip",), "`attention_at` to hold some of encoder, decoder, the places of this network"),
    ],
)
def test_a_wrong_plan_is_refused_even_where_no_block_would_sit(attention, places, message):
    with pytest.raises(UsageError) as error:
        AttentionPlan.make(attention, places, 3, None, ("encoder", "decoder") if "skip" in places else PLACES)
    assert message in str(error.value)


def test_blocks_need_a_convolution():
    with pytest.raises(UsageError, match="`convs` to be at least 1, but got 0"):
        ConvBlock(ConvStyle(2), 1, 1, 3, 1, 0, nn.Identity())
    with pytest.raises(UsageError, match="`convs` to be at least 1, but got 0"):
        residual_block(ConvStyle(2), 1, 1, 1, convs=0)


def test_a_channel_gate_before_the_sum_tells_scans_apart_only_without_instance_normalisation():
    gates = {}
    for name in ("instance", "batch"):
        torch.manual_seed(0)
        gate = build_attention("cse", 4, 2)
        block = residual_block(ConvStyle(2, norm_name=name), 4, 4, 1, before_sum=gate).eval()
        maps = block.units(torch.randn(6, 4, 8, 8))
        gates[name] = gate.look(maps)["channel"].std(0).max().item()
    assert gates["instance"] < 1e-6  # the mean of a channel is the bias of the norm, so the gate never changes
    assert gates["batch"] > 1e-3

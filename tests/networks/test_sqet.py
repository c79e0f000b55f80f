import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg_se.errors import UsageError
from medseg_se.networks.sqet import SQET, GatedTransformerLayer

every_dims = pytest.mark.parametrize("dims", [2, 3])
SMALL = {"channels": (4, 8), "convs": 1, "depth": 2, "heads": 2, "reduction": 2}


def build(dims, seed=0, **options):
    torch.manual_seed(seed)
    return SQET(1, 2, dims, **{**SMALL, **options})


def random_weights(module, seed=0):
    """Weights at which every part of a layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def gated_layer(dims, gate=True):
    return random_weights(build(dims, gate=gate).transformer[0])


@every_dims
def test_without_the_gate_a_layer_is_torchs_transformer_layer(dims):
    layer = gated_layer(dims, gate=False)
    oracle = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    own = layer.state_dict()
    names = {"self_attn.in_proj_weight": "queries_keys_values.weight", "self_attn.out_proj": "project.0", "linear1": "mlp.0"}
    names |= {"linear2": "mlp.3", "norm1": "attention_norm", "norm2": "mlp_norm"}
    state = {}
    for name in oracle.state_dict():
        module, _, last = name.rpartition(".")
        ours = names.get(name) or f"{names.get(module)}.{last}"
        state[name] = own.pop(ours) if ours in own else torch.zeros(24)  # of the biases that ours has not
    assert not own
    oracle.load_state_dict(state)
    tokens = torch.randn(2, *(4, 3, 2)[:dims], 8)
    y = layer(tokens)
    assert y.shape == tokens.shape
    torch.testing.assert_close(y.flatten(1, -2), oracle(tokens.flatten(1, -2)), rtol=1e-4, atol=1e-5)


@every_dims
def test_the_gate_scales_what_attention_gathered_and_nothing_else(dims):
    layer = gated_layer(dims)
    tokens = torch.randn(2, *(4, 3, 2)[:dims], 8)
    gathered = layer.attend(layer.attention_norm(tokens))
    means = gathered.flatten(1, -2).mean(1)
    gate = torch.sigmoid(torch.relu(means @ layer.gate.squeeze.weight.T) @ layer.gate.excite.weight.T)
    assert (gate - 0.5).abs().max() > 0.01
    x = tokens + gathered * gate.reshape(2, *[1] * dims, 8)
    expected = x + layer.mlp(layer.mlp_norm(x))
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-5, atol=1e-5)


@every_dims
def test_the_network_is_stem_positions_layers_mean_and_head(dims):
    net = build(dims).eval()
    x = torch.randn(2, 1, *(10, 9, 8)[:dims])
    features = net.encoder(x)
    assert features.shape == (2, 8, *(5, 5, 4)[:dims])
    convolve = F.conv2d if dims == 2 else F.conv3d
    features = features + convolve(features, net.position.weight, net.position.bias, padding=1, groups=8)
    tokens = features.flatten(2).transpose(1, 2)  # the layers take a flat grid too, if nothing is gated
    plain = build(dims, gate=False).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if ".gate." not in name})
    for layer in plain.transformer:
        tokens = layer(tokens)
    expected = F.linear(F.layer_norm(tokens.mean(1), (8,), net.norm.weight, net.norm.bias), net.head.weight, net.head.bias)
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-6)
    assert (net(x) - expected).abs().max() > 1e-6  # the gates


@every_dims
def test_only_the_convolution_over_the_grid_knows_where_tokens_are(dims):
    net = random_weights(build(dims, channels=(8,), kernel_size=1)).eval()
    x = torch.randn(2, 1, *(5, 4, 3)[:dims])
    places = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(3))
    moved = x.flatten(2)[..., places].reshape(x.shape)
    assert (net(moved) - net(x)).abs().max() > 1e-2
    nn.init.zeros_(net.position.weight)
    torch.testing.assert_close(net(moved), net(x), rtol=1e-4, atol=1e-4)


def expected_count(dims, channels, convs, depth, ratio, reduction, gate):
    total, entering, width = 0, 1, channels[-1]
    for leaving in channels:
        for _ in range(convs):
            total += entering * leaving * 3**dims + 2 * leaving
            entering = leaving
    layer = 2 * 2 * width + 3 * width**2 + width**2 + width + 2 * ratio * width**2 + ratio * width + width
    layer += 2 * width * (width // reduction) if gate else 0
    return total + width * 3**dims + width + depth * layer + 2 * width + width + 1


@every_dims
def test_parameters_are_those_of_the_formula(dims):
    for gate in (True, False):
        net = SQET(1, 1, dims, gate=gate)
        expected = expected_count(dims, (16, 32, 64, 128, 256), 2, 4, 4, 16, gate)
        assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_strides_and_attention_of_the_stem():
    options = {"channels": (2, 4, 8), "strides": ((1, 2, 2), 2), "kernel_size": ((1, 3, 3), 3, 3)}
    net = build(3, **options, attention=["none", "eca", "cse"]).eval()
    shapes = []
    for level in net.encoder:
        level.register_forward_hook(lambda _, inputs, y: shapes.append(tuple(y.shape[1:])))
    net(torch.zeros(1, 1, 5, 21, 16))
    assert shapes == [(2, 5, 21, 16), (4, 5, 11, 8), (8, 3, 6, 4)]
    kinds = [type(level.attention).__name__ for level in net.encoder]
    assert kinds == ["Identity", "EfficientChannelAttention", "ChannelSE"]
    before = build(2, attention="cse", attention_at=("pre_activation",)).encoder
    assert [type(level.units[-1].before_act).__name__ for level in before] == ["ChannelSE", "ChannelSE"]


def test_dropout_acts_in_training_only():
    net, plain = build(2, dropout=0.5), build(2)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 9, 8)
    torch.testing.assert_close(net.eval()(x), plain.eval()(x), rtol=0, atol=0)
    layer = net.transformer[0].train()
    tokens = torch.randn(1, 4, 4, 8)
    assert 0 < (layer.attend(tokens) == 0).float().mean() < 1
    assert 0 < (layer.mlp(tokens) == 0).float().mean() < 1


def test_a_stem_that_leaves_one_voxel_is_refused_under_instance_normalisation():
    with pytest.raises(UsageError, match="more than one voxel for instance normalisation"):
        build(2).eval()(torch.zeros(2, 1, 2, 2))
    assert build(2, norm="group").eval()(torch.zeros(2, 1, 2, 2)).shape == (2, 2)
    assert build(2).eval()(torch.randn(2, 1, 3, 1)).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"`channels` to hold positive numbers, but got \[\]"),
        ({"heads": 3}, "`heads` to divide the 8 channels of a token, the last of `channels`, but got 2 and 3"),
        ({"depth": 0}, "`depth` to be at least 1"),
        ({"mlp_ratio": 0.01}, "`mlp_ratio` to give at least one hidden channel, but got 0.01"),
        ({"reduction": 0}, "`reduction` to be at least 1, but got 0"),
        ({"convs": 0}, "`convs` to be at least 1, but got 0"),
        ({"dropout": 1.0}, "`dropout` to be at least 0 and below 1, but got 1.0"),
        ({"strides": (2, 2)}, "`strides` to be one number or 1 entries, but got 2"),
        ({"attention_at": ("decoder",), "attention": "cse"}, "some of encoder, pre_activation"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build(2, **options)


def test_a_layer_can_be_used_by_itself_on_any_grid():
    layer = GatedTransformerLayer(6, 3, 12, 0.0, nn.Identity())
    tokens = torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(tokens[:, None])[:, 0], layer(tokens), rtol=1e-5, atol=1e-6)

import pytest
import torch
from monai.networks.nets import SegResNet as MonaiSegResNet
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.networks.segresnet import SegResNet

every_dims = pytest.mark.parametrize("dims", [2, 3])


def build(dims, seed=0, **options):
    torch.manual_seed(seed)
    return SegResNet(2, 3, dims, **{"channels": (8, 16, 32), "blocks": (1, 2, 1), "decoder_blocks": (2, 1), **options})


def scan(dims, size=(16, 12, 8), seed=0, batch=2):
    return torch.randn(batch, 2, *size[:dims], generator=torch.Generator().manual_seed(seed))


def same_weights(net, oracle):
    """Give both networks the same weights, the normalisations' too, which are 1 and 0 at first."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.split(".")[-2] == "norm":
                parameter.uniform_(0.5, 2)
    pairs = [(net.stem, oracle.convInit.conv), (net.head[0].norm, oracle.conv_final[0])]
    pairs += [(net.head[1], oracle.conv_final[2].conv)]
    stages = [level.block for level in net.encoder] + [net.bottleneck]
    for ours, (_, *theirs) in zip(stages, oracle.down_layers, strict=True):
        pairs += zip(ours.blocks, theirs, strict=True)
    pairs += [(level.down, layers[0].conv) for level, layers in zip(net.encoder, list(oracle.down_layers)[1:], strict=True)]
    for ours, theirs, up in zip(net.decoder, oracle.up_layers, oracle.up_samples, strict=True):
        pairs += [(ours.reduce, up[0].conv), *zip(ours.block.blocks, theirs, strict=True)]
    for ours, theirs in pairs:
        if hasattr(theirs, "norm1"):
            for index, layer in enumerate((theirs.norm1, theirs.conv1.conv, theirs.norm2, theirs.conv2.conv)):
                layer.load_state_dict((ours.units[index].norm if index % 2 == 0 else ours.units[index]).state_dict())
        else:
            theirs.load_state_dict(ours.state_dict())


@every_dims
@pytest.mark.parametrize(
    ("norm", "theirs"),
    [("group", ("GROUP", {"num_groups": 8})), ("batch", "BATCH"), ("instance", ("INSTANCE", {"affine": True}))],
)
def test_network_is_monais(dims, norm, theirs):
    net = build(dims, norm=norm, dropout=0.0)
    oracle = MonaiSegResNet(dims, 8, 2, 3, norm=theirs, blocks_down=(1, 2, 1), blocks_up=(1, 2))
    same_weights(net, oracle)
    for layer in oracle.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_groups = layer.num_channels // 8  # MONAI has 8 groups, the paper groups of 8
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in oracle.parameters())
    torch.testing.assert_close(net(scan(dims)), oracle(scan(dims)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dims", "taps"), [(2, 9), (3, 27)])
def test_number_of_parameters_of_the_paper(dims, taps):
    width, counts = (32, 64, 128, 256), (1, 2, 2, 4)
    blocks = sum(count * (2 * taps * c * c + 4 * c) for count, c in zip(counts, width, strict=True))
    blocks += sum(2 * taps * c * c + 4 * c for c in width[:-1])
    steps = sum(taps * c * 2 * c + 2 * c * c for c in width[:-1])
    expected = taps * 4 * 32 + blocks + steps + 2 * 32 + 32 * 3 + 3
    assert sum(p.numel() for p in SegResNet(4, 3, dims).parameters()) == expected


@every_dims
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_without_normalisation_the_identity_path_stays_as_it_is(dims, activation):
    net = build(dims, norm="none", activation=activation, dropout=0.0)
    block = net.bottleneck.blocks[0]
    act = {"relu": torch.relu, "leaky_relu": nn.LeakyReLU(0.01), "silu": nn.SiLU()}[activation]
    x = torch.randn(1, 32, *(4, 5, 6)[:dims])
    expected = x + block.units[3](act(block.units[1](act(x))))
    torch.testing.assert_close(block(x.clone()), expected)


@every_dims
def test_attention_sits_at_the_sum_and_before_the_first_activation(dims):
    net = build(dims, attention="cse", attention_at=("pre_activation", "residual", "after_sum"), norm="batch").eval()
    block = net.encoder[1].block.blocks[1]
    (first, conv, second, last), x = block.units, torch.randn(1, 16, *(4, 5, 6)[:dims])
    y = conv(torch.relu(first.before_act(first.norm(x))))
    y = block.before_sum(last(torch.relu(second.norm(y))))
    expected = block.after_sum(x + y)
    slots = (first.before_act, block.before_sum, block.after_sum)
    assert [type(slot).__name__ for slot in slots] == ["ChannelSE"] * 3
    assert isinstance(second.before_act, nn.Identity)
    torch.testing.assert_close(block(x), expected)


@every_dims
def test_whole_channels_are_dropped_after_the_first_convolution_alone(dims):
    net = build(dims, dropout=0.5)
    seen = {}
    net.encoder[0].register_forward_pre_hook(lambda module, inputs: seen.update(entering=inputs[0].clone()))
    net(scan(dims))
    stem = net.stem(scan(dims))
    kept = seen["entering"].flatten(2).abs().sum(dim=2) > 0
    assert 0 < kept.sum() < kept.numel()
    expected = 2 * stem * kept.reshape(*kept.shape, *[1] * dims)
    torch.testing.assert_close(seen["entering"], expected)
    net.dropout = nn.Identity()
    torch.testing.assert_close(net.train()(scan(dims)), net.eval()(scan(dims)))


def test_strides_and_kernels_per_axis():
    net = build(3, strides=[[1, 2, 2], [2, 2, 3]], kernel_size=[[1, 3, 3], 3, [3, 3, 5]])
    shapes = []
    for module in (*net.encoder, *net.decoder):
        module.register_forward_hook(
            lambda module, inputs, outputs: shapes.append((outputs[0] if isinstance(outputs, tuple) else outputs).shape[2:])
        )
    net(scan(3, (6, 13, 25)))
    assert shapes == [(6, 7, 13), (3, 4, 5), (6, 7, 13), (6, 13, 25)]
    assert [tuple(layer.kernel_size) for layer in (net.stem, net.encoder[0].down, net.encoder[1].down)] == [
        (1, 3, 3),
        (3, 3, 3),
        (3, 3, 5),
    ]


@pytest.mark.parametrize(("norm", "batch", "fits"), [("instance", 2, False), ("batch", 1, False), ("batch", 2, True)])
def test_a_patch_that_its_normalisation_would_erase_is_refused(norm, batch, fits):
    net = build(2, norm=norm)
    x = scan(2, (4, 4), batch=batch)
    if fits:
        assert net(x).shape == (batch, 3, 4, 4)
    else:
        with pytest.raises(UsageError, match=rf"more than one voxel for {norm} normalisation"):
            net(x)
    assert build(2)(x).shape == (batch, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (4,)}, "`channels` to hold at least two positive numbers, but got [4]"),
        ({"blocks": (1, 0, 1)}, "`blocks` and `decoder_blocks` to be at least 1, but got [1, 0, 1] and [2, 1]"),
        ({"decoder_blocks": (1, 1, 1)}, "`decoder_blocks` to be one number or 2 entries, but got 3"),
        ({"blocks": (1, 2)}, "`blocks` to be one number or 3 entries, but got 2"),
        ({"strides": [2, 2, 2]}, "`strides` to be one number or 2 entries, but got 3"),
        ({"dropout": 1.0}, "`dropout` to be at least 0 and below 1, but got 1.0"),
        ({"norm": "layer"}, "Unknown norm 'layer'."),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        build(2, **options)
    assert message in str(error.value)

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

from medseg_se.errors import UsageError
from medseg_se.networks.fpn import FPN

every_dims = pytest.mark.parametrize("dims", [2, 3])
every_merge = pytest.mark.parametrize("merge", ["add", "concat"])


def build(dims, seed=0, **options):
    torch.manual_seed(seed)
    return FPN(2, 3, dims, **{"channels": (4, 6, 8, 10), "pyramid_channels": 5, **options})


def scan(dims, size=(24, 17, 19), seed=0, batch=2):
    return torch.randn(batch, 2, *size[:dims], generator=torch.Generator().manual_seed(seed))


def shaken(net):
    """Give every bias a value of its own, which all start at 0."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
    return net


def watch(net, x):
    """Return the logits, the maps that enter the pyramid and those that leave it, from the finest."""
    entering, leaving = [], []

    def remember(module, inputs, outputs):
        entering.insert(0, inputs[0].detach())
        leaving.insert(0, outputs[1].detach())

    for level in net.decoder:
        level.register_forward_hook(remember)
    return net(x), entering, leaving


@every_dims
def test_pyramid_is_monais(dims):
    net = shaken(build(dims))
    _, entering, leaving = watch(net, scan(dims))
    oracle = FeaturePyramidNetwork(dims, [4, 6, 8, 10], 5)
    levels = list(reversed(net.decoder))
    for ours, inner, layer in zip(levels, oracle.inner_blocks, oracle.layer_blocks, strict=True):
        inner.load_state_dict(ours.lateral.state_dict())
        layer.load_state_dict(ours.conv.state_dict())
    expected = oracle({str(level): x for level, x in enumerate(entering)})
    assert len(leaving) == 4
    for found, wanted in zip(leaving, expected.values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@every_dims
@every_merge
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_head_brings_each_level_to_the_finest_and_then_joins_them(dims, merge, stem_stride):
    net = shaken(build(dims, merge=merge, stem_stride=stem_stride))
    x = scan(dims)
    logits, _, pyramid = watch(net, x)
    mode = "bilinear" if dims == 2 else "trilinear"
    sizes = [level.shape[2:] for level in pyramid]
    assert sizes[0] == tuple(-(-length // stem_stride) for length in x.shape[2:])
    joined = []
    for level, (branch, y) in enumerate(zip(net.head.branches, pyramid, strict=True)):
        assert len(branch.units) == max(1, level)
        for step, unit in enumerate(branch.units, start=1):
            y = unit(y)
            if level:
                y = F.interpolate(y, size=sizes[level - step], mode=mode)
        assert y.shape[2:] == sizes[0]
        joined.append(y)
    y = net.head.project(torch.cat(joined, dim=1) if merge == "concat" else torch.stack(joined).sum(dim=0))
    if stem_stride > 1:
        y = F.interpolate(y, size=x.shape[2:], mode=mode)
    torch.testing.assert_close(logits, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dims", "taps"), [(2, 9), (3, 27)])
@every_merge
def test_number_of_parameters_counted_by_hand(dims, taps, merge):
    net = FPN(2, 3, dims, channels=(4, 8, 16), pyramid_channels=6, merge=merge, deep_supervision=True)
    encoder = sum(taps * (a * b + b * b) + 4 * b for a, b in ((2, 4), (4, 8), (8, 16)))
    pyramid = 6 * (4 + 8 + 16) + 3 * 6 + 3 * (taps * 36 + 6)
    head = 4 * (taps * 36 + 12) + (18 if merge == "concat" else 6) * 3 + 3  # 1 + 1 + 2 convolutions
    assert sum(p.numel() for p in net.parameters()) == encoder + pyramid + head + 2 * (6 * 3 + 3)


@every_dims
def test_deep_supervision_adds_the_logits_of_every_coarser_level_in_training(dims):
    net = build(dims, deep_supervision=True, stem_stride=2)
    outputs, _, pyramid = watch(net, scan(dims))
    assert outputs[0].shape == (2, 3, *scan(dims).shape[2:])
    assert len(outputs) == 4
    for y, head, features in zip(outputs[1:], net.deep_heads, pyramid[1:], strict=True):
        torch.testing.assert_close(y, head(features))
    torch.testing.assert_close(net.eval()(scan(dims)), outputs[0])


@every_dims
@pytest.mark.parametrize("residual", [False, True])
def test_attention_on_the_skip_enters_the_pyramid_alone(dims, residual):
    net = build(dims, attention="cse", attention_at=("skip",), residual=residual)
    seen = {}
    net.encoder[0].block.register_forward_hook(lambda module, inputs, output: seen.update(block=output))
    net.encoder[1].block.register_forward_hook(lambda module, inputs, output: seen.update(entering=inputs[0]))
    net.decoder[-1].register_forward_hook(lambda module, inputs, outputs: seen.update(skip=inputs[0]))
    net(scan(dims))
    assert torch.equal(seen["entering"], seen["block"])
    torch.testing.assert_close(seen["skip"], net.encoder[0].skip(seen["block"]))
    assert not torch.equal(seen["skip"], seen["block"])


@every_dims
def test_attention_in_the_decoder_follows_each_level_of_the_pyramid(dims):
    net = build(dims, attention=["eca", "none", "cse", "sse"], attention_at=("decoder",))
    kinds = [type(level.attention).__name__ for level in net.decoder]
    assert kinds == ["SpatialSE", "ChannelSE", "Identity", "EfficientChannelAttention"]
    features, above = torch.randn(1, 8, *(4, 5, 6)[:dims]), torch.randn(1, 5, *(2, 3, 3)[:dims])
    level = net.decoder[1]
    merged, leaving = level(features, above)
    torch.testing.assert_close(merged, level.lateral(features) + F.interpolate(above, size=features.shape[2:]))
    torch.testing.assert_close(leaving, level.attention(level.conv(merged)))


def test_strides_and_kernels_per_axis():
    strides = [[1, 2, 2], [2, 2, 3], 1]
    net = build(3, strides=strides, stem_stride=[1, 1, 2], kernel_size=[[1, 3, 3], 3, 3, [3, 3, 5]])
    logits, _, pyramid = watch(net, scan(3, (6, 13, 50)))
    assert [x.shape[2:] for x in pyramid] == [(6, 13, 25), (6, 7, 13), (3, 4, 5), (3, 4, 5)]
    assert logits.shape[2:] == (6, 13, 50)
    last = net.head.branches[-1].units
    kernels = [layer.kernel_size for layer in (net.decoder[0].conv, *(unit.conv for unit in last))]
    assert kernels == [(3, 3, 5), (3, 3, 5), (3, 3, 3), (3, 3, 3)]
    assert net.head.branches[0].units[0].conv.kernel_size == (1, 3, 3)


def test_a_patch_that_its_normalisation_would_erase_is_refused():
    with pytest.raises(UsageError, match="more than one voxel for instance normalisation"):
        build(2)(scan(2, (8, 8)))
    assert build(2)(scan(2, (8, 9))).shape == (2, 3, 8, 9)
    assert build(2, norm="group")(scan(2, (8, 8))).shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match="more than one voxel for instance normalisation"):
        build(2, stem_stride=2)(scan(2, (8, 9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "sum"}, "Unknown merge 'sum'. Valid names: add, concat."),
        ({"pyramid_channels": 0}, "`pyramid_channels` to be one, but got [4, 6, 8, 10] and 0"),
        ({"channels": (4,)}, "`channels` to hold at least two positive numbers"),
        ({"strides": 0}, "`strides` to be a positive whole number or 2 of them, but got 0"),
        ({"stem_stride": 0}, "`stem_stride` to be a positive whole number or 2 of them, but got 0"),
        ({"kernel_size": [3, 3]}, "`kernel_size` to be one number or 4 entries, but got 2"),
        ({"convs": 0}, "`convs` to be at least 1, but got 0"),
        ({"attention": "cse", "attention_at": ["after_sum"]}, "but got 'after_sum'"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        build(2, **options)
    assert message in str(error.value)

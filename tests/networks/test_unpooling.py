import itertools

import pytest
import torch
from attention.golden import load_parameters, read_golden
from torch import nn
from torch.nn import functional as F

from medseg_se.attention import build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.densenet import DenseBlock
from medseg_se.networks.sdnet import SDBlock
from medseg_se.networks.unpooling import DecoderLevel, EncoderLevel, max_pool, unpool

every_dims = pytest.mark.parametrize("dims", [2, 3])
every_network = pytest.mark.parametrize("name", ["sdnet", "densenet"])
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def features(size, seed=0, channels=3):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def build(name, dims, **options):
    torch.manual_seed(0)
    return build_network(name, 2, 3, dims, **{"channels": (4, 6, 8), **options})


# ------------------------------------------------------------------------------------------------------------- pooling


@every_dims
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_on_even_sizes_it_is_torchs_own_with_its_gradients(dims, layout):
    pool, back = ((F.max_pool2d, F.max_unpool2d), (F.max_pool3d, F.max_unpool3d))[dims - 2]
    x = features((8, 6, 10)[:dims])
    if layout == "channels last":
        x = x.contiguous(memory_format=LAYOUTS[dims])
    weights = features(x.shape[2:], seed=1)
    results = []
    for way in ("ours", "theirs"):
        leaf = x.clone().requires_grad_()
        pooled, indices = max_pool(leaf) if way == "ours" else pool(leaf, 2, return_indices=True)
        y = unpool(2 * pooled, indices, x.shape[2:]) if way == "ours" else back(2 * pooled, indices, 2)
        (y * weights).sum().backward()
        results.append((pooled, indices, y, leaf.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert indices.dtype == torch.int64


@every_dims
def test_odd_sizes_keep_every_window_of_the_far_end(dims):
    x = features((5, 4, 7)[:dims])
    pooled, indices = max_pool(x)
    assert pooled.shape[2:] == (3, 2, 4)[:dims]
    expected = torch.zeros_like(x)
    for where in itertools.product(*(range(length) for length in pooled.shape[2:])):
        window = (..., *(slice(2 * start, 2 * start + 2) for start in where))
        largest = x[window].amax(tuple(range(2, x.ndim)), keepdim=True)
        torch.testing.assert_close(pooled[(..., *where)], largest.flatten(1), rtol=0, atol=0)
        expected[window] = x[window].where(x[window] == largest, 0)
    assert torch.equal(unpool(pooled, indices, x.shape[2:]), expected)


@every_dims
def test_of_equal_voxels_the_first_is_remembered(dims):
    x = torch.zeros(1, 1, *(4, 4, 4)[:dims])
    for layout in (torch.contiguous_format, LAYOUTS[dims]):
        _, indices = max_pool(x.contiguous(memory_format=layout))
        assert indices.flatten().tolist() == ([0, 2, 8, 10] if dims == 2 else [0, 2, 8, 10, 32, 34, 40, 42])


@every_dims
@pytest.mark.parametrize("samples", [1, 2])
def test_the_layout_in_memory_stays_also_where_it_is_joined_with_the_skip(dims, samples):
    for layout in (torch.contiguous_format, LAYOUTS[dims]):
        x = features((6, 6, 6)[:dims])[:samples].contiguous(memory_format=layout)
        y = unpool(*max_pool(x), x.shape[2:])
        assert y.stride() == x.stride()
        assert torch.cat([x, y], dim=1).is_contiguous(memory_format=layout)


# --------------------------------------------------------------------------------------------------- the authors' levels

GATES = {"scse": {"cSE.fc1": "channel.squeeze", "cSE.fc2": "channel.excite", "sSE.conv": "spatial.project"}}
GATES["sse"] = {"conv": "project"}
PARTS = {"conv": "conv", "prelu": "act", "batchnorm": "norm"}
PARTS.update({f"conv{step + 1}": f"convs.{step}" for step in range(3)})
PARTS.update({f"batchnorm{step + 1}": f"norms.{step}" for step in range(3)})


def our_name(theirs, gate):
    part, _, kind = theirs.rpartition(".")
    if part.startswith("SELayer."):
        return f"block.attention.{GATES[gate][part.removeprefix('SELayer.')]}.{kind}"
    return f"block.{PARTS[part]}.{kind}"


@pytest.mark.parametrize(
    ("golden", "gate"),
    [
        ("sdnet_encoder_csse_eval", "scse"),
        ("sdnet_decoder_sse_eval", "sse"),
        ("dense_encoder_csse_eval", "scse"),
        ("dense_decoder_csse_eval", "scse"),
    ],
)
def test_levels_give_the_outputs_and_gradients_of_the_authors_code(golden, gate):
    tensors = read_golden(golden)
    network, way = golden.split("_")[:2]
    entering = 4 if way == "encoder" else 8
    attention = build_attention(gate, 4, 2)
    if network == "sdnet":
        block = SDBlock(2, entering, 4, 5, "batch", 0.2, attention)
    else:
        block = DenseBlock(2, entering, 4, 5, "batch", 0.2, attention, bias=True)
    level = (EncoderLevel if way == "encoder" else DecoderLevel)(
        **{"block": block, "skip" if way == "encoder" else "match": nn.Identity()}
    )
    load_parameters(level, tensors, lambda name: our_name(name, gate))
    level.eval()
    inputs = {name: tensors[name].clone().requires_grad_() for name in ("x", "skip") if name in tensors}
    if way == "encoder":
        y, skip, indices = level(inputs["x"])
        assert torch.equal(indices, tensors["y2"])
        outputs = {"": y, "1": skip}
    else:
        outputs = {"": level(inputs["x"], inputs["skip"], tensors["indices"])}
    for number, y in outputs.items():
        torch.testing.assert_close(y, tensors[f"y{number}"], rtol=0, atol=1e-5)
    sum((y * tensors[f"w{number}"]).sum() for number, y in outputs.items()).backward()
    for name, leaf in inputs.items():
        torch.testing.assert_close(leaf.grad, tensors[f"d{name}"], rtol=0, atol=1e-5)
    gradients = {our_name(key[7:], gate): value for key, value in tensors.items() if key.startswith("dparam.")}
    assert set(gradients) == {name for name, _ in level.named_parameters()}
    for name, parameter in level.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].reshape(parameter.shape), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- networks


@every_dims
@every_network
def test_levels_of_different_widths_are_led_from_one_to_the_other_by_one_convolution(name, dims):
    net = build(name, dims, channels=(4, 6, 6, 8))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items() if "match" in key and "weight" in key}
    point = (1,) * dims
    assert shapes == {"decoder.0.match.weight": (6, 8, *point), "decoder.2.match.weight": (4, 6, *point)}
    assert not [key for key in build(name, dims, channels=(4, 4, 4)).state_dict() if "match" in key]


@every_dims
@every_network
def test_kernels_differ_by_level_and_axis(name, dims):
    kernels = [(1, 3, 5)[:dims], 3, 5]
    net = build(name, dims, kernel_size=kernels)
    blocks = [net.encoder[0].block, net.encoder[1].block, net.bottleneck, net.decoder[0].block, net.decoder[1].block]
    first = [tuple((block.conv if name == "sdnet" else block.convs[0]).kernel_size) for block in blocks]
    three, five = (3,) * dims, (5,) * dims
    assert first == [kernels[0], three, five, three, kernels[0]]


@every_dims
@every_network
def test_whole_channels_are_dropped_before_pooling_and_skip_and_none_in_the_bottleneck(name, dims):
    net = build(name, dims, channels=(32, 32, 32), dropout=0.5).train()
    seen = {}
    for key, module in (("down", net.encoder[0]), ("bottom", net.bottleneck), ("up", net.decoder[-1])):
        module.register_forward_hook(lambda module, inputs, outputs, key=key: seen.update({key: outputs}))
    net(torch.randn(2, 2, *(12, 12, 12)[:dims], generator=torch.Generator().manual_seed(0)))
    pooled, skip, _ = seen["down"]
    axes = tuple(range(2, 2 + dims))
    dropped = (skip == 0).all(dim=2).flatten(2).all(dim=2)
    assert 0 < dropped.sum() < dropped.numel()
    assert torch.equal((pooled == 0).flatten(2).all(dim=2), dropped)
    assert (seen["up"].abs().amax(axes) == 0).any()
    assert not (seen["bottom"].abs().amax(axes) == 0).any()


@every_dims
@every_network
def test_attention_on_the_skip_leaves_the_pooled_map_alone(name, dims):
    net = build(name, dims, attention="cse", attention_at=("skip",)).eval()
    plain = build(name, dims).eval()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if "skip" not in key})
    x = features((9, 8, 7)[:dims], channels=2)
    (pooled, skip, indices), (expected, unchanged, places) = net.encoder[0](x), plain.encoder[0](x)
    assert torch.equal(pooled, expected)
    assert torch.equal(indices, places)
    torch.testing.assert_close(skip, net.encoder[0].skip(unchanged))
    assert not torch.equal(skip, unchanged)


@every_network
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 31), (33, 17)])
def test_every_size_works_down_to_one_voxel(name, size):
    net = build(name, 2).eval()
    assert net(torch.randn(1, 2, *size)).shape == (1, 3, *size)


# --------------------------------------------------------------------------------------------------------- wrong options


@every_network
@pytest.mark.parametrize(
    ("norm", "training", "batch", "size", "fits"),
    [
        ("batch", True, 1, (4, 4), False),
        ("batch", True, 1, (4, 5), True),
        ("batch", True, 2, (4, 4), True),
        ("batch", False, 1, (4, 4), True),
        ("instance", False, 2, (3, 4), False),
        ("instance", True, 1, (5, 1), True),
        ("group", True, 1, (4, 4), True),
        ("none", True, 1, (1, 1), True),
    ],
)
def test_a_patch_whose_bottleneck_would_be_erased_is_refused(name, norm, training, batch, size, fits):
    net = build(name, 2, norm=norm).train(training)
    x = torch.randn(batch, 2, *size)
    if fits:
        assert net(x).shape == (batch, 3, *size)
    else:
        with pytest.raises(UsageError, match=rf"one voxel for {norm} normalisation .*{size[0]}, {size[1]}\) shrinks to one"):
            net(x)


@every_network
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (4,)}, r"`channels` to hold at least two positive numbers, but got \[4\]"),
        ({"channels": (4, 0)}, r"`channels` to hold at least two positive numbers"),
        ({"kernel_size": 4}, r"`kernel_size` to be odd"),
        ({"kernel_size": (3, 3)}, r"`kernel_size` to be one number or 3 entries, but got 2"),
        ({"dropout": 1.0}, r"`dropout` to be at least 0 and below 1"),
        ({"norm": "batchnorm"}, r"Unknown norm 'batchnorm'. Did you mean 'batch'\?"),
        ({"attention": ["cse"] * 2}, r"`attention` to be one name or 3 of them"),
        ({"attention": "cse", "attention_at": ("residual",)}, r"encoder, bottleneck, decoder, skip.* but got 'residual'"),
        ({"activation": "relu"}, r"Unknown option of network"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UsageError, match=message):
        build(name, 2, **options)

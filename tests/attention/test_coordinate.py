import copy

import numpy as np
import pytest
import torch
from block_checks import (
    assert_close_in_low_precision,
    assert_compiles,
    assert_differentiable_twice,
    assert_follows,
    assert_robust,
    assert_tiles_change_nothing,
    random_map,
    seeded,
    sigmoid,
)
from golden import assert_same_as_golden, load_parameters, read_golden

from medseg_se.attention.coordinate import CoordinateAttention
from medseg_se.errors import UsageError

VARIANTS = [
    {},
    {"norm": "group", "activation": "silu"},
    {"norm": "layer", "activation": "relu", "min_hidden": 3, "reduction": 2},
    {"norm": "none", "min_hidden": 1},
]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def rename(dims):
    axes = "hw" if dims == 2 else "dhw"
    names = {"conv1": "encode", "bn1": "norm", **{f"conv_{axis}": f"excite.{number}" for number, axis in enumerate(axes)}}
    return lambda name: f"{names[name.split('.')[0]]}.{name.split('.')[1]}"


def with_golden(name, dims):
    tensors = read_golden(name)
    after = {key.removeprefix("after.bn1."): tensors.pop(key) for key in list(tensors) if key.startswith("after.")}
    tensors.setdefault("param.bn1.num_batches_tracked", torch.tensor(0))
    block = CoordinateAttention(16, dims)
    load_parameters(block, tensors, rename(dims))
    return block, tensors, after


def numpy_form(options, train=True, running=None):
    """One sample, one place and one channel at a time."""
    activations = {
        "h_swish": lambda t: t * np.clip(t + 3, 0, 6) / 6,
        "relu": lambda t: np.maximum(t, 0),
        "silu": lambda t: t * sigmoid(t),
    }

    def form(x, parameters):
        profiles = []
        for axis in range(2, x.ndim):
            moved = np.moveaxis(x, axis, 2)
            profiles.append(moved.reshape(*moved.shape[:3], -1).mean(axis=3))
        joint = np.concatenate(profiles, axis=2)
        encoded = np.empty((len(x), len(parameters["encode.bias"]), joint.shape[2]))
        for n, place in np.ndindex(len(x), joint.shape[2]):
            encoded[n, :, place] = parameters["encode.weight"] @ joint[n, :, place] + parameters["encode.bias"]
        norm, hidden = options.get("norm", "batch"), encoded.shape[1]
        if norm == "batch":
            for channel in range(hidden):
                values = encoded[:, channel]
                mean, variance = (values.mean(), values.var()) if train else (running[0][channel], running[1][channel])
                encoded[:, channel] = (values - mean) / np.sqrt(variance + 1e-5)
        elif norm != "none":  # one group each, for the groups are of 8 channels and these have no more than 8 or so
            for values in encoded:
                values[:] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        if norm != "none":
            encoded = encoded * parameters["norm.weight"][:, None] + parameters["norm.bias"][:, None]
        encoded = activations[options.get("activation", "h_swish")](encoded)
        y, start = x.copy(), 0
        for axis in range(x.ndim - 2):
            for place in range(x.shape[axis + 2]):
                logit = encoded[:, :, start + place] @ parameters[f"excite.{axis}.weight"].T + parameters[f"excite.{axis}.bias"]
                index = (slice(None), slice(None), *[slice(None)] * axis, place)
                y[index] *= sigmoid(logit).reshape(*logit.shape, *[1] * (x.ndim - 3))
            start += x.shape[axis + 2]
        return y

    return form


def test_it_gives_the_outputs_and_gradients_of_the_authors_code():
    block, tensors, _ = with_golden("coordatt2d_eval", 2)
    assert_same_as_golden(block.eval(), tensors, rename(2))


def test_in_training_too_and_the_running_statistics_move_as_theirs():
    block, tensors, after = with_golden("coordatt2d_train", 2)
    assert_same_as_golden(block, tensors, rename(2))
    assert len(after) == 3
    for name, expected in after.items():
        torch.testing.assert_close(block.get_buffer(f"norm.{name}"), expected, rtol=0, atol=1e-6)


def test_in_3d_it_gives_what_the_formula_gave():
    block, tensors, _ = with_golden("derived_coordatt3d_eval", 3)
    tensors["y"] = tensors["y"].float()
    assert_same_as_golden(block.eval(), tensors, rename(3))


@every_dims
@every_variant
def test_it_follows_the_formula_however_few_the_channels(dims, options):
    for channels in (1, 2, 3, 7, 16):
        block = seeded(CoordinateAttention, channels, dims, **options)
        for parameter in block.norm.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        assert_follows(numpy_form(options), block, 2 * random_map(channels, dims))


@every_dims
def test_running_statistics_move_once_a_pass_and_are_used_afterwards(dims):
    block = seeded(CoordinateAttention, 5, dims).double()
    x = random_map(5, dims).double().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert block.norm.num_batches_tracked == 1
    running = block.norm.running_mean.numpy(), block.norm.running_var.numpy()
    assert_follows(numpy_form({}, train=False, running=running), block.eval(), random_map(5, dims, seed=1))


@every_dims
@every_variant
def test_gradients_are_those_of_finite_differences(dims, options):
    block = seeded(CoordinateAttention, 2, dims, **{"min_hidden": 3, **options})
    smooth = options.get("activation") != "relu"
    assert_differentiable_twice(block, dims, sizes=(2, 3, 1), again=smooth)


@every_dims
def test_tiles_change_nothing(dims):
    block = seeded(CoordinateAttention, 4, dims)
    block(random_map(4, dims))
    assert_tiles_change_nothing(block.eval(), dims)


@every_dims
@every_variant
def test_awkward_maps_and_low_precision_train(dims, options):
    assert_robust(lambda channels: CoordinateAttention(channels, dims, **options), dims)


@every_dims
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_low_precision_is_close_in_evaluation(dims, norm):
    assert_close_in_low_precision(lambda channels: CoordinateAttention(channels, dims, norm=norm), dims, train=False)


@every_dims
def test_half_precision_parameters_keep_their_running_statistics(dims):
    block = seeded(CoordinateAttention, 4, dims)
    half = copy.deepcopy(block).half()
    x = random_map(4, dims)
    block(x)
    half(x.half())
    assert half.norm.running_mean.dtype == torch.float16
    torch.testing.assert_close(half.norm.running_mean.float(), block.norm.running_mean, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(half.norm.running_var.float(), block.norm.running_var, rtol=1e-2, atol=1e-3)


@every_dims
def test_there_is_one_gate_per_axis_and_their_product_scales(dims):
    block, x = seeded(CoordinateAttention, 5, dims).eval(), random_map(5, dims)
    views = block.look(x)
    assert list(views) == [f"axis {axis}" for axis in range(dims)]
    product = torch.ones_like(x)
    for axis, gate in enumerate(views.values()):
        assert gate.shape == (2, 5, *[x.shape[2 + other] if other == axis else 1 for other in range(dims)])
        assert gate.min() > 0
        assert gate.max() < 1
        product = product * gate
    torch.testing.assert_close(product * x, block(x), rtol=1e-6, atol=1e-7)


def test_a_volume_of_one_slice_has_a_gate_more_than_the_slice():
    """With that gate open and normalisation set to nothing, it gives what the slice gives."""
    flat, deep = (seeded(CoordinateAttention, 4, dims).eval() for dims in (2, 3))
    deep.encode.load_state_dict(flat.encode.state_dict())
    for ours, theirs in zip(deep.excite[1:], flat.excite, strict=True):
        ours.load_state_dict(theirs.state_dict())
    x = random_map(4, 2)
    torch.testing.assert_close(deep.look(x[:, :, None])["axis 0"] * flat(x)[:, :, None], deep(x[:, :, None]))
    assert (deep(x[:, :, None])[:, :, 0] - flat(x)).abs().max() > 0.1
    torch.nn.init.zeros_(deep.excite[0].weight)
    torch.nn.init.constant_(deep.excite[0].bias, 40.0)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-6, atol=1e-7)


def test_exchanging_axes_and_their_layers_exchanges_the_result():
    block = seeded(CoordinateAttention, 4, 3)
    turned = copy.deepcopy(block)
    turned.excite = torch.nn.ModuleList([turned.excite[2], turned.excite[0], turned.excite[1]])
    x = random_map(4, 3)
    torch.testing.assert_close(turned(x.permute(0, 1, 4, 2, 3)), block(x).permute(0, 1, 4, 2, 3), rtol=1e-5, atol=1e-6)


def test_parameters():
    shapes = [tuple(value.shape) for value in CoordinateAttention(512, 3).parameters()]
    assert shapes == [(16, 512), (16,), (16,), (16,), *[(512, 16), (512,)] * 3]
    assert tuple(CoordinateAttention(64, 2).encode.weight.shape) == (8, 64)
    assert tuple(CoordinateAttention(64, 2, reduction=4, min_hidden=2).encode.weight.shape) == (16, 64)


@every_dims
def test_it_compiles(dims):
    assert_compiles(seeded(CoordinateAttention, 6, dims), dims)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batchnorm"}, "Unknown norm 'batchnorm'. Did you mean 'batch'?"),
        ({"activation": "hswish"}, "Unknown activation 'hswish'. Did you mean 'h_swish'?"),
        ({"reduction": 0}, "`reduction` to be at least 1, but got 0"),
        ({"min_hidden": 0}, "`min_hidden` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        CoordinateAttention(8, 2, **options)
    assert message in str(error.value)

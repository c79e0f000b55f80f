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

from medseg_se.attention.project_excite import ProjectExcite
from medseg_se.errors import UsageError

every_dims = pytest.mark.parametrize("dims", [2, 3])


def numpy_form(x, parameters):
    """Voxel by voxel, in the order of the paper: sum of the profiles, two layers, sigmoid."""
    y = np.empty_like(x)
    for n, *place in np.ndindex(x.shape[0], *x.shape[2:]):
        total = np.zeros(x.shape[1])
        for axis, at in enumerate(place):
            slices = np.take(x[n], at, axis=axis + 1)
            total += slices.reshape(x.shape[1], -1).mean(axis=1)
        hidden = np.maximum(parameters["squeeze.weight"] @ total + parameters["squeeze.bias"], 0)
        gate = sigmoid(parameters["excite.weight"] @ hidden + parameters["excite.bias"])
        y[(n, slice(None), *place)] = x[(n, slice(None), *place)] * gate
    return y


def test_it_gives_the_outputs_and_gradients_of_the_authors_code():
    tensors = read_golden("pe3d_r2")
    names = {"conv_c": "squeeze", "conv_cT": "excite"}
    rename = lambda name: names[name.split(".")[0]] + "." + name.split(".")[1]  # noqa: E731
    block = ProjectExcite(8, 3)
    load_parameters(block, tensors, rename)
    assert_same_as_golden(block, tensors, rename)


@every_dims
def test_it_follows_the_formula_however_few_the_channels(dims):
    for channels in (1, 2, 3, 7, 16):
        for reduction in (2, 5):
            block = seeded(ProjectExcite, channels, dims, reduction)
            assert_follows(numpy_form, block, 2 * random_map(channels, dims))


@every_dims
def test_gradients_are_those_of_finite_differences(dims):
    assert_differentiable_twice(seeded(ProjectExcite, 3, dims, seed=1), dims)


@every_dims
@pytest.mark.parametrize("channels", [1, 6])
def test_tiles_change_nothing(dims, channels):
    assert_tiles_change_nothing(seeded(ProjectExcite, channels, dims), dims)


@every_dims
def test_awkward_maps_and_low_precision_train(dims):
    assert_robust(lambda channels: ProjectExcite(channels, dims), dims)
    assert_close_in_low_precision(lambda channels: ProjectExcite(channels, dims), dims)


@every_dims
def test_turning_the_map_turns_the_result(dims):
    block, x = seeded(ProjectExcite, 5, dims), random_map(5, dims)
    for order in [(3, 2)] if dims == 2 else [(4, 3, 2), (3, 4, 2)]:
        turned = block(x.permute(0, 1, *order))
        torch.testing.assert_close(turned, block(x).permute(0, 1, *order), rtol=1e-5, atol=1e-6)


def test_the_axis_of_one_slice_adds_the_mean_of_the_slice():
    """So that a volume of one slice does not give what the slice gives; with its mean taken off the hidden layer it does."""
    flat, deep = (seeded(ProjectExcite, 6, dims).double() for dims in (2, 3))
    x = random_map(6, 2, batch=1).double()
    assert (deep(x[:, :, None])[:, :, 0] - flat(x)).abs().max() > 1e-3
    with torch.no_grad():
        deep.squeeze.bias -= deep.squeeze.weight @ x.mean((0, 2, 3))
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x))


@every_dims
def test_the_gate_is_that_of_the_output(dims):
    block, x = seeded(ProjectExcite, 5, dims), random_map(5, dims)
    views = block.look(x)
    assert list(views) == ["voxel"]
    torch.testing.assert_close(views["voxel"] * x, block(x), rtol=1e-6, atol=1e-7)
    assert views["voxel"].min() > 0
    assert views["voxel"].max() < 1


def test_parameters():
    for dims in (2, 3):
        assert [tuple(value.shape) for value in ProjectExcite(9, dims).parameters()] == [(4, 9), (4,), (9, 4), (9,)]


@every_dims
def test_it_compiles(dims):
    assert_compiles(seeded(ProjectExcite, 6, dims), dims)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2, 0), "`reduction` to be at least 1, but got 0"),
        ((0, 2), "`channels` to be at least 1, but got 0"),
        ((4, 1), "`spatial_dims` to be 2 or 3, but got 1"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message):
    with pytest.raises(UsageError) as error:
        ProjectExcite(*arguments)
    assert message in str(error.value)

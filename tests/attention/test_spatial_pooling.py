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

from medseg_se.attention.spatial_pooling import GridSE, PyramidSE
from medseg_se.errors import UsageError

NAMES = {
    "fc_spatial.fc_spatial": "fuse.0",
    "fc_spatial.bn_spatial": "norm",
    "fc_spatial1": "fuse.0",
    "fc_spatial2": "fuse.1",
    "fc_spatial4": "fuse.2",
    "fc_bn": "norm",
    "fc_reduction": "squeeze",
    "fc_extention": "excite",
}
VARIANTS = [
    (PyramidSE, {}),
    (PyramidSE, {"norm": "none", "reduction": 2}),
    (PyramidSE, {"norm": "batch"}),
    (GridSE, {}),
    (GridSE, {"grid": 2, "norm": "group", "reduction": 3}),
    (GridSE, {"grid": 8, "norm": "batch"}),
]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize(("block", "options"), VARIANTS)
every_block = pytest.mark.parametrize("block", [PyramidSE, GridSE])


def rename(name):
    layer, parameter = name.rsplit(".", 1)
    return f"{NAMES[layer]}.{parameter}"


def numpy_form(grids, norm):
    """The formula in NumPy, in training."""

    def form(x, parameters):
        n, c = x.shape[:2]
        fused = np.zeros((n, c))
        for number, grid in enumerate(grids):
            weight = parameters[f"fuse.{number}.weight"]
            for region in np.ndindex(*[grid] * (x.ndim - 2)):
                cut = tuple(
                    slice(i * size // grid, -(-(i + 1) * size // grid)) for i, size in zip(region, x.shape[2:], strict=True)
                )
                part = x[:, :, *cut]
                fused += part.reshape(n, c, -1).mean(2) * weight[:, 0, *region]
            fused += parameters.get(f"fuse.{number}.bias", 0)
        axis = 0 if norm == "batch" else 1
        if norm != "none":
            if fused.shape[axis] > 1:
                mean, variance = fused.mean(axis, keepdims=True), fused.var(axis, keepdims=True)
                fused = (fused - mean) / np.sqrt(variance + 1e-5)
            fused = fused * parameters["norm.weight"] + parameters["norm.bias"]
        hidden = np.maximum(fused, 0) @ parameters["squeeze.weight"].T + parameters["squeeze.bias"]
        gate = sigmoid(np.maximum(hidden, 0) @ parameters["excite.weight"].T + parameters["excite.bias"])
        return x * gate.reshape(n, c, *[1] * (x.ndim - 2))

    return form


def lively(block, *arguments, **options):
    """A block whose norm has parameters other than 1 and 0."""
    built = seeded(block, *arguments, **options)
    for parameter in built.norm.parameters():
        torch.nn.init.normal_(parameter, mean=0.5)
    return built


@pytest.mark.parametrize(
    ("golden", "block", "channels"), [("spse2d_eval", PyramidSE, 32), ("rgse2d_stage2_k4_eval", GridSE, 16)]
)
def test_they_give_the_outputs_and_gradients_of_the_authors_code(golden, block, channels):
    tensors = read_golden(golden)
    block = block(channels, 2, norm="batch").eval()
    load_parameters(block, tensors, rename)
    assert_same_as_golden(block, tensors, rename)


@every_dims
@every_variant
def test_they_follow_the_formula_however_few_the_channels_and_voxels(dims, block, options):
    grids = (1, 2, 4) if block is PyramidSE else (options.get("grid", 4),)
    for channels in (1, 2, 3, 7, 32):
        if options.get("norm") == "group" and channels == 32:
            continue  # several groups are a matter of GateNorm
        for sizes in ((3, 5, 7), (9, 1, 2)):
            attention = lively(block, channels, dims, **options)
            form = numpy_form(grids, options.get("norm", "layer"))
            assert_follows(form, attention, 2 * random_map(channels, dims, sizes=sizes))


@every_variant
def test_gradients_are_those_of_finite_differences(block, options):
    if block is GridSE:
        options = {**options, "grid": 2}  # fewer weights of the same kind
    for dims in (2, 3) if block is GridSE or not options else (2,):
        assert_differentiable_twice(lively(block, 2, dims, **options), dims)


@every_dims
@every_block
def test_tiles_change_nothing(dims, block):
    assert_tiles_change_nothing(lively(block, 5, dims), dims)


@every_block
def test_compiling_changes_nothing(block):
    assert_compiles(lively(block, 5, 3), 3)


@every_dims
@every_block
def test_awkward_maps_and_low_precision_train(dims, block):
    assert_robust(lambda channels: block(channels, dims), dims)
    assert_close_in_low_precision(lambda channels: block(channels, dims), dims)


@every_variant
def test_a_volume_of_one_slice_gives_what_the_slice_gives(block, options):
    """All regions along the axis of the slices are that slice, so their weights add up to the weight in 2D."""
    flat, deep = (lively(block, 6, dims, **options) for dims in (2, 3))
    state = flat.state_dict()
    for name, value in deep.state_dict().items():
        if value.ndim == 5:
            depth = value.shape[2]
            share = torch.softmax(torch.randn(depth, generator=torch.Generator().manual_seed(1)), 0)
            state[name] = state[name][:, :, None] * share[:, None, None]
    deep.load_state_dict(state)
    x = random_map(6, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-5, atol=1e-6)


@every_dims
def test_places_count_unlike_in_the_plain_squeeze(dims):
    """Moving a bright voxel within a region changes nothing, to another region it does."""
    block = lively(GridSE, 4, dims, grid=2, reduction=1)
    x = torch.zeros(3, 4, *[4] * dims)
    for sample, corner in enumerate((0, 1, 3)):
        x[sample, :2, *[corner] * dims] = 10.0
    gates = block.look(x)["channel"]
    assert gates.shape == (3, 4, *[1] * dims)
    torch.testing.assert_close(gates[0], gates[1])
    assert (gates[0] - gates[2]).abs().max() > 1e-3


def test_number_of_parameters():
    for dims in (2, 3):
        fuse = 1 + 2**dims + 4**dims
        pyramid = sum(value.numel() for value in PyramidSE(64, dims).parameters())
        assert pyramid == 64 * (fuse + 3) + 2 * 64 + (64 * 4 + 4) + (4 * 64 + 64)
        grid = sum(value.numel() for value in GridSE(64, dims, grid=8).parameters())
        assert grid == 64 * 8**dims + 2 * 64 + (64 * 4 + 4) + (4 * 64 + 64)


@every_dims
@every_block
def test_batch_norm_says_that_it_cannot_train_on_one_scan(dims, block):
    attention = block(4, dims, norm="batch")
    x = random_map(4, dims, batch=1)
    with pytest.raises(UsageError, match="where `norm` is 'batch', but got one in training"):
        attention(x)
    assert attention.eval()(x).shape == x.shape
    assert block(4, dims)(x).shape == x.shape


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (PyramidSE, {"norm": "layers"}, "Unknown norm 'layers'. Did you mean 'layer'? Valid names: batch, group, layer, none."),
        (PyramidSE, {"reduction": 0}, "`reduction` to be at least 1, but got 0"),
        (GridSE, {"grid": 0}, "`grid` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(block, options, message):
    with pytest.raises(UsageError) as error:
        block(8, 2, **options)
    assert message in str(error.value)

import itertools

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
    awkward_maps,
    random_map,
    seeded,
    sigmoid,
)

from medseg_se.attention.bam import BAM
from medseg_se.errors import UsageError

VARIANTS = [{}, {"reduction": 2, "dilation": 1, "norm": "batch"}, {"reduction": 3, "dilation": 2, "norm": "none"}]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def normalise(z, norm, weight, bias):
    if norm == "none":
        return z
    axes = (0, *range(2, z.ndim)) if norm == "batch" else tuple(range(1, z.ndim))
    if np.prod([z.shape[axis] for axis in axes]) > 1:
        z = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5)
    ones = [1] * (z.ndim - 2)
    return z * weight.reshape(-1, *ones) + bias.reshape(-1, *ones)


def convolve(z, weight, bias, dilation):
    n, _, *size = z.shape
    y = np.zeros((n, len(weight), *size))
    for place in itertools.product(*map(range, size)):
        for tap in itertools.product(range(weight.shape[-1]), repeat=len(size)):
            source = [p + dilation * (t - weight.shape[-1] // 2) for p, t in zip(place, tap, strict=True)]
            if all(0 <= s < length for s, length in zip(source, size, strict=True)):
                y[:, :, *place] += z[:, :, *source] @ weight[:, :, *tap].T
        y[:, :, *place] += 0 if bias is None else bias
    return y


def numpy_form(options):
    """The formula in NumPy, in training."""
    norm, dilation = options.get("norm", "layer"), options.get("dilation", 4)

    def form(x, parameters):
        def layer(name):
            return parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")

        weight, bias = layer("squeeze")
        hidden = np.maximum(x.reshape(*x.shape[:2], -1).mean(2) @ weight.T + bias, 0)
        weight, bias = layer("excite")
        channel = normalise(hidden @ weight.T + bias, norm, *layer("channel_norm"))
        z = np.maximum(normalise(convolve(x, *layer("reduce"), 1), norm, *layer("norms.0")), 0)
        for number in range(2):
            z = convolve(z, *layer(f"dilated.{number}"), dilation)
            z = np.maximum(normalise(z, norm, *layer(f"norms.{number + 1}")), 0)
        spatial = normalise(convolve(z, *layer("locate"), 1), norm, *layer("spatial_norm"))
        return x * (1 + sigmoid(channel.reshape(*channel.shape, *[1] * (x.ndim - 2)) + spatial))

    return form


def lively(*arguments, **options):
    """A block whose norms have parameters other than 1 and 0."""
    block = seeded(BAM, *arguments, **options)
    for norm in (block.channel_norm, *block.norms, block.spatial_norm):
        for parameter in norm.parameters():
            torch.nn.init.normal_(parameter, mean=0.5)
    return block


@every_dims
@every_variant
def test_it_follows_the_formula_however_few_the_channels(dims, options):
    for channels in (1, 2, 3, 7, 32):
        assert_follows(numpy_form(options), lively(channels, dims, **options), random_map(channels, dims, sizes=(5, 4, 2)))


@every_dims
@every_variant
def test_gradients_are_those_of_finite_differences(dims, options):
    assert_differentiable_twice(lively(2, dims, **options), dims)


@every_dims
def test_tiles_change_nothing(dims):
    """Without norms, since they leave of some gradients only what is rounded."""
    assert_tiles_change_nothing(lively(5, dims, reduction=2, norm="none"), dims)


def test_compiling_changes_nothing():
    assert_compiles(lively(5, 3), 3)


@every_dims
@pytest.mark.parametrize("norm", ["layer", "group", "none"])
def test_awkward_maps_and_low_precision_train(dims, norm):
    if norm == "none":
        assert_robust(lambda channels: BAM(channels, dims, norm=norm), dims)
    assert_close_in_low_precision(lambda channels: BAM(channels, dims, norm=norm), dims)


@every_dims
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_awkward_maps_train_with_norms(dims, kind):
    """Four norms in a row enlarge what is rounded in a constant map, so that float16 may hold the gradient as infinity."""
    for channels in (1, 3, 32):
        block = seeded(BAM, channels, dims).to(kind)
        for name, x in awkward_maps(channels, dims).items():
            x = x.to(kind).requires_grad_()
            y = block(x)
            assert y.dtype == kind
            assert y.isfinite().all(), name
            y.float().mean().backward()
            assert not x.grad.isnan().any(), name
            assert x.grad.isfinite().all() or (kind == torch.float16 and "constant" in name), name


@every_dims
def test_it_amplifies_by_one_to_two_and_shows_its_branches(dims):
    block, x = lively(20, dims), random_map(20, dims)
    gates = block.look(x)
    assert gates["voxel"].shape == x.shape
    assert gates["channel"].shape == (2, 20, *[1] * dims)
    assert gates["spatial"].shape == (2, 1, *x.shape[2:])
    torch.testing.assert_close(block(x), x * (1 + gates["voxel"]))
    torch.testing.assert_close(torch.logit(gates["channel"]) + torch.logit(gates["spatial"]), torch.logit(gates["voxel"]))


def test_a_volume_of_one_slice_gives_what_the_slice_gives():
    """Of the 3×3×3 kernels only the middle slice meets the map, the others meet the padding."""
    flat, deep = (lively(32, dims) for dims in (2, 3))
    state = flat.state_dict()
    for name, value in deep.state_dict().items():
        if value.ndim == 5:
            middle = state[name]
            state[name] = value.clone()
            state[name][:, :, value.shape[2] // 2] = middle
    deep.load_state_dict(state)
    x = random_map(32, 2, sizes=(9, 10))
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-5, atol=1e-6)


def test_training_keeps_the_input_and_maps_of_the_hidden_channels():
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = random_map(64, 3, sizes=(12, 12, 12)).requires_grad_()
    block = BAM(64, 3)
    parameters = sum(value.nbytes for value in block.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    assert sum(kept.values()) - parameters < 1.8 * x.nbytes


def test_batch_norm_says_that_it_cannot_train_on_one_scan():
    block, x = BAM(4, 3, norm="batch"), random_map(4, 3, batch=1)
    with pytest.raises(UsageError, match="where `norm` is 'batch', but got one in training"):
        block(x)
    assert block.eval()(x).shape == x.shape


def test_number_of_parameters():
    for dims in (2, 3):
        channel = 64 * 4 + 4 + 4 * 64 + 64 + 2 * 64
        spatial = 64 * 4 + 4 + 2 * (4 * 4 * 3**dims + 4) + 3 * 2 * 4 + 4 + 2
        assert sum(value.numel() for value in BAM(64, dims).parameters()) == channel + spatial


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 0}, "`dilation` to be at least 1, but got 0"),
        ({"norm": "bach"}, "Unknown norm 'bach'. Did you mean 'batch'?"),
        ({"reduction": 0}, "`reduction` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        BAM(8, 2, **options)
    assert message in str(error.value)

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
    random_map,
    seeded,
    sigmoid,
)

from medseg_se.attention.cbam import CBAM
from medseg_se.errors import UsageError

VARIANTS = [
    {},
    {"reduction": 2, "kernel_size": 3, "norm": "batch"},
    {"parts": "channel", "reduction": 2},
    {"parts": "spatial", "kernel_size": 5, "norm": "none"},
]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def normalised(logit, norm, parameters):
    if norm == "none":
        return logit
    axes = tuple(range(0 if norm == "batch" else 1, logit.ndim))
    mean, variance = logit.mean(axes, keepdims=True), logit.var(axes, keepdims=True)
    return (logit - mean) / np.sqrt(variance + 1e-5) * parameters["norm.weight"] + parameters["norm.bias"]


def numpy_form(options):
    """The formula in NumPy, in training."""

    def form(x, parameters):
        n, c, *size = x.shape
        if options.get("parts") != "spatial":
            logit = np.zeros((n, c))
            for squeezed in (x.reshape(n, c, -1).mean(2), x.reshape(n, c, -1).max(2)):
                hidden = np.maximum(squeezed @ parameters["squeeze.weight"].T + parameters["squeeze.bias"], 0)
                logit += hidden @ parameters["excite.weight"].T + parameters["excite.bias"]
            x = x * sigmoid(logit).reshape(n, c, *[1] * len(size))
        if options.get("parts") != "channel":
            kernel = parameters["locate.weight"][0]
            half = kernel.shape[-1] // 2
            pooled = np.pad(np.stack([x.max(1), x.mean(1)], 1), [(0, 0)] * 2 + [(half, half)] * len(size))
            logit = np.empty((n, *size))
            for place in itertools.product(*map(range, size)):
                seen = pooled[:, :, *(slice(start, start + 2 * half + 1) for start in place)]
                logit[:, *place] = (seen * kernel).reshape(n, -1).sum(1)
            x = x * sigmoid(normalised(logit, options.get("norm", "layer"), parameters))[:, None]
        return x

    return form


def lively(*arguments, **options):
    """A block whose norm has parameters other than 1 and 0."""
    block = seeded(CBAM, *arguments, **options)
    if block.parts != "channel":
        for parameter in block.norm.parameters():
            torch.nn.init.normal_(parameter, mean=0.5)
    return block


@every_dims
@every_variant
def test_it_follows_the_formula_however_few_the_channels(dims, options):
    for channels in (1, 2, 3, 7, 32):
        assert_follows(numpy_form(options), lively(channels, dims, **options), 2 * random_map(channels, dims, sizes=(3, 8, 9)))


@every_dims
@every_variant
def test_gradients_are_those_of_finite_differences(dims, options):
    assert_differentiable_twice(lively(3, dims, **{**options, "kernel_size": 3}), dims)


@every_dims
@every_variant
def test_tiles_change_nothing(dims, options):
    assert_tiles_change_nothing(lively(5, dims, **options).eval(), dims)


def test_compiling_changes_nothing():
    assert_compiles(lively(5, 3), 3)


@every_dims
@pytest.mark.parametrize("options", [variant for variant in VARIANTS if variant.get("norm") != "batch"], ids=str)
def test_awkward_maps_and_low_precision_train(dims, options):
    assert_robust(lambda channels: CBAM(channels, dims, **options), dims)
    assert_close_in_low_precision(lambda channels: CBAM(channels, dims, **options), dims)


def test_the_kernel_reads_the_maximum_first_and_then_the_mean():
    block = CBAM(2, 2, parts="spatial", kernel_size=1, norm="none")
    x = torch.tensor([[3.0, -1.0], [2.0, 1.0]]).reshape(1, 2, 1, 2)
    for weights, logit in (([1.0, 0.0], x.amax(1, keepdim=True)), ([0.0, 1.0], x.mean(1, keepdim=True))):
        with torch.no_grad():
            block.locate.weight.copy_(torch.tensor(weights).reshape(1, 2, 1, 1))
        torch.testing.assert_close(block.look(x)["spatial"], torch.sigmoid(logit))


def test_equal_maxima_share_the_gradient():
    """As with torch.amax, over the voxels and over the channels."""
    block = lively(4, 3, kernel_size=3)
    x = random_map(4, 3, sizes=(40, 41, 42)).clamp(max=1.0)
    x[:, 1] = x[:, 0]
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    block(one).square().sum().backward()
    logits = [block.excite(torch.relu(block.squeeze(pooled))) for pooled in (other.mean((2, 3, 4)), other.amax((2, 3, 4)))]
    y = other * torch.sigmoid(sum(logits))[..., None, None, None]
    pooled = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    (y * torch.sigmoid(block.norm(block.locate(pooled)))).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@every_dims
def test_gates_are_shared_along_the_axes_they_squeeze(dims):
    x = random_map(6, dims)
    block = lively(6, dims)
    gates = block.look(x)
    assert gates["channel"].shape == (2, 6, *[1] * dims)
    assert gates["spatial"].shape == (2, 1, *x.shape[2:])
    torch.testing.assert_close(block(x), x * gates["channel"] * gates["spatial"])
    assert list(CBAM(6, dims, parts="channel").look(x)) == ["channel"]
    assert list(CBAM(6, dims, parts="spatial").look(x)) == ["spatial"]


def test_a_volume_of_one_slice_gives_what_the_slice_gives():
    """Of the kernel only the middle slice meets the map, the others meet the padding."""
    flat, deep = (lively(6, dims) for dims in (2, 3))
    state = flat.state_dict()
    state["locate.weight"] = deep.locate.weight.detach().clone()
    state["locate.weight"][:, :, 3] = flat.locate.weight.detach()
    deep.load_state_dict(state)
    x = random_map(6, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-5, atol=1e-6)


def test_training_keeps_the_input_and_maps_of_few_channels():
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = random_map(32, 3, sizes=(12, 12, 12)).requires_grad_()
    block = CBAM(32, 3)
    parameters = sum(value.nbytes for value in block.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    assert sum(kept.values()) - parameters < 1.3 * x.nbytes


def test_batch_norm_learns_running_averages():
    block, x = lively(4, 2, norm="batch"), random_map(4, 2, batch=3)
    before = block.eval()(x)
    block.train()
    for _ in range(500):
        trained = block(x)
    assert (before - trained).abs().max() > 1e-2
    torch.testing.assert_close(block.eval()(x), trained, rtol=1e-2, atol=2e-2)


def test_number_of_parameters():
    assert sum(value.numel() for value in CBAM(64, 2).parameters()) == 2 * 64 * 4 + 64 + 4 + 2 * 7**2 + 2
    assert sum(value.numel() for value in CBAM(64, 3).parameters()) == 2 * 64 * 4 + 64 + 4 + 2 * 7**3 + 2
    assert sum(value.numel() for value in CBAM(8, 3, parts="channel").parameters()) == 2 * 8 + 8 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "chanel"}, "Unknown parts 'chanel'. Did you mean 'channel'? Valid names: both, channel, spatial."),
        ({"kernel_size": 4}, "`kernel_size` to be odd and at least 1, but got 4"),
        ({"kernel_size": -1}, "`kernel_size` to be odd and at least 1, but got -1"),
        ({"norm": "instance"}, "Unknown norm 'instance'"),
        ({"norm": "instance", "parts": "channel"}, "Unknown norm 'instance'"),
        ({"reduction": 0}, "`reduction` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        CBAM(8, 2, **options)
    assert message in str(error.value)

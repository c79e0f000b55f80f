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

from medseg_se.attention.cse import ChannelSE
from medseg_se.attention.se import SqueezeExcitation
from medseg_se.errors import UsageError

VARIANTS = [
    {},
    {"reduction": 1, "pooling": "max"},
    {"reduction": 2, "gate": "tanh"},
    {"reduction": 4, "gate": "relu", "bias": True},
    {"reduction": 1, "residual": True, "bias": True},
]
every_dims = pytest.mark.parametrize("dims", [2, 3])
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def numpy_form(options):
    gates = {"sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}

    def form(x, parameters):
        y = np.empty_like(x)
        for sample, given in zip(y, x, strict=True):
            squeezed = [channel.max() if options.get("pooling") == "max" else channel.sum() / channel.size for channel in given]
            hidden = np.maximum(parameters["squeeze.weight"] @ squeezed + parameters.get("squeeze.bias", 0), 0)
            gate = gates[options.get("gate", "sigmoid")](
                parameters["excite.weight"] @ hidden + parameters.get("excite.bias", 0)
            )
            for channel, value in enumerate(gate):
                sample[channel] = given[channel] * value + (given[channel] if options.get("residual") else 0)
        return y

    return form


def test_it_gives_the_outputs_and_gradients_of_the_authors_code():
    tensors = read_golden("se2d_r16_nobias")
    names = {"fc.0.weight": "squeeze.weight", "fc.2.weight": "excite.weight"}
    block = SqueezeExcitation(32, 2)
    load_parameters(block, tensors, names.get)
    assert_same_as_golden(block, tensors, names.get)


@every_dims
@every_variant
def test_it_follows_the_formula_however_few_the_channels(dims, options):
    for channels in (1, 2, 3, 7, 16):
        block = seeded(SqueezeExcitation, channels, dims, **options)
        assert_follows(numpy_form(options), block, 2 * random_map(channels, dims))


@every_dims
@every_variant
def test_gradients_are_those_of_finite_differences(dims, options):
    assert_differentiable_twice(seeded(SqueezeExcitation, 3, dims, seed=2, **options), dims)


@every_dims
@every_variant
def test_tiles_change_nothing(dims, options):
    assert_tiles_change_nothing(seeded(SqueezeExcitation, 5, dims, **options), dims)


@every_dims
@every_variant
def test_awkward_maps_and_low_precision_train(dims, options):
    bounded = options.get("gate") != "relu"
    if bounded:
        assert_robust(lambda channels: SqueezeExcitation(channels, dims, **options), dims)
    assert_close_in_low_precision(lambda channels: SqueezeExcitation(channels, dims, **options), dims)


def test_equal_maxima_share_the_gradient():
    """As with torch.amax; the second sample's maximum lies once in each of several tiles."""
    x = random_map(2, 3, sizes=(90, 91, 92)).clamp(max=2.0)
    x[1, 0, ::30, 5, 5] = 7.0
    x[1, 1, 3, 4, 5] = 8.0
    block = seeded(SqueezeExcitation, 2, 3, reduction=1, pooling="max", bias=True)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (block(one) - one).square().sum().backward()
    squeezed = other.amax((2, 3, 4))
    gate = torch.sigmoid(block.excite(torch.relu(block.squeeze(squeezed))))[..., None, None, None]
    (other * gate - other).square().sum().backward()
    assert (x[0] == 2.0).sum() > 10  # there are equal maxima
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@every_dims
def test_residual_adds_the_input_and_shows_the_gate(dims):
    plain, residual = (seeded(SqueezeExcitation, 6, dims, reduction=1, residual=flag) for flag in (False, True))
    x = random_map(6, dims)
    torch.testing.assert_close(residual(x), plain(x) + x)
    torch.testing.assert_close(residual.look(x)["channel"], plain.look(x)["channel"], rtol=0, atol=0)
    assert residual.look(x)["channel"].max() < 1


@every_variant
def test_a_volume_of_one_slice_gives_what_the_slice_gives(options):
    flat, deep = (seeded(SqueezeExcitation, 6, dims, **{"reduction": 1, **options}) for dims in (2, 3))
    x = random_map(6, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-6, atol=1e-7)


def test_it_is_the_segmentation_block_with_other_options():
    se, cse = seeded(SqueezeExcitation, 8, 3, reduction=2, bias=True), seeded(ChannelSE, 8, 3)
    x = random_map(8, 3)
    torch.testing.assert_close(se(x), cse(x), rtol=0, atol=0)
    assert list(se.state_dict()) == list(cse.state_dict())
    assert sum(value.numel() for value in SqueezeExcitation(64, 2).parameters()) == 2 * 64 * 4


@every_dims
@pytest.mark.parametrize("options", VARIANTS[:2], ids=str)
def test_it_compiles(dims, options):
    assert_compiles(seeded(SqueezeExcitation, 6, dims, **options), dims)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "maximum"}, "Unknown pooling 'maximum'. Did you mean 'max'? Valid names: max, mean."),
        ({"gate": "sigmoidal"}, "Unknown gate 'sigmoidal'. Did you mean 'sigmoid'?"),
        ({"reduction": 0}, "`reduction` to be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        SqueezeExcitation(8, 2, **options)
    assert message in str(error.value)

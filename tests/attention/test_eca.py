import math

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

from medseg_se.attention.eca import EfficientChannelAttention, adaptive_kernel_size
from medseg_se.errors import UsageError

every_dims = pytest.mark.parametrize("dims", [2, 3])
every_kernel = pytest.mark.parametrize("kernel_size", [None, 1, 3, 5, 9])


def numpy_form(x, parameters):
    (kernel,) = parameters["conv.weight"]
    y = np.empty_like(x)
    for n, channel in np.ndindex(x.shape[:2]):
        logit = 0.0
        for step, weight in enumerate(kernel):
            neighbour = channel + step - len(kernel) // 2
            if 0 <= neighbour < x.shape[1]:
                logit += weight * x[n, neighbour].mean()
        y[n, channel] = x[n, channel] * sigmoid(logit)
    return y


@pytest.mark.parametrize(("golden", "kernel_size"), [("eca2d_k3", 3), ("eca2d_k5", 5), ("eca2d_k3", None)])
def test_it_gives_the_outputs_and_gradients_of_the_authors_code(golden, kernel_size):
    tensors = read_golden(golden)
    block = EfficientChannelAttention(64, 2, kernel_size)
    load_parameters(block, tensors, str)
    assert_same_as_golden(block, tensors, str)


@every_dims
@every_kernel
def test_it_follows_the_formula_however_few_the_channels(dims, kernel_size):
    for channels in (1, 2, 3, 7, 16, 128):
        block = seeded(EfficientChannelAttention, channels, dims, kernel_size)
        assert_follows(numpy_form, block, 2 * random_map(channels, dims))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 1), (2, 1), (7, 1), (8, 3), (9, 3), (127, 3), (128, 5), (2047, 5), (2048, 7), (32767, 7), (32768, 9)],
)
def test_the_adaptive_kernel(channels, expected):
    assert adaptive_kernel_size(channels) == expected
    block = EfficientChannelAttention(channels, 3)
    assert [tuple(value.shape) for value in block.parameters()] == [(1, expected)]


def test_the_adaptive_kernel_is_that_of_the_authors_rule_away_from_rounding():
    for gamma in (1, 2, 3):
        for bias_term in (0, 1, 4):
            for channels in range(1, 700):
                exact = (math.log2(channels) + bias_term) / gamma
                t = round(exact) if math.isclose(exact, round(exact), abs_tol=1e-9) else math.floor(exact)
                assert adaptive_kernel_size(channels, gamma, bias_term) == (t if t % 2 else t + 1)
    assert adaptive_kernel_size(2**55) == 29
    assert adaptive_kernel_size(2**55 - 1) == 27  # whose logarithm rounds up to 55


def test_options_of_the_rule_reach_it():
    assert EfficientChannelAttention(64, 2, gamma=1).kernel_size == 7
    assert EfficientChannelAttention(64, 2, bias_term=4).kernel_size == 5
    assert EfficientChannelAttention(64, 2, kernel_size=1, gamma=1).kernel_size == 1


@every_dims
@every_kernel
def test_gradients_are_those_of_finite_differences(dims, kernel_size):
    assert_differentiable_twice(seeded(EfficientChannelAttention, 3, dims, kernel_size), dims)


@every_dims
def test_tiles_change_nothing(dims):
    assert_tiles_change_nothing(seeded(EfficientChannelAttention, 8, dims), dims)


@every_dims
def test_awkward_maps_and_low_precision_train(dims):
    for kernel_size in (None, 5):
        assert_robust(lambda channels, k=kernel_size: EfficientChannelAttention(channels, dims, k), dims)
        assert_close_in_low_precision(lambda channels, k=kernel_size: EfficientChannelAttention(channels, dims, k), dims)


def test_a_volume_of_one_slice_gives_what_the_slice_gives():
    flat, deep = (seeded(EfficientChannelAttention, 9, dims) for dims in (2, 3))
    x = random_map(9, 2)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x), rtol=1e-6, atol=1e-7)


@every_dims
def test_it_compiles(dims):
    assert_compiles(seeded(EfficientChannelAttention, 6, dims), dims)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "`kernel_size` to be an odd number above 0 or None, but got 4"),
        ({"kernel_size": 0}, "`kernel_size` to be an odd number above 0 or None, but got 0"),
        ({"kernel_size": -1}, "`kernel_size` to be an odd number above 0 or None, but got -1"),
        ({"gamma": 0}, "`gamma` to be a whole number above 0, but got 0"),
        ({"bias_term": -1}, "`bias_term` to be a whole number of at least 0, but got -1"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        EfficientChannelAttention(8, 2, **options)
    assert message in str(error.value)

import pytest
import torch
from block_checks import assert_differentiable_twice, assert_robust, random_map, seeded
from golden import assert_same_as_golden, load_parameters, read_golden

from medseg_se.attention.denis import DenisSE, DenisSERE
from medseg_se.attention.se import SqueezeExcitation

NAMES = {"fc.0.weight": "squeeze.weight", "fc.2.weight": "excite.weight"}
every_dims = pytest.mark.parametrize("dims", [2, 3])


def test_it_gives_the_outputs_and_gradients_of_the_authors_code():
    tensors = read_golden("denis_se_r6")
    block = DenisSE(12, 2)
    load_parameters(block, tensors, NAMES.get)
    assert_same_as_golden(block, tensors, NAMES.get)


@every_dims
def test_they_are_se_with_six_and_no_biases_and_differ_by_the_input(dims):
    x = random_map(30, dims)
    se, sere = seeded(DenisSE, 30, dims), seeded(DenisSERE, 30, dims)
    plain = seeded(SqueezeExcitation, 30, dims, reduction=6)
    torch.testing.assert_close(se(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(sere(x), plain(x) + x)
    for block in (se, sere):
        assert [tuple(value.shape) for value in block.parameters()] == [(5, 30), (30, 5)]
    assert tuple(DenisSERE(12, dims, reduction=4).squeeze.weight.shape) == (3, 12)


@every_dims
def test_gradients_are_those_of_finite_differences(dims):
    assert_differentiable_twice(seeded(DenisSERE, 3, dims, seed=2), dims)


@every_dims
@pytest.mark.parametrize("block", [DenisSE, DenisSERE])
def test_awkward_maps_and_low_precision_train(dims, block):
    assert_robust(lambda channels: block(channels, dims), dims)

import copy

import numpy as np
import pytest
import torch
from block_checks import numpy_parameters, seeded, sigmoid
from golden import load_parameters, read_golden

from medseg_se.attention.feature_weighting import FeatureWeighting, info_nce, perturb
from medseg_se.errors import UsageError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_gives_the_outputs_and_gradients_of_the_authors_code():
    tensors = {name: value for name, value in read_golden("weightedgcl_weight_features").items() if "embedding" not in name}
    block = FeatureWeighting(64)
    load_parameters(block, tensors, str)
    views = [tensors[name].clone().requires_grad_() for name in ("x", "x2")]
    outputs = [block(view) for view in views]
    sum((y * tensors[weight]).sum() for y, weight in zip(outputs, ("w", "w1"), strict=True)).backward()
    results = dict(zip(("y", "y1", "dx", "dx2"), (*outputs, *(view.grad for view in views)), strict=True))
    results |= {f"dparam.{name}": parameter.grad for name, parameter in block.named_parameters()}
    assert {name for name in tensors if name.startswith("d")} == {name for name in results if name.startswith("d")}
    for name, value in results.items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("hidden", [(4, 16), (3,), ()])
def test_it_follows_the_formula_however_few_the_features(hidden):
    for channels in (1, 2, 3, 7):
        block, x = seeded(FeatureWeighting, channels, hidden=hidden).double(), random(5, channels).double()
        parameters = numpy_parameters(block)
        expected = np.empty(x.shape)
        for row, features in zip(expected, x.numpy(), strict=True):
            units = np.array([features.sum() / channels])
            for layer in range(len(hidden) + 1):
                units = parameters[f"excitation.{layer}.weight"] @ units + parameters[f"excitation.{layer}.bias"]
            row[:] = features * sigmoid(units)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12)
        assert torch.autograd.gradcheck(block, x.requires_grad_())
        assert torch.autograd.gradgradcheck(block, x)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("under_autocast", [True, False])
def test_low_precision_keeps_its_type_and_only_rounds(kind, under_autocast):
    block = seeded(FeatureWeighting, 9)
    if not under_autocast:
        block.to(kind)
    for x in (random(4, 9), torch.full((1, 9), 1e4), torch.zeros(2, 9), -1e4 * random(3, 9).sigmoid()):
        x = x.to(kind)
        with torch.autocast("cpu", kind, enabled=under_autocast):
            y = block(x)
        assert y.dtype == kind
        expected = copy.deepcopy(block).double()(x.double())
        torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(kind).eps, atol=1e-6)


def test_perturbing_steps_away_from_zero_by_the_strength():
    x = random(50, 8)
    x[3, 2] = 0
    moved = perturb(x, 0.3, torch.Generator().manual_seed(1))
    step = moved - x
    assert step[3, 2] == 0
    assert (step * x.sign() >= -1e-7).all()
    others = [row for row in range(50) if row != 3]
    torch.testing.assert_close(step[others].norm(dim=1), torch.full((49,), 0.3))
    assert step[3].norm() < 0.3
    shape = step.abs()[others] / step.abs()[others].amax(1, keepdim=True)
    assert 0.4 < shape.mean() < 0.7  # a uniform direction, not a fixed one or a peak
    assert torch.equal(moved, perturb(x, 0.3, torch.Generator().manual_seed(1)))
    assert not torch.equal(moved, perturb(x, 0.3, torch.Generator().manual_seed(2)))
    assert perturb(x.half()).dtype == torch.float16


@pytest.mark.parametrize("temperature", [0.2, 1.5])
def test_info_nce_is_the_sum_over_the_nodes(temperature):
    first, second = random(6, 4).double(), random(6, 4, seed=1).double()
    a, b = (view.numpy() for view in (first, second))
    expected = 0.0
    for i in range(6):
        similar = [a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) for j in range(6)]
        expected -= np.log(np.exp(similar[i] / temperature) / np.exp(np.array(similar) / temperature).sum())
    np.testing.assert_allclose(info_nce(first, second, temperature).item(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(info_nce, (first.requires_grad_(), second.requires_grad_()))


def test_views_of_the_same_nodes_are_closer_than_shuffled_ones():
    block, x = seeded(FeatureWeighting, 16), random(20, 16)
    generator = torch.Generator().manual_seed(0)
    first, second = (block(perturb(x, generator=generator)) for _ in range(2))
    assert info_nce(first, second) < 0.5 * info_nce(first, second.flip(0))
    assert info_nce(1e4 * first.half(), second.half()).isfinite()


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 4, 3), (2, 4, 3, 3)])
def test_anything_but_a_matrix_of_its_features_is_refused(shape):
    with pytest.raises(UsageError) as error:
        FeatureWeighting(4)(torch.zeros(shape))
    assert "(N, C) with C = 4" in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureWeighting(0), "`channels` to be at least 1, but got 0"),
        (lambda: FeatureWeighting(4, hidden=(2, 0)), "`hidden` to hold positive numbers, but got [2, 0]"),
        (lambda: info_nce(random(3, 4), random(4, 4)), "the same shape (N, C), but got (3, 4) and (4, 4)"),
        (lambda: info_nce(random(3), random(3)), "the same shape (N, C), but got (3,) and (3,)"),
        (lambda: info_nce(random(3, 4), random(3, 4), 0.0), "`temperature` to be above 0, but got 0.0"),
    ],
)
def test_a_wrong_argument_is_refused(call, message):
    with pytest.raises(UsageError) as error:
        call()
    assert message in str(error.value)

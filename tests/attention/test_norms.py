import copy

import numpy as np
import pytest
import torch
from torch import nn

from medseg_se.attention.norms import GateNorm
from medseg_se.errors import UsageError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 2


def with_parameters(norm):
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters(), start=5):
            parameter.copy_(random(len(parameter), seed=seed))
    return norm


@pytest.mark.parametrize("shape", [(3, 16), (3, 24, 5), (2, 9, 4, 3), (1, 40, 2, 1, 3), (2, 1, 4), (4, 2)])
@pytest.mark.parametrize("name", ["layer", "group", "batch"])
def test_it_normalises_over_its_group(name, shape):
    groups = {"group": {16: 2, 24: 3, 9: 1, 40: 5, 1: 1, 2: 1}[shape[1]], "layer": 1}.get(name)
    norm, x = with_parameters(GateNorm(name, shape[1])).double(), random(*shape)
    weight, bias = (parameter.detach().numpy() for parameter in norm.parameters())
    expected = np.empty(shape)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            if name == "batch":
                group = x[:, channel]
            else:
                size = shape[1] // groups
                group = x[sample, channel // size * size : channel // size * size + size]
            group, value = group.numpy(), x[sample, channel].numpy()
            normed = (value - group.mean()) / np.sqrt(group.var() + 1e-5)
            expected[sample, channel] = normed * weight[channel] + bias[channel]
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_batch_keeps_running_averages_in_any_type(kind):
    ours, theirs = with_parameters(GateNorm("batch", 5, momentum=0.3)), nn.BatchNorm1d(5, momentum=0.3)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(kind), theirs.double()
    for seed in range(3):
        x = random(4, 5, seed=seed)
        ours(x.float()), theirs(x)
    tolerance = 4 * torch.finfo(kind).eps if kind != torch.float64 else 1e-6
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.double(), theirs.state_dict()[name].double(), rtol=tolerance, atol=tolerance)
    assert ours.running_mean.dtype == kind
    assert ours.num_batches_tracked == 3
    one = random(1, 5, seed=9)
    tolerance = 20 * max(tolerance, 1e-6)
    torch.testing.assert_close(ours.eval()(one.float()).double(), theirs.eval()(one), rtol=tolerance, atol=tolerance)
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("name", ["layer", "group"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 1, 1, 1, 1)])
def test_a_single_value_is_scaled_and_shifted(name, shape):
    norm, x = with_parameters(GateNorm(name, 1)).double(), random(*shape)
    torch.testing.assert_close(norm(x), x * norm.weight + norm.bias)


@pytest.mark.parametrize("shape", [(1, 6), (1, 6, 1, 1)])
def test_batch_refuses_to_train_on_a_single_value_per_channel(shape):
    norm = GateNorm("batch", 6)
    with pytest.raises(UsageError, match="where `norm` is 'batch', but got one in training; take a larger batch"):
        norm(torch.zeros(shape))
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.zeros(shape)).shape == shape


def test_none_changes_nothing_and_has_no_parameters():
    norm, x = GateNorm("none", 6), random(2, 6)
    assert norm(x) is x
    assert not norm.state_dict()


@pytest.mark.parametrize("name", ["layer", "group", "batch"])
def test_gradients_are_those_of_finite_differences(name):
    norm, x = with_parameters(GateNorm(name, 3)).double(), random(2, 3, 2).requires_grad_()
    run = copy.deepcopy(norm)
    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


def test_a_wrong_name_is_refused():
    with pytest.raises(UsageError, match=r"Unknown norm 'instance'. Valid names: batch, group, layer, none."):
        GateNorm("instance", 4)

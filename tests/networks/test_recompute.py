"""What the backward pass computes anew: same numbers, nothing left behind."""

import gc

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from medseg_se.attention import build_attention
from medseg_se.errors import UsageError
from medseg_se.networks.blocks import ConvBlock, ConvStyle

NORMS = ["instance", "batch", "group"]


class ByHand(nn.Module):
    """Hides a block from the unit before it."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        for unit in self.block.units:
            x = unit(x)
        return self.block.attention(x)


def make(norm="instance", act="leaky_relu", attention="scse", dropout=0.0, channels=4):
    torch.manual_seed(0)
    style = ConvStyle(3, norm, act, dropout)
    return ConvBlock(style, 1, channels, 3, 1, 2, build_attention(attention, channels, 3))


def gradients(module, x, parameters):
    y = module(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, torch.autograd.grad((y * weights).sum(), [x, *parameters])


@pytest.mark.parametrize("norm", [*NORMS, "none"])
@pytest.mark.parametrize("act", ["leaky_relu", "prelu", "gelu", "silu"])
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_running_statistics_are_those_of_the_layers_by_hand(norm, act, training):
    block, other = make(norm, act).train(training), make(norm, act).train(training)
    x = torch.randn(2, 1, 6, 7, 5, requires_grad=True)
    y, found = gradients(block, x, list(block.parameters()))
    expected, wanted = gradients(ByHand(other), x, list(other.parameters()))
    torch.testing.assert_close(y, expected)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    for (name, one), two in zip(block.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_the_mode_at_the_forward_pass_counts():
    block, other = make("batch").eval(), make("batch").eval()
    x = torch.randn(2, 1, 6, 6, 6)
    (one,), (two,) = ([part(x).square().sum()] for part in (block, ByHand(other)))
    block.train()
    one.backward()
    two.backward()
    for first, second in zip(block.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)
    assert block.units[1].norm.running_mean.abs().max() == 0


def test_dropout_is_not_drawn_again():
    block, other = make(dropout=0.5), make(dropout=0.5)
    x = torch.randn(2, 1, 6, 6, 6, requires_grad=True)
    torch.manual_seed(3)
    _, found = gradients(block, x, list(block.parameters()))
    torch.manual_seed(3)
    _, wanted = gradients(ByHand(other), x, list(other.parameters()))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_can_be_differentiated_again(norm):
    block = make(norm, "silu", channels=2).double()
    x = torch.randn(1, 1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))


def test_the_backward_pass_can_run_twice():
    block, x = make(), torch.randn(1, 1, 6, 6, 6, requires_grad=True)
    loss = block(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("norm", NORMS)
def test_a_pass_without_a_backward_pass_leaves_nothing_behind(norm):
    block, seen = make(norm), []
    conv = block.units[1].conv
    forward = conv.forward
    conv.forward = lambda x: watch(forward(x))

    def watch(y):
        seen.append(StorageWeakRef(y.untyped_storage()))
        return y

    y = block(torch.randn(1, 1, 6, 6, 6, requires_grad=True))
    assert not seen[0].expired()
    del y
    gc.collect()
    assert seen[0].expired()


@pytest.mark.parametrize("norm", NORMS)
def test_the_input_of_the_block_is_not_kept(norm):
    x = torch.randn(1, 1, 6, 6, 6, requires_grad=True)
    gone = {}
    for name, module in (("ours", make(norm)), ("by hand", ByHand(make(norm)))):
        seen = []
        attention = module.attention if name == "ours" else module.block.attention
        hook = lambda module, inputs, seen=seen: seen.append(StorageWeakRef(inputs[0].untyped_storage()))  # noqa: E731
        attention.register_forward_pre_hook(hook)
        y = module(x)
        gc.collect()
        gone[name] = seen[0].expired() and y.requires_grad
    assert gone == {"ours": True, "by hand": False}


def test_a_block_that_changes_its_input_is_refused():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sigmoid_()

    block = make(act="gelu")
    block.attention = InPlace()
    with pytest.raises(UsageError, match="leave its input as it is"):
        block(torch.randn(1, 1, 6, 6, 6, requires_grad=True))


@pytest.mark.parametrize("attention", ["none", "cse"])
def test_hooks_on_every_unit_fire(attention):
    block, fired = make(attention=attention), []
    for number, unit in enumerate(block.units):
        unit.register_forward_hook(lambda m, i, o, number=number: fired.append(number))
    block(torch.randn(1, 1, 6, 6, 6, requires_grad=True))
    assert fired == [0, 1]

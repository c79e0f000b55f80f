"""What the tests of all blocks ask: gradients, tiles, low precision, awkward maps."""

import copy

import numpy as np
import torch
from torch.func import functional_call

from medseg_se.attention.tiles import tiles

SIZES = (3, 5, 7)


def random_map(channels, dims, seed=0, batch=2, sizes=SIZES):
    return torch.randn(batch, channels, *sizes[:dims], generator=torch.Generator().manual_seed(seed))


def seeded(build, *arguments, seed=0, **options):
    torch.manual_seed(seed)
    return build(*arguments, **options)


def numpy_parameters(block):
    return {name: value.detach().numpy() for name, value in block.named_parameters()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def assert_follows(form, block, x):
    """Compare with `form`, the formula in NumPy: it gets the map and a dictionary of the parameters."""
    block, x = block.double(), x.double()
    expected = form(x.numpy(), numpy_parameters(block))
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-11, atol=1e-13)


def assert_differentiable_twice(block, dims, sizes=(2, 3, 2), again=True):
    block = block.double()
    names, values = zip(*block.named_parameters(), strict=True)
    x = random_map(block.channels, dims, seed=1, sizes=sizes).double().requires_grad_()

    def run(x, *values):
        return functional_call(block, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values))
    assert not again or torch.autograd.gradgradcheck(run, (x, *values))


def assert_tiles_change_nothing(block, dims, sample=1.2e6):
    """Compare a map of many tiles, output and gradients, with the formulas on the whole map, which transforms make run."""
    size = round((sample / block.channels) ** (1 / dims))
    x = random_map(block.channels, dims, sizes=(size, size + 1, size - 1)).requires_grad_()
    assert len(list(tiles(x))) > len(x)
    weights = random_map(block.channels, dims, seed=1, sizes=x.shape[2:])
    parameters = dict(block.named_parameters())
    y = block(x)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *parameters.values()])
    run = lambda x, parameters: functional_call(block, parameters, x)  # noqa: E731
    expected, backward = torch.func.vjp(run, x.detach(), {name: value.detach() for name, value in parameters.items()})
    dx, d_parameters = backward(weights)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, [dx, *(d_parameters[name] for name in parameters)], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * max(1.0, other.abs().max().item()))


def assert_compiles(block, dims):
    """The compiled block gives the same output and gradients, without the code generator, which takes long."""
    other, x = copy.deepcopy(block), random_map(block.channels, dims).requires_grad_()
    torch.compiler.reset()
    results = []
    for one in (block, torch.compile(other, backend="aot_eager")):
        y = one(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *one.parameters()])])
    for ours, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, ours, rtol=1e-4, atol=1e-5)


def awkward_maps(channels, dims):
    shape = (2, channels, *SIZES[:dims])
    return {
        "zeros": torch.zeros(shape),
        "constant": torch.full(shape, 3.0),
        "large constant": torch.full(shape, -1e4),
        "large": 1e4 * torch.tanh(random_map(channels, dims)),
        "one voxel": torch.full((1, channels, *[1] * dims), 2.5),
        "one large voxel": torch.full((1, channels, *[1] * dims), 1e4),
    }


def assert_robust(build, dims):
    """Train on awkward maps in float32 and low precision, with parameters of the same type and under autocast."""
    for channels in (1, 3, 32):
        for kind, under_autocast in (
            (torch.float32, False),
            (torch.float16, True),
            (torch.bfloat16, True),
            (torch.float16, False),
            (torch.bfloat16, False),
        ):
            block = seeded(build, channels)
            if not under_autocast:
                block.to(kind)
            for name, x in awkward_maps(channels, dims).items():
                where = f"{name}, {channels} channels, {kind}"
                x = x.to(kind).requires_grad_()
                with torch.autocast("cpu", kind, enabled=under_autocast):
                    y = block(x)
                assert y.dtype == kind, where
                assert y.shape == x.shape, where
                assert y.isfinite().all(), where
                y.float().mean().backward()
                assert x.grad.isfinite().all(), where
                for key, parameter in block.named_parameters():
                    bad = parameter.grad.isnan() if parameter.dtype == torch.float16 else ~parameter.grad.isfinite()
                    assert not bad.any(), f"{key}, {where}"
                block.zero_grad()


def assert_close_in_low_precision(build, dims, train=True):
    """The output is that of float64, rounded."""
    for kind in (torch.float16, torch.bfloat16):
        for offset in (0.0, 100.0):
            block = seeded(build, 16).train(train)
            x = (random_map(16, dims) + offset).to(kind)
            expected = copy.deepcopy(block).double()(x.double())
            with torch.autocast("cpu", kind):
                y = block(x)
            eps = torch.finfo(kind).eps
            rounding = 2.5 * eps * expected.abs() + 1e-5 * x.double().abs().clamp(min=1)
            assert ((y.double() - expected).abs() <= rounding).all(), offset

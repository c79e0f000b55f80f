import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from medseg_se.dims import activation, average_pool, check_dims, conv, dropout, max_pool, norm, per_axis, transposed_conv
from medseg_se.errors import UsageError
from medseg_se.execution import fast_layout, lay_out_weights

every_dims = pytest.mark.parametrize("dims", [2, 3])
SIZE = (7, 6, 5)


@pytest.mark.parametrize(
    ("size", "dims", "expected"),
    [(3, 2, (3, 3)), (1, 3, (1, 1, 1)), ([1, 2, 3], 3, (1, 2, 3)), ((2, 1), 2, (2, 1)), (np.int64(2), 2, (2, 2))],
)
def test_sizes_are_one_number_or_one_per_axis(size, dims, expected):
    assert per_axis(size, dims) == expected


@pytest.mark.parametrize("size", [0, -1, 2.0, [2], [2, 2, 2], [2, 0], [2, 1.5], [], "33", None, [[2, 2], [2, 2]]])
def test_other_sizes_are_refused_by_name(size):
    with pytest.raises(UsageError) as error:
        per_axis(size, 2, "strides")
    assert f"`strides` to be a positive whole number or 2 of them, but got {size}" in str(error.value)


def test_only_two_and_three_axes_exist():
    check_dims(2)
    check_dims(3)
    for dims in (0, 1, 4):
        with pytest.raises(UsageError, match=f"`spatial_dims` to be 2 or 3, but got {dims}"):
            check_dims(dims)


@every_dims
@pytest.mark.parametrize("kernel", [1, 3, 5, (3, 1, 5)])
def test_convolutions_keep_the_size_and_strides_divide_it_rounding_up(dims, kernel):
    kernel = kernel[:dims] if isinstance(kernel, tuple) else kernel
    x = torch.randn(1, 2, *SIZE[:dims])
    assert conv(dims, 2, 4, kernel)(x).shape == (1, 4, *SIZE[:dims])
    strided = conv(dims, 2, 4, kernel, stride=(2, 3, 1)[:dims])
    assert strided(x).shape == (1, 4, *(4, 2, 5)[:dims])
    assert strided.bias is not None
    assert conv(dims, 2, 4, kernel, bias=False).bias is None


@every_dims
@pytest.mark.parametrize("kernel", [2, (3, 4, 3)])
def test_even_kernels_are_refused(dims, kernel):
    kernel = kernel[:dims] if isinstance(kernel, tuple) else kernel
    with pytest.raises(UsageError, match="`kernel_size` to be odd along every axis"):
        conv(dims, 2, 4, kernel)


@every_dims
def test_every_voxel_of_a_transposed_convolution_fills_a_block_of_its_own(dims):
    stride = (2, 3, 1)[:dims]
    layer = transposed_conv(dims, 1, 1, stride)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.randn(1, 1, *SIZE[:dims])
    expected = x
    for axis, step in enumerate(stride, start=2):
        expected = expected.repeat_interleave(step, dim=axis)
    torch.testing.assert_close(layer(x), expected)


@every_dims
@pytest.mark.parametrize("name", ["instance", "group", "batch"])
def test_norms_give_mean_0_and_variance_1_over_their_axes_and_are_affine(dims, name):
    x = 3 * torch.randn(4, 16, *SIZE[:dims]) + 5
    layer = norm(name, dims, 16)
    y = layer(x).detach()
    groups = {"instance": y.flatten(2), "group": y.reshape(4, 2, -1), "batch": y.transpose(0, 1).flatten(1)}[name]
    torch.testing.assert_close(groups.mean(-1), torch.zeros(groups.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(groups.var(-1, correction=0), torch.ones(groups.shape[:-1]), rtol=0, atol=1e-4)
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(16,), (16,)]


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (5, 1), (8, 1), (12, 1), (16, 2), (20, 2), (26, 2), (32, 4), (320, 40)]
)
def test_groups_have_eight_channels_or_the_next_number_that_divides_them(channels, groups):
    assert norm("group", 2, channels).num_groups == groups


def test_no_norm_changes_nothing():
    x = torch.randn(1, 2, 3, 3)
    assert norm("none", 2, 2)(x) is x


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("leaky_relu", [-0.02, 3.0]),
        ("relu", [0.0, 3.0]),
        ("prelu", [-0.5, 3.0]),
        ("gelu", [-0.0455, 2.99595]),
        ("silu", [-0.238406, 2.857722]),
    ],
)
def test_activations(name, expected):
    torch.testing.assert_close(activation(name)(torch.tensor([-2.0, 3.0])), torch.tensor(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: activation("leaky"), "Unknown activation 'leaky'. Did you mean 'leaky_relu'? Valid names: gelu, leaky_relu, "),
        (lambda: norm("layer", 2, 4), "Unknown norm 'layer'. Valid names: batch, group, instance, none."),
        (lambda: norm("bach", 2, 4), "Unknown norm 'bach'. Did you mean 'batch'?"),
    ],
)
def test_unknown_names_list_the_valid_ones(build, message):
    with pytest.raises(UsageError) as error:
        build()
    assert message in str(error.value)


@every_dims
def test_dropout_drops_whole_channels_in_training(dims):
    torch.manual_seed(0)
    layer = dropout(dims, 0.25)
    x = torch.ones(20, 50, *SIZE[:dims])
    y = layer(x).flatten(2)
    assert (y == y[..., :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y[..., 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(layer.eval()(x), x)
    assert isinstance(dropout(dims, 0.0), nn.Identity)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2, float("nan")])
def test_dropout_rates_that_make_no_sense_are_refused(rate):
    with pytest.raises(UsageError, match="`dropout` to be at least 0 and below 1, but got"):
        dropout(2, rate)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [2, (1, 3, 2)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_pooling_takes_blocks_and_what_is_left_of_them_at_the_edge(dims, stride, kind):
    strides = (stride,) * dims if isinstance(stride, int) else stride[:dims]
    for size in (SIZE, (1, 4, 3)):
        x = torch.randn(2, 3, *size[:dims]).to(kind)
        padded = torch.nn.functional.pad(x.float(), [n for s in reversed(strides) for n in (0, s)], value=math.nan)
        blocks = padded
        for axis, step in enumerate(strides, start=2):
            length = -(-x.shape[axis] // step)
            parts = [blocks.narrow(axis, place * step, step) for place in range(length)]
            blocks = torch.stack(parts, axis).movedim(axis + 1, -1)
        values = blocks.flatten(2 + dims)
        there = values.isfinite()
        mean = values.nan_to_num(0).sum(-1) / there.sum(-1)
        largest = values.masked_fill(~there, -math.inf).amax(-1)
        pooled = average_pool(dims, strides)(x)
        assert pooled.dtype == kind
        torch.testing.assert_close(pooled.float(), mean, rtol=1e-2 if kind == torch.bfloat16 else 1e-5, atol=1e-2)
        torch.testing.assert_close(max_pool(dims, strides)(x).float(), largest)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_instance_normalisation_keeps_the_layout_and_its_values(dims, batch):
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    layer = norm("instance", dims, 4)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    x = torch.randn(batch, 4, *SIZE[:dims])
    other = x.to(memory_format=layout)
    y = layer(other)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, layer(x))
    gradients = [torch.autograd.grad((layer(a.requires_grad_()) ** 3).sum(), (a, *layer.parameters())) for a in (x, other)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kernel", "stride", "options"),
    [(3, 1, {}), ((1, 3, 5), (1, 2, 3), {"bias": False}), (3, 2, {"groups": 2}), (1, 1, {})],
)
def test_one_small_map_takes_another_way_to_the_same_convolution(layout, kernel, stride, options):
    layer = conv(3, 4, 8, kernel, stride, **options)
    x = torch.randn(1, 4, *SIZE).to(memory_format=layout)
    expected = torch.nn.functional.conv3d(
        x.double(),
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        layer.stride,
        layer.padding,
        groups=layer.groups,
    )
    with torch.no_grad():
        y = layer(x)
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(torch.cat([x, x]))[:1], y, rtol=1e-5, atol=1e-5)
    assert layer(x).requires_grad


def test_maps_are_channels_last_on_a_cpu_where_nothing_is_learnt():
    x = torch.randn(1, 4, 3, 5, 6)
    assert fast_layout(x) is x
    with torch.no_grad():
        assert fast_layout(x).is_contiguous(memory_format=torch.channels_last_3d)
        assert fast_layout(x[:, :, 0]).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(fast_layout(x), x)
        assert fast_layout(x.to("meta")).is_contiguous()
        exported = torch.export.export(Layout(), (x,), strict=False)
    assert not any("contiguous" in str(node.target) or "clone" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_in_the_layout_of_maps_keep_their_values(dims):
    layer = conv(dims, 4, 8)
    before = layer.weight.detach().clone()
    lay_out_weights(layer)
    assert torch.equal(layer.weight, before)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)


class Layout(torch.nn.Module):
    def forward(self, x):
        return fast_layout(x) * 2


def test_gradients_in_bfloat16_are_the_same_in_both_layouts():
    torch.manual_seed(0)
    plain = conv(3, 2, 4, bias=False)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 2, 2, 2, 2)
    for _ in range(50):
        freed = torch.full((4, 2, 3, 3, 3), float("nan"))  # what a gradient that is not written whole would be made of
        del freed
        for layer, scan in ((plain, x), (last, x.to(memory_format=torch.channels_last_3d))):
            layer.weight.grad = None
            with torch.autocast("cpu", torch.bfloat16):
                answer = layer(scan)
            answer.float().square().sum().backward()
        torch.testing.assert_close(last.weight.grad, plain.weight.grad, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 3, 4), (2, 1, 2), (1, 2, 2)])
def test_gradients_in_bfloat16_of_kernels_deeper_than_the_map(shape):
    """They are the products of maps and gradients, and nothing of what the memory held before."""
    torch.manual_seed(0)
    layer = conv(3, 32, 32, bias=False)
    for _ in range(20):
        freed = [torch.full((size,), float("nan")) for size in (layer.weight.numel() // 2, layer.weight.numel(), 10_000)]
        del freed
        x, change = torch.randn(2, 32, *shape).bfloat16(), torch.randn(2, 32, *shape).bfloat16()
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(x)
        answer.backward(change)
        assert answer.dtype == torch.bfloat16
        exact = torch.nn.grad.conv3d_weight(x.double(), layer.weight.shape, change.double(), padding=1)
        torch.testing.assert_close(layer.weight.grad.double(), exact, rtol=1e-2, atol=2e-2 * float(exact.abs().max()))

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from medseg_se.errors import UsageError
from medseg_se.networks.fc_densenet import FCDenseNet, fc_densenet56, fc_densenet67, fc_densenet103

every_dims = pytest.mark.parametrize("dims", [2, 3])
PAPER = {
    "56": (fc_densenet56, (4, 4, 4, 4, 4), 4, 12),
    "67": (fc_densenet67, (5, 5, 5, 5, 5), 5, 16),
    "103": (fc_densenet103, (4, 5, 7, 10, 12), 15, 16),
}


def build(dims, seed=0, **options):
    torch.manual_seed(seed)
    small = {"layers": (2, 3), "bottleneck_layers": 2, "growth": 4, "stem_channels": 6, "dropout": 0.0}
    return FCDenseNet(2, 3, dims, **{**small, **options})


def scan(dims, size=(11, 12, 9), seed=0, batch=2):
    return torch.randn(batch, 2, *size[:dims], generator=torch.Generator().manual_seed(seed))


def weighted_sum(y):
    return (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum()


# -------------------------------------------------------------------------------------------------- the network as one function


def naive(net, x):
    """The network as in the paper's code: concatenate what there is, normalise all of it, convolve, once for each layer."""
    dims = x.ndim - 2
    convolve = (F.conv2d, F.conv3d)[dims - 2]
    enlarge = (F.conv_transpose2d, F.conv_transpose3d)[dims - 2]
    pool = (F.max_pool2d, F.max_pool3d)[dims - 2]

    def layer(unit, x):
        norms, running = list(unit.norms), (None, None)
        if isinstance(norms[0], (nn.BatchNorm2d, nn.BatchNorm3d)):
            running = tuple(torch.cat([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var"))
        if not isinstance(norms[0], nn.Identity):
            weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
            if running[0] is None:
                x = F.instance_norm(x, weight=weight, bias=bias)
            else:
                x = F.batch_norm(x, *running, weight, bias, unit.training)
        return convolve(torch.relu(x), unit.conv.weight, unit.conv.bias, padding=unit.conv.weight.shape[-1] // 2)

    def dense(block, x):
        new = []
        for unit in block.units:
            new.append(layer(unit, x))
            x = torch.cat([x, new[-1]], dim=1)
        return x, torch.cat(new, dim=1)

    x, skips = convolve(x, net.stem.weight, net.stem.bias, padding=1), []
    for level in net.encoder:
        x, _ = dense(level.block, x)
        skips.append(x)
        x = pool(layer(level.squeeze, x), 2, ceil_mode=True)
    _, new = dense(net.bottleneck, x)
    for level in net.decoder:
        skip = skips.pop()
        x = enlarge(new, level.up.weight, level.up.bias, stride=2)
        for axis, length in enumerate(skip.shape[2:], start=2):
            x = x.narrow(axis, 1, length)
        x, new = dense(level.block, torch.cat([x, skip], dim=1))
    return convolve(x, net.head.weight, net.head.bias)


def shaken(net):
    """Give normalisations weights and statistics of their own."""
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if ".norms." in name and value.is_floating_point():
                value.uniform_(0.5, 2)
    return net


@every_dims
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_the_papers_network(dims, norm, training):
    net = shaken(build(dims, norm=norm)).double().train(training)
    x = scan(dims).double()
    expected = naive(net, x)
    y = net(x)
    torch.testing.assert_close(y, expected)
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(weighted_sum(expected), parameters)
    for one, two in zip(torch.autograd.grad(weighted_sum(y), parameters), wanted, strict=True):
        torch.testing.assert_close(one, two)


@every_dims
def test_running_statistics_move_once_a_step(dims):
    net = build(dims)
    unit = net.encoder[0].block.units[1]
    seen = []
    handle = unit.register_forward_hook(lambda module, inputs, output: seen.extend(x.detach() for x in inputs))
    with torch.no_grad():
        net.eval()(scan(dims))
    handle.remove()
    weighted_sum(net.train()(scan(dims))).backward()
    first = seen[0].transpose(0, 1).flatten(1)  # the stem's output, which no normalisation precedes
    torch.testing.assert_close(unit.norms[0].running_mean, 0.1 * first.mean(dim=1))
    torch.testing.assert_close(unit.norms[0].running_var, 0.9 + 0.1 * first.var(dim=1))
    assert {int(norm.num_batches_tracked) for norm in unit.norms} == {1}


@every_dims
@pytest.mark.parametrize("training", [True, False])
def test_watching_a_layer_changes_nothing_and_sees_it_once(dims, training):
    grads, calls = [], Counter()
    for watched in (False, True):
        net = shaken(build(dims)).train(training)
        if watched:
            for module in net.modules():
                module.register_forward_hook(lambda module, inputs, output: calls.update([module]))
        grads.append(torch.autograd.grad(weighted_sum(net(scan(dims))), list(net.parameters())))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)
    assert set(calls.values()) == {1}


class Storages(TorchDispatchMode):
    """Remembers every piece of memory that an operation has filled."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.seen[x.untyped_storage()._cdata] = (StorageWeakRef(x.untyped_storage()), x.untyped_storage().nbytes())
        return result

    def kept(self, module, least):
        """The sizes in bytes of what is still in use, from `least` on, without the module's parameters."""
        own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        held = [size for key, (reference, size) in self.seen.items() if key not in own and not reference.expired()]
        return [size for size in held if size >= least]


def test_training_keeps_the_maps_of_a_block_and_none_of_their_concatenations():
    block = build(3, layers=(9,), growth=4, stem_channels=8).encoder[0].block
    x = torch.randn(1, 8, 8, 8, 8, requires_grad=True)
    with Storages() as storages:
        y = block(x)
    voxels = 4 * 8**3
    kept = storages.kept(block, least=voxels)  # means and spreads are smaller
    # What each layer but the last has added, the map that enters, and the result.
    assert sorted(kept) == [*[4 * voxels] * 8, 8 * voxels, 44 * voxels]
    y.sum().backward()
    assert x.grad is not None


# -------------------------------------------------------------------------------------------------- architecture and its size


def closed_form(layers, bottleneck_layers, growth, in_channels=3, classes=12, stem=48, normalised=2):
    """Parameters in 2D; `normalised` numbers for each channel of a normalisation."""

    def layer(entering, leaving, taps):
        return normalised * entering + taps * entering * leaving

    def dense(entering, count):
        return sum(layer(entering + i * growth, growth, 9) for i in range(count))

    total, channels, skips = 9 * in_channels * stem, stem, []
    for count in layers:
        total += dense(channels, count)
        channels += count * growth
        skips.append(channels)
        total += layer(channels, channels, 1)
    total += dense(channels, bottleneck_layers)
    new = bottleneck_layers * growth
    for count, skip in zip(layers[::-1], skips[::-1], strict=True):
        total += 9 * new * new + new + dense(new + skip, count)
        channels, new = new + skip + count * growth, count * growth
    return total + channels * classes + classes


@pytest.mark.parametrize(("depth", "published"), [("56", 1.4), ("67", 3.5), ("103", 9.4)])
def test_the_papers_networks_have_its_depths_and_numbers_of_parameters(depth, published):
    network, *sizes = PAPER[depth]
    net = network(3, 12, 2)
    convolutions = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(convolutions) == int(depth)
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == closed_form(*sizes)
    # The paper counts the running means and spreads as well; its 1.5 million for 56 layers are 1.4.
    running = sum(buffer.numel() for name, buffer in net.named_buffers() if "running" in name)
    assert parameters + running == closed_form(*sizes, normalised=4)
    assert round((parameters + running) / 1e6, 1) == published
    assert net.stem.out_channels == 48
    assert {module.p for module in net.modules() if isinstance(module, nn.Dropout2d)} == {0.2}


def test_channels_after_each_block_are_those_of_the_papers_table():
    net = fc_densenet103(3, 12, 2)
    blocks = [*(level.block for level in net.encoder), net.bottleneck, *(level.block for level in net.decoder)]
    after = [sum(norm.num_features for norm in block.units[-1].norms) + 16 for block in blocks]
    assert after == [112, 192, 304, 464, 656, 896, 1088, 816, 578 - 2, 384, 256]  # the paper's 578 is a slip for 576
    assert net.head.in_channels == 256


@every_dims
def test_attention_before_the_activation_gets_all_maps_normalised(dims):
    net = build(dims, attention="cse", attention_at=("pre_activation",)).eval()
    unit = net.bottleneck.units[1]
    maps = [torch.randn(1, norm.num_features, *(4, 5, 6)[:dims]) for norm in unit.norms]
    normalised = torch.cat([norm(x) for norm, x in zip(unit.norms, maps, strict=True)], dim=1)
    assert type(unit.before_act).__name__ == "ChannelSE"
    torch.testing.assert_close(unit(*maps), unit.conv(torch.relu(unit.before_act(normalised))))


def test_pooling_per_axis_and_sizes_that_it_does_not_divide():
    net = build(3, strides=[[1, 3, 2], 2], kernel_size=[[1, 3, 3], 3, 3])
    shapes = []
    for module in (*net.encoder, *(level.up for level in net.decoder)):
        module.register_forward_hook(
            lambda module, inputs, outputs: shapes.append((outputs[0] if isinstance(outputs, tuple) else outputs).shape[2:])
        )
    for height in (10, 11, 12):
        shapes.clear()
        assert net(scan(3, (3, height, 7))).shape == (2, 3, 3, height, 7)
        assert shapes == [(3, 4, 4), (2, 2, 2), (3, 4, 4), (3, height, 7)]
    assert tuple(net.decoder[-1].up.kernel_size) == (1, 5, 3)


def test_a_single_voxel_at_the_bottom_is_refused_where_its_normalisation_would_erase_it():
    net = build(2)
    with pytest.raises(UsageError, match="more than one voxel for batch normalisation"):
        net(scan(2, (4, 4), batch=1))
    assert net(scan(2, (4, 4), batch=2)).shape == (2, 3, 4, 4)
    assert net.eval()(scan(2, (4, 4), batch=1)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "`layers` to hold at least one number, and all of"),
        ({"layers": (2, 0)}, "to be at least 1, but got [2, 0], 2, 4 and 6"),
        ({"bottleneck_layers": 0}, "to be at least 1, but got [2, 3], 0, 4 and 6"),
        ({"growth": 0}, "to be at least 1, but got [2, 3], 2, 0 and 6"),
        ({"strides": [2]}, "`strides` to be one number or 2 entries, but got 1"),
        ({"kernel_size": [3, 3]}, "`kernel_size` to be one number or 3 entries, but got 2"),
        (
            {"attention": "cse", "attention_at": ["residual"]},
            "`attention_at` to hold some of encoder, bottleneck, decoder, skip",
        ),
        ({"attention": ["cse", "cse"]}, "`attention` to be one name or 3 of them"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        build(2, **options)
    assert message in str(error.value)

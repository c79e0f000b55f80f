from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet
from torch.nn import functional as F

from medseg_se.attention.denis import DenisSE
from medseg_se.errors import UsageError
from medseg_se.networks.blocks import ConvStyle
from medseg_se.networks.denisnet import DenisNet, DenseLayer, denisnet_split

GOLDEN = Path(__file__).parents[1] / "data" / "denis_bottleneck_se_eval.npz"
NAMES = {"bn1": "reduce.norm", "conv1": "reduce.conv", "bn2": "convolve.norm", "conv2": "convolve.conv"}
NAMES |= {"se.fc.0": "attention.squeeze", "se.fc.2": "attention.excite"}
every_dims = pytest.mark.parametrize("dims", [2, 3])


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def random_statistics(network, seed=0):
    """Give every batch normalisation statistics and factors that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if ".norm." in name and value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def test_a_dense_layer_gives_the_outputs_and_gradients_of_the_authors_code():
    with np.load(GOLDEN) as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}

    def renamed(prefix):
        parts = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        split = {key: key.rpartition(".") for key in parts if not key.startswith("se_re.")}  # built there, never used
        return {f"{NAMES[module]}.{last}": parts[key] for key, (module, _, last) in split.items()}

    layer = DenseLayer(ConvStyle(2, "batch", "relu"), 24, 12, 48, False, 1, DenisSE(12, 2)).eval()
    layer.load_state_dict(renamed("param."))
    x = tensors["x"].clone().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, tensors["y"], rtol=0, atol=1e-5)
    (y * tensors["w"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["dx"], rtol=0, atol=1e-5)
    gradients = renamed("dparam.")
    assert set(gradients) == {name for name, _ in layer.named_parameters()}
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5)


@every_dims
@pytest.mark.parametrize("training", [True, False])
def test_without_attention_it_is_monais_densenet_behind_the_stem(dims, training):
    net = DenisNet(2, 5, dims, layers=(3, 2, 2), growth=6, attention="none")
    random_statistics(net)
    oracle = DenseNet(dims, 2, 5, init_features=12, growth_rate=6, block_config=(3, 2, 2), bn_size=4)
    behind = torch.nn.Sequential(*list(oracle.features.children())[4:], oracle.class_layers)
    ours = [value for name, value in net.state_dict().items() if not name.startswith("stem")]
    behind.load_state_dict(dict(zip(behind.state_dict(), ours, strict=True)))
    net.train(training), behind.train(training)
    x = torch.randn(2, 2, *(12, 8, 4)[:dims], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x), behind(net.stem(x)), rtol=1e-4, atol=1e-5)


@every_dims
def test_a_split_layer_is_three_convolutions_the_second_of_them_grouped(dims):
    torch.manual_seed(0)
    net = DenisNet(1, 2, dims, layers=(2,), split=True, groups=3, attention="denis_sere")
    layer = net.encoder[0].layers[1]
    weights = [unit.conv.weight for unit in (layer.reduce, layer.convolve, layer.project)]
    assert [tuple(w.shape) for w in weights] == [(39, 36, *[1] * dims), (39, 13, *[3] * dims), (12, 39, *[1] * dims)]
    x = torch.randn(2, 36, *(6, 5, 4)[:dims])
    convolve, new = (F.conv2d if dims == 2 else F.conv3d), x
    for weight, groups in zip(weights, (1, 3, 1), strict=True):
        new = F.relu(F.batch_norm(new, None, None, training=True))
        new = convolve(new, weight, padding=weight.shape[-1] // 2, groups=groups)
    means = new.flatten(2).mean(2)
    gate = torch.sigmoid(torch.relu(means @ layer.attention.squeeze.weight.T) @ layer.attention.excite.weight.T)
    expected = new * gate.reshape(2, 12, *[1] * dims) + new
    torch.testing.assert_close(layer.train()(x), torch.cat([x, expected], 1), rtol=1e-4, atol=1e-5)


def expected_count(layers, groups=None, k=12, classes=10, se=True):
    """The authors' structure for RGB images; with `groups` their split layers."""
    m = 4 * k if groups is None else {1: 25, 2: 34, 3: 39, 4: 44, 6: 48}[groups]
    channels, total = 2 * k, 3 * 2 * k * 9
    for level in range(3):
        for _ in range(layers):
            total += 2 * channels + channels * m + 2 * m
            total += m * k * 9 if groups is None else m * m * 9 // groups + 2 * m + m * k
            total += 2 * k * (k // 6) if se else 0
            channels += k
        if level < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + channels * classes + classes


def test_parameters_are_those_of_the_authors_networks():
    assert count(DenisNet(3, 10, 2, attention="none")) == expected_count(16, se=False) == 769_162  # DenseNet-BC, 100 layers
    assert count(DenisNet(3, 10, 2)) == expected_count(16) == 771_466
    assert count(denisnet_split(3, 10, 2)) == expected_count(24, 6) == 1_442_314
    split = {1: 97_894, 2: 100_162, 3: 96_574, 4: 98_170, 6: expected_count(4, 6)}
    for groups, number in split.items():
        assert count(DenisNet(3, 10, 2, layers=(4, 4, 4), split=True, groups=groups)) == expected_count(4, groups) == number


def test_the_width_is_the_authors_only_where_they_gave_one():
    for options, width in (({"groups": 8}, 48), ({"growth": 8}, 32), ({"width": 30, "groups": 3}, 30)):
        layer = DenisNet(1, 2, 2, layers=(1,), split=True, **options).encoder[0].layers[0]
        assert layer.convolve.conv.weight.shape[0] == layer.reduce.conv.weight.shape[0] == width
    grouped = DenisNet(1, 2, 2, layers=(1,), growth=4, groups=2).encoder[0].layers[0].convolve.conv
    assert tuple(grouped.weight.shape) == (4, 8, 3, 3)


def test_strides_compression_and_places():
    seen = {}
    options = {"stem_stride": (1, 2, 2), "strides": ((1, 2, 2), 2), "compression": 0.25, "attention": ["none", "cse", "sse"]}
    net = DenisNet(1, 2, 3, layers=(2, 1, 1), growth=4, attention_at=("new_features", "encoder"), **options).eval()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, inputs, y, name=name: seen.update({name: tuple(y.shape[1:])}))
    net(torch.zeros(1, 1, 5, 21, 16))
    assert seen["stem"] == (8, 5, 11, 8)
    assert seen["encoder.0.layers"] == (16, 5, 11, 8)
    assert seen["encoder.0"] == (4, 5, 6, 4)
    assert seen["encoder.1"] == (2, 3, 3, 2)
    assert seen["encoder.2"] == (6, 3, 3, 2)
    attention = {name: type(module).__name__ for name, module in net.named_modules() if name.endswith("attention")}
    blocks = [attention[f"encoder.{level}{part}.attention"] for level in range(3) for part in ("", ".layers.0")]
    assert blocks == ["Identity", "Identity", "ChannelSE", "ChannelSE", "SpatialSE", "SpatialSE"]
    assert seen["encoder.1.attention"] == (8, 5, 6, 4)
    assert seen["encoder.1.layers.0.attention"] == (4, 5, 6, 4)


def test_convolutions_begin_as_the_authors_do_and_gates_as_torch_does():
    torch.manual_seed(0)
    net = DenisNet(1, 2, 3, layers=(1,), growth=48)
    convolve = net.encoder[0].layers[0].convolve.conv.weight
    assert convolve.std().item() == pytest.approx((2 / (27 * 48)) ** 0.5, rel=0.02)
    assert net.encoder[0].layers[0].attention.squeeze.weight.abs().max() <= 48**-0.5  # uniform


def test_dropout_drops_whole_channels_in_training_only():
    net = DenisNet(1, 2, 2, layers=(1, 1), dropout=0.5)
    torch.manual_seed(0)
    new = net.encoder[0].layers[0].convolve(torch.randn(4, 48, 6, 6)).flatten(2)
    assert 0 < (new == 0).all(2).float().mean() < 1
    assert torch.equal((new == 0).all(2), (new == 0).any(2))
    x = torch.randn(2, 1, 9, 8)
    assert torch.equal(net.eval()(x), net(x))


def test_a_single_voxel_can_be_judged_but_not_trained_on():
    net = DenisNet(1, 2, 3, layers=(1, 1), growth=4)
    x = torch.randn(1, 1, 2, 2, 2)
    with pytest.raises(UsageError, match="more than one voxel for batch normalisation"):
        net.train()(x)
    assert torch.isfinite(net.eval()(x)).all()
    assert net.train()(torch.randn(1, 1, 2, 3, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, r"`layers` and `growth` to be positive numbers, but got \[\] and 12"),
        ({"layers": (2, 0)}, r"`layers` and `growth` to be positive numbers, but got \[2, 0\]"),
        ({"growth": 0}, "but got .* and 0"),
        ({"compression": 0.0}, "`compression` to be above 0 and at most 1, but got 0.0"),
        ({"groups": 5}, "`groups` to divide the 48 channels that enter a grouped convolution and the 12"),
        ({"groups": 0}, "but got 0; choose another `width` or `growth`"),
        ({"split": True, "groups": 5}, "`groups` to divide the 48 channels that enter a grouped convolution and the 48"),
        ({"split": True, "width": 0}, "divide the 0 channels"),
        ({"strides": (2, 2, 2)}, "`strides` to be one number or 2 entries, but got 3"),
        ({"attention_at": ("skip",)}, "some of new_features, encoder"),
        ({"attention": ["cse", "cse"]}, "one name or 3 of them"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DenisNet(1, 2, 2, **options)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "relu6"])
def test_without_normalisation_a_layer_leaves_what_it_passes_on_as_it_is(activation):
    net = DenisNet(1, 2, 2, layers=(2, 1), growth=6, norm="none", activation=activation, attention="none")
    seen = []
    for layer in [module for module in net.modules() if type(module).__name__ == "DenseLayer"]:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[0].detach().clone())))
    net(torch.randn(2, 1, 16, 16))
    assert seen
    assert all(torch.equal(now, before) for now, before in seen)

"""MONAI's networks, whose names are those of published weights almost to the letter, stand in for files from the internet."""

import logging
import os
import pickle
import re

import pytest
import safetensors.torch
import torch
from monai.networks.nets import DenseNet as MonaiDenseNet
from monai.networks.nets import ResNet as MonaiResNet
from residual_oracle import unsettled

from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import build_network
from medseg_se.networks.densenet121 import DenseClassifier
from medseg_se.networks.pretrained import load_pretrained
from medseg_se.networks.resnet import ResNet

CHANNELS, LAYERS = [4, 6, 8, 10], [1, 2, 1, 1]
OWN = {"channels": CHANNELS, "blocks": LAYERS}
DENSE = {"blocks": (2, 3, 1), "growth": 4, "stem_channels": 6}
every_dims = pytest.mark.parametrize("dims", [2, 3])


def monai_resnet(dims=2, block="bottleneck", entering=3, classes=5, layers=LAYERS, **options):
    torch.manual_seed(1)
    options = {"conv1_t_stride": 2, "bias_downsample": False, **options}
    return unsettled(
        MonaiResNet(block, layers, CHANNELS, spatial_dims=dims, n_input_channels=entering, num_classes=classes, **options)
    )


def monai_densenet(dims=2, entering=3, classes=5):
    torch.manual_seed(1)
    network = MonaiDenseNet(dims, entering, classes, init_features=6, growth_rate=4, block_config=(2, 3, 1))
    names = {name: name.replace(".layers.", ".").replace("class_layers.out", "classifier") for name in network.state_dict()}
    return unsettled(network), {names[name]: tensor for name, tensor in network.state_dict().items()}


def write(path, state):
    torch.save(state, path)
    return path


def agrees(network, theirs, x, seen=None):
    """Tell whether both answer the same; `seen` is what the other network gets instead of `x`."""
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), theirs(x if seen is None else seen), rtol=1e-4, atol=1e-5)
    return True


def scans(dims, channels=3):
    torch.manual_seed(2)
    return torch.randn(2, channels, *(32, 35, 33)[:dims])


@every_dims
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_a_resnet_with_the_published_weights_is_the_published_network(tmp_path, dims, block):
    theirs = monai_resnet(dims, block)
    network = ResNet(3, 5, dims, **OWN, bottleneck=block == "bottleneck")
    result = load_pretrained(network, write(tmp_path / "weights.pth", theirs.state_dict()))
    assert agrees(network, theirs, scans(dims))
    assert set(result.loaded) == set(network.state_dict())
    assert (result.adapted, result.left, result.unused) == ((), (), ())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121"])
def test_the_published_names_of_whole_networks(name):
    with torch.device("meta"):
        network = build_network(name, 3, 1000, 2)
    names = network.pretrained_names()
    expected = {"resnet18": 20, "resnet34": 36, "resnet50": 53, "resnet101": 104, "resnet152": 155, "densenet121": 120}
    owned = [part for part, module in network.named_modules() if hasattr(module, "weight")]
    assert sorted(names.values()) == sorted(owned)
    assert sum("conv" in theirs or "downsample.0" in theirs for theirs in names) == expected[name]
    example = "features.denseblock4.denselayer16.conv2" if name == "densenet121" else "layer4.0.downsample.0"
    if name != "densenet121":
        assert names["layer4.1.conv2"] == "encoder.3.blocks.1.units.1.conv"
    assert example in names


@every_dims
@pytest.mark.parametrize("old", [False, True])
def test_a_densenet_with_the_published_weights_is_the_published_network(tmp_path, dims, old):
    theirs, state = monai_densenet(dims)
    if old:
        state = {re.sub(r"(denselayer.*)(norm|conv)([12])", r"\1\2.\3", name): tensor for name, tensor in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    network = DenseClassifier(3, 5, dims, **DENSE)
    result = load_pretrained(network, write(tmp_path / "weights.pth", state))
    torch.manual_seed(2)
    assert agrees(network, theirs, torch.randn(2, 3, *(32, 64, 48)[:dims]))
    assert set(result.loaded) == set(network.state_dict())
    assert not result.unused


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "model", "half", "old"])
def test_files_of_every_kind(tmp_path, kind):
    theirs = monai_resnet()
    state = theirs.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind in ("state_dict", "model"):
        write(path, {kind: {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3})
    elif kind == "half":
        theirs.load_state_dict(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        )
        write(path, {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()})
    else:  # before PyTorch 0.4.1 norms did not count batches
        write(path, {name: tensor for name, tensor in state.items() if "num_batches" not in name})
    network = ResNet(3, 5, 2, **OWN)
    result = load_pretrained(network, path)
    assert agrees(network, theirs, scans(2))
    assert (result.left, result.unused) == ((), ())
    assert all(tensor.dtype != torch.float16 for tensor in network.state_dict().values())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_grey_picture_in_every_channel_has_the_features_it_has_in_colour(tmp_path, channels):
    theirs = monai_resnet()
    network = ResNet(channels, 5, 2, **OWN)
    result = load_pretrained(network, write(tmp_path / "weights.pth", theirs.state_dict()))
    grey = scans(2, 1)
    assert agrees(network, theirs, grey.repeat(1, channels, 1, 1), grey.repeat(1, 3, 1, 1))
    assert result.adapted == ("stem.unit.conv.weight",)
    expected = theirs.conv1.weight.sum(1) / channels
    for channel in range(channels):
        torch.testing.assert_close(network.stem.unit.conv.weight[:, channel], expected)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_a_volume_of_equal_slices_has_the_features_of_the_slice(tmp_path, axis):
    theirs = monai_resnet(layers=LAYERS, block="basic", conv1_t_size=3, conv1_t_stride=1, no_max_pool=True)
    path = write(tmp_path / "weights.pth", theirs.state_dict())
    options = {**OWN, "bottleneck": False, "stem": "small"}
    flat, solid = ResNet(1, 5, 2, **options), ResNet(1, 5, 3, **options)
    load_pretrained(flat, path)
    result = load_pretrained(solid, path, depth_axis=axis)
    assert len(result.adapted) == sum(name.endswith("conv.weight") for name in solid.state_dict())
    picture = scans(2, 1)
    volume = picture.unsqueeze(axis % 3 + 2).repeat_interleave(9, axis % 3 + 2)
    with torch.no_grad():
        expected = flat.eval().encoder[0](flat.stem(picture))
        features = solid.eval().encoder[0](solid.stem(volume)).movedim(axis % 3 + 2, 0)
    for middle in features[3:-3]:  # of three kernels of three voxels none reaches over the ends from here
        torch.testing.assert_close(middle, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[0], expected, rtol=1e-2, atol=1e-2)


def test_other_classes_and_attention_stay_as_they_were_without_a_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    theirs = monai_resnet()
    network = ResNet(3, 2, 2, **OWN, attention="se", attention_options={"reduction": 2})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = load_pretrained(network, write(tmp_path / "weights.pth", theirs.state_dict()))
    state = network.state_dict()
    assert {name for name in result.left if "before_sum" not in name} == {"head.linear.weight", "head.linear.bias"}
    assert set(result.left) | set(result.loaded) == set(state)
    assert all(torch.equal(state[name], before[name]) for name in result.left)
    torch.testing.assert_close(state["encoder.1.blocks.1.units.2.conv.weight"], theirs.layer2[1].conv3.weight)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"weights.pth: {len(result.loaded)} tensors loaded" in record.getMessage()
    assert f"{len(result.left)} left as they were (" in record.getMessage()


def test_weights_of_a_deeper_network_are_loaded_with_a_warning(tmp_path, caplog):
    theirs = monai_resnet(layers=[1, 3, 1, 1])
    network = ResNet(3, 5, 2, **OWN)
    result = load_pretrained(network, write(tmp_path / "weights.pth", theirs.state_dict()))
    assert {name.rsplit(".", 2)[0] for name in result.unused} == {"layer2.2"}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "unused (layer2.2.conv1.weight" in record.getMessage()


def test_a_stem_of_another_size_is_left_with_a_warning(tmp_path, caplog):
    network = ResNet(3, 5, 2, **OWN, stem="small")
    result = load_pretrained(network, write(tmp_path / "weights.pth", monai_resnet().state_dict()))
    assert result.left == ("stem.unit.conv.weight",)
    assert "1 left as they were (stem.unit.conv.weight)" in caplog.text


def refused(network, path, error, message):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_pretrained(network, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    network = ResNet(3, 5, 2, **OWN)
    numbers = sum(tensor.numel() for name, tensor in network.state_dict().items() if not name.startswith("head"))
    expected = f"weights.pth to hold the {numbers:,} published numbers of this ResNet, with 'conv1.weight' as the first tensor"
    basic, (_, dense) = monai_resnet(block="basic").state_dict(), monai_densenet()
    refused(network, write(tmp_path / "weights.pth", basic), CheckpointError, expected)
    refused(network, write(tmp_path / "weights.pth", dense), CheckpointError, "0 of them, and 'features.conv0.weight'")
    refused(network, write(tmp_path / "weights.pth", {"epoch": 3}), CheckpointError, "but got no tensor")
    refused(network, write(tmp_path / "weights.pth", [torch.zeros(3)]), CheckpointError, "by name, but it holds a list")


def test_networks_without_published_weights_are_refused(tmp_path):
    path = write(tmp_path / "weights.pth", monai_resnet().state_dict())
    for name, options in (("unet", {"channels": (4, 4)}), ("resnet18v2", {"channels": (4, 4, 4, 4)})):
        network = build_network(name, 3, 5, 2, **options)
        refused(network, path, UsageError, f"published, but got {type(network).__name__}")
    with pytest.raises(UsageError, match="`depth_axis`"):
        load_pretrained(ResNet(3, 5, 2, **OWN), path, depth_axis=3)


def test_addresses_and_missing_files_are_refused(tmp_path):
    network = ResNet(3, 5, 2, **OWN)
    refused(network, "https://example.org/resnet50.pth", UsageError, "but got the address https://example.org/resnet50.pth")
    refused(network, tmp_path / "none.pth", CheckpointError, "No such file of weights")
    refused(network, tmp_path, CheckpointError, "No such file of weights")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, protocol):
    path, content = tmp_path / "weights.pth", {"conv1.weight": Trap(str(tmp_path / "sprung"))}
    if protocol == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    refused(ResNet(3, 5, 2, **OWN), path, CheckpointError, r"weights\.pth .* Nothing in it was executed")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_files_are_refused(tmp_path, name):
    path, state = tmp_path / name, monai_resnet().state_dict()
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        refused(ResNet(3, 5, 2, **OWN), path, CheckpointError, f"{name} ?.*damaged")


def test_a_single_wrong_byte_is_noticed(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.randn(64, 3, 7, 7)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(ResNet(3, 5, 2, **OWN), path, CheckpointError, "weights.pth: it is damaged")

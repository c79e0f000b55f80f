import pytest
import torch
from residual_oracle import Oracle, bend, unsettled, use_bends

from medseg_se.networks import build_network
from medseg_se.networks.resnetv2 import ResNetV2

TINY = {"channels": (4, 6), "blocks": (2, 2), "strides": (1, 2)}
BLOCKS = {"resnet18v2": (2, 2, 2, 2), "resnet34v2": (3, 4, 6, 3), "resnet50v2": (3, 4, 6, 3)}
BLOCKS |= {"resnet101v2": (3, 4, 23, 3), "resnet152v2": (3, 8, 36, 3)}
every_dims = pytest.mark.parametrize("dims", [2, 3])


def closed_form(blocks, wide):
    """Convolutions without biases; two numbers of a norm for each channel that enters a convolution but the first block's."""
    total, channels = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        leaving = 4 * width if wide else width
        for index in range(count):
            inner = channels * width + 9 * width**2 + width * leaving if wide else 9 * (channels * width + width**2)
            norms = 2 * (channels + (2 if wide else 1) * width) - (2 * 64 if stage == index == 0 else 0)
            changes = index == 0 and (stage > 0 or wide)
            total += inner + norms + (channels * leaving if changes else 0)
            channels = leaving
    return total + 2 * channels + 1000 * channels + 1000


@pytest.mark.parametrize("name", BLOCKS)
def test_as_many_parameters_as_the_closed_form(name):
    with torch.device("meta"):
        network = build_network(name, 3, 1000, 2)
    wide = int(name[6:-2]) >= 50
    assert sum(parameter.numel() for parameter in network.parameters()) == closed_form(BLOCKS[name], wide)


def test_fifty_layers_have_keras_parameters_but_for_its_biases():
    with torch.device("meta"):
        network = build_network("resnet50v2", 3, 1000, 2)
    learnt = sum(parameter.numel() for parameter in network.parameters())
    statistics = sum(buffer.numel() for name, buffer in network.named_buffers() if "running" in name)
    biases = 64  # of the first convolution, then of each block's last one, and of those that change the shape
    biases += sum(count * width for count, width in zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True))
    biases += 256 + 512 + 1024 + 2048
    assert learnt + biases + statistics == 25_613_800


@every_dims
@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("place", [None, *ResNetV2.places])
def test_answers_as_written_plainly(monkeypatch, dims, bottleneck, place):
    use_bends(monkeypatch)
    torch.manual_seed(0)
    attention = {"attention": "bend", "attention_at": (place,)} if place else {}
    network = unsettled(ResNetV2(2, 3, dims, **TINY, bottleneck=bottleneck, **attention))
    x = torch.randn(2, 2, *(18, 15, 13)[:dims])
    oracle = Oracle(network.state_dict(), dims, {place: bend})
    with torch.no_grad():
        torch.testing.assert_close(network(x), oracle.run(x, oracle.pre_activation, (1, 2), True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "relu6", "silu"])
def test_without_norms_the_activation_leaves_the_identity_path_alone(act):
    torch.manual_seed(0)
    network = ResNetV2(1, 2, 2, **TINY, bottleneck=False, norm="none", activation=act, stem="small").eval()
    x = torch.randn(1, 4, 6, 6)
    block, before = network.encoder[0].blocks[1], x.clone()
    with torch.no_grad():
        residual = block.units(block.pre(x))
        torch.testing.assert_close(block(x), before + residual)
    assert torch.equal(x, before)


@every_dims
def test_without_norms_it_answers_as_written_plainly(dims):
    torch.manual_seed(0)
    network = ResNetV2(2, 3, dims, **TINY, norm="none", stem="small").eval()
    x = torch.randn(1, 2, *(6, 5, 7)[:dims])
    oracle = Oracle(network.state_dict(), dims, {})
    with torch.no_grad():
        torch.testing.assert_close(network(x), oracle.run(x, oracle.pre_activation, (1, 2), False), rtol=1e-4, atol=1e-5)

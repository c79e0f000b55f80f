import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.mobilenext import MobileNeXt

every_dims = pytest.mark.parametrize("dims", [2, 3])
TABLE = [
    (2, 96, 1, 2),
    (6, 144, 1, 1),
    (6, 192, 3, 2),
    (6, 288, 3, 2),
    (6, 384, 4, 1),
    (6, 576, 4, 2),
    (6, 960, 3, 1),
    (6, 1280, 1, 1),
]
"""The paper's table 2, with as many blocks as the authors' code has: reduction, channels, blocks, stride."""
NARROW = {32: 16, 96: 32, 144: 32, 192: 48, 288: 64, 384: 96, 576: 160, 960: 208}
"""Channels of the bottleneck of the blocks that change the number of channels, by the number that enters."""
SMALL = {"channels": (8, 12, 16), "blocks": (1, 2, 1), "strides": (1, 2, 1), "reduction": 2, "stem_channels": 8}


def scan(dims, channels=3, size=(33, 45, 37), seed=0, batch=2):
    return torch.randn(batch, channels, *size[:dims], generator=torch.Generator().manual_seed(seed))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def rows():
    """For each block of the paper: channels in, bottleneck, channels out, stride."""
    entering = 32
    for reduction, channels, repeats, stride in TABLE:
        for repeat in range(repeats):
            narrow = channels // reduction if repeat else NARROW[entering]
            yield entering, narrow, channels, 1 if repeat else stride
            entering = channels


def blocks_with(network, slot):
    found = [name.removesuffix(f".{slot}") for name, module in network.named_modules() if name.endswith(f".{slot}")]
    return [name for name in found if not isinstance(network.get_submodule(f"{name}.{slot}"), nn.Identity)]


def paper(x, network):
    """The network written down operation by operation, on its tensors in their order."""
    tensors = [tensor for name, tensor in network.state_dict().items() if "num_batches" not in name]
    tensors.reverse()

    def unit(x, stride=1, groups=1):
        kernel, scale, shift, mean, variance = (tensors.pop() for _ in range(5))
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        x = convolve(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        return F.batch_norm(x, mean, variance, scale, shift)

    x = F.relu6(unit(x, 2))
    for entering, narrow, leaving, stride in rows():
        y = F.relu6(unit(x, groups=entering))
        y = unit(y)
        assert y.shape[1] == narrow
        y = F.relu6(unit(y))
        y = unit(y, stride, groups=leaving)
        x = x + y if stride == 1 and entering == leaving else y
    weight, bias = tensors.pop(), tensors.pop()
    assert not tensors
    return F.linear(x.flatten(2).mean(2), weight, bias)


@every_dims
def test_parameters_follow_the_table(dims):
    voxels = 3**dims
    expected = 3 * voxels * 32 + 2 * 32 + 1280 * 1000 + 1000
    for entering, narrow, leaving, _ in rows():
        expected += (voxels + 2) * (entering + leaving) + entering * narrow + 2 * narrow + narrow * leaving + 2 * leaving
    assert count(MobileNeXt(3, 1000, dims)) == expected
    if dims == 2:
        assert expected == 3_567_624


def test_coordinate_attention_costs_what_its_formula_says():
    cost = 0
    for entering, *_ in rows():
        hidden = max(8, entering // 32)
        cost += entering * hidden + hidden + 2 * hidden + 2 * (hidden * entering + entering)
    network = MobileNeXt(3, 1000, 2, attention="coordinate")
    assert count(network) == 3_567_624 + cost == 4_067_935


def test_width_keeps_multiples_of_8_and_narrows_no_features():
    def stages(width):
        network = MobileNeXt(1, 2, 2, width=width)
        ends = [name for name, _ in network.named_modules() if name.endswith("blocks.0.last_depthwise.conv")]
        return [network.get_submodule(name).get_parameter("weight").shape[0] for name in ends]

    assert stages(1.0) == [96, 144, 192, 288, 384, 576, 960, 1280]
    assert stages(0.5) == [48, 72, 96, 144, 192, 288, 480, 1280]
    assert stages(1.4) == [136, 200, 272, 400, 536, 808, 1344, 1792]


@every_dims
def test_gives_the_logits_of_the_paper(dims):
    torch.manual_seed(0)
    network = MobileNeXt(3, 4, dims).train()
    network(scan(dims, seed=1))  # moves running statistics
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(scan(dims)), paper(scan(dims), network), rtol=1e-4, atol=1e-4)


def test_attention_sits_in_the_blocks_that_have_its_place():
    slots = {"depthwise": "depthwise_attention", "residual": "before_sum", "after_sum": "after_sum", "encoder": "attention"}
    blocks = sum(repeats for _, _, repeats, _ in TABLE)
    expected = {"depthwise": blocks, "residual": blocks - len(TABLE), "after_sum": blocks, "encoder": len(TABLE)}
    for place, number in expected.items():
        network = MobileNeXt(1, 2, 2, attention="simam", attention_at=(place,))
        found = {slot: len(blocks_with(network, slot)) for slot in slots.values()}
        assert found == {slot: number if slot == slots[place] else 0 for slot in slots.values()}
    network = MobileNeXt(1, 2, 2, attention=["none", "none", "eca", "none"], attention_at=("encoder",))
    assert blocks_with(network, "attention") == ["encoder.2.0", "encoder.2.1"]  # 288 and 384 channels


@every_dims
def test_places_are_where_their_names_say(dims):
    everywhere = ("depthwise", "residual", "after_sum", "encoder")
    network = MobileNeXt(2, 3, dims, **SMALL, attention="cse", attention_at=everywhere).eval()
    block = network.get_submodule("encoder.1.0.blocks.1")
    seen = {}

    def record(name):
        return lambda module, inputs, output: seen.update({name: (inputs[0].clone(), output.clone())})

    for name in ("", "first_depthwise", "depthwise_attention", "reduce", "last_depthwise", "before_sum", "after_sum"):
        block.get_submodule(name).register_forward_hook(record(name))
    with torch.no_grad():
        network(scan(dims, 2))
    assert torch.equal(seen["first_depthwise"][0], seen[""][0])
    assert torch.equal(seen["depthwise_attention"][0], seen["first_depthwise"][1])
    assert torch.equal(seen["reduce"][0], seen["depthwise_attention"][1])
    assert torch.equal(seen["before_sum"][0], seen["last_depthwise"][1])
    assert torch.equal(seen["after_sum"][0], seen[""][0] + seen["before_sum"][1])
    assert torch.equal(seen[""][1], seen["after_sum"][1])


def test_a_bottleneck_is_at_most_six_times_narrower_than_its_output():
    network = MobileNeXt(1, 2, 2, channels=(96, 960), blocks=1, strides=1, reduction=8, stem_channels=32)
    narrow = [network.get_submodule(f"encoder.0.{stage}.blocks.0.reduce.conv").get_parameter("weight") for stage in (0, 1)]
    assert [len(weight) for weight in narrow] == [math.ceil(96 / 6 / 16) * 16, math.ceil(960 / 6 / 16) * 16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ()}, "`channels` to hold at least one"),
        ({"width": -1.0}, "above 0"),
        ({"blocks": (1, 2)}, "`blocks` to be one number or 3 entries"),
        ({"reduction": 0}, "`reduction` to be at least 1"),
        ({"attention": ["cse"] * 3}, "one name or 2 of them"),
        (
            {"attention": "cse", "attention_at": ("residual",), "blocks": 1, "channels": (12, 8, 12)},
            "depthwise, after_sum, encoder",
        ),
        ({"attention": "cse", "attention_at": ("skip",)}, "depthwise, residual, after_sum, encoder"),
    ],
)
def test_refuses_what_makes_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        build_network("mobilenext", 1, 2, 2, **{**SMALL, **options})


def test_one_voxel_is_refused_where_normalisation_would_erase_it():
    network = MobileNeXt(1, 2, 2, **SMALL).train()  # strides of 4 in all
    assert network(scan(2, 1, (5, 4), batch=1)).shape == (1, 2)
    with pytest.raises(UsageError, match="one voxel for batch normalisation"):
        network(scan(2, 1, (4, 4), batch=1))
    assert network.eval()(scan(2, 1, (1, 1), batch=1)).shape == (1, 2)

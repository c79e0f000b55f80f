import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.mobilenetv2 import MobileNetV2
from medseg_se.networks.pretrained import load_pretrained

every_dims = pytest.mark.parametrize("dims", [2, 3])
TABLE = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""The paper's table 2: expansion, channels, blocks, stride."""
SMALL = {"channels": (8, 12, 12), "blocks": (1, 2, 1), "strides": (1, 2, 1), "expansion": (1, 2, 2), "stem_channels": 8}


def scan(dims, channels=3, size=(33, 45, 37), seed=0, batch=2):
    return torch.randn(batch, channels, *size[:dims], generator=torch.Generator().manual_seed(seed))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def blocks_with(network, slot):
    """Paths of the blocks whose `slot` holds attention."""
    found = [name.removesuffix(f".{slot}") for name, module in network.named_modules() if name.endswith(f".{slot}")]
    return [name for name in found if not isinstance(network.get_submodule(f"{name}.{slot}"), nn.Identity)]


def published_weights(classes, seed=0):
    """Random weights under the published names, in the order of the paper's table."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def draw(name, *shape):
        fan = max(1, torch.Size(shape[1:]).numel())
        weights[name] = torch.randn(*shape, generator=generator) * (2 / fan) ** 0.5

    def draw_norm(name, channels):
        weights[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5

    def draw_unit(conv, norm, out, entering, kernel):
        draw(f"{conv}.weight", out, entering, kernel, kernel)
        draw_norm(norm, out)

    draw_unit("features.0.0", "features.0.1", 32, 3, 3)
    number, entering = 0, 32
    for expansion, channels, repeats, _ in TABLE:
        for _ in range(repeats):
            number, wide = number + 1, entering * expansion
            name = f"features.{number}.conv"
            place = 0
            if expansion > 1:
                draw_unit(f"{name}.0.0", f"{name}.0.1", wide, entering, 1)
                place = 1
            draw_unit(f"{name}.{place}.0", f"{name}.{place}.1", wide, 1, 3)
            draw_unit(f"{name}.{place + 1}", f"{name}.{place + 2}", channels, wide, 1)
            entering = channels
    draw_unit("features.18.0", "features.18.1", 1280, 320, 1)
    draw("classifier.1.weight", classes, 1280)
    weights["classifier.1.bias"] = torch.randn(classes, generator=generator)
    return weights


def paper(x, weights):
    """The network written down operation by operation, with weights under the published names."""
    convolve = F.conv2d if x.ndim == 4 else F.conv3d

    def unit(x, conv, norm, stride=1, groups=1):
        kernel = weights[f"{conv}.weight"]
        x = convolve(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, mean, variance, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    x = F.relu6(unit(x, "features.0.0", "features.0.1", 2))
    number = 0
    for expansion, channels, repeats, stride in TABLE:
        for repeat in range(repeats):
            number, step = number + 1, stride if repeat == 0 else 1
            name = f"features.{number}.conv"
            y, place = x, 0
            if expansion > 1:
                y, place = F.relu6(unit(x, f"{name}.0.0", f"{name}.0.1")), 1
            y = F.relu6(unit(y, f"{name}.{place}.0", f"{name}.{place}.1", step, y.shape[1]))
            y = unit(y, f"{name}.{place + 1}", f"{name}.{place + 2}")
            x = x + y if step == 1 and x.shape[1] == channels else y
    x = F.relu6(unit(x, "features.18.0", "features.18.1"))
    return F.linear(x.flatten(2).mean(2), weights["classifier.1.weight"], weights["classifier.1.bias"])


def test_has_the_published_numbers_of_parameters():
    assert count(MobileNetV2(3, 1000, 2)) == 3_504_872
    with_attention = MobileNetV2(3, 1000, 2, attention="coordinate", attention_options={"reduction": 32})
    assert count(with_attention) == 3_504_872 + 445_776
    assert count(MobileNetV2(3, 1000, 2, attention="coordinate")) == count(with_attention)
    counts = {width: count(MobileNetV2(3, 1000, 2, width=width)) for width in (0.35, 0.5, 0.75, 1.4)}
    assert counts == {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.4: 6_108_776}


@every_dims
def test_parameters_follow_the_table(dims):
    voxels, entering = 3**dims, 32
    expected = 2 * voxels * 32 + 2 * 32 + 320 * 1280 + 2 * 1280 + 1280 * 5 + 5
    for expansion, channels, repeats, _ in TABLE:
        for _ in range(repeats):
            wide = entering * expansion
            expected += (
                (entering * wide + 2 * wide) * (expansion > 1) + voxels * wide + 2 * wide + wide * channels + 2 * channels
            )
            entering = channels
    assert count(MobileNetV2(2, 5, dims)) == expected


def test_published_weights_give_the_logits_of_the_paper(tmp_path):
    weights = published_weights(classes=10)
    torch.save(weights, tmp_path / "weights.pth")
    network = MobileNetV2(3, 10, 2).eval()
    loaded = load_pretrained(network, tmp_path / "weights.pth")
    assert (loaded.left, loaded.unused, loaded.adapted) == ((), (), ())
    with torch.no_grad():
        torch.testing.assert_close(network(scan(2)), paper(scan(2), weights), rtol=1e-4, atol=1e-4)


def test_a_volume_gives_the_logits_of_the_paper():
    torch.manual_seed(0)
    network = MobileNetV2(3, 4, 3).train()
    network(scan(3, seed=1))  # moves running statistics
    weights = {
        f"{theirs}.{end}": tensor
        for theirs, ours in network.pretrained_names().items()
        for end, tensor in network.get_submodule(ours).state_dict().items()
    }
    assert len(weights) == len(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(scan(3)), paper(scan(3), weights), rtol=1e-4, atol=1e-4)


def test_attention_sits_in_the_blocks_that_have_its_place():
    expected = {"depthwise": 16, "residual": 10, "after_sum": 17, "encoder": 7}
    slots = {"depthwise": "depthwise_attention", "residual": "before_sum", "after_sum": "after_sum", "encoder": "attention"}
    for place, number in expected.items():
        network = MobileNetV2(1, 2, 2, attention="simam", attention_at=(place,))
        found = {slot: len(blocks_with(network, slot)) for slot in slots.values()}
        assert found == {slot: number if slot == slots[place] else 0 for slot in slots.values()}
    assert "encoder.0.0.blocks.0" not in blocks_with(MobileNetV2(1, 2, 2, attention="simam"), "depthwise_attention")


def test_a_level_is_a_resolution():
    network = MobileNetV2(1, 2, 2, attention=["none", "none", "none", "eca", "none"], attention_at=("after_sum",))
    found = blocks_with(network, "after_sum")
    assert found == [f"encoder.3.0.blocks.{block}" for block in range(4)] + [
        f"encoder.3.1.blocks.{block}" for block in range(3)
    ]


@every_dims
def test_places_are_where_their_names_say(dims):
    everywhere = ("depthwise", "residual", "after_sum", "encoder")
    network = MobileNetV2(2, 3, dims, **SMALL, attention="cse", attention_at=everywhere).eval()
    block = network.get_submodule("encoder.1.0.blocks.1")
    seen = {}

    def record(name):
        return lambda module, inputs, output: seen.update({name: (inputs[0].clone(), output.clone())})

    for name in ("", "depthwise", "depthwise_attention", "project", "before_sum", "after_sum"):
        block.get_submodule(name).register_forward_hook(record(name))
    with torch.no_grad():
        network(scan(dims, 2))
    assert torch.equal(seen["depthwise_attention"][0], seen["depthwise"][1])
    assert seen["depthwise"][1].amin() >= 0
    assert torch.equal(seen["project"][0], seen["depthwise_attention"][1])
    assert torch.equal(seen["before_sum"][0], seen["project"][1])
    assert torch.equal(seen["after_sum"][0], seen[""][0] + seen["before_sum"][1])
    assert torch.equal(seen[""][1], seen["after_sum"][1])


@every_dims
def test_maps_computed_anew_in_training_change_no_gradient(dims):
    gradients = []
    for watched in (False, True):  # a watched unit keeps its map
        torch.manual_seed(0)
        network = MobileNetV2(2, 3, dims, **SMALL, dropout=0.0, attention="scse").train()
        for name, module in network.named_modules():
            if watched and name.endswith(".depthwise"):
                module.register_forward_hook(lambda module, inputs, output: None)
        network(scan(dims, 2)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for computed, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(computed, kept, rtol=1e-4, atol=1e-6)


@every_dims
def test_strides_may_differ_between_axes(dims):
    strides = (1, (1, 2, 2)[-dims:], (1, 2, 2)[-dims:])
    network = MobileNetV2(
        2, 3, dims, **{**SMALL, "strides": strides}, stem_stride=(1, 2, 2)[-dims:], kernel_size=(1, 3, 3)[-dims:]
    )
    sizes = []
    network.get_submodule("encoder.2").register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
    network.eval()(scan(dims, 2, size=(17, 18, 19)[-dims:]))
    assert sizes == [torch.Size((17, 3, 3)[-dims:])]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ()}, "`channels` to hold at least one"),
        ({"channels": (8, 0, 8)}, "above 0"),
        ({"width": 0}, "above 0"),
        ({"blocks": (1, 2)}, "`blocks` to be one number or 3 entries"),
        ({"blocks": (1, 0, 1)}, "`blocks` to be at least 1"),
        ({"expansion": 0}, "`expansion` to be at least 1"),
        ({"strides": (1, 0, 2)}, "`strides` to be a positive"),
        ({"stem_stride": 0}, "`stem_stride` to be a positive"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"attention": ["cse"] * 3}, "one name or 2 of them"),
        ({"attention": "cse", "expansion": 1}, "residual, after_sum, encoder"),
        (
            {"attention": "cse", "attention_at": ("residual",), "blocks": 1, "channels": (12, 8, 12)},
            "depthwise, after_sum, encoder",
        ),
    ],
)
def test_refuses_what_makes_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        build_network("mobilenetv2", 1, 2, 2, **{**SMALL, **options})


def test_one_voxel_is_refused_where_normalisation_would_erase_it():
    network = MobileNetV2(1, 2, 2, **SMALL).train()  # strides of 4 in all
    assert network(scan(2, 1, (5, 4), batch=1)).shape == (1, 2)
    assert network(scan(2, 1, (4, 4), batch=2)).shape == (2, 2)
    with pytest.raises(UsageError, match="one voxel for batch normalisation"):
        network(scan(2, 1, (4, 4), batch=1))
    assert network.eval()(scan(2, 1, (1, 1), batch=1)).shape == (1, 2)
    with pytest.raises(UsageError, match="one voxel for instance normalisation"):
        MobileNetV2(1, 2, 2, **SMALL, norm="instance").eval()(scan(2, 1, (4, 4)))

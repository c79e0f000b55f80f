import pytest
import torch
from torch.nn import functional as F

from medseg_se.attention import build_attention
from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.inception import GOOGLENET, Inception, InceptionModule

every_dims = pytest.mark.parametrize("dims", [2, 3])
WIDTHS = (4, 3, 6, 2, 5, 7)
SMALL = {"modules": ((WIDTHS,), (WIDTHS, (3, 2, 4, 2, 4, 5))), "stem_channels": (4, 4, 8)}


def scan(dims, channels=3, size=(33, 45, 37), seed=0, batch=2):
    return torch.randn(batch, channels, *size[:dims], generator=torch.Generator().manual_seed(seed))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def convolutions(dims, in_channels, modules):
    """For each convolution of GoogLeNet: channels in, channels out, voxels of its kernel."""
    yield in_channels, 64, 7**dims
    yield 64, 64, 1
    yield 64, 192, 3**dims
    entering = 192
    for one, before_three, three, before_five, five, after_pool in modules:
        yield entering, one, 1
        yield entering, before_three, 1
        yield before_three, three, 3**dims
        yield entering, before_five, 1
        yield before_five, five, 5**dims
        yield entering, after_pool, 1
        entering = one + three + five + after_pool


def unit(x, tensors, stride=1):
    kernel, scale, shift, mean, variance = (tensors.pop(0) for _ in range(5))
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    x = convolve(x, kernel, None, stride, kernel.shape[-1] // 2)
    return F.relu(F.batch_norm(x, mean, variance, scale, shift))


def pool(x, stride):
    return (F.max_pool2d if x.ndim == 4 else F.max_pool3d)(x, 3, stride, 1)


def joined(x, tensors):
    """An inception module written down operation by operation, on its tensors in their order."""
    one = unit(x, tensors)
    three = unit(unit(x, tensors), tensors)
    five = unit(unit(x, tensors), tensors)
    return torch.cat([one, three, five, unit(pool(x, 1), tensors)], 1)


def tensors_of(network):
    return [tensor for name, tensor in network.state_dict().items() if "num_batches" not in name]


@every_dims
def test_parameters_follow_the_table(dims):
    modules = [widths for stage in GOOGLENET for widths in stage]
    table = list(convolutions(dims, 3, modules))
    kernels = sum(entering * leaving * voxels for entering, leaving, voxels in table)
    channels = sum(leaving for _, leaving, _ in table)
    classifier = 1024 * 1000 + 1000
    assert count(Inception(3, 1000, dims)) == kernels + 2 * channels + classifier
    assert count(Inception(3, 1000, dims, norm="none")) == kernels + channels + classifier  # biases instead
    if dims == 2:
        assert kernels + channels + classifier == 6_998_552  # as published for GoogLeNet without auxiliary classifiers
        assert kernels + 2 * channels + classifier == 7_005_832


def test_squeeze_and_excitation_costs_what_its_formula_says():
    plain, widths = count(Inception(3, 1000, 2)), (256, 480, 512, 512, 512, 528, 832, 832, 1024)
    assert count(Inception(3, 1000, 2, attention="se")) - plain == sum(2 * width * (width // 16) for width in widths)


@every_dims
def test_a_module_is_that_of_the_figure(dims):
    torch.manual_seed(0)
    attention = build_attention("cse", 22, dims)
    module = InceptionModule(3, WIDTHS, dims, attention).train()
    assert module.out_channels == 22
    module(scan(dims, seed=1))  # moves running statistics
    module.eval()
    with torch.no_grad():
        expected = attention(joined(scan(dims), tensors_of(module)))
        torch.testing.assert_close(module(scan(dims)), expected, rtol=1e-4, atol=1e-5)


@every_dims
def test_the_network_is_that_of_the_table(dims):
    torch.manual_seed(0)
    network = Inception(3, 4, dims, **SMALL).train()
    network(scan(dims, seed=1))
    network.eval()
    tensors = tensors_of(network)
    with torch.no_grad():
        x = pool(unit(scan(dims), tensors, 2), 2)
        x = unit(unit(x, tensors), tensors)
        for stage in SMALL["modules"]:
            x = pool(x, 2)
            for _ in stage:
                x = joined(x, tensors)
        expected = F.linear(x.flatten(2).mean(2), *tensors)
        torch.testing.assert_close(network(scan(dims)), expected, rtol=1e-4, atol=1e-5)


def test_attention_follows_modules_or_stages_level_by_level():
    def places(**options):
        network = Inception(1, 2, 2, **SMALL, attention_options={"reduction": 2}, **options)
        return {name.partition(".attention")[0] for name in network.state_dict() if ".attention." in name}

    modules = {"encoder.0.blocks.0", "encoder.1.blocks.0", "encoder.1.blocks.1"}
    assert places(attention="cse") == modules
    assert places(attention="cse", attention_at=("encoder",)) == {"encoder.0", "encoder.1"}
    assert places(attention=["none", "cse"], attention_at=("module", "encoder")) == {*modules, "encoder.1"} - {
        "encoder.0.blocks.0"
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules": ()}, "`modules` to hold stages"),
        ({"modules": ((WIDTHS,), ())}, "`modules` to hold stages"),
        ({"modules": (((1, 2, 3),),)}, "six positive numbers"),
        ({"modules": (((1, 2, 3, 4, 0, 6),),)}, "six positive numbers"),
        ({"stem_channels": (4, 4)}, "`stem_channels` to be three"),
        ({"attention": ["cse"] * 3}, "one name or 2 of them"),
        ({"attention": "cse", "attention_at": ("residual",)}, "module, encoder"),
    ],
)
def test_refuses_what_makes_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        build_network("inception", 1, 2, 2, **{**SMALL, **options})


def test_one_voxel_is_refused_where_normalisation_would_erase_it():
    network = Inception(1, 2, 2, **SMALL).train()  # strides of 16 in all
    assert network(scan(2, 1, (17, 16), batch=1)).shape == (1, 2)
    with pytest.raises(UsageError, match="one voxel for batch normalisation"):
        network(scan(2, 1, (16, 16), batch=1))
    assert network.eval()(scan(2, 1, (1, 1), batch=1)).shape == (1, 2)

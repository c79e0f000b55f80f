import pytest
import torch
from residual_oracle import Oracle, bend, unsettled, use_bends

from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.classifier import ClassificationHead
from medseg_se.networks.resnet import ResNet, resnet18, resnet50

TINY = {"channels": (4, 6), "blocks": (1, 2), "strides": (1, 2)}
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
ADDED = {
    ("se", ("reduction", 16), ("bias", False)): 2_514_944,
    ("fca", ("selection", "top"), ("frequencies", 16)): 2_514_944,
    ("coordinate", ("reduction", 32)): 1_917_832,
    ("simam",): 0,
    ("eca",): 86,
}
"""What blocks add to ResNet-50 as their authors place them; ECA with its paper's rule for the kernel."""
every_dims = pytest.mark.parametrize("dims", [2, 3])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_as_many_parameters_as_published(name, expected):
    with torch.device("meta"):
        assert parameters(build_network(name, 3, 1000, 2)) == expected


@pytest.mark.parametrize(("block", "expected"), ADDED.items(), ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_attention_adds_what_is_published_where_it_sits_by_default(block, expected):
    name, *options = block
    with torch.device("meta"):
        network = resnet50(3, 1000, 2, attention=name, attention_options=dict(options))
    assert parameters(network) == PARAMETERS["resnet50"] + expected


@every_dims
@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("place", [None, *ResNet.places])
def test_answers_as_written_plainly(monkeypatch, dims, bottleneck, place):
    use_bends(monkeypatch)
    torch.manual_seed(0)
    attention = {"attention": "bend", "attention_at": (place,)} if place else {}
    network = unsettled(ResNet(2, 3, dims, **TINY, bottleneck=bottleneck, **attention))
    x = torch.randn(2, 2, *(18, 15, 13)[:dims])
    oracle = Oracle(network.state_dict(), dims, {place: bend})
    with torch.no_grad():
        torch.testing.assert_close(network(x), oracle.run(x, oracle.post_activation, (1, 2), True), rtol=1e-4, atol=1e-5)


def test_a_small_stem_keeps_the_size_and_strides_go_along_their_axes():
    network = ResNet(1, 2, 3, channels=(4, 4, 4), blocks=1, strides=(1, (1, 2, 2), 2), stem="small", bottleneck=False).eval()
    x = torch.randn(1, 1, 5, 9, 8)
    sizes = []
    x = network.stem(x)
    for stage in network.encoder:
        x = stage(x)
        sizes.append(tuple(x.shape[2:]))
    assert sizes == [(5, 9, 8), (5, 5, 4), (3, 3, 2)]
    pooled = ResNet(1, 2, 2, channels=(4,), blocks=1, strides=1).eval()
    assert pooled.stem(torch.randn(1, 1, 21, 16)).shape[2:] == (6, 4)


def test_dropout_drops_whole_means_in_training():
    head = ClassificationHead(64, 64, 0.5)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(64))
        head.linear.bias.zero_()
    torch.manual_seed(0)
    assert set(head(torch.ones(8, 64, 3, 3)).unique().tolist()) == {0.0, 2.0}
    assert head.eval()(torch.ones(8, 64, 3, 3)).unique().tolist() == [1.0]


@every_dims
def test_trains_on_one_scan_unless_a_single_voxel_is_left_of_it(dims):
    for norm, training, batch, size, refused in (
        ("batch", True, 1, 8, True),
        ("batch", True, 2, 8, False),
        ("batch", True, 1, 9, False),
        ("batch", False, 1, 8, False),
        ("instance", False, 2, 8, True),
        ("instance", False, 1, 9, False),
        ("group", True, 1, 8, False),
    ):
        network = ResNet(1, 2, dims, **TINY, norm=norm).train(training)
        x = torch.randn(batch, 1, *[size] * dims)
        if refused:
            with pytest.raises(UsageError, match=f"more than one voxel for {norm}"):
                network(x)
        else:
            assert network(x).isfinite().all()
    assert ResNet(1, 2, dims, **TINY).eval()(torch.randn(1, 1, *[1] * dims)).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, "`channels` to be positive numbers"),
        ({"channels": (4, 0, 4, 4)}, "`channels` to be positive numbers"),
        ({"blocks": 0}, "`blocks` to be at least 1"),
        ({"blocks": (1, 1)}, "`blocks` to be one number or 4 entries"),
        ({"strides": (1, 2)}, "`strides` to be one number or 4 entries"),
        ({"strides": (1, 2, 2, 0)}, "`strides` to be a positive whole number"),
        ({"stem": "poled"}, "Did you mean 'pooled'"),
        ({"dropout": 1.0}, "`dropout` to be at least 0 and below 1"),
        ({"attention": "cse", "attention_at": ("decoder",)}, "`attention_at` to hold some of encoder, residual"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        resnet18(1, 2, 2, **{"blocks": (1, 1, 1, 1), **options})

import pytest
import torch
import torch.nn.functional as F
from residual_oracle import bend, unsettled, use_bends

from medseg_se.errors import UsageError
from medseg_se.networks import build_network
from medseg_se.networks.densenet121 import DenseClassifier, densenet121

TINY = {"blocks": (2, 3, 1), "growth": 4, "stem_channels": 6}
every_dims = pytest.mark.parametrize("dims", [2, 3])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def closed_form(entering, classes, dims, blocks, growth, channels, compression):
    """Every convolution without bias, and two numbers of a norm for each channel that enters one but the first."""
    total = 7**dims * entering * channels + 2 * channels
    for level, count in enumerate(blocks):
        for _ in range(count):
            total += 2 * channels + 4 * growth * channels + 2 * 4 * growth + 3**dims * 4 * growth * growth
            channels += growth
        total += 2 * channels
        if level < len(blocks) - 1:
            kept = int(channels * compression)
            total, channels = total + channels * kept, kept
    return total + channels * classes + classes


@pytest.mark.parametrize(
    ("name", "expected"), [("densenet121", 7_978_856), ("densenet169", 14_149_480), ("densenet201", 20_013_928)]
)
def test_as_many_parameters_as_published(name, expected):
    with torch.device("meta"):
        assert parameters(build_network(name, 3, 1000, 2)) == expected


@every_dims
def test_parameters_with_other_growth_and_compression(dims):
    options = {"blocks": (2, 3, 1), "growth": 5, "stem_channels": 7, "compression": 0.3}
    network = DenseClassifier(2, 3, dims, **options)
    assert parameters(network) == closed_form(2, 3, dims, (2, 3, 1), 5, 7, 0.3)


class Plain:
    """The network written a second time from the tensors of its state, in evaluation."""

    def __init__(self, state, dims, place):
        self.state, self.place = state, place
        self.convolve, self.max = ((F.conv2d, F.max_pool2d), (F.conv3d, F.max_pool3d))[dims - 2]
        self.dims = dims

    def at(self, place, x):
        return bend(x) if place == self.place else x

    def norm(self, name, x):
        tensors = (self.state[f"{name}.{end}"] for end in ("running_mean", "running_var", "weight", "bias"))
        mean, spread, weight, bias = (tensor.reshape(-1, *[1] * self.dims) for tensor in tensors)
        return ((x - mean) / (spread + 1e-5).sqrt() * weight + bias).relu()

    def unit(self, name, x):
        weight = self.state[f"{name}.conv.weight"]
        return self.convolve(self.norm(f"{name}.pre.norm", x), weight, padding=weight.shape[-1] // 2)

    def halved(self, x):
        """Means of pairs along each axis; the last voxel of an odd axis stays as it is."""
        for axis in range(2, x.ndim):
            pairs = x.split(2, dim=axis)
            x = torch.cat([pair.mean(dim=axis, keepdim=True) for pair in pairs], dim=axis)
        return x

    def run(self, x, blocks):
        x = self.convolve(x, self.state["stem.unit.conv.weight"], stride=2, padding=3)
        x = self.max(self.norm("stem.unit.norm", x), 3, 2, 1)
        for level, count in enumerate(blocks):
            maps = [x]
            for index in range(count):
                layer = f"encoder.{level}.block.layers.{index}"
                maps.append(self.unit(f"{layer}.grow", self.unit(f"{layer}.narrow", torch.cat(maps, 1))))
            x = self.at("encoder", torch.cat(maps, 1))
            if level < len(blocks) - 1:
                x = self.at("transition", self.halved(self.unit(f"encoder.{level}.transition.unit", x)))
        means = self.norm("head.before.norm", x).flatten(2).mean(-1)
        return F.linear(means, self.state["head.linear.weight"], self.state["head.linear.bias"])


@every_dims
@pytest.mark.parametrize("place", [None, *DenseClassifier.places])
@pytest.mark.parametrize("size", [(32, 48, 32), (37, 42, 25)])
def test_answers_as_written_plainly(monkeypatch, dims, place, size):
    use_bends(monkeypatch)
    torch.manual_seed(0)
    attention = {"attention": "bend", "attention_at": (place,)} if place else {}
    network = unsettled(DenseClassifier(2, 3, dims, **TINY, **attention))
    x = torch.randn(2, 2, *size[:dims])
    with torch.no_grad():
        expected = Plain(network.state_dict(), dims, place).run(x, TINY["blocks"])
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_trains_on_one_scan_unless_a_single_voxel_is_left_of_it():
    network = DenseClassifier(1, 2, 2, **TINY)
    with pytest.raises(UsageError, match=r"more than one voxel for batch .* under strides of \(16, 16\)"):
        network(torch.randn(1, 1, 16, 16))
    assert network(torch.randn(1, 1, 16, 17)).isfinite().all()
    assert network.eval()(torch.randn(1, 1, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, "`blocks`, `growth` and `stem_channels` to be positive"),
        ({"growth": 0}, "`blocks`, `growth` and `stem_channels` to be positive"),
        ({"blocks": (1, 0)}, "`blocks`, `growth` and `stem_channels` to be positive"),
        ({"compression": 0.0}, "`compression` to be above 0"),
        ({"compression": 1.5}, "`compression` to be above 0"),
        ({"attention": "cse", "attention_at": ("residual",)}, "`attention_at` to hold some of encoder, transition"),
        ({"attention": ("cse", "none")}, "`attention` to be one name or 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        densenet121(1, 2, 2, **options)

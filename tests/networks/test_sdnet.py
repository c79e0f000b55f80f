import pytest
import torch
from torch.nn import functional as F

from medseg_se.networks.sdnet import SDNet, sdnet_roy2018

every_dims = pytest.mark.parametrize("dims", [2, 3])


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kernel", "attention", "expected"),
    [
        (7, "none", 2_415_466),
        (7, "sse", 2_416_051),
        (7, "scse", 2_453_779),
        (5, "none", 1_234_282),
        (5, "sse", 1_234_867),
        (5, "scse", 1_272_595),
    ],
)
def test_number_of_parameters_of_the_authors_network(kernel, attention, expected):
    assert count(sdnet_roy2018(1, 33, 2, kernel_size=kernel, attention=attention)) == expected


def test_the_preset_is_the_papers_network():
    net = sdnet_roy2018(1, 33, 2)
    assert count(net) == 2_415_466
    assert [len(net.encoder), len(net.decoder)] == [4, 4]
    assert all(level.block.conv.kernel_size == (7, 7) for level in (*net.encoder, *net.decoder))


@pytest.mark.parametrize("kernel", [3, 5])
def test_number_of_parameters_in_3d_by_a_closed_form(kernel):
    # A block has its convolution with bias, one slope, and scale and shift of the normalisation.
    blocks = [(2, 4), (4, 6), (6, 8), (12, 6), (8, 4)]
    expected = sum(entering * leaving * kernel**3 + leaving + 1 + 2 * leaving for entering, leaving in blocks)
    expected += (8 * 6 + 6) + (6 * 4 + 4)  # between levels of different widths
    expected += 4 * 3 + 3
    assert count(SDNet(2, 3, 3, channels=(4, 6, 8), kernel_size=kernel)) == expected


def block(x, weights, prefix):
    """Convolution, PReLU, batch normalisation as in evaluation."""
    conv = F.conv2d if x.ndim == 4 else F.conv3d
    part = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    x = conv(x, part["conv.weight"], part["conv.bias"], padding=part["conv.weight"].shape[-1] // 2)
    x = F.prelu(x, part["act.weight"])
    return F.batch_norm(x, part["norm.running_mean"], part["norm.running_var"], part["norm.weight"], part["norm.bias"])


@every_dims
def test_network_is_the_papers_figure_written_out_with_torchs_unpooling(dims):
    torch.manual_seed(0)
    net = SDNet(2, 3, dims, channels=(4, 4, 4))
    for _ in range(2):
        net(torch.randn(2, 2, *(16,) * dims))  # moves the statistics of the normalisations
    net.eval()
    weights = net.state_dict()
    pool, back, conv = ((F.max_pool2d, F.max_unpool2d, F.conv2d), (F.max_pool3d, F.max_unpool3d, F.conv3d))[dims - 2]
    x = torch.randn(2, 2, *(8, 12, 16)[:dims])
    first = block(x, weights, "encoder.0.block.")
    y, first_indices = pool(first, 2, return_indices=True)
    second = block(y, weights, "encoder.1.block.")
    y, second_indices = pool(second, 2, return_indices=True)
    y = block(y, weights, "bottleneck.")
    y = block(torch.cat([second, back(y, second_indices, 2)], 1), weights, "decoder.0.block.")
    y = block(torch.cat([first, back(y, first_indices, 2)], 1), weights, "decoder.1.block.")
    expected = conv(y, weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)

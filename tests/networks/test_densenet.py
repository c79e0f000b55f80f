import pytest
import torch
from torch.nn import functional as F

from medseg_se.networks.densenet import DenseNet, densenet_roy2018, quicknat

every_dims = pytest.mark.parametrize("dims", [2, 3])


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_number_of_parameters_of_the_authors_network():
    assert count(densenet_roy2018(1, 28, 2)) == 3_516_971
    # scSE in the 8 blocks of encoder and decoder, none in the bottleneck
    assert count(densenet_roy2018(1, 28, 2, attention="scse")) == 3_516_971 + 8 * (2 * 64 * 32 + 32 + 64 + 64 + 1)
    assert count(quicknat(1, 28, 2)) == 3_516_971


@pytest.mark.parametrize("preset", [densenet_roy2018, quicknat])
def test_presets_are_the_published_networks(preset):
    net = preset(1, 28, 2)
    blocks = [level.block for level in (*net.encoder, *net.decoder)]
    assert len(blocks) == 8
    assert all([conv.kernel_size for conv in block.convs] == [(5, 5), (5, 5), (1, 1)] for block in blocks)
    assert {block.dropout.p for block in blocks} == {0.2}
    assert isinstance(net.bottleneck.dropout, torch.nn.Identity)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_number_of_parameters_in_3d_by_a_closed_form(kernel, bias):
    def block(entering, width):
        volumes = ((entering, kernel**3), (entering + width, kernel**3), (entering + 2 * width, 1))
        return 1 + sum(2 * joined + joined * width * volume + bias * width for joined, volume in volumes)

    expected = block(2, 4) + block(4, 6) + block(6, 8) + block(12, 6) + block(8, 4)
    expected += (8 * 6 + 6) + (6 * 4 + 4)  # between levels of different widths
    expected += 4 * 3 + 3
    assert count(DenseNet(2, 3, 3, channels=(4, 6, 8), kernel_size=kernel, conv_bias=bias)) == expected


def block(x, weights, prefix):
    """Three times batch normalisation as in evaluation, PReLU with the same slope, convolution."""
    conv = F.conv2d if x.ndim == 4 else F.conv3d
    part = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    known = [x]
    for step in range(3):
        y = torch.cat(known, 1)
        running = part[f"norms.{step}.running_mean"], part[f"norms.{step}.running_var"]
        y = F.batch_norm(y, *running, part[f"norms.{step}.weight"], part[f"norms.{step}.bias"])
        kernel = part[f"convs.{step}.weight"]
        known.append(conv(F.prelu(y, part["act.weight"]), kernel, part[f"convs.{step}.bias"], padding=kernel.shape[-1] // 2))
    return known[-1]


@every_dims
def test_network_is_the_papers_figure_written_out_with_torchs_unpooling(dims):
    torch.manual_seed(0)
    net = DenseNet(2, 3, dims, channels=(4, 4, 4), conv_bias=True)
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


@every_dims
def test_without_normalisation_convolutions_have_their_bias_and_the_input_stays(dims):
    torch.manual_seed(0)
    net = DenseNet(2, 3, dims, channels=(4, 4), norm="none")
    assert all(conv.bias is not None for conv in net.bottleneck.convs)
    assert all(conv.bias is None for conv in DenseNet(2, 3, dims, channels=(4, 4)).bottleneck.convs)
    x = torch.randn(1, 2, *(6,) * dims)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)


def test_biases_before_a_normalisation_change_nothing():
    torch.manual_seed(0)
    net = DenseNet(2, 3, 2, channels=(4, 4), conv_bias=True).train()
    x = torch.randn(2, 2, 8, 8)
    y = net(x)
    blocks = [net.encoder[0].block, net.bottleneck, net.decoder[0].block]
    with torch.no_grad():
        for part in blocks:
            for conv in part.convs[:2]:
                conv.bias.uniform_(-1, 1)
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)

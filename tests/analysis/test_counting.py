import pytest
import torch
from torch import nn

from medseg_se.analysis.counting import Counter, Work, count, insertion_points, parameters, streamed_bytes
from medseg_se.attention import build_attention
from medseg_se.networks import UNet


def meta(*shape):
    return torch.empty(shape, device="meta")


def counted(compute, *tensors):
    with Counter() as counter:
        compute(*tensors)
    return counter.work


def unet(attention, dims=3, **options):
    with torch.device("meta"):
        return UNet(1, 2, dims, channels=(4, 8, 16), attention=attention, **options)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv3d(4, 6, (1, 3, 5), stride=(1, 2, 1), padding=(0, 1, 2)), (2, 4, 5, 8, 7), 2 * (5 * 4 * 7) * 6 * 4 * 15),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 6, 7), 6 * 7 * 8 * 9),
        (nn.Conv1d(6, 4, 3, groups=2), (3, 6, 9), 3 * 7 * 4 * 3 * 3),
        (nn.ConvTranspose3d(4, 3, 2, stride=2), (1, 4, 3, 4, 5), 3 * 4 * 5 * 4 * 3 * 8),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
    ],
)
def test_convolutions_and_matrix_products_count_their_multiply_adds(layer, shape, macs):
    work = counted(layer.to("meta"), meta(*shape))
    assert (work.macs, work.elementwise) == (macs, 0)
    assert work.flops == 2 * macs


@pytest.mark.parametrize(
    ("compute", "elementwise", "numbers"),
    [
        (torch.relu, 60, 120),
        (lambda a: a.relu_(), 60, 120),
        (lambda a: a.mean((2, 3)), 60, 60 + 3),
        (lambda a: a * meta(1, 3, 1, 1), 60, 60 + 3 + 60),
        (lambda a: meta(1, 3, 1, 1) + meta(1, 1, 4, 5), 60, 3 + 20 + 60),
        (lambda a: a.sum() > 0, 60 + 1, 60 + 1 + 1 + 0.25),
        (lambda a: nn.functional.max_pool2d(a, 2), 60, 60 + 12 + 2 * 12),  # with the places of the maxima, in int64
        (lambda a: torch.cat([a, a]), 0, 60 + 60 + 120),
        (lambda a: a.clone(), 0, 120),
        (lambda a: a.fill_(1), 0, 60),
        (lambda a: meta(1, 3, 1, 1).expand(1, 3, 4, 5).clone(), 0, 3 + 60),
        (lambda a: a.flatten(1).unflatten(1, (3, 20))[:, 1:].mT, 0, 0),
        (lambda a: torch.empty_like(a), 0, 0),
    ],
)
def test_other_operations_count_one_per_number_and_views_nothing(compute, elementwise, numbers):
    assert counted(compute, meta(1, 3, 4, 5)) == Work(0, elementwise, int(4 * numbers))


def test_bytes_follow_the_type_of_the_numbers():
    assert counted(torch.relu, meta(10).to(torch.bfloat16)).moved == 2 * 2 * 10


def test_a_network_is_its_plain_self_and_its_blocks():
    plain, network, x = unet("none"), unet("scse"), meta(1, 1, 8, 8, 8)
    names = insertion_points(network, plain)
    assert names == [
        *(f"encoder.{level}.block.attention" for level in (0, 1)),
        "bottleneck.attention",
        *(f"decoder.{level}.block.attention" for level in (0, 1)),
    ]
    base, whole = count(plain, x), count(network, x, names)
    assert base.points == ()
    assert whole.parameters == sum(p.numel() for p in network.parameters())
    assert whole.parameters - base.parameters == sum(point.parameters for point in whole.points)
    assert whole.work - base.work == sum((point.work for point in whole.points), Work())
    assert [point.name for point in whole.points] == names
    assert [point.shape for point in whole.points] == [
        *((1, channels, *[size] * 3) for channels, size in ((4, 8), (8, 4), (16, 2), (8, 4), (4, 8)))
    ]
    assert base.sizes == ((8, 8, 8), (4, 4, 4), (2, 2, 2))
    assert [point.parameters for point in whole.points[:2]] == [
        parameters(build_attention("scse", channels, 3)) for channels in (4, 8)
    ]


def test_multiply_adds_of_a_whole_unet_in_closed_form():
    def block(entering, leaving, voxels):
        return 27 * voxels * (entering * leaving + leaving * leaving)

    encoder = block(1, 4, 512) + block(4, 8, 64) + block(8, 16, 8)
    decoder = 64 * 16 * 8 + block(16, 8, 64) + 512 * 8 * 4 + block(8, 4, 512)
    assert count(unet("none"), meta(1, 1, 8, 8, 8)).work.macs == encoder + decoder + 512 * 4 * 2


def test_a_skip_or_a_sum_is_an_insertion_point_too():
    network = unet("simam", residual=True, attention_at=["skip", "residual"])
    names = insertion_points(network, unet("none", residual=True))
    assert names == [
        *(f"encoder.{level}.{part}" for level in (0, 1) for part in ("block.blocks.0.before_sum", "skip")),
        *("bottleneck.blocks.0.before_sum", "decoder.0.block.blocks.0.before_sum", "decoder.1.block.blocks.0.before_sum"),
    ]


def test_counting_leaves_the_network_as_it_was():
    network = unet("scse", dropout=0.5)
    network.encoder.eval()
    modes = [module.training for module in network.modules()]
    first = count(network, meta(1, 1, 8, 8, 8), ["bottleneck.attention"])
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert count(network, meta(1, 1, 8, 8, 8), ["bottleneck.attention"]) == first


def test_hooks_go_even_when_the_network_fails():
    network = unet("scse")
    with pytest.raises(Exception, match="UNet"):
        count(network, meta(1, 3, 8, 8, 8), ["bottleneck.attention"])
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training


def test_a_block_counts_the_bytes_of_its_tiled_form():
    batch, channels, hidden, voxels = 2, 6, 3, 4 * 5
    x, numbers = meta(batch, channels, 4, 5), batch * channels * voxels
    block = build_attention("cse", channels, 2, reduction=2).to("meta")
    squeezed, weights = batch * channels, channels * hidden
    first = hidden + squeezed + weights + batch * hidden
    second = channels + batch * hidden + weights + squeezed
    gates = first + 2 * batch * hidden + second + 2 * squeezed
    means = squeezed + 2 * squeezed  # sums, then divided
    assert streamed_bytes(block, x) == 4 * (3 * numbers + means + gates + squeezed)
    assert count(block, x).work.moved == streamed_bytes(block, x)


@pytest.mark.parametrize(
    ("block", "passes"),
    [
        ("sse", 2),
        ("cse", 3),
        ("simam", 3),
        ("scse", 3),
        ("coordinate", 3),
        ("cbam", 4),
        ("max(cse,simam)", 4),
        ("cse+simam", 6),
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_block_reads_its_map_for_every_statistic_and_the_result_and_writes_it(block, passes, kind):
    x = torch.empty(1, 256, 64, 64, device="meta", dtype=kind)
    network = build_attention(block, 256, 2).to("meta", kind)
    maps = count(network, x).work.moved / (x.element_size() * x.numel())
    assert passes <= maps < passes + 0.9


def test_what_lies_between_statistics_and_gates_moves_too():
    x = meta(1, 256, 64, 64)
    block = build_attention("bam", 256, 2).to("meta")
    assert 4 + 5 * 16 / 256 < count(block, x).work.moved / (4 * x.numel()) < 4 + 30 * 16 / 256


def test_in_bfloat16_maps_take_half_the_bytes():
    network, x = unet("simam"), meta(1, 1, 16, 16, 16)
    full = count(network, x).work
    half = count(network.to(torch.bfloat16), x.to(torch.bfloat16)).work
    assert half.macs == full.macs
    assert half.moved == pytest.approx(full.moved / 2, rel=0.01)

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import nn

from medseg_se.errors import UsageError
from medseg_se.inference.streaming import tiled_logits
from medseg_se.inference.tiling import fitted_tile, gaussian_weights, tile_starts


def scan(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    """Two convolutions: what comes out at a voxel depends on where in its tile the voxel lies."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1)).eval()


@pytest.fixture
def network_2d():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).eval()


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8, 0.9])
def test_tiles_cover_an_axis_evenly_and_overlap_enough(overlap):
    for tile, length in itertools.product(range(1, 17), range(1, 60)):
        if length < tile:
            continue
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0
        assert starts[-1] == length - tile
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        longest = max(1, math.floor(round(tile * (1 - overlap), 6)))
        if gaps:
            assert max(gaps) <= longest
            assert max(gaps) - min(gaps) <= 1
        assert len(starts) == 1 + math.ceil((length - tile) / longest)


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5, float("nan")])
def test_an_overlap_that_makes_no_sense_is_refused(overlap):
    with pytest.raises(UsageError, match="`overlap` to be at least 0 and below 1"):
        tile_starts(20, 10, overlap)


def test_weights_are_a_gaussian_about_the_centre():
    weights = gaussian_weights((4, 7, 1))
    for i, j in itertools.product(range(4), range(7)):
        expected = math.exp(-0.5 * ((i - 1.5) / 0.5) ** 2) * math.exp(-0.5 * ((j - 3) / 0.875) ** 2)
        assert float(weights[i, j, 0]) == pytest.approx(max(expected, 1e-3), rel=1e-6)
    assert float(weights.min()) == pytest.approx(1e-3)


@pytest.mark.parametrize("tile", [(8, 8, 8), (5, 12, 1), (3, 4, 9)])
def test_weights_are_those_of_monai(tile):
    torch.testing.assert_close(gaussian_weights(tile), compute_importance_map(tile, "gaussian"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("shape", "overlap"), [((24, 16, 20), 0.5), ((20, 14, 8), 0.25), ((16, 24, 8), 0), ((11, 9, 10), 0.5)])
def test_where_tiles_lie_alike_the_result_is_that_of_monai(network, shape, overlap):
    image = scan(2, *shape)
    with torch.no_grad():
        expected = sliding_window_inference(image[None], (8, 8, 8), 3, network, overlap=overlap, mode="gaussian")[0]
    torch.testing.assert_close(tiled_logits(network, image, (8, 8, 8), overlap), expected, rtol=1e-5, atol=1e-5)


def test_a_scan_smaller_than_a_tile_is_treated_as_by_monai(network):
    image = scan(1, 3, 16, 7).repeat(2, 1, 1, 1)
    lowest = float(image.min())
    with torch.no_grad():
        expected = sliding_window_inference(
            image[None], (8, 8, 8), 1, network, overlap=0.5, mode="gaussian", padding_mode="constant", cval=lowest
        )[0]
    found = tiled_logits(network, image, (8, 8, 8))
    assert found.shape == (3, 3, 16, 7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_scan_smaller_than_a_tile_is_continued_with_its_lowest_intensity_per_channel():
    seen = []
    image = torch.stack([scan(4, 5, 6), scan(4, 5, 6, seed=1) + 10])
    tiled_logits(lambda tiles: seen.append(tiles) or tiles, image, (7, 5, 9))
    (tile,) = seen
    assert torch.equal(tile[0, :, 1:5, :, 1:7], image)
    for channel, wanted in zip(tile[0], image, strict=True):
        outside = torch.ones(7, 5, 9, dtype=torch.bool)
        outside[1:5, :, 1:7] = False
        assert (channel[outside] == wanted.min()).all()


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 17, 30), (3, 20, 8), (1, 1, 1)])
@pytest.mark.parametrize("overlap", [0, 0.3, 0.75])
def test_weights_cancel_out(shape, overlap):
    image = scan(2, *shape)
    found = tiled_logits(lambda tiles: tiles, image, (8, 6, 7), overlap)
    torch.testing.assert_close(found, image, rtol=1e-5, atol=1e-6)
    assert torch.equal(tiled_logits(torch.ones_like, image, (8, 6, 7), overlap), torch.ones_like(image))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_sees_slice_after_slice(network_2d, axis):
    image = scan(2, 9, 8, 10)
    tile = [9, 8, 10]
    tile[axis] = 1
    with torch.no_grad():
        slices = [network_2d(part[None])[0] for part in image.unbind(axis + 1)]
    found = tiled_logits(network_2d, image, tile, flat_axis=axis)
    torch.testing.assert_close(found, torch.stack(slices, dim=axis + 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_slides_within_slices_as_in_monai(network_2d, axis):
    image = scan(2, 12, 16, 20)
    tile = [8, 8, 8]
    tile[axis] = 1
    with torch.no_grad():
        slices = sliding_window_inference(image.movedim(axis + 1, 0), (8, 8), 4, network_2d, overlap=0.5, mode="gaussian")
    found = tiled_logits(network_2d, image, tile, batch=5, flat_axis=axis)
    torch.testing.assert_close(found, slices.movedim(0, axis + 1), rtol=1e-5, atol=1e-5)


def test_the_batch_size_does_not_matter(network):
    image = scan(2, 13, 9, 17)
    alone = tiled_logits(network, image, (8, 8, 8), batch=1)
    for batch in (2, 5, 100):
        sizes = []
        together = tiled_logits(lambda tiles, s=sizes: s.append(len(tiles)) or network(tiles), image, (8, 8, 8), batch=batch)
        assert max(sizes) <= batch
        assert sum(sizes) == 3 * 2 * 4
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_coarse_logits_are_summed_in_float32():
    image = scan(1, 20, 20, 20)
    found = tiled_logits(lambda tiles: tiles.bfloat16(), image, (8, 8, 8), overlap=0.75)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, image.bfloat16().float(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- fitted tiles


@pytest.mark.parametrize(
    ("shape", "tile", "expected"),
    [
        ((35, 50, 35), (32, 48, 32), (40, 64, 40)),  # a little longer than a tile: one instead of eight
        ((32, 48, 30), (32, 48, 32), (32, 48, 32)),  # no longer
        ((244, 202, 224), (96, 96, 96), (96, 96, 96)),  # much longer
        ((64, 40, 40), (32, 32, 32), (32, 40, 40)),  # twice as long
        ((200, 180, 60), (128, 128, 1), (224, 192, 1)),  # slices
    ],
)
def test_tiles_are_fitted_to_scans_that_are_a_little_larger(shape, tile, expected):
    assert fitted_tile(shape, tile) == expected


def test_a_fitted_tile_never_computes_more_and_its_lengths_are_few():
    def work(shape, tile):
        counts = [len(tile_starts(max(n, size), size, 0.25)) for n, size in zip(shape, tile, strict=True)]
        return np.prod(counts) * np.prod(tile)

    lengths = set()
    for length in range(20, 150):
        shape = (length, 50, 40)
        found = fitted_tile(shape, (40, 48, 40))
        assert work(shape, found) <= work(shape, (40, 48, 40))
        lengths.add(found[0])
    assert lengths <= {40, 56, 64, 72, 80}

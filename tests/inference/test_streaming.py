import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg_se.inference.asking import Asker
from medseg_se.inference.planes import Between, Plane, Slab, along
from medseg_se.inference.streaming import Sweep, logit_slabs, ring_bytes, tiled_logits
from medseg_se.inference.tiling import gaussian_weights, tile_starts

CPU = torch.device("cpu")


def network(tiles):
    """Two channels to three maps that depend on the neighbourhood and on the place within the tile."""
    blurred = F.avg_pool3d(tiles, 3, 1, 1)
    ramp = torch.linspace(0, 1, tiles.shape[-1]).expand_as(tiles[:, :1])
    return torch.cat([tiles[:, :1] * ramp, blurred[:, :1] - tiles[:, 1:], blurred[:, 1:] * 2], 1)


def scan(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32))


def unstreamed(image, tile, overlap):
    """All tiles added to one array of the scan's size, in float64."""
    starts = [tile_starts(length, size, overlap) for length, size in zip(image.shape[1:], tile, strict=True)]
    weights = gaussian_weights(tile).double()
    total, norm = torch.zeros(3, *image.shape[1:], dtype=torch.float64), torch.zeros(image.shape[1:], dtype=torch.float64)
    for corner in itertools.product(*starts):
        box = tuple(slice(s, s + n) for s, n in zip(corner, tile, strict=True))
        total[(slice(None), *box)] += network(image[(slice(None), *box)][None])[0].double() * weights
        norm[box] += weights
    return (total / norm).float()


def streamed(image, tile, overlap, axis, reverse, **options):
    """The slabs put together again, (maps, I, J, K)."""
    slabs = [slab.permute(2, 0, 1) for slab in logit_slabs(Asker(network), image, tile, overlap, axis, reverse, **options)]
    return torch.stack(slabs[::-1] if reverse else slabs, axis + 1)


# --------------------------------------------------------------------------------------------------------------------- slabs


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("overlap", "batch"), [(0.5, 1), (0.0, 2), (0.7, 3), (0.25, 50)])
def test_slabs_are_what_a_scan_computed_at_once_is(axis, reverse, overlap, batch):
    image, tile = scan(19, 14, 23), (8, 6, 9)
    found = streamed(image, tile, overlap, axis, reverse, batch=batch)
    torch.testing.assert_close(found, unstreamed(image, tile, overlap), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neither_the_batch_nor_the_direction_changes_a_bit_of_what_is_summed_in_one_order(axis):
    image, tile = scan(19, 14, 23), (8, 6, 9)
    alone = streamed(image, tile, 0.5, axis, False)
    for batch in (2, 5, 99):
        assert torch.equal(streamed(image, tile, 0.5, axis, False, batch=batch), alone)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_smaller_than_a_tile_comes_back_in_its_own_size(axis, reverse):
    image = scan(5, 14, 3)
    found = streamed(image, (8, 6, 9), 0.5, axis, reverse)
    assert found.shape == (3, 5, 14, 3)
    torch.testing.assert_close(found, streamed(image, (8, 6, 9), 0.5, 1, False), rtol=1e-5, atol=1e-6)


def test_half_precision_sums_agree_to_their_digits():
    image, tile = scan(19, 14, 23), (8, 6, 9)
    found = streamed(image, tile, 0.5, 2, False, kind=torch.float16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, unstreamed(image, tile, 0.5), rtol=4e-3, atol=4e-3)


def test_a_network_that_lays_out_channels_last_gives_the_same():
    image = scan(19, 14, 23)
    expected = tiled_logits(network, image, (8, 6, 9))
    found = tiled_logits(lambda tiles: network(tiles).contiguous(memory_format=torch.channels_last_3d), image, (8, 6, 9))
    assert torch.equal(found, expected)


def test_the_ring_is_as_thick_as_the_tiles_under_way_however_long_the_scan_is():
    for length in (200, 2000):
        assert Sweep.over((40, 30, length), (16, 16, 16), 0.5, axis=2).depth == 16
    assert Sweep.over((16, 16, 2000), (16, 16, 16), 0.5, axis=2, batch=4).depth == 16 + 3 * 8
    assert Sweep.over((64, 64, 2000), (64, 64, 1), 0.5, axis=2, batch=8).depth == 8
    assert ring_bytes((40, 30, 2000), Sweep.over((40, 30, 2000), (16, 16, 16), 0.5, 2), 100) == 16 * 40 * 30 * (100 + 1) * 4


def test_slabs_come_as_soon_as_no_later_tile_reaches_them():
    asked = []
    slabs = logit_slabs(Asker(lambda tiles: asked.append(1) or network(tiles)), scan(8, 6, 40), (8, 6, 8), 0.5, axis=2)
    for place, _ in enumerate(slabs):
        assert len(asked) == min(place // 4 + 1, 9)


# ---------------------------------------------------------------------------------------------------------- onto another grid


def places(old, new):
    return np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)


def interpolated(array, shape):
    """Linear interpolation along each of the first axes of an array in float64."""
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=False)):
        where = places(old, new)
        low = np.floor(where).astype(int)
        share = (where - low).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        high = np.minimum(low + 1, old - 1)
        array = array.take(low, axis) * (1 - share) + array.take(high, axis) * share
    return array


SHAPES = [((7, 9), (7, 9)), ((7, 9), (20, 31)), ((12, 5), (7, 3)), ((6, 8), (6, 19)), ((1, 8), (5, 4)), ((9, 1), (1, 1))]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_a_plane_is_resampled_linearly(old, new):
    maps = np.random.default_rng(0).normal(size=(*old, 4)).astype(np.float32)
    found = Plane(old, new, CPU).every(torch.from_numpy(maps))
    np.testing.assert_allclose(found.numpy(), interpolated(maps.astype(float), new), atol=1e-6)
    theirs = F.interpolate(torch.from_numpy(maps).permute(2, 0, 1)[None], size=new, mode="bilinear")[0].permute(1, 2, 0)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [*SHAPES, ((60, 50), (90, 120)), ((90, 60), (40, 40))])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_largest_map_is_that_of_the_interpolated_ones_bit_for_bit(old, new, smooth):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(4, *old, 5)).astype(np.float32)
    if smooth:  # a few large areas, as a trained network answers: most places are decided without interpolating
        centres = rng.uniform(0, max(old), size=(5, 3))
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in (4, *old)), indexing="ij"), -1)
        noise = noise / 4 - np.linalg.norm(grid[..., None, :] - centres, axis=-1).astype(np.float32)
    plane = Plane(old, new, CPU)
    slabs = list(along(iter(torch.from_numpy(noise)), 4, 9))
    expected = F.interpolate(torch.from_numpy(noise).permute(3, 0, 1, 2)[None], size=(9, *new), mode="trilinear")[0]
    for slab, theirs in zip(slabs, expected.unbind(1), strict=True):
        assert torch.equal(plane.largest(slab), plane.every(slab.maps).argmax(-1))
        torch.testing.assert_close(plane.every(slab.maps).permute(2, 0, 1), theirs, rtol=1e-4, atol=1e-4)


def test_two_planes_of_one_slab_do_not_mix_up_what_they_agree_on():
    slab = Slab(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 7, 3)).astype(np.float32)))
    for new in ((9, 9), (12, 14), (9, 9)):
        plane = Plane((6, 7), new, CPU)
        assert torch.equal(plane.largest(Between(slab, slab, 0.0)), plane.every(slab.maps).argmax(-1))


def test_of_equal_maps_the_first_is_the_largest():
    maps = torch.zeros(4, 5, 3)
    maps[2:, :, 1:] = 1
    slab = Slab(maps)
    found = Plane((4, 5), (9, 11), CPU).largest(Between(slab, slab, 0.0))
    assert set(found.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(("old", "new"), [(7, 7), (7, 20), (12, 5), (1, 4), (4, 1), (600, 401)])
def test_slabs_are_resampled_along_their_axis(old, new):
    slabs = np.random.default_rng(0).normal(size=(old, 3, 2)).astype(np.float32)
    ended = []

    def source():
        yield from (torch.from_numpy(slab) for slab in slabs)
        ended.append(True)

    found = torch.stack([slab.maps for slab in along(source(), old, new)])
    np.testing.assert_allclose(found.numpy(), interpolated(slabs.astype(float), (new,)), atol=1e-5)
    assert ended == [True]  # whoever made the slabs has seen the end of them

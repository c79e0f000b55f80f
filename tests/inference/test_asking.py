import itertools

import numpy as np
import pytest
import torch

from medseg_se.data.regions import Regions
from medseg_se.errors import UsageError
from medseg_se.inference.air import body_mask, empty_tiles
from medseg_se.inference.asking import Asker, Mirrors
from medseg_se.inference.settings import Settings
from medseg_se.inference.streaming import logit_slabs
from medseg_se.structures import Structures

PLAIN = Structures({"liver": (1,), "spleen": (2,)})
SIDED = Structures({"left lung": (1,), "heart": (2,), "right lung": (3,)})


def answers(tiles):
    """Four maps that a mirror image changes."""
    ramp = torch.arange(tiles.shape[2], dtype=torch.float32).reshape(1, 1, -1, 1, 1)
    shifted = tiles.roll(1, 3)
    return torch.cat([tiles, tiles * ramp, shifted, tiles.cumsum(4)], 1)


def tile(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 5, 4, 6)).astype(np.float32))


# ----------------------------------------------------------------------------------------------------------- mirror images


@pytest.mark.parametrize("directions", [(), ("left-right",), ("left-right", "inferior-superior"), ("anterior-posterior",)])
@pytest.mark.parametrize(("orientation", "axes"), [("RAS", (0, 1, 2)), ("PIL", (2, 0, 1))])
def test_mirror_images_are_averaged_with_left_and_right_exchanged(directions, orientation, axes):
    own = dict(zip(("left-right", "anterior-posterior", "inferior-superior"), axes, strict=True))
    mirrors = Mirrors.along(directions, orientation, None, SIDED, None)
    expected = []
    for count in range(len(directions) + 1):
        for some in itertools.combinations(directions, count):
            flips = [own[name] + 2 for name in some]
            answer = answers(tile().flip(flips)).flip(flips)
            expected.append(answer[:, [0, 3, 2, 1]] if "left-right" in some else answer)
    assert len(mirrors.flips) == 2 ** len(directions)
    found = Asker(answers, mirrors=mirrors).ask(tile())
    torch.testing.assert_close(found, torch.stack(expected).mean(0))


def test_regions_of_one_side_become_those_of_the_other():
    sided = Structures(SIDED.values, regions={"lungs": ("left lung", "right lung")})
    regions = Regions.named(["right lung", "heart", "left lung"], sided)
    assert Mirrors.along(["left-right"], "RAS", None, sided, regions).exchange == (2, 1, 0)
    lonely = Structures({"left lung": (1,), "right lung": (3,)}, regions={"both": ("left lung", "right lung")})
    with pytest.raises(UsageError, match="Expected a region for the other side of 'left lung'"):
        Mirrors.along(["left-right"], "RAS", None, lonely, Regions.named(["both", "left lung"], lonely))


def test_across_the_slices_of_a_2d_network_there_is_no_mirror_image():
    with pytest.raises(UsageError, match="directions within the slices, but left-right runs across"):
        Mirrors.along(["left-right"], "RAS", 0, PLAIN, None)
    mirrors = Mirrors.along(["anterior-posterior"], "RAS", 0, PLAIN, None)
    flat = torch.rand(2, 1, 1, 4, 6)
    seen = []
    Asker(lambda tiles: seen.append(tiles) or tiles, flat_axis=0, mirrors=mirrors).ask(flat)
    assert [tuple(one.shape) for one in seen] == [(2, 1, 4, 6)] * 2
    assert torch.equal(seen[1], seen[0].flip(2))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"Expected `mirror` to name directions .* but got 'upside-down'"):
        Settings(mirror=("upside-down",))
    with pytest.raises(UsageError, match="Expected `skip` to be one of none, constant, air, but got 'all'"):
        Settings(skip="all")
    with pytest.raises(UsageError, match="Expected `overlap` to be at least 0 and below 1"):
        Settings(overlap=1.0)


# ------------------------------------------------------------------------------------------------------- what is not computed


def spread(network, image, repeat, known=None):
    asker = Asker(network, repeat=repeat, known=known)
    return torch.stack(list(logit_slabs(asker, image, (8, 8, 8)))), asker


def test_tiles_that_are_the_same_everywhere_are_asked_once_and_nothing_changes():
    image = torch.full((1, 32, 8, 24), -1.0)
    image[0, 20:26, 2:6, 14:20] = torch.rand(6, 4, 6)
    expected, every = spread(answers, image, repeat=False)
    found, asker = spread(answers, image, repeat=True)
    assert torch.equal(found, expected)
    assert (every.asked, every.spared) == (35, 0)
    assert asker.asked + asker.spared == 35
    assert asker.asked < 12


def test_tiles_of_two_empty_values_are_not_taken_for_each_other():
    image = torch.zeros(1, 32, 8, 8)
    image[:, 16:] = 1
    assert torch.equal(spread(answers, image, repeat=True)[0], spread(answers, image, repeat=False)[0])


def body(shape=(48, 40, 44), seed=0):
    """A bright ellipsoid with a dark hole in noise, on the first half of the first axis."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    inside = (((grid - [14, 20, 22]) / [11, 12, 13]) ** 2).sum(-1) < 1
    hole = (((grid - [14, 20, 22]) / [4, 4, 4]) ** 2).sum(-1) < 1
    image = np.random.default_rng(seed).normal(0, 0.02, shape) - 1 + 2.0 * (inside & ~hole)
    return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(inside)


def test_the_body_holds_its_holes_and_leaves_the_air_out():
    image, inside = body()
    mask = body_mask(image)
    assert mask.shape == inside.shape
    assert mask[inside].all()
    assert not mask[40:].any()
    assert not body_mask(torch.zeros(1, 9, 10, 11)).any()


@pytest.mark.parametrize("finds_something", [False, True])
def test_air_is_left_out_only_if_the_network_finds_nothing_in_it(finds_something):
    image, _ = body()
    asked = []

    def network(tiles):
        asked.append(len(tiles))
        found = torch.cat([torch.zeros_like(tiles), tiles], 1)
        return found + (torch.tensor([0.0, 9.0]).reshape(1, 2, 1, 1, 1) if finds_something else 0)

    corners = [(i, j, k) for i in (0, 16, 32, 40) for j in (0, 16, 32) for k in (0, 16, 32)]
    corners = [corner for corner in corners if all(s + 8 <= n for s, n in zip(corner, image.shape[1:], strict=True))]
    known, note = empty_tiles(network, lambda logits: logits.argmax(0), image, (8, 8, 8), corners)
    assert sum(asked) == (1 if finds_something else 2)
    if finds_something:
        assert not known
        assert "something was found outside" in note
        return
    assert {corner for corner in corners if corner[0] >= 32} <= set(known)
    assert (8, 16, 16) not in known
    assert f"{len(known)} of {len(corners)} tiles" in note
    for logits in known.values():
        assert logits.argmax() == 0

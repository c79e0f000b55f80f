import math

import pytest
import torch
from made_fingerprints import case, fingerprint

from medseg_se.errors import DataError
from medseg_se.networks import build_network
from medseg_se.planning.candidates import ladder, pool, reach
from medseg_se.planning.rules import choose_grid

LARGE = 10**15


def steps_for(cases, kind="cpu"):
    found = fingerprint(cases)
    return ladder(found, choose_grid(found, reach(kind), LARGE), kind)


def cases(shape, spacing=(1.0, 1.0, 1.0), number=20):
    return [case(str(each), shape, spacing) for each in range(number)]


# -------------------------------------------------------------------------------------------------------------------- strides


@pytest.mark.parametrize(
    ("shape", "spacing", "strides", "kernels"),
    [
        ((128, 128, 128), (1, 1, 1), [(2, 2, 2)] * 5, [(3, 3, 3)] * 6),
        ((40, 56, 40), (1, 1, 1), [(2, 2, 2)] * 3, [(3, 3, 3)] * 4),
        # nnU-Net's plan for prostate MR (Decathlon Task05), patch 320 x 256 x 20 at 0.6 x 0.6 x 3.6 mm, six levels
        (
            (320, 256, 20),
            (0.6, 0.6, 3.6),
            [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1)],
            [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
        ),
        ((256, 256), (1, 1), [(2, 2)] * 5, [(3, 3)] * 6),
        ((8, 4, 4), (1, 1, 1), [(2, 1, 1)], [(3, 3, 3), (3, 3, 3)]),
    ],
)
def test_axes_are_halved_while_they_are_long_and_fine(shape, spacing, strides, kernels):
    assert pool(shape, spacing) == (strides, kernels)


# --------------------------------------------------------------------------------------------------------------------- ladder


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((36, 50, 35), (1, 1, 1)),
        ((256, 256, 256), (1, 1, 1)),
        ((512, 512, 90), (0.8, 0.8, 5.0)),
        ((12, 11, 10), (1, 1, 1)),
        ((8, 9, 300), (3, 3, 1)),
        ((256, 256, 4), (1, 1, 6)),
        ((9, 16, 16), (1, 1, 1)),
    ],
)
def test_candidates_grow_and_fit_their_scans(shape, spacing, kind):
    found = steps_for(cases(shape, spacing), kind)
    assert found
    works = [candidate.work for candidate in found]
    assert works == sorted(works)
    assert len(set(found)) == len(found)
    for candidate in found:
        assert len(candidate.strides) + 1 == len(candidate.channels) == len(candidate.kernels) >= 2
        whole = [math.prod(steps) for steps in zip(*candidate.strides, strict=True)]
        assert all(size % unit == 0 for size, unit in zip(candidate.patch, whole, strict=True))
        assert math.prod(candidate.patch) <= 1.5 * reach(kind, len(candidate.patch))


def test_a_cpu_takes_two_patches_and_a_graphics_card_more_while_they_are_few_of_all_voxels():
    assert {candidate.batch for candidate in steps_for(cases((36, 50, 35)))} == {2}
    found = steps_for(cases((36, 50, 35), number=200), "cuda")
    assert [candidate.batch for candidate in found][-2:] == [4, 8]
    largest = found[-1]
    assert largest.batch * math.prod(largest.patch) <= 200 * 36 * 50 * 35 / 20


def test_small_scans_are_seen_whole():
    assert steps_for(cases((36, 50, 35)))[-1].patch == (40, 48, 32)


def test_patches_are_as_long_in_mm_along_every_axis():
    patch = steps_for(cases((200, 200, 100), (1.0, 1.0, 2.0)))[-1].patch
    extent = [size * mm for size, mm in zip(patch, (1.0, 1.0, 2.0), strict=True)]
    assert max(extent) / min(extent) < 1.35


def test_slices_take_a_2d_patch():
    assert {len(candidate.patch) for candidate in steps_for(cases((256, 256, 4), (1, 1, 6)))} == {2}


def test_scans_too_small_for_two_levels_are_refused():
    with pytest.raises(DataError, match=r"at least 8 voxels along some axis .* but got typically 6 x 7 x 5"):
        steps_for(cases((6, 7, 5)))


@pytest.mark.parametrize(("shape", "spacing"), [((36, 50, 35), (1, 1, 1)), ((60, 60, 12), (1, 1, 4)), ((64, 64, 3), (1, 1, 5))])
def test_the_unet_takes_what_the_smallest_candidate_says(shape, spacing):
    candidate = steps_for(cases(shape, spacing))[0]
    options = {"channels": candidate.channels, "strides": candidate.strides, "kernel_size": candidate.kernels}
    network = build_network("unet", 1, 3, len(candidate.patch), **options)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *candidate.patch)).shape == (1, 3, *candidate.patch)

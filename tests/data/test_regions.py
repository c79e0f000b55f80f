"""Regions as targets: which can serve, and that a label map follows from where they lie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_se.data.regions import Regions, find_regions
from medseg_se.errors import DataError, UsageError
from medseg_se.losses import DiceBCERegionsLoss
from medseg_se.structures import IGNORE, Structures

TUMOUR = Structures(
    {"necrosis": (1,), "oedema": (2,), "enhancing": (4,)},
    regions={"whole": ("necrosis", "oedema", "enhancing"), "core": ("necrosis", "enhancing")},
)
BRATS = ["whole", "core", "enhancing"]


@st.composite
def families(draw):
    """Structures, each inside an earlier one or beside it, whose regions hold it and all inside it, in any order."""
    parents = [draw(st.integers(0, number)) for number in range(draw(st.integers(1, 6)))]  # 0: inside none
    members = {index: {index} for index in range(1, len(parents) + 1)}
    for index in range(len(parents), 0, -1):
        if parents[index - 1]:
            members[parents[index - 1]] |= members[index]
    names = {index: f"s{index}" for index in members}
    regions = {f"r{index}": tuple(names[one] for one in sorted(members[index])) for index in members}
    structures = Structures({name: (10 * index,) for index, name in names.items()}, regions=regions)
    return structures, draw(st.permutations(list(regions)))


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(0, 1000))
def test_a_label_map_comes_back_from_its_regions(family, seed):
    structures, order = family
    regions = Regions.named(order, structures)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, structures.num_classes, (3, 4, 5)))
    inside = DiceBCERegionsLoss(regions=regions.members).truth(labels[None], len(order))[0]
    assert torch.equal(regions.label_map(lambda place: inside[place]), labels)


def test_the_regions_of_brats():
    regions = Regions.named(BRATS, TUMOUR)
    assert regions.members == ((1, 2, 3), (1, 3), (3,))
    assert regions.written == ((0, 2), (1, 1), (2, 3))
    held = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    assert regions.label_map(lambda place: held[place]).tolist() == [0, 2, 1, 3, 3]  # the last says what its own region says


def test_voxels_of_unknown_truth_are_in_no_region():
    truth = DiceBCERegionsLoss(regions=((1, 2), (2,))).truth(torch.tensor([[IGNORE, 0, 1, 2]]), 2)
    assert truth.tolist() == [[[False, False, True, True], [False, False, False, True]]]


def test_targets_are_structures_all_regions_or_those_named():
    nested = Structures({"rim": (1,), "heart": (2,)}, regions={"all": ("rim", "heart"), "inner": ("heart",)})
    assert find_regions("structures", nested) is None
    assert find_regions("regions", nested) == Regions.named(["all", "inner"], nested)
    assert find_regions(BRATS, TUMOUR).names == tuple(BRATS)


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ("regions", DataError, "'core' to add one structure .* but it adds necrosis, enhancing. List other `targets`"),
        (["whole", "enhancing"], DataError, "'whole' to add one structure .* but it adds necrosis, oedema"),
        (["whole", "necrosis", "oedema", "enhancing"], DataError, "'whole' to add one structure .* but it adds none"),
        (["core", "enhancing"], DataError, "every structure in one of `targets`, but oedema would never be found"),
        (["whole", "core", "tumour"], UsageError, "Unknown region or structure in `targets` 'tumour'"),
        (["whole", "whole"], UsageError, "name each region once"),
        ([], UsageError, "name each region once"),
        ("region", UsageError, "to be structures, regions, or a list of names, but got 'region'"),
    ],
)
def test_targets_from_which_no_label_map_follows_are_refused(targets, kind, message):
    with pytest.raises(kind, match=message):
        find_regions(targets, TUMOUR)


def test_regions_that_overlap_or_are_the_same_are_refused():
    parts = {"a": (1,), "b": (2,), "c": (3,)}
    crossing = Structures(parts, regions={"left": ("a", "b"), "right": ("b", "c")})
    with pytest.raises(DataError, match="'left' and 'right' overlap, and neither holds the other"):
        find_regions("regions", crossing)
    same = Structures(parts, regions={"one": ("a", "b"), "other": ("b", "a")})
    with pytest.raises(DataError, match="'one' and 'other' are the same"):
        find_regions("regions", same)
    with pytest.raises(DataError, match="the dataset declares none beside its labels"):
        find_regions("regions", Structures(parts))

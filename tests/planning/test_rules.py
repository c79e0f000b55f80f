import math

import pytest
from made_fingerprints import case, channel, fingerprint, structure

from medseg_se.data.augmentation import Augmentation
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import UsageError
from medseg_se.planning.rules import augment, choose_grid, prepare, sample, split

LARGE = 10**15
LR = ["left-right"]


def values(decisions):
    assert all(decision.reason for decision in decisions)
    return {decision.key: decision.value for decision in decisions}


def grid_of(cases, reach=LARGE, memory=LARGE, **more):
    return choose_grid(fingerprint(cases, **more), reach, memory)


def names(*listed, pairs=()):
    return fingerprint(structures=[structure(name, value, 10) for value, name in enumerate(listed, 1)], pairs=pairs)


# ------------------------------------------------------------------------------------------------------------------- spacing


def test_the_spacing_is_the_median_of_each_axis():
    cases = [case(name, spacing=mm) for name, mm in (("a", (1, 1, 2)), ("b", (0.5, 1, 1)), ("c", (0.8, 3, 1)))]
    grid = grid_of(cases)
    assert grid.spacing == (0.8, 1.0, 1.0)
    assert grid.flat_axis is None


def test_across_thick_slices_the_spacing_is_the_tenth_percentile():
    cases = [case(str(mm), (200, 200, 20), (0.5, 0.5, float(mm))) for mm in range(2, 13)]  # median 7, 10th percentile 3
    grid = grid_of(cases, reach=10**9)
    assert grid.spacing == (0.5, 0.5, 3.0)
    assert grid.anisotropic


def test_a_tenth_percentile_finer_than_the_other_axes_is_not_taken():
    cases = [case(str(number), (200, 200, 20), (1.0, 1.0, 0.2 if number < 2 else 5.0)) for number in range(10)]
    assert grid_of(cases).spacing[2] == 1.0


def test_scans_far_larger_than_any_patch_are_coarsened_evenly():
    cases = [case(str(number), (300, 300, 300), (0.5, 0.5, 1.0)) for number in range(3)]
    structures = [structure("organ", 1, 3, ml=1000.0)]
    seen = 48**3
    grid = grid_of(cases, reach=seen, structures=structures)
    x, y, z = grid.spacing
    assert x == y == z > 1.0
    share = seen / math.prod(300 * old / new for old, new in zip((0.5, 0.5, 1.0), grid.spacing, strict=True))
    assert share == pytest.approx(0.03, rel=0.05)


def test_coarsening_leaves_the_smallest_structure_four_voxels():
    cases = [case(str(number), (300, 300, 300)) for number in range(3)]
    structures = [structure("organ", 1, 3, ml=1000.0), structure("gland", 2, 3, ml=0.216)]  # a cube of 6 mm
    assert grid_of(cases, reach=32**3, structures=structures).spacing == (1.5, 1.5, 1.5)


def test_scans_too_large_to_be_judged_are_coarsened():
    cases = [case(str(number), (200, 200, 200)) for number in range(3)]
    memory = 5 * 10**8
    grid = grid_of(cases, memory=memory)
    voxels = 200**3 / math.prod(grid.spacing)
    assert grid.spacing[0] > 1
    assert 4 * voxels * 3 * 2 < memory / 2  # the logits of three classes, and once more
    assert "judged" in grid.reason


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((256, 256, 1), (1, 1, 1), 2),
        ((256, 5, 256), (1, 8, 1), 1),
        ((40, 300, 300), (10, 0.5, 0.5), 0),
        ((256, 256, 20), (0.5, 0.5, 3), None),
        ((6, 6, 6), (1, 1, 1), None),
    ],
)
def test_few_or_very_thick_slices_take_a_2d_network(shape, spacing, axis):
    assert grid_of([case("a", shape, spacing), case("b", shape, spacing)]).flat_axis == axis


# --------------------------------------------------------------------------------------------------------------- preparation


def prepared(found):
    return values(prepare(found, choose_grid(found, LARGE, LARGE)))


def as_preprocessing(decided):
    """Return what the decisions mean, which refuses what it cannot do."""
    plain = {key.removeprefix("data."): value for key, value in decided.items()}
    made = Preprocessing.from_dict(plain)
    return made


def test_scans_without_units_are_scaled_by_themselves():
    decided = prepared(fingerprint())
    assert decided["data.intensity"] == "percentile"
    assert decided["data.crop"] == "none"
    assert as_preprocessing(decided).spacing == (1.0, 1.0, 1.0)


def test_nothing_is_clipped_where_a_structure_is_as_small_as_what_would_be_lost():
    tiny = [structure("lesion", 1, 10, frequency=0.002), structure("organ", 2, 10, frequency=0.2)]
    assert prepared(fingerprint(structures=tiny))["data.intensity"] == "zscore"


def test_nothing_is_said_of_the_size_of_structures_that_no_case_shows():
    found = fingerprint(structures=[structure("nowhere", 1, 0, frequency=0.0)])
    (reason,) = [d.reason for d in prepare(found, choose_grid(found, LARGE, LARGE)) if d.key == "data.intensity"]
    assert "%" not in reason
    assert prepared(found)["data.intensity"] == "zscore"


def test_a_wide_zero_border_is_cut_off_and_not_counted():
    cases = [case(str(number), (100, 100, 100), cropped=(80, 80, 80)) for number in range(3)]
    decided = prepared(fingerprint(cases))
    assert (decided["data.crop"], decided["data.intensity"]) == ("nonzero", "zscore_nonzero")
    cases = [case(str(number), (100, 100, 100), cropped=(95, 95, 97)) for number in range(3)]
    decided = prepared(fingerprint(cases))
    assert (decided["data.crop"], decided["data.intensity"]) == ("nonzero", "percentile")


def test_ct_is_scaled_by_the_whole_dataset():
    cases = [case(str(number), (100, 100, 100), cropped=(80, 80, 80)) for number in range(3)]
    decided = prepared(fingerprint(cases, channels=[channel("CT", ct=True)]))
    assert decided["data.crop"] == "none"
    assert decided["data.intensity"] == "dataset"
    assert (decided["data.window"], decided["data.mean"], decided["data.deviation"]) == ([10.0, 90.0], 50.0, 15.0)
    assert as_preprocessing(decided).window == (10.0, 90.0)


def test_channels_may_be_scaled_differently():
    decided = prepared(fingerprint(channels=[channel("PET"), channel("CT", ct=True)]))
    assert decided["data.intensity"] == ["percentile", "dataset"]
    assert decided["data.window"][1] == [10.0, 90.0]
    as_preprocessing(decided).for_channels(2)


def test_thick_slices_are_interpolated_apart():
    cases = [case(str(number), (200, 200, 60), (0.5, 0.5, 4.0)) for number in range(3)]
    decided = prepared(fingerprint(cases))
    assert decided["data.interpolation"] == "anisotropic"
    as_preprocessing(decided)


# ------------------------------------------------------------------------------------------------------------------ sampling


def test_patches_are_drawn_about_structures_as_often_as_needed():
    shares = [
        values(sample(fingerprint(background=background), seen))["data.foreground"]
        for background, seen in ((0.9, 0.8), (0.9, 0.1), (0.999, 0.1))
    ]
    assert 0.33 == shares[0] < shares[1] < shares[2] < 1


def test_rare_and_small_structures_are_drawn_more_often():
    listed = [
        structure("organ", 1, 10, frequency=0.08),
        structure("other", 2, 10, frequency=0.08),
        structure("gland", 3, 10, frequency=0.01),
        structure("rare", 4, 1, frequency=0.08),
        structure("nowhere", 5, 0, frequency=0.0),
    ]
    weights = values(sample(fingerprint(structures=listed), 0.1))["data.sampling_weights"]
    assert set(weights) == {"gland", "rare"}
    assert weights["gland"] == 2.0  # the cube root of 8
    assert weights["rare"] == 3.0  # the root of 10, to the next half


def test_left_and_right_are_drawn_alike():
    listed = [
        structure("organ", 1, 10, frequency=0.08),
        structure("other", 2, 10, frequency=0.08),
        structure("Left-Gland", 3, 10, frequency=0.08),
        structure("Right-Gland", 4, 10, frequency=0.01),
    ]
    found = fingerprint(structures=listed, pairs=[("Left-Gland", "Right-Gland")])
    weights = values(sample(found, 0.1))["data.sampling_weights"]
    assert weights == {"Left-Gland": 2.0, "Right-Gland": 2.0}


def test_structures_alike_have_no_weights():
    assert values(sample(fingerprint(), 0.1))["data.sampling_weights"] is None


# -------------------------------------------------------------------------------------------------------------- augmentation


def augmented(found, patch=(40, 48, 36)):
    decided = values(augment(found, choose_grid(found, LARGE, LARGE), patch))
    Augmentation(**{key.removeprefix("data."): tuple(v) if isinstance(v, list) else v for key, v in decided.items()})
    return decided


@pytest.mark.parametrize(
    ("listed", "pairs", "mirror"),
    [
        (("Anterior", "Posterior"), (), ["left-right"]),
        (("Left-Thalamus", "Right-Thalamus", "Brain-Stem"), (("Left-Thalamus", "Right-Thalamus"),), ["left-right"]),
        (("Left-Thalamus", "Brain-Stem"), (), []),
        (("kidney_left", "kidney_right", "lung_upper_lobe_left"), (("kidney_left", "kidney_right"),), []),
        (("LungL", "trachea"), (), []),
        (("liver", "tumour"), (), []),
        (("kidney_left", "kidney_right", "spleen"), (("kidney_left", "kidney_right"),), []),
        (("vertebrae_L1", "cleft", "bright spot"), (), ["left-right"]),
        (("leftlung", "rightlung"), (), []),
        (("kidneyleft", "bladder"), (), []),
        (("LKidney", "RKidney"), (), []),
        (("lkidney", "rkidney"), (), []),
        (("LKidney", "bladder"), (), []),
        (("lung_L1", "lung_R1"), (), []),
        (("left ventricle", "right ventricle"), (("left ventricle", "right ventricle"),), []),
        (("Ventricle_L", "Ventricle_R"), (("Ventricle_L", "Ventricle_R"),), []),
        (("atrium left", "atrium right"), (("atrium left", "atrium right"),), []),
        (("LV", "RV"), (), []),
        (("LA",), (), []),
        (("MYO", "pool"), (), []),
        (("myocardium",), (), []),
        (("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"), (("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),), LR),
        (("Left-Inf-Lat-Vent", "Right-Inf-Lat-Vent"), (("Left-Inf-Lat-Vent", "Right-Inf-Lat-Vent"),), LR),
        (("Left-VentralDC", "Right-VentralDC"), (("Left-VentralDC", "Right-VentralDC"),), LR),
        (("3rd-Ventricle", "splenium", "semicolon"), (), LR),
        (("IVC",), (), []),
        (("portal_vein_and_splenic_vein",), (), []),
        (("caecum",), (), []),
        (("cecum",), (), []),
        (("appendix",), (), []),
        (("sigmoid",), (), []),
        (("oesophagus",), (), []),
        (
            ("brachiocephalic_vein_left", "brachiocephalic_vein_right"),
            (("brachiocephalic_vein_left", "brachiocephalic_vein_right"),),
            [],
        ),
    ],
)
def test_patches_are_mirrored_only_where_labels_can_follow(listed, pairs, mirror):
    assert augmented(names(*listed, pairs=pairs))["data.mirror"] == mirror


def test_the_reason_names_the_structure_that_forbids_mirroring():
    found = names("Left-Thalamus", "Brain-Stem")
    (reason,) = [d.reason for d in augment(found, choose_grid(found, LARGE, LARGE), (9, 9, 9)) if d.key == "data.mirror"]
    assert "Left-Thalamus" in reason


def test_the_warp_follows_the_patch_and_ct_keeps_its_units():
    small, large = augmented(fingerprint(), (30, 30, 30)), augmented(fingerprint(), (100, 100, 100))
    assert 0.5 <= small["data.elastic"] < large["data.elastic"] <= 4
    assert augmented(fingerprint(channels=[channel("CT", ct=True)]))["data.brightness"] < Augmentation().brightness
    assert "data.brightness" not in small


def test_few_cases_and_thick_slices_change_the_strength():
    many = fingerprint([case(str(number)) for number in range(60)])
    assert augmented(fingerprint())["data.scaling"] > augmented(many)["data.scaling"]
    thick = fingerprint([case(str(number), (200, 200, 60), (0.5, 0.5, 3.0)) for number in range(3)])
    assert augmented(thick)["data.rotation"] < augmented(many)["data.rotation"]


# --------------------------------------------------------------------------------------------------------------------- folds


def cases(number):
    return [case(str(each)) for each in range(number)]


@pytest.mark.parametrize(("number", "folds"), [(200, 5), (5, 5), (4, 4), (2, 2)])
def test_there_are_no_more_folds_than_groups(number, folds):
    assert values(split(fingerprint(cases(number)), None, None)) == {"data.folds": folds, "data.fold": 0}


def test_one_group_cannot_be_parted():
    assert values(split(fingerprint(cases(1)), None, None)) == {"data.fold": None}
    with pytest.raises(UsageError, match=r"at least 2 groups .* for `folds`, but got 1"):
        split(fingerprint(cases(1)), 3, None)
    with pytest.raises(UsageError, match=r"at least 2 groups .* for `fold`, but got 1"):
        split(fingerprint(cases(1)), None, 0)


def test_folds_are_those_asked_for():
    assert values(split(fingerprint(cases(10)), 3, 2)) == {"data.folds": 3, "data.fold": 2}

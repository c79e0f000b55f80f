from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from medseg_se.data.phantom import make_subject
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.seen import facts_of, summarise
from medseg_se.inference.gate import doubts
from medseg_se.volumes import Volume, reorient

PREPROCESSING = {
    "brain": Preprocessing(spacing=(1.0, 1.0, 1.0)),
    "torso": Preprocessing(intensity="window", window=(-200.0, 300.0)),
}
NAMES = {"brain": ["T1"], "torso": ["CT"]}


@lru_cache
def cohort(kind):
    resolution = {"brain": 4.0, "torso": 9.0}[kind]
    return [make_subject(kind, subject, resolution=resolution)[0] for subject in range(8)]


def seen_of(kind, scans, preprocessing=None):
    return summarise([facts_of(scan) for scan in scans], NAMES[kind], preprocessing or PREPROCESSING[kind])


def changed(scan, change):
    return replace(scan, array=change(scan.array.astype(np.float32)).astype(np.float32))


def only_doubt(scan, seen):
    (doubt,) = doubts(scan, seen)
    return doubt


@pytest.fixture
def torso():
    return cohort("torso")[7], seen_of("torso", cohort("torso")[:7])


@pytest.fixture
def brain():
    return cohort("brain")[7], seen_of("brain", cohort("brain")[:7])


# ------------------------------------------------------------------------------------------------------------ no false alarms


@pytest.mark.parametrize("kind", ["brain", "torso"])
@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "percentile", "minmax", "window", "none"])
def test_scans_like_those_of_the_training_pass(kind, scheme):
    scans = cohort(kind)
    preprocessing = Preprocessing(intensity=scheme)
    for left_out in range(len(scans)):
        others = scans[:left_out] + scans[left_out + 1 :]
        assert doubts(scans[left_out], seen_of(kind, others, preprocessing)) == ()
    assert doubts(scans[0], seen_of(kind, scans[:1], preprocessing)) == ()


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "IPL"])
def test_the_order_of_axes_in_the_file_does_not_matter(brain, orientation):
    scan, seen = brain
    assert doubts(reorient(scan, orientation), seen) == ()


def test_the_unit_of_mr_does_not_matter_where_it_is_scaled_away(brain):
    scan, seen = brain
    assert doubts(changed(scan, lambda values: 0.01 * values), seen) == ()
    assert doubts(changed(scan, lambda values: 250 * values), seen) == ()


def test_a_metal_part_or_a_scan_without_air_is_no_other_unit(torso):
    scan, seen = torso
    metal = scan.array.copy().astype(np.float32)
    metal[0, 5:7, 5:7, 5:7] = 30_000
    assert doubts(replace(scan, array=metal), seen) == ()
    assert doubts(changed(scan, lambda values: np.maximum(values, -150)), seen) == ()


def test_a_resampled_ct_whose_values_are_not_whole_is_still_in_hu(torso):
    scan, seen = torso
    assert doubts(changed(scan, lambda values: values + 0.25), seen) == ()


def test_an_older_checkpoint_doubts_only_what_is_empty(torso):
    scan, _ = torso
    assert doubts(changed(scan, lambda values: values / 1000), None) == ()
    assert only_doubt(changed(scan, lambda values: 0 * values + 5), None) == "is empty: every voxel is 5"


# ---------------------------------------------------------------------------------------------------------------- intensities


def test_a_ct_that_is_not_in_hu_is_named_with_both_ranges(torso):
    scan, seen = torso
    windowed = changed(scan, lambda values: np.rint(np.clip((values + 160) / 400, 0, 1) * 255))
    lowest, highest = seen["intensities"][0]["lowest"][0], seen["intensities"][0]["highest"][1]
    assert only_doubt(windowed, seen) == (
        "looks like it is not in HU: values from 0 to 255, but the scans that the model learnt from reach from "
        f"{lowest:.0f} to {highest:.0f}"
    )
    for change in (lambda values: values + 1024, lambda values: values / 1000):
        assert "looks like it is not in HU" in only_doubt(changed(scan, change), seen)


def test_an_mr_scan_that_is_scaled_or_shifted_is_doubted_where_values_count(brain):
    scan, _ = brain
    seen = seen_of("brain", cohort("brain")[:7], Preprocessing(intensity="window", window=(0.0, 1000.0)))
    assert "intensities were scaled otherwise" in only_doubt(changed(scan, lambda values: 10 * values), seen)
    assert "intensities were scaled otherwise" in only_doubt(changed(scan, lambda values: values / 255), seen)
    far = 2 * scan.array.max()
    assert "intensities were shifted" in only_doubt(changed(scan, lambda values: values + far), seen)


def test_negative_values_where_none_were_are_doubted(brain):
    scan, seen = brain
    zscored = changed(scan, lambda values: (values - values.mean()) / values.std())
    assert only_doubt(zscored, seen).startswith("has negative intensities: values from ")
    ringing = changed(scan, lambda values: np.where(values < 1, -1e-3 * values.max(), values))
    assert doubts(ringing, seen) == ()


def test_a_ct_for_a_model_of_mr_is_told_by_its_unit(torso, make_affine):
    scan, _ = torso
    of_mr = summarise([facts_of(changed(scan, lambda values: values + 2000))], ["T1"], Preprocessing())
    assert only_doubt(scan, of_mr).startswith("looks like HU: values from ")


@pytest.mark.parametrize("kind", ["brain", "torso"])
def test_inverted_intensities_are_doubted(kind):
    scan, seen = cohort(kind)[7], seen_of(kind, cohort(kind)[:7])
    inverted = changed(scan, lambda values: values.max() + values.min() - values)
    assert any("intensities were inverted" in doubt or "not in HU" in doubt for doubt in doubts(inverted, seen))


@pytest.mark.parametrize("voxels", [0, 5])
def test_an_empty_or_almost_empty_scan_is_named(brain, voxels):
    scan, seen = brain
    nothing = np.zeros_like(scan.array, dtype=np.float32)
    nothing[0, 3, 3, :voxels] = 7
    expected = "is almost empty: 99 of 100 voxels are 0" if voxels else "is empty: every voxel is 0"
    assert only_doubt(replace(scan, array=nothing), seen) == expected


def test_a_background_that_was_not_removed_is_doubted_where_zeros_are_left_out(brain):
    scan, _ = brain
    bare = [changed(other, lambda values: np.where(values > np.median(values), values, 0)) for other in cohort("brain")[:7]]
    for scheme, count in (("zscore_nonzero", 1), ("zscore", 0)):
        seen = seen_of("brain", bare, Preprocessing(intensity=scheme))
        found = doubts(changed(scan, lambda values: values + 1), seen)
        assert [doubt for doubt in found if "exactly 0, training at least" in doubt] == list(found)
        assert len(found) == count


def test_the_channel_is_named_where_there_are_several(make_affine):
    rng = np.random.default_rng(0)
    scans = [Volume(rng.gamma(2, 100, size=(2, 8, 8, 8)).astype(np.float32), make_affine()) for _ in range(3)]
    seen = summarise([facts_of(scan) for scan in scans[:2]], ["T1", "T2"], Preprocessing())
    assert doubts(scans[2], seen) == ()
    array = scans[2].array.copy()
    array[1] = 4
    assert only_doubt(replace(scans[2], array=array), seen) == "in channel T2 is empty: every voxel is 4"


def test_what_preprocessing_refuses_is_left_to_it(brain):
    scan, seen = brain
    array = scan.array.astype(np.float32)
    array[0, 0, 0, 0] = np.nan
    assert doubts(replace(scan, array=array), seen) == ()
    assert doubts(replace(scan, array=np.concatenate([scan.array, scan.array])), seen) == ()


def test_a_model_of_synthetic_scans_takes_any_intensities(brain):
    scan, _ = brain
    seen = summarise([facts_of(other) for other in cohort("brain")[:7]], ["T1"], Preprocessing(), synthetic=True)
    assert doubts(changed(scan, lambda values: 100 - values), seen) == ()
    assert doubts(changed(scan, lambda values: 0 * values), seen) == ("is empty: every voxel is 0",)


# ------------------------------------------------------------------------------------------------------------- place and size


def made(make_affine, shape=(64, 64, 40), spacing=(1.0, 1.0, 3.0), codes="RAS", origin=(-30.0, -40.0, 10.0)):
    array = np.random.default_rng(0).gamma(2, 100, size=(1, *shape)).astype(np.float32)
    return Volume(array, make_affine(codes, spacing, origin))


@pytest.fixture
def axial(make_affine):
    scans = [made(make_affine), made(make_affine, spacing=(0.8, 0.8, 2.5), codes="LPS")]
    return summarise([facts_of(scan) for scan in scans], ["T1"], Preprocessing(spacing=(1.0, 1.0, 3.0)))


def test_far_too_thick_slices_are_named_with_what_was_seen(make_affine, axial):
    thick = made(make_affine, shape=(64, 64, 15), spacing=(1.0, 1.0, 8.0))
    assert only_doubt(thick, axial) == "has slices 8 mm apart from feet to head, training had 2.5 to 3 mm"
    assert doubts(made(make_affine, shape=(64, 64, 24), spacing=(1.0, 1.0, 5.0)), axial) == ()
    assert doubts(made(make_affine, shape=(128, 128, 100), spacing=(0.5, 0.5, 1.0)), axial) == ()


def test_a_unit_of_length_that_is_wrong_is_named(make_affine, axial):
    centimetres = made(make_affine, spacing=(0.1, 0.1, 0.3))
    found = doubts(centimetres, axial)
    assert "has voxels 0.1 mm apart from left to right, training had 0.8 to 1 mm" in found
    assert "covers 12 mm from feet to head, training at least 100 mm" in found


def test_finer_voxels_count_where_scans_are_not_resampled(make_affine):
    scans = [facts_of(made(make_affine, spacing=(1.0, 1.0, 1.0), shape=(60, 60, 60)))]
    fine = made(make_affine, spacing=(0.4, 0.4, 0.4), shape=(150, 150, 150))
    assert doubts(fine, summarise(scans, ["T1"], Preprocessing(spacing=(1.0, 1.0, 1.0)))) == ()
    assert len(doubts(fine, summarise(scans, ["T1"], Preprocessing()))) == 3


def test_a_field_of_view_far_smaller_or_larger_is_named(make_affine, axial):
    assert (
        only_doubt(made(make_affine, shape=(64, 64, 15)), axial) == "covers 45 mm from feet to head, training at least 100 mm"
    )
    assert (
        only_doubt(made(make_affine, shape=(64, 200, 40)), axial) == "covers 200 mm from back to front, training at most 64 mm"
    )
    assert doubts(made(make_affine, shape=(50, 80, 30)), axial) == ()


def test_slices_stacked_along_another_axis_are_named_once(make_affine, axial):
    turned = made(make_affine, shape=(64, 64, 30), codes="PSR")
    assert turned.spacing == (1, 1, 3)
    found = doubts(turned, axial)
    assert found[0] == (
        "has its slices stacked from left to right, but those of the training scans were stacked from feet to head; is the "
        "orientation in its header right?"
    )
    assert not [doubt for doubt in found if "mm apart" in doubt]


def test_a_scan_that_does_not_say_how_it_lies_is_named(make_affine, axial, tmp_path):
    import nibabel as nib

    from medseg_se.volumes import read_image

    scan = made(make_affine)
    image = nib.Nifti1Image(scan.array[0], None)
    image.header.set_zooms((1.0, 1.0, 3.0))
    nib.save(image, tmp_path / "lost.nii.gz")
    lost = read_image(tmp_path / "lost.nii.gz")
    assert only_doubt(lost, axial).startswith("does not say how it lies (its qform and sform codes are 0)")
    seen = summarise([facts_of(lost), facts_of(scan)], ["T1"], Preprocessing())
    assert doubts(lost, seen) == ()


def test_a_place_that_programs_make_up_is_named_unless_training_had_it(make_affine, axial):
    plain = replace(made(make_affine), affine=np.diag([1.0, -1.0, 3.0, 1.0]))
    assert only_doubt(plain, axial).startswith("may not know how it lies: its axes are RPS at the origin")
    known = replace(plain, affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    assert doubts(known, axial) == ()

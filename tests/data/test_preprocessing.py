import json
from pathlib import Path

import numpy as np
import pytest

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import DataError, UsageError
from medseg_se.volumes import Volume, read_labels, resample_labels, write_volume

OBLIQUE = {"spacing": (0.7, 1.3, 2.9), "degrees": (12.0, -7.0, 31.0)}


def scan(affine=None, shape=(9, 10, 11), channels=2, seed=0):
    array = np.random.default_rng(seed).normal(40, 300, size=(channels, *shape)).astype(np.float32)
    return Volume(array, np.eye(4) if affine is None else affine, path=Path("scan.nii.gz"))


def bordered(affine=None):
    """Return a scan that is 0 except in a box, and label maps blocky enough to survive resampling."""
    image = scan(affine, shape=(20, 24, 28))
    keep = np.zeros(image.shape, dtype=bool)
    keep[4:16, 4:20, 8:24] = True
    labels = np.random.default_rng(1).integers(0, 4, size=(5, 6, 7)).astype(np.int16)
    labels = labels.repeat(4, 0).repeat(4, 1).repeat(4, 2) * keep
    return Volume(image.array * keep, image.affine), Volume(labels[None], image.affine), keep


# ------------------------------------------------------------------------------------------------------------------ intensities


def formula(x, intensity):
    x = x.astype(np.float64)
    if intensity == "zscore":
        return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean())
    if intensity == "zscore_nonzero":
        inside = x[x != 0]
        return np.where(x != 0, (x - inside.mean()) / np.sqrt(((inside - inside.mean()) ** 2).mean()), 0)
    if intensity == "percentile":
        ordered = np.sort(x.ravel())
        low, high = (np.interp(share * (x.size - 1), np.arange(x.size), ordered) for share in (0.005, 0.995))
        return formula(np.minimum(np.maximum(x, low), high), "zscore")
    if intensity == "minmax":
        return (x - x.min()) / (x.max() - x.min())
    if intensity == "window":
        return np.minimum(np.maximum((x + 100) / 250, -1), 1)  # -350 … 150 HU
    return x


@pytest.mark.parametrize("intensity", ["zscore", "zscore_nonzero", "percentile", "minmax", "window", "none"])
def test_each_channel_is_scaled_by_the_formula(intensity):
    image = scan()
    image.array[1] *= 5
    image.array[:, :4] = 0
    prepared = Preprocessing(intensity=intensity, window=(-350, 150))(image).image
    assert prepared.array.dtype == np.float32
    for channel, before in zip(prepared.array, image.array, strict=True):
        np.testing.assert_allclose(channel, formula(before, intensity), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("intensity", ["zscore", "zscore_nonzero", "percentile", "minmax"])
@pytest.mark.parametrize("value", [0.0, 7.3])
def test_a_constant_channel_becomes_zero(intensity, value):
    image = Volume(np.full((1, 4, 5, 6), value, dtype=np.float32), np.eye(4))
    prepared = Preprocessing(intensity=intensity)(image).image
    np.testing.assert_array_equal(prepared.array, np.zeros((1, 4, 5, 6)))
    assert prepared.array.dtype == np.float32


def test_statistics_of_large_values_do_not_lose_their_digits():
    values = np.random.default_rng(0).normal(0, 1, size=(1, 40, 40, 40)) + 1e5
    prepared = Preprocessing(intensity="zscore")(Volume(values.astype(np.float32), np.eye(4))).image
    assert abs(prepared.array.astype(np.float64).mean()) < 1e-5
    assert abs(prepared.array.astype(np.float64).std() - 1) < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused_by_name(value):
    image = scan()
    image.array[1, 2, 3, 4:6] = value
    with pytest.raises(DataError, match=r"scan\.nii\.gz holds 2 voxels that are NaN or infinite"):
        Preprocessing(intensity="none")(image)


def test_the_scan_itself_stays_as_it_was():
    image, _, _ = bordered()
    before = image.array.copy()
    for intensity in ("zscore", "percentile", "window", "minmax", "none"):
        Preprocessing(intensity=intensity, crop="nonzero", spacing=(2, 2, 2))(image)
    np.testing.assert_array_equal(image.array, before)


# ---------------------------------------------------------------------------------------------------------------- grid and back


def test_the_border_is_cropped_and_every_voxel_stays_at_its_place(make_affine, axcodes):
    image, _, keep = bordered(make_affine(axcodes, **OBLIQUE))
    prepared = Preprocessing(crop="nonzero", intensity="none")(image)
    assert prepared.image.orientation == "RAS"
    assert sorted(prepared.image.shape) == [12, 16, 16]
    assert np.prod(prepared.cut_shape) == keep.sum()
    inverse = np.linalg.inv(image.affine)
    for index in [(0, 0, 0), (5, 7, 3), (11, 11, 11)]:
        there = np.rint(inverse @ prepared.image.affine @ [*index, 1]).astype(int)[:3]
        np.testing.assert_array_equal(prepared.image.array[(slice(None), *index)], image.array[(slice(None), *there)])


def test_a_voxel_of_any_channel_keeps_the_box_open():
    image = Volume(np.zeros((2, 6, 6, 6), dtype=np.float32), np.eye(4))
    image.array[0, 1, 2, 3] = 1
    image.array[1, 4, 2, 5] = -1
    prepared = Preprocessing(crop="nonzero", intensity="none")(image)
    assert prepared.box == ((1, 5), (2, 3), (3, 6))


def test_a_scan_of_zeros_is_not_cropped():
    assert Preprocessing(crop="nonzero")(Volume(np.zeros((1, 4, 5, 6), np.float32), np.eye(4))).cut_shape == (4, 5, 6)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -7, 31), (0, 0, 45), (45, 0, 45)])
def test_labels_come_back_identical_on_the_original_grid(make_affine, axcodes, degrees):
    image, labels, _ = bordered(make_affine(axcodes, spacing=(0.7, 1.3, 2.9), degrees=degrees))
    prepared = Preprocessing(orientation="RAS", crop="nonzero")(image)
    there = prepared.apply_to_labels(labels)
    assert prepared.image.same_grid(there) is None
    back = prepared.restore(there.array)
    np.testing.assert_array_equal(back.array, labels.array)
    np.testing.assert_array_equal(back.affine, labels.affine)
    assert back.array.dtype == labels.array.dtype


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_labels_come_back_identical_through_a_finer_spacing(make_affine, orientation):
    image, labels, _ = bordered(make_affine("PIR", **OBLIQUE))
    own = Preprocessing(orientation=orientation)(image).image.spacing
    prepared = Preprocessing(orientation=orientation, crop="nonzero", spacing=tuple(length / 2 for length in own))(image)
    there = prepared.apply_to_labels(labels)
    assert there.shape == prepared.image.shape == tuple(2 * length for length in prepared.cut_shape)
    assert prepared.image.same_grid(there) is None
    back = prepared.restore(resample_labels(there, prepared.cut_shape).array)
    np.testing.assert_array_equal(back.array, labels.array)


def test_a_result_in_a_file_lies_on_the_grid_of_its_scan(tmp_path, make_affine):
    image, labels, _ = bordered(make_affine("ILA", **OBLIQUE))
    write_volume(labels, tmp_path / "truth.nii.gz")
    truth = read_labels(tmp_path / "truth.nii.gz")
    original = Volume(image.array, truth.affine, truth.header, truth.path)
    prepared = Preprocessing(crop="nonzero")(original)
    result = prepared.restore(prepared.apply_to_labels(truth).array)
    write_volume(result, tmp_path / "result.nii.gz", like=original)
    assert (tmp_path / "result.nii.gz").read_bytes() == (tmp_path / "truth.nii.gz").read_bytes()


def test_outside_of_the_box_the_fill_is_written():
    image, _, keep = bordered()
    prepared = Preprocessing(crop="nonzero")(image)
    back = prepared.restore(np.ones((3, *prepared.cut_shape), dtype=np.float32), fill=-5)
    np.testing.assert_array_equal(back.array, np.broadcast_to(np.where(keep, 1, -5), (3, *image.shape)))


def test_the_spacing_is_met_and_the_field_of_view_kept(make_affine):
    image = scan(make_affine("LPS", spacing=(1.0, 1.0, 3.0)), shape=(20, 30, 10))
    prepared = Preprocessing(spacing=(2.0, 2.0, 1.5))(image).image
    assert prepared.shape == (10, 15, 20)
    np.testing.assert_allclose(prepared.spacing, (2.0, 2.0, 1.5))
    centre = np.array([9.5, 14.5, 4.5, 1.0])
    np.testing.assert_allclose(prepared.affine @ [4.5, 7.0, 9.5, 1.0], image.affine @ centre, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------------- plain data


def test_plain_data_makes_an_equal_object():
    preprocessing = Preprocessing("LPS", (1.0, 0.5, 2.0), "nonzero", "window", (-160.0, 240.0), "cubic")
    plain = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing.from_dict(plain) == preprocessing
    assert Preprocessing.from_dict(json.loads(json.dumps(Preprocessing().to_dict()))) == Preprocessing()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spacing": (1.0, 0.0, 1.0)}, r"`spacing` .* but got \(1\.0, 0\.0, 1\.0\)"),
        ({"spacing": (1.0, 1.0)}, "`spacing`"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "`spacing`"),
        ({"crop": "brain"}, "`crop` to be one of none, nonzero, but got 'brain'"),
        ({"intensity": "z"}, "`intensity` to be one of zscore"),
        ({"interpolation": "nearest"}, "`interpolation`"),
        ({"window": (100.0, -100.0)}, "`window`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Preprocessing(**arguments)


def test_an_orientation_that_is_none_is_refused():
    with pytest.raises(UsageError, match="RAS or LPS, but got 'XYZ'"):
        Preprocessing(orientation="XYZ")(scan())

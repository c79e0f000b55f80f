import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_se.data.intensity import mean_and_deviation
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import DataError, UsageError
from medseg_se.volumes import Volume, read_labels, resample, resample_labels, write_volume

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
    if intensity == "dataset":
        return (np.minimum(np.maximum(x, -350), 150) - 20) / 80
    return x


@pytest.mark.parametrize("intensity", ["zscore", "zscore_nonzero", "percentile", "minmax", "window", "dataset", "none"])
def test_each_channel_is_scaled_by_the_formula(intensity):
    image = scan()
    image.array[1] *= 5
    image.array[:, :4] = 0
    prepared = Preprocessing(intensity=intensity, window=(-350, 150), mean=20, deviation=80)(image).image
    assert prepared.array.dtype == np.float32
    for channel, before in zip(prepared.array, image.array, strict=True):
        np.testing.assert_allclose(channel, formula(before, intensity), atol=2e-5, rtol=1e-5)


def test_channels_are_scaled_each_in_its_own_way():
    image = scan(channels=3)
    settings = {"window": ((-350, 150), (-100, 300), (0, 1)), "mean": (0, 7, 0), "deviation": (1, 90, 1)}
    prepared = Preprocessing(intensity=("window", "dataset", "minmax"), **settings)(image).image.array
    np.testing.assert_allclose(prepared[0], formula(image.array[0], "window"), atol=1e-6)
    np.testing.assert_allclose(prepared[1], (np.clip(image.array[1], -100, 300) - 7) / 90, atol=1e-6)
    np.testing.assert_allclose(prepared[2], formula(image.array[2], "minmax"), atol=1e-6)
    common = Preprocessing(intensity=("dataset",) * 3, window=(-100, 300), mean=(0, 7, 0), deviation=90)(image).image.array
    np.testing.assert_array_equal(common[1], prepared[1])
    np.testing.assert_allclose(common[2], np.clip(image.array[2], -100, 300) / 90, atol=1e-6)


def test_settings_for_another_number_of_channels_are_refused():
    two = Preprocessing(intensity=("zscore", "minmax"))
    with pytest.raises(UsageError, match=r"`intensity` to be one value for all channels or one for each of 3, but got 2: "):
        two(scan(channels=3))
    assert len(two.for_channels(2)) == 2
    with pytest.raises(UsageError, match="`window`"):
        Preprocessing(window=((0, 1), (0, 1)))(scan(channels=1))


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


def test_statistics_of_a_dataset_must_be_given():
    for given in ({}, {"mean": 3.0}, {"deviation": 2.0}):
        with pytest.raises(UsageError, match="Expected `mean` and `deviation` of the dataset's intensities"):
            Preprocessing(intensity="dataset", **given)


def test_values_that_overflow_are_refused_by_name():
    array = np.zeros((1, 4, 4, 4), np.float32)
    array[0, 0, 0, :2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    image = Volume(array, np.eye(4), path=Path("scan.nii.gz"))
    np.testing.assert_allclose(Preprocessing(intensity="minmax")(image).image.array[0, 0, 0], [1, 0, 0.5, 0.5])
    with pytest.raises(DataError, match=r"scan.nii.gz holds values from -3.4\d*e\+38 to 3.4"):
        Preprocessing(intensity="dataset", window=(-1e308, 1e308), mean=0.0, deviation=1e-5)(image)


def test_the_scan_itself_stays_as_it_was():
    image, _, _ = bordered()
    before = image.array.copy()
    for intensity in ("zscore", "zscore_nonzero", "percentile", "window", "dataset", "minmax", "none"):
        Preprocessing(intensity=intensity, crop="nonzero", spacing=(2, 2, 2), mean=1.0, deviation=2.0)(image)
        prepared = Preprocessing(intensity=intensity, mean=1.0, deviation=2.0)(image)
        np.testing.assert_array_equal(prepared.turned.array, before)
        assert not np.shares_memory(prepared.image.array, prepared.turned.array)
    np.testing.assert_array_equal(image.array, before)


def test_mean_and_deviation_are_those_of_all_values():
    values = (np.random.default_rng(0).normal(0, 0.3, size=(3, 200, 331)) + 4000).astype(np.float32)
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-13)
    assert deviation == pytest.approx(values.std(dtype=np.float64), rel=1e-9)


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


# ------------------------------------------------------------------------------------------------------------------ resampling


def spline(values, new):
    """Sample the cubic spline through `values`, mirrored at its ends, at the centres of `new` equal parts; by its equations."""
    n = len(values)
    equations = np.zeros((n, n))
    for row in range(n):
        equations[row, row] += 4 / 6
        for neighbour in (row - 1, row + 1):
            equations[row, mirrored(neighbour, n)] += 1 / 6
    coefficients = np.linalg.solve(equations, values)
    places = (np.arange(new) + 0.5) * n / new - 0.5
    result = np.zeros(new)
    for step in range(-2, 3):
        knots = np.floor(places).astype(int) + step
        x = np.abs(places - knots)
        weight = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0))
        result += weight * coefficients[[mirrored(knot, n) for knot in knots]]
    return result


def mirrored(place, length):
    return abs((place + length - 1) % (2 * length - 2) - length + 1)


def product(*factors):
    return np.einsum("i,j,k->ijk", *factors)[None].astype(np.float32)


@pytest.mark.parametrize("spacing", [(1.0, 1.2, 4.0), (5.0, 1.5, 1.4), (1.0, 3.2, 1.0)])
def test_across_thick_slices_the_nearest_is_taken_and_the_rest_is_cubic(make_affine, spacing):
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=length) for length in (12, 9, 10)]
    image = Volume(product(*factors), make_affine("RAS", spacing=spacing))
    prepared = Preprocessing(spacing=(1.3, 1.1, 1.7), intensity="none", interpolation="anisotropic")(image).image
    coarse = int(np.argmax(spacing))
    expected = [spline(factor, new) for factor, new in zip(factors, prepared.shape, strict=True)]
    places = (np.arange(prepared.shape[coarse]) + 0.5) * len(factors[coarse]) / prepared.shape[coarse] - 0.5
    expected[coarse] = factors[coarse][np.floor(places + 0.5).astype(int)]
    np.testing.assert_allclose(prepared.array, product(*expected), atol=1e-5)
    np.testing.assert_allclose(prepared.affine, resample(image, prepared.shape).affine)


@pytest.mark.parametrize("spacing", [(1.0, 1.2, 2.9), (1.0, 4.0, 4.0)], ids=["even", "two coarse axes"])
def test_without_one_coarse_axis_it_is_cubic(make_affine, spacing):
    image = scan(make_affine("RAS", spacing=spacing))
    wanted = Preprocessing(spacing=(1.3, 1.1, 1.7), intensity="none", interpolation="cubic")
    either = replace(wanted, interpolation="anisotropic")
    np.testing.assert_array_equal(either(image).image.array, wanted(image).image.array)


def test_coarse_voxels_that_are_wanted_count_where_those_of_the_scan_are_even():
    image = scan(shape=(8, 9, 12))
    prepared = Preprocessing(spacing=(1.0, 1.0, 4.0), intensity="none", interpolation="anisotropic")(image).image
    np.testing.assert_array_equal(prepared.array, image.array[..., 2::4])


def test_labels_that_are_not_integers_are_refused():
    labels = Volume(np.zeros((1, 4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(UsageError, match="Expected integer labels, but got float32"):
        Preprocessing(spacing=(2, 2, 2)).prepare_labels(labels)


# ----------------------------------------------------------------------------------------------------------- label maps alone


def test_a_label_map_alone_is_prepared_as_with_a_scan_that_is_nonzero_where_it_is(make_affine):
    image, labels, keep = bordered(make_affine("PIR", **OBLIQUE))
    labels.array[:] = np.where(keep, labels.array + 1, 0)  # so that both have the same border
    recipe = Preprocessing("LAS", (1.1, 0.9, 1.4), "nonzero")
    expected = recipe(image).apply_to_labels(labels)
    found = recipe.prepare_labels(labels)
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine)
    assert found.array.dtype == labels.array.dtype
    assert found.orientation == "LAS"


def test_unknown_truth_counts_as_something_when_a_label_map_is_cropped():
    labels = np.zeros((1, 6, 6, 6), dtype=np.int16)
    labels[0, 2, 3, 4], labels[0, 4, 3, 1] = 1, -1
    assert Preprocessing(crop="nonzero").prepare_labels(Volume(labels, np.eye(4))).array.shape == (1, 3, 1, 4)


def test_a_label_map_that_would_be_huge_is_refused():
    labels = Volume(np.zeros((1, 64, 64, 64), np.int16), np.diag([50.0, 50.0, 50.0, 1.0]), path=Path("atlas.nii.gz"))
    with pytest.raises(DataError, match=r"atlas\.nii\.gz would have .* voxels at a spacing"):
        Preprocessing(spacing=(0.5, 0.5, 0.5)).prepare_labels(labels)


# ------------------------------------------------------------------------------------------------------------------- plain data


def test_plain_data_makes_an_equal_object():
    preprocessing = Preprocessing("LPS", (1.0, 0.5, 2.0), "nonzero", "window", (-160.0, 240.0), "cubic")
    plain = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing.from_dict(plain) == preprocessing
    assert Preprocessing.from_dict(json.loads(json.dumps(Preprocessing().to_dict()))) == Preprocessing()
    by_channel = Preprocessing(
        intensity=("dataset", "zscore"), window=((-1.0, 2.0), (0.0, 3.0)), mean=(0.5, 0.0), deviation=(2.0, 1.0)
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(by_channel.to_dict()))) == by_channel


def test_plain_data_of_older_checkpoints_is_understood():
    older = {"orientation": "LPS", "spacing": [1.0, 0.5, 2.0], "crop": "none", "intensity": "window"}
    older |= {"window": [-160.0, 240.0], "interpolation": "cubic"}
    expected = Preprocessing("LPS", (1.0, 0.5, 2.0), "none", "window", (-160.0, 240.0), "cubic")
    assert Preprocessing.from_dict(older) == expected


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
        ({"window": (100.0, 200.0, 300.0)}, "`window`"),
        ({"window": ((0.0, 1.0), (2.0, 1.0))}, r"`window` .* but got \(2\.0, 1\.0\)"),
        ({"window": (0.0, float("inf"))}, "`window`"),
        ({"intensity": ("zscore", "z")}, "`intensity` to be one of zscore, .* but got 'z'"),
        ({"intensity": ()}, "`intensity`"),
        ({"intensity": ("zscore", "none"), "mean": (1.0, 2.0, 3.0)}, "one for each of"),
        ({"mean": float("nan")}, "`mean` to be a finite number, but got nan"),
        ({"deviation": (1.0, 0.0)}, r"`deviation` to be a positive number, but got 0\.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Preprocessing(**arguments)


def test_an_orientation_that_is_none_is_refused():
    with pytest.raises(UsageError, match="RAS or LPS, but got 'XYZ'"):
        Preprocessing(orientation="XYZ")(scan())

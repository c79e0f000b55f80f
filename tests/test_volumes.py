import errno
import gzip
import logging
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.volumes import (
    Volume,
    case_name,
    grid_of,
    is_scan,
    on_grid_of,
    read_image,
    read_labels,
    reorient,
    resample,
    resample_labels,
    resampled_shape,
    write_volume,
)

OBLIQUE = {"spacing": (0.7, 1.3, 2.9), "degrees": (12.0, -7.0, 31.0)}


def noise(shape=(4, 5, 6), dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(0, 100, size=shape).astype(dtype)


def label_volume(array, affine=None):
    return Volume(np.asarray(array)[None], np.eye(4) if affine is None else affine)


def world(affine, index):
    return (affine @ np.append(index, 1.0))[:3]


def patch(path, offset, form, *values):
    """Overwrite bytes of a NIfTI file, compressed or not."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as stream:
        content = bytearray(stream.read())
    struct.pack_into(form, content, offset, *values)
    with opener(path, "wb") as stream:
        stream.write(content)


DIM, PIXDIM, SLOPE, UNITS, CODES, SROW = 40, 76, 112, 123, 252, 280  # offsets in a NIfTI-1 header


# ------------------------------------------------------------------------------------------------------------ files as they are


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_round_trip_of_every_orientation(tmp_path, make_affine, axcodes, ending):
    affine = make_affine(axcodes, **OBLIQUE)
    volume = Volume(noise()[None], affine)
    path = tmp_path / f"scan{ending}"
    write_volume(volume, path)
    again = read_image(path)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)
    np.testing.assert_allclose(again.spacing, OBLIQUE["spacing"], rtol=1e-5)
    assert again.orientation == axcodes
    assert volume.same_grid(again) is None


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_of_nibabel_is_read_as_nibabel_reads_it(tmp_path, write_scan, make_affine, kind):
    path = write_scan(tmp_path / "scan.nii.gz", noise(dtype=np.int16), make_affine("PIR", **OBLIQUE), kind)
    volume, oracle = read_image(path), nib.load(path)
    np.testing.assert_array_equal(volume.array[0], oracle.get_fdata())
    np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-6)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    assert volume.path == path


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 5, 6, 1), (4, 5, 6, 1, 3)])
def test_the_fourth_axis_becomes_the_channels(tmp_path, write_scan, shape):
    array = noise(shape)
    volume = read_image(write_scan(tmp_path / "scan.nii.gz", array))
    assert volume.shape == (4, 5, 6)
    np.testing.assert_array_equal(np.moveaxis(volume.array, 0, -1).reshape(shape), array)


def test_channels_are_written_as_the_fourth_axis(tmp_path):
    volume = Volume(noise((3, 4, 5, 6)), np.eye(4))
    write_volume(volume, tmp_path / "scan.nii.gz")
    assert nib.load(tmp_path / "scan.nii.gz").shape == (4, 5, 6, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii.gz").array, volume.array)


def test_a_compressed_file_without_gz_in_its_name_is_read(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii", noise())
    path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_image(path).array[0], noise())


def test_a_slice_has_one_voxel_along_the_last_axis(tmp_path, write_scan):
    assert read_image(write_scan(tmp_path / "slice.nii", noise((4, 5)))).shape == (4, 5, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_big_endian_files_are_read(tmp_path, make_affine, dtype):
    array = noise(dtype=dtype)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(array, make_affine("LPS"), header), tmp_path / "scan.nii")
    assert (tmp_path / "scan.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    np.testing.assert_array_equal(read_image(tmp_path / "scan.nii").array[0], array)
    labels = read_labels(tmp_path / "scan.nii")
    np.testing.assert_array_equal(labels.array[0], array)
    assert labels.array.dtype.isnative
    assert labels.orientation == "LPS"


def test_scaled_integers_are_unscaled_in_images_and_labels(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii.gz", noise(dtype=np.int16))
    patch(path, SLOPE, "<2f", 2.0, -3.0)
    expected = noise(dtype=np.float64) * 2 - 3
    np.testing.assert_array_equal(read_image(path).array[0], expected)
    labels = read_labels(path)
    np.testing.assert_array_equal(labels.array[0], expected)
    assert labels.array.dtype.kind == "i"


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_scaling_that_means_none_is_none(tmp_path, write_scan, slope):
    path = write_scan(tmp_path / "scan.nii", noise(dtype=np.int16))
    patch(path, SLOPE, "<2f", slope, 5.0)
    np.testing.assert_array_equal(read_image(path).array[0], noise())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_labels_keep_their_values_and_integer_type(tmp_path, write_scan, dtype):
    labels = read_labels(write_scan(tmp_path / "labels.nii.gz", noise(dtype=dtype)))
    np.testing.assert_array_equal(labels.array[0], noise())
    assert labels.array.dtype == (dtype if np.dtype(dtype).kind in "iu" else np.int32)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_labels_that_are_not_whole_are_refused(tmp_path, write_scan, value):
    array = noise()
    array[0, 0, 0] = value
    path = write_scan(tmp_path / "labels.nii.gz", array)
    with pytest.raises(DataError, match=r"whole label values, but .*labels\.nii\.gz holds fractions or NaN"):
        read_labels(path)


def test_labels_with_channels_are_refused(tmp_path, write_scan):
    with pytest.raises(DataError, match="has 3 channels"):
        read_labels(write_scan(tmp_path / "labels.nii.gz", noise((4, 5, 6, 3), np.uint8)))


def test_names_of_scans(tmp_path):
    assert case_name("a/b.c.nii.gz") == "b.c"
    assert case_name("a/B.NII") == "B"
    assert is_scan(tmp_path / "a.nii")
    assert is_scan(tmp_path / "a.NII.GZ")
    assert not is_scan(tmp_path / "._a.nii.gz")
    assert not is_scan(tmp_path / "a.json")


# ---------------------------------------------------------------------------------------------------------------- where it lies


def test_where_the_forms_disagree_the_sform_is_used_and_that_is_logged(tmp_path, make_affine, caplog):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.set_qform(make_affine("RAS"), 1)
    image.set_sform(make_affine("LPS"), 2)
    nib.save(image, tmp_path / "scan.nii.gz")
    with caplog.at_level(logging.WARNING):
        volume = read_image(tmp_path / "scan.nii.gz")
    assert volume.orientation == "LPS"
    np.testing.assert_allclose(volume.affine, make_affine("LPS"), atol=1e-5)
    assert "scan.nii.gz disagree" in caplog.text


def test_forms_that_agree_are_not_logged(tmp_path, make_affine, caplog):
    image = nib.Nifti1Image(noise(), np.eye(4))
    for place in (image.set_qform, image.set_sform):
        place(make_affine("ILP", **OBLIQUE), 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    with caplog.at_level(logging.INFO):
        read_image(tmp_path / "scan.nii.gz")
    assert caplog.text == ""


def test_the_qform_is_used_where_it_is_alone(tmp_path, make_affine, axcodes):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.set_qform(make_affine(axcodes, **OBLIQUE), 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_image(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.affine, nib.load(tmp_path / "scan.nii").get_qform(), atol=1e-9)
    np.testing.assert_allclose(volume.affine, make_affine(axcodes, **OBLIQUE), atol=1e-3)  # quaternions are single precision
    assert volume.header["sform_code"] == 0


def test_without_either_form_the_spacing_is_kept_and_that_is_logged(tmp_path, write_scan, caplog):
    path = write_scan(tmp_path / "scan.nii", noise(), np.diag([0.5, 2.0, 3.0, 1.0]))
    patch(path, CODES, "<2h", 0, 0)
    with caplog.at_level(logging.WARNING):
        volume = read_image(path)
    assert volume.spacing == (0.5, 2.0, 3.0)
    assert "does not say how it lies" in caplog.text


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e3), (3, 1e-3), (2, 1.0), (0, 1.0)])
def test_lengths_are_converted_to_mm(tmp_path, write_scan, make_affine, unit, factor):
    affine = make_affine("LAS", spacing=(0.8, 0.9, 4.0))
    affine[:3] /= factor
    path = write_scan(tmp_path / "scan.nii", noise(), affine)
    patch(path, UNITS, "<B", unit)
    np.testing.assert_allclose(read_image(path).affine, make_affine("LAS", spacing=(0.8, 0.9, 4.0)), rtol=1e-4)


def test_a_fine_grid_in_metres_keeps_its_orientation(tmp_path, write_scan, make_affine):
    affine = make_affine("PSR", spacing=(0.05, 0.05, 0.05))
    affine[:3] /= 1e3
    path = write_scan(tmp_path / "scan.nii", noise(), affine)
    patch(path, UNITS, "<B", 1)
    patch(path, CODES, "<h", 0)  # leaves the sform alone
    volume = read_image(path)
    assert volume.orientation == "PSR"
    np.testing.assert_allclose(volume.spacing, 0.05, rtol=1e-4)


@pytest.mark.parametrize("unit", [1, 3])
def test_a_unit_that_cannot_be_is_not_believed(tmp_path, write_scan, caplog, unit):
    path = write_scan(tmp_path / "scan.nii", noise())
    patch(path, UNITS, "<B", unit)
    with caplog.at_level(logging.WARNING):
        assert read_image(path).spacing == (1.0, 1.0, 1.0)
    assert "cannot be" in caplog.text


def sheared(make_affine, shear):
    affine = make_affine("RAS", spacing=(1.0, 2.0, 3.0))
    affine[0, 1] += 2.0 * shear  # the second axis leans towards the first
    return affine


def test_axes_that_are_nearly_orthogonal_are_mended_with_the_angle_logged(tmp_path, write_scan, make_affine, caplog):
    affine = sheared(make_affine, 1e-3)
    path = write_scan(tmp_path / "scan.nii", noise(), affine)
    with caplog.at_level(logging.INFO):
        volume = read_image(path)
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume.spacing, (1.0, 2.0, 3.0), rtol=1e-5)
    assert np.abs(volume.affine - affine).max() < 2e-3
    angle = np.degrees(5e-4)  # half of the shear falls to each of the two axes
    assert f"which were {angle:.4f} degrees from orthogonal" in caplog.text


def test_axes_that_are_far_from_orthogonal_are_refused(tmp_path, write_scan, make_affine):
    path = write_scan(tmp_path / "scan.nii", noise(), sheared(make_affine, 4e-3))
    with pytest.raises(DataError, match=r"axes of .*scan\.nii are not orthogonal \(off by 0\.11 degrees"):
        read_image(path)


def test_an_affine_that_is_not_finite_is_refused(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii", noise())
    patch(path, SROW, "<f", np.nan)
    with pytest.raises(DataError, match=r"scan\.nii has an affine that is not finite"):
        read_image(path)


def test_a_spacing_of_zero_is_refused(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii", noise())
    patch(path, PIXDIM + 8, "<f", 0.0)
    patch(path, CODES, "<2h", 1, 0)
    with pytest.raises(
        DataError, match=r"`spacing` to be three positive numbers in mm, but got \(1\.0, 0\.0, 1\.0\) in .*scan\.nii"
    ):
        read_image(path)


def test_same_grid_says_what_differs(make_affine):
    volume = Volume(noise()[None], make_affine(**OBLIQUE))
    moved = volume.affine.copy()
    moved[0, 3] += 0.5
    nudged = volume.affine.copy()
    nudged[0, 3] += 1e-3
    assert volume.same_grid(Volume(volume.array, volume.affine)) is None
    assert volume.same_grid(Volume(volume.array, nudged)) is None
    assert "0.50 mm apart" in volume.same_grid(Volume(volume.array, moved))
    assert "(4, 5, 6) against (4, 5, 5)" in volume.same_grid(Volume(volume.array[..., :5], volume.affine))


def test_on_the_grid_of_another_each_voxel_gets_the_nearest_label(make_affine):
    rng = np.random.default_rng(0)
    labels = Volume(rng.integers(1, 5, (1, 9, 8, 7)), make_affine("LPS", (1.0, 1.3, 2.0), (5.0, 2.0, -3.0), (10, 20, 30)))
    like = Volume(np.zeros((1, 12, 10, 11)), make_affine("SAR", (0.9, 1.1, 1.7), (-6.0, -6.0, -9.0)))
    found = on_grid_of(labels, like)
    assert found.same_grid(like) is None
    matrix = np.linalg.inv(labels.affine) @ like.affine
    outside = 0
    for place in np.ndindex(like.shape):
        nearest = np.floor((matrix @ [*place, 1])[:3] + 0.5).astype(int)
        inside = all(0 <= n < length for n, length in zip(nearest, labels.shape, strict=True))
        outside += not inside
        assert found.array[0][place] == (labels.array[0][tuple(nearest)] if inside else 0)
    assert 100 < outside < found.array.size - 100


# ------------------------------------------------------------------------------------------------------ files not to be trusted


@pytest.mark.parametrize("read", [read_image, read_labels])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path, write_scan, read, ending):
    path = write_scan(tmp_path / f"scan{ending}", np.zeros((1, 1, 1), np.uint8))
    patch(path, DIM, "<4h", 3, 32767, 32767, 32767)
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"claims \(32767, 32767, 32767\) voxels, 131060\.0 GiB in memory; the limit is 8\.0 GiB"
    ):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_the_memory_limit_can_be_set(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii", noise((10, 10, 10), np.uint8))
    assert read_image(path, memory_limit=4000).shape == (10, 10, 10)
    with pytest.raises(DataError, match="Crop or resample"):
        read_image(path, memory_limit=3999)


def test_a_file_that_swells_is_read_only_as_far_as_its_header_goes(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii.gz", np.zeros((64, 64, 4096), np.uint8))
    patch(path, DIM, "<4h", 3, 2, 2, 2)
    tracemalloc.start()
    with pytest.raises(DataError, match="holds more voxels than the shape"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 1, 200, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name(tmp_path, write_scan, ending, kept):
    path = write_scan(tmp_path / f"scan{ending}", np.random.default_rng(0).normal(size=(20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(DataError, match=rf"scan{ending}"):
        read_image(path)


def test_a_wrong_checksum_is_refused(tmp_path, write_scan):
    path = write_scan(tmp_path / "scan.nii.gz", noise())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read .*scan\.nii\.gz: CRC .*corrupt; copy it again"):
        read_image(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("planes", "words"), [(7, "holds only 480"), (5, "holds more voxels"), (1, "holds more voxels")])
def test_a_header_that_does_not_fit_the_voxels_is_refused(tmp_path, write_scan, ending, planes, words):
    path = write_scan(tmp_path / f"scan{ending}", noise((4, 5, 6)))
    patch(path, DIM + 6, "<h", planes)
    with pytest.raises(DataError, match=words):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(1000), bytes(2000), b"{}" * 1000, b"\x1f\x8b" + bytes(100)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_what_is_no_nifti_is_refused(tmp_path, content, ending):
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"scan{ending}"):
        read_image(path)


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64])
def test_colour_and_complex_voxels_are_refused(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), dtype=dtype), np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match="voxels that are plain numbers"):
        read_image(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(
    ("offset", "form", "values"),
    [
        (DIM, "<h", (0,)),
        (DIM, "<h", (9,)),
        (DIM, "<4h", (3, 4, -5, 6)),
        (70, "<h", (9999,)),
        (108, "<f", (8.0,)),
        (108, "<f", (np.nan,)),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, write_scan, offset, form, values):
    path = write_scan(tmp_path / "scan.nii", noise())
    patch(path, offset, form, *values)
    with pytest.raises(DataError, match=r"scan\.nii"):
        read_image(path)


def test_missing_files_and_other_endings_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.nii")
    (tmp_path / "scan.mha").write_bytes(b"x")
    (tmp_path / "folder.nii").mkdir()
    for name in ("scan.mha", "folder.nii"):
        with pytest.raises(DataError, match=r"ending in \.nii or \.nii\.gz"):
            read_image(tmp_path / name)


# --------------------------------------------------------------------------------------------------- orientation and resampling


def test_reorienting_keeps_every_voxel_at_its_place(make_affine, axcodes):
    volume = Volume(noise((2, 4, 5, 6)), make_affine(axcodes, **OBLIQUE))
    turned = reorient(volume, "RAS")
    assert turned.orientation == "RAS"
    inverse = np.linalg.inv(turned.affine)
    for index in [(0, 0, 0), (3, 1, 5), (2, 4, 0)]:
        there = np.rint(world(inverse, world(volume.affine, index))).astype(int)
        np.testing.assert_allclose(world(turned.affine, there), world(volume.affine, index), atol=1e-9)
        np.testing.assert_array_equal(turned.array[(slice(None), *there)], volume.array[(slice(None), *index)])


def test_reorienting_there_and_back_is_nothing(make_affine, axcodes):
    volume = Volume(noise()[None], make_affine("RAS", **OBLIQUE))
    back = reorient(reorient(volume, axcodes), "RAS")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("name", ["", "RA", "RAL", "RASP", "XYZ"])
def test_an_orientation_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match="three axes"):
        reorient(label_volume(noise()), name)


def test_resampling_to_the_own_spacing_is_nothing(make_affine):
    volume = Volume(noise()[None], make_affine("LIP", **OBLIQUE))
    shape = resampled_shape(volume, volume.spacing)
    for same in (resample(volume, shape), resample(volume, shape, "cubic"), resample_labels(volume, shape)):
        np.testing.assert_array_equal(same.array, volume.array)
        np.testing.assert_array_equal(same.affine, volume.affine)


def test_the_shape_for_a_spacing_covers_the_field_of_view():
    volume = label_volume(np.zeros((10, 20, 3)), np.diag([1.0, 0.5, 4.0, 1.0]))
    assert resampled_shape(volume, (2.0, 1.0, 1.0)) == (5, 10, 12)
    assert resampled_shape(volume, (100.0, 100.0, 100.0)) == (1, 1, 1)


@pytest.mark.parametrize("new", [(8, 10, 12), (3, 7, 6), (1, 1, 1), (5, 4, 31)])
def test_the_field_of_view_is_kept_in_world_mm(make_affine, axcodes, new):
    volume = Volume(noise()[None], make_affine(axcodes, **OBLIQUE))
    small = resample(volume, new)
    assert small.shape == new
    for corner in [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)]:
        before = world(volume.affine, np.array(corner) * volume.shape - 0.5)
        after = world(small.affine, np.array(corner) * new - 0.5)
        np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(grid_of(volume.affine, volume.shape, new), small.affine)


@pytest.mark.parametrize("new", [(20, 22, 24), (7, 9, 5), (15, 11, 12)])
def test_linear_interpolation_of_a_ramp_is_exact_inside(make_affine, new):
    slope = np.array([2.0, -3.0, 0.5])
    index = np.stack(np.meshgrid(*map(np.arange, (10, 11, 12)), indexing="ij"), axis=-1)
    affine = make_affine("PLS", **OBLIQUE)
    ramp = Volume((index @ slope + 7).astype(np.float32)[None], affine)
    fine = resample(ramp, new)
    places = np.stack(np.meshgrid(*map(np.arange, new), indexing="ij"), axis=-1)
    in_mm = places @ fine.affine[:3, :3].T + fine.affine[:3, 3]
    old_index = (in_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((old_index >= 0) & (old_index <= np.array([9, 10, 11]))).all(axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(fine.array[0][inside], (old_index @ slope + 7)[inside], atol=1e-4)
    edges = np.clip(old_index, 0, [9, 10, 11])  # beyond the outermost centres the outermost value is repeated
    np.testing.assert_allclose(fine.array[0], edges @ slope + 7, atol=1e-4)


def test_cubic_goes_through_the_voxels_and_is_closer_than_linear_between_them():
    def wave(places):
        return np.prod(np.sin(places / 2.5 + 0.3), axis=-1)

    grid = np.stack(np.meshgrid(*[np.arange(20.0)] * 3, indexing="ij"), axis=-1)
    fine_grid = (np.stack(np.meshgrid(*[np.arange(60.0)] * 3, indexing="ij"), axis=-1) - 1) / 3
    volume = label_volume(wave(grid).astype(np.float32))
    cubic, linear = (resample(volume, (60, 60, 60), how).array[0] for how in ("cubic", "linear"))
    np.testing.assert_allclose(cubic[1::3, 1::3, 1::3], volume.array[0], atol=1e-4)
    inside = (slice(15, 45),) * 3
    error = {name: np.abs(array - wave(fine_grid))[inside].max() for name, array in (("cubic", cubic), ("linear", linear))}
    assert error["cubic"] < 0.1 * error["linear"]


@pytest.mark.parametrize("how", ["linear", "cubic", "nearest"])
def test_a_slice_can_be_resampled_in_its_plane(how):
    volume = Volume(noise((1, 16, 12, 1)), np.eye(4))
    small = resample(volume, (8, 24, 1), how)
    assert small.shape == (8, 24, 1)
    assert np.isfinite(small.array).all()


def blocks(shape=(4, 3, 5), size=4, dtype=np.uint8):
    values = np.random.default_rng(1).integers(0, 5, size=shape).astype(dtype)
    return values.repeat(size, 0).repeat(size, 1).repeat(size, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_twice_as_fine_and_back_gives_the_same_labels(make_affine, dtype):
    labels = label_volume(blocks(dtype=dtype), make_affine("AIL", **OBLIQUE))
    double = tuple(2 * length for length in labels.shape)
    for there, back in (
        (resample(labels, double, "nearest"), lambda fine: resample(fine, labels.shape, "nearest")),
        (resample_labels(labels, double), lambda fine: resample_labels(fine, labels.shape)),
    ):
        again = back(there)
        np.testing.assert_array_equal(again.array, labels.array)
        np.testing.assert_allclose(again.affine, labels.affine, atol=1e-12)
        assert again.array.dtype == dtype


def test_nearest_copies_each_voxel():
    labels = label_volume(noise((3, 4, 5), np.int16))
    fine = resample(labels, (6, 8, 10), "nearest").array[0]
    np.testing.assert_array_equal(fine, labels.array[0].repeat(2, 0).repeat(2, 1).repeat(2, 2))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-300, 3000), min_size=1, max_size=5, unique=True),
    old=st.tuples(*[st.integers(1, 7)] * 3),
    new=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 999),
)
def test_resampling_labels_makes_no_new_value(values, old, new, seed):
    labels = label_volume(np.random.default_rng(seed).choice(values, size=old).astype(np.int16))
    result = resample_labels(labels, new)
    assert result.shape == new
    assert result.array.dtype == np.int16
    assert set(np.unique(result.array)) <= set(np.unique(labels.array))


def test_resampling_labels_moves_a_boundary_by_the_largest_mask():
    line = np.zeros((8, 1, 1), np.uint8)
    line[3:] = 7
    fine = resample_labels(label_volume(line), (24, 1, 1))
    np.testing.assert_array_equal(np.flatnonzero(fine.array), np.arange(9, 24))


# ---------------------------------------------------------------------------------------------------------------------- writing


GEOMETRY = [
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
]


def assert_same_geometry(path, source):
    after, before = nib.load(path).header, nib.load(source).header
    for name in GEOMETRY:
        assert after[name].tobytes() == before[name].tobytes(), name
    assert after["pixdim"][:4].tobytes() == before["pixdim"][:4].tobytes()


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (3, 4), (0, 0)])
def test_a_result_like_its_image_keeps_both_forms_bit_for_bit(tmp_path, make_affine, codes):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.set_qform(make_affine("LPS", **OBLIQUE), codes[0])
    image.set_sform(make_affine("LPS", **OBLIQUE), codes[1])
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_image(tmp_path / "scan.nii.gz")
    result = Volume((volume.array > 50).astype(np.uint8), volume.affine)
    write_volume(result, tmp_path / "result.nii.gz", like=volume)
    assert_same_geometry(tmp_path / "result.nii.gz", tmp_path / "scan.nii.gz")
    again = read_labels(tmp_path / "result.nii.gz")
    np.testing.assert_array_equal(again.array, result.array)
    assert again.array.dtype == np.uint8
    assert volume.same_grid(again) is None


def test_forms_that_disagree_stay_as_they_are(tmp_path, make_affine):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.set_qform(make_affine("RAS"), 1)
    image.set_sform(make_affine("LPS"), 2)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_image(tmp_path / "scan.nii.gz")
    write_volume(volume, tmp_path / "result.nii.gz", like=volume)
    assert_same_geometry(tmp_path / "result.nii.gz", tmp_path / "scan.nii.gz")


def test_a_result_like_an_image_in_metres_stays_in_metres(tmp_path, write_scan, make_affine):
    path = write_scan(tmp_path / "scan.nii", noise(), make_affine("LPS", spacing=(1e-3, 1e-3, 2e-3), origin=(0.01, 0.02, 0.03)))
    patch(path, UNITS, "<B", 1)
    volume = read_image(path)
    write_volume(volume, tmp_path / "result.nii", like=volume)
    assert_same_geometry(tmp_path / "result.nii", path)
    assert volume.same_grid(read_image(tmp_path / "result.nii")) is None


def test_a_result_like_a_mended_image_keeps_its_header(tmp_path, write_scan, make_affine):
    path = write_scan(tmp_path / "scan.nii", noise(), sheared(make_affine, 1e-3))
    volume = read_image(path)
    write_volume(volume, tmp_path / "result.nii", like=volume)
    assert_same_geometry(tmp_path / "result.nii", path)


def test_a_result_like_a_big_endian_image_lies_on_its_grid(tmp_path, make_affine):
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(noise(), make_affine("PIR", **OBLIQUE), header), tmp_path / "scan.nii")
    volume = read_image(tmp_path / "scan.nii")
    write_volume(volume, tmp_path / "result.nii", like=volume)
    assert volume.same_grid(read_image(tmp_path / "result.nii")) is None


def test_a_result_like_a_nifti2_image_lies_on_its_grid(tmp_path, write_scan, make_affine):
    volume = read_image(write_scan(tmp_path / "scan.nii", noise(), make_affine("PIR", **OBLIQUE), nib.Nifti2Image))
    write_volume(volume, tmp_path / "result.nii", like=volume)
    assert volume.same_grid(read_image(tmp_path / "result.nii")) is None


def test_a_result_of_another_shape_is_refused(tmp_path, write_scan):
    volume = read_image(write_scan(tmp_path / "scan.nii", noise()))
    with pytest.raises(DataError, match=r"on the grid of .*scan.nii, .* shape \(4, 5, 5\) against \(4, 5, 6\)"):
        write_volume(Volume(volume.array[..., :5], volume.affine), tmp_path / "result.nii", like=volume)
    assert not (tmp_path / "result.nii").exists()


def test_a_result_that_lies_otherwise_is_refused(tmp_path, write_scan):
    """Written with the header of the scan, a turned result would put left on the right."""
    volume = read_image(write_scan(tmp_path / "scan.nii", noise((4, 4, 4))))
    with pytest.raises(DataError, match=r"affines that put the same voxel up to \d+\.\d+ mm apart"):
        write_volume(reorient(volume, "LPS"), tmp_path / "result.nii", like=volume)
    assert not (tmp_path / "result.nii").exists()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    volume = Volume(noise()[None], np.eye(4))
    for name in ("a", "b"):
        write_volume(volume, tmp_path / name / "scan.nii.gz")
    content = (tmp_path / "a" / "scan.nii.gz").read_bytes()
    assert content == (tmp_path / "b" / "scan.nii.gz").read_bytes()
    assert content[4:8] == bytes(4)  # where gzip would put the time of writing


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_the_type_of_the_array_is_the_type_of_the_file(tmp_path, dtype):
    write_volume(Volume(noise(dtype=dtype)[None], np.eye(4)), tmp_path / "scan.nii.gz")
    image = nib.load(tmp_path / "scan.nii.gz")
    assert image.get_data_dtype() == dtype
    assert image.header.get_slope_inter() in ((None, None), (1.0, 0.0))
    np.testing.assert_array_equal(np.asarray(image.dataobj), noise())


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ending in \.nii or \.nii\.gz"):
        write_volume(label_volume(noise()), tmp_path / "scan.mha")


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"Cannot write .*scan\.nii\.gz: the disk is full; free some space"):
        write_volume(label_volume(noise()), tmp_path / "scan.nii.gz")
    assert [file.name for file in tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"Cannot write .*taken"):
        write_volume(label_volume(noise()), tmp_path / "taken" / "scan.nii.gz")

    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OutputError, match="the folder is not writable; choose another output folder"):
        write_volume(label_volume(noise()), tmp_path / "scan.nii.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]

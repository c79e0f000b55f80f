from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medseg_se.data.augmentation import NO_AUGMENTATION, Augmentation, SpatialChange, draw_spatial
from medseg_se.data.cutting import read_patch
from medseg_se.data.datalist import Case
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.whole_scan import TrainingScans, WholeScan, WholeScanDataset, centred, moved, resized
from medseg_se.errors import DataError

PICTURES = WholeScan(Preprocessing("PLS", intensity="none"), (8, 8), 1, 2, "grey")
VOLUMES = WholeScan(Preprocessing("RAS", intensity="none"), (8, 8, 8), 1, None, None)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# ------------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("shape", [(4, 6), (16, 5), (3, 4, 5), (9, 20, 6)])
def test_resizing_keeps_constants_and_the_slope_of_ramps(shape):
    old = (12, 10, 8)[: len(shape)]
    constant = resized(torch.full((2, *old), 3.5), shape)
    torch.testing.assert_close(constant, torch.full((2, *shape), 3.5))
    ramp = torch.arange(old[0], dtype=torch.float32).reshape(1, -1, *[1] * (len(old) - 1)).expand(1, *old)
    places = (torch.arange(shape[0]) + 0.5) * old[0] / shape[0] - 0.5
    inner = slice(shape[0] // 3, shape[0] - shape[0] // 3)  # the ends repeat the last voxel
    torch.testing.assert_close(resized(ramp, shape)[0].flatten(1)[inner, 0], places[inner], atol=0.05, rtol=0)


def test_resizing_averages_where_it_becomes_coarser():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).reshape(1, 1, -1).expand(1, 64, 64)
    coarse = resized(stripes, (8, 8))
    assert float((coarse - 0.5).abs().max()) < 0.05


def test_resizing_agrees_with_two_dimensions_at_once():
    x = noise(2, 12, 10)
    expected = F.interpolate(x[None], size=(5, 17), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(resized(x, (5, 17)), expected, atol=1e-5, rtol=0)


def test_cutting_and_continuing_about_the_middle():
    x = noise(2, 5, 8)
    found = centred(x, (8, 5))
    torch.testing.assert_close(found[:, 1:6], x[:, :, 1:6])
    for channel, low in zip(found, x.amin(dim=(1, 2)), strict=True):
        assert (channel[[0, 6, 7]] == low).all()


def test_a_shift_by_whole_voxels_moves_the_scan():
    x = noise(1, 9, 7) + 5
    found = moved(x, np.eye(2), np.array([2.0, -1.0]))
    torch.testing.assert_close(found[:, :7, 1:], x[:, 2:, :6], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 7:], x.min().expand(1, 2, 7))
    torch.testing.assert_close(moved(x, np.eye(2), np.zeros(2)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("flat", [None, 0, 1, 2])
def test_turning_and_scaling_are_those_of_patches(flat):
    """The scan is cut as a patch of its own size is: about the voxel in its middle, so its size is odd."""
    size, spacing = [9, 11, 7], np.array([1.0, 2.0, 1.5])
    if flat is not None:
        size[flat] = 1
    x = noise(2, *size)

    class Stored:
        lowest = tuple(x.amin(dim=(1, 2, 3)).tolist())
        shape = tuple(size)

        def read(self, box):
            return x.numpy()[(slice(None), *box)], np.zeros(size, dtype=np.int16)[tuple(box)]

    Stored.spacing = tuple(spacing)
    change = draw_spatial(Augmentation(spatial_probability=1.0), np.random.default_rng(3), "RAS", flat)
    expected, _ = read_patch(Stored(), np.array(size) // 2, size, SpatialChange(change.matrix, None, ())).cut()
    axes = [axis for axis in range(3) if axis != flat]
    matrix = change.matrix[np.ix_(axes, axes)] * spacing[axes] / spacing[axes][:, None]
    plain = x if flat is None else x.squeeze(flat + 1)
    found = moved(plain, matrix, np.zeros(len(axes)))
    torch.testing.assert_close(found, expected if flat is None else expected.squeeze(flat + 1), atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------------------- reading


def test_pictures_keep_their_proportions(tmp_path):
    array = np.random.default_rng(0).integers(50, 256, (10, 20), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = PICTURES.read(Case("a", (tmp_path / "a.png",)))
    assert found.shape == (1, 8, 8)
    expected = resized(torch.from_numpy(array.astype(np.float32))[None], (4, 8))
    torch.testing.assert_close(found[:, 2:6], expected)
    assert (found[:, [0, 1, 6, 7]] == expected.min()).all()


def test_volumes_keep_their_proportions_in_mm(tmp_path, write_scan, make_affine):
    write_scan(tmp_path / "a.nii.gz", noise(6, 12, 4).numpy(), make_affine("RAS", (2.0, 1.0, 3.0)))
    found = VOLUMES.read(Case("a", (tmp_path / "a.nii.gz",)))  # 12 mm along each axis
    torch.testing.assert_close(found, resized(noise(6, 12, 4)[None], (8, 8, 8)))


def test_with_a_spacing_volumes_are_cut_about_their_middle(tmp_path, write_scan, make_affine):
    x = noise(12, 5, 8)
    write_scan(tmp_path / "a.nii.gz", x.numpy(), make_affine("RAS", (2.0, 2.0, 2.0)))
    scan = replace(VOLUMES, preprocessing=replace(VOLUMES.preprocessing, spacing=(2.0, 2.0, 2.0)))
    found = scan.read(Case("a", (tmp_path / "a.nii.gz",)))
    torch.testing.assert_close(found[0, :, 1:6], x[2:10])
    assert (found[0, :, [0, 6, 7]] == x.min()).all()


@pytest.mark.parametrize(("axis", "spacing"), [(0, (5.0, 1.0, 1.0)), (1, (1.0, 9.0, 1.0)), (2, (1.0, 1.0, 0.5))])
def test_the_middle_slice_is_taken(tmp_path, write_scan, make_affine, axis, spacing):
    x = noise(8, 8, 8)
    write_scan(tmp_path / "a.nii.gz", x.numpy(), make_affine("RAS", spacing))
    scan = replace(VOLUMES, size=(8, 8), flat_axis=axis)
    torch.testing.assert_close(scan.read(Case("a", (tmp_path / "a.nii.gz",)))[0], x.select(axis, 4))


def test_the_store_is_keyed_by_content_and_settings(tmp_path, monkeypatch):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    case = Case("a", (tmp_path / "a.png",))
    first = PICTURES.store(case, "digest", tmp_path / "store")
    np.testing.assert_array_equal(np.load(first)[0], np.arange(64).reshape(8, 8))
    others = {
        PICTURES.store(case, "other", tmp_path / "store"),
        replace(PICTURES, size=(8, 9)).store(case, "digest", tmp_path / "store"),
        replace(PICTURES, colour="rgb").store(case, "digest", tmp_path / "store"),
        replace(PICTURES, preprocessing=Preprocessing("PLS")).store(case, "digest", tmp_path / "store"),
    }
    assert len({first, *others}) == 5
    monkeypatch.setattr(WholeScan, "read", lambda *_: pytest.fail("read again"))
    assert PICTURES.store(case, "digest", tmp_path / "store") == first


# ------------------------------------------------------------------------------------------------------------------ datasets


def test_a_damaged_file_of_the_store_is_made_again(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "one.png")
    case = Case("one", (tmp_path / "one.png",))
    file = PICTURES.store(case, "digest", tmp_path / "store")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert PICTURES.store(case, "digest", tmp_path / "store") == file
    assert file.read_bytes() == whole


@pytest.fixture
def stored(tmp_path):
    files = []
    for number in range(5):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], noise(1, 8, 8, seed=number).numpy())
    return files, torch.arange(5)


def test_plain_scans_are_as_they_are_and_in_order(stored):
    dataset = WholeScanDataset(*stored)
    assert len(dataset) == 5
    for number, file in enumerate(stored[0]):
        torch.testing.assert_close(dataset[number]["image"], torch.from_numpy(np.load(file)))
        assert int(dataset[number]["target"]) == number


def test_each_pass_takes_every_scan_once_in_another_order(stored):
    dataset = TrainingScans(*stored, NO_AUGMENTATION, 0.0, PICTURES, seed=1)
    passes = [[int(dataset[number]["target"]) for number in range(5 * turn, 5 * turn + 5)] for turn in range(3)]
    assert [sorted(order) for order in passes] == [list(range(5))] * 3
    assert passes[0] != passes[1]
    for number in range(5):
        sample = dataset[number]
        torch.testing.assert_close(sample["image"], torch.from_numpy(np.load(stored[0][int(sample["target"])])))


def test_a_sample_depends_on_seed_and_number_alone(stored):
    strong = Augmentation(spatial_probability=1.0, mirror=("left-right",), intensity_probability=1.0)

    def make(seed=0, shift=0.2):
        return TrainingScans(*stored, strong, shift, PICTURES, seed)

    dataset = make()
    backwards = {number: dataset[number]["image"] for number in reversed(range(7))}
    for number in range(7):
        assert torch.equal(make()[number]["image"], backwards[number])
        assert backwards[number].shape == (1, 8, 8)
    assert not torch.equal(make(seed=1)[0]["image"], backwards[0])
    assert not torch.equal(make(shift=0.0)[0]["image"], backwards[0])


@pytest.mark.parametrize(("mirror", "axis"), [("left-right", 2), ("anterior-posterior", 1)])
def test_half_of_the_pictures_are_mirrored_along_width_or_height(stored, mirror, axis):
    augmentation = replace(NO_AUGMENTATION, mirror=(mirror,))
    dataset = TrainingScans(*stored, augmentation, 0.0, PICTURES, seed=0)
    mirrored = 0
    for number in range(40):
        sample = dataset[number]
        plain = torch.from_numpy(np.load(stored[0][int(sample["target"])]))
        assert torch.equal(sample["image"], plain) or torch.equal(sample["image"], plain.flip(axis))
        mirrored += not torch.equal(sample["image"], plain)
    assert 10 < mirrored < 30


def test_a_scan_that_left_the_store_is_named(stored):
    stored[0][2].unlink()
    with pytest.raises(DataError, match=r"2\.npy, which was prepared for this run"):
        WholeScanDataset(*stored)[2]

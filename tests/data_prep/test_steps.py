import json

import numpy as np
import pytest
from medseg_se.data_prep.collection import Scan
from medseg_se.data_prep.main import main
from medseg_se.data_prep.steps import Steps

from medseg_se.data.datalist import read_datalist
from medseg_se.errors import DataError, UsageError
from medseg_se.volumes import Volume, read_image, read_labels


@pytest.fixture
def dataset(tmp_path, write_scan):
    """Return a function that writes a dataset of one case, "one", and converts it with options."""

    def convert(image, labels, affine, *options):
        source = tmp_path / "source"
        write_scan(source / "imagesTr" / "one.nii.gz", image.astype(np.float32), affine)
        entry = {"image": "imagesTr/one.nii.gz"}
        if labels is not None:
            write_scan(source / "labelsTr" / "one.nii.gz", labels.astype(np.uint8), affine)
            entry["label"] = "labelsTr/one.nii.gz"
        content = {"name": "one", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "a", "2": "b"}}
        (source / "dataset.json").write_text(json.dumps({**content, "training": [entry], "test": []}))
        code = main(["decathlon", str(source), str(tmp_path / "out"), *options])
        if code:
            return code
        (case,) = read_datalist(tmp_path / "out").training
        return read_image(case.images[0]), read_labels(case.label) if case.label else None

    return convert


def world(volume):
    """World coordinates of every voxel, (3, I, J, K) in mm."""
    grid = np.indices(volume.shape).reshape(3, -1)
    return (volume.affine[:3, :3] @ grid + volume.affine[:3, 3:]).reshape(3, *volume.shape)


def ramp(affine, shape, slope=(2.0, 3.0, -1.0)):
    empty = Volume(np.zeros((1, *shape)), affine)
    return np.tensordot(slope, world(empty), 1) + 500


# -------------------------------------------------------------------------------------------------------------------- reorient


def test_reorient_keeps_every_voxel_in_its_place(dataset, make_affine):
    affine = make_affine("PSL", (1.5, 2.0, 0.7), degrees=(5, -8, 11))
    image = ramp(affine, (7, 6, 5))
    labels = (image > 480).astype(int)
    found, truth = dataset(image, labels, affine, "--reorient", "RAS")
    assert found.orientation == truth.orientation == "RAS"
    np.testing.assert_allclose(found.array[0], ramp(found.affine, found.shape), rtol=1e-5)
    np.testing.assert_array_equal(truth.array[0], found.array[0] > 480)


# ------------------------------------------------------------------------------------------------------------------------ mask


def random_case(shape=(7, 6, 5), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 1000, size=shape), rng.integers(0, 3, size=shape)


@pytest.mark.parametrize("orientation", ["RAS", "PSL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_keeps_what_lies_inside(tmp_path, dataset, write_scan, make_affine, orientation, suffix):
    """A mask whose axes lie otherwise is turned to those of the scan."""
    image, labels = random_case()
    affine = make_affine("RAS", (1.5, 2.0, 0.7))
    inside = image > 400
    scan = Volume(inside[None].astype(np.uint8) * 7, affine)
    turned = Steps(reorient=orientation)(Scan(None, scan), "").labels
    write_scan(tmp_path / "masks" / f"one{suffix}", turned.array[0], turned.affine)
    found, truth = dataset(image, labels, affine, "--mask", str(tmp_path / "masks"), "--outside", "-5")
    np.testing.assert_array_equal(found.array[0], np.where(inside, image, -5))
    np.testing.assert_array_equal(truth.array[0], labels)
    notes = json.loads((tmp_path / "out" / "conversion.json").read_text())["cases"]["one"]["notes"]
    assert notes == [f"{((labels > 0) & ~inside).sum()} labelled voxels lie outside of its mask."]


def test_labels_serve_as_mask(tmp_path, dataset, make_affine):
    image, labels = random_case()
    found, truth = dataset(image, labels, make_affine(), "--mask", "labels")
    np.testing.assert_array_equal(found.array[0], np.where(labels > 0, image, 0))
    np.testing.assert_array_equal(truth.array[0], labels)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["cases"]["one"]["notes"] == []


def test_a_mask_that_does_not_fit_leaves_the_case_out(tmp_path, dataset, write_scan, make_affine, capsys):
    image, labels = random_case()
    options = ("--mask", str(tmp_path / "masks"))
    (tmp_path / "masks").mkdir()
    assert dataset(image, labels, make_affine(), *options) == 2
    assert "because: It has no mask one.nii.gz in the folder given as `--mask`." in capsys.readouterr().err
    write_scan(tmp_path / "masks" / "one.nii.gz", np.ones((7, 6, 4), np.uint8), make_affine())
    assert dataset(image, labels, make_affine(), *options) == 2
    assert "Its mask lies on another grid: shape (7, 6, 5) against (7, 6, 4)." in capsys.readouterr().err
    write_scan(tmp_path / "masks" / "one.nii.gz", np.ones((7, 6, 5), np.uint8), make_affine(origin=(0, 0, 0)))
    assert dataset(image, labels, make_affine(), *options) == 2
    assert "affines that put the same voxel up to" in capsys.readouterr().err
    write_scan(tmp_path / "masks" / "one.nii.gz", np.zeros((7, 6, 5), np.uint8), make_affine())
    assert dataset(image, labels, make_affine(), *options) == 2
    assert "Its mask is empty." in capsys.readouterr().err
    assert dataset(image, None, make_affine(), "--mask", "labels") == 2
    assert "It has no label map to be masked by." in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------------------- n4


def biased_ball(shape=(48, 44, 40), air=2.0):
    """Two tissues in a ball, and the same under a field that changes threefold from side to side."""
    rng = np.random.default_rng(5)
    i, j, k = ((axis - (length - 1) / 2) / (length / 2) for axis, length in zip(np.indices(shape), shape, strict=True))
    radius = np.sqrt(i**2 + j**2 + k**2)
    tissue = np.where(radius < 0.85, np.where(radius < 0.45, 150.0, 100.0), 0.0) * (1 + rng.normal(0, 0.01, shape))
    field = np.exp(0.55 * i - 0.2 * j * j)
    return tissue * field + air, field, radius


def spread(values):
    return float(np.std(values) / np.mean(values))


@pytest.mark.parametrize("masked", [False, True])
def test_n4_takes_the_field_away(tmp_path, dataset, write_scan, make_affine, masked):
    image, _, radius = biased_ball()
    affine, options = make_affine(), ["--n4"]
    if masked:
        write_scan(tmp_path / "masks" / "one.nii.gz", (radius < 0.85).astype(np.uint8), affine)
        options += ["--mask", str(tmp_path / "masks")]
    found, _ = dataset(image, (radius < 0.45), affine, *options)
    core, shell = radius < 0.4, (radius > 0.5) & (radius < 0.8)
    assert spread(image[core]) > 0.09
    assert spread(image[shell]) > 0.2
    assert spread(found.array[0][core]) < 0.02
    assert spread(found.array[0][shell]) < 0.025
    assert found.array[0][core].mean() / found.array[0][shell].mean() == pytest.approx(1.5, rel=0.05)
    if masked:
        assert (found.array[0][radius >= 0.85] == 0).all()


def test_n4_corrects_each_channel_for_itself():
    image, _, radius = biased_ball()
    both = Volume(np.stack([image, image[::-1]]).astype(np.float32), np.eye(4))
    alone = Volume(both.array[1:], np.eye(4))
    corrected = Steps(n4=True)(Scan(both), "").image.array
    np.testing.assert_array_equal(corrected[1], Steps(n4=True)(Scan(alone), "").image.array[0])
    assert spread(corrected[0][(radius > 0.5) & (radius < 0.8)]) < 0.025


def test_n4_refuses_ct_and_emptiness(dataset, make_affine, capsys):
    image, _, radius = biased_ball(shape=(16, 16, 16))
    assert dataset(np.where(radius > 0.85, -1000, image), None, make_affine(), "--n4") == 2
    assert "It has values down to -1000, as CT in HU does; N4 is for MR." in capsys.readouterr().err
    assert dataset(np.zeros((16, 16, 16)), None, make_affine(), "--n4") == 2
    assert "It has no bright voxels by which a bias field could be judged." in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------- spacing


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_resampling_leaves_a_ramp_a_ramp(dataset, make_affine, interpolation):
    affine = make_affine("RAS", (1.0, 2.0, 3.0), degrees=(5, -8, 11))
    image = ramp(affine, (24, 24, 20))
    labels = (np.indices(image.shape)[0] >= 12).astype(int) * 2
    options = ("--spacing", "[1.5,1.5,2.0]", "--interpolation", interpolation)
    found, truth = dataset(image, labels, affine, *options)
    assert found.shape == truth.shape == (16, 32, 30)
    assert found.spacing == pytest.approx((1.5, 1.5, 2.0))
    inner = (slice(5, -5),) * 3  # nearer to the edge, the value at the edge is repeated
    np.testing.assert_allclose(found.array[0][inner], ramp(found.affine, found.shape)[inner], atol=0.05)
    assert set(np.unique(truth.array)) == {0, 2}
    assert (truth.array == 2).mean() == pytest.approx(0.5)


def test_cubic_interpolation_stays_within_the_values_of_the_scan(dataset, make_affine):
    image = np.where(np.indices((20, 20, 20))[0] < 10, 0, 1000)
    found, _ = dataset(image, None, make_affine(), "--spacing", "[0.7,0.7,0.7]", "--interpolation", "cubic")
    assert found.array.min() == 0
    assert found.array.max() == 1000


def test_an_absurd_spacing_leaves_the_case_out(dataset, make_affine, capsys):
    assert dataset(*random_case(), make_affine(), "--spacing", "[0.001,0.001,0.001]") == 2
    assert "It would have (7000, 6000, 5000) voxels at a spacing of (0.001, 0.001, 0.001) mm." in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------------ crop


def test_crop_keeps_the_foreground_a_margin_and_all_labels(dataset, make_affine):
    affine = make_affine("RAS", (1.0, 2.0, 3.0), degrees=(5, -8, 11))
    image, labels = np.zeros((20, 18, 16)), np.zeros((20, 18, 16))
    image[5:9, 6:10, 7:12] = np.random.default_rng(0).integers(50, 99, size=(4, 4, 5))
    labels[6:11, 8, 8] = 1  # two voxels of it are dark
    found, truth = dataset(image, labels, affine, "--crop", "--margin", "4")
    box = (slice(5 - 4, 11 + 4), slice(6 - 2, 10 + 2), slice(7 - 2, 12 + 2))  # 4 mm are 4, 2 and, rounded up, 2 voxels
    np.testing.assert_array_equal(found.array[0], image[box])
    np.testing.assert_array_equal(truth.array[0], labels[box])
    np.testing.assert_allclose(found.affine[:3, 3], (affine @ [1, 4, 5, 1])[:3], atol=1e-4)
    np.testing.assert_allclose(found.affine[:3, :3], affine[:3, :3], atol=1e-5)


def test_crop_of_ct_by_a_threshold(dataset, make_affine):
    image = -1000 + np.random.default_rng(0).integers(-24, 30, size=(14, 14, 14))  # the air is noisy
    image[4:9, 3:11, 2:6] = 40
    found, _ = dataset(image, None, make_affine(), "--crop", "--threshold", "-500")
    np.testing.assert_array_equal(found.array[0], np.full((5, 8, 4), 40))


def test_a_margin_ends_at_the_edge_of_the_scan(dataset, make_affine):
    image, labels = random_case()
    found, _ = dataset(image, labels, make_affine(), "--crop", "--margin", "50")
    np.testing.assert_array_equal(found.array[0], image)
    np.testing.assert_allclose(found.affine, make_affine())


def test_crop_finds_nothing_in_an_empty_scan(dataset, make_affine, capsys):
    assert dataset(np.full((6, 6, 6), 3), None, make_affine(), "--crop") == 2
    assert "It has no foreground to crop to" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------------- together


def test_steps_are_done_in_order(tmp_path, dataset, write_scan, make_affine):
    """Mask, resample, crop: what lies outside of the mask is gone before the foreground is sought, at the new spacing."""
    image = np.full((16, 16, 16), 100)
    inside = np.zeros((16, 16, 16), np.uint8)
    inside[4:12, 4:12, 4:12] = 1
    write_scan(tmp_path / "masks" / "one.nii.gz", inside, make_affine("LPS"))
    options = ("--mask", str(tmp_path / "masks"), "--spacing", "[2,2,2]", "--crop", "--reorient", "RAS")
    found, _ = dataset(image, None, make_affine("LPS"), *options)
    np.testing.assert_array_equal(found.array[0], np.full((4, 4, 4), 100))
    assert found.orientation == "RAS"


def test_a_label_map_alone_goes_through_the_steps(tmp_path, write_scan, make_affine):
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:10, 2:10, 2:10], labels[10:14, 2:10, 2:10] = 1, 2
    scan = Scan(None, Volume(labels[None], make_affine("LPS")))
    inside = (np.indices(labels.shape)[0] < 12).astype(np.uint8)
    write_scan(tmp_path / "alone.nii.gz", inside, make_affine("LPS"))
    steps = Steps(reorient="RAS", mask=str(tmp_path), n4=True, spacing=[2.0, 2.0, 2.0], crop=True)
    found = steps(scan, "alone").labels
    expected = np.ones((5, 4, 4), np.uint8)
    expected[4] = 2
    np.testing.assert_array_equal(found.array[0], expected[::-1, ::-1])
    assert found.array.dtype == np.uint8
    assert Steps(mask="labels")(scan, "alone") == scan
    with pytest.raises(DataError, match="no foreground"):
        Steps(crop=True)(Scan(None, Volume(np.zeros((1, 4, 4, 4), np.uint8), np.eye(4))), "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reorient": "RAX"}, "Expected `orientation` to name three axes"),
        ({"mask": "/no/such/folder"}, "Expected `mask` to be 'labels' or a folder of masks, but got '/no/such/folder'."),
        ({"outside": -1000.0}, "Expected `mask` with `outside`"),
        ({"spacing": [1.0, 1.0]}, "Expected `spacing` to be three positive numbers in mm"),
        ({"spacing": [1.0, 0.0, 1.0]}, "Expected `spacing` to be three positive numbers in mm"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "Expected `spacing` to be three positive numbers in mm"),
        ({"interpolation": "nearest"}, "Expected `interpolation` to be linear or cubic, but got 'nearest'."),
        ({"crop": True, "margin": -1.0}, "Expected `margin` to be 0 or more mm"),
        ({"margin": 5.0}, "Expected `crop` with `margin` or `threshold`"),
        ({"threshold": 0.0}, "Expected `crop` with `margin` or `threshold`"),
    ],
)
def test_steps_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Steps(**options)


def test_n4_takes_a_slice_and_refuses_a_line():
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    inside = x**2 + y**2 < 0.8
    field = np.exp(0.4 * x)
    image = Volume((100 * inside * field)[None, :, :, None].astype(np.float32), np.eye(4))
    corrected = Steps(n4=True)(Scan(image), "a").image.array[0, :, :, 0]
    before, after = ((values[inside].std() / values[inside].mean()) for values in (image.array[0, :, :, 0], corrected))
    assert after < before / 4
    with pytest.raises(DataError, match="too few for a bias field"):
        Steps(n4=True)(Scan(Volume(np.ones((1, 9, 1, 1), np.float32), np.eye(4))), "a")


@pytest.mark.parametrize("options", [{"mask": "labels", "outside": float("nan")}, {"crop": True, "threshold": float("inf")}])
def test_values_that_are_not_finite_are_refused(options):
    with pytest.raises(UsageError, match="to be finite"):
        Steps(**options)

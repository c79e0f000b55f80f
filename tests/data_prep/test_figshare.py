"""Figshare brain tumours: HDF5 arrays turned round, patients kept whole, the authors' folds."""

import json

import h5py
import numpy as np
import pytest
import scipy.io
from medseg_se.data_prep.main import main

from medseg_se.data.classification import ClassificationData
from medseg_se.data.datalist import read_datalist
from medseg_se.data.pictures import ORIENTATION
from medseg_se.volumes import read_image, read_labels


@pytest.fixture
def slices(tmp_path):
    """Return a function that writes one slice as MATLAB does: a struct with its arrays transposed, text as codes."""

    def write(number, patient="100360", label=1, shape=(512, 512), mask=None, folder="brainTumorDataPublic_1-766", fill=True):
        image = np.random.default_rng(number).integers(0, 3000, shape).astype(np.int16)
        if mask is None:
            mask = np.zeros(shape, dtype=np.uint8)
            mask[3:5, 6:9] = fill
        path = tmp_path / "figshare" / folder / f"{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", userblock_size=512) as content:
            struct = content.create_group("cjdata")
            struct["PID"] = np.array([[ord(letter)] for letter in patient], dtype=np.uint16)
            struct["image"] = image.T
            struct["label"] = np.array([[float(label)]])
            struct["tumorBorder"] = np.array([[1.0, 2.0, 3.0, 4.0]]).T
            struct["tumorMask"] = mask.T
        return image, mask

    return write


def write_folds(tmp_path, folds):
    with h5py.File(tmp_path / "figshare" / "cvind.mat", "w", userblock_size=512) as content:
        content["cvind"] = np.array([folds], dtype=float)


def convert(tmp_path, *options):
    return main(["figshare", str(tmp_path / "figshare"), str(tmp_path / "out"), *options])


def test_voxels_classes_patients_and_folds(tmp_path, slices):
    written = {
        1: slices(1),
        2: slices(2, "MR020412B", 2),
        767: slices(767, "100361", 3, folder="brainTumorDataPublic_767-1532"),
    }
    write_folds(tmp_path, [5, 1, *[2] * 765])
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.structures.values == {"meningioma": (1,), "glioma": (2,), "pituitary tumor": (3,)}
    found = [(case.id, case.group, case.fold, case.attributes["class"]) for case in datalist.training]
    assert found == [("1", "100360", 4, "meningioma"), ("2", "MR020412B", 0, "glioma"), ("767", "100361", 1, "pituitary tumor")]
    for case, value in zip(datalist.training, (1, 2, 3), strict=True):
        image, mask = written[int(case.id)]
        scan, truth = read_image(case.images[0]), read_labels(case.label)
        assert np.array_equal(scan.array[0, :, :, 0], image)
        assert np.array_equal(truth.array[0, :, :, 0], mask * value)
        assert scan.orientation == ORIENTATION
        assert np.allclose(scan.spacing, (0.49, 0.49, 7.0))
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["notes"] == []
    assert [case.id for case in datalist.fold(0)[1]] == ["2"]


def test_the_slices_train_a_classifier_and_patients_stay_whole(tmp_path, slices):
    numbers = range(1, 19)
    for number in numbers:  # two slices of each of nine patients, three of each class
        patient = (number - 1) // 2
        slices(number, f"patient{patient}", patient % 3 + 1)
    assert convert(tmp_path) == 0
    data = ClassificationData(
        str(tmp_path / "out"),
        slice_axis="axial",
        size=[16, 16],
        folds=3,
        test_share=0.34,
        batch_size=4,
        num_workers=0,
        store=str(tmp_path / "store"),
        progress=False,
    )
    data.setup("fit")
    data.setup("test")
    assert (data.classes, data.spatial_dims) == (("glioma", "meningioma", "pituitary tumor"), 2)
    patients = [{case.group for case in part} for part in (data.training, data.validation, data.test)]
    assert not patients[0] & patients[1]
    assert not patients[2] & (patients[0] | patients[1])
    assert len(set().union(*patients)) == 9
    assert len(data.training) + len(data.validation) + len(data.test) == len(numbers)
    assert sorted(case.attributes["class"] for case in data.test) == sorted([*data.classes] * 2)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 1, 16, 16)
    assert set(batch["target"].tolist()) <= {0, 1, 2}


def test_without_folds_patients_are_still_kept_whole(tmp_path, slices, capsys):
    for number in range(1, 5):
        slices(number, patient="A" if number < 3 else "B")
    assert convert(tmp_path) == 0
    assert "note: cvind.mat is not there" in capsys.readouterr().out
    datalist = read_datalist(tmp_path / "out")
    assert {case.fold for case in datalist.training} == {None}
    assert sorted(case.id for case in datalist.fold(0, 2)[1]) in (["1", "2"], ["3", "4"])


def test_folds_never_part_a_patient(tmp_path, slices, capsys):
    for number in range(1, 5):
        slices(number, patient="B" if number == 4 else "A")
    scipy.io.savemat(tmp_path / "figshare" / "cvind.mat", {"cvind": np.array([[2.0], [1.0], [2.0], [1.0]])})
    assert convert(tmp_path) == 0
    assert "parts the slices of A; all are in the fold that holds most of them" in capsys.readouterr().out
    datalist = read_datalist(tmp_path / "out")
    assert {case.id: case.fold for case in datalist.training} == {"1": 1, "2": 1, "3": 1, "4": 0}


def test_smaller_pictures_have_larger_pixels(tmp_path, slices):
    image, _ = slices(1, shape=(256, 256))
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    scan = read_image(case.images[0])
    assert np.array_equal(scan.array[0, :, :, 0], image)
    assert np.allclose(scan.spacing, (0.98, 0.98, 7.0))
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert summary["cases"]["1"]["notes"] == ["256 × 256 pixels, taken to be 0.98 mm as in the same field of view."]


def test_what_cannot_be_used_is_left_out_and_made_once_it_is_mended(tmp_path, slices, capsys):
    slices(1)
    slices(2)
    path = tmp_path / "figshare" / "brainTumorDataPublic_1-766" / "2.mat"
    path.write_bytes(path.read_bytes()[:4000])
    slices(3, label=4)
    slices(4, fill=False)
    slices(5, mask=np.ones((512, 511), dtype=np.uint8))
    slices(6, patient="")
    slices(7, mask=np.full((512, 512), 2, dtype=np.uint8))
    slices(9, patient="\0\0")  # as MATLAB writes an empty text
    with h5py.File(path.with_name("8.mat"), "w") as content:
        content["other"] = 1
    assert convert(tmp_path) == 1
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (summary["found"], summary["usable"]) == (9, 1)
    reasons = {
        "2": "2.mat: it is truncated",
        "3": "to be 1, 2 or 3, but got 4",
        "4": "is empty, though it shows a meningioma",
        "5": "has (512, 512) and (512, 511)",
        "6": "cjdata.PID of",
        "7": "other values",
        "8": "cjdata.PID of",
        "9": "names no patient",
    }
    assert sorted(summary["left_out"]) == sorted(reasons)
    for name, reason in reasons.items():
        assert reason in summary["left_out"][name]
    finished = tmp_path / "out" / "imagesTr" / "1.nii.gz"
    before = finished.stat().st_mtime_ns
    for number in range(2, 10):
        slices(number)
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "9 of 9 cases converted, 1 of them were there already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


@pytest.mark.parametrize(("folds", "reason"), [([1.0], "gives folds to 1 files, but there is"), ([0.0, 1.0], "a fold from 1")])
def test_folds_that_do_not_fit_are_refused(tmp_path, slices, folds, reason, capsys):
    slices(1)
    slices(2)
    write_folds(tmp_path, folds)
    assert convert(tmp_path) == 2
    assert reason in capsys.readouterr().err
    (tmp_path / "figshare" / "cvind.mat").write_bytes(b"nothing")
    assert convert(tmp_path) == 2
    assert "Cannot read `cvind`" in capsys.readouterr().err


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "figshare").mkdir()
    (tmp_path / "figshare" / "notes.mat").write_bytes(b"")
    assert convert(tmp_path) == 2
    assert "1.mat to 3064.mat, but found none" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("label", "glioma"), ("PID", "100360"), ("label", b"1"), ("image", "none")])
def test_text_in_place_of_numbers_is_left_out(tmp_path, slices, name, value):
    slices(1)
    slices(2)
    with h5py.File(tmp_path / "figshare" / "brainTumorDataPublic_1-766" / "2.mat", "a") as content:
        del content["cjdata"][name]
        content["cjdata"][name] = value
    assert convert(tmp_path) == 1
    left_out = json.loads((tmp_path / "out" / "conversion.json").read_text())["left_out"]
    assert set(left_out) == {"2"}
    assert left_out["2"].startswith(f"Expected cjdata.{name} of")


@pytest.mark.parametrize("code", [float("nan"), float("inf"), -1.0, 2.0**21])
def test_codes_that_are_no_letters_are_refused(tmp_path, slices, code):
    slices(1)
    slices(2)
    with h5py.File(tmp_path / "figshare" / "brainTumorDataPublic_1-766" / "2.mat", "a") as content:
        del content["cjdata"]["PID"]
        content["cjdata"]["PID"] = np.array([[65.0], [code], [66.0]])
    assert convert(tmp_path) == 1
    left_out = json.loads((tmp_path / "out" / "conversion.json").read_text())["left_out"]
    assert "2.mat to hold the codes of letters" in left_out["2"]


def test_linked_folders_are_searched(tmp_path, slices):
    slices(1)
    (tmp_path / "figshare" / "brainTumorDataPublic_1-766").rename(tmp_path / "elsewhere")
    (tmp_path / "figshare" / "link").symlink_to(tmp_path / "elsewhere")
    assert convert(tmp_path) == 0
    assert len(read_datalist(tmp_path / "out").training) == 1

"""`medseg-prep nnunet`: channels, regions, the ignore label, test truth and folds of a raw dataset."""

import numpy as np
import pytest
from medseg_se.data_prep.main import main
from sources import AFFINE, label_map, scan, summary, times, truncate, voxels, write, write_json

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image

LABELS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
VALUES = [0, 1, 2, 3, 4]
CASES = ("brain_000", "brain_001", "brain_002", "brain_003")


@pytest.fixture
def raw(tmp_path):
    """nnUNet_raw/Dataset007_Brain with two channels, and one test case of two with a label map."""
    root = tmp_path / "nnUNet_raw/Dataset007_Brain"
    for number, case in enumerate(CASES):
        for channel in range(2):
            write(root / f"imagesTr/{case}_{channel:04d}.nii.gz", scan(10 * number + channel))
        write(root / f"labelsTr/{case}.nii.gz", label_map(VALUES, number))
        (root / f"labelsTr/._{case}.nii.gz").write_bytes(b"twin")
    for number, case in enumerate(("brain_100", "brain_101")):
        for channel in range(2):
            write(root / f"imagesTs/{case}_{channel:04d}.nii.gz", scan(100 + 10 * number + channel))
    write(root / "labelsTs/brain_101.nii.gz", label_map(VALUES, 101))
    content = {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
    write_json(root / "dataset.json", {**content, "regions_class_order": [1, 2, 3]})
    return root


def splits(*validation):
    return [{"train": [case for case in CASES if case not in held], "val": list(held)} for held in validation]


def test_a_raw_dataset_comes_over_with_regions_and_truth_of_the_test_set(raw, tmp_path):
    output = tmp_path / "out"
    assert main(["nnunet", str(raw), str(output)]) == 0
    datalist = read_datalist(output)
    assert datalist.name == "Dataset007_Brain"
    assert datalist.channels == ("FLAIR", "T1")
    assert datalist.structures.ignore == 4
    assert datalist.structures.values == {"label_1": (1,), "label_2": (2,), "enhancing": (3,)}
    assert datalist.structures.regions == {"whole": ("label_1", "label_2", "enhancing"), "core": ("label_2", "enhancing")}
    assert tuple(case.id for case in datalist.training) == CASES
    assert [case.fold for case in datalist.training] == [None] * 4
    volume = read_image(datalist.training[1].images[0])
    np.testing.assert_array_equal(volume.array, [scan(10), scan(11)])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(voxels(datalist.training[1].label), label_map(VALUES, 1))
    assert [(case.id, case.label is None) for case in datalist.test] == [("brain_100", True), ("brain_101", False)]
    np.testing.assert_array_equal(voxels(datalist.test[1].label), label_map(VALUES, 101))


@pytest.mark.parametrize("place", ["beside", "preprocessed", "given"])
def test_folds_are_those_of_the_splits(raw, tmp_path, place, capsys):
    content = splits(CASES[:2], CASES[2:])
    target = {
        "beside": raw / "splits_final.json",
        "preprocessed": tmp_path / "nnUNet_preprocessed/Dataset007_Brain/splits_final.json",
        "given": tmp_path / "mine.json",
    }[place]
    write_json(target, content)
    options = ["--splits", str(target)] if place == "given" else []
    assert main(["nnunet", str(raw), str(tmp_path / "out"), *options]) == 0
    datalist = read_datalist(tmp_path / "out")
    assert [case.fold for case in datalist.training] == [0, 0, 1, 1]
    assert {case.id for case in datalist.fold(1)[1]} == set(CASES[2:])
    assert f"The folds are those of {target}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (splits(CASES[:2], CASES[1:]), "validates brain_001 in several folds"),
        (splits(CASES[:2]), "validates 2 cases in no fold"),
    ],
)
def test_splits_that_are_no_cross_validation_are_not_taken_over(raw, tmp_path, content, why, capsys):
    write_json(raw / "splits_final.json", content)
    assert main(["nnunet", str(raw), str(tmp_path / "out")]) == 0
    assert why in capsys.readouterr().out
    assert [case.fold for case in read_datalist(tmp_path / "out").training] == [None] * 4


def test_splits_of_another_form_are_refused(raw, tmp_path, capsys):
    write_json(raw / "splits_final.json", {"train": []})
    assert main(["nnunet", str(raw), str(tmp_path / "out")]) == 2
    assert "to be a list of folds" in capsys.readouterr().err
    assert main(["nnunet", str(raw), str(tmp_path / "out"), "--splits", "nowhere.json"]) == 2
    assert "No such file: nowhere.json" in capsys.readouterr().err


def test_half_a_download_is_named_and_made_up_for(raw, tmp_path, capsys):
    output = tmp_path / "out"
    label = (raw / "labelsTr/brain_000.nii.gz").rename(tmp_path / "label.nii.gz")
    channel = (raw / "imagesTr/brain_001_0001.nii.gz").rename(tmp_path / "channel.nii.gz")
    whole = truncate(raw / "imagesTr/brain_002_0000.nii.gz")
    assert main(["nnunet", str(raw), str(output)]) == 1
    assert "3 of 6 cases converted (2 held out for testing)" in capsys.readouterr().out
    left_out = summary(output)["left_out"]
    assert "no label map" in left_out["brain_000"]
    assert "brain_001_0001.nii.gz is missing" in left_out["brain_001"]
    assert "brain_002_0000.nii.gz" in left_out["brain_002"]
    before = times(output)
    label.rename(raw / "labelsTr/brain_000.nii.gz")
    channel.rename(raw / "imagesTr/brain_001_0001.nii.gz")
    (raw / "imagesTr/brain_002_0000.nii.gz").write_bytes(whole)
    assert main(["nnunet", str(raw), str(output)]) == 0
    assert {name: times(output)[name] for name in before} == before
    assert len(read_datalist(output).training) == 4


def test_channels_on_different_grids_are_left_out(raw, tmp_path):
    moved = AFFINE.copy()
    moved[:3, 3] += 4
    write(raw / "imagesTr/brain_003_0001.nii.gz", scan(0), moved)
    assert main(["nnunet", str(raw), str(tmp_path / "out")]) == 1
    assert "different grids" in summary(tmp_path / "out")["left_out"]["brain_003"]


def test_the_folder_around_it_will_do_if_it_holds_no_other(raw, tmp_path, capsys):
    assert main(["nnunet", str(raw.parent), str(tmp_path / "out")]) == 0
    assert read_datalist(tmp_path / "out").name == "Dataset007_Brain"
    write_json(raw.parent / "Dataset008_Other/dataset.json", {"channel_names": ["CT"], "labels": {"a": 1}})
    assert main(["nnunet", str(raw.parent), str(tmp_path / "other")]) == 2
    assert "holds 2 datasets: Dataset007_Brain, Dataset008_Other" in capsys.readouterr().err


def test_other_layouts_are_refused_with_the_converter_to_take(tmp_path, capsys):
    write_json(tmp_path / "msd/dataset.json", {"modality": ["CT"], "labels": {"a": 1}, "training": []})
    assert main(["nnunet", str(tmp_path / "msd"), str(tmp_path / "out")]) == 2
    assert "`medseg-prep decathlon`" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["nnunet", str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "imagesTr and labelsTr" in capsys.readouterr().err


def test_half_a_test_set_and_cases_that_are_not_there_at_all_are_named(raw, tmp_path):
    (raw / "imagesTs/brain_100_0000.nii.gz").unlink()
    write(raw / "labelsTs/brain_102.nii.gz", label_map(VALUES, 102))
    for path in (*raw.glob("imagesTr/brain_003*"), raw / "labelsTr/brain_003.nii.gz", raw / "labelsTr/brain_002.nii.gz"):
        path.unlink()
    assert main(["nnunet", str(raw), str(tmp_path / "out")]) == 1
    left_out = summary(tmp_path / "out")["left_out"]
    assert set(left_out) == {"brain_002", "brain_100", "brain_102", "1 more case"}
    assert "imagesTs holds no first channel brain_100_0000 of it" in left_out["brain_100"]
    assert "It has files in" in left_out["brain_102"]
    assert "labelsTs" in left_out["brain_102"]
    assert "counts 4 training cases (numTraining), but there are 3." in left_out["1 more case"]

"""MALC 2012: parcels merged by side, the testing part held out, second scans kept apart."""

import json

import numpy as np
import pytest
from medseg_se.data_prep.main import main

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image, read_labels

SHAPE = (6, 5, 4)


@pytest.fixture
def malc(tmp_path, write_scan, make_affine):
    """Return a function that writes one brain in the dataset's layout; its labels are those given, one after the other."""

    def write(name, part="training", values=(45, 44, 101, 100, 4, 63, 207), shape=SHAPE, label=True, seed=0):
        affine = make_affine("LAS", (1.0, 1.5, 2.0))
        image = np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.int16)
        write_scan(tmp_path / "MALC" / f"{part}-images" / f"{name}.nii.gz", image, affine)
        labels = np.zeros(shape, dtype=np.int16)
        labels.ravel()[: len(values)] = values
        if label:
            write_scan(tmp_path / "MALC" / f"{part}-labels" / f"{name}_glm.nii.gz", labels, affine)
        return image, labels

    return write


def convert(tmp_path, *options):
    return main(["malc", str(tmp_path / "MALC"), str(tmp_path / "out"), *options])


def test_voxels_parcels_groups_and_the_testing_part(tmp_path, malc, make_affine):
    image, _ = malc("1000_3")
    malc("1001_3")
    malc("1003_3", "testing")
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert [case.id for case in datalist.training] == ["1000_3", "1001_3"]
    assert [case.id for case in datalist.test] == ["1003_3"]
    assert [case.group for case in (*datalist.training, *datalist.test)] == ["1000", "1001", "1003"]
    assert datalist.channels == ("T1",)
    case = datalist.training[0]
    written = read_image(case.images[0])
    assert np.array_equal(written.array[0], image)
    assert np.allclose(written.affine, make_affine("LAS", (1.0, 1.5, 2.0)))
    truth = read_labels(case.label)
    assert truth.array[0].ravel()[:8].tolist() == [45, 44, 211, 210, 4, 0, 211, 0]  # vessels are not judged
    assert not truth.array[0].ravel()[8:].any()
    structures = datalist.structures
    named = structures.encode(truth.array)[0].ravel()[:4]
    assert [structures.names[index - 1] for index in named] == [
        *("Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter", "Left-Cerebral-Cortex", "Right-Cerebral-Cortex"),
    ]
    assert read_labels(datalist.test[0].label).array.max() == 211


def test_28_classes_are_twelve_pairs_and_three_in_the_middle(tmp_path, malc):
    malc("1000_3", values=(46, 49, 23, 100, 69, 35))
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.structures.num_classes == 28
    assert len(datalist.structures.pairs()) == 12
    assert read_labels(datalist.training[0].label).array.ravel()[:6].tolist() == [0, 0, 0, 210, 0, 35]


def test_all_structures_keep_what_28_clear(tmp_path, malc):
    values = (46, 49, 23, 100, 69, 35, 71, 75, 63)
    malc("1000_3", values=values)
    assert convert(tmp_path, "--structures", "all") == 0
    datalist = read_datalist(tmp_path / "out")
    assert len(datalist.structures.names) == 38
    assert read_labels(datalist.training[0].label).array.ravel()[:9].tolist() == [46, 49, 23, 210, 69, 35, 71, 75, 0]
    assert datalist.structures.values["Left-Basal-Forebrain"] == (75,)  # here the left has the odd value


def test_second_scans_are_taken_only_if_asked_for(tmp_path, malc, capsys):
    malc("1000_3")
    malc("1023_3", "testing")
    assert convert(tmp_path) == 0
    assert "are not taken: 1023_3. `--rescans` takes them." in capsys.readouterr().out
    assert read_datalist(tmp_path / "out").test == ()
    assert convert(tmp_path, "--rescans") == 0
    (case,) = read_datalist(tmp_path / "out").test
    assert case.attributes == {"rescan": True}


def test_what_cannot_be_used_is_left_out_and_made_once_it_is_mended(tmp_path, malc, capsys):
    malc("1000_3")
    malc("1001_3", label=False)
    malc("1002_3", shape=(6, 5, 3))
    malc("1006_3", values=(2, 3, 41, 42))  # FreeSurfer's values
    malc("1007_3", values=(1002, 2035))
    assert convert(tmp_path) == 1
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (summary["found"], summary["usable"]) == (5, 1)
    assert "1001_3_glm.nii.gz is missing" in summary["left_out"]["1001_3"]
    assert "different grids" in summary["left_out"]["1002_3"]
    assert "no parcel of the cortex" in summary["left_out"]["1006_3"]
    assert "holds label value 2035" in summary["left_out"]["1007_3"]
    finished = tmp_path / "out" / "imagesTr" / "1000_3.nii.gz"
    before = finished.stat().st_mtime_ns
    for name in ("1001_3", "1002_3", "1006_3", "1007_3"):
        malc(name)
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "5 of 5 cases converted, 1 of them were there already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


def test_the_testing_part_may_come_without_labels(tmp_path, malc):
    malc("1000_3")
    malc("1003_3", "testing", label=False)
    assert convert(tmp_path) == 0
    assert read_datalist(tmp_path / "out").test[0].label is None


def test_a_folder_above_and_names_in_capitals_are_understood(tmp_path, malc):
    malc("1000_3")
    folder = tmp_path / "MALC"
    (folder / "training-images").rename(folder / "Training-Images")
    (folder / "Training-Images" / "._1000_3.nii.gz").write_bytes(b"left by macOS")
    (folder / "Training-Images" / "1000_3_SS.nii.gz").write_bytes(b"derived")
    (tmp_path / "download").mkdir()
    folder.rename(tmp_path / "download" / "MALC")
    assert main(["malc", str(tmp_path / "download"), str(tmp_path / "out")]) == 0
    assert [case.id for case in read_datalist(tmp_path / "out").training] == ["1000_3"]


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "MALC").mkdir()
    assert convert(tmp_path) == 2
    assert "to hold training-images and training-labels" in capsys.readouterr().err
    (tmp_path / "MALC" / "training-images").mkdir()
    assert convert(tmp_path) == 2
    assert "training-images/1000_3.nii.gz, but found none" in capsys.readouterr().err


def test_a_label_map_whose_scan_is_missing_is_named(tmp_path, malc):
    for name, part in (("1000_3", "training"), ("1001_3", "training"), ("1003_3", "testing"), ("1004_3", "testing")):
        malc(name, part)
    malc("1023_3", "testing")
    for name, part in (("1001_3", "training"), ("1004_3", "testing"), ("1023_3", "testing")):
        (tmp_path / "MALC" / f"{part}-images" / f"{name}.nii.gz").unlink()
    assert convert(tmp_path) == 1
    left_out = json.loads((tmp_path / "out" / "conversion.json").read_text())["left_out"]
    assert set(left_out) == {"1001_3", "1004_3"}
    assert left_out["1004_3"].endswith("1004_3_glm.nii.gz has no scan testing-images/1004_3.nii.gz. Restore it.")

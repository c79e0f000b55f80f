"""`medseg-prep label-maps`: maps without scans, whose values all need a meaning that somebody gave them."""

import nibabel as nib
import numpy as np
import pytest
from medseg_se.data_prep.main import main
from sources import AFFINE, label_map, summary, times, truncate, voxels, write, write_json

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_labels

NAMES = {"background": 0, "Left-Hippocampus": 17, "Right-Hippocampus": 53}


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "maps"
    write(root / "one.nii.gz", label_map([0, 17, 53], 1))
    write(root / "more/two.nii", label_map([0, 17, 53], 2))
    write(root / "three.mgz", label_map([0, 17, 53], 3))
    (root / "._one.nii.gz").write_bytes(b"twin")
    write_json(root / "labels.json", NAMES)
    return root


def convert(source, output, *options):
    code = main(["label-maps", str(source), str(output), *options])
    return code, read_datalist(output)


def test_every_map_becomes_a_case_without_a_scan(source, tmp_path):
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    assert datalist.name == "maps"
    assert datalist.structures.values == {"Left-Hippocampus": (17,), "Right-Hippocampus": (53,)}
    assert datalist.structures.pairs() == ((1, 2),)
    assert {case.id for case in datalist.training} == {"one", "more/two", "three"}
    for case in datalist.training:
        assert case.images == ()
        seed = {"one": 1, "more/two": 2, "three": 3}[case.id]
        volume = read_labels(case.label)
        np.testing.assert_array_equal(volume.array[0], label_map([0, 17, 53], seed))
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_names_from_elsewhere_and_of_several_values(source, tmp_path):
    table = write_json(tmp_path / "names.json", {"labels": {"hippocampus": [17, 53]}})
    code, datalist = convert(source, tmp_path / "out", "--labels", str(table))
    assert code == 0
    assert datalist.structures.values == {"hippocampus": (17, 53)}


def test_a_value_without_a_name_leaves_the_map_out_until_it_has_one(source, tmp_path, capsys):
    output = tmp_path / "out"
    write(source / "four.nii.gz", label_map([0, 17, 502, 530], 4))
    assert convert(source, output)[0] == 1
    why = summary(output)["left_out"]["four"]
    assert "no name is known of: 502, 530." in why
    assert "--unnamed background" in why
    assert "3 of 4 cases converted" in capsys.readouterr().out
    before = times(output)
    write(source / "four.nii.gz", label_map([0, 17], 4))
    assert convert(source, output)[0] == 0
    assert {name: times(output)[name] for name in before} == before


def test_other_tissues_stay_in_the_files_as_background(source, tmp_path):
    write(source / "four.nii.gz", label_map([0, 17, 502, 530], 4))
    code, datalist = convert(source, tmp_path / "out", "--unnamed", "background")
    assert code == 0
    assert datalist.structures.background == (0, 502, 530)
    assert datalist.structures.names == ("Left-Hippocampus", "Right-Hippocampus")
    case = next(case for case in datalist.training if case.id == "four")
    np.testing.assert_array_equal(voxels(case.label), label_map([0, 17, 502, 530], 4))


def test_values_can_be_numbered(source, tmp_path):
    (source / "labels.json").unlink()
    write(source / "four.nii.gz", label_map([0, 1], 4).astype(np.int32) * 2**28)
    code, datalist = convert(source, tmp_path / "out", "--unnamed", "number")
    assert code == 0
    assert datalist.structures.values == {f"label_{value}": (value,) for value in (17, 53, 2**28)}


def test_without_names_the_values_are_told(source, tmp_path, capsys):
    (source / "labels.json").unlink()
    for name in ("one.nii.gz", "three.mgz"):
        (source / name).unlink()
    assert main(["label-maps", str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "two.nii holds 0, 17, 53." in error
    assert "--labels FILE" in error
    assert main(["label-maps", str(source), str(tmp_path / "out"), "--unnamed", "background"]) == 2
    assert "Expected a table of names" in capsys.readouterr().err


@pytest.mark.parametrize("unnamed", ["refuse", "number"])
def test_broken_files_and_scans_are_left_out(source, tmp_path, unnamed):
    truncate(source / "one.nii.gz")
    write(source / "scan.nii.gz", np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32))
    code, datalist = convert(source, tmp_path / "out", "--unnamed", unnamed)
    assert code == 1
    assert {case.id for case in datalist.training} == {"more/two", "three"}
    left_out = summary(tmp_path / "out")["left_out"]
    assert set(left_out) == {"one", "scan"}
    assert "Is it a scan" in left_out["scan"]


def test_a_folder_without_maps_is_refused(tmp_path, capsys):
    write_json(tmp_path / "source/labels.json", NAMES)
    assert main(["label-maps", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "a folder of label maps" in capsys.readouterr().err


@pytest.mark.parametrize("unnamed", ["refuse", "number"])
def test_values_too_large_for_any_label_are_left_out(source, tmp_path, unnamed):
    for name, value in (("huge", 2**63 + 5), ("large", 2**40)):
        array = label_map([0, 1], 4).astype(np.uint64) * np.uint64(value)
        nib.save(nib.Nifti1Image(array, AFFINE, dtype=np.uint64), source / f"{name}.nii.gz")
    code, datalist = convert(source, tmp_path / "out", "--unnamed", unnamed)
    assert code == 1
    assert {case.id for case in datalist.training} == {"one", "more/two", "three"}
    left_out = summary(tmp_path / "out")["left_out"]
    assert "holds the value 9223372036854775813, too large for a label" in left_out["huge"]
    assert "holds the value 1099511627776" in left_out["large"]


def test_linked_folders_are_searched(source, tmp_path):
    (source / "more").rename(tmp_path / "elsewhere")
    (source / "more").symlink_to(tmp_path / "elsewhere")
    code, datalist = convert(source, tmp_path / "out")
    assert (code, len(datalist.training)) == (0, 3)

"""`medseg-prep brats`: channels in one order whatever the year calls them, regions by the year's own values."""

import numpy as np
import pytest
from medseg_se.data_prep.main import main
from sources import AFFINE, label_map, scan, summary, times, voxels, write

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image

OLD = ("_", ("t1", "t1ce", "t2", "flair"))
NEW = ("-", ("t1n", "t1c", "t2w", "t2f"))


def put(folder, case, style, values=None, seed=0, suffix=".nii.gz"):
    """Write the files of one case; contrast number n holds scan `seed` + n."""
    separator, contrasts = style
    for number, contrast in enumerate(contrasts):
        write(folder / case / f"{case}{separator}{contrast}{suffix}", scan(seed + number))
    if values is not None:
        write(folder / case / f"{case}{separator}seg{suffix}", label_map(values, seed))


def convert(source, output):
    code = main(["brats", str(source), str(output)])
    return code, read_datalist(output)


def regions_of(structures):
    """Return region → the label values in the files that make it."""
    values = structures.values
    return {name: {value for part in parts for value in values[part]} for name, parts in structures.regions.items()}


def test_2021_with_its_validation_set(tmp_path):
    put(tmp_path / "source/Training", "BraTS2021_00000", OLD, [0, 1, 2, 4], seed=10)
    put(tmp_path / "source/Training", "BraTS2021_00002", OLD, [0, 1, 2, 4], seed=20)
    put(tmp_path / "source/Validation", "BraTS2021_00001", OLD, seed=30)
    (tmp_path / "source/Training/BraTS2021_00000/._BraTS2021_00000_seg.nii.gz").write_bytes(b"twin")
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    assert datalist.channels == ("t1", "t1ce", "t2", "flair")
    assert datalist.structures.values == {"necrotic core": (1,), "edema": (2,), "enhancing tumour": (4,)}
    assert regions_of(datalist.structures) == {"whole tumour": {1, 2, 4}, "tumour core": {1, 4}}
    assert [case.id for case in datalist.training] == ["BraTS2021_00000", "BraTS2021_00002"]
    assert [(case.id, case.label) for case in datalist.test] == [("BraTS2021_00001", None)]
    volume = read_image(datalist.training[0].images[0])
    np.testing.assert_array_equal(volume.array, [scan(10), scan(11), scan(12), scan(13)])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(voxels(datalist.training[0].label), label_map([0, 1, 2, 4], 10))


def test_2024_keeps_the_scans_of_a_patient_together(tmp_path):
    for case, seed in (("BraTS-GLI-00005-100", 0), ("BraTS-GLI-00005-101", 10), ("BraTS-GLI-00008-101", 20)):
        put(tmp_path / "source/training_data1_v2", case, NEW, [0, 1, 2, 3, 4], seed)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    assert datalist.channels == ("t1", "t1ce", "t2", "flair")
    assert datalist.structures.values == {
        "non-enhancing core": (1,),
        "edema": (2,),
        "enhancing tumour": (3,),
        "resection cavity": (4,),
    }
    assert regions_of(datalist.structures) == {"whole tumour": {1, 2, 3}, "tumour core": {1, 3}}
    assert [case.group for case in datalist.training] == ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00008"]
    assert [case.attributes["time_point"] for case in datalist.training] == [100, 101, 101]
    np.testing.assert_array_equal(read_image(datalist.training[1].images[0]).array, [scan(n) for n in (10, 11, 12, 13)])


def test_2023_knows_no_resection_cavity(tmp_path):
    put(tmp_path / "source", "BraTS-GLI-00000-000", NEW, [0, 1, 2, 3])
    put(tmp_path / "source", "BraTS-GLI-00002-000", NEW, [0, 1, 2, 4], seed=5)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 1
    assert datalist.structures.values == {"necrotic core": (1,), "edema": (2,), "enhancing tumour": (3,)}
    assert [case.id for case in datalist.training] == ["BraTS-GLI-00000-000"]
    assert "{4}" in summary(tmp_path / "out")["left_out"]["BraTS-GLI-00002-000"]


def test_files_in_one_flat_folder_and_uncompressed(tmp_path):
    for number, contrast in enumerate(("T1", "t1ce", "T2", "Flair", "seg")):
        array = label_map([0, 1, 2, 4]) if contrast == "seg" else scan(number)
        write(tmp_path / f"source/Brats18_TCIA08_242_1_{contrast}.nii", array)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    assert [case.id for case in datalist.training] == ["Brats18_TCIA08_242_1"]
    np.testing.assert_array_equal(read_image(datalist.training[0].images[0]).array, [scan(n) for n in range(4)])


def test_missing_files_are_named_and_made_up_for(tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    for number in range(3):
        put(source, f"BraTS2021_0000{number}", OLD, [0, 1, 2, 4], seed=10 * number)
    label = (source / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz").rename(tmp_path / "label")
    contrast = (source / "BraTS2021_00002/BraTS2021_00002_t1.nii.gz").rename(tmp_path / "contrast")
    code, datalist = convert(source, output)
    assert code == 1
    assert [case.id for case in datalist.training] == ["BraTS2021_00000"]
    assert datalist.test == ()  # a label map that is missing among others does not make a test case
    left_out = summary(output)["left_out"]
    assert "BraTS2021_00001_seg.nii.gz is missing" in left_out["BraTS2021_00001"]
    assert "BraTS2021_00002_t1.nii.gz is missing" in left_out["BraTS2021_00002"]
    before = times(output)
    label.rename(source / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz")
    contrast.rename(source / "BraTS2021_00002/BraTS2021_00002_t1.nii.gz")
    code, datalist = convert(source, output)
    assert (code, len(datalist.training)) == (0, 3)
    assert {name: times(output)[name] for name in before} == before


def test_contrasts_on_different_grids_are_left_out(tmp_path):
    for case in ("BraTS2021_00000", "BraTS2021_00001"):
        put(tmp_path / "source", case, OLD, [0, 1, 2, 4])
    moved = AFFINE.copy()
    moved[0, 3] += 5
    write(tmp_path / "source/BraTS2021_00001/BraTS2021_00001_t2.nii.gz", scan(2), moved)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 1
    assert len(datalist.training) == 1
    assert "different grids" in summary(tmp_path / "out")["left_out"]["BraTS2021_00001"]


def test_years_with_other_label_values_are_not_mixed(tmp_path, capsys):
    put(tmp_path / "source", "BraTS2021_00000", OLD, [0, 1, 2, 4])
    put(tmp_path / "source", "BraTS-GLI-00005-100", NEW, [0, 1, 2, 3])
    assert main(["brats", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "BraTS2021_00000" in error
    assert "BraTS-GLI-00005-100" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["BraTS-PED-00001-000", "BraTS-MEN-00004-000", "case-1"])
def test_other_challenges_are_refused_for_their_labels_mean_other_things(tmp_path, case, capsys):
    put(tmp_path / "source", case, NEW, [0, 1, 2, 3])
    assert main(["brats", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert f"but got {case}" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_with_the_layout(tmp_path, capsys):
    write(tmp_path / "source/patient/scan.nii.gz", scan(0))
    assert main(["brats", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "CASE_{t1,t1ce,t2,flair,seg}.nii.gz" in capsys.readouterr().err


def test_linked_folders_are_searched(tmp_path):
    put(tmp_path / "store", "BraTS2021_00000", OLD, [0, 1, 2, 4])
    (tmp_path / "source").mkdir()
    (tmp_path / "source/BraTS2021_00000").symlink_to(tmp_path / "store/BraTS2021_00000")
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert (code, len(datalist.training)) == (0, 1)

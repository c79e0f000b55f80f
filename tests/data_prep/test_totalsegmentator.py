"""`medseg-prep totalsegmentator`: one mask a structure becomes one label map with the published class numbers."""

import nibabel as nib
import numpy as np
import pytest
from medseg_se.data_prep.main import main
from medseg_se.data_prep.totalsegmentator_classes import CT_CLASSES, MR_CLASSES
from sources import AFFINE, SHAPE, scan, summary, times, truncate, voxels, write

from medseg_se.data.datalist import read_datalist

# Boxes (slices of every axis) that do not touch, with the class number of the version-2 model.
BOXES = {
    "spleen": (1, np.s_[0:2, 0:2, 0:2]),
    "kidney_right": (2, np.s_[2:4, 0:2, 0:2]),
    "kidney_left": (3, np.s_[4:7, 0:2, 0:2]),
    "costal_cartilages": (117, np.s_[:, 3:6, 2:5]),
}
META = "\ufeffimage_id;age;gender;institute;study_type;split\n"


def mask_of(name, kind=np.uint8):
    mask = np.zeros(SHAPE, kind)
    mask[BOXES[name][1]] = 1
    return mask


def put(source, case, names=tuple(BOXES), seed=0):
    write(source / case / "ct.nii.gz", scan(seed))
    for name in names:
        write(source / case / f"segmentations/{name}.nii.gz", mask_of(name))
    (source / case / "segmentations/._spleen.nii.gz").write_bytes(b"twin")


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "download/Totalsegmentator_dataset_v201"
    for number in range(3):
        put(root, f"s000{number}", seed=number)
    lines = ("s0000;61.5;m;C;ct abdomen;train", "s0001;;f;A;ct thorax;val", "s0002;70;f;A;ct thorax;test")
    (root / "meta.csv").write_text(META + "\n".join(lines) + "\n", encoding="utf-8")
    return root


def convert(source, output, *options):
    code = main(["totalsegmentator", str(source), str(output), *options])
    return code, read_datalist(output)


def test_the_class_tables_are_whole():
    assert len(set(CT_CLASSES)) == 117
    assert len(set(MR_CLASSES)) == 50
    for classes, number, name in (
        (CT_CLASSES, 5, "liver"),
        (CT_CLASSES, 52, "aorta"),
        (CT_CLASSES, 90, "brain"),
        (CT_CLASSES, 117, "costal_cartilages"),
        (MR_CLASSES, 19, "vertebrae"),
        (MR_CLASSES, 50, "brain"),
    ):
        assert classes[number - 1] == name


def test_masks_become_one_map_and_the_table_says_what_is_held_out(source, tmp_path):
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    assert datalist.channels == ("CT",)
    assert datalist.structures.values == {name: (number,) for name, (number, _) in BOXES.items()}
    assert datalist.structures.pairs() == ((3, 2),)
    assert [case.id for case in datalist.training] == ["s0000", "s0001"]
    assert [case.id for case in datalist.test] == ["s0002"]
    assert datalist.training[0].attributes == {
        "age": 61.5,
        "gender": "m",
        "institute": "C",
        "study_type": "ct abdomen",
        "split": "train",
    }
    assert "age" not in datalist.training[1].attributes
    assert datalist.training[1].attributes["split"] == "val"
    expected = np.zeros(SHAPE)
    for number, box in BOXES.values():
        expected[box] = number
    for case, seed in ((datalist.training[0], 0), (datalist.test[0], 2)):
        np.testing.assert_array_equal(voxels(case.label), expected)
        np.testing.assert_array_equal(voxels(case.images[0]), scan(seed))


def test_an_outer_folder_and_masks_of_zeros_and_ones_in_float_will_do(source, tmp_path):
    write(source / "s0001/segmentations/spleen.nii.gz", mask_of("spleen", np.float32))
    write(source / "s0001/segmentations/kidney_left.nii.gz", np.zeros(SHAPE, np.uint8))
    code, datalist = convert(source.parent, tmp_path / "out")
    assert code == 0
    assert len(datalist.test) == 1
    labels = voxels(datalist.training[1].label)
    assert (labels == 1).sum() == 8
    assert (labels == 3).sum() == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_the_smaller_of_two_overlapping_structures_wins_and_the_overlap_is_counted(source, tmp_path, reverse, capsys):
    large, small = ("kidney_left", "kidney_right") if reverse else ("kidney_right", "kidney_left")
    covered, inner = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    covered[2:7, 0:2, 0:2] = 1
    inner[3:5, 0:2, 0:2] = 1
    write(source / f"s0000/segmentations/{large}.nii.gz", covered)
    write(source / f"s0000/segmentations/{small}.nii.gz", inner)
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    labels = voxels(datalist.training[0].label)
    np.testing.assert_array_equal(labels == BOXES[small][0], inner == 1)
    np.testing.assert_array_equal(labels == BOXES[large][0], (covered == 1) & (inner == 0))
    expected = "note: s0000: 8 voxels lie in two masks and went to the smaller structure: kidney_right and kidney_left 8."
    assert expected in capsys.readouterr().out


def test_a_missing_mask_leaves_the_case_out_until_it_is_there(source, tmp_path):
    output, mask = tmp_path / "out", source / "s0001/segmentations/spleen.nii.gz"
    mask.rename(tmp_path / "spleen.nii.gz")
    code, datalist = convert(source, output)
    assert code == 1
    assert [case.id for case in datalist.training] == ["s0000"]
    assert "spleen.nii.gz is missing" in summary(output)["left_out"]["s0001"]
    before = times(output)
    (tmp_path / "spleen.nii.gz").rename(mask)
    code, datalist = convert(source, output)
    assert (code, len(datalist.training)) == (0, 2)
    assert {name: times(output)[name] for name in before} == before


def test_structures_that_are_asked_for_need_only_their_own_masks(source, tmp_path):
    (source / "s0001/segmentations/spleen.nii.gz").unlink()
    code, datalist = convert(source, tmp_path / "out", "--structures", '["kidney_left", "kidney_right"]')
    assert code == 0
    assert datalist.structures.values == {"kidney_right": (2,), "kidney_left": (3,)}
    assert set(np.unique(voxels(datalist.training[1].label))) == {0, 2, 3}


def test_what_is_not_converted_is_said(source, tmp_path, capsys):
    write(source / "s0000/segmentations/heart_myocardium.nii.gz", mask_of("spleen"))
    with (source / "meta.csv").open("a") as stream:
        stream.write("s0777;50;m;C;ct abdomen;train\n")
    assert main(["totalsegmentator", str(source), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Not converted, for they have no class number: heart_myocardium." in printed
    assert "1 of the 4 cases in meta.csv are not here, s0777 first." in printed
    assert "No case has a mask of: gallbladder, liver, stomach, pancreas, adrenal_gland_right and 108 more." in printed


def test_a_case_that_the_table_does_not_list_may_be_a_test_case_and_is_left_out(source, tmp_path):
    put(source, "s0009")
    code, datalist = convert(source, tmp_path / "out")
    assert code == 1
    assert len(datalist.training) == 2
    assert "meta.csv does not list" in summary(tmp_path / "out")["left_out"]["s0009"]


def test_without_a_table_nothing_is_held_out_and_it_is_said(source, tmp_path, capsys):
    (source / "meta.csv").unlink()
    code, datalist = convert(source, tmp_path / "out")
    assert (code, len(datalist.training)) == (0, 3)
    assert "There is no meta.csv" in capsys.readouterr().out


def test_scans_and_masks_that_cannot_be_used_are_left_out_by_name(source, tmp_path):
    truncate(source / "s0000/ct.nii.gz")
    write(source / "s0001/segmentations/spleen.nii.gz", mask_of("spleen") * 255)
    write(source / "s0002/segmentations/spleen.nii.gz", mask_of("spleen")[:-1])
    put(source, "s0003")
    put(source, "s0004")
    (source / "s0004/ct.nii.gz").unlink()
    with (source / "meta.csv").open("a") as stream:
        stream.write("s0003;50;m;C;ct abdomen;train\ns0004;50;m;C;ct abdomen;train\n")
    code, datalist = convert(source, tmp_path / "out")
    assert code == 1
    assert [case.id for case in (*datalist.training, *datalist.test)] == ["s0003"]
    left_out = summary(tmp_path / "out")["left_out"]
    assert "ct.nii.gz" in left_out["s0000"]
    assert "from 0 to 255" in left_out["s0001"]
    assert "different grids" in left_out["s0002"]
    assert "ct.nii.gz is missing" in left_out["s0004"]


def test_magnetic_resonance_has_numbers_of_its_own_and_empty_masks_are_said(tmp_path, capsys):
    source = tmp_path / "mri"
    write(source / "s0000/mri.nii.gz", scan(0))
    for name in ("brain", "vertebrae"):
        write(source / f"s0000/segmentations/{name}.nii.gz", np.zeros(SHAPE, np.uint8))
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    assert datalist.channels == ("MR",)
    assert datalist.structures.values == {"vertebrae": (19,), "brain": (50,)}
    assert "note: s0000: All its masks are empty." in capsys.readouterr().out
    put(source, "s0001")
    assert main(["totalsegmentator", str(source), str(tmp_path / "mixed")]) == 2
    assert "mixes CT and MR" in capsys.readouterr().err


def test_names_and_layouts_that_are_unknown_are_refused(source, tmp_path, capsys):
    command = ["totalsegmentator", str(source), str(tmp_path / "out"), "--structures"]
    assert main([*command, '["splen"]']) == 2
    assert "Did you mean 'spleen'?" in capsys.readouterr().err
    assert main([*command, '["liver"]']) == 2
    assert "No case in" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["totalsegmentator", str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "ct.nii.gz (or mri.nii.gz)" in capsys.readouterr().err
    (source / "meta.csv").write_text("case;split\ns0000;train\n")
    assert main(["totalsegmentator", str(source), str(tmp_path / "out")]) == 2
    assert "a column 'image_id'" in capsys.readouterr().err


def test_affine_is_that_of_the_scan(source, tmp_path):
    convert(source, tmp_path / "out")
    for name in ("imagesTr", "labelsTr"):
        np.testing.assert_allclose(nib.load(tmp_path / f"out/{name}/s0000.nii.gz").affine, AFFINE, atol=1e-5)


def test_a_listed_case_whose_folder_is_empty_is_left_out(source, tmp_path):
    (source / "s0001/ct.nii.gz").unlink()
    for path in (source / "s0001/segmentations").iterdir():
        path.unlink()
    (source / "s0001/segmentations").rmdir()
    (source / "notes").mkdir()
    code, datalist = convert(source, tmp_path / "out")
    assert code == 1
    assert [case.id for case in (*datalist.training, *datalist.test)] == ["s0000", "s0002"]
    assert summary(tmp_path / "out")["left_out"] == {"s0001": f"{source}/s0001 holds neither scan nor masks. Restore them."}
    assert summary(tmp_path / "out")["notes"][0].startswith("No case has a mask of")


def test_scans_in_capitals_are_scans(source, tmp_path):
    for number in range(3):
        (source / f"s000{number}/ct.nii.gz").rename(source / f"s000{number}/CT.NII.GZ")
    code, datalist = convert(source, tmp_path / "out")
    assert (code, len(datalist.training)) == (0, 2)

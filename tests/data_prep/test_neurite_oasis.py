"""Neurite OASIS: the names of the labels come from the table beside the data."""

import json

import numpy as np
import pytest
from medseg_se.data_prep.main import main

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image, read_labels

SHAPE = (6, 5, 4)
TABLE = """\
  0  Unknown                          0   0   0   0
  1  Left-Cerebral-White-Matter     245 245 245   0
  2  Left-Cerebral-Cortex           205  62  78   0
 20  Right-Cerebral-White-Matter    245 245 245   0
 21  Right-Cerebral-Cortex          205  62  78   0
"""


@pytest.fixture
def oasis(tmp_path, write_scan, make_affine):
    """Return a function that writes one subject: a table of names, and files of the names given."""
    root = tmp_path / "oasis"

    def write(name, table=TABLE, values=(1, 2, 20, 21), shape=SHAPE, image="aligned_norm", labels="aligned_seg35", seed=0):
        affine = make_affine("LIA", (1.0, 1.0, 1.0))
        array = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
        write_scan(root / name / f"{image}.nii.gz", array, affine)
        truth = np.zeros(shape, dtype=np.uint8)
        truth.ravel()[: len(values)] = values
        write_scan(root / name / f"{labels}.nii.gz", truth, affine)
        (root / f"{labels.rpartition('_')[2]}_labels.txt").write_text(table)
        return array, truth

    return write


def convert(tmp_path, *options):
    return main(["neurite-oasis", str(tmp_path / "oasis"), str(tmp_path / "out"), *options])


def test_voxels_names_and_groups(tmp_path, oasis, make_affine):
    array, truth = oasis("OASIS_OAS1_0001_MR1")
    oasis("OASIS_OAS1_0001_MR2", seed=1)
    (tmp_path / "oasis" / "subjects.txt").write_text("OASIS_OAS1_0001_MR1\n")
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.structures.values == {
        "Left-Cerebral-White-Matter": (1,),
        "Left-Cerebral-Cortex": (2,),
        "Right-Cerebral-White-Matter": (20,),
        "Right-Cerebral-Cortex": (21,),
    }
    assert datalist.structures.pairs() == ((1, 3), (2, 4))
    assert [case.group for case in datalist.training] == ["OAS1_0001", "OAS1_0001"]
    image = read_image(datalist.training[0].images[0])
    assert np.array_equal(image.array[0], array)
    assert np.allclose(image.affine, make_affine("LIA", (1.0, 1.0, 1.0)))
    assert np.array_equal(read_labels(datalist.training[0].label).array[0], truth)


@pytest.mark.parametrize(
    ("options", "image", "labels"),
    [
        (("--image", "orig"), "aligned_orig", "aligned_seg35"),
        (("--labels", "seg4"), "aligned_norm", "aligned_seg4"),
        (("--space", "native"), "norm", "seg35"),
        (("--space", "slice"), "slice_norm", "slice_seg24"),
        (("--space", "slice", "--image", "orig", "--labels", "seg4"), "slice_orig", "slice_seg4"),
    ],
)
def test_the_files_of_each_choice(tmp_path, oasis, options, image, labels):
    array, truth = oasis("OASIS_OAS1_0001_MR1", image=image, labels=labels)
    assert convert(tmp_path, *options) == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert np.array_equal(read_image(case.images[0]).array[0], array)
    assert np.array_equal(read_labels(case.label).array[0], truth)


def test_a_segmentation_that_the_space_does_not_have(tmp_path, oasis, capsys):
    oasis("OASIS_OAS1_0001_MR1")
    assert convert(tmp_path, "--labels", "seg24") == 2
    assert "to be seg35 or seg4 where `space` is 'aligned', but got 'seg24'" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_and_made_once_it_is_mended(tmp_path, oasis, capsys):
    oasis("OASIS_OAS1_0001_MR1")
    oasis("OASIS_OAS1_0002_MR1")
    (tmp_path / "oasis" / "OASIS_OAS1_0002_MR1" / "aligned_norm.nii.gz").unlink()
    oasis("OASIS_OAS1_0003_MR1", values=(1, 7))
    oasis("OASIS_OAS1_0004_MR1", shape=(6, 5, 3))
    assert convert(tmp_path) == 1
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (summary["found"], summary["usable"]) == (4, 1)
    assert "aligned_norm.nii.gz is missing" in summary["left_out"]["OASIS_OAS1_0002_MR1"]
    assert "holds label value {7}" in summary["left_out"]["OASIS_OAS1_0003_MR1"]
    assert "different grids" in summary["left_out"]["OASIS_OAS1_0004_MR1"]
    finished = tmp_path / "out" / "labelsTr" / "OASIS_OAS1_0001_MR1.nii.gz"
    before = finished.stat().st_mtime_ns
    for number in (2, 3, 4):
        oasis(f"OASIS_OAS1_000{number}_MR1")
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "1 of them were there already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("1 Left-Cortex\n", "Expected line 1 of"),
        ("1 A 1 2 3 0\n2 A 1 2 3 0\n", "names 'A' twice, the second time in line 2"),
        ("# nothing\n0 Unknown 0 0 0 0\n", "names none"),
        ("1 A 1 2 3 0\n1 B 1 2 3 0\n", "means both 'A' and 'B'"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, oasis, table, reason, capsys):
    oasis("OASIS_OAS1_0001_MR1", table=table)
    assert convert(tmp_path) == 2
    assert reason in capsys.readouterr().err


def test_without_the_table_no_meaning_is_guessed(tmp_path, oasis, capsys):
    oasis("OASIS_OAS1_0001_MR1")
    (tmp_path / "oasis" / "seg35_labels.txt").unlink()
    assert convert(tmp_path) == 2
    assert "seg35_labels.txt, which says what the label values mean, but there is none" in capsys.readouterr().err
    for path in (tmp_path / "oasis").rglob("*.nii.gz"):
        path.unlink()
    (tmp_path / "oasis" / "OASIS_OAS1_0001_MR1").rename(tmp_path / "oasis" / "other")
    assert convert(tmp_path) == 2
    assert "folders of subjects such as OASIS_OAS1_0001_MR1, but found none" in capsys.readouterr().err


def test_a_table_with_a_byte_order_mark(tmp_path, oasis):
    oasis("OASIS_OAS1_0001_MR1", table="\ufeff" + TABLE.lstrip())
    assert convert(tmp_path) == 0
    assert len(read_datalist(tmp_path / "out").structures.names) == 4

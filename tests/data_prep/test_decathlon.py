"""`medseg-prep decathlon`: voxels, geometry, groups and folds come over as the list says."""

import numpy as np
import pytest
from medseg_se.data_prep.main import main
from sources import AFFINE, label_map, scan, summary, times, truncate, voxels, write, write_json

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image


@pytest.fixture
def task(tmp_path):
    """A Decathlon task with two channels a case, one held-out scan and the twin files that macOS leaves."""
    root = tmp_path / "Task99_Two"
    for number in range(3):
        write(root / f"imagesTr/case_{number}.nii.gz", np.stack([scan(number), scan(number + 50)], axis=-1))
        write(root / f"labelsTr/case_{number}.nii.gz", label_map([0, 1, 4], number))
        (root / f"imagesTr/._case_{number}.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    write(root / "imagesTs/case_9.nii.gz", np.stack([scan(9), scan(59)], axis=-1))
    write_json(
        root / "dataset.json",
        {
            "name": "Two",
            "modality": {"0": "FLAIR", "1": "T1w"},
            "labels": {"0": "background", "1": "edema", "4": "tumour"},
            "training": [
                {
                    "image": f"./imagesTr/case_{number}.nii.gz",
                    "label": f"./labelsTr/case_{number}.nii.gz",
                    "group": f"patient_{number // 2}",
                    "age": 60 + number,
                }
                for number in range(3)
            ],
            "test": ["./imagesTs/case_9.nii.gz"],
        },
    )
    return root


def test_a_task_comes_over_unchanged(task, tmp_path):
    output = tmp_path / "out"
    assert main(["decathlon", str(task), str(output)]) == 0
    datalist = read_datalist(output)
    assert datalist.name == "Two"
    assert datalist.channels == ("FLAIR", "T1w")
    assert datalist.structures.values == {"edema": (1,), "tumour": (4,)}
    assert [case.id for case in datalist.training] == ["case_0", "case_1", "case_2"]
    assert [case.group for case in datalist.training] == ["patient_0", "patient_0", "patient_1"]
    assert [case.attributes["age"] for case in datalist.training] == [60, 61, 62]
    assert [case.id for case in datalist.test] == ["case_9"]
    for number, case in enumerate(datalist.training):
        volume = read_image(case.images[0])
        np.testing.assert_array_equal(volume.array, [scan(number), scan(number + 50)])
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
        np.testing.assert_array_equal(voxels(case.label), label_map([0, 1, 4], number))
    np.testing.assert_array_equal(voxels(datalist.test[0].images[0])[..., 1], scan(59))


def test_cases_that_cannot_be_used_are_left_out_by_name_and_made_up_for_later(task, tmp_path, capsys):
    output = tmp_path / "out"
    whole = truncate(task / "imagesTr/case_0.nii.gz")
    write(task / "labelsTr/case_1.nii.gz", label_map([0, 1, 7], 1))
    assert main(["decathlon", str(task), str(output)]) == 1
    printed = capsys.readouterr().out
    assert "Two: 2 of 4 cases converted (1 held out for testing)." in printed
    assert "left out: case_0: " in printed
    assert "case_0.nii.gz" in summary(output)["left_out"]["case_0"]
    assert "{7}" in summary(output)["left_out"]["case_1"]
    assert [case.id for case in read_datalist(output).training] == ["case_2"]
    before = times(output)
    (task / "imagesTr/case_0.nii.gz").write_bytes(whole)
    write(task / "labelsTr/case_1.nii.gz", label_map([0, 1, 4], 1))
    assert main(["decathlon", str(task), str(output)]) == 0
    after = times(output)
    assert {name: after[name] for name in before} == before
    assert len(read_datalist(output).training) == 3


def test_a_csv_is_read_too(task, tmp_path):
    table = "id,image,label,group,fold\n" + "".join(
        f"c{number},imagesTr/case_{number}.nii.gz,labelsTr/case_{number}.nii.gz,p{number},{number % 2}\n" for number in range(3)
    )
    (task / "list.csv").write_text(table)
    write_json(task / "list.json", {"labels": {"edema": 1, "tumour": 4}, "channel_names": ["FLAIR", "T1w"]})
    assert main(["decathlon", str(task / "list.csv"), str(tmp_path / "out")]) == 0
    datalist = read_datalist(tmp_path / "out")
    assert [(case.id, case.group, case.fold) for case in datalist.training] == [
        ("c0", "p0", 0),
        ("c1", "p1", 1),
        ("c2", "p2", 0),
    ]


def test_regions_stay(task, tmp_path):
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "training": [{"image": "scan.nii.gz", "label": "label.nii.gz"}],
    }
    write_json(tmp_path / "source/dataset.json", content)
    write(tmp_path / "source/scan.nii.gz", scan(0))
    write(tmp_path / "source/label.nii.gz", label_map([0, 1, 2, 3]))
    assert main(["decathlon", str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    structures = read_datalist(tmp_path / "out").structures
    assert structures == read_datalist(tmp_path / "source").structures
    assert structures.ignore == 3
    assert structures.regions["whole"] == ("label_1", "core")


def test_a_folder_without_a_list_is_refused(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/notes.txt").write_text("nothing")
    assert main(["decathlon", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "dataset.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""VISCERAL Anatomy3: masks laid on one another, and no structure taken for background where it was not outlined."""

import json

import numpy as np
import pytest
from medseg_se.data_prep.main import main

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image, read_labels

SHAPE = (8, 7, 6)
LIVER, SPLEEN, GALLBLADDER = 58, 86, 187


def box(start, stop):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[start:stop] = 1
    return mask


@pytest.fixture
def anatomy(tmp_path, write_scan, make_affine):
    """Return a function that writes a volume and its masks, {(RadLex number, annotator): mask}."""
    affine = make_affine("LPS", (0.8, 0.8, 3.0))

    def write(name, masks, volume=True, affine=affine):
        image = np.random.default_rng(len(name)).integers(-1024, 1500, SHAPE).astype(np.int16)
        if volume:
            write_scan(tmp_path / "anatomy3" / "volumes" / f"{name}.nii.gz", image, affine)
        for (number, annotator), mask in masks.items():
            write_scan(tmp_path / "anatomy3" / "segmentations" / f"{name}_{number}_{annotator}.nii.gz", mask, affine)
        return image

    return write


def convert(tmp_path, *options):
    return main(["visceral", str(tmp_path / "anatomy3"), str(tmp_path / "out"), *options])


def summary_of(tmp_path):
    return json.loads((tmp_path / "out" / "conversion.json").read_text())


def test_voxels_labels_groups_and_attributes(tmp_path, anatomy, make_affine):
    image = anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3), (SPLEEN, 3): 255 * box(5, 6)})
    anatomy("10000100_2_CTce_ThAb", {(LIVER, 1): box(1, 3), (SPLEEN, 3): box(5, 6)})
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.channels == ("CTce",)
    assert datalist.structures.values == {"liver": (58,), "spleen": (86,)}
    assert [case.id for case in datalist.training] == ["10000100_1_CTce_ThAb", "10000100_2_CTce_ThAb"]
    assert [case.group for case in datalist.training] == ["10000100", "10000100"]
    case = datalist.training[0]
    assert case.attributes == {"modality": "CTce", "region": "ThAb"}
    scan, truth = read_image(case.images[0]), read_labels(case.label)
    assert np.array_equal(scan.array[0], image)
    assert np.allclose(truth.affine, make_affine("LPS", (0.8, 0.8, 3.0)))
    assert np.array_equal(truth.array[0], LIVER * box(0, 3) + SPLEEN * box(5, 6))


def test_left_and_right_are_pairs(tmp_path, anatomy):
    numbers = (1302, 1326, 29662, 29663, 30324, 30325, 32248, 32249, 40357, 40358, LIVER)
    anatomy("10000100_1_CTce_ThAb", {(number, 1): box(0, 8) for number in numbers})
    assert convert(tmp_path) == 0
    assert len(read_datalist(tmp_path / "out").structures.pairs()) == 5


def test_what_not_every_volume_has_is_not_taken_for_background(tmp_path, anatomy, capsys):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3), (GALLBLADDER, 1): box(4, 5)})
    anatomy("10000104_1_CTce_ThAb", {(LIVER, 1): box(0, 3), (29193, 1): box(6, 7)})
    anatomy("10000105_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    assert convert(tmp_path) == 0
    assert "are not taken: gallbladder (1 of 3), first lumbar vertebra (1 of 3); see" in capsys.readouterr().out
    assert read_datalist(tmp_path / "out").structures.names == ("liver",)
    assert convert(tmp_path, "--structures", "[gallbladder, liver]") == 1
    datalist = read_datalist(tmp_path / "out")
    assert datalist.structures.names == ("liver", "gallbladder")
    assert [case.id for case in datalist.training] == ["10000100_1_CTce_ThAb"]
    assert np.array_equal(read_labels(datalist.training[0].label).array[0], LIVER * box(0, 3) + GALLBLADDER * box(4, 5))
    summary = summary_of(tmp_path)
    assert (summary["found"], summary["usable"]) == (3, 1)
    assert "has no mask of gallbladder" in summary["left_out"]["10000104_1_CTce_ThAb"]


def test_one_lost_mask_costs_one_volume_and_not_the_structure(tmp_path, anatomy):
    both = {(LIVER, 1): box(0, 3), (SPLEEN, 1): box(5, 6)}
    anatomy("10000100_1_CTce_ThAb", both)
    anatomy("10000104_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    assert convert(tmp_path) == 1
    datalist = read_datalist(tmp_path / "out")
    assert datalist.structures.names == ("liver", "spleen")
    assert [case.id for case in datalist.training] == ["10000100_1_CTce_ThAb"]
    assert "has no mask of spleen. Add it" in summary_of(tmp_path)["left_out"]["10000104_1_CTce_ThAb"]


@pytest.mark.parametrize("numbers", [(LIVER, GALLBLADDER), (GALLBLADDER, 237)])
def test_the_smaller_structure_lies_on_top(tmp_path, anatomy, numbers):
    large, small = numbers
    anatomy("10000100_1_CTce_ThAb", {(large, 1): box(0, 6), (small, 1): box(4, 7)})
    anatomy("10000104_1_CTce_ThAb", {(small, 1): box(0, 6), (large, 1): box(4, 7)})
    assert convert(tmp_path) == 0
    first, second = (read_labels(case.label).array[0] for case in read_datalist(tmp_path / "out").training)
    assert np.array_equal(first, large * box(0, 4) + small * np.array(box(4, 7), dtype=np.uint16))
    assert np.array_equal(second, small * box(0, 4) + large * np.array(box(4, 7), dtype=np.uint16))
    notes = summary_of(tmp_path)["cases"]["10000100_1_CTce_ThAb"]["notes"]
    assert notes == ["masks overlap in 84 voxels, which go to the smaller structure"]


def test_the_annotator_with_the_lowest_number_counts(tmp_path, anatomy):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 10): box(0, 5), (LIVER, 9): box(0, 3)})
    assert convert(tmp_path) == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert np.array_equal(read_labels(case.label).array[0], LIVER * box(0, 3))
    notes = summary_of(tmp_path)["cases"]["10000100_1_CTce_ThAb"]["notes"]
    assert notes == ["several annotators outlined liver; the one with the lowest number counts"]


def test_modalities_are_not_mixed(tmp_path, anatomy, capsys):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    anatomy("10000200_1_CT_wb", {(LIVER, 1): box(0, 3)})
    anatomy("10000300_1_MRT1_wb", {(LIVER, 1): box(0, 3)})
    assert convert(tmp_path) == 2
    assert "CT_wb (1), CTce_ThAb (1), MRT1_wb (1). Name one with `--modality`" in capsys.readouterr().err
    assert convert(tmp_path, "--modality", "CT") == 0
    assert [case.id for case in read_datalist(tmp_path / "out").training] == ["10000200_1_CT_wb"]
    assert convert(tmp_path, "--modality", "mrt1_wb") == 0
    assert read_datalist(tmp_path / "out").channels == ("MRT1",)
    assert convert(tmp_path, "--modality", "PET") == 2
    assert "but got 'PET'" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_and_made_once_it_is_mended(tmp_path, anatomy, make_affine, capsys):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    anatomy("10000104_1_CTce_ThAb", {(LIVER, 1): box(0, 3)}, volume=False)
    anatomy("10000105_1_CTce_ThAb", {(LIVER, 1): box(0, 0)})
    anatomy("10000106_1_CTce_ThAb", {(LIVER, 1): box(0, 3) + box(1, 2)})
    anatomy("10000107_1_CTce_ThAb", {(LIVER, 1): box(0, 3)}, affine=make_affine("LPS"))
    anatomy("10000107_1_CTce_ThAb", {}, volume=True)
    anatomy("10000108_1_CTce_ThAb", {})
    assert convert(tmp_path) == 1
    summary = summary_of(tmp_path)
    assert (summary["found"], summary["usable"]) == (6, 1)
    reasons = {
        "10000104": "10000104_1_CTce_ThAb.nii.gz is missing",
        "10000105": "58_1.nii.gz is empty",
        "10000106": "holds the values [1, 2]",
        "10000107": "lies on another grid",
        "10000108": "has no mask of liver",
    }
    assert sorted(name[:8] for name in summary["left_out"]) == sorted(reasons)
    for name, why in summary["left_out"].items():
        assert reasons[name[:8]] in why
    finished = tmp_path / "out" / "labelsTr" / "10000100_1_CTce_ThAb.nii.gz"
    before = finished.stat().st_mtime_ns
    for name in reasons:
        anatomy(f"{name}_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "6 of 6 cases converted, 1 of them were there already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


def test_other_numbers_are_named_and_not_taken(tmp_path, anatomy, capsys):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3), (99999, 1): box(0, 8)})
    assert convert(tmp_path) == 0
    assert "not of Anatomy3 are not taken: 99999." in capsys.readouterr().out
    assert read_datalist(tmp_path / "out").structures.names == ("liver",)


def test_sources_that_cannot_be_converted(tmp_path, anatomy, capsys):
    (tmp_path / "anatomy3").mkdir()
    assert convert(tmp_path) == 2
    assert "10000100_1_CTce_ThAb.nii.gz, but found none" in capsys.readouterr().err
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    anatomy("10000104_1_CTce_ThAb", {(SPLEEN, 1): box(0, 3)})
    assert convert(tmp_path) == 2
    assert "there are liver (1), spleen (1)" in capsys.readouterr().err
    assert convert(tmp_path, "--structures", "[lever]") == 2
    assert "Did you mean 'liver'?" in capsys.readouterr().err
    volume = tmp_path / "anatomy3" / "volumes" / "10000104_1_CTce_ThAb.nii.gz"
    copy = tmp_path / "anatomy3" / volume.name
    copy.write_bytes(volume.read_bytes())
    assert convert(tmp_path) == 2
    assert "are the same volume. Remove one of them" in capsys.readouterr().err
    copy.unlink()
    mask = tmp_path / "anatomy3" / "segmentations" / "10000100_1_CTce_ThAb_58_1.nii.gz"
    (tmp_path / "anatomy3" / mask.name).write_bytes(mask.read_bytes())
    assert convert(tmp_path) == 2
    assert "are the same mask. Remove one of them" in capsys.readouterr().err


def test_linked_folders_are_searched(tmp_path, anatomy):
    anatomy("10000100_1_CTce_ThAb", {(LIVER, 1): box(0, 3)})
    (tmp_path / "anatomy3" / "segmentations").rename(tmp_path / "elsewhere")
    (tmp_path / "anatomy3" / "segmentations").symlink_to(tmp_path / "elsewhere")
    assert convert(tmp_path) == 0
    assert len(read_datalist(tmp_path / "out").training) == 1

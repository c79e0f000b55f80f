import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medseg_se.data import check
from medseg_se.data.check import check_datalist, render
from medseg_se.data.datalist import Case, Datalist, read_datalist
from medseg_se.errors import UsageError
from medseg_se.structures import Structures


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    return write_decathlon(tmp_path / "data")


def edit(folder, change):
    """Let `change` edit the content of the dataset's description."""
    content = json.loads((folder / "dataset.json").read_text())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))


def examine(folder, **options):
    return check_datalist(read_datalist(folder), **options)


def codes(report):
    return sorted((finding.severity, finding.case, finding.code) for finding in report.findings)


def shown(report, width=200):
    console = Console(file=io.StringIO(), width=width)
    render(report, console)
    return console.file.getvalue()


def noise(shape=(12, 11, 10), seed=99):
    return np.random.default_rng(seed).normal(100, 10, size=shape).astype(np.float32)


def image_of(folder, number, split="Tr"):
    return folder / f"images{split}" / f"case_{number:02d}.nii.gz"


def label_of(folder, number):
    return folder / "labelsTr" / f"case_{number:02d}.nii.gz"


# ------------------------------------------------------------------------------------------------------------- nothing is wrong


def test_a_clean_dataset_has_no_findings(dataset):
    report = examine(dataset)
    assert report.findings == ()
    assert not report.broken
    assert report.cases == 7
    assert "Cases: 7. Nothing is wrong." in shown(report)


def test_the_summary_holds_what_the_files_hold(tmp_path, write_decathlon, make_affine):
    folder = write_decathlon(tmp_path, shape=(10, 12, 11), affine=make_affine("SRA", spacing=(3.0, 1.0, 2.0)))
    summary = examine(folder).summary
    assert summary.spacing == {"left-right": [1.0] * 3, "back-front": [2.0] * 3, "down-up": [3.0] * 3}
    assert summary.size == {"left-right": [12.0] * 3, "back-front": [11.0] * 3, "down-up": [10.0] * 3}
    assert summary.orientations == {"SRA": 7}
    assert summary.structures == {"near": {"voxels": 6 * 64, "cases": 6}, "far": {"voxels": 6 * 27, "cases": 6}}
    low, middle, high = summary.intensity["T1"]
    assert 40 < low < 75
    assert 95 < middle < 110
    assert 200 < high < 250


def test_the_number_of_workers_changes_nothing(dataset):
    shutil.copy(image_of(dataset, 0), image_of(dataset, 4))
    image_of(dataset, 2).unlink()
    assert examine(dataset, workers=1) == examine(dataset, workers=5)
    with pytest.raises(UsageError, match="`workers` to be at least 1, but got 0"):
        examine(dataset, workers=0)


def test_every_file_is_read_once(dataset, monkeypatch):
    read = []

    def counted(function):
        def reader(path):
            read.append(path)
            return function(path)

        return reader

    monkeypatch.setattr(check, "read_image", counted(check.read_image))
    monkeypatch.setattr(check, "read_labels", counted(check.read_labels))
    examine(dataset)
    assert sorted(read) == sorted(dataset.rglob("*.nii.gz"))


def test_cases_that_lie_turned_in_their_files_are_alike(dataset, write_scan, make_affine):
    affine = make_affine("SRA", spacing=(1.0, 1.0, 1.0))
    write_scan(image_of(dataset, 1), noise((10, 12, 11)), affine)
    write_scan(label_of(dataset, 1), np.ones((10, 12, 11), np.uint8), affine)
    report = examine(dataset)
    assert report.findings == ()
    assert report.summary.orientations == {"RAS": 6, "SRA": 1}
    assert report.summary.size["left-right"] == [12.0, 12.0, 12.0]


# ----------------------------------------------------------------------------------------------------------------- single cases


def test_missing_and_damaged_files_are_errors_with_their_names(dataset):
    image_of(dataset, 0).unlink()
    label_of(dataset, 1).write_bytes(label_of(dataset, 1).read_bytes()[:-30])
    image_of(dataset, 6, "Ts").write_bytes(b"no scan")
    report = examine(dataset)
    assert report.broken
    assert codes(report) == [
        ("error", "case_00", "missing-file"),
        ("error", "case_01", "unreadable-file"),
        ("error", "case_06", "unreadable-file"),
    ]
    texts = [finding.message for finding in report.findings]
    assert f"No such file: {image_of(dataset, 0)}. Restore it" in texts[0]
    assert str(label_of(dataset, 1)) in texts[1]
    assert "copy it again" in texts[1]
    assert "is not a NIfTI file" in texts[2]


def test_a_label_map_on_another_grid_is_an_error(dataset, write_scan, make_affine):
    write_scan(label_of(dataset, 3), np.ones((12, 11, 9), np.uint8))
    write_scan(label_of(dataset, 4), np.ones((12, 11, 10), np.uint8), make_affine(origin=(0.0, 0.0, 3.0)))
    report = examine(dataset)
    assert codes(report) == [("error", "case_03", "different-grids"), ("error", "case_04", "different-grids")]
    assert "(12, 11, 10) against (12, 11, 9)" in report.findings[0].message
    assert "3.00 mm apart" in report.findings[1].message
    assert str(label_of(dataset, 4)) in report.findings[1].message


def test_undeclared_label_values_are_listed(dataset, write_scan):
    labels = np.ones((12, 11, 10), np.uint8)
    labels[0, 0, :2] = 7, 9
    write_scan(label_of(dataset, 2), labels)
    report = examine(dataset)
    assert codes(report) == [("error", "case_02", "undeclared-labels")]
    assert f"{label_of(dataset, 2)} holds label values {{7, 9}}, not declared among {{0, 1, 2}}" in report.findings[0].message
    assert report.summary.structures["near"]["voxels"] == 5 * 64 + 12 * 11 * 10 - 2


def test_voxels_that_are_not_finite_are_an_error(dataset, write_scan):
    array = noise()
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    write_scan(image_of(dataset, 2), array)
    write_scan(image_of(dataset, 3), np.full_like(array, np.nan))
    report = examine(dataset)
    assert codes(report) == [("error", "case_02", "not-finite"), ("error", "case_03", "not-finite")]
    assert "holds 3 voxels that are NaN or infinite" in report.findings[0].message
    assert np.isfinite(report.summary.intensity["T1"]).all()
    json.dumps(report.to_dict(), allow_nan=False)


def test_empty_labels_and_constant_images_are_warnings(dataset, write_scan):
    write_scan(label_of(dataset, 0), np.zeros((12, 11, 10), np.uint8))
    write_scan(image_of(dataset, 1), np.full((12, 11, 10), 5, np.float32))
    write_scan(image_of(dataset, 2), np.full((12, 11, 10), 5, np.float32))
    report = examine(dataset)
    assert not report.broken
    assert codes(report) == [
        ("warning", "case_00", "empty-label"),
        ("warning", "case_01", "constant-image"),
        ("warning", "case_02", "constant-image"),
    ]


def test_a_training_case_needs_labels_and_a_test_case_does_not(dataset):
    edit(dataset, lambda content: content["training"][2].pop("label"))
    assert codes(examine(dataset)) == [("error", "case_02", "no-label")]


def test_a_label_map_of_floats_is_fine_if_its_values_are_whole(dataset, write_scan):
    write_scan(label_of(dataset, 0), np.ones((12, 11, 10), np.float32))
    assert examine(dataset).findings == ()
    write_scan(label_of(dataset, 0), np.full((12, 11, 10), 0.5, np.float32))
    report = examine(dataset)
    assert codes(report) == [("error", "case_00", "unreadable-file")]
    assert "fractions" in report.findings[0].message


def test_channels_are_counted_and_compared(tmp_path, write_decathlon, write_scan):
    folder = write_decathlon(tmp_path, channels=2)
    write_scan(image_of(folder, 0), noise())
    for name, shape, seed in (("t1", (12, 11, 10), 1), ("t2", (12, 11, 9), 2)):
        write_scan(folder / f"{name}.nii", noise(shape, seed))
    edit(folder, lambda content: content["training"][1].update(image=["t1.nii", "t2.nii"], id="case_01"))
    edit(folder, lambda content: content["training"][2].update(image=["t1.nii", "t1.nii"], id="case_02", group="case_01"))
    report = examine(folder)
    assert codes(report) == [
        ("error", "case_00", "wrong-channels"),
        ("error", "case_01", "different-grids"),
        ("warning", "case_02", "duplicate-image"),
    ]
    assert "Expected 2 channels (T1, T2)" in report.findings[0].message
    assert "(12, 11, 10) against (12, 11, 9)" in report.findings[1].message


def test_a_channel_listed_twice_is_a_warning(tmp_path, write_decathlon, write_scan):
    folder = write_decathlon(tmp_path, channels=2)
    write_scan(folder / "t1.nii", noise())
    edit(folder, lambda content: content["training"][2].update(image=["t1.nii", "t1.nii"], id="case_02"))
    assert codes(examine(folder)) == [("warning", "case_02", "repeated-channel")]


def test_a_missing_channel_does_not_shift_the_others(tmp_path, write_scan):
    cases = []
    for number in range(8):
        paths = tmp_path / f"{number}_ct.nii", tmp_path / f"{number}_pet.nii"
        write_scan(paths[0], noise(seed=number) - 1000)
        write_scan(paths[1], noise(seed=50 + number) / 1000)
        cases.append(Case(f"case_{number}", paths, group=str(number)))
    (tmp_path / "3_ct.nii").unlink()
    datalist = Datalist("two", tmp_path, ("CT", "PET"), Structures({"a": (1,)}), (), tuple(cases))
    report = check_datalist(datalist)
    assert codes(report) == [("error", "case_3", "missing-file")]
    assert report.summary.intensity["CT"][2] < -800
    assert report.summary.intensity["PET"][0] > 0


def test_one_fault_does_not_hide_the_next(dataset, write_scan):
    array = noise((12, 11, 9))
    array[0, 0, 0] = np.nan
    write_scan(image_of(dataset, 0), np.stack([array, np.full_like(array, 3)], axis=3))
    write_scan(label_of(dataset, 0), np.full((12, 11, 10), 8, np.uint8))
    image_of(dataset, 1).unlink()
    label_of(dataset, 1).unlink()
    assert codes(examine(dataset)) == [
        ("error", "case_00", "different-grids"),
        ("error", "case_00", "not-finite"),
        ("error", "case_00", "undeclared-labels"),
        ("error", "case_00", "wrong-channels"),
        ("error", "case_01", "missing-file"),
        ("error", "case_01", "missing-file"),
        ("warning", "case_00", "constant-image"),
    ]


# --------------------------------------------------------------------------------------------------------------- cases together


def test_the_same_scan_in_two_groups_is_an_error_and_in_one_a_warning(dataset, write_scan):
    write_scan(image_of(dataset, 3), noise())
    write_scan(image_of(dataset, 4), noise().astype(np.float64))  # the same voxels, another file
    assert image_of(dataset, 3).read_bytes() != image_of(dataset, 4).read_bytes()
    report = examine(dataset)
    assert codes(report) == [("error", "case_04", "duplicate-image")]
    assert "holds the same voxels" in report.findings[0].message
    assert "their groups are 'case_04' and 'case_03'" in report.findings[0].message

    edit(dataset, lambda content: [entry.update(group="p") for entry in content["training"][3:5]])
    assert codes(examine(dataset)) == [("warning", "case_04", "duplicate-image")]


def test_a_test_scan_that_is_a_training_scan_is_an_error(dataset):
    shutil.copy(image_of(dataset, 5), image_of(dataset, 6, "Ts"))
    report = examine(dataset)
    assert codes(report) == [("error", "case_06", "test-in-training")]
    assert str(image_of(dataset, 6, "Ts")) in report.findings[0].message
    assert "case_05" in report.findings[0].message


def test_twins_among_the_test_scans_are_a_warning(tmp_path, write_decathlon):
    folder = write_decathlon(tmp_path, cases=5, test=2)
    shutil.copy(image_of(folder, 5, "Ts"), image_of(folder, 6, "Ts"))
    assert codes(examine(folder)) == [("warning", "case_06", "duplicate-image")]


def test_a_pair_of_cases_with_many_channels_in_common_is_named_once(tmp_path, write_decathlon):
    folder = write_decathlon(tmp_path, channels=3)
    shutil.copy(image_of(folder, 1), image_of(folder, 2))
    assert codes(examine(folder)) == [("error", "case_02", "duplicate-image")]


def test_structures_that_no_case_holds_are_named(dataset):
    edit(dataset, lambda content: content["labels"].update({"5": "stem", "6": "vermis"}))
    report = examine(dataset)
    assert codes(report) == [("warning", "", "absent-structure")]
    assert "No label map holds stem, vermis." in report.findings[0].message


def test_odd_spacing_names_the_value_and_the_median(dataset, write_scan, make_affine):
    affine = make_affine(spacing=(1.0, 1.0, 5.0))
    write_scan(image_of(dataset, 2), noise(), affine)
    write_scan(label_of(dataset, 2), np.ones((12, 11, 10), np.uint8), affine)
    report = examine(dataset)
    assert codes(report) == [("warning", "case_02", "odd-spacing")]
    assert "1 × 1 × 5 mm" in report.findings[0].message
    assert "the median is 1 × 1 × 1 mm" in report.findings[0].message


def test_odd_size_names_the_value_and_the_median(dataset, write_scan):
    write_scan(image_of(dataset, 2), noise((12, 11, 40)))
    write_scan(label_of(dataset, 2), np.ones((12, 11, 40), np.uint8))
    report = examine(dataset)
    assert codes(report) == [("warning", "case_02", "odd-size")]
    assert "12 × 11 × 40 voxels" in report.findings[0].message
    assert "the median is 12 × 11 × 10" in report.findings[0].message


@pytest.mark.parametrize("change", [lambda x: x + 1000, lambda x: (x - 100) * 20 + 100, lambda x: x / 1000])
def test_odd_intensities_name_the_value_and_the_median(dataset, write_scan, change):
    array = change(noise())
    write_scan(image_of(dataset, 4), array)
    report = examine(dataset)
    assert codes(report) == [("warning", "case_04", "odd-intensity")]
    assert f"intensities of {array.mean():.4g} ± {array.std():.4g}" in report.findings[0].message
    assert "T1" in report.findings[0].message


def test_nothing_is_odd_among_four(tmp_path, write_decathlon, write_scan):
    folder = write_decathlon(tmp_path, cases=4, test=0)
    write_scan(image_of(folder, 3), noise() + 1000)
    assert examine(folder).findings == ()


def test_small_differences_are_not_odd_where_all_others_agree(dataset, write_scan, make_affine):
    affine = make_affine(spacing=(1.0, 1.0, 1.1))
    write_scan(image_of(dataset, 2), noise((12, 11, 12)), affine)
    write_scan(label_of(dataset, 2), np.ones((12, 11, 12), np.uint8), affine)
    assert examine(dataset).findings == ()


def test_many_odd_ones_make_a_mixed_dataset(tmp_path, write_decathlon, write_scan):
    folder = write_decathlon(tmp_path, cases=16, test=0)
    for number in range(5):
        write_scan(image_of(folder, number), noise(seed=200 + number) * 1000)
    report = examine(folder)
    assert codes(report) == [("warning", "", "mixed-intensity")]
    assert "5 in 16 cases" in report.findings[0].message


# ------------------------------------------------------------------------------------------------------------------- the report


def test_errors_come_first_then_the_order_of_the_datalist(dataset, write_scan):
    write_scan(label_of(dataset, 0), np.zeros((12, 11, 10), np.uint8))
    shutil.copy(image_of(dataset, 1), image_of(dataset, 2))
    image_of(dataset, 5).unlink()
    label_of(dataset, 3).unlink()
    found = [(finding.severity, finding.case) for finding in examine(dataset).findings]
    assert found == [("error", "case_02"), ("error", "case_03"), ("error", "case_05"), ("warning", "case_00")]


def test_the_report_is_plain_data(dataset):
    image_of(dataset, 0).unlink()
    report = examine(dataset)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["broken"] is True
    assert plain["cases"] == 7
    assert plain["findings"][0]["code"] == "missing-file"
    assert plain["summary"]["structures"]["far"]["cases"] == 6


def test_a_dataset_of_which_nothing_can_be_read_still_gets_a_report(tmp_path):
    case = Case("a [bold]", (Path("none.nii"),), Path("none_either.nii"), "a")
    report = check_datalist(Datalist("x", tmp_path, ("T1",), Structures({"liver": (1,)}), (case,)))
    assert codes(report) == [("error", "a [bold]", "missing-file")] * 2
    assert report.summary.spacing == {}
    assert report.summary.structures == {"liver": {"voxels": 0, "cases": 0}}
    assert "a [bold]" in shown(report)


@pytest.mark.parametrize("width", [60, 200])
def test_all_findings_are_shown_in_full_at_any_width(dataset, width):
    image_of(dataset, 0).unlink()
    shutil.copy(image_of(dataset, 1), image_of(dataset, 2))
    report = examine(dataset)
    text = "".join(character for character in shown(report, width) if character.isalnum())
    assert "Cases7errors2warnings0" in text
    assert shown(report, width).count("error ") == 2
    assert "Nothingiswrong" not in text
    wide = "".join(shown(report, 10_000).split())
    for finding in report.findings:
        assert "".join(finding.message.split()) in wide
    assert "384voxels,cases:6" in wide


def test_the_progress_bar_is_for_terminals_only(dataset, monkeypatch, capsys):
    examine(dataset)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    examine(dataset, progress=False)
    assert capsys.readouterr() == ("", "")
    examine(dataset)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Reading" in err

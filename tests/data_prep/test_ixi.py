"""IXI: scans with the age of the person, whose table is not to be trusted in every row."""

import json

import numpy as np
import pytest
from medseg_se.data_prep.main import main

from medseg_se.data.datalist import read_datalist
from medseg_se.volumes import read_image

HEADER = (
    'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,WEIGHT,ETHNIC_ID,MARITAL_ID,OCCUPATION_ID,QUALIFICATION_ID,'
    "DOB,DATE_AVAILABLE,STUDY_DATE,AGE"
)


def row(number, sex="1", age="35.8"):
    return f"{number},{sex},178,75,1,2,1,5,1969-08-21,1,2005-06-15,{age}"


@pytest.fixture
def ixi(tmp_path, write_scan, make_affine):
    """Return a function that writes scans of the given names and the table."""

    def write(names, rows, table="IXI.csv", header=HEADER):
        arrays = {}
        for seed, name in enumerate(names):
            arrays[name] = np.random.default_rng(seed).integers(0, 900, (5, 6, 4)).astype(np.int16)
            write_scan(tmp_path / "IXI" / "IXI-T1" / f"{name}.nii.gz", arrays[name], make_affine("PSR", (0.94, 0.94, 1.2)))
        (tmp_path / "IXI" / table).write_text("\r\n".join([header, *rows]) + "\r\n")
        return arrays

    return write


def convert(tmp_path, *options):
    return main(["ixi", str(tmp_path / "IXI"), str(tmp_path / "out"), *options])


def test_voxels_ages_groups_and_sites(tmp_path, ixi, make_affine):
    names = ["IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI035-IOP-0873-T1", "IXI002-Guys-0828-T2"]
    arrays = ixi(names, [row(2), row(12, "2", "38.781656"), row(35, "0", "60"), "", row(99)])
    (tmp_path / "IXI" / "IXI-T1" / "._IXI002-Guys-0828-T1.nii.gz").write_bytes(b"left by macOS")
    assert convert(tmp_path) == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.channels == ("T1",)
    assert [(case.id, case.group, case.label) for case in datalist.training] == [
        ("IXI002-Guys-0828-T1", "IXI002", None),
        ("IXI012-HH-1211-T1", "IXI012", None),
        ("IXI035-IOP-0873-T1", "IXI035", None),
    ]
    assert [dict(case.attributes) for case in datalist.training] == [
        {"age": 35.8, "sex": "male", "site": "Guys"},
        {"age": 38.781656, "sex": "female", "site": "HH"},
        {"age": 60.0, "site": "IOP"},  # sex 0 is none
    ]
    image = read_image(datalist.training[0].images[0])
    assert np.array_equal(image.array[0], arrays["IXI002-Guys-0828-T1"])
    assert np.allclose(image.affine, make_affine("PSR", (0.94, 0.94, 1.2)))


def test_rows_as_the_published_table_has_them(tmp_path, ixi):
    """Numbers as a spreadsheet program writes them, a person twice, one who was never scanned, one whose age is unknown."""
    rows = [
        "1,1,178.0,75.0,1,2,1,5,1969-08-21,1,2005-06-15,35.8165639972621",
        "2.0,2.0,163.0,58.0,1,4,1,5,1970-01-30,1,2005-11-18,35.8001368925394",
        "2.0,2.0,0.0,0.0,1,4,1,5,1970-01-30,1,2005-11-18,35.8001368925394",
        "3,2,160,0,0,0,0,0,,0,,",
        "14,1,,,,,,,,0,,",
        "14,2,163,65,4,4,1,4,1971-03-15,1,2005-12-09,34.7378507871321",
    ]
    ixi(["IXI001-Guys-0828-T1", "IXI002-Guys-0828-T1", "IXI003-HH-1300-T1", "IXI014-HH-1236-T1"], rows)
    assert convert(tmp_path) == 1
    told = {case.group: dict(case.attributes) for case in read_datalist(tmp_path / "out").training}
    assert told == {
        "IXI001": {"age": 35.8165639972621, "sex": "male", "site": "Guys"},
        "IXI002": {"age": 35.8001368925394, "sex": "female", "site": "Guys"},
        "IXI014": {"age": 34.7378507871321, "site": "HH"},  # the two rows contradict each other about the sex
    }
    left_out = json.loads((tmp_path / "out" / "conversion.json").read_text())["left_out"]
    assert list(left_out) == ["IXI003-HH-1300-T1"]
    assert "gives no age for IXI_ID 3" in left_out["IXI003-HH-1300-T1"]


def test_a_share_of_every_sites_people_is_held_out(tmp_path, ixi, capsys):
    sites = ["Guys"] * 8 + ["HH"] * 4
    names = [f"IXI{number:03d}-{site}-1000-T1" for number, site in enumerate(sites, start=1)]
    rows = [row(number) for number in range(1, 13)]
    ixi([*names, "IXI001-Guys-1001-T1"], rows)
    assert convert(tmp_path, "--test", "0.25") == 0
    datalist = read_datalist(tmp_path / "out")
    held_out = {case.group for case in datalist.test}
    assert sorted(case.attributes["site"] for case in {case.group: case for case in datalist.test}.values()) == ["Guys"] * 2 + [
        "HH"
    ]
    assert held_out.isdisjoint(case.group for case in datalist.training)
    assert len(datalist.training) + len(datalist.test) == 13
    assert all(case.attributes["age"] == 35.8 for case in datalist.test)
    for number in set(range(1, 9)) - {int(group[3:]) for group in held_out}:  # without one of the others, the same people
        (tmp_path / "IXI" / "IXI-T1" / f"{names[number - 1]}.nii.gz").unlink()
        break
    assert main(["ixi", str(tmp_path / "IXI"), str(tmp_path / "fewer"), "--test", "0.25"]) == 0
    assert {case.group for case in read_datalist(tmp_path / "fewer").test} == held_out
    assert convert(tmp_path, "--test", "1") == 2
    assert "below 1" in capsys.readouterr().err


def test_another_modality(tmp_path, ixi):
    ixi(["IXI002-Guys-0828-T1", "IXI002-Guys-0828-T2"], [row(2)])
    assert convert(tmp_path, "--modality", "T2") == 0
    datalist = read_datalist(tmp_path / "out")
    assert datalist.channels == ("T2",)
    assert [case.id for case in datalist.training] == ["IXI002-Guys-0828-T2"]


def test_ages_that_are_missing_or_contradict_each_other(tmp_path, ixi):
    names = [f"IXI00{number}-HH-1211-T1" for number in range(1, 8)]
    rows = [
        row(1),
        row(2, age=""),
        row(3),
        row(3, age="40"),
        row(4),
        row(4),
        row(5, age="old"),
        row(6, age="0"),
        row(4, age=""),
    ]
    ixi(names, rows)
    assert convert(tmp_path) == 1
    assert [case.id[:6] for case in read_datalist(tmp_path / "out").training] == ["IXI001", "IXI004"]
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (summary["found"], summary["usable"]) == (7, 2)
    reasons = {name[:6]: why for name, why in summary["left_out"].items()}
    assert sorted(reasons) == ["IXI002", "IXI003", "IXI005", "IXI006", "IXI007"]
    assert "gives no age for IXI_ID 2" in reasons["IXI002"]
    assert "several ages, 35.80 and 40.00" in reasons["IXI003"]
    assert "but got 'old'" in reasons["IXI005"]
    assert "but got '0'" in reasons["IXI006"]
    assert "no row for IXI_ID 7" in reasons["IXI007"]


def test_a_damaged_scan_is_left_out_and_made_once_it_is_mended(tmp_path, ixi, capsys):
    names = ["IXI001-HH-1211-T1", "IXI002-HH-1211-T1"]
    ixi(names, [row(1), row(2)])
    scan = tmp_path / "IXI" / "IXI-T1" / f"{names[1]}.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:80])
    assert convert(tmp_path) == 1
    assert "truncated" in json.loads((tmp_path / "out" / "conversion.json").read_text())["left_out"][names[1]]
    finished = tmp_path / "out" / "imagesTr" / f"{names[0]}.nii.gz"
    before = finished.stat().st_mtime_ns
    scan.write_bytes(whole)
    capsys.readouterr()
    assert convert(tmp_path) == 0
    assert "2 of 2 cases converted, 1 of them were there already" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


def test_a_table_as_european_spreadsheets_save_it(tmp_path, ixi):
    ixi(["IXI002-Guys-0828-T1"], ["IXI002;2;35,8"], header="\ufeffIXI_ID;SEX_ID (1=m, 2=f);AGE")
    assert convert(tmp_path) == 0
    assert read_datalist(tmp_path / "out").training[0].attributes == {"age": 35.8, "sex": "female", "site": "Guys"}


def test_the_table_can_be_named(tmp_path, ixi, capsys):
    ixi(["IXI002-Guys-0828-T1"], [row(2)])
    ixi([], [row(2, age="41")], table="other.csv")
    assert convert(tmp_path) == 2
    assert "Name it with `--table`" in capsys.readouterr().err
    assert convert(tmp_path, "--table", str(tmp_path / "IXI" / "other.csv")) == 0
    assert read_datalist(tmp_path / "out").training[0].attributes["age"] == 41.0


@pytest.mark.parametrize(
    ("rows", "header", "reason"),
    [
        (["2,35"], "ID,AGE", "to have the columns IXI_ID and AGE, but got ID, AGE"),
        (["2," + "9" * 200_000], "IXI_ID,AGE", "as CSV: field larger than"),
        (["2,178,35"], "IXI_ID,AGE", "Line 2 of"),
        (["two,35"], "IXI_ID,AGE", "Expected IXI_ID in line 2 of"),
    ],
)
def test_a_table_of_another_kind_is_refused(tmp_path, ixi, rows, header, reason, capsys):
    ixi(["IXI002-Guys-0828-T1"], rows, header=header)
    assert convert(tmp_path) == 2
    assert reason in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path, ixi, capsys):
    ixi(["IXI002-Guys-0828-T1"], [row(2)])
    (tmp_path / "IXI" / "IXI.csv").rename(tmp_path / "IXI" / "IXI.xls")
    assert convert(tmp_path) == 2
    assert "IXI.xls cannot be read. Save it as CSV" in capsys.readouterr().err
    (tmp_path / "IXI" / "IXI.xls").unlink()
    assert convert(tmp_path) == 2
    assert "it holds no CSV" in capsys.readouterr().err
    assert convert(tmp_path, "--table", "nowhere.csv") == 2
    assert "Cannot read nowhere.csv: No such file" in capsys.readouterr().err
    assert convert(tmp_path, "--modality", "PD") == 2
    assert "IXI002-Guys-0828-PD.nii.gz, but found none" in capsys.readouterr().err


def test_names_in_capitals_and_links(tmp_path, ixi):
    ixi(["IXI002-Guys-0828-T1", "IXI003-HH-1211-T1"], [row(2), row(3)])
    folder = tmp_path / "IXI" / "IXI-T1"
    (folder / "IXI003-HH-1211-T1.nii.gz").rename(folder / "ixi003-HH-1211-T1.NII.GZ")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert convert(tmp_path) == 0
    assert [case.group for case in read_datalist(tmp_path / "out").training] == ["IXI002", "IXI003"]

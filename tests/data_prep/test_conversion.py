"""The road that all converters share: whole or not there, run again at will, and every case that is missing has a reason."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from medseg_se.data_prep.collection import Collection, Item, Scan
from medseg_se.data_prep.conversion import compact, convert
from medseg_se.data_prep.main import main
from medseg_se.data_prep.steps import Steps
from sources import AFFINE, label_map, scan, summary, times, voxels, write, write_json

from medseg_se.data.datalist import Case, read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.store import prepare_cases
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.files import alone
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels

LIVER = Structures({"liver": (1,)})
NOTHING = Steps()


def make_task(root, cases=3):
    for number in range(cases):
        write(root / f"imagesTr/c{number}.nii.gz", scan(number))
        write(root / f"labelsTr/c{number}.nii.gz", label_map([0, 1], number))
    listed = [{"image": f"imagesTr/c{number}.nii.gz", "label": f"labelsTr/c{number}.nii.gz"} for number in range(cases)]
    write_json(root / "dataset.json", {"name": "Task", "modality": ["CT"], "labels": {"liver": 1}, "training": listed})
    return root


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path / "task")


def item(path, labels=None, image=None, **more):
    """A case that is made from `path` and holds what is given."""
    return Item(more.pop("id", path.name[:-7]), (path,), lambda: Scan(image or read_image(path), labels), **more)


def run(items, output, structures=LIVER, steps=NOTHING, **more):
    return convert(Collection("Made", ("CT",), structures, items, **more), output, steps, {"converter": "made"})


def test_a_rerun_makes_nothing_anew(task, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["decathlon", str(task), str(output)]) == 0
    before, described = times(output), (output / "dataset.json").read_bytes()
    capsys.readouterr()
    assert main(["decathlon", str(task), str(output)]) == 0
    assert "3 of 3 cases converted, 3 of them were there already." in capsys.readouterr().out
    assert times(output) == before
    assert (output / "dataset.json").read_bytes() == described
    assert not (output / ".conversion.jsonl").exists()


def test_a_changed_source_is_converted_again_and_alone(task, tmp_path):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])
    before = times(output)
    write(task / "imagesTr/c1.nii.gz", scan(77))
    assert main(["decathlon", str(task), str(output)]) == 0
    np.testing.assert_array_equal(voxels(output / "imagesTr/c1.nii.gz"), scan(77))
    after = times(output)
    assert {name for name in after if after[name] != before[name]} == {"imagesTr/c1.nii.gz", "labelsTr/c1.nii.gz"}


def test_other_options_convert_everything_again(task, tmp_path):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])
    assert read_image(output / "imagesTr/c0.nii.gz").orientation == "LSA"
    assert main(["decathlon", str(task), str(output), "--reorient", "RAS"]) == 0
    turned = [read_image(path) for path in sorted((output / "imagesTr").iterdir())]
    assert [volume.orientation for volume in turned] == ["RAS"] * 3
    np.testing.assert_array_equal(turned[0].array[0], scan(0)[::-1].transpose(0, 2, 1))


def test_a_file_that_was_deleted_or_cut_is_made_again(task, tmp_path):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])
    whole = (output / "imagesTr/c0.nii.gz").read_bytes()
    (output / "imagesTr/c0.nii.gz").write_bytes(whole[:100])
    (output / "labelsTr/c2.nii.gz").unlink()
    assert main(["decathlon", str(task), str(output)]) == 0
    assert (output / "imagesTr/c0.nii.gz").read_bytes() == whole
    np.testing.assert_array_equal(voxels(output / "labelsTr/c2.nii.gz"), label_map([0, 1], 2))


def test_a_killed_run_leaves_no_list_and_is_continued(tmp_path):
    task, output = make_task(tmp_path / "task", cases=40), tmp_path / "out"
    program = (
        "import sys, time; from medseg_se.data_prep import conversion, main; plain = conversion.write_volume\n"
        "def slow(*given):\n    time.sleep(0.1)\n    plain(*given)\n"
        "conversion.write_volume = slow\nsys.exit(main.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "decathlon", str(task), str(output), "--workers", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    log, limit = output / ".conversion.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5) and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = [json.loads(line)[1]["written"] for line in log.read_text().splitlines() if line]
    assert 3 < len(done) < 40
    assert not (output / "dataset.json").exists()
    with log.open("a") as stream:
        stream.write('["c39", {"key": "half a li')
    before = {name: times(output)[name] for written in done for name in written}
    assert main(["decathlon", str(task), str(output)]) == 0
    after = times(output)
    assert {name: after[name] for name in before} == before
    assert len(read_datalist(output).training) == 40
    assert not [name for name in after if name.endswith(".part") and name in before]


def test_a_case_that_moves_to_the_test_set_leaves_no_copy_behind(task, tmp_path):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])
    content = json.loads((task / "dataset.json").read_text())
    content["test"] = [content["training"].pop(0)]
    write_json(task / "dataset.json", content)
    assert main(["decathlon", str(task), str(output)]) == 0
    assert sorted(times(output)) == [
        *("imagesTr/c1.nii.gz", "imagesTr/c2.nii.gz", "imagesTs/c0.nii.gz"),
        *("labelsTr/c1.nii.gz", "labelsTr/c2.nii.gz", "labelsTs/c0.nii.gz"),
    ]


def test_a_source_that_vanishes_takes_no_converted_file_with_it(task, tmp_path):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])
    (task / "labelsTr/c1.nii.gz").unlink()
    assert main(["decathlon", str(task), str(output)]) == 1
    assert "labelsTr/c1.nii.gz is missing" in summary(output)["left_out"]["c1"]
    assert [case.id for case in read_datalist(output).training] == ["c0", "c2"]
    assert (output / "labelsTr/c1.nii.gz").exists()


def test_a_full_disk_is_one_line_and_the_rest_comes_later(task, tmp_path, monkeypatch, capsys):
    output, calls, plain = tmp_path / "out", [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main(["decathlon", str(task), str(output), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "the disk is full; free some space and run the same command again" in error
    assert error.count("\n") == 1
    assert not (output / "dataset.json").exists()
    assert not list(output.rglob("*.part"))
    monkeypatch.undo()
    before = times(output)
    assert set(before) == {"imagesTr/c0.nii.gz", "labelsTr/c0.nii.gz"}
    assert main(["decathlon", str(task), str(output)]) == 0
    assert {name: times(output)[name] for name in before} == before


def test_the_list_is_gone_while_its_files_are_being_replaced(task, tmp_path, monkeypatch):
    output = tmp_path / "out"
    main(["decathlon", str(task), str(output)])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["decathlon", str(task), str(output), "--reorient", "RAS"]) == 2
    assert not (output / "dataset.json").exists()


def test_a_list_of_another_kind_in_the_output_is_not_overwritten(task, tmp_path, capsys):
    write_json(tmp_path / "out/dataset.json", {"mine": True})
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 2
    assert "already holds a dataset that was not converted here" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == {"mine": True}


@pytest.mark.parametrize("output", ["", "imagesTr", "new", ".."])
def test_the_source_is_not_written_into(task, output, capsys):
    before = (task / "imagesTr/c0.nii.gz").read_bytes()
    assert main(["decathlon", str(task), str(task / output)]) == 2
    assert "output folder" in capsys.readouterr().err
    assert not (task / "new").exists()
    assert (task / "imagesTr/c0.nii.gz").read_bytes() == before


def test_a_dry_run_lists_and_writes_nothing(task, tmp_path, capsys):
    assert main(["decathlon", str(task), str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed] == [[f"c{number}", "training"] for number in range(3)]
    assert not (tmp_path / "out").exists()


def test_a_summary_accounts_for_every_case(task, tmp_path):
    write(task / "imagesTr/c2.nii.gz", scan(2)[:-1])
    assert main(["decathlon", str(task), str(tmp_path / "out"), "--reorient", "RAS"]) == 1
    content = summary(tmp_path / "out")
    assert (content["converter"], content["found"], content["usable"]) == ("decathlon", 3, 2)
    assert list(content["left_out"]) == ["c2"]
    assert "different grids" in content["left_out"]["c2"]
    assert content["cases"]["c0"]["image"] == "imagesTr/c0.nii.gz"


def test_no_usable_case_is_an_error_with_the_first_reason(task, tmp_path, capsys):
    for path in (task / "imagesTr").iterdir():
        path.unlink()
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 2
    assert "None of the 3 cases can be used, the first, c0, because: " in capsys.readouterr().err
    assert not (tmp_path / "out/dataset.json").exists()


def test_no_worker_is_refused(task, tmp_path, capsys):
    assert main(["decathlon", str(task), str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "Expected `workers` to be at least 1, but got 0." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil", "/evil", "", "a/./b", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    path = write(tmp_path / "source/case.nii.gz", scan(0))
    with pytest.raises(DataError, match="Expected the name of a case"):
        run([item(path, id=name)], tmp_path / "out")


def test_what_the_converter_left_out_is_counted_and_noted(tmp_path, capsys):
    path = write(tmp_path / "source/case.nii.gz", scan(0))
    code = run([item(path)], tmp_path / "out", left_out={"other": "It is upside down."}, notes=["A note."])
    assert code == 1
    printed = capsys.readouterr().out
    assert "Made: 1 of 2 cases converted." in printed
    assert "left out: other: It is upside down." in printed
    assert "note: A note." in printed
    assert summary(tmp_path / "out")["left_out"] == {"other": "It is upside down."}


def test_tables_lie_beside_the_list(tmp_path):
    path = write(tmp_path / "source/case.nii.gz", scan(0))
    assert run([item(path)], tmp_path / "out", tables={"more.csv": "a,b\n1,2\n"}) == 0
    assert (tmp_path / "out/more.csv").read_text() == "a,b\n1,2\n"


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"No case of Made can be used\. other: It is upside down"):
        run([], tmp_path / "out", left_out={"other": "It is upside down."})


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.full((1, 7, 6, 5), np.nan, np.float32), None, "NaN or infinite"),
        (np.zeros((2, 7, 6, 5), np.float32), None, "Expected the channels CT, but .* has 2"),
        (np.zeros((1, 7, 6, 5), np.float32), np.full((1, 7, 6, 5), 9), "label value"),
        (np.zeros((1, 7, 6, 5), np.float32), np.zeros((1, 7, 6, 4), np.uint8), "different grids"),
    ],
)
def test_what_would_mislead_a_training_is_left_out(tmp_path, image, labels, message):
    good, bad = write(tmp_path / "source/good.nii.gz", scan(0)), write(tmp_path / "source/bad.nii.gz", scan(1))
    broken = item(bad, None if labels is None else Volume(labels, AFFINE), Volume(image, AFFINE))
    assert run([item(good), broken], tmp_path / "out") == 1
    left_out = summary(tmp_path / "out")["left_out"]
    assert list(left_out) == ["bad"]
    assert re.search(message, left_out["bad"])


def test_a_label_map_alone_is_a_case(tmp_path):
    path = write(tmp_path / "source/map.nii.gz", label_map([0, 1]))
    alone = Item("map", (path,), lambda: Scan(None, read_labels(path)))
    assert run([alone], tmp_path / "out") == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert case.images == ()
    np.testing.assert_array_equal(voxels(case.label), label_map([0, 1]))


def test_neither_scan_nor_labels_is_left_out(tmp_path):
    path = write(tmp_path / "source/map.nii.gz", label_map([0, 1]))
    with pytest.raises(DataError, match="neither a scan nor a label map"):
        run([Item("map", (path,), lambda: Scan(None))], tmp_path / "out")


def test_a_bug_in_a_reader_keeps_its_traceback(tmp_path):
    path = write(tmp_path / "source/map.nii.gz", scan(0))
    with pytest.raises(ZeroDivisionError):
        run([Item("map", (path,), lambda: 1 // 0)], tmp_path / "out")


def test_an_output_that_cannot_be_made_is_an_output_error(tmp_path):
    path = write(tmp_path / "source/case.nii.gz", scan(0))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write"):
        run([item(path)], tmp_path / "file/out")


def test_an_output_that_holds_the_source_is_refused(tmp_path):
    path = write(tmp_path / "all/source/case.nii.gz", scan(0))
    with pytest.raises(UsageError, match="holds the source itself"):
        run([item(path)], tmp_path / "all")


def test_an_output_within_the_source_is_refused(task, capsys):
    assert main(["decathlon", str(task), str(task / "converted")]) == 2
    assert "Expected an output folder outside of" in capsys.readouterr().err
    assert not (task / "converted").exists()


def test_a_corrected_mask_makes_its_case_again(task, tmp_path):
    cases = [case.id for case in read_datalist(task).training]
    for case in cases:
        write(tmp_path / f"masks/{case}.nii.gz", np.ones_like(voxels(task / f"imagesTr/{case}.nii.gz"), dtype=np.uint8))
    command = ["decathlon", str(task), str(tmp_path / "out"), "--mask", str(tmp_path / "masks")]
    assert main(command) == 0
    before = times(tmp_path / "out")
    mask = np.ones_like(voxels(task / f"imagesTr/{cases[0]}.nii.gz"), dtype=np.uint8)
    mask[0] = 0
    write(tmp_path / f"masks/{cases[0]}.nii.gz", mask)
    assert main(command) == 0
    assert not voxels(tmp_path / f"out/imagesTr/{cases[0]}.nii.gz")[0].any()
    changed = {name for name, time_of in times(tmp_path / "out").items() if time_of != before[name]}
    assert changed == {f"imagesTr/{cases[0]}.nii.gz", f"labelsTr/{cases[0]}.nii.gz"}


def test_a_summary_of_another_program_is_not_believed(task, tmp_path):
    write_json(tmp_path / "out/conversion.json", {"cases": {"c0": {"other": 1}}})
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 0
    assert len(read_datalist(tmp_path / "out").training) == 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], "uint8"),
        ([-1, 255], "int16"),
        ([0, 40000], "uint16"),
        ([-1, 40000], "int32"),
        ([0.0, 3.0], "uint8"),
        ([0.5, 3.0], "float32"),
        ([0.0, 3e9], "float32"),
    ],
)
def test_the_smallest_type_that_holds_the_same_numbers(values, kind):
    array = np.array(values)
    small = compact(array)
    assert small.dtype == kind
    np.testing.assert_array_equal(small, array)


def test_cases_of_one_name_are_left_out_and_the_rest_goes_on(tmp_path):
    paths = [write(tmp_path / f"source/{name}.nii.gz", scan(number)) for number, name in enumerate(("1/a", "2/A", "c"))]
    assert run([item(path) for path in paths], tmp_path / "out") == 1  # some file systems do not tell a from A
    assert [case.id for case in read_datalist(tmp_path / "out").training] == ["c"]
    assert "2 cases have this name" in summary(tmp_path / "out")["left_out"]["a"]


def test_a_name_that_is_no_text_is_left_out(tmp_path, capsys):
    good, odd = (write(tmp_path / f"source/{name}.nii.gz", scan(0)) for name in ("good", "caf\udce9"))
    assert run([item(good), item(odd)], tmp_path / "out") == 1
    assert [case.id for case in read_datalist(tmp_path / "out").training] == ["good"]
    assert main(["decathlon", str(tmp_path / "missing\udce9"), str(tmp_path / "other")]) == 2
    assert "missing\\udce9" in capsys.readouterr().err


def test_a_second_run_into_one_folder_is_refused(task, tmp_path, capsys):
    with alone(tmp_path / "out" / ".conversion.lock"):
        assert main(["decathlon", str(task), str(tmp_path / "out")]) == 2
    assert "Another run is writing to" in capsys.readouterr().err
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 0


def test_files_that_belong_to_no_case_any_more_stay_and_are_named(task, tmp_path, capsys):
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 0
    (task / "imagesTr/c1.nii.gz").unlink()
    for _ in range(2):  # and they are still known the next time
        capsys.readouterr()
        assert main(["decathlon", str(task), str(tmp_path / "out")]) == 1
        assert summary(tmp_path / "out")["unlisted"] == ["imagesTr/c1.nii.gz", "labelsTr/c1.nii.gz"]
        assert "2 files of earlier runs" in capsys.readouterr().out
    assert len(read_datalist(tmp_path / "out").training) == 2


def test_what_a_killed_run_had_begun_is_cleared_away(task, tmp_path):
    partial = tmp_path / "out/imagesTr/.c0.nii.gz.abc.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 0
    assert not partial.exists()


def test_a_source_is_the_same_by_any_path(task, tmp_path, monkeypatch):
    assert main(["decathlon", str(task), str(tmp_path / "out")]) == 0
    before = times(tmp_path / "out")
    monkeypatch.chdir(task)
    assert main(["decathlon", ".", str(tmp_path / "out")]) == 0
    assert times(tmp_path / "out") == before


def test_numbers_that_json_has_not_become_null(tmp_path):
    path = write(tmp_path / "source/a.nii.gz", scan(0))
    assert run([item(path, attributes={"age": float("inf"), "weight": float("nan"), "height": 1.8})], tmp_path / "out") == 0
    (case,) = read_datalist(tmp_path / "out").training
    assert case.attributes == {"age": None, "weight": None, "height": 1.8}


def test_values_that_no_file_holds_leave_the_case_out(tmp_path):
    assert compact(np.array([0, 2**63 - 1], np.uint64)).dtype == np.int64
    with pytest.raises(DataError, match="values up to 9223372036854775813"):
        compact(np.array([0, 2**63 + 5], np.uint64))


def test_image_and_label_map_are_turned_alike_whatever_the_last_digit_of_their_affines(tmp_path):
    """At 45 degrees the axis that an affine's first column counts as changes with the last digit."""

    def affine(degrees):
        a = np.radians(degrees)
        return np.array([[np.cos(a), -np.sin(a), 0, 0], [np.sin(a), np.cos(a), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:4, 2:7, 3] = 1
    path = write(tmp_path / "source/a.nii.gz", (labels * 100).astype(np.int16), affine(45 - 1e-5))
    truth = write(tmp_path / "source/a_labels.nii.gz", labels, affine(45 + 1e-5))
    image, label = read_image(path), read_labels(truth)
    assert image.orientation != label.orientation
    assert run([item(path, label, image)], tmp_path / "out", structures=LIVER, steps=Steps(reorient="RAS")) == 0
    np.testing.assert_array_equal(voxels(tmp_path / "out/imagesTr/a.nii.gz") > 50, voxels(tmp_path / "out/labelsTr/a.nii.gz"))
    case = Case("a", (path,), truth)
    (stored,) = prepare_cases([case], Preprocessing(intensity="none"), LIVER, tmp_path / "store", 1, progress=False)
    np.testing.assert_array_equal(np.array(stored.image())[0] > 50, np.array(stored.labels()) == 1)

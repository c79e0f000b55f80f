"""Whole cohorts: what overlaps, what survives, and what several runs in one folder leave behind."""

import csv
import errno
import gzip
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from known_network import NearestLevel, write_checkpoint
from rich.console import Console
from series_maker import write_series

from medseg_se.data.datalist import Case
from medseg_se.errors import OutputError, UsageError
from medseg_se.inference import record as record_module
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.job import Job
from medseg_se.inference.journal import Journal, locked
from medseg_se.inference.model import Model
from medseg_se.inference.pipeline import run_pipeline
from medseg_se.inference.predict import predict_cases, render
from medseg_se.inference.record import Record, read_record
from medseg_se.inference.settings import Settings
from medseg_se.inference.shard import Shard
from medseg_se.inference.source import ModelSource
from medseg_se.inference.status import Outcome, Status, to_csv
from medseg_se.networks import NETWORKS
from medseg_se.volumes import read_image, read_labels

OPTIONS = {"model": "0a"}


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(NETWORKS, "nearest_level", NearestLevel)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model.ckpt")


@pytest.fixture
def model(checkpoint):
    return Model.load(checkpoint, "cpu")


@pytest.fixture
def scans(tmp_path, write_scan):
    """A folder with the scans case_00 to case_07, whose intensities 0, 1 and 2 are the classes."""
    rng = np.random.default_rng(0)
    for number in range(8):
        array = rng.integers(0, 3, (9, 8, 7)).astype(np.float32)
        write_scan(tmp_path / "scans" / f"case_{number:02d}.nii.gz", array)
    return tmp_path / "scans"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "predictions"


def run(model, scans, output, **options):
    return predict_cases(model, find_cases([scans], 1), output, **{"progress": False, **options})


def outcome(statuses):
    return {name: status.status for name, status in statuses.items()}


def table(output, name="status.csv"):
    with (output / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def recorded(output):
    cases = json.loads((output / "predictions.json").read_text())["cases"]
    return {name: entry["status"] for name, entry in cases.items()}


def results(output):
    return {path.name: path.read_bytes() for path in output.glob("*.nii.gz")}


def hidden(output):
    return sorted(path.name for path in output.glob(".*") if path.name != ".predictions.lock")


def done(number):
    return Status("done", f"{number}.nii.gz", seconds=number)


# --------------------------------------------------------------------------------------------------------------- what is said


def test_the_table_says_what_became_of_every_case(model, scans, output):
    (scans / "case_03.nii.gz").write_bytes(b"")
    statuses = run(model, scans, output)
    rows = {row["case"]: row for row in table(output)}
    assert list(rows) == [f"case_{number:02d}" for number in range(8)]
    good, bad = rows["case_00"], rows["case_03"]
    assert (good["status"], good["file"], good["voxels"], good["error"]) == ("done", "case_00.nii.gz", str(9 * 8 * 7), "")
    stages = [float(good[stage]) for stage in ("read", "prepare", "network", "export", "write")]
    assert float(good["seconds"]) == pytest.approx(sum(stages), abs=0.002)
    assert float(good["peak_mb"]) > 10
    assert bad["status"] == "failed"
    assert "case_03.nii.gz" in bad["error"]
    assert bad["voxels"] == ""
    assert isinstance(statuses, Outcome)
    assert statuses.segmented == 7
    volumes = table(output, "volumes.csv")
    assert [row["case"] for row in volumes[::2]] == [name for name in rows if name != "case_03"]
    labels = read_labels(output / "case_01.nii.gz").array
    assert [row["voxels"] for row in table(output, "case_01_volumes.csv")] == [str((labels == v).sum()) for v in (7, 300)]


def test_volumes_are_left_out_or_come_with_the_uncertainty(model, scans, output, tmp_path):
    run(model, scans, output, report=False)
    assert not list(output.glob("*volumes.csv"))
    run(model, scans, output)  # other files are wanted now, so that these are made
    assert len(list(output.glob("*_volumes.csv"))) == 8
    run(model, scans, tmp_path / "p", uncertainty=True)
    assert all(0 <= float(row["uncertainty"]) <= 1 for row in table(tmp_path / "p", "volumes.csv"))
    with pytest.raises(UsageError, match="uncertainty of structures is told in the report"):
        run(model, scans, tmp_path / "q", uncertainty=True, report=False)


def screen_of(statuses):
    screen = Console(file=io.StringIO(), width=300)
    render(statuses, screen)
    return screen.file.getvalue()


def test_totals_and_the_rate_are_printed(model, scans, output):
    assert "8 done; 8 segmented in" in screen_of(run(model, scans, output))
    again = screen_of(run(model, scans, output))
    assert "8 done" in again
    assert "cases a second" not in again
    assert screen_of({}) == "no case\n"
    many = {f"{number:03d}": done(number) for number in range(150)}
    many["007"].warnings = ["looks odd"]
    text = screen_of(Outcome(many, 10.0, 150))
    assert "looks odd" in text
    assert "│ 008 " not in text
    assert "149 more, done without remarks" in text
    assert "150 done; 1 with warnings; 150 segmented in 10.0 s, 15 cases a second" in text


def test_a_line_of_the_table_is_one_line():
    status = Status("failed", "a.nii.gz", "first\nsecond", warnings=["one,", "two"])
    line = to_csv({"a": status}).splitlines()[1]
    assert line.startswith("a,failed,a.nii.gz,0.000,")
    assert line.endswith('"one, | two",,first second')


def test_a_doubtful_scan_is_warned_of_or_refused(model, scans, output, monkeypatch, tmp_path):
    def odd(image, seen):
        return ("is not in HU",) if image.path.name == "case_02.nii.gz" else ()

    monkeypatch.setattr("medseg_se.inference.job.doubts", odd)
    statuses = run(model, scans, output)
    assert statuses["case_02"].status == "done"
    assert statuses["case_02"].warnings == ["is not in HU"]
    assert table(output)[2]["warnings"] == "is not in HU"
    assert "is not in HU" in screen_of(statuses)
    assert "8 done; 1 with warnings" in screen_of(statuses)
    strict = run(model, scans, tmp_path / "strict", strict=True)
    assert outcome(strict)["case_02"] == "failed"
    assert strict["case_02"].error.startswith(f"{scans / 'case_02.nii.gz'}: is not in HU.")
    assert list(outcome(strict).values()).count("done") == 7
    assert not (tmp_path / "strict" / "case_02.nii.gz").exists()
    assert outcome(run(model, scans, output, strict=True))["case_02"] == "failed"  # segmented before, but not strictly


def test_a_dicom_series_gets_a_segmentation_if_wanted(model, scans, output, tmp_path):
    pytest.importorskip("highdicom")
    rng = np.random.default_rng(0)
    write_series(tmp_path / "in" / "some", rng.integers(0, 3, (4, 5, 6)), number=1)
    write_series(tmp_path / "in" / "none", np.zeros((4, 5, 6), dtype=int), number=2)
    cases = [*find_cases([tmp_path / "in" / "some"], 1), *find_cases([tmp_path / "in" / "none"], 1)]
    cases += find_cases([scans / "case_00.nii.gz"], 1)
    statuses = predict_cases(model, cases, output, progress=False, dicom_seg=True)
    assert set(outcome(statuses).values()) == {"done"}
    some, none, _ = (case.id for case in cases)
    assert [path.name for path in output.glob("*.dcm")] == [f"{some}_seg.dcm"]
    assert statuses[none].notes == ["no structure was found, of which there is no DICOM segmentation"]
    assert predict_cases(model, cases, output, progress=False, dicom_seg=True).segmented == 0
    (output / f"{some}_seg.dcm").unlink()
    assert predict_cases(model, cases, output, progress=False, dicom_seg=True).segmented == 1


# -------------------------------------------------------------------------------------------------------------------- bad input


def test_every_kind_of_bad_input_is_one_line_and_the_rest_go_on(model, scans, output, write_scan):
    whole = (scans / "case_00.nii.gz").read_bytes()
    (scans / "corrupt.nii.gz").write_bytes(whole[:60] + bytes(40) + whole[100:])
    (scans / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "empty.nii.gz").write_bytes(b"")
    (scans / "folder.nii.gz").mkdir()
    write_scan(scans / "channels.nii.gz", np.ones((5, 5, 5, 3), dtype=np.float32))
    write_scan(scans / "nan.nii.gz", np.full((5, 5, 5), np.nan, dtype=np.float32))
    write_scan(scans / "infinite.nii.gz", np.full((5, 5, 5), np.inf, dtype=np.float32))
    huge = bytearray(gzip.decompress(whole))
    huge[40:56] = np.array([3, 8000, 8000, 1100, 1, 1, 1, 1], dtype="<i2").tobytes()
    (scans / "huge.nii.gz").write_bytes(gzip.compress(bytes(huge)))
    write_scan(scans / "flat.nii.gz", np.ones((9, 8), dtype=np.float32))
    (scans / "gone.nii.gz").symlink_to(scans / "nowhere.nii.gz")
    names = {"corrupt", "truncated", "empty", "folder", "channels", "nan", "infinite", "huge", "gone"}
    cases = find_cases([scans], 1)
    statuses = predict_cases(model, cases, output, progress=False)
    assert {name for name, status in statuses.items() if status.status == "failed"} == names
    rows = {row["case"]: row for row in table(output)}
    assert set(rows) == {case.id for case in cases}
    assert all(name in rows[name]["error"] for name in names)
    assert "GiB" in rows["huge"]["error"]
    assert not [name for name in results(output) if name.removesuffix(".nii.gz") in names]
    assert rows["flat"]["status"] == "done"
    assert hidden(output) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_scan_that_may_not_be_read_is_one_line(model, scans, output):
    (scans / "case_01.nii.gz").chmod(0)
    statuses = run(model, scans, output)
    assert "Permission denied" in statuses["case_01"].error
    assert list(outcome(statuses).values()).count("done") == 7


def test_a_scan_that_vanishes_midway_is_one_line(model, scans, output, monkeypatch):
    answer = model.answer

    def vanish(ready, **options):
        (scans / "case_06.nii.gz").unlink(missing_ok=True)
        return answer(ready, **options)

    monkeypatch.setattr(model, "answer", vanish)
    statuses = run(model, scans, output)
    assert [name for name, status in statuses.items() if status.status != "done"] == ["case_06"]
    assert "case_06.nii.gz" in statuses["case_06"].error


@pytest.mark.parametrize("stage", ["prepare", "answer"])
def test_an_error_that_nobody_foresaw_is_one_line_and_keeps_its_traceback(model, scans, output, monkeypatch, caplog, stage):
    calls, original = [], getattr(model, stage)

    def odd(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise IndexError("too far")
        return original(*arguments, **options)

    monkeypatch.setattr(model, stage, odd)
    statuses = run(model, scans, output)
    assert list(outcome(statuses).values()) == ["done"] * 2 + ["failed"] + ["done"] * 5
    assert statuses["case_02"].error == f"{scans / 'case_02.nii.gz'}: IndexError: too far"
    assert any(entry.exc_info for entry in caplog.records)


@pytest.mark.parametrize("stage", ["prepare", "answer"])
def test_want_of_memory_is_named(model, scans, output, monkeypatch, stage):
    calls, original = [], getattr(model, stage)

    def greedy(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return original(*arguments, **options)

    monkeypatch.setattr(model, stage, greedy)
    statuses = run(model, scans, output)
    assert statuses["case_01"].error == f"{scans / 'case_01.nii.gz'}: there is not enough memory to segment it"
    assert list(outcome(statuses).values()).count("done") == 7


# --------------------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("readers", [1, 3])
def test_results_are_those_of_one_scan_after_the_other(model, scans, output, readers):
    run(model, scans, output, readers=readers)
    for path in scans.iterdir():
        expected = model.predict(read_image(path)).labels
        found = read_labels(output / path.name)
        assert np.array_equal(found.array, expected.array)
        assert found.same_grid(expected) is None


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_runs_ahead_but_not_far(model, scans, output, monkeypatch, readers):
    prepare, answer = model.prepare, model.answer
    ahead, most, turn, met = [], [], threading.Lock(), threading.Barrier(2, timeout=20)

    def counted(image):
        with turn:
            ahead.append(image.path)
            most.append(len(ahead))
        if image.path.name == "case_01.nii.gz":
            met.wait()  # the network is busy with the first scan, and the second one is prepared meanwhile
        return prepare(image)

    def taken(ready, **options):
        with turn:
            ahead.remove(ready.source.path)
        if ready.source.path.name == "case_00.nii.gz":
            met.wait()
        time.sleep(0.02)
        return answer(ready, **options)

    monkeypatch.setattr(model, "prepare", counted)
    monkeypatch.setattr(model, "answer", taken)
    run(model, scans, output, readers=readers)
    assert max(most) <= readers + 1  # the one more is being handed over


def test_an_error_crosses_over_from_any_thread_and_nothing_hangs(model, scans, output):
    tasks = [(case, Status("waiting", f"{case.id}.nii.gz")) for case in find_cases([scans], 1)]
    output.mkdir()
    before = threading.active_count()

    def refuse(name, status):
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match="case_00"):
        run_pipeline(model, Job(output, Settings()), iter(tasks), refuse)

    def broken():
        yield tasks[0]
        raise ZeroDivisionError("of the list")

    with pytest.raises(ZeroDivisionError, match="of the list"):
        run_pipeline(model, Job(output, Settings()), broken(), lambda name, status: None)
    assert threading.active_count() == before


# ----------------------------------------------------------------------------------------------------------------- the record


def test_the_record_is_not_rewritten_for_every_case(model, scans, output, monkeypatch):
    written = []
    for name in ("write_json", "write_text"):
        original = getattr(record_module, name)
        monkeypatch.setattr(
            record_module, name, lambda path, content, to=original: (written.append(path.name), to(path, content))
        )
    run(model, scans, output)
    assert sorted(written) == ["predictions.json", "predictions.json", "status.csv", "status.csv"]
    monkeypatch.setattr(record_module, "REWRITE", 0.0)  # as if a case took long
    monkeypatch.setattr(record_module, "SHARE", 1e9)
    run(model, scans, output, overwrite=True, settings=Settings(overlap=0.25))
    assert len(written) > 16


def test_the_record_of_a_run_that_goes_on_can_be_read(tmp_path, monkeypatch):
    with Record(tmp_path, OPTIONS, False, ["1", "2", "3"]) as record:
        record.note("2", done(2))
        assert recorded(tmp_path) == dict.fromkeys("123", "waiting")
        assert outcome(read_record(tmp_path, OPTIONS)) == {"1": "waiting", "2": "done", "3": "waiting"}
        monkeypatch.setattr(record, "_pause", 0.0)  # when long enough has passed
        record.note("1", done(1))
        assert recorded(tmp_path) == {"1": "done", "2": "done", "3": "waiting"}
        assert [row["status"] for row in table(tmp_path)] == ["done", "done", "waiting"]
    assert hidden(tmp_path) == []


def test_two_runs_in_one_folder_lose_nothing_of_each_other(tmp_path):
    with Record(tmp_path, OPTIONS, False, "12") as first:
        with Record(tmp_path, OPTIONS, False, "34") as second:
            first.note("1", done(1))
            second.note("3", done(3))
            assert outcome(read_record(tmp_path, OPTIONS)) == dict(zip("1234", ["done", "waiting"] * 2, strict=True))
        first.note("2", done(2))
        assert outcome(first.statuses | read_record(tmp_path, OPTIONS))["3"] == "done"
    assert recorded(tmp_path) == {"1": "done", "2": "done", "3": "done", "4": "waiting"}
    assert hidden(tmp_path) == []


def test_a_run_of_other_options_does_not_break_into_one_that_goes_on(tmp_path):
    with Record(tmp_path, OPTIONS, False, "1") as record:
        with pytest.raises(UsageError, match="A run of another model or with other options is writing to"):
            Record(tmp_path, {"model": "0b"}, True, "1")
        record.note("1", done(1))
    assert recorded(tmp_path) == {"1": "done"}
    with Record(tmp_path, {"model": "0b"}, True, "1"):
        assert recorded(tmp_path) == {"1": "waiting"}


def abandoned(folder, options, lines):
    """Leave the journal of a run that was killed."""
    journal = Journal(folder, options)
    for name, status in lines.items():
        journal.write(name, status)
    journal.close(remove=False)
    return journal.path


def test_what_a_killed_run_left_is_taken_in_and_tidied_up(tmp_path):
    with Record(tmp_path, OPTIONS, False, "123"):
        pass
    path = abandoned(tmp_path, OPTIONS, {"1": done(1), "2": done(2)})
    with path.open("a") as stream:
        stream.write('nonsense\n[1]\n{"case": "3", "status": "do')  # what the system was writing when the power went
    (tmp_path / ".2.nii.gz.0123abcd.part").write_bytes(b"half")
    (tmp_path / ".2_volumes.csv.0123abcd.part").write_bytes(b"half")
    (tmp_path / ".status.csv.0123abcd.part").write_bytes(b"half")
    (tmp_path / ".mine.0123abcd.part").write_bytes(b"not ours")
    with Record(tmp_path, OPTIONS, False, "123") as record:
        assert outcome(record.statuses) == {"1": "done", "2": "done", "3": "waiting"}
        assert recorded(tmp_path) == {"1": "done", "2": "done", "3": "waiting"}
        assert not path.exists()
        assert [name for name in hidden(tmp_path) if name.endswith(".part")] == [".mine.0123abcd.part"]


def test_what_is_being_written_by_another_run_is_left_alone(tmp_path):
    with Record(tmp_path, OPTIONS, False, "1"):
        half = tmp_path / ".1.nii.gz.0123abcd.part"
        half.write_bytes(b"half")
        with Record(tmp_path, OPTIONS, False, "1"):
            assert half.exists()
        assert half.exists()
    assert not half.exists()


def test_results_of_replaced_options_do_not_come_back(tmp_path):
    with Record(tmp_path, OPTIONS, False, "1"):
        pass
    abandoned(tmp_path, OPTIONS, {"1": done(1)})
    with Record(tmp_path, {"model": "0b"}, True, "1") as record:
        assert outcome(record.statuses) == {"1": "waiting"}
    with Record(tmp_path, OPTIONS, True, "1") as record:
        assert outcome(record.statuses) == {"1": "waiting"}


def test_who_does_not_let_go_of_the_record_is_named(tmp_path, monkeypatch):
    with Record(tmp_path, OPTIONS, False, "1") as record, locked(tmp_path):
        monkeypatch.setattr(record, "_pause", 0.0)
        record.note("1", done(1))  # in the midst of a run, it can wait
        with pytest.raises(UsageError, match="Another run is writing to"), locked(tmp_path, 0.02):
            pass


# ---------------------------------------------------------------------------------------------------------- disks and folders


def test_a_disk_that_fills_up_while_the_record_is_written(model, scans, output, monkeypatch):
    write, calls = os.write, []

    def full(descriptor, content):
        calls.append(content)
        if len(calls) == 3:  # the options, the first case, half of the second
            return write(descriptor, content[: len(content) // 2])
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="the disk is full; free some space and run the same command again"):
        run(model, scans, output)
    monkeypatch.setattr(os, "write", write)
    assert not list(output.glob("*.part"))
    assert outcome(run(model, scans, output)) == dict.fromkeys([f"case_{n:02d}" for n in range(8)], "done")


def test_a_case_whose_results_do_not_fit_on_the_disk_leaves_none(model, scans, output, monkeypatch):
    def full(rows, path):
        raise OutputError(f"Cannot write {path}: the disk is full.")

    monkeypatch.setattr("medseg_se.inference.job.write_volumes", full)
    with pytest.raises(OutputError, match=r"case_00_volumes\.csv: the disk is full"):
        run(model, scans, output, probabilities=True)
    assert sorted(path.name for path in output.iterdir()) == [".predictions.lock", "predictions.json", "status.csv"]
    assert recorded(output)["case_00"] == "failed"


def test_a_folder_that_is_read_only_is_named_before_anything_is_done(model, scans, output, monkeypatch):
    output.mkdir()
    opened = os.open

    def read_only(path, *arguments, **options):
        if str(path).startswith(str(output)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OutputError, match=r"predictions.*the folder is not writable; choose another output folder"):
        run(model, scans, output)
    assert results(output) == {}
    assert hidden(output) == []


def test_a_table_of_someone_else_is_not_replaced(model, scans, output):
    output.mkdir()
    (output / "volumes.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"volumes\.csv exists and was not written by this command"):
        run(model, scans, output)
    assert [path.name for path in output.iterdir()] == ["volumes.csv"]


# ----------------------------------------------------------------------------------------------------------------------- shards


def test_shards_are_equal_parts_that_are_the_whole_together():
    cases = [Case(f"{number:02d}", (Path(f"{number}.nii"),)) for number in (5, 3, 11, 0, 7, 8, 1)]
    parts = [[case.id for case in Shard(number, 3).of_cases(cases)] for number in (1, 2, 3)]
    assert parts == [["05", "11", "00"], ["07", "01"], ["03", "08"]]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(case.id for case in cases)
    assert {len(part) for part in parts} == {2, 3}
    assert [sorted(case.id for case in Shard(2, 3).of_cases(cases[::-1]))] == [sorted(parts[1])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "a number and a whole, such as 2/5, but got '2'"),
        ("a/b", "a number and a whole"),
        ("-1/5", "a number and a whole"),
        ("0/5", "but got 0/5"),
        ("6/5", "but got 6/5"),
        ("1/0", "but got 1/0"),
    ],
)
def test_shards_that_are_none(text, message):
    with pytest.raises(UsageError, match=message):
        Shard.parse(text)
    assert Shard.parse(" 2/5 ") == Shard(2, 5)


def test_shards_that_run_at_once_leave_one_record(checkpoint, scans, output):
    met, ended = threading.Barrier(2, timeout=30), {}

    def part(number):
        model = Model.load(checkpoint, "cpu")
        answer, calls = model.answer, []

        def together(ready, **options):
            calls.append(ready)
            if len(calls) in (1, 4):
                met.wait()  # both are in the midst of it
            return answer(ready, **options)

        model.answer = together
        ended[number] = run(model, scans, output, shard=Shard(number, 2))

    threads = [threading.Thread(target=part, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(ended[number]) for number in (1, 2)] == [[f"case_{n:02d}" for n in range(start, 8, 2)] for start in (0, 1)]
    assert recorded(output) == {f"case_{n:02d}": "done" for n in range(8)}
    assert [row["case"] for row in table(output, "volumes.csv")[::2]] == [f"case_{n:02d}" for n in range(8)]
    assert hidden(output) == []


def test_what_no_shard_has_done_is_waiting(model, scans, output):
    assert list(run(model, scans, output, shard=Shard(2, 3))) == ["case_01", "case_04", "case_07"]
    assert list(recorded(output).values()).count("waiting") == 5
    assert run(model, scans, output).segmented == 5
    assert run(model, scans, output, shard=Shard(20, 30)) == {}


# ---------------------------------------------------------------------------------------------------------- kill and run again


@dataclass(frozen=True)
class Slow(ModelSource):
    """A source whose model takes its time, and kills its own process over some scans."""

    deadly: tuple[str, ...] = ()
    broken: str = ""

    def load(self):
        NETWORKS["nearest_level"] = NearestLevel
        if self.broken == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        model = Model.load(self.checkpoints[0], "cpu")
        answer, prepare = model.answer, model.prepare

        def slow(ready, **options):
            time.sleep(0.03)
            return answer(ready, **options)

        def risky(image):
            if image.path.name in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return prepare(image)

        model.answer, model.prepare = slow, risky
        return model


def in_a_process(checkpoint, scans, output):
    run(Slow((checkpoint,)).load(), scans, output)


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next(model, checkpoint, scans, output, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=in_a_process, args=(checkpoint, scans, output))
    process.start()
    while not (output / "case_02.nii.gz").exists():
        time.sleep(0.005)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {name: status for name, status in read_record(output, json_options(output)).items() if status.status == "done"}
    assert 2 <= len(before) < 8
    times = {name: (output / f"{name}.nii.gz").stat().st_mtime_ns for name in before}
    statuses = run(model, scans, output)
    assert outcome(statuses) == recorded(output) == {f"case_{n:02d}": "done" for n in range(8)}
    assert {name: (output / f"{name}.nii.gz").stat().st_mtime_ns for name in before} == times
    assert statuses.segmented == 8 - len(before)
    assert hidden(output) == []
    run(model, scans, tmp_path / "undisturbed")
    assert results(output) == results(tmp_path / "undisturbed")


def json_options(output):
    return json.loads((output / "predictions.json").read_text())["options"]


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_case_that_killed_it(model, checkpoint, scans, output, tmp_path):
    source = Slow((checkpoint,), deadly=("case_02.nii.gz", "case_05.nii.gz"))
    statuses = run(model, scans, output, workers=2, source=source)
    failed = {name: status.error for name, status in statuses.items() if status.status != "done"}
    assert set(failed) == {"case_02", "case_05"}
    assert "case_02.nii.gz: the process that segmented it was killed (SIGKILL), perhaps for want of memory" in failed["case_02"]
    assert recorded(output) == outcome(statuses)
    assert hidden(output) == []
    run(model, scans, output)
    run(model, scans, tmp_path / "alone")
    assert results(output) == results(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["killed", "missing"])
def test_workers_that_cannot_load_the_model_end_the_run(model, checkpoint, scans, output, broken):
    source = Slow((checkpoint if broken == "killed" else Path("nowhere.ckpt"),), broken=broken)
    message = "was killed .* while it loaded the model. Give fewer" if broken == "killed" else "nowhere.ckpt"
    with pytest.raises(Exception, match=message):
        run(model, scans, output, workers=2, source=source)
    assert set(recorded(output).values()) == {"waiting"}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "`workers` and `readers` to be at least 1, but got 0 and 1"),
        ({"readers": 0}, "to be at least 1, but got 1 and 0"),
        ({"workers": 2}, "`source`, from which the other processes load the model"),
        ({"cluster": "local"}, "`source`, from which"),
    ],
)
def test_options_that_make_no_sense_leave_no_trace(model, scans, output, options, message):
    with pytest.raises(UsageError, match=message):
        run(model, scans, output, **options)
    assert not output.exists()


def test_a_status_survives_the_way_to_a_file_and_back():
    status = Status("done", "a.nii.gz", None, 1.5, "0a", "training", {"read": 0.5}, 100, 7, ["odd"], ["half"])
    assert Status(**json.loads(json.dumps(asdict(status)))) == status

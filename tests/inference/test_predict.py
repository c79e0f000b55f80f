import errno
import gzip
import io
import json
import os

import numpy as np
import pytest
from known_network import STRUCTURES, NearestLevel, write_checkpoint
from rich.console import Console

from medseg_se.data.datalist import Case
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.files import digest_of
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.model import Model
from medseg_se.inference.predict import choose_cases, predict_cases, render
from medseg_se.inference.settings import Settings
from medseg_se.networks import NETWORKS
from medseg_se.volumes import read_image, read_labels

VALUES = np.array([0, 7, 300])


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(NETWORKS, "nearest_level", NearestLevel)


@pytest.fixture
def load(tmp_path):
    def make(**choices):
        return Model.load(write_checkpoint(tmp_path / "model.ckpt", **choices), "cpu")

    return make


@pytest.fixture
def scans(tmp_path, write_scan, make_affine):
    """A folder with the scans a, b and c, whose intensities 0, 1 and 2 are the classes."""
    rng = np.random.default_rng(0)
    for name in "abc":
        path = write_scan(
            tmp_path / "scans" / f"{name}.nii.gz", levels(rng), make_affine("LPS", (1, 1.5, 2), degrees=(5, 0, 9))
        )
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[252:256] = (3, 0, 4, 0)  # the codes of qform and sform, other than nibabel's own
        path.write_bytes(gzip.compress(content))
    return tmp_path / "scans"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "predictions"


def levels(rng, shape=(9, 8, 7)):
    return rng.integers(0, 3, shape).astype(np.float32)


def run(model, inputs, output, **options):
    cases = find_cases([inputs] if not isinstance(inputs, list) else inputs, len(model.channels))
    return predict_cases(model, cases, output, progress=False, **options)


def manifest(output):
    return json.loads((output / "predictions.json").read_text())


def outcome(statuses):
    return {name: status.status for name, status in statuses.items()}


def left(output):
    """Return the names of all files, but not of the lock, which stays."""
    return sorted(path.name for path in output.iterdir() if path.name != ".predictions.lock")


def times(output):
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}


def right(output, scans, name):
    image, labels = read_image(scans / f"{name}.nii.gz"), read_labels(output / f"{name}.nii.gz")
    assert np.array_equal(labels.array, VALUES[image.array.astype(int)])
    assert labels.same_grid(image) is None
    assert all(labels.header[form] == image.header[form] for form in ("qform_code", "sform_code"))
    return True


def console():
    return Console(file=io.StringIO(), width=400)


# ----------------------------------------------------------------------------------------------------------------- what is done


def test_every_scan_of_a_folder_gets_its_label_map(load, scans, output):
    model = load()
    assert outcome(run(model, scans, output)) == dict.fromkeys("abc", "done")
    assert all(right(output, scans, name) for name in "abc")
    content = manifest(output)
    assert content["model"] == model.digest
    assert list(content["cases"]) == ["a", "b", "c"]
    entry = content["cases"]["b"]
    assert (entry["status"], entry["file"], entry["error"], entry["known"]) == ("done", "b.nii.gz", None, "")
    assert entry["input"] == digest_of([scans / "b.nii.gz"])
    tables = ["predictions.json", "status.csv", "volumes.csv"]
    assert left(output) == sorted([f"{name}{ending}" for name in "abc" for ending in (".nii.gz", "_volumes.csv")] + tables)


def test_files_are_predicted_alone_or_together(load, scans, output):
    model = load()
    assert outcome(run(model, scans / "b.nii.gz", output)) == {"b": "done"}
    assert outcome(run(model, [scans / "c.nii.gz", scans / "a.nii.gz"], output)) == {"c": "done", "a": "done"}
    assert all(right(output, scans, name) for name in "abc")
    assert set(manifest(output)["cases"]) == set("abc")


def test_a_dataset_is_predicted_with_its_test_cases(load, write_decathlon, tmp_path, output):
    folder = write_decathlon(tmp_path / "data", cases=2, test=1)
    assert outcome(run(load(), folder, output)) == {"case_00": "done", "case_01": "done", "case_02": "done"}


def test_channels_come_from_numbered_files_or_one_file(load, tmp_path, write_scan, output):
    rng = np.random.default_rng(0)
    first, second = levels(rng), levels(rng)
    write_scan(tmp_path / "scans" / "x_0000.nii.gz", first)
    write_scan(tmp_path / "scans" / "x_0001.nii.gz", second)
    write_scan(tmp_path / "y.nii.gz", np.stack([first, second], axis=3))
    model = load(channels=("T1", "T2"))
    run(model, tmp_path / "scans", output)
    run(model, tmp_path / "y.nii.gz", output)
    for name in "xy":
        assert np.array_equal(read_labels(output / f"{name}.nii.gz").array[0], VALUES[first.astype(int)])


def test_probabilities_are_written_beside_the_labels(load, scans, output):
    run(load(), scans / "a.nii.gz", output, probabilities=True)
    probabilities = read_image(output / "a_probabilities.nii.gz")
    assert probabilities.array.shape == (3, 9, 8, 7)
    assert probabilities.same_grid(read_image(scans / "a.nii.gz")) is None
    assert np.array_equal(VALUES[probabilities.array.argmax(0)], read_labels(output / "a.nii.gz").array[0])


def test_what_the_model_has_seen_is_said(load, scans, output):
    model = load(training=[digest_of([scans / "a.nii.gz"])], validation=[digest_of([scans / "b.nii.gz"])])
    statuses = run(model, scans, output)
    assert {name: status.known for name, status in statuses.items()} == {"a": "training", "b": "validation", "c": ""}
    screen = console()
    render(statuses, screen)
    assert "the model was trained on it" in screen.file.getvalue()
    assert "trained on 1 of these scans: their Dice says nothing about new ones" in screen.file.getvalue()


# ----------------------------------------------------------------------------------------------------------------------- reruns


def test_a_rerun_leaves_alone_what_is_done(load, scans, output):
    model = load()
    run(model, scans, output)
    before, record = times(output), manifest(output)
    assert outcome(run(model, scans, output)) == dict.fromkeys("abc", "done")
    assert times(output) == before
    assert manifest(output) == record


def test_a_rerun_repeats_what_changed_or_vanished(load, scans, output, write_scan):
    model = load()
    run(model, scans, output, probabilities=True)
    before = times(output)
    write_scan(scans / "a.nii.gz", 2 - read_image(scans / "a.nii.gz").array[0])
    (output / "b.nii.gz").unlink()
    (output / "c_probabilities.nii.gz").unlink()
    run(model, scans, output, probabilities=True)
    assert all(right(output, scans, name) for name in "abc")
    after = times(output)
    assert set(after) == set(before)
    assert after["a.nii.gz"] != before["a.nii.gz"]


def test_a_run_that_was_cut_short_is_finished_by_the_next(load, scans, output, monkeypatch):
    model = load()
    answer, calls = model.answer, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    monkeypatch.setattr(model, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, scans, output)
    assert {name: entry["status"] for name, entry in manifest(output)["cases"].items()} == {
        "a": "done",
        "b": "waiting",
        "c": "waiting",
    }
    before = times(output)
    assert list(before) == ["a.nii.gz"]
    assert outcome(run(model, scans, output)) == dict.fromkeys("abc", "done")
    assert len(calls) == 4
    assert times(output)["a.nii.gz"] == before["a.nii.gz"]
    assert all(right(output, scans, name) for name in "abc")


def test_results_of_another_model_or_other_options_are_not_mixed(load, scans, output):
    run(load(), scans, output)
    before = times(output)
    other = load(training=["0"])
    with pytest.raises(UsageError, match="holds predictions of another model or with other options"):
        run(other, scans, output)
    with pytest.raises(UsageError, match="or --overwrite"):
        run(load(), scans, output, settings=Settings(overlap=0.25))
    assert times(output) == before
    assert outcome(run(other, scans / "a.nii.gz", output, overwrite=True)) == {"a": "done"}
    content = manifest(output)
    assert content["model"] == other.digest
    assert {name: entry["status"] for name, entry in content["cases"].items()} == {"a": "done", "b": "waiting", "c": "waiting"}
    assert times(output)["a.nii.gz"] != before["a.nii.gz"]
    run(other, scans, output)
    assert all(times(output)[name] != before[name] for name in before)


def test_a_damaged_record_is_named(load, scans, output):
    model = load()
    run(model, scans, output)
    path = output / "predictions.json"
    for cases in ([], {"a": "done"}, {"a": {"status": "done"}}, {"a": {"status": "done", "file": "a.nii.gz", "mood": 3}}):
        path.write_text(json.dumps(manifest(output) | {"cases": cases}))
        with pytest.raises(DataError, match=r"predictions\.json was not written by this command or is damaged"):
            run(model, scans, output)
    path.write_text("{")
    with pytest.raises(DataError, match=r"Cannot read .*predictions\.json as JSON"):
        run(model, scans, output)


# ------------------------------------------------------------------------------------------------- what must not be overwritten


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_scan_is_never_overwritten(load, scans, overwrite):
    before = times(scans)
    with pytest.raises(UsageError, match=r"The result of a would overwrite the scan or truth .*a\.nii\.gz"):
        run(load(), scans, scans, overwrite=overwrite)
    assert times(scans) == before
    assert not (scans / "predictions.json").exists()


def test_neither_the_scan_of_another_case_nor_a_truth_is_overwritten(load, scans):
    crossed = [Case("b", (scans / "a.nii.gz",)), Case("new", (scans / "b.nii.gz",))]
    with pytest.raises(UsageError, match="would overwrite the scan"):
        predict_cases(load(), crossed, scans, overwrite=True, progress=False)
    labelled = [Case("c", (scans / "a.nii.gz",), label=scans / "c.nii.gz")]
    with pytest.raises(UsageError, match="would overwrite the scan or truth"):
        predict_cases(load(), labelled, scans, overwrite=True, progress=False)


def test_a_scan_is_recognised_behind_a_link(load, scans, tmp_path):
    (tmp_path / "link").symlink_to(scans)
    with pytest.raises(UsageError, match="would overwrite the scan"):
        run(load(), scans, tmp_path / "link", overwrite=True)


def test_a_file_of_someone_else_is_only_replaced_when_told(load, scans, output):
    output.mkdir()
    (output / "b.nii.gz").write_text("by hand")
    with pytest.raises(UsageError, match=r"b\.nii\.gz exists and was not written by this command"):
        run(load(), scans, output)
    assert [path.name for path in output.iterdir()] == ["b.nii.gz"]
    assert (output / "b.nii.gz").read_text() == "by hand"
    run(load(), scans, output, overwrite=True)
    assert right(output, scans, "b")


def test_two_results_of_one_name_are_refused(load, scans, output, write_scan):
    write_scan(scans / "a_probabilities.nii.gz", levels(np.random.default_rng(0)))
    with pytest.raises(UsageError, match=r"a and a_probabilities would both be written to .*a_probabilities\.nii\.gz"):
        run(load(), scans, output, probabilities=True)
    assert set(outcome(run(load(), scans, output)).values()) == {"done"}


@pytest.mark.parametrize("name", ["../a", "sub/a", "/tmp/a", "."])
def test_a_case_cannot_be_written_outside_of_the_folder(load, scans, output, name):
    with pytest.raises(DataError, match="name of a case"):
        predict_cases(load(), [Case(name, (scans / "a.nii.gz",))], output, progress=False)
    assert not output.exists()


def test_an_overlap_that_makes_no_sense_leaves_no_trace(load, scans, output):
    with pytest.raises(UsageError, match=r"`overlap` to be at least 0 and below 1, but got 1\.5"):
        run(load(), scans, output, settings=Settings(overlap=1.5))
    assert not output.exists()


# --------------------------------------------------------------------------------------------------------------------- failures


def test_broken_cases_are_recorded_and_the_rest_go_on(load, scans, output, write_scan, tmp_path):
    whole = (scans / "b.nii.gz").read_bytes()
    (scans / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    rng = np.random.default_rng(0)
    write_scan(scans / "four.nii.gz", levels(rng, (4, 4, 4, 4)))
    write_scan(scans / "nan.nii.gz", np.full((4, 4, 4), np.nan, dtype=np.float32))
    (scans / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    cases = find_cases([scans, scans / "photo.jpg"], 1)
    (scans / "c.nii.gz").unlink()
    statuses = predict_cases(load(), cases, output, progress=False)
    errors = {name: status.error for name, status in statuses.items() if status.status == "failed"}
    reasons = {
        "b": "b.nii.gz: .*truncated or corrupt",
        "c": "Cannot read .*c.nii.gz: No such file",
        "four": "Expected 1 channel, but .*four.nii.gz has 4",
        "nan": "nan.nii.gz holds 64 voxels that are NaN",
        "photo": r"Expected a file ending in .nii or .nii.gz, but got .*photo.jpg",
    }
    assert set(errors) == set(reasons)
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            raise DataError(errors[name])
        assert manifest(output)["cases"][name]["error"] == errors[name]
        assert not (output / f"{name}.nii.gz").exists()
    assert right(output, scans, "a")

    truth = tmp_path / "truth"
    for name in ("a", "b"):
        write_scan(truth / f"{name}.nii.gz", read_labels(output / "a.nii.gz").array[0], read_image(scans / "a.nii.gz").affine)
    judged = evaluate(output, truth, STRUCTURES, progress=False)
    assert set(judged.failures) == {"b"}
    assert "truncated" in judged.failures["b"]
    assert {case.id: case.dice["near"] for case in judged.cases} == {"a": 1, "b": 0}

    screen = console()
    render(statuses, screen)
    text = screen.file.getvalue()
    assert text.index("│ a ") < text.index("│ b ")
    assert "1 done, 5 failed" in text
    (scans / "b.nii.gz").write_bytes(whole)
    assert run(load(), scans / "b.nii.gz", output)["b"].error is None
    assert right(output, scans, "b")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto …")])
def test_a_scan_too_large_for_the_memory_is_one_failed_case(load, scans, output, monkeypatch, error):
    model = load()
    answer = model.answer

    def limited(ready, **options):
        if ready.source.path.name == "b.nii.gz":
            raise error
        return answer(ready, **options)

    monkeypatch.setattr(model, "answer", limited)
    statuses = run(model, scans, output)
    assert outcome(statuses) == {"a": "done", "b": "failed", "c": "done"}
    assert statuses["b"].error == f"{scans / 'b.nii.gz'}: there is not enough memory to segment it"


def test_a_scan_whose_classes_exceed_the_free_memory_is_one_failed_case(load, scans, output, write_scan, monkeypatch):
    write_scan(scans / "b.nii.gz", np.zeros((40, 40, 40), dtype=np.float32))
    monkeypatch.setattr("medseg_se.inference.passage.free_memory", lambda: 3e5)
    statuses = run(load(), scans, output)
    assert outcome(statuses) == {"a": "done", "b": "failed", "c": "done"}
    assert "free memory for the 3 classes of" in statuses["b"].error
    assert "b.nii.gz on (40, 40, 40) voxels, but got 0.0 GiB" in statuses["b"].error


def test_brackets_in_names_are_shown_as_they_are(load, scans, output):
    folder = scans / "[" / "red]"  # its path ends in "[/red]", which rich would take for the end of a style
    folder.mkdir(parents=True)
    (scans / "b.nii.gz").rename(folder / "b[bold].nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"")
    screen = console()
    render(run(load(), folder, output), screen)
    assert "│ b[bold] │ done" in screen.file.getvalue()
    assert f"{folder}/broken.nii.gz" in screen.file.getvalue()


def test_an_output_that_is_a_file_is_refused(load, scans, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="`output` to be a folder"):
        run(load(), scans, tmp_path / "file")
    with pytest.raises(OutputError, match=r"Cannot write .*file/below/predictions\.json: Not a directory"):
        run(load(), scans, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(load, scans, output, monkeypatch):
    model, synced, sync = load(), [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 4:  # the record as two tables, the label map and the volumes of a
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"Cannot write .*b\.nii\.gz: the disk is full; free some space"):
        run(model, scans, output)
    assert [name for name in left(output) if name[0] != "."] == ["a.nii.gz", "a_volumes.csv", "predictions.json", "status.csv"]
    assert not list(output.glob(".*.part"))
    monkeypatch.setattr(os, "fsync", sync)
    before = times(output)
    run(model, scans, output)
    assert times(output)["a.nii.gz"] == before["a.nii.gz"]
    assert all(right(output, scans, name) for name in "abc")


def test_progress_is_kept_out_of_the_output(load, scans, output, capsys):
    predict_cases(load(), find_cases([scans], 1), output)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------------- choosing by content


def test_scans_are_recognised_by_content_under_any_name(load, scans):
    model = load(training=[digest_of([scans / "a.nii.gz"])], validation=[digest_of([scans / "b.nii.gz"])])
    for old, new in (("a", "x"), ("b", "a"), ("c", "b")):
        (scans / f"{old}.nii.gz").rename(scans / f"{new}.nii.gz")
    cases = find_cases([scans], 1)
    chosen = {which: [case.id for case in choose_cases(cases, model, which)] for which in ("all", "validation", "unseen")}
    assert chosen == {"all": ["a", "b", "x"], "validation": ["a"], "unseen": ["b"]}


def test_an_empty_choice_is_an_error(load, scans):
    cases = find_cases([scans], 1)
    model = load(training=[digest_of(case.images) for case in cases])
    with pytest.raises(DataError, match="None of the 3 scans is a validation scan of this model"):
        choose_cases(cases, model, "validation")
    with pytest.raises(DataError, match="None of the 3 scans is new to this model"):
        choose_cases(cases, model, "unseen")
    with pytest.raises(UsageError, match="`cases` to be all, validation or unseen, but got 'test'"):
        choose_cases(cases, model, "test")

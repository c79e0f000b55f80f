import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_se.data import store as store_module
from medseg_se.data.datalist import read_datalist
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.data.store import MOST_POSITIONS, digest_of, prepare_cases
from medseg_se.errors import DataError, OutputError
from medseg_se.structures import Structures

PLAIN = Preprocessing()


@pytest.fixture
def dataset(tmp_path, write_decathlon):
    return write_decathlon(tmp_path / "data", cases=4, test=0)


@pytest.fixture
def prepare(tmp_path, dataset):
    """Return a function that prepares the dataset's cases, as it lies on disk now, with what the test changes."""

    def run(preprocessing=PLAIN, structures=None, **options):
        datalist = read_datalist(dataset)
        options = {"store": tmp_path / "store", "channels": 1, "progress": False, **options}
        return prepare_cases(datalist.training, preprocessing, structures or datalist.structures, **options)

    return run


def state(cases):
    """Return case → what tells whether its entry was touched: folder, inode and times of every file."""
    return {
        case.id: sorted((path, path.stat().st_ino, path.stat().st_mtime_ns) for path in case.folder.iterdir()) for case in cases
    }


def changed(before, after):
    return sorted(name for name in before if before[name] != after[name])


# -------------------------------------------------------------------------------------------------------------------- content


def test_entries_hold_what_preprocessing_makes_of_the_files(dataset, prepare, tmp_path):
    recipe = Preprocessing(orientation="LPS", spacing=(2.0, 1.0, 1.5), crop="nonzero", intensity="percentile")
    datalist = read_datalist(dataset)
    for case, stored in zip(datalist.training, prepare(recipe), strict=True):
        image = read_channels(case.images)
        prepared = recipe(image)
        labels = prepared.apply_to_labels(read_truth(case, datalist.structures, image)).array[0]
        np.testing.assert_array_equal(stored.image(), prepared.image.array)
        np.testing.assert_array_equal(stored.labels(), labels)
        assert stored.id == case.id
        assert stored.image().dtype == np.float32
        assert stored.labels().dtype == np.int16
        assert stored.spacing == pytest.approx(prepared.image.spacing)
        assert stored.spacing == pytest.approx((2.0, 1.0, 1.5), rel=0.1)
        assert stored.lowest == pytest.approx([float(prepared.image.array.min())])


def test_lowest_is_told_for_each_channel(tmp_path, write_decathlon):
    datalist = read_datalist(write_decathlon(tmp_path / "data", cases=1, test=0, channels=3))
    stored = prepare_cases(datalist.training, PLAIN, datalist.structures, tmp_path / "store", channels=3, progress=False)[0]
    assert stored.image().shape[0] == 3
    assert stored.lowest == pytest.approx(stored.image().min(axis=(1, 2, 3)).tolist())


def test_arrays_are_memory_mapped(prepare):
    stored = prepare()[0]
    assert isinstance(stored.image(), np.memmap)
    assert isinstance(stored.labels(), np.memmap)
    assert not stored.image().flags.writeable


def test_positions_are_all_voxels_of_each_structure(prepare):
    for stored in prepare():
        positions = stored.positions()
        assert sorted(positions) == [1, 2]
        for index, places in positions.items():
            expected = np.argwhere(stored.labels() == index)
            assert sorted(map(tuple, places)) == sorted(map(tuple, expected))


def test_positions_of_a_large_structure_are_few_distinct_and_spread(tmp_path, write_scan):
    labels = np.ones((40, 40, 40), dtype=np.int16)
    labels[:2] = -7  # unknown truth
    labels[20:22, 5:7, 5:7] = 2
    write_scan(tmp_path / "data" / "a.nii.gz", np.random.default_rng(0).normal(size=labels.shape).astype(np.float32))
    write_scan(tmp_path / "data" / "a_label.nii.gz", labels)
    description = {"labels": {"background": 0, "big": 1, "small": 2, "ignore": -7}, "modality": {"0": "CT"}}
    entries = [{"image": "a.nii.gz", "label": "a_label.nii.gz"}]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**description, "training": entries}))
    datalist = read_datalist(tmp_path / "data")
    stored = prepare_cases(datalist.training, PLAIN, datalist.structures, tmp_path / "store", channels=1, progress=False)[0]
    assert set(np.unique(stored.labels())) == {-1, 1, 2}
    positions = stored.positions()
    assert sorted(positions) == [1, 2]
    assert {index: len(places) for index, places in positions.items()} == {1: MOST_POSITIONS, 2: 8}
    assert len({tuple(place) for place in positions[1]}) == MOST_POSITIONS
    for index, places in positions.items():
        assert (stored.labels()[tuple(places.T)] == index).all()
    assert positions[1].min(axis=0).tolist() == [2, 0, 0]
    assert positions[1].max(axis=0).tolist() == [39, 39, 39]
    np.testing.assert_allclose(positions[1].mean(axis=0), np.argwhere(stored.labels() == 1).mean(axis=0), atol=0.3)


def test_a_case_without_any_structure_has_no_positions(dataset, prepare, write_scan):
    write_scan(dataset / "labelsTr" / "case_01.nii.gz", np.zeros((12, 11, 10), dtype=np.uint8))
    stored = prepare()[1]
    assert stored.positions() == {}
    assert not stored.labels().any()


# --------------------------------------------------------------------------------------------------------------------- again


def test_a_second_run_makes_nothing_again(prepare):
    first = prepare()
    second = prepare()
    assert first == second
    assert state(first) == state(second)


def test_a_second_run_does_not_need_to_understand_the_scans(prepare, monkeypatch):
    first = prepare()
    monkeypatch.setattr(store_module, "read_channels", lambda *_: pytest.fail("a scan was read again"))
    assert prepare() == first


def test_a_changed_scan_or_label_map_is_made_again_alone(dataset, prepare):
    first = prepare()
    image = dataset / "imagesTr" / "case_01.nii.gz"
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[400:404] = np.float32(123.0).tobytes()  # a voxel
    image.write_bytes(gzip.compress(bytes(content)))
    second = prepare()
    assert changed(state(first), state(second)) == ["case_01"]
    assert first[1].digest != second[1].digest

    label = dataset / "labelsTr" / "case_02.nii.gz"
    content = bytearray(gzip.decompress(label.read_bytes()))
    content[-1] = 2
    label.write_bytes(gzip.compress(bytes(content)))
    third = prepare()
    assert changed(state(second), state(third)) == ["case_02"]
    assert third[2].digest == second[2].digest  # the scan itself is the same
    assert third[2].labels()[-1, -1, -1] == 2


def test_a_scan_under_another_name_is_recognised(dataset, prepare):
    first = prepare()
    for kind in ("imagesTr", "labelsTr"):
        (dataset / kind / "case_00.nii.gz").rename(dataset / kind / "renamed.nii.gz")
    text = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(text.replace("case_00", "renamed"))
    second = prepare()
    assert second[0].id == "renamed"
    assert (second[0].folder, second[0].digest) == (first[0].folder, first[0].digest)


@pytest.mark.parametrize(
    "other", [{"orientation": "LPS"}, {"spacing": (2, 2, 2)}, {"crop": "nonzero"}, {"intensity": "minmax"}], ids=str
)
def test_other_preprocessing_makes_entries_of_its_own_and_keeps_the_old(prepare, other):
    first = prepare()
    before = state(first)
    second = prepare(replace(PLAIN, **other))
    assert not {case.folder for case in first} & {case.folder for case in second}
    assert state(prepare()) == before


@pytest.mark.parametrize(
    "other",
    [
        Structures({"near": (1,), "far": (2,)}, background=(0, 3)),
        Structures({"both": (1, 2)}),
        Structures({"far": (2,), "near": (1,)}),  # the same names and values, but other indices
        Structures({"near": (1,)}, ignore=2),
    ],
    ids=lambda structures: ",".join(structures.names),
)
def test_other_structures_make_other_labels(prepare, other):
    first = prepare()
    second = prepare(structures=other)
    assert not {case.folder for case in first} & {case.folder for case in second}
    for old, new in zip(first, second, strict=True):
        translated = other.encode(old.labels())
        np.testing.assert_array_equal(new.labels(), translated)


def test_regions_that_are_only_judged_do_not_make_entries_again(prepare):
    first = prepare()
    second = prepare(structures=Structures({"near": (1,), "far": (2,)}, regions={"any": ("near", "far")}))
    assert second == first


def test_cases_with_the_same_content_share_an_entry(dataset, prepare, tmp_path):
    for kind in ("imagesTr", "labelsTr"):
        for name in ("case_01", "case_02", "case_03"):
            (dataset / kind / f"{name}.nii.gz").write_bytes((dataset / kind / "case_00.nii.gz").read_bytes())
    stored = prepare(workers=4)
    assert [case.id for case in stored] == ["case_00", "case_01", "case_02", "case_03"]
    assert len({case.folder for case in stored}) == 1
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_digest_depends_on_content_and_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert digest_of([first, second]) != digest_of([second, first])
    before = digest_of([first])
    first.rename(tmp_path / "c")
    assert digest_of([tmp_path / "c"]) == before
    with pytest.raises(DataError, match=r"Cannot read .*nothing"):
        digest_of([tmp_path / "nothing"])


# ---------------------------------------------------------------------------------------------------------------- what breaks


def test_broken_cases_are_counted_and_the_first_is_named(dataset, prepare, tmp_path):
    (dataset / "imagesTr" / "case_01.nii.gz").write_bytes(b"no scan")
    (dataset / "labelsTr" / "case_03.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"2 of 4 cases cannot be used, the first being case_01: .*case_01\.nii\.gz.*medseg-se check"
    ):
        prepare()
    assert len(list((tmp_path / "store").iterdir())) == 2  # the sound ones are kept


def test_a_case_without_a_label_map_is_refused(prepare, dataset, tmp_path):
    case = replace(read_datalist(dataset).training[0], label=None)
    with pytest.raises(DataError, match=r"1 of 1 cases.*case_00 has no label map"):
        prepare_cases([case], PLAIN, Structures({"near": (1,)}), tmp_path / "store", channels=1, progress=False)


def test_the_number_of_channels_is_checked(prepare):
    with pytest.raises(DataError, match=r"4 of 4 cases.*Expected 2 channels"):
        prepare(channels=2)


def test_a_write_that_fails_is_an_output_error_and_leaves_nothing(prepare, tmp_path):
    """A limit on the size of files stands for a full disk: the write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*store"):
            prepare(workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "store").iterdir()) == []
    assert len(prepare()) == 4


@pytest.mark.parametrize("function", ["save", "savez"])
def test_a_full_disk_is_said_in_words(prepare, tmp_path, monkeypatch, function):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, function, full)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        prepare()
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_that_is_a_file_is_an_output_error(prepare, tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(OutputError, match=r"Cannot write .*store"):
        prepare()


def test_a_killed_run_leaves_no_entry_and_loses_no_finished_one(dataset, prepare, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from medseg_se.data.datalist import read_datalist
        from medseg_se.data.preprocessing import Preprocessing
        from medseg_se.data.store import prepare_cases

        written = []
        savez = np.savez

        def killed_at_the_third(path, **arrays):
            written.append(path)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            savez(path, **arrays)

        np.savez = killed_at_the_third
        datalist = read_datalist(sys.argv[1])
        prepare_cases(datalist.training, Preprocessing(), datalist.structures, Path(sys.argv[2]), 1, workers=1, progress=False)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(dataset), str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[2])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    finished = {path for path in (tmp_path / "store").iterdir() if not path.name.startswith(".")}
    assert len(finished) == 2
    times = {path: (path / "case.json").stat().st_mtime_ns for path in finished}
    stored = prepare()
    assert finished < {case.folder for case in stored}
    assert all((path / "case.json").stat().st_mtime_ns == time for path, time in times.items())
    assert all(case.image().shape == (1, 12, 11, 10) for case in stored)


def test_an_interrupt_does_not_wait_for_the_cases_that_have_not_begun(prepare, monkeypatch):
    begun = []

    def interrupted(paths, channels):
        begun.append(paths)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.4)  # long enough for the interrupt to be noticed
        raise DataError("read although nobody waits for it")

    monkeypatch.setattr(store_module, "read_channels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(workers=1)
    assert len(begun) < 4

import errno
import json
import multiprocessing
import os
import signal
import stat
import time

import pytest

from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.files import alone, atomic_write, files_below, write_json, write_text


def test_a_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "note.txt"
    write_text(path, "für µCT\n")
    assert path.read_bytes() == "für µCT\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def test_nothing_is_visible_under_the_name_before_the_end(tmp_path):
    path = tmp_path / "note.txt"
    with atomic_write(path) as stream:
        stream.write(b"half")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_fault_keeps_the_old_file_and_leaves_no_part(tmp_path, fault):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write_and_fail():
        with atomic_write(path) as stream:
            stream.write(b"new")
            raise fault

    with pytest.raises(fault):
        write_and_fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"Cannot write .*note\.txt: the disk is full; free some space"):
        write_text(tmp_path / "note.txt", "new")
    assert [file.name for file in tmp_path.iterdir()] == []


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OutputError, match=r"note\.txt: the folder is not writable; choose another output folder"):
        write_text(tmp_path / "note.txt", "new")


def test_a_file_in_the_place_of_a_folder_is_an_output_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"Cannot write .*taken"):
        write_text(tmp_path / "taken" / "note.txt", "new")
    assert (tmp_path / "taken").read_text() == "a file"


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "note.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "note.txt").stat().st_mode) == 0o640


def test_the_umask_is_left_alone_for_threads_that_write_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("to ask for the umask is to change it for a moment"))
    write_text(tmp_path / "note.txt", "x")
    assert (tmp_path / "note.txt").read_text() == "x"


def test_json_writes_nan_as_null_at_any_depth(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"dice": [1.0, float("nan"), {"mean": float("nan")}], 7: ("a", None), "name": "Dice ≥ 0.9"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "dice": [1.0, None, {"mean": None}],
        "7": ["a", None],
        "name": "Dice ≥ 0.9",
    }
    assert "Dice ≥ 0.9" in path.read_text(encoding="utf-8")


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"dice": 1.0})
    with pytest.raises(TypeError):
        write_json(path, {"dice": object()})
    assert json.loads(path.read_text()) == {"dice": 1.0}


def test_files_below_follow_links_once_and_leave_out_what_is_hidden(tmp_path):
    for name in ("b/two", "a/one", ".hidden/three", "a/.four", "five"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "six").touch()
    (tmp_path / "root" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    found = [path.relative_to(tmp_path / "root").as_posix() for path in files_below(tmp_path / "root")]
    assert found == ["five", "a/one", "b/two", "c/six"]
    assert list(files_below(tmp_path / "root" / "five")) == []


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Cannot look into .*closed: Permission denied"):
        list(files_below(tmp_path))


def test_one_process_alone_is_let_into_a_block(tmp_path):
    with alone(tmp_path / "made" / "lock"):
        with pytest.raises(UsageError, match="Another run is writing to"), alone(tmp_path / "made" / "lock"):
            pass
        with alone(tmp_path / "other"):
            pass
    with alone(tmp_path / "made" / "lock"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_process_that_is_killed_lets_go_though_its_workers_live_on(tmp_path):
    said, says = os.pipe()

    def work():
        with alone(tmp_path / "lock"):
            if worker := os.fork():
                signal.pause()
            else:
                os.write(says, str(os.getpid()).encode())
                time.sleep(60)
            os._exit(worker)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    worker = int(os.read(said, 20))
    with pytest.raises(UsageError, match="Another run is writing to"), alone(tmp_path / "lock"):
        pass
    process.kill()
    process.join()
    os.kill(worker, 0)  # it is there
    with alone(tmp_path / "lock"):
        os.kill(worker, signal.SIGKILL)

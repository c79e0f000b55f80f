import json
import time

import pytest

from medseg_se.errors import DataError
from medseg_se.planning import trial
from medseg_se.planning.machine import busy_share


@pytest.fixture
def job(put_back, tmp_path, write_decathlon):
    """Return a function that writes a job for a trial, with other arguments of the model or the data, and returns its file."""
    write_decathlon(tmp_path / "data", cases=4, test=0, shape=(16, 14, 12))

    def write(model=None, **data):
        config = {
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "precision": "32-true",
                "max_time": "00:00:00:00",
                "max_epochs": -1,
            },
            "model": {"init_args": {"channels": [4, 8], **(model or {})}},
            "data": {
                "init_args": {"source": str(tmp_path / "data"), "patch_size": [8, 8, 8], "batches_per_epoch": 1000, **data}
            },
        }
        content = {"config": config, "cases": ["case_01", "case_03"], "began": time.time()}
        content |= {"store": str(tmp_path / "store"), "folder": str(tmp_path / "work")}
        (tmp_path / "job.json").write_text(json.dumps(content))
        return tmp_path / "job.json"

    return write


@pytest.mark.parametrize("data", [{}, {"slice_axis": "axial", "patch_size": [8, 8]}], ids=["volumes", "slices"])
def test_a_trial_finds_what_a_training_takes(job, tmp_path, data):
    began = time.monotonic()
    trial.main(str(job(**data)), str(tmp_path / "answer.json"))
    took = time.monotonic() - began
    found = trial.Measurement(**json.loads((tmp_path / "answer.json").read_text()))
    assert 0 < found.step < took
    assert 0 < found.validation < took
    assert 0 < found.tile < took
    assert 0 < found.preparing < took
    assert 0 < found.startup < took
    assert 10**7 < found.base <= found.prepared <= found.peak < 10**11
    assert any((tmp_path / "store").iterdir())
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_what_the_training_refuses_the_trial_refuses(job, tmp_path):
    trial.main(str(job({"lr": -1.0})), str(tmp_path / "answer.json"))
    assert json.loads((tmp_path / "answer.json").read_text()) == {
        "error": "Expected `lr` to be positive, but got -1.0.",
        "kind": "UsageError",
    }


def test_what_a_trial_refuses_is_raised_where_it_was_asked_for(job, tmp_path):
    config = json.loads(job().read_text())["config"]
    (tmp_path / "data" / "labelsTr" / "case_01.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="case_01"):
        trial.run_trial(config, ["case_01", "case_03"], tmp_path / "store")


def test_memory_that_does_not_suffice_is_told(job, tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(trial, "SegmentationTask", exhausted)
    trial.main(str(job()), str(tmp_path / "answer.json"))
    assert "memory" in json.loads((tmp_path / "answer.json").read_text())


def test_a_machine_tells_how_busy_it_is():
    assert 0 <= busy_share(0.05) <= 1

"""A cohort over a Ray cluster; the cluster itself is one of this machine."""

import importlib.util
import json
import os
import pickle
import signal
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from known_network import NearestLevel, write_checkpoint

from medseg_se.data.datalist import Case
from medseg_se.errors import OutputError, UsageError
from medseg_se.inference.cluster import Segmenter, pack, run_cluster, segment
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.job import Job
from medseg_se.inference.model import Model
from medseg_se.inference.predict import predict_cases
from medseg_se.inference.settings import Settings
from medseg_se.inference.source import ModelSource
from medseg_se.inference.status import Status
from medseg_se.networks import NETWORKS
from medseg_se.volumes import read_image, read_labels

VALUES = np.array([0, 7, 300])


@dataclass(frozen=True)
class Source(ModelSource):
    """A source of a model that kills its own process over some scans."""

    deadly: tuple[str, ...] = ()

    def load(self):
        NETWORKS["nearest_level"] = NearestLevel
        model = Model.load(self.checkpoints[0], "cpu")
        prepare = model.prepare

        def risky(image):
            if image.path.name in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return prepare(image)

        model.prepare = risky
        return model


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(NETWORKS, "nearest_level", NearestLevel)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model.ckpt")


@pytest.fixture
def scans(tmp_path, write_scan):
    rng = np.random.default_rng(0)
    for name in "abcdef":
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", rng.integers(0, 3, (9, 8, 7)).astype(np.float32))
    (tmp_path / "scans" / "f.nii.gz").write_bytes(b"")
    return tmp_path / "scans"


def tasks_of(scans):
    return [(case, Status("waiting", f"{case.id}.nii.gz")) for case in find_cases([scans], 1)]


def right(output, scans, name):
    image = read_image(scans / f"{name}.nii.gz")
    return np.array_equal(read_labels(output / f"{name}.nii.gz").array, VALUES[image.array.astype(int)])


def statuses_of(answer):
    return {name: Status(**json.loads(text)) for name, text in zip(answer["case"], answer["status"], strict=True)}


def test_what_an_actor_does_with_a_batch(checkpoint, scans, tmp_path):
    output = tmp_path / "p"
    actor = Segmenter(Source((checkpoint,)), Job(output, Settings()), threads=1)
    batch = {"task": np.array([pack(task) for task in tasks_of(scans)], dtype=object)}
    answer = actor(batch)
    found = statuses_of(answer)
    assert {name: status.status for name, status in found.items()} == {**dict.fromkeys("abcde", "done"), "f": "failed"}
    assert "f.nii.gz" in found["f"].error
    assert all(right(output, scans, name) for name in "abcde")
    assert answer["fatal"] == [""] * 6
    again = [(case, found[case.id]) for case, _ in tasks_of(scans)]
    before = (output / "a.nii.gz").stat().st_mtime_ns
    assert statuses_of(actor({"task": [pack(task) for task in again]}))["a"] == found["a"]
    assert (output / "a.nii.gz").stat().st_mtime_ns == before


def test_a_full_disk_is_told_and_not_thrown(checkpoint, scans, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OutputError("Cannot write: the disk is full.")

    monkeypatch.setattr("medseg_se.inference.job.write_volume", full)
    answer = segment(Source((checkpoint,)).load(), Job(tmp_path / "p", Settings()), [pack(task) for task in tasks_of(scans)])
    assert set(answer["fatal"]) == {"Cannot write: the disk is full."}
    assert statuses_of(answer)["a"].status == "failed"


def test_paths_travel_absolute_and_attributes_with_them(tmp_path, monkeypatch, scans):
    monkeypatch.chdir(tmp_path)
    case = Case("a", (scans.relative_to(tmp_path) / "a.nii.gz",), attributes={"series": (1, 2)})
    travelled, recorded = pickle.loads(pack((case, Status("waiting", "a.nii.gz"))))
    assert travelled.images == (scans / "a.nii.gz",)
    assert (travelled.id, travelled.attributes, recorded.status) == ("a", {"series": (1, 2)}, "waiting")


def test_ray_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package 'ray'.*pip install 'medseg-se\[ray\]'"):
        run_cluster("local", ModelSource(("a.ckpt",)), Job(tmp_path, Settings()), [], print, 1)


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


@needs_ray
@pytest.mark.slow
def test_a_cohort_over_a_cluster_is_that_of_one_process(checkpoint, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # so that the actors find this module
    source = Source((checkpoint,), deadly=("c.nii.gz",))
    model = Model.load(checkpoint, "cpu")
    cases = find_cases([scans], 1)
    statuses = predict_cases(model, cases, tmp_path / "p", progress=False, cluster="local", workers=2, source=source)
    outcome = {name: status.status for name, status in statuses.items()}
    assert outcome == {"a": "done", "b": "done", "c": "failed", "d": "done", "e": "done", "f": "failed"}
    assert "c.nii.gz: the process that segmented it was killed, perhaps for want of memory" in statuses["c"].error
    predict_cases(model, cases, tmp_path / "p", progress=False)
    predict_cases(model, cases, tmp_path / "alone", progress=False)
    for name in "abcde":
        assert (tmp_path / "p" / f"{name}.nii.gz").read_bytes() == (tmp_path / "alone" / f"{name}.nii.gz").read_bytes()


@needs_ray
def test_a_cluster_that_is_not_there_is_named(checkpoint, scans, tmp_path):
    with pytest.raises(UsageError, match=r"Cannot reach a Ray cluster at '127\.0\.0\.1:1'"):
        run_cluster("127.0.0.1:1", Source((checkpoint,)), Job(tmp_path, Settings()), tasks_of(scans), print, 1)

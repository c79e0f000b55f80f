"""A trial: a few real steps of the training that a plan has in mind, on this device, in a process of its own.

The trial runs the same trainer, network, optimiser, precision and data as `medseg-se fit` would, on some of the scans. In a
process of its own its peak of memory is that of a training, and a candidate that does not fit ends only that process.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medseg_se.data.loading import worker_count
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import DataError, MedsegError, UsageError
from medseg_se.files import write_json
from medseg_se.hardware import keep_freed_memory
from medseg_se.plugins import inherited_plugins, load_plugins
from medseg_se.tasks import SegmentationTask
from medseg_se.tasks.callbacks import trainer_defaults

_WARM, _TIMED, _SECONDS = 3, 8, 3.0
_LONGEST = 12.0  # seconds of steps, if one takes long
_CUDA_CONTEXT = 512 * 2**20
PATIENCE = 120.0
"""Seconds for a whole trial."""


@dataclass(frozen=True)
class Measurement:
    """What a trial found; times in seconds.

    Attributes:
        step: Median of a step, getting its batch included.
        validation: A validation during the training, for each case.
        tile: A tile of a whole scan, judged.
        preparing: Preparing the cases of the trial that were not in its store, several at a time.
        startup: From starting the process to its first step, preparing aside.
        peak: Bytes that the process, or the graphics card, held at most.
        base: Bytes that it held before there were scans or a network.
        prepared: Bytes that it had held at most when the scans were prepared and there was no network yet.
    """

    step: float
    validation: float
    tile: float
    preparing: float
    startup: float
    peak: int
    base: int
    prepared: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data from which `Measurement(**content)` makes an equal object."""
        return asdict(self)


def run_trial(config: Mapping[str, Any], cases: Sequence[str], store: Path) -> Measurement | None:
    """Try a config on some of its cases in a process of its own.

    Args:
        config: What `medseg-se fit` gets.
        cases: Which cases to take; the last one is judged.
        store: Folder for the prepared cases.

    Returns:
        What was measured, or None if memory did not suffice or two minutes did not.

    Raises:
        DataError: A case cannot be prepared.
        UsageError: The config makes no sense.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-trial-") as folder:
        job, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        write_json(job, {"config": config, "cases": list(cases), "store": str(store), "folder": folder, "began": time.time()})
        command = [sys.executable, "-m", "medseg_se.planning.trial", str(job), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode == -9:  # how Linux ends a process when memory runs out
            return None
        if done.returncode != 0 or not answer.is_file():
            raise RuntimeError(f"A trial ended with code {done.returncode}:\n{done.stderr[-4000:]}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "memory" in found:
        return None
    if "error" in found:
        raise (DataError if found["kind"] == "DataError" else UsageError)(found["error"])
    return Measurement(**found)


class _Watch(pl.Callback):
    """Time the steps and the validation after them, stop when there are enough, and judge a scan."""

    def __init__(self, workers: int) -> None:
        self.warm = _WARM + 2 * workers  # batches that workers made ahead are there at once
        self.ends: list[float] = []
        self.validation = self.tile = self.first = 0.0
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = time.time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.ends.append(time.monotonic())
        timed = self.ends[self.warm :]
        enough = len(timed) > _TIMED and timed[-1] - timed[0] >= _SECONDS
        if enough or (len(self.ends) > 2 and self.ends[-1] - self.ends[0] > _LONGEST):
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        data: SegmentationData = trainer.datamodule
        self.validation = (time.monotonic() - self._began) / len(data.validation)
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            self.tile = _time_of_tile(pl_module, data)
        pl_module.train()

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        ends = self.ends[self.warm :] if len(self.ends) > self.warm + 1 else self.ends[1:]
        return float(np.median(np.diff(ends)))


def _time_of_tile(task: SegmentationTask, data: SegmentationData) -> float:
    """Return the seconds that a tile takes when a scan is judged, from a part of the last scan of a few tiles."""
    tile = data.settings.size
    scan = data.whole_scans().dataset[len(data.validation) - 1]
    most = [max(8, size) if size == 1 else size + (size + 1) // 2 for size in tile]
    image = scan["image"][(slice(None), *(slice(0, length) for length in most))]
    image, lowest = image[None].to(task.device), scan["lowest"].to(task.device)
    times = []
    for _ in range(2):  # the first also pays for what is made once
        began = time.monotonic()
        float(task.segment(image, lowest).sum())
        times.append(time.monotonic() - began)
    return times[-1] / tiles(image.shape[2:], tile)


def tiles(shape: Sequence[int], tile: Sequence[int]) -> int:
    """Return how many tiles of half overlap cover a scan; across slices, one each."""
    return math.prod(
        length if size == 1 else 1 + math.ceil(max(0, length - size) / max(1, size // 2))
        for length, size in zip(shape, tile, strict=True)
    )


def _measure(config: Mapping[str, Any], cases: Sequence[str], store: str, folder: str, began: float) -> Measurement:
    """Run a few steps in this process."""
    keep_freed_memory()
    trainer_settings, model = dict(config["trainer"]), config["model"]["init_args"]
    data = SegmentationData(**{**config["data"]["init_args"], "store": store, "fold": None, "progress": False})
    by_id = {case.id: case for case in data.datalist.training}
    data.datalist = replace(data.datalist, training=tuple(by_id[name] for name in cases))
    watch = _Watch(worker_count(data.num_workers))
    for name in ("max_time", "max_epochs", "default_root_dir"):
        trainer_settings.pop(name, None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"precision": trainer_defaults(folder)["precision"], "default_root_dir": folder, "max_epochs": -1}
    trainer = pl.Trainer(**{**defaults, **trainer_settings, **quiet, "callbacks": [watch]})
    device = trainer.strategy.root_device
    base, preparing = _peak(device), time.monotonic()
    data.setup("fit")
    prepared, preparing = max(base, _peak(device)), time.monotonic() - preparing  # the system's count lags by a few pages
    pl.seed_everything(0)
    sizes = {"in_channels": data.in_channels, "num_classes": data.num_classes, "spatial_dims": data.spatial_dims}
    task = SegmentationTask(**{**sizes, **model})
    trainer.fit(task, datamodule=data)
    return Measurement(
        step=watch.step,
        validation=watch.validation,
        tile=watch.tile,
        preparing=preparing,
        startup=watch.first - began - preparing,
        peak=max(prepared, _peak(device)),
        base=base,
        prepared=prepared,
    )


def _held() -> int:
    """Return the bytes of main memory that this process holds at most so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # which Windows does not have

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _peak(device: torch.device) -> int:
    """Return the bytes that a training on `device` held at most so far: of the graphics card if it has memory of its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + _CUDA_CONTEXT
    if device.type == "mps":
        return _held() + torch.mps.driver_allocated_memory()
    return _held()


def main(job: str, answer: str) -> None:
    """Run the trial that the file `job` describes and write what it found to the file `answer`."""
    try:
        load_plugins(inherited_plugins())
        found: dict[str, Any] = _measure(**json.loads(Path(job).read_text(encoding="utf-8"))).to_dict()
    except torch.OutOfMemoryError:
        found = {"memory": "not enough"}
    except MemoryError:
        found = {"memory": "not enough"}
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # how a CPU says it
            raise
        found = {"memory": "not enough"}
    except MedsegError as error:
        found = {"error": str(error), "kind": type(error).__name__}
    write_json(answer, found)


if __name__ == "__main__":
    main(*sys.argv[1:])

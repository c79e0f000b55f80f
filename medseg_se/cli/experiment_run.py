"""One run of an experiment, in a process of its own: `python -m medseg_se.cli.experiment_run FOLDER NAME`.

Trains, predicts the held-out cases, judges them, and notes what it took. Killed and run again, it goes on where it stood.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg_se.cli import train
from medseg_se.cli.main import guarded
from medseg_se.data.datalist import read_json
from medseg_se.data.segmentation import SegmentationData
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.experiments.cases import HELD_OUT, TRAINING, read_cases
from medseg_se.experiments.contents import keep_contents
from medseg_se.experiments.folder import RunFolder
from medseg_se.experiments.start import write_start
from medseg_se.files import alone, write_json, write_text
from medseg_se.inference.model import Model
from medseg_se.inference.predict import predict_cases
from medseg_se.plugins import inherited_plugins, load_plugins
from medseg_se.tensors import load_tensors


def command(output: Path, name: str) -> list[str]:
    """Return the command that does the run called `name`."""
    return [sys.executable, "-m", "medseg_se.cli.experiment_run", str(output), name]


def do_run(output: Path, name: str) -> int:
    """Do the run called `name` of the experiment in `output`, as far as it is not done; returns the exit code."""
    folder = RunFolder.of(output, name)
    with alone(folder.path / ".run.lock"):
        if folder.finished():
            return 0
        settings = folder.settings()
        keep_contents(read_cases(folder.cases), folder.cases)
        data = SegmentationData(**{**settings["fit"]["data"]["init_args"], "source": str(folder.cases / TRAINING)})
        account = _train(folder, settings["fit"], data)
        if "code" in account:
            return int(account["code"])
        account |= _predict(folder, settings, data)
        folder.finish(account)
    return 0


def _train(folder: RunFolder, settings: Mapping[str, Any], data: SegmentationData) -> dict[str, Any]:
    """Train to the end of the budget; returns what it took, or the exit code of a training that did not end well."""
    trained, clock = folder.path / "trained.json", folder.path / "seconds.json"
    if trained.is_file():
        return read_json(trained)
    write_text(folder.path / "fit.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    arguments = ["fit", "--config", str(folder.path / "fit.yaml"), "--data.source", str(folder.cases / TRAINING)]
    arguments += ["--trainer.default_root_dir", str(folder.path), "--model.start_from", str(folder.path / "start.ckpt")]
    start = write_start(settings, data, folder.path / "start.ckpt")
    if (folder.checkpoints / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    before, began = read_json(clock)["seconds"] if clock.is_file() else 0.0, time.monotonic()
    try:
        code = train.run(arguments)
    finally:
        seconds = before + time.monotonic() - began
        write_json(clock, {"seconds": round(seconds, 2)})
    last = folder.checkpoints / "last.ckpt"
    if code or not last.is_file():
        return {"code": code or 1}
    account = {"start": start, "steps": load_tensors(last)["global_step"], "train_seconds": round(seconds, 2)}
    write_json(trained, account)
    return account


def _predict(folder: RunFolder, settings: Mapping[str, Any], data: SegmentationData) -> dict[str, Any]:
    """Predict and judge what the run was not trained on; returns what it took."""
    device = "cpu" if settings["fit"]["trainer"].get("accelerator") == "cpu" else "auto"
    model = Model.load(folder.checkpoints / f"{settings['judged']}.ckpt", device)
    judged = read_cases(folder.cases).judged(data.split()[0])
    outcome = predict_cases(model, judged, folder.predictions, overwrite=True, progress=False)
    result = evaluate(folder.predictions, folder.cases / HELD_OUT, data.structures, progress=False)
    result.write(folder.path)
    seconds = [status.seconds for status in outcome.values() if status.status == "done"]
    return {"cases": len(judged), "predict_seconds": round(sum(seconds) / len(seconds), 4) if seconds else None}


def main(arguments: Sequence[str]) -> int:
    """Do the run that the arguments name; returns the exit code."""
    output, name = arguments
    train.quieten()

    def run() -> int:
        load_plugins(inherited_plugins())
        return do_run(Path(output), name)

    return guarded(f"run {name}", run, "the same command goes on from there")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

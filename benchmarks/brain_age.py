"""How near to the least possible error the brain-age recipes come on phantoms: `python benchmarks/brain_age.py FOLDER`.

Makes heads of people whose age is seen (`medseg-prep phantom --ages`), trains each recipe on them (`medseg-se fit`), and judges
the best checkpoint on people held out: mean absolute error, Pearson's r and the slope of the predictions on the age, as they
are and after the correction for the bias that is fitted on the validation people; beside them what nobody can do better than,
and what those do who read the brain age exactly off the same people. Everything is kept in FOLDER, and run again it goes on.

The recipes are for real scans at 3 mm; here the heads have voxels of 5 mm and the networks fewer channels, and a CPU learns in
minutes. Writes a table to the terminal, and FOLDER/brain_age.json with everything.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from medseg_se.data_prep.main import main as prepare

from medseg_se.data.answers import FILE, Answers
from medseg_se.data.classification import RegressionData
from medseg_se.data.datalist import Case
from medseg_se.files import write_json
from medseg_se.metrics.age_bias import BiasLine
from medseg_se.metrics.age_floor import AgeFloor
from medseg_se.tasks import RegressionTask

Array = npt.NDArray[np.float64]
RECIPES: dict[str, dict[str, Any]] = {  # and what is smaller than in the recipe, for heads of an eighth of a scan's voxels
    "brain_age_resnet18v2_3d": {"channels": [16, 32, 64, 128]},
    "brain_age_sqet_3d": {
        "channels": [8, 32, 64, 128],
        "network_options": {"depth": 4, "heads": 8, "convs": [1, 1, 2, 2]},
        "lr": 1e-3,
    },
}
FLOOR = AgeFloor(youngest=20.0, oldest=80.0, deviation=5.0)
SIZE, SPACING = [32, 40, 32], [5.0, 5.0, 5.0]


@dataclass(frozen=True)
class Judged:
    """How good ages are.

    Attributes:
        mae: Mean absolute error in years.
        error: Standard error of it, from the people that were judged.
        pearson: Correlation with the age.
        bias: Mean of predicted less true age, in years.
        slope: Of the predictions on the age; below 1 the young are taken for older and the old for younger.
    """

    mae: float
    error: float
    pearson: float
    bias: float
    slope: float

    @classmethod
    def of(cls, predicted: Array, age: Array) -> Judged:
        """Judge predictions (N,) by the ages (N,)."""
        wrong = np.abs(predicted - age)
        slope = BiasLine.fit(predicted, age).slope
        r = float(np.corrcoef(predicted, age)[0, 1])
        return cls(float(wrong.mean()), float(wrong.std(ddof=1) / len(age) ** 0.5), r, float((predicted - age).mean()), slope)


def train(recipe: str, folder: Path, source: Path, minutes: float, epochs: int) -> float:
    """Train by the command, from where it was if it was interrupted; return the minutes that this took."""
    run = folder / recipe
    overlay = {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "max_epochs": epochs,
            "max_time": "00:{:02d}:{:02d}:{:02d}".format(*clock(minutes)),
        },
        "model": {"init_args": RECIPES[recipe]},
        "data": {
            "init_args": {
                "source": str(source),
                "size": SIZE,
                "spacing": SPACING,
                "store": str(folder / "prepared"),
                "num_workers": 0,
                "progress": False,
            }
        },
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    command = [sys.executable, "-m", "medseg_se", "fit", f"--config={recipe}", f"--config={run / 'overlay.yaml'}"]
    last = run / "checkpoints" / "last.ckpt"
    start = time.perf_counter()
    subprocess.run([*command, *(["--ckpt_path", "last"] if last.is_file() else [])], check=True)
    return (time.perf_counter() - start) / 60


def clock(minutes: float) -> tuple[int, int, int]:
    """Return hours, minutes and seconds."""
    seconds = round(60 * minutes)
    return seconds // 3600, seconds // 60 % 60, seconds % 60


@torch.inference_mode()
def answers(checkpoint: Path, source: Path, store: Path) -> tuple[list[Case], Array, list[Case], Array]:
    """Return the validation people and the ages that the model says of them, and the same of the people held out."""
    task = RegressionTask.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    data = RegressionData(str(source), "age", size=SIZE, spacing=SPACING, **kept(checkpoint), store=str(store), progress=False)
    data.setup("fit")
    data.setup("test")
    said = [
        np.concatenate([task(batch["image"])[:, 0].double().numpy() for batch in loader])
        for loader in (data.val_dataloader(), data.test_dataloader())
    ]
    return data.validation, said[0], data.test, said[1]


def kept(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of the recipe that change how a scan is read."""
    preprocessing = torch.load(checkpoint, weights_only=True)["medseg_se"]["data"]["preprocessing"]
    return {name: preprocessing[name] for name in ("crop", "intensity")}


def attribute(cases: list[Case], name: str) -> Array:
    """Return a number of each person."""
    return np.array([float(case.attributes[name]) for case in cases])


def judge(recipe: str, folder: Path, source: Path) -> dict[str, Any]:
    """Judge the best checkpoint of a run on the people held out, and keep what it said of each."""
    checkpoint = folder / recipe / "checkpoints" / "best.ckpt"
    validated, on_validated, held_out, said = answers(checkpoint, source, folder / "prepared")
    ids, files = zip(*[(case.id, ";".join(map(str, case.images))) for case in held_out], strict=True)
    nothing = np.zeros(len(ids), dtype=bool), np.full(len(ids), np.nan)
    Answers(ids, files, ("age",), said[:, None], False, *nothing).write(folder / recipe / FILE)
    age, brain_age = attribute(held_out, "age"), attribute(held_out, "brain_age")
    line = BiasLine.fit(on_validated, attribute(validated, "age"))
    difference = line.difference(said, age)
    return {
        "as predicted": asdict(Judged.of(said, age)),
        "corrected (Cole)": asdict(Judged.of(line.corrected(said), age)),
        "brain age exactly": asdict(Judged.of(FLOOR.median(brain_age), age)),
        "line": asdict(line),
        "difference": {
            "with age": float(np.corrcoef(said - age, age)[0, 1]),
            "with age, corrected": float(np.corrcoef(difference, age)[0, 1]),
            "with the deviation, corrected": float(np.corrcoef(difference, brain_age - age)[0, 1]),
        },
        "people": len(age),
    }


def main() -> None:
    """Make the people, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is kept")
    parser.add_argument("--people", type=int, default=560, help="heads in all")
    parser.add_argument("--held-out", type=int, default=100, help="of which so many are judged")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training a network, at most")
    parser.add_argument("--epochs", type=int, default=60, help="of training a network, at most")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), help="what is trained")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    source = folder / "data"
    ages = f"[{FLOOR.youngest},{FLOOR.oldest}]"
    numbers = [f"--cases={arguments.people}", f"--test={arguments.held_out}", f"--workers={arguments.workers}"]
    made = prepare(["phantom", str(source), "--resolution=5", f"--ages={ages}", f"--age_deviation={FLOOR.deviation}", *numbers])
    if made:
        sys.exit(made)
    floor, found = {"mae": FLOOR.mae(), "pearson": FLOOR.pearson()}, {}
    for recipe in arguments.recipes:
        result, written = folder / recipe / "judged.json", folder / recipe / "checkpoints" / "best.ckpt"
        if not result.is_file():
            minutes = train(recipe, folder, source, arguments.minutes, arguments.epochs)
            write_json(result, {"minutes": minutes, "checkpoint": str(written), **judge(recipe, folder, source)})
        found[recipe] = json.loads(result.read_text(encoding="utf-8"))
    print(f"\n{'':<46} {'MAE':>6} {'±':>5} {'/floor':>7} {'r':>6} {'bias':>6} {'slope':>6}")
    print(f"{'floor, many people':<46} {floor['mae']:6.2f} {'':>5} {1:7.2f} {floor['pearson']:6.3f}")
    for recipe, values in found.items():
        print(f"{recipe}, {values['minutes']:.1f} minutes, {values['people']} people")
        for name in ("brain age exactly", "as predicted", "corrected (Cole)"):
            row = Judged(**{key: math.nan if value is None else value for key, value in values[name].items()})
            print(
                f"  {name:<44} {row.mae:6.2f} {row.error:5.2f} {row.mae / floor['mae']:7.2f} {row.pearson:6.3f} "
                f"{row.bias:+6.2f} {row.slope:6.2f}"
            )
        for name, r in values["difference"].items():
            print(f"  {f'r of predicted - true age {name}':<58} {math.nan if r is None else r:6.3f}")
    write_json(folder / "brain_age.json", {"floor": {**asdict(FLOOR), **floor}, "recipes": found})


if __name__ == "__main__":
    main()

"""The demo: phantoms, check, training, prediction, evaluation and pictures, each by the same code as the commands."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console

from medseg_se.cli import commands, train
from medseg_se.cli.recipes import recipe_path
from medseg_se.cli.results import show_evaluation
from medseg_se.data.datalist import Datalist, read_datalist
from medseg_se.data.phantom import write_phantoms
from medseg_se.errors import UsageError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.evaluation.result import Evaluation
from medseg_se.optional import load_optional
from medseg_se.reports.pictures import Shown, case_picture, overview_picture
from medseg_se.volumes import Volume, read_image, read_labels

RECIPE = "phantom_brain_unet3d_scse"
RESOLUTION = 3.0  # mm, as in the recipe


def run_demo(output: Path, cases: int, minutes: float) -> int:
    """Run the whole way in the folder `output`; a rerun goes on where the last one stopped. Returns the exit code."""
    if cases < 6 or minutes <= 0:
        raise UsageError(f"Expected at least 6 cases and a positive number of minutes, but got {cases} and {minutes}.")
    load_optional("matplotlib")  # say now that it is missing, not after the training
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    started = time.monotonic()

    _headline(console, 1, f"Phantom brains: {cases} for training, {cases // 4} held out ({output / 'data'})")
    interactive = sys.stderr.isatty()
    workers = os.cpu_count() or 1
    write_phantoms(output / "data", "brain", cases, cases // 4, 0, RESOLUTION, workers, progress=interactive)
    datalist = read_datalist(output / "data")

    _headline(console, 2, "medseg-se check: would anything break training?")
    code = commands.check(str(output / "data"))
    if code:
        return code

    _headline(console, 3, f"medseg-se fit: a 3D U-Net with scSE, at most {minutes:g} minutes ({output / 'run'})")
    run, finished = output / "run", output / "run" / "finished"
    if finished.exists():
        console.print("Trained already.")
    else:
        code = train.run(_fit_arguments(output, minutes))
        if code:
            return code
        finished.touch()

    _headline(console, 4, f"medseg-se predict: the held-out scans ({output / 'predictions'})")
    scans = str(output / "data" / "imagesTs")
    code = commands.predict(str(run / "checkpoints" / "best.ckpt"), [scans], output=str(output / "predictions"))
    if code:
        return code

    _headline(console, 5, "medseg-se evaluate: against the truth")
    result = evaluate(output / "predictions", output / "data")
    show_evaluation(result, output / "predictions")

    _headline(console, 6, f"Pictures ({output / 'pictures'})")
    write_pictures(datalist, result, output)
    minutes_taken = (time.monotonic() - started) / 60
    console.print(
        f"\nMean foreground Dice on {len(result.cases)} scans the network never saw: {result.mean_foreground:.3f} "
        f"(in {minutes_taken:.1f} minutes)",
        style="bold",
    )
    console.print(
        f"  scans and truth    {output / 'data'}\n"
        f"  checkpoint         {run / 'checkpoints' / 'best.ckpt'}\n"
        f"  predicted scans    {output / 'predictions'}\n"
        f"  measures by case   {output / 'predictions' / 'evaluation.csv'}\n"
        f"  pictures           {output / 'pictures'}\n"
        "Next: the same with your own scans, see the README.",
    )
    return 1 if result.failed else 0


def write_pictures(datalist: Datalist, result: Evaluation, output: Path) -> None:
    """Write a picture a held-out case and one of several cases together."""
    shown = []
    dice = {case.id: case.dice for case in result.cases}
    for case in datalist.test:
        if case.label is None:
            continue
        image, truth = read_image(case.images[0]), read_labels(case.label)
        prediction = read_labels(output / "predictions" / f"{case.id}.nii.gz")
        truth, prediction = (_encoded(volume, datalist) for volume in (truth, prediction))
        path = output / "pictures" / f"{case.id}.png"
        case_picture(image, truth, prediction, datalist.structures, path, dice[case.id], title=case.id)
        shown.append(Shown(image, prediction, truth, case.id))
    title = "Scans that the network never saw: the prediction in colour, the truth in dotted white"
    overview_picture(shown[:2], datalist.structures, output / "pictures" / "overview.png", title)


def _encoded(volume: Volume, datalist: Datalist) -> Volume:
    return Volume(datalist.structures.encode(volume.array), volume.affine, volume.header, volume.path)


def _fit_arguments(output: Path, minutes: float) -> list[str]:
    seconds = round(minutes * 60)
    arguments = ["fit", "--config", str(recipe_path(RECIPE)), "--data.source", str(output / "data")]
    arguments += ["--data.store", str(output / "prepared"), "--trainer.default_root_dir", str(output / "run")]
    arguments += ["--trainer.max_time", f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"]
    if (output / "run" / "checkpoints" / "last.ckpt").exists():
        arguments += ["--ckpt_path", "last"]
    return arguments


def _headline(console: Console, step: int, text: str) -> None:
    console.print(f"\n{step}/6  {text}", style="bold cyan")

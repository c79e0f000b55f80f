"""The page that sums up a training run: one HTML file that needs nothing else, for a screen, a telephone or paper."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from medseg_se.checkpoints import read_checkpoint
from medseg_se.errors import CheckpointError
from medseg_se.files import write_text
from medseg_se.reports.curves import PARTS, best_epoch, parts_of
from medseg_se.reports.logs import History
from medseg_se.reports.page import Facts, facts_table, number, page, picture, row, safe, section
from medseg_se.reports.training import CURVES, NO_CURVES, PICTURES, SUMMARY, RunReport, described_network
from medseg_se.tasks.checkpoints import smoothed_name
from medseg_se.version import __version__


def write_summary(report: RunReport, trainer: pl.Trainer, task: Any, arguments: Sequence[str], best: Path | None) -> Path:
    """Write the page of a run that has ended, and return its path.

    Args:
        report: The run's `RunReport`.
        trainer: Its trainer.
        task: The `Task`.
        arguments: Of the command, after the program's name.
        best: The best checkpoint, if there is one; it was judged last, so that `trainer.callback_metrics` are its.

    Raises:
        OutputError: The file could not be written.
    """
    history, name = report.history, report.folder.resolve().name
    line = f"{task.task}: {described_network(task)}; medseg-se {__version__}"
    body = [
        f"<h1>{safe(name)}</h1>",
        f'<p class="faint">{safe(line)}</p>',
        _scores(report, history, trainer, task, best is not None),
        _curves(report.folder),
        _picture(report.folder),
        section("What was trained", facts_table(_trained(trainer, task))),
        section("How", facts_table(_how(report, history, trainer, task))),
        section("What was kept", facts_table(_kept(best, report.folder))),
        _again(Path(report.table.log_dir) / "config.yaml", arguments),
    ]
    path = report.folder / SUMMARY
    write_text(path, page(name, "\n".join(body)))
    return path


def where_everything_is(report: RunReport) -> str:
    """Return a line that says where page, curves and pictures are, and why there are no curves."""
    there = [name for name in (CURVES, PICTURES) if (report.folder / name).exists()]
    beside = f" (beside it: {' and '.join(there)})" if there else ""
    without = "" if CURVES in there or importlib.util.find_spec("matplotlib") else f" {NO_CURVES}"
    return f"Summary: {report.folder / SUMMARY}{beside}.{without}"


# -------------------------------------------------------------------------------------------------------------------- results


def _scores(report: RunReport, history: History, trainer: pl.Trainer, task: Any, judged: bool) -> str:
    """Return the scores: of whole scans where these were judged, else of the patches or scans of the last validation."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    cases = len(getattr(getattr(trainer, "datamodule", None), "validation", []))
    parts: list[str] = []
    if judged:
        whole = metrics.get("val_scan_dice", metrics.get(task.score.name, math.nan))
        what = "mean Dice of the structures, whole scans" if task.task == "segmentation" else task.score.word
        parts.append(f'<p><span class="large">{number(whole)}</span> {safe(what)}, best checkpoint, {cases} cases</p>')
        parts.append(f"<p>These scans chose the checkpoint: on new ones it will be somewhat worse. {safe(task.advice)}</p>")
    else:
        parts.append("<p>No checkpoint was judged: the run ended before a validation, or kept none.</p>")
    parts.append(_parts_table(report, history, metrics if judged else {}))
    parts.append(facts_table(_course(history, task)))
    return section("Scores", "\n".join(part for part in parts if part))


def _parts_table(report: RunReport, history: History, judged: Mapping[str, float]) -> str:
    """Return a row for every structure, class or value: while training, and as judged at the end."""
    prefix, parts = parts_of(history)
    if not parts:
        return ""
    final = prefix.replace("val_", "val_scan_") if prefix == "val_dice/" else prefix
    whole = {name: judged.get(f"{final}{name}", math.nan) for name in parts}
    counted = prefix == "val_dice/" and bool(report.counted)
    share = prefix != "val_mae/"
    heads = [("", ""), ("best checkpoint", "number"), *([("", "bar")] if share else [])]
    heads += [*([("scans", "number")] if counted else []), ("last validation", "number")]
    rows = []
    for name, course in parts.items():
        value = whole[name]
        width = 100 * min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
        cells = [(safe(name), ""), (number(value), "number")]
        cells += [(f'<span style="width:{width:.1f}%"></span>', "bar")] if share else []
        cells += [(str(report.counted.get(name, 0)), "number")] if counted else []
        cells.append((number(course[max(course)]), "number"))
        rows.append(row("td", cells))
    note = "A structure that a scan neither has nor was found in is not counted there. " if counted else ""
    note += "Validations while training see one patch a case." if prefix == "val_dice/" else ""
    words = f'<p class="faint">{safe(f"{PARTS[prefix]}. {note}")}</p>'
    return words + f"<table>{row('th', heads)}{''.join(rows)}</table>"


def _course(history: History, task: Any) -> Facts:
    """Return where losses and scores ended, and what was best."""
    facts = []
    for key, word in (
        (task.score.name, f"{task.score.word} while training"),
        (smoothed_name(task.score), f"{task.score.word}, smoothed: chooses the checkpoint"),
    ):
        course = history.get(key, {})
        if best := best_epoch(course, task.score):
            facts.append((word, f"{number(course[max(course)])} at the end, best {number(best[1])} in epoch {best[0]}"))
    for key, word in (("train_loss", "training loss"), ("val_loss", "validation loss")):
        if losses := history.get(key):
            facts.append((word, f"{number(losses[min(losses)])} at first, {number(losses[max(losses)])} at the end"))
    return facts


def _curves(folder: Path) -> str:
    path = folder / CURVES
    return section("Curves", picture(path.read_bytes(), "curves of the run") if path.is_file() else f"<p>{safe(NO_CURVES)}</p>")


def _picture(folder: Path) -> str:
    pictures = sorted((folder / PICTURES).glob("epoch_*.png"))
    return (
        section("Validation cases", picture(pictures[-1].read_bytes(), "validation cases with truth and prediction"))
        if pictures
        else ""
    )


# ---------------------------------------------------------------------------------------------------------------------- facts


def _trained(trainer: pl.Trainer, task: Any) -> Facts:
    described, data = task.describe_data(), getattr(trainer, "datamodule", None)
    arguments = dict(task.network_arguments)
    count = sum(parameter.numel() for parameter in task.network.parameters())
    facts = [
        ("network", f"{task.network_name}, {task.spatial_dims}D, {count:,} parameters"),
        ("attention", _words({key: arguments.pop(key) for key in list(arguments) if key.startswith("attention")}) or "none"),
        ("its options", _words(arguments) or "the network's own"),
        ("data", str(getattr(getattr(data, "datalist", None), "source", described.get("dataset", "")))),
        ("channels", ", ".join(map(str, described.get("channels", [])))),
    ]
    if data is not None and hasattr(data, "training"):
        fold = "none: the training cases validate" if data.fold is None else f"fold {data.fold} of {data.folds}"
        facts.append(("cases", f"{len(data.training)} to train on, {len(data.validation)} to validate ({fold})"))
    meaning = described.get("targets") or described.get(task.meaning, [])
    names = list(meaning.get("values", [])) if isinstance(meaning, dict) else list(meaning)
    facts.append((f"{len(names)} {'regions' if described.get('targets') else task.meaning}", ", ".join(map(str, names))))
    size = described.get("patch_size") or described.get("size")
    if size:
        facts.append(("patch" if "patch_size" in described else "size", " × ".join(map(str, size)) + " voxels"))
    return facts


def _how(report: RunReport, history: History, trainer: pl.Trainer, task: Any) -> Facts:
    epochs = history.get("epoch_seconds", {})
    spent, waited = sum(epochs.values()), sum(history.get("waiting_seconds", {}).values())
    optimisation, data = task.optimisation, getattr(trainer, "datamodule", None)
    device, devices = trainer.strategy.root_device, trainer.world_size
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
    rate = history.get("lr", {})
    facts = [
        ("steps", f"{trainer.global_step:,} in {len(history.get('train_loss', {}))} epochs"),
        ("time", _clock(max(spent, report.seconds))),
        ("waiting for data", f"{waited / spent:.1%} of the time" if spent else "not known"),
        ("batch", f"{getattr(data, 'batch_size', '?')}" + (f" on each of {devices} devices" if devices > 1 else "")),
        ("device", f"{device.type} ({machine}, {platform.machine()}), precision {trainer.precision}"),
        ("optimiser", f"{optimisation.optimizer}, learning rate {optimisation.lr:g}, {optimisation.schedule} schedule"),
        ("learning rate", f"{rate[max(rate)]:.3g} at the end" if rate else "not known"),
        ("average of weights", f"decay {optimisation.ema:g}" if optimisation.ema else "none"),
        ("seed", os.environ.get("PL_GLOBAL_SEED", "none")),
        ("versions", f"medseg-se {__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    return facts


def _kept(best: Path | None, folder: Path) -> Facts:
    facts = []
    if best is not None:
        try:
            facts = [("best checkpoint", str(best)), ("its digest", read_checkpoint(best)[2])]
        except CheckpointError as error:
            facts = [("best checkpoint", str(error))]
    last = folder / "checkpoints" / "last.ckpt"
    return [*facts, *([("to go on from", str(last))] if last.is_file() else [])] or [("checkpoints", "none")]


def _again(config: Path, arguments: Sequence[str]) -> str:
    parts = [f"<p>The command was</p><pre>{safe('medseg-se ' + shlex.join(arguments))}</pre>"] if arguments else []
    if config.is_file():
        again = shlex.join(
            ["medseg-se", "fit", "--config", str(config), "--ckpt_path", "null", "--trainer.default_root_dir", "NEW_FOLDER"]
        )
        parts.append(f"<p>The same run once more, from the beginning, in another folder:</p><pre>{safe(again)}</pre>")
        text = config.read_text(encoding="utf-8", errors="replace")
        parts.append(f"<details><summary>All its settings</summary><pre>{safe(text)}</pre></details>")
    return section("To run it again", "\n".join(parts))


# ---------------------------------------------------------------------------------------------------------------------- words


def _words(values: Mapping[str, Any]) -> str:
    said = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

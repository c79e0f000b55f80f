"""How fast predictions are, and what memory they need: `python benchmarks/inference.py PART …`, see `PART --help`.

- train: make the checkpoint that `scan`, `start` and `conv` take: nnU-Net's PlainConvUNet of 31 million parameters, shortly
  trained on one CT with 13 groups of structures, so that its decisions are decisions. Ties of random weights would say nothing.
- scan: the whole job on that CT at 1.5 mm (244×202×224), from file to file: ours beside nnU-Net 2's predictor and MONAI's
  sliding window with the same weights, each in a process of its own.
- classes: 118 classes on a CT of 512×512×600 voxels, model at 1.5 mm: peak memory, and the share of the time after the network.
- attention: a tile through a U-Net with each block, beside the same network without.
- start: from the start of a process to its first prediction, without and with a model that was converted before.
- cohort: `medseg-se predict` on all scans of a dataset, in cases a second.
- conv: what a single convolution reaches on this machine in multiply-adds a second, and the whole network beside it.

Variants take turns, on as many threads as `--threads` says. Peers are left out where they are not installed (nnunetv2,
dynamic_network_architectures). Each part prints a table; `--output FILE` also writes everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.analysis.counting import count, parameters
from medseg_se.analysis.timing import Timing, time_in_turns
from medseg_se.checkpoints import read_checkpoint
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.dims import conv
from medseg_se.execution import lay_out_weights
from medseg_se.hardware import has_bfloat16, keep_freed_memory
from medseg_se.inference.tiling import tile_starts
from medseg_se.metrics.overlap import confusion, dice_from_confusion
from medseg_se.networks import UNet, build_network
from medseg_se.structures import Structures
from medseg_se.version import CHECKPOINT_FORMAT, __version__
from medseg_se.volumes import Volume, read_image, read_labels, resample, resample_labels, write_volume

CHANNELS = (32, 64, 128, 256, 320, 320)
CPU = torch.device("cpu")
PEERS = Path(__file__).with_name("inference_peers.py")
Found = dict[str, Any]

GROUPS = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidneys": ("kidney_left", "kidney_right"),
    "stomach and duodenum": ("stomach", "duodenum", "pancreas"),
    "small bowel": ("small_bowel",),
    "colon": ("colon",),
    "bladder": ("urinary_bladder", "prostate"),
    "lungs": ("lung_",),
    "spine": ("vertebrae_", "sacrum"),
    "hips": ("hip_", "femur_"),
    "vessels": ("aorta", "inferior_vena_cava", "portal_vein", "iliac_artery", "iliac_vena"),
    "gluteal muscles": ("gluteus_",),
    "back muscles": ("autochthon", "iliopsoas"),
}
"""Group → what the names of its structures begin with."""


# ------------------------------------------------------------------------------------------------------------ scans and model


def make_scan(source: Path, work: Path, scale: float) -> tuple[Path, Path]:
    """Write the CT of `source` at twice its resolution, and its structures in groups, to `work`; returns both files.

    Args:
        source: Folder with ct.nii.gz, segmentation.nii.gz and labels.json.
        work: Where they are written, unless they are there.
        scale: Share of each axis that is kept, about the middle.
    """
    scan, truth = work / "dataset" / "images" / "scan.nii.gz", work / "dataset" / "labels" / "scan.nii.gz"
    if scan.is_file() and truth.is_file():
        return scan, truth
    image, labels = read_image(source / "ct.nii.gz"), read_labels(source / "segmentation.nii.gz")
    names = json.loads((source / "labels.json").read_text(encoding="utf-8"))
    table = np.zeros(1 + max(names.values()), dtype=np.uint8)
    for group, beginnings in enumerate(GROUPS.values(), 1):
        table[[value for name, value in names.items() if name.startswith(beginnings)]] = group
    i, j, k = image.shape
    double = (2 * i, 2 * j, 2 * k)
    finer = resample(image, double)
    grouped = resample_labels(Volume(table[labels.array], labels.affine), double)
    box = [slice((n - round(scale * n)) // 2, (n - round(scale * n)) // 2 + round(scale * n)) for n in double]
    for folder in (scan.parent, truth.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(finer.array[(slice(None), *box)].round().astype(np.int16), finer.affine), scan)
    write_volume(Volume(np.ascontiguousarray(grouped.array[(slice(None), *box)]), finer.affine), truth)
    description = {
        "name": "one CT",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(group): name for group, name in enumerate(GROUPS, 1)}},
        "training": [{"image": "./images/scan.nii.gz", "label": "./labels/scan.nii.gz"}],
        "test": [],
    }
    (work / "dataset" / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return scan, truth


def trained(arguments: argparse.Namespace) -> Path:
    """Return the checkpoint that is measured, or end with a word on how to get one."""
    checkpoint: Path = arguments.checkpoint or arguments.work / "model.ckpt"
    if not checkpoint.is_file():
        sys.exit(f"No checkpoint at {checkpoint}: run `{Path(sys.argv[0]).name} train` first, or name one with --checkpoint.")
    return checkpoint


def train(arguments: argparse.Namespace) -> Found:
    """Train the network on the CT by `medseg-se fit`, and keep what inference needs, with the tiles that are measured."""
    work: Path = arguments.work
    scan, truth = make_scan(arguments.data, work, arguments.scale)
    image, labels = read_image(scan), read_labels(truth)
    inside = image.array[labels.array > 0]
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    clipped = inside.clip(low, high)
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    spacing = [round(mm, 6) for mm in image.spacing]
    patch, steps = [arguments.patch] * 3, arguments.steps
    options: dict[str, Any] = {
        "trainer.default_root_dir": run,
        "trainer.max_epochs": 1,
        "trainer.limit_val_batches": 0,  # nothing is to be learnt from the only scan's own Dice
        "trainer.accelerator": "cpu",
        "model.channels": list(arguments.channels),
        "model.network_options": {"conv_bias": True},
        "model.deep_supervision": False,
        "model.ema": 0.0,
        "model.lr": 3e-4,
        "data.source": work / "dataset",
        "data.store": work / "prepared",
        "data.fold": None,
        "data.patch_size": patch,
        "data.batches_per_epoch": steps,
        "data.foreground": 0.7,
        "data.spacing": spacing,
        "data.intensity": "dataset",
        "data.window": [low, high],
        "data.mean": float(clipped.mean()),
        "data.deviation": float(clipped.std()),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", _written(value))]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "medseg_se", "fit", "--config", "generic", *words],
        check=True,
        env=_environment(arguments.threads),
    )
    seconds = time.perf_counter() - began
    description, state, _ = read_checkpoint(run / "checkpoints" / "last.ckpt")
    description["data"] |= {"tile": [arguments.tile] * 3, "training": [], "validation": []}
    torch.save({"state_dict": {f"network.{n}": v for n, v in state.items()}, "medseg_se": description}, work / "model.ckpt")
    print(f"{steps} steps of 2 patches of {patch} in {seconds:.0f} s: {work / 'model.ckpt'}")
    return {"steps": steps, "seconds": seconds}


def _written(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _description(network: str, options: Found, classes: int, spacing: Sequence[float] | None, tile: int) -> Found:
    """Return the description in a checkpoint of a network that was made here."""
    preprocessing = Preprocessing(spacing=None if spacing is None else tuple(spacing), intensity="window")  # type: ignore[arg-type]
    return {
        "format": CHECKPOINT_FORMAT,
        "version": __version__,
        "task": "segmentation",
        "network": {"name": network, "in_channels": 1, "num_classes": classes, "spatial_dims": 3, "options": options},
        "data": {
            "dataset": "one CT",
            "channels": ["CT"],
            "structures": Structures({f"structure {value}": (value,) for value in range(1, classes)}).to_dict(),
            "label_dtype": "uint8",
            "preprocessing": preprocessing.to_dict(),
            "flat_axis": None,
            "tile": [tile] * 3,
            "training": [],
            "validation": [],
        },
    }


# ----------------------------------------------------------------------------------------------------- processes of their own


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **{name: str(threads) for name in names}, "RAY_USAGE_STATS_ENABLED": "0"}


def hold(threads: int) -> None:
    """Keep this process, and all that it starts, on so many processors, for libraries that count them themselves."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def in_process(job: Mapping[str, Any], threads: int) -> Found:
    """Do a job of `inference_peers.py` in a process of its own; returns what it measured, or why it `failed`."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log"
        given = {**job, "report": str(report), "output": job.get("output") or str(Path(folder) / "prediction.nii.gz")}
        with log.open("w") as stream:
            started = time.time()
            subprocess.run(
                [sys.executable, str(PEERS), json.dumps(given)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(threads),
            )
        ended = time.time()
        if not report.is_file():
            return {"failed": f"the process died: {log.read_text()[-2000:]}"}
        found: Found = json.loads(report.read_text(encoding="utf-8"))
        if "failed" in found:
            return {**found, "log": log.read_text()[-2000:]}
        return {**found, "started": started, "process": ended - started}


def _job(variant: str, checkpoint: Path, scan: Path) -> Found:
    """Return the job that a variant names: nnunet, monai, or ENGINE:PRECISION:SKIP[:OVERLAP] of ours."""
    common = {"checkpoint": str(checkpoint), "scan": str(scan)}
    if variant in ("nnunet", "monai"):
        return {**common, "kind": variant}
    engine, precision, skip, *rest = variant.split(":")
    overlap = float(rest[0]) if rest else 0.5
    return {**common, "kind": "ours", "engine": engine, "precision": precision, "skip": skip, "overlap": overlap}


def target(what: str, value: float, bound: float, at_least: bool = False) -> Found:
    """Print whether a number that was to be reached is."""
    reached = value >= bound if at_least else value <= bound
    print(
        f"  {what}: {value:.3g}, wanted {'≥' if at_least else '≤'} {bound:g}: {'reached' if reached else 'MISSED'}", flush=True
    )
    return {"what": what, "value": value, "bound": bound, "reached": reached}


# ---------------------------------------------------------------------------------------------------------------------- scan


def measure_scan(arguments: argparse.Namespace) -> Found:
    """Measure the whole job of every variant in turns."""
    checkpoint = trained(arguments)
    if arguments.scan:
        scan, truth = arguments.scan, None
    else:
        scan, truth = make_scan(arguments.data, arguments.work, arguments.scale)
    description, _, _ = read_checkpoint(checkpoint)
    tile, classes = description["data"]["tile"], description["network"]["num_classes"]
    shape = read_labels(truth).shape if truth else read_image(scan).shape
    tiles = math.prod(len(tile_starts(length, size, 0.5)) for length, size in zip(shape, tile, strict=True))
    flop = 2 * macs_of(description, tile)
    variants = list(arguments.variants)
    print(f"{'×'.join(map(str, shape))} voxels, {classes} classes, {tiles} tiles of {tile}, {arguments.threads} threads")
    runs: dict[str, list[Found]] = {variant: [] for variant in variants}
    maps = arguments.work / "maps"
    maps.mkdir(parents=True, exist_ok=True)
    unchecked = {"unchecked": arguments.unchecked}
    jobs = [{**_job(variant, checkpoint, scan), **unchecked} for variant in variants]
    convert(jobs, description["data"], arguments.threads)
    for _ in range(arguments.rounds):
        for variant in list(variants):
            output = maps / variant.replace(":", "_")
            output.mkdir(exist_ok=True)
            found = in_process(
                {**_job(variant, checkpoint, scan), **unchecked, "output": str(output / "labels.nii.gz"), "converted": True},
                arguments.threads,
            )
            if "failed" in found:
                print(f"  {variant}: {found['failed']}\n{found.get('log', '')}", file=sys.stderr)
                variants.remove(variant)
            else:
                runs[variant].append(found)
                print(f"  {variant}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    variants = [variant for variant in variants if runs[variant]]
    seconds = {variant: Timing(tuple(run["seconds"] for run in runs[variant])) for variant in variants}
    peers = [variant for variant in ("nnunet", "monai") if variant in variants]
    plain = [variant for variant in variants if variant not in peers]
    if not plain:
        raise SystemExit("No variant of ours has run.")
    reference = "torch:fp32:none" if "torch:fp32:none" in plain else plain[0]
    read = {variant: read_labels(maps / variant.replace(":", "_") / "labels.nii.gz").array[0] for variant in variants}
    rows: Found = {}
    for variant in variants:
        run = runs[variant][0]
        network = run.get("network")
        row: Found = {
            "s": seconds[variant].to_dict(),
            "network_s": network,
            "network_share": network / run["seconds"] if network else None,
            "tiles": run.get("tiles"),
            "load_s": run["load"],
            "process_s": run["process"],
            "peak_bytes": run["peak"],
            "parts": run.get("parts"),
            "notes": run.get("notes", []),
            "agreement": agreement(read[variant], read[reference], classes),
            "times_as_fast_as": {peer: seconds[peer].over(seconds[variant]).to_dict() for peer in peers},
        }
        job = _job(variant, checkpoint, scan)
        everything = variant in peers or (job["skip"], job["overlap"]) == ("none", 0.5)
        row["gflops"] = flop * tiles / network / 1e9 if network and everything else None
        if truth:
            row["truth_dice"] = agreement(read[variant], read_labels(truth).array[0], classes)["dice"]
        rows[variant] = row
    _show_scan(rows, peers, reference)
    return {
        "shape": list(shape),
        "tiles": tiles,
        "reference": reference,
        "variants": rows,
        "targets": _scan_targets(rows, peers),
    }


def convert(jobs: Sequence[Found], data: Found, threads: int) -> None:
    """Let every engine convert its model and check itself on two tiles from the middle of the scan, as first use does once.

    Args:
        jobs: Of all variants, on one scan.
        data: What the checkpoint says of its data.
        threads: Threads.
    """
    engines = {(job["engine"], job["precision"]): job for job in jobs if job["kind"] == "ours"}
    if not engines:
        return
    scan = read_image(next(iter(engines.values()))["scan"])
    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / "middle.nii.gz"
        spacing = data["preprocessing"]["spacing"] or scan.spacing
        finer = [math.ceil(size * mm / own) for size, mm, own in zip(data["tile"], spacing, scan.spacing, strict=True)]
        write_volume(cut(scan, [finer[0] * 3 // 2, *finer[1:]]), middle)
        for (engine, precision), job in engines.items():
            run = in_process({**job, "scan": str(middle), "skip": "none", "overlap": 0.5}, threads)
            said = run["failed"] if "failed" in run else f"{run['seconds']:.1f} s, {' '.join(run['notes'])}"
            print(f"  {engine} {precision}, conversion and check: {said}", file=sys.stderr, flush=True)


def cut(scan: Volume, shape: Sequence[int]) -> Volume:
    """Return the middle of a scan, as whole numbers."""
    box = [slice((n - min(n, size)) // 2, (n + min(n, size)) // 2) for n, size in zip(scan.shape, shape, strict=True)]
    return Volume(np.ascontiguousarray(scan.array[(slice(None), *box)]).astype(np.int16), scan.affine)


def _show_scan(rows: Mapping[str, Found], peers: Sequence[str], reference: str) -> None:
    print(f"\nagreement is with {reference}; a job is from file to file, with the network ready before")
    faster = "".join(f"{'× ' + peer:>10}" for peer in peers)
    head = f"{'variant':<26}{'s':>8}{'network':>9}{'share':>7}{'GFLOP/s':>9}{'peak GB':>9}{'load s':>8}{faster}"
    print(f"{head}{'Dice':>9}{'lowest':>9}{'equal':>11}{'to truth':>9}")
    for name, row in rows.items():
        ratios = "".join(f"{row['times_as_fast_as'][peer]['median']:>10.2f}" for peer in peers)
        share = "" if row["network_share"] is None else f"{row['network_share']:.1%}"
        network = "" if row["network_s"] is None else f"{row['network_s']:.1f}"
        rate = "" if row["gflops"] is None else f"{row['gflops']:.0f}"
        start = f"{name:<26}{row['s']['median']:>8.1f}{network:>9}{share:>7}{rate:>9}{row['peak_bytes'] / 1e9:>9.2f}"
        found, truth = row["agreement"], row.get("truth_dice")
        end = f"{found['dice']:>9.5f}{found['lowest']:>9.5f}{found['equal']:>11.4%}{'' if truth is None else f'{truth:>9.3f}'}"
        print(f"{start}{row['load_s']:>8.1f}{ratios}{end}")
        for note in row["notes"]:
            print(f"    {note}")


def _scan_targets(rows: Mapping[str, Found], peers: Sequence[str]) -> list[Found]:
    mine = {name: row for name, row in rows.items() if name not in peers}
    whole = {name: row for name, row in mine.items() if name.count(":") == 2 and name.endswith(":none")}
    found = []
    for peer in peers:
        for what, some, bound in (("with every tile", whole, 3), ("with what may be left out", mine, 5)):
            some = {name: row for name, row in some.items() if row["agreement"]["dice"] >= 0.999}
            if some:
                best = max(row["times_as_fast_as"][peer]["median"] for row in some.values())
                found.append(target(f"times as fast as {peer}, {what}", best, bound, at_least=True))
    found.append(
        target("lowest mean Dice to fp32", min(row["agreement"]["dice"] for row in mine.values()), 0.999, at_least=True)
    )
    fastest = min(whole.values(), key=lambda row: row["s"]["median"], default=None)
    if fastest and fastest["network_share"]:
        found.append(target("share of the time in the network, fastest", fastest["network_share"], 0.8, at_least=True))
    return found


def agreement(labels: np.ndarray, reference: np.ndarray, classes: int) -> Found:
    """Return the mean and the lowest Dice over structures that either shows, and the share of equal voxels."""
    dice = dice_from_confusion(confusion(labels, reference, classes), [(index,) for index in range(1, classes)])
    dice = dice[~np.isnan(dice)]
    equal = float((labels == reference).mean())
    if not len(dice):
        return {"dice": math.nan, "lowest": math.nan, "equal": equal, "structures": 0}
    return {"dice": float(dice.mean()), "lowest": float(dice.min()), "equal": equal, "structures": len(dice)}


def macs_of(description: Mapping[str, Any], tile: Sequence[int]) -> int:
    """Return the multiply-adds of a tile."""
    parts = description["network"]
    with torch.device("meta"):
        network = build_network(parts["name"], parts["in_channels"], parts["num_classes"], 3, **parts["options"]).eval()
        return count(network, torch.empty(1, parts["in_channels"], *tile)).work.macs


# ------------------------------------------------------------------------------------------------------------------- classes

SHIFT, LEVELS = 0.3, (0.0, 0.2, 0.8, 1.1)
"""What is added to intensities (-1000 to 1000 HU as -1 to 1), and the levels that are told apart then: air and lung, fat and
soft tissue, bone. Few voxels lie half-way between two, and those are small numbers: no decision hangs on rounding."""


def banded_network(channels: Sequence[int], classes: int) -> nn.Module:
    """Return a U-Net whose decisions follow the intensity, smoothed four times: each voxel's nearest of `LEVELS`.

    Its other channels have random weights and do all their work, but the head does not listen to them. Every class has one of
    the levels; those of the first few win, and the others come close behind them.
    """
    torch.manual_seed(0)
    network = UNet(1, classes, 3, channels=channels, norm="batch").eval()
    sharpness = 50.0
    blocks = [network.get_submodule("encoder.0.block"), network.get_submodule(f"decoder.{len(channels) - 2}.block")]
    units: list[Any] = [unit for block in blocks for unit in block.get_submodule("units").children()]
    for unit in units:  # the statistics of a new batch normalisation change nothing, and leaky ReLU only what is air
        unit.conv.weight.data[0] = 0
        unit.conv.weight.data[0, 0] = torch.einsum("i,j,k->ijk", *[torch.tensor([0.25, 0.5, 0.25])] * 3)
    units[0].norm.bias.data[0] = SHIFT
    levels = torch.tensor([LEVELS[index % len(LEVELS)] for index in range(classes)])
    behind = torch.tensor([0.5 * (index >= len(LEVELS)) for index in range(classes)])
    head = network.get_submodule("head")  # -(x - level)², without the x² that all share
    head.get_parameter("weight").data.zero_()[:, 0] = (2 * sharpness * levels)[:, None, None, None]
    head.get_parameter("bias").data[:] = -sharpness * levels**2 - behind
    return network


def make_large_scan(source: Path, path: Path, scale: float) -> None:
    """Write the CT of `source` stretched to 512×512×600 voxels of 0.8×0.8×1 mm, with noise, unless it is there."""
    if path.is_file():
        return
    image = read_image(source / "ct.nii.gz")
    shape = [round(scale * length) for length in (512, 512, 600)]
    larger = F.interpolate(torch.from_numpy(image.array)[None], size=shape, mode="trilinear")[0, 0].numpy()
    rng = np.random.default_rng(0)
    voxels = np.empty((1, *shape), dtype=np.int16)
    for i in range(shape[0]):
        voxels[0, i] = (larger[i] + rng.normal(0, 8, shape[1:])).round()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def measure_classes(arguments: argparse.Namespace) -> Found:
    """Measure memory and export with many classes."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    scan, checkpoint = work / "large.nii.gz", work / "classes.ckpt"
    make_large_scan(arguments.data, scan, arguments.scale)
    options: Found = {"channels": list(arguments.channels), "norm": "batch"}
    network = banded_network(arguments.channels, arguments.classes)
    description = _description("unet", options, arguments.classes, (1.5, 1.5, 1.5), arguments.tile)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "medseg_se": description}, checkpoint)
    print(
        f"{arguments.classes} classes, channels {options['channels']}, {parameters(network):,} parameters, {arguments.variants}"
    )
    found: Found = {}
    convert([_job(variant, checkpoint, scan) for variant in arguments.variants], description["data"], arguments.threads)
    for variant in arguments.variants:
        run = in_process({**_job(variant, checkpoint, scan), "converted": True}, arguments.threads)
        if "failed" in run:
            print(f"  {variant}: {run['failed']}\n{run.get('log', '')}", file=sys.stderr)
            continue
        export = run["parts"]["export"] + run["parts"]["write"]
        print(f"{variant}: {run['seconds']:.1f} s, peak {run['peak'] / 2**30:.2f} GiB; {_parts(run)}")
        for note in run["notes"]:
            print(f"    {note}")
        found[variant] = {**run, "export": export, "export_share": export / run["seconds"]}
        found[variant]["targets"] = [
            target("peak memory in GB", run["peak"] / 1e9, 4),
            target("share of the time after the network", export / run["seconds"], 0.15),
        ]
    return found


def _parts(run: Found) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in run["parts"].items())


# ----------------------------------------------------------------------------------------------------------------- attention


class Tile:
    """A tile through an engine."""

    def __init__(self, engine: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.engine, self.x = engine, x

    def prepare(self) -> None:
        """Nothing to do."""

    def __call__(self) -> object:
        """Run it."""
        with torch.inference_mode():
            return self.engine(self.x)


def engine_of(
    network: nn.Module, name: str, precision: str, tile: Sequence[int], channels: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return an engine for one tile at a time, as `Model.load` makes it but for its store of converted models."""
    from medseg_se.inference.engines import make_engine

    network = network.eval().requires_grad_(False)
    lay_out_weights(network)
    return make_engine(network, name, precision, (channels, *tile), 1, CPU, None, "")


def measured(runs: Mapping[str, Tile], first: str, rounds: int) -> dict[str, tuple[Timing, Timing]]:
    """Return the seconds of every run, and their ratios to those of the `first`."""
    for run in runs.values():
        run()

    def failed(name: str, error: Exception) -> None:
        raise RuntimeError(name) from error

    seconds = time_in_turns(runs, rounds, CPU, failed, progress=True)
    return {name: (timing, timing.over(seconds[first])) for name, timing in seconds.items()}


def measure_attention(arguments: argparse.Namespace) -> Found:
    """Measure a tile through networks with and without attention."""
    tile = [arguments.tile] * 3
    x = torch.randn(1, 1, *tile)
    runs: dict[str, Tile] = {}
    for name in ("none", *arguments.names):
        torch.manual_seed(0)
        network = UNet(1, arguments.classes, 3, channels=arguments.channels, attention=name)
        runs[name] = Tile(engine_of(network, arguments.engine, arguments.precision, tile), x)
    print(f"U-Net {arguments.channels}, {tile}, {arguments.engine} {arguments.precision}, {arguments.threads} threads")
    found: Found = {"targets": []}
    for name, (seconds, ratio) in measured(runs, "none", arguments.rounds).items():
        low, high = ratio.quartiles
        print(f"  {name:<14}{seconds.median:8.3f} s   {ratio.median - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})", flush=True)
        found[name] = {"s": seconds.to_dict(), "ratio": ratio.to_dict()}
    for name in arguments.names:
        found["targets"].append(target(f"{name}, times as long as none", found[name]["ratio"]["median"], 1.08))
    return found


# --------------------------------------------------------------------------------------------------------------------- start


def measure_start(arguments: argparse.Namespace) -> Found:
    """Measure the time to the first prediction beside the network's own, without and with what is kept beside a checkpoint."""
    source = trained(arguments)
    whole = read_image(arguments.scan or make_scan(arguments.data, arguments.work, arguments.scale)[0])
    found: Found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        part = cut(whole, [arguments.size] * 3)
        write_volume(part, scan)
        print(f"{'×'.join(map(str, part.shape))} voxels, {arguments.threads} threads")
        for variant in arguments.variants:
            rows: dict[str, list[Found]] = {"cold": [], "warm": []}
            for turn in range(arguments.rounds):
                place = folder / f"{variant.replace(':', '_')}_{turn}"
                place.mkdir()
                checkpoint = Path(shutil.copy(source, place))
                for state in ("cold", "warm"):
                    run = in_process({**_job(variant, checkpoint, scan), "repeats": 2}, arguments.threads)
                    if "failed" in run:
                        print(f"  {variant}: {run['failed']}\n{run.get('log', '')}", file=sys.stderr)
                        break
                    rows[state].append(_start_row(run))
            if all(rows.values()):
                found[variant] = _show_start(variant, rows)
        if not arguments.no_command:
            try:
                found["command"] = _time_command(arguments, source, scan, folder)
            except RuntimeError as error:
                print(f"  {error}", file=sys.stderr)
    return found


def _start_row(run: Found) -> Found:
    """Return the parts of a run; the network's time is that of a second prediction, in which nothing is converted any more."""
    network = run["later"][0]["network"] or 0.0
    return {
        "imports": run["imported"] - run["started"],
        "load": run["load"],
        "first": run["written"] - run["loaded"],
        "network": network,
        "total": run["written"] - run["started"],
        "overhead": run["written"] - run["started"] - network,
    }


def _show_start(variant: str, rows: Mapping[str, list[Found]]) -> Found:
    medians = {state: {key: statistics.median(row[key] for row in some) for key in some[0]} for state, some in rows.items()}
    for state, row in medians.items():
        print(f"  {variant}, {state}: " + ", ".join(f"{key} {value:.2f} s" for key, value in row.items()))
    conversion = medians["cold"]["overhead"] - medians["warm"]["overhead"]
    targets = [
        target(f"{variant}: s beside the network, warm", medians["warm"]["overhead"], 3),
        target(f"{variant}: s of conversion", conversion, 15),
    ]
    return {**medians, "conversion": conversion, "targets": targets}


def _time_command(arguments: argparse.Namespace, source: Path, scan: Path, folder: Path) -> Found:
    """Measure `medseg-se predict` as it is typed, with its own choice of the engine; the first call converts.

    The network's time is what the command's record says; in the first call it may hold a conversion.
    """
    checkpoint = Path(shutil.copy(source, folder))
    rows: list[Found] = []
    for turn in range(1 + arguments.rounds):
        output = folder / f"command_{turn}"
        words = ["predict", str(checkpoint), str(scan), "--output", str(output), *arguments.extra]
        seconds = run_command(words, arguments.threads)["seconds"]
        network = sum(case.get("parts", {}).get("network", 0.0) for case in recorded(output).values())
        rows.append({"total": seconds, "network": network, "overhead": seconds - network})
    warm = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
    for state, row in (("cold", rows[0]), ("warm", warm)):
        print(f"  medseg-se predict, {state}: " + ", ".join(f"{key} {value:.2f} s" for key, value in row.items()))
    return {"cold": rows[0], "warm": warm, "targets": [target("the command: s beside the network, warm", warm["overhead"], 3)]}


def run_command(words: Sequence[str], threads: int) -> Found:
    """Run `medseg-se` and return its seconds and the most memory of it or of a process that it waited for.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "medseg_se", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(threads),
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        log.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"medseg-se {' '.join(words)} ended with {process.returncode}:\n{log.read()[-2000:]}")
    return {"seconds": seconds, "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def recorded(output: Path) -> dict[str, Found]:
    """Return what `medseg-se predict` has recorded of every case."""
    cases: dict[str, Found] = json.loads((output / "predictions.json").read_text(encoding="utf-8"))["cases"]
    return cases


# -------------------------------------------------------------------------------------------------------------------- cohort


def measure_cohort(arguments: argparse.Namespace) -> Found:
    """Measure the command on a whole dataset."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(shutil.copy(arguments.checkpoint, folder))
        for turn in range(arguments.rounds + 1):
            output = folder / f"predictions_{turn}"
            words = ["predict", str(checkpoint), str(arguments.data), "--output", str(output), *arguments.extra]
            run = run_command(words, arguments.threads)
            done = [case for case in recorded(output).values() if case["status"] == "done"]
            what = "first run, which converts the model" if turn == 0 else f"run {turn}"
            rate = len(done) / run["seconds"]
            print(
                f"  {what}: {len(done)} cases in {run['seconds']:.1f} s, {rate:.2f} a second, peak {run['peak'] / 1e9:.2f} GB"
            )
            parts = {part for case in done for part in case.get("parts", {})}
            sums = {part: sum(case["parts"].get(part, 0.0) for case in done) for part in sorted(parts)}
            print("    in all " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in sums.items()), flush=True)
            found[what] = {**run, "cases": len(done), "rate": rate, "parts": sums}
            shutil.rmtree(output)
    rates = [row["rate"] for what, row in found.items() if what.startswith("run")] or [row["rate"] for row in found.values()]
    found["targets"] = [target("cases a second, from start to end of the command", statistics.median(rates), 10, at_least=True)]
    return found


# ---------------------------------------------------------------------------------------------------------------------- conv


def measure_conv(arguments: argparse.Namespace) -> Found:
    """Measure single convolutions, and the whole network in every engine beside them."""
    precisions = ("fp32", "bf16") if has_bfloat16(CPU) else ("fp32",)
    tile = [arguments.tile] * 3
    work: dict[str, int] = {}
    runs: dict[str, Tile] = {}
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        layer = conv(3, 32, 32).eval().requires_grad_(False).to(dtype).to(memory_format=torch.channels_last_3d)
        x = torch.randn(1, 32, *tile).to(dtype=dtype, memory_format=torch.channels_last_3d)
        name = f"a 3×3×3 convolution, 32 to 32, {precision}"
        runs[name], work[name] = Tile(layer, x), 27 * 32 * 32 * math.prod(tile)
    networks: dict[str, str] = {}
    description: Found = {"network": {"name": "unet", "in_channels": 1, "num_classes": 14}}
    description["network"]["options"] = {"channels": list(arguments.channels), "conv_bias": True}
    macs = macs_of(description, tile)
    for variant in arguments.engines:
        engine, precision = variant.split(":")
        torch.manual_seed(0)
        network = UNet(1, 14, 3, channels=arguments.channels, conv_bias=True)
        name = f"the network, {engine} {precision}"
        try:
            runs[name] = Tile(engine_of(network, engine, precision, tile), torch.randn(1, 1, *tile))
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        work[name], networks[name] = macs, precision
    print(f"{tile}, {arguments.threads} threads; the network has {macs:,} multiply-adds a tile")
    found: Found = {"targets": []}
    for name, (seconds, _) in measured(runs, next(iter(runs)), arguments.rounds).items():
        rate = 2 * work[name] / seconds.median / 1e9
        found[name] = {"s": seconds.to_dict(), "gflops": rate}
        print(f"  {name:<44}{seconds.median:8.3f} s {rate:8.1f} GFLOP/s", flush=True)
    for name, precision in networks.items():
        alone = found[f"a 3×3×3 convolution, 32 to 32, {precision if precision in precisions else 'fp32'}"]["gflops"]
        share = found[name]["gflops"] / alone
        found["targets"].append(target(f"{name}, share of the convolution's rate", share, 0.8, at_least=True))
    return found


# -------------------------------------------------------------------------------------------------------------- command line

SCAN_VARIANTS = (
    "nnunet",
    "monai",
    "torch:fp32:none",
    "torch:bf16:none",
    "openvino:bf16:none",
    "openvino:bf16:air",
    "openvino:bf16:air:0.25",
)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)

    def part(name: str, measure: Callable[[argparse.Namespace], Found], rounds: int) -> argparse.ArgumentParser:
        one = parts.add_parser(name, help=measure.__doc__)
        one.set_defaults(measure=measure)
        one.add_argument("--threads", type=int, default=2, help="threads, and processors, of everything")
        one.add_argument("--output", type=Path, help="JSON file to write everything to, too")
        one.add_argument("--rounds", type=int, default=rounds, help="how often each is measured")
        return one

    def files(one: argparse.ArgumentParser) -> None:
        one.add_argument("--data", type=Path, default=Path("wholebody_ct"), help="folder with ct, segmentation and labels.json")
        one.add_argument("--work", type=Path, required=True, help="folder for scans, checkpoints and label maps")
        one.add_argument("--scale", type=float, default=1.0, help="share of each axis of the scan, to try things out")

    def given(one: argparse.ArgumentParser) -> None:
        one.add_argument("--checkpoint", type=Path, help="instead of that of `train`")
        one.add_argument("--scan", type=Path, help="instead of the CT of --data")

    def variants(one: argparse.ArgumentParser, some: Sequence[str]) -> None:
        text = "nnunet, monai, or ENGINE:PRECISION:SKIP[:OVERLAP] of ours"
        one.add_argument("--variants", nargs="+", default=list(some), help=text)

    def network(one: argparse.ArgumentParser, channels: Sequence[int]) -> None:
        one.add_argument("--channels", type=int, nargs="+", default=list(channels))
        one.add_argument("--tile", type=int, default=96, help="voxels of a tile along every axis")

    one = part("train", train, 1)
    files(one)
    network(one, CHANNELS)
    one.add_argument("--steps", type=int, default=200)
    one.add_argument("--patch", type=int, default=64, help="voxels of a training patch along every axis")

    one = part("scan", measure_scan, 1)
    files(one)
    given(one)
    variants(one, SCAN_VARIANTS)
    one.add_argument("--unchecked", action="store_true", help="take engines also where they do not pass their check")

    one = part("classes", measure_classes, 1)
    files(one)
    network(one, (16, 32, 64))
    variants(one, ("auto:auto:constant",))
    one.add_argument("--classes", type=int, default=118)

    one = part("attention", measure_attention, 7)
    network(one, (32, 64, 128, 256))
    one.add_argument("--names", nargs="+", default=["scse", "simam", "coordinate", "eca"], help="blocks")
    one.add_argument("--engine", default="openvino")
    one.add_argument("--precision", default="bf16")
    one.add_argument("--classes", type=int, default=4)

    one = part("start", measure_start, 3)
    files(one)
    given(one)
    variants(one, ("openvino:bf16:constant", "auto:auto:constant"))
    one.add_argument("--size", type=int, default=128, help="voxels along every axis of what is cut out of the scan")
    one.add_argument("--no-command", action="store_true", help="leave out `medseg-se predict`")
    one.add_argument(
        "--extra", nargs=argparse.REMAINDER, default=[], help="further words for `medseg-se predict`; the last one"
    )

    one = part("cohort", measure_cohort, 3)
    one.add_argument("--data", type=Path, required=True, help="dataset whose scans are predicted, such as Task04_Hippocampus")
    one.add_argument("--checkpoint", type=Path, required=True)
    one.add_argument(
        "--extra", nargs=argparse.REMAINDER, default=[], help="further words for `medseg-se predict`; the last one"
    )

    one = part("conv", measure_conv, 7)
    network(one, CHANNELS)
    one.add_argument("--engines", nargs="*", default=["torch:fp32", "torch:bf16", "openvino:fp32", "openvino:bf16"])

    arguments = parser.parse_args()
    if "data" in arguments and not arguments.data.is_dir():
        parser.error(f"no such folder: {arguments.data}")
    hold(arguments.threads)
    keep_freed_memory()
    found = arguments.measure(arguments)
    machine = {"torch": torch.__version__, "threads": arguments.threads, "bf16": has_bfloat16(CPU)}
    if arguments.output:
        arguments.output.write_text(json.dumps({arguments.part: found, "machine": machine}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

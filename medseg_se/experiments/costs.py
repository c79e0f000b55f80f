"""What every variant of an experiment costs, measured in turns on this machine once and then kept."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg_se.analysis.cost import Precision, measure_variants
from medseg_se.analysis.result import Cost
from medseg_se.data.datalist import read_json
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import MedsegError
from medseg_se.experiments.grid import Experiment
from medseg_se.files import write_json
from medseg_se.hardware import best_device, has_bfloat16
from medseg_se.tasks import SegmentationTask

log = logging.getLogger(__name__)
_REPEATS = 9


def measure_costs(
    experiment: Experiment,
    tasks: Mapping[str, SegmentationTask],
    data: SegmentationData,
    trainer: Mapping[str, Any],
    path: Path,
) -> dict[str, dict[str, float]]:
    """Return variant → parameters, flops, memory, step_seconds and forward_seconds of a batch as it is trained on.

    Args:
        experiment: Tells the variants.
        tasks: Network → its task without attention.
        data: Tell the size of a batch.
        trainer: The settings of the trainer.
        path: JSON file in which what was measured on such a machine is kept.
    """
    device = "cpu" if trainer.get("accelerator") == "cpu" else "auto"
    default = "bf16" if has_bfloat16(best_device(device)) else "fp32"
    asked = trainer.get("precision")
    precision: Precision = "bf16" if "bf16" in str(asked or default) else "fp32"
    kept = read_json(path) if path.is_file() else {}
    costs: dict[str, dict[str, float]] = {}
    for network, task in tasks.items():
        variants = [variant for variant in experiment.variants if variant.network == network]
        options = {variant.name: {**task.network_arguments, **variant.arguments()} for variant in variants}
        sizes = (data.patch_size, task.in_channels, task.num_classes, data.batch_size, device, precision)
        here = (platform.node(), torch.get_num_threads(), torch.__version__)
        key = hashlib.blake2b(json.dumps([task.network_name, options, sizes, here]).encode(), digest_size=16).hexdigest()
        if key not in kept:
            kept[key] = _measure(task, options, *sizes)
            write_json(path, kept)
        costs |= kept[key]
    return costs


def _measure(
    task: SegmentationTask,
    options: Mapping[str, Mapping[str, Any]],
    size: Sequence[int],
    in_channels: int,
    num_classes: int,
    batch: int,
    device: str,
    precision: Precision,
) -> dict[str, dict[str, float]]:
    """Return the costs of the variants of a network; nothing, and why, where the machine cannot measure them."""
    try:
        report = measure_variants(
            task.network_name,
            options,
            task.spatial_dims,
            size,
            in_channels,
            num_classes,
            batch,
            device,
            precision,
            _REPEATS,
            blocks=False,
            progress=True,
        )
    except MedsegError as error:
        log.warning("what %s costs was not measured: %s", task.network_name, error)
        return {}
    return {variant.attention: _plain(variant.cost, batch) for variant in report.variants if variant.cost is not None}


def _plain(cost: Cost, batch: int) -> dict[str, float]:
    numbers = {"parameters": cost.parameters, "flops": cost.work.flops / batch, "memory": cost.memory}
    times = {"step_seconds": cost.step, "forward_seconds": cost.forward}
    measured = {name: timing.median for name, timing in times.items() if timing is not None}
    return {name: value for name, value in {**numbers, **measured}.items() if value is not None}

"""What a trained classifier or regression knows of itself at the end of a run: how sure it may be, and what it has seen.

Kept in its best checkpoint as tensors and plain data under "answers": the temperature of the validation answers, and what the
features of the training scans are like, with the limit that the validation scans set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medseg_se.checkpoints import read_checkpoint
from medseg_se.data.datalist import Case
from medseg_se.data.whole_scan_data import WholeScanData
from medseg_se.files import atomic_write
from medseg_se.metrics.calibration import best_temperature
from medseg_se.metrics.likeness import fit_likeness
from medseg_se.networks import build_network
from medseg_se.networks.witness import Witness
from medseg_se.tasks.checkpoints import keeper_of_the_best
from medseg_se.tensors import load_tensors

NOTHING_HELD_OUT = "the run validated on its training scans, so no scan was held out"


class SelfKnowledge(pl.Callback):
    """Add what is known of the best checkpoint to it when a run of whole scans has ended.

    Of a run that was interrupted, the one that goes on from it does so.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete `best.ckpt`.

        Raises:
            OutputError: It cannot be written; it is as before.
        """
        best = Path(getattr(keeper_of_the_best(trainer), "best_model_path", "") or "")
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, WholeScanData) and best.is_file() and not trainer.fast_dev_run:
            complete(best, data, pl_module.device)


def complete(path: Path, data: WholeScanData, device: torch.device | str = "cpu") -> None:
    """Add to a checkpoint what its network makes of the scans of its data; one that has it already stays as it is.

    Args:
        path: A checkpoint of a training.
        data: The data of that training, set up.
        device: Where the network is asked.

    Raises:
        CheckpointError: See `read_checkpoint`.
        OutputError: The file cannot be written; it is as before.
    """
    description, state, _ = read_checkpoint(path)
    if "answers" in description:
        return
    known = knowledge(description, state, data, device)
    content = load_tensors(path)
    content["medseg_se"]["answers"] = known
    with atomic_write(path) as stream:
        torch.save(content, stream)


def knowledge(
    description: Mapping[str, Any], state: Mapping[str, Tensor], data: WholeScanData, device: torch.device | str
) -> dict[str, Any]:
    """Return what a checkpoint keeps under "answers", of its description and the weights that are judged.

    Returns:
        "temperature", 1 where none is fitted, with "temperature_note" that says why not; and "unlike", see
        `medseg_se.metrics.likeness.Likeness.to_dict`, or None with "unlike_note".
    """
    parts = description["network"]
    network = build_network(
        parts["name"], parts["in_channels"], parts["num_classes"], parts["spatial_dims"], **parts["options"]
    )
    network.load_state_dict(state)
    witness = Witness(network.to(device).eval(), parts["num_classes"])
    blank = torch.zeros((1, data.in_channels, *data.scan.size), device=device)
    sizes = witness.sizes(blank)
    found: dict[str, Any] = {"temperature": 1.0, "temperature_note": None, "unlike": None, "unlike_note": None}
    if data.fold is None:
        return {**found, "temperature_note": NOTHING_HELD_OUT, "unlike_note": NOTHING_HELD_OUT}
    held_out, truth = _asked(witness, data, data.validation, device)
    if description["task"] == "classification":
        fitted = best_temperature(held_out[:, : witness.num_classes].double().numpy(), truth.numpy())
        found |= {"temperature": fitted.temperature, "temperature_note": fitted.reason}
    training, classes = _asked(witness, data, data.training, device)
    classes = classes if description["task"] == "classification" else torch.zeros(len(training), dtype=torch.int64)
    try:
        likeness = fit_likeness(training[:, witness.num_classes :], classes, held_out[:, witness.num_classes :], sizes)
        found["unlike"] = likeness.to_dict()
    except ValueError as error:
        found["unlike_note"] = str(error)
    return found


@torch.inference_mode()
def _asked(witness: Witness, data: WholeScanData, cases: Sequence[Case], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return what the network says of cases as they are, (n, classes + features) float32, and what is true of each."""
    answers, truth = [], []
    for batch in DataLoader(data.as_they_are(cases), data.batch_size, num_workers=0):
        answers.append(witness(batch["image"].to(device)).float().cpu())
        truth.append(batch["target"])
    return torch.cat(answers), torch.cat(truth)

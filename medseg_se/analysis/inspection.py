"""A look inside a network on one scan: gates, their maps on the scan's grid and their selectivity, written and printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.analysis.gate_statistics import CLOSED, OPEN
from medseg_se.analysis.gates import is_channel_gate
from medseg_se.analysis.selectivity import Selectivity, channel_gates, draw_patches, selectivity
from medseg_se.analysis.watched import Recording, WatchedModel
from medseg_se.data.preprocessing import Prepared
from medseg_se.errors import DataError, OutputError, UsageError
from medseg_se.files import write_json
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, write_volume

NOTE = (
    "η² is the share of the channel gates' variance between patches that lies between the structures they are centred on. "
    "Chance is its mean if structures were dealt at random, (K - 1) / (n - 1), and ε² is η² without it: 0 at random, 1 at "
    "best. A gate moves by its standard deviation between patches; where that is next to nothing, so is what a large η² means. "
    "All patches are of one scan, and those of a structure lie close together: gates that follow the place in the body look "
    "selective too, and p, of each insertion point by itself, is a guide rather than a proof."
)
MAPS = (
    "Maps lie on the scan's own grid, blended over tiles with the weights of the prediction, and are 0 where the scan was "
    "cropped away. Per-voxel gates are averaged over the channels, gates per axis multiplied with each other."
)


@dataclass(frozen=True)
class Inspection:
    """What `inspect_scan` found.

    Attributes:
        structures: What the network segments.
        model: Digest of the checkpoint.
        prepared: The scan, and the way back to its grid.
        labels: Structure indices on the scan's own grid that say where the structures are.
        source: Whether those are the "label" that was given or the model's own "prediction".
        recording: Gates and maps.
        groups: Structure (or background) → number of patches centred on it.
        patch: Voxels (I, J, K) of such a patch on the prepared grid.
        selectivity: (name of the insertion point, kind of gate) → how selective it is, in the order of the data flow.
    """

    structures: Structures
    model: str
    prepared: Prepared
    labels: Volume
    source: Literal["label", "prediction"]
    recording: Recording
    groups: Mapping[str, int]
    patch: tuple[int, int, int]
    selectivity: Mapping[tuple[str, str], Selectivity]

    def turning_points(self) -> dict[str, tuple[str, str]]:
        """Return "first", "deepest" and "last" → a key of `selectivity`; places that coincide are named once.

        Where a point has several channel gates, it is the first of them.
        """
        depth = {point.name: point.depth for point in self.recording.points}
        by_point: dict[str, tuple[str, str]] = {}
        for key in self.selectivity:
            by_point.setdefault(key[0], key)
        chosen: dict[str, tuple[str, str]] = {}
        if keys := list(by_point.values()):
            deepest = max(keys, key=lambda key: depth[key[0]])
            for word, key in (("first", keys[0]), ("deepest", deepest), ("last", keys[-1])):
                if key not in chosen.values():
                    chosen[word] = key
        return chosen

    def map_on_scan(self, name: str, kind: str) -> Volume:
        """Return the map of a gate as float32 (1, I, J, K) on the scan's own grid; 0 where the scan was cropped away."""
        gate = self.recording.maps[name, kind]
        shape = self.prepared.cut_shape
        if tuple(gate.shape) != shape:  # as the logits come back from another spacing
            gate = F.interpolate(gate[None, None], size=shape, mode="trilinear", align_corners=False)[0, 0]
        return self.prepared.restore(gate.numpy()[None])

    def map_files(self) -> dict[tuple[str, str], str]:
        """Return (name of the insertion point, kind of gate) → name of its file."""
        return {key: "-".join(re.findall(r"[A-Za-z0-9]+", " ".join(key))) + ".nii.gz" for key in self.recording.maps}

    def write_maps(self, folder: Path) -> None:
        """Write every map as NIfTI with the scan's own header.

        Raises:
            UsageError: A map would overwrite the scan or its label.
            OutputError: A file could not be written.
        """
        scan = self.prepared.original
        sources = {path.resolve() for path in (scan.path, self.labels.path) if path}
        for (name, kind), file in self.map_files().items():
            if (folder / file).resolve() in sources:
                raise UsageError(f"A map would overwrite {folder / file}. Choose another folder.")
            write_volume(self.map_on_scan(name, kind), folder / file, like=scan)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps as plain data."""
        files = self.map_files()
        scan = self.prepared.original
        return {
            "format": 1,
            "model": self.model,
            "scan": str(scan.path or ""),
            "structures_from": self.source,
            "label": str(self.labels.path or "") if self.source == "label" else None,
            "structures": self.structures.to_dict(),
            "patches": {"size": list(self.patch), "by_structure": dict(self.groups)},
            "notes": [NOTE, MAPS],
            "insertion_points": [
                {
                    **asdict(point),
                    "gates": {kind: asdict(statistics) for kind, statistics in self.recording.statistics[point.name].items()},
                    "maps": {kind: file for (name, kind), file in files.items() if name == point.name},
                    "selectivity": {
                        kind: self._selectivity(found) for (name, kind), found in self.selectivity.items() if name == point.name
                    },
                }
                for point in self.recording.points
            ],
            "early_and_late": {
                word: {"insertion_point": name, "gate": kind, **_scalars(self.selectivity[name, kind])}
                for word, (name, kind) in self.turning_points().items()
            },
        }

    def write_json(self, path: Path) -> None:
        """Write `to_dict`; NaN becomes null."""
        write_json(path, self.to_dict())

    def _selectivity(self, found: Selectivity) -> dict[str, Any]:
        means = dict(zip(self.groups, found.means.tolist(), strict=True))
        return {**_scalars(found), "n": found.n, "channels": list(found.channels), "mean_gate": means}

    # --------------------------------------------------------------------------------------------------------------- printing

    def render(self, console: Console) -> None:
        """Print the gates along the data flow, what each block weighs, and how selective channel gates are."""
        console.print(self._gates())
        if any(point.choice for point in self.recording.points):
            console.print(self._choices())
        if self.selectivity:
            console.print(self._selectivities())
            console.print(Text(NOTE, "dim"))

    def _gates(self) -> Table:
        blocks = list(dict.fromkeys(point.block for point in self.recording.points))
        table = _table(f"gates along the data flow: {', '.join(blocks)}", ("gate",))
        for heading in ("mean ± SD", "5, 50, 95 %", f"< {CLOSED}", f"> {OPEN}"):
            table.add_column(heading, justify="right", no_wrap=True)
        for point in self.recording.points:
            for kind, gate in self.recording.statistics[point.name].items():
                name = f"{point.name} {kind}" if len(blocks) == 1 else f"{point.name} {kind} ({point.block})"
                percentiles = " ".join(f"{value:.3f}" for value in (gate.p5, gate.median, gate.p95))
                shares = [f"{100 * share:.0f} %" for share in (gate.closed, gate.open)]
                table.add_row(Text(name), f"{gate.mean:.3f} ± {gate.sd:.3f}", percentiles, *shares)
        return table

    def _choices(self) -> Table:
        table = _table("learnt weights of the alternatives", ("insertion point", "largest first"))
        for point in filter(lambda point: point.choice, self.recording.points):
            weights = sorted(point.choice.items(), key=lambda item: -item[1])
            table.add_row(Text(point.name), Text(", ".join(f"{name} {weight:.2f}" for name, weight in weights)))
        return table

    def _selectivities(self) -> Table:
        origin = "the given label" if self.source == "label" else "the model's own prediction"
        words = f"selectivity of channel gates: {sum(self.groups.values())} patches, {len(self.groups)} structures by {origin}"
        table = _table(words, ("gate",))
        for heading in ("moves by", "η²", "chance", "ε²", "p"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("")
        turning = {key: word for word, key in self.turning_points().items()}
        for (name, kind), found in self.selectivity.items():
            scores = [_number(value) for value in (found.eta2, found.chance, found.epsilon2, found.p_value)]
            table.add_row(Text(f"{name} {kind}"), f"±{found.sd:.1g}", *scores, turning.get((name, kind), ""))
        return table


def inspect_scan(
    model: WatchedModel,
    image: Volume,
    truth: Volume | None = None,
    overlap: float = 0.5,
    patches: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Inspection:
    """Segment a scan, and look meanwhile at what the attention blocks do.

    Args:
        model: The model.
        image: The scan (C, I, J, K) as read from its file.
        truth: Structure indices on the scan's grid; the model's own prediction if None.
        overlap: Share of a tile that its neighbour covers too.
        patches: Patches a structure for the selectivity of channel gates.
        seed: Of the patches and of the random deals.
        progress: Whether to show a progress bar.

    Raises:
        DataError: As `Model.predict`, or the truth lies on another grid.
        UsageError: The overlap or the number of patches makes no sense.
    """
    if patches < 1:
        raise UsageError(f"Expected `patches` to be at least 1, but got {patches}.")
    if truth is not None and (difference := image.same_grid(truth)):
        raise DataError(f"Expected the label on the grid of {image.path or 'the scan'}, but got another one: {difference}.")
    prediction, recording = model.watch(image, overlap)
    if not any(recording.statistics.values()) and not any(point.choice for point in recording.points):
        blocks = ", ".join(dict.fromkeys(point.block for point in recording.points))
        raise UsageError(
            f"Expected attention with gates, but the network's ({blocks or 'unused'}) has none: nothing to inspect."
        )
    if truth is None:
        labels = replace(prediction.labels, array=model.structures.encode(prediction.labels.array), path=None)
    else:
        labels = truth
    prepared = model.preprocessing(image)
    drawn = draw_patches(prepared.apply_to_labels(labels).array[0], model.tile, recording.stride, patches, seed)
    kinds = {(point.path, kind): point.name for point in recording.points for kind in recording.statistics[point.name]}
    found: dict[tuple[str, str], Selectivity] = {}
    if len(drawn.starts) and any(is_channel_gate(kind) for _, kind in kinds):
        gates = channel_gates(model, prepared.image.array, drawn, progress)
        found = {(kinds[key], key[1]): selectivity(values, drawn.structures, seed=seed) for key, values in gates.items()}
    names = ("background", *model.structures.names)
    present, counts = np.unique(drawn.structures, return_counts=True)
    groups = {names[index]: int(count) for index, count in zip(present, counts, strict=True)}
    source: Literal["label", "prediction"] = "prediction" if truth is None else "label"
    return Inspection(model.structures, model.digest, prepared, labels, source, recording, groups, drawn.size, found)


def check_folder(output: Path) -> None:
    """Refuse an output that is a file, before anything is computed.

    Raises:
        OutputError: It is one.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"Expected `output` to be a folder, but {output} is a file.")


def _scalars(found: Selectivity) -> dict[str, float]:
    return {"eta2": found.eta2, "chance": found.chance, "epsilon2": found.epsilon2, "p_value": found.p_value, "sd": found.sd}


def _table(title: str, words: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in words:
        table.add_column(heading, overflow="fold")
    return table


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"

"""The answer to one scan: slab after slab, of one model or of several whose probabilities are averaged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medseg_se.inference.frame import plane_of, without
from medseg_se.inference.passage import Passage, Ready, cheapest_axis
from medseg_se.inference.result import Gathering
from medseg_se.inference.settings import Settings
from medseg_se.volumes import Volume

if TYPE_CHECKING:
    from medseg_se.inference.ensemble import Ensemble
    from medseg_se.inference.model import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of a scan, on the scan's own grid.

    Attributes:
        labels: Label values of the dataset the model was trained on, in its type, (1, I, J, K), post-processed.
        probabilities: float32 (classes, I, J, K), background first, which sum to 1; or (regions, I, J, K) of a model that finds
            regions. None unless asked for in memory.
        uncertainty: Structure → mean entropy over its voxels, from 0 (sure) to 1 (all classes alike), NaN where it has none;
            None unless asked for.
        notes: What a person should know about how it was computed.
        seconds: What it took: "network", and "rest" of the answer.
    """

    labels: Volume
    probabilities: Volume | None = None
    uncertainty: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Voice:
    """A model that has a say in an answer.

    Attributes:
        model: The model.
        ready: The scan as it has prepared it.
        weight: Its share.
        sources: For each map of the answer the map of this model that is added to it.
    """

    model: Model
    ready: Ready
    weight: float
    sources: tuple[int, ...]


@torch.inference_mode()
def answer(
    whole: Model | Ensemble, voices: Sequence[Voice], settings: Settings, probabilities: bool | Path, uncertainty: bool
) -> Prediction:
    """Segment a scan with one voice or several; see `Model.answer`."""
    started = time.perf_counter()
    axis = cheapest_axis([(voice.model, voice.ready) for voice in voices], settings)
    passages = [Passage(voice.model, voice.ready, axis, settings) for voice in voices]
    source = voices[0].ready.source
    with Gathering(
        source, whole.structures, whole.regions, whole.maps, whole.label_dtype, probabilities, uncertainty
    ) as gathered:
        if len(voices) == 1 and not gathered.wants_all:
            _label(passages[0], gathered, axis)
        else:
            for place, found in enumerate(_averaged(whole.maps, voices, passages, axis, background=whole.regions is None)):
                gathered.put(axis, place, *_settled(found, whole))
        labels = whole.postprocessing(gathered.labels.volume(), whole.structures)
        written = gathered.probabilities.finish() if gathered.probabilities else None
        entropy = gathered.entropy.result() if gathered.entropy else None
    network = sum(passage.asker.seconds for passage in passages)
    notes = tuple(dict.fromkeys(note for passage in passages for note in passage.notes))
    took = {"network": network, "rest": time.perf_counter() - started - network}
    return Prediction(labels, written, entropy, notes, took)


def _label(passage: Passage, gathered: Gathering, axis: int) -> None:
    """Decide every voxel that was not cut away, the shortest way."""
    inside = passage.ready.frame.inside
    for place, slab in enumerate(passage, start=inside[axis].start):
        gathered.labels.put(axis, place, passage.decided(slab), plane_of(inside, axis))


def _averaged(maps: int, voices: Sequence[Voice], passages: Sequence[Passage], axis: int, background: bool) -> Iterator[Tensor]:
    """Yield the weighted mean of the probabilities (X, Y, maps), not yet normalised, of every slab of the file.

    What a model has cut away is background for certain to it, and in no region.
    """
    shape = voices[0].ready.frame.shape
    slabs = [iter(passage) for passage in passages]
    for place in range(shape[axis]):
        total = torch.zeros((*without(shape, axis), maps))
        for voice, passage, found in zip(voices, passages, slabs, strict=True):
            inside = voice.ready.frame.inside
            box = plane_of(inside, axis)
            within = inside[axis].start <= place < inside[axis].stop
            if background and not (within and voice.ready.frame.is_whole):
                outside = torch.ones(total.shape[:2], dtype=torch.bool)
                if within:
                    outside[box] = False
                total[..., 0][outside] += voice.weight
            if within:
                own = passage.probabilities(next(found))
                total[box] += own[..., list(voice.sources)] * voice.weight
        yield total


def _settled(total: Tensor, whole: Model | Ensemble) -> tuple[Tensor, Tensor]:
    """Return the probabilities (X, Y, maps) and the structure indices (X, Y) that follow from a slab's mean."""
    if whole.regions is not None:
        return total, whole.regions.label_map(lambda place: total[..., place] > 0.5)
    # Above 1 in all where merged structures gave their probability to several.
    return total / total.sum(-1, keepdim=True), total.argmax(-1)

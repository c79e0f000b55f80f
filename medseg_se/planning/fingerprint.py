"""The fingerprint of a dataset: every labelled case is read once, and what a plan needs to know is kept.

What the numbers mean stands in `medseg_se.planning.facts`. They are the same however many workers read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import Case, Datalist
from medseg_se.data.parallel import for_every_case
from medseg_se.errors import DataError, UsageError
from medseg_se.planning.doubts import find_doubts
from medseg_se.planning.facts import (
    FORMAT,
    PERCENTILES,
    ChannelFacts,
    Fingerprint,
    Millimetres,
    StructureFacts,
)
from medseg_se.planning.measuring import Measured, measure_case

__all__ = ["Fingerprint", "inputs_key", "measure"]

BINS = 64  # of a histogram


def measure(datalist: Datalist, workers: int | None = None, progress: bool = True) -> Fingerprint:
    """Measure the training cases of `datalist`; those that cannot be used are named with the reason, and the rest goes on.

    Args:
        datalist: The dataset.
        workers: Cases read at the same time, each of which takes the memory of one scan; as many as there are processors,
            at most 8, if None.
        progress: Show a progress bar.

    Raises:
        DataError: No case can be used.
        UsageError: There is less than one worker.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")

    def attempt(case: Case) -> Measured | str:
        try:
            return measure_case(case, datalist)
        except DataError as error:
            return str(error)

    key = inputs_key(datalist)
    found = for_every_case(datalist.training, attempt, progress, workers, doing="measuring scans")
    unusable = {case.id: why for case, why in zip(datalist.training, found, strict=True) if isinstance(why, str)}
    measured = [one for one in found if isinstance(one, Measured)]
    if not datalist.training:
        raise DataError(f"{datalist.source} lists no training case. Add cases with label maps.")
    if not measured:
        first = next(iter(unusable))
        raise DataError(f"None of the {len(found)} training cases can be used, the first being {first}: {unusable[first]}")
    structures = datalist.structures
    known = sum(one.known for one in measured)
    fingerprint = Fingerprint(
        name=datalist.name,
        source=str(datalist.source),
        inputs=key,
        channels=_channels(datalist.channels, measured),
        cases=tuple(one.facts for one in measured),
        structures=tuple(_structure(name, values, measured) for name, values in structures.values.items()),
        background=1 - sum(sum(one.voxels.values()) for one in measured) / max(1, known),
        pairs=tuple((structures.names[left - 1], structures.names[right - 1]) for left, right in structures.pairs()),
        together=_together(structures.names, measured),
        regions={name: tuple(members) for name, members in structures.regions.items()},
        unusable=unusable,
        warnings=(),
        folds=any(case.fold is not None for case in datalist.training),
    )
    places = {one.facts.id: one.places for one in measured}
    alone = sum(not case.lowest for case in fingerprint.cases)
    bare = f"{alone} of {len(measured)} cases are label maps alone: their scans will be synthetic, see `data.synthesis`."
    return replace(fingerprint, warnings=(*find_doubts(fingerprint, places), *([bare] if alone else [])))


def inputs_key(datalist: Datalist) -> str:
    """Return a key of the files that `measure` would read: names, sizes and times of change, and what the datalist says.

    A fingerprint whose `inputs` equal it need not be measured again.
    """
    content: list[object] = [FORMAT, datalist.name, str(datalist.source), datalist.channels, datalist.structures.to_dict()]
    for case in datalist.training:
        files = case.files()
        known = [(path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None for path in files]
        content.append([case.id, case.group, case.fold, list(map(str, files)), known])
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _channels(names: Sequence[str], measured: Sequence[Measured]) -> tuple[ChannelFacts, ...]:
    """Summarise the channels over the cases with a structure; over all cases where none has any."""
    chosen = [one for one in measured if one.voxels] or measured
    chosen = [one for one in chosen if one.drawn.size]  # a scan that is 0 everywhere has nothing to draw from
    return tuple(
        _channel(
            name,
            np.concatenate([one.drawn[number] for one in chosen]) if chosen else np.zeros(1, dtype=np.float32),
            min((float(one.minimum[number]) for one in chosen), default=0.0),
            max((float(one.maximum[number]) for one in chosen), default=0.0),
            2 * sum(one.like_ct[number] for one in measured if one.like_ct) > sum(bool(one.like_ct) for one in measured),
        )
        for number, name in enumerate(names)
    )


def _channel(name: str, drawn: npt.NDArray[np.float32], minimum: float, maximum: float, like_ct: bool) -> ChannelFacts:
    values = np.percentile(drawn.astype(np.float64), [float(percentile) for percentile in PERCENTILES]).tolist()
    counts, _ = np.histogram(drawn, bins=BINS, range=(values[0], values[-1]))
    return ChannelFacts(
        name=name,
        mean=float(drawn.mean(dtype=np.float64)),
        deviation=float(drawn.std(dtype=np.float64)),
        minimum=minimum,
        maximum=maximum,
        percentiles=dict(zip(PERCENTILES, values, strict=True)),
        histogram=tuple(counts.tolist()),
        looks_like_ct=like_ct,
    )


def _structure(name: str, values: tuple[int, ...], measured: Sequence[Measured]) -> StructureFacts:
    having = [one for one in measured if name in one.voxels]
    if not having:
        return StructureFacts(name, values, 0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), 0.0, 0.0)
    volumes = [one.facts.volumes[name] for one in having]
    voxels = sum(one.voxels[name] for one in having)
    extent: Millimetres = tuple(np.min([one.extents[name] for one in having], axis=0).tolist())
    return StructureFacts(
        name=name,
        values=values,
        cases=len(having),
        median_ml=float(np.median(volumes)),
        smallest_ml=min(volumes),
        largest_ml=max(volumes),
        extent_mm=extent,
        share=voxels / sum(one.known for one in measured),
        frequency=voxels / sum(one.known for one in having),
    )


def _together(names: Sequence[str], measured: Sequence[Measured]) -> tuple[tuple[int, ...], ...]:
    present = np.array([[name in one.voxels for name in names] for one in measured], dtype=np.int64)
    return tuple(tuple(row) for row in (present.T @ present).tolist())

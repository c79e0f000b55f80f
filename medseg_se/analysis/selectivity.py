"""How far channel gates depend on what is in view: class-agnostic or class-specific.

Hu et al., Squeeze-and-Excitation Networks, 2018, https://arxiv.org/abs/1709.01507, section 6.4, saw gates that hardly depend
on the class in early layers and do so in later ones. Here the classes are the structures that patches are centred on, and
the observation becomes a number: the share of the gates' variance that lies between structures (η²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track

from medseg_se.analysis.gates import Recorder, is_channel_gate
from medseg_se.errors import UsageError
from medseg_se.inference.model import Model

Array = npt.NDArray[Any]

_CONSTANT = 1e-6  # of the largest gate: what rounding alone makes of equal gates stays below


@dataclass(frozen=True)
class Selectivity:
    """How far the channel gates of one insertion point depend on the structure in view; NaN where that is not defined.

    Attributes:
        eta2: η²: sum of squares between structures over the total one, each summed over the channels. 0 to 1.
        chance: What η² is on average when the structures are dealt at random: ``(K - 1) / (n - 1)``.
        epsilon2: ε², η² without what chance gives: ``(η² - chance) / (1 - chance)``. 0 on average at random, 1 at best.
        p_value: Share of random deals, this one included, with as large an η².
        sd: By how much gates change between patches: root of the mean variance of a channel. Where that is next to nothing,
            as behind an instance normalisation, a large η² is of little consequence.
        channels: η² of each channel; NaN where a gate is constant.
        means: (K, C) mean gate by structure and channel.
        n: Number of patches.
    """

    eta2: float
    chance: float
    epsilon2: float
    p_value: float
    sd: float
    channels: tuple[float, ...]
    means: Array
    n: int


def selectivity(gates: Array, structures: Array, permutations: int = 999, seed: int = 0) -> Selectivity:
    """Measure how far gates (n, C) depend on the structure (n) of their patch.

    Args:
        gates: One row a patch.
        structures: Structure of each patch.
        permutations: Random deals for the p-value.
        seed: Of those deals.

    Raises:
        UsageError: The two do not have the same length.
    """
    if gates.ndim != 2 or structures.shape != gates.shape[:1]:
        raise UsageError(f"Expected gates (n, C) and n structures, but got shapes {gates.shape} and {structures.shape}.")
    present, counts = np.unique(structures, return_counts=True)
    groups, n = len(present), len(gates)
    values = gates.astype(np.float64)
    centred = values - values.mean(axis=0)
    constant = np.ptp(values, axis=0) <= _CONSTANT * np.abs(values).max(axis=0)
    centred[:, constant] = 0.0
    total = (centred**2).sum(axis=0)
    order = np.argsort(structures, kind="stable")
    between = _between(centred[order], counts)
    means = np.stack([values[structures == one].mean(axis=0) for one in present])
    sd = math.sqrt(total.mean() / n)
    if groups < 2 or groups == n or not total.any():
        return Selectivity(math.nan, math.nan, math.nan, math.nan, sd, (math.nan,) * gates.shape[1], means, n)
    channels = np.divide(between, total, out=np.full_like(total, np.nan), where=total > 0)
    eta2, chance = float(between.sum() / total.sum()), (groups - 1) / (n - 1)
    rng = np.random.default_rng(seed)
    least = between.sum() * (1 - 1e-9)  # the same deal in another order may differ in the last digits
    reached = sum(_between(centred[rng.permutation(n)], counts).sum() >= least for _ in range(permutations))
    p_value = (1 + reached) / (1 + permutations)
    return Selectivity(eta2, chance, (eta2 - chance) / (1 - chance), p_value, sd, tuple(channels.tolist()), means, n)


def _between(centred: Array, counts: Array) -> Array:
    """Return the sum of squares (C) between groups of `counts` consecutive rows each."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(centred, starts, axis=0)
    squares: Array = (sums**2 / counts[:, None]).sum(axis=0)
    return squares


# -------------------------------------------------------------------------------------------------------------------- patches


@dataclass(frozen=True)
class Patches:
    """Where a prepared scan is looked at.

    Attributes:
        size: Voxels (I, J, K) of every patch.
        structures: Structure index of each patch, 0 for background.
        starts: (n, 3) first voxel of each patch; negative where the scan is smaller than the patch.
    """

    size: tuple[int, int, int]
    structures: Array
    starts: Array


def draw_patches(labels: Array, tile: Sequence[int], stride: Sequence[int], patches: int = 16, seed: int = 0) -> Patches:
    """Draw patches centred on voxels of every structure, moved inward where they would reach beyond the scan.

    A patch is as large as a tile, but along each axis at most about half of the scan (rounded up to the network's stride,
    two strides at least): where every patch shows all of the scan, gates cannot depend on its centre. With a single
    structure, patches of background are drawn too, as its contrast.

    Args:
        labels: Structure indices (I, J, K) on the prepared grid.
        tile: Voxels of a tile; 1 along the axis across slices.
        stride: Stride of the network's coarsest map.
        patches: Patches a structure; fewer where it has fewer voxels.
        seed: Of the draw; the draw of one structure does not depend on the others.

    Raises:
        UsageError: Less than one patch is asked for.
    """
    if patches < 1:
        raise UsageError(f"Expected `patches` to be at least 1, but got {patches}.")
    size = np.array([_length(*lengths) for lengths in zip(labels.shape, tile, stride, strict=True)])
    present = [int(index) for index in np.unique(labels) if index > 0]
    structures, starts = [], []
    for index in [0, *present] if len(present) == 1 else present:
        places = np.flatnonzero(labels == index)
        chosen = np.random.default_rng((seed, index)).permutation(len(places))[:patches]
        for centre in np.stack(np.unravel_index(places[np.sort(chosen)], labels.shape), axis=1):
            room = np.array(labels.shape) - size
            starts.append(np.where(room >= 0, np.clip(centre - size // 2, 0, np.maximum(room, 0)), -(-room // 2)))
            structures.append(index)
    i, j, k = size.tolist()
    return Patches((i, j, k), np.array(structures, dtype=int), np.array(starts, dtype=int).reshape(-1, 3))


def _length(scan: int, tile: int, stride: int) -> int:
    half = max(-(-scan // 2), 2 * stride)
    return min(tile, -(-half // stride) * stride)


def channel_gates(model: Model, image: Array, patches: Patches, progress: bool = False) -> Mapping[tuple[str, str], Array]:
    """Let `model` look at patches of a prepared scan (C, I, J, K); returns (path of the block, kind) → channel gates (n, C)."""
    batch = 1 if model.flat_axis is None else 8
    firsts = range(0, len(patches.starts), batch)
    found: dict[tuple[str, str], list[Array]] = {}
    console = Console(stderr=True)
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=model.precision == "bf16")
    with Recorder(model.network) as recorder, torch.inference_mode(), autocast:
        for first in track(firsts, "looking at structures", console=console, transient=True, disable=not progress):
            cut = np.stack([_cut(image, start, patches.size) for start in patches.starts[first : first + batch]])
            tiles = torch.from_numpy(cut).to(model.device)
            model.network(tiles if model.flat_axis is None else tiles.squeeze(model.flat_axis + 2))
            for path, seen in recorder.take().items():
                for kind, gate in seen.gates.items():
                    if is_channel_gate(kind):
                        found.setdefault((path, kind), []).append(gate.flatten(1).float().cpu().numpy())
    return {key: np.concatenate(rows) for key, rows in found.items()}


def _cut(image: Array, start: Array, size: Sequence[int]) -> Array:
    """Cut (C, *size) from a scan, continued with its lowest intensity where it is smaller, as tiles of predictions are."""
    box = [slice(max(0, s), s + n) for s, n in zip(start, size, strict=True)]
    part = image[(slice(None), *box)]
    margins = [(max(0, -s), n - max(0, -s) - have) for s, n, have in zip(start, size, part.shape[1:], strict=True)]
    return np.stack([np.pad(channel, margins, constant_values=whole.min()) for channel, whole in zip(part, image, strict=True)])

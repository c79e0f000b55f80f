"""Rules: from what a dataset is like to how its scans are prepared, sampled and changed. Nothing is measured here.

They begin with those of nnU-Net (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z, supplement 2 to 4) and part
from them where a machine without a large graphics card, or the names of the structures, say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_se.errors import UsageError
from medseg_se.planning.budget import spoken_memory
from medseg_se.planning.facts import ChannelFacts, Fingerprint, Millimetres

ANISOTROPIC = 3.0
"""Ratio of the coarsest to the finest spacing from which nnU-Net treats the coarse axis apart."""
_LEAST_SEEN = 0.03  # share of a scan that the largest patch must see
_VOXELS_ACROSS = 4  # the smallest structure, as a cube
_FEW_CASES = 50
_SIDE = re.compile(r"(?<!\bc)left|(?<!\bb)right|(?<![a-z])(lh|rh|lt|rt|l|r)(?![a-z0-9])")
_ONE_SIDED = re.compile(
    r"\b(liver|hepat|sple(en|nic)|stomach|gastric|pancrea|gall ?bladder|duoden|jejun|ileum|bowel|intestin|colon|c[ao]?ecum"
    r"|appendix|sigmoid|o?esophag)"
    r"|\b(aort|vena cava|venae cavae|[is]vc\b|portal|azygos|brachiocephalic|pulmonary (arter|vein|trunk)|coronar)"
    r"|heart|\b((peri|epi|endo|myo)?cardi|myo\b|[lr](v|a|aa|vm|vbp)\b)|atri(um|a|al)\b"
)
"""Words of what is on one side of the body, or looks another on each side, as the chambers of the heart do."""
_HEART_VENTRICLE = re.compile(r"^(?!.*\blat)(?=.*(left|right|\b[lr]t?\b)).*vent(ric|\b)")
"""A left or right ventricle; those of the brain are called lateral."""


@dataclass(frozen=True)
class Decision:
    """One decision and why it was taken.

    Attributes:
        key: What is decided, as in a config but without `init_args`, such as "data.spacing".
        value: What it is.
        reason: Why, in a few words.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Grid:
    """The grid that scans are brought to.

    Attributes:
        spacing: In mm, along RAS.
        reason: Why.
        flat_axis: The axis across the slices where a 2D network is the better one, else None.
    """

    spacing: Millimetres
    reason: str
    flat_axis: int | None

    @property
    def anisotropic(self) -> bool:
        """Whether the coarsest axis is much coarser than the finest."""
        return max(self.spacing) > ANISOTROPIC * min(self.spacing)


def choose_grid(fingerprint: Fingerprint, reach: int, memory: int) -> Grid:
    """Choose the spacing, and between slices and volumes.

    The median spacing of each axis; along a coarse one the 10th percentile, as in nnU-Net. It is coarsened where the largest
    patch of this kind of device would see less than 3 % of a scan, though the smallest structure keeps four voxels across;
    and where judging the largest scan would take more than half of the memory.

    Args:
        fingerprint: What the data are like.
        reach: Voxels of the largest patch.
        memory: Bytes that the training may take.
    """
    spacing, reason = _typical_spacing(fingerprint)
    shape = fingerprint.median_shape(spacing)
    flat = next((axis for axis in range(3) if shape[axis] < 8 and min(shape[:axis] + shape[axis + 1 :]) >= 16), None)
    if flat is None and max(spacing) > 8 * min(spacing):
        flat = int(np.argmax(spacing))
    if flat is None and (wanted := _LEAST_SEEN * math.prod(shape) / reach) > 1:
        coarser = _coarsened(spacing, min(wanted, _room_for_structures(fingerprint, spacing)))
        if math.prod(coarser) > 1.1 * math.prod(spacing):
            spacing = coarser
            reason = "coarser than the scans, so that a patch sees enough of the body; no structure gets too small"
    classes, channels = len(fingerprint.structures) + 1, len(fingerprint.channels)
    largest = max(math.prod(n * mm for n, mm in zip(case.cropped, case.spacing, strict=True)) for case in fingerprint.cases)
    if (excess := judging_memory(largest / math.prod(spacing), channels, classes) / (memory / 2)) > 1:
        spacing = _coarsened(spacing, excess)
        reason = f"coarser than the scans, so that the largest can be judged within {spoken_memory(memory)}"
    x, y, z = (float(f"{mm:.3g}") for mm in spacing)
    return Grid((x, y, z), reason, flat)


def judging_memory(voxels: float, channels: int, classes: int) -> float:
    """Return the bytes that judging a whole scan takes: the summed logits, what is made of them, and copies of the scan."""
    return 4 * voxels * (2 * classes + 3 * channels + 4)


def _typical_spacing(fingerprint: Fingerprint) -> tuple[Millimetres, str]:
    spacings = np.array([case.spacing for case in fingerprint.cases])
    median = fingerprint.median_spacing()
    shape = fingerprint.median_shape(median)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarse]
    if median[coarse] > ANISOTROPIC * max(median[axis] for axis in others) and ANISOTROPIC * shape[coarse] < min(
        shape[axis] for axis in others
    ):
        finer = max(float(np.percentile(spacings[:, coarse], 10)), max(median[axis] for axis in others))
        spacing = [finer if axis == coarse else mm for axis, mm in enumerate(median)]
        return (spacing[0], spacing[1], spacing[2]), "median; across the thick slices the 10th percentile"
    if np.allclose(spacings, median, rtol=0.01):
        return median, "that of every scan"
    return median, "median over the scans, axis by axis"


def _room_for_structures(fingerprint: Fingerprint, spacing: Millimetres) -> float:
    """Return by what factor a voxel may grow until the smallest structure has four voxels across."""
    volumes = [structure.median_ml for structure in fingerprint.structures if structure.cases]
    across = (1000 * min(volumes)) ** (1 / 3) if volumes else math.inf
    return max(1.0, (across / _VOXELS_ACROSS) ** 3 / math.prod(spacing))


def _coarsened(spacing: Millimetres, factor: float) -> Millimetres:
    """Make a voxel `factor` times as large: the finest axes are coarsened first."""
    low, high = min(spacing), max(spacing) * factor
    for _ in range(60):
        middle = (low + high) / 2
        if math.prod(max(mm, middle) for mm in spacing) < factor * math.prod(spacing):
            low = middle
        else:
            high = middle
    x, y, z = (max(mm, high) for mm in spacing)
    return x, y, z


# ------------------------------------------------------------------------------------------------------------ preparation


def prepare(fingerprint: Fingerprint, grid: Grid) -> list[Decision]:
    """Decide spacing, crop, intensities and interpolation."""
    kept = float(np.median([math.prod(case.cropped) / math.prod(case.shape) for case in fingerprint.cases]))
    ct = any(channel.looks_like_ct for channel in fingerprint.channels)
    cropped = kept < 0.95 and not ct
    what = f"the zero border is {1 - kept:.0%} of a scan" if kept < 0.95 else "there is hardly any zero border"
    decisions = [
        Decision("data.spacing", list(grid.spacing), grid.reason),
        Decision("data.crop", "nonzero" if cropped else "none", "0 is tissue in CT" if ct else what),
    ]
    decisions += _intensity(fingerprint, kept if cropped else 1.0)
    if grid.anisotropic:
        decisions.append(Decision("data.interpolation", "anisotropic", "nearest across the thick slices, cubic within them"))
    else:
        decisions.append(Decision("data.interpolation", "cubic", "keeps edges better than linear"))
    return decisions


def _intensity(fingerprint: Fingerprint, kept: float) -> list[Decision]:
    found = [_scheme(channel, fingerprint, kept) for channel in fingerprint.channels]
    names, reasons = [name for name, _ in found], list(dict.fromkeys(reason for _, reason in found))
    decisions = [Decision("data.intensity", names[0] if len(set(names)) == 1 else names, "; ".join(reasons))]
    if "dataset" in names:
        facts = [channel if name == "dataset" else None for name, channel in zip(names, fingerprint.channels, strict=True)]
        window = [[_short(each.percentiles[key]) for key in ("0.5", "99.5")] if each else [-1000.0, 1000.0] for each in facts]
        mean = [_short(each.mean) if each else 0.0 for each in facts]
        deviation = [_short(each.deviation) if each else 1.0 for each in facts]
        one = len(facts) == 1
        decisions += [
            Decision("data.window", window[0] if one else window, "0.5th and 99.5th percentile inside the structures"),
            Decision("data.mean", mean[0] if one else mean, "mean inside the structures of all cases"),
            Decision("data.deviation", deviation[0] if one else deviation, "standard deviation there"),
        ]
    return decisions


def _scheme(channel: ChannelFacts, fingerprint: Fingerprint, kept: float) -> tuple[str, str]:
    """Return how a channel is scaled and why."""
    if channel.looks_like_ct and channel.percentiles["0.5"] < channel.percentiles["99.5"] and channel.deviation > 0:
        return "dataset", f"{channel.name} is in Hounsfield units, which mean the same in every scan"
    if kept < 0.75:
        return "zscore_nonzero", f"{channel.name} has no fixed unit, and much of a scan is 0"
    frequencies = [structure.frequency for structure in fingerprint.structures if structure.cases]
    if not frequencies:
        return "zscore", f"{channel.name} has no fixed unit; nothing is clipped, for no case shows how small a structure is"
    smallest = min(frequencies)
    if smallest >= 0.01:
        return "percentile", f"{channel.name} has no fixed unit; outliers are clipped, no structure is as small as what is lost"
    return "zscore", f"{channel.name} has no fixed unit; clipping might take a structure of {smallest:.2%} of a scan"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# ------------------------------------------------------------------------------------------------------------- sampling


def sample(fingerprint: Fingerprint, patch_share: float) -> list[Decision]:
    """Decide how often patches are drawn about a structure, and about which.

    Args:
        fingerprint: What the data are like.
        patch_share: Share of a typical scan that a patch sees.
    """
    if patch_share >= 0.5:
        foreground, why = 0.33, "any patch sees most of a scan"
    elif fingerprint.background > 0.99:
        foreground, why = 0.67, f"structures are only {1 - fingerprint.background:.2%} of the voxels"
    else:
        foreground, why = 0.5, "half about a structure, half anywhere"
    return [Decision("data.foreground", foreground, why), _weights(fingerprint)]


def _weights(fingerprint: Fingerprint) -> Decision:
    present = [structure for structure in fingerprint.structures if structure.cases]
    typical = float(np.median([structure.frequency for structure in present])) if present else 1.0
    found = {}
    for structure in present:
        rarer = (typical / structure.frequency) ** (1 / 3) * math.sqrt(len(fingerprint.cases) / structure.cases)
        found[structure.name] = min(4.0, round(2 * rarer) / 2)
    for left, right in fingerprint.pairs:  # what differs in its side only is as hard to find
        if left in found and right in found:
            found[left] = found[right] = max(found[left], found[right])
    weights = {name: weight for name, weight in found.items() if weight > 1}
    if not weights:
        return Decision("data.sampling_weights", None, "no structure is much smaller or rarer than the others")
    return Decision(
        "data.sampling_weights", weights, "by the cube root of how much smaller, and the root of how much rarer, a structure is"
    )


# --------------------------------------------------------------------------------------------------------- augmentation


def augment(fingerprint: Fingerprint, grid: Grid, patch: Sequence[int]) -> list[Decision]:
    """Decide how patches are changed at random.

    Args:
        fingerprint: What the data are like.
        grid: The grid of the scans.
        patch: Voxels of a patch along RAS.
    """
    few = len(fingerprint.cases) < _FEW_CASES
    cases = f"{len(fingerprint.cases)} cases"
    thick = grid.anisotropic and grid.flat_axis is None
    sides = [n * mm for axis, (n, mm) in enumerate(zip(patch, grid.spacing, strict=True)) if axis != grid.flat_axis]
    elastic = min(4.0, max(0.5, round(0.05 * min(sides)) / 2))
    decisions = [
        _mirror(fingerprint),
        Decision("data.rotation", 10 if thick else 20, "thick slices cannot be tilted far" if thick else "in degrees"),
        Decision("data.scaling", 0.25 if few else 0.2, f"{cases} vary {'little' if few else 'much'} by themselves"),
        Decision("data.elastic", elastic, "in mm, a fortieth of the patch"),
        Decision("data.spatial_probability", 0.7, "most patches, for no two scans lie alike"),
    ]
    if all(channel.looks_like_ct for channel in fingerprint.channels):
        decisions += [
            Decision(f"data.{name}", 0.1, "Hounsfield units differ little between scanners")
            for name in ("brightness", "contrast", "gamma")
        ]
    return decisions


def _mirror(fingerprint: Fingerprint) -> Decision:
    key, names = "data.mirror", [structure.name for structure in fingerprint.structures]
    paired = {name for pair in fingerprint.pairs for name in pair}
    alone = [name for name in names if name not in paired and (_SIDE.search(_words(name)) or _has_twin(name, names))]
    if alone:
        return Decision(key, [], f"never: {alone[0]} names a side, but no partner is known whose label it could change with")
    fixed = [name for name in names if _ONE_SIDED.search(_words(name)) or _HEART_VENTRICLE.search(_words(name))]
    if fixed:
        return Decision(key, [], f"never: {fixed[0]} lies on one side of the body, or is no mirror image of its partner")
    if paired:
        return Decision(key, ["left-right"], f"{len(paired) // 2} left and right structures change labels; never upside down")
    return Decision(key, ["left-right"], "no structure names a side; never upside down or back to front")


def _words(name: str) -> str:
    """Return "LungLeft", "Left-Lung_2" and "LLung" as lower-case words."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.sub(r"[^a-z0-9]+", " ", apart.lower()).strip()


def _has_twin(name: str, names: Sequence[str]) -> bool:
    """Tell whether another name differs in an L for an R only, as "lung_L1" and "lung_R1" do."""
    alike = (other.lower() for other in names if len(other) == len(name))
    differences = ([{a, b} for a, b in zip(name.lower(), other, strict=True) if a != b] for other in alike)
    return any(found == [{"l", "r"}] for found in differences)


# -------------------------------------------------------------------------------------------------------------------- folds


def split(fingerprint: Fingerprint, folds: int | None, fold: int | None) -> list[Decision]:
    """Decide the folds; `folds` and `fold` are what a person asked for.

    Raises:
        UsageError: They were asked for, but there is one group only.
    """
    groups = fingerprint.groups
    if groups < 2 and not fingerprint.folds:
        if folds is not None or fold is not None:
            raise UsageError(
                f"Expected at least 2 groups (patients) for `{'fold' if folds is None else 'folds'}`, but got {groups}. "
                "Add cases of other patients, or leave it out."
            )
        return [Decision("data.fold", None, "one group cannot be parted: validation judges nothing")]
    if fingerprint.folds:
        count, why = folds or 5, "not used: the dataset itself says which case is validated in which fold"
    elif folds is not None:
        count, why = folds, "as asked for"
    else:
        count = max(2, min(5, groups))
        why = "as usual" if groups >= 5 else f"no more than there are groups, {groups}"
    validated = 0 if fold is None else fold
    return [
        Decision("data.folds", count, why),
        Decision("data.fold", validated, "the first; train the others with --data.fold" if fold is None else "as asked for"),
    ]

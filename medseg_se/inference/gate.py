"""The input gate: what about a scan is unlike the scans that a model learnt from, and may make its answer worthless.

A doubt is a sentence without its subject: "covers 60 mm from feet to head, training at least 250 mm". Limits are wide: a scan
of the same body part from another scanner must pass, one in the wrong unit or of another body part must not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from medseg_se.data.seen import Intensities, ScanFacts, axis_name, facts_of
from medseg_se.volumes import Volume

Seen = Mapping[str, Any]

DIRECTIONS = {
    "left-right": "from left to right",
    "posterior-anterior": "from back to front",
    "inferior-superior": "from feet to head",
}
COARSER = 2.0
"""Times the longest voxel seen. Training itself changes size and coarsens patches by up to about so much."""
FINER = 2.0
"""Parts of the shortest voxel seen, where scans keep their own spacing and structures grow with it."""
FINER_RESAMPLED = 5.0
"""The same where scans are resampled, which makes a fine one like the others: only a wrong unit (cm for mm) goes beyond."""
EXTENT = 5 / 3
"""Times, or parts of, the extents seen. Fields of view of one body part differ by less: heads are scanned in 150 to 250 mm."""
MOST = 0.9
"""Share of the training scans that must agree before something is called usual; labels and headers of a few may be wrong."""
FAT = -50.0
"""HU. Fat lies near -100 and is in every scan of a body, even where one is cut so closely that no air is left."""
SPREAD = 3.0
"""Times, or parts of, the distance between low and high values seen, where absolute values count. Contrast medium, metal and
the amount of air change it by less than that; a wrong unit or a scaling to 0-1 or 0-255 by more."""
MOVED = 0.5
"""Of the whole range of values seen: how far beyond the medians seen a median may lie where absolute values count."""
NEGATIVE = 0.01
"""Of the range of a scan's values: what may lie below 0 where training had nothing; cubic resampling overshoots so far."""
INVERTED = 0.15
"""Of the range of a scan's values: how far beyond what was seen its median lies before it may be upside down."""
EMPTY_AROUND = (0.2, 0.02)
"""Share of zeros that all training scans have at least, and that a scan has at most, if its background was not removed."""
ABSOLUTE = ("window", "dataset", "none")
"""Schemes that take values as they are; the others take each scan's own statistics, so that its unit does not matter."""


def doubts(image: Volume, seen: Seen | None) -> tuple[str, ...]:
    """Return what about a scan is unlike the scans that a model learnt from, each as a sentence that begins with its verb.

    Args:
        image: The scan (C, I, J, K) as it was read.
        seen: What `medseg_se.data.seen.summarise` says of the training scans; None of checkpoints that do not say it, with
            which only a scan of one value throughout is doubted.
    """
    scan = facts_of(image)
    found = [] if seen is None else [*_lie(scan, seen), *_size(scan, seen)]
    intensities = seen and seen["intensities"]
    names = seen["channels"] if seen else []
    for place, channel in enumerate(scan.channels):
        subject = f"in channel {names[place] if place < len(names) else place} " if len(scan.channels) > 1 else ""
        usual = intensities[place] if intensities and len(intensities) == len(scan.channels) else None
        found += [f"{subject}{doubt}" for doubt in _values(channel, usual, names[place] if usual else "")]
    return tuple(found)


def _lie(scan: ScanFacts, seen: Seen) -> Iterator[str]:
    """Doubt how a scan lies."""
    if not scan.placed and not seen["unplaced"]:
        yield (
            "does not say how it lies (its qform and sform codes are 0), as all training scans did; left and right, front and "
            "back may be mixed up"
        )
    # Some tools move true scans to the origin, so that alone says nothing; nor do axes that were usual in training.
    elif scan.plain and not seen["plain"] and scan.orientation not in seen["orientations"]:
        yield (
            f"may not know how it lies: its axes are {scan.orientation} at the origin, as programs write where they know no "
            "place, and no training scan lay so; left and right, front and back may be mixed up"
        )
    usual = _usual_stack(seen)
    if usual and scan.stacked not in ("", *seen["stacked"]):
        yield (
            f"has its slices stacked {DIRECTIONS[scan.stacked]}, but those of the training scans were stacked "
            f"{DIRECTIONS[usual]}; is the orientation in its header right?"
        )


def _usual_stack(seen: Seen) -> str:
    """Return along which axis slices were stacked in nearly all training scans; "" if voxels were even, or axes differ."""
    stacked = seen["stacked"]
    usual = max(stacked, key=lambda axis: stacked[axis])
    return str(usual) if stacked[usual] >= MOST * seen["scans"] else ""


def _size(scan: ScanFacts, seen: Seen) -> Iterator[str]:
    """Doubt spacing and field of view, axis by axis."""
    turned = _usual_stack(seen) and scan.stacked not in ("", *seen["stacked"])  # then spacings are in each other's place
    finer = FINER_RESAMPLED if seen["resampled"] else FINER
    spacings, extents = scan.along(seen["orientation"])
    for axis, letter in enumerate(seen["orientation"]):
        name = axis_name(letter)
        low, high = seen["spacing"][axis]
        if not turned and not low / finer <= spacings[axis] <= high * COARSER:
            what = "slices" if scan.stacked == name else "voxels"
            yield f"has {what} {_number(spacings[axis])} mm apart {DIRECTIONS[name]}, training had {_between(low, high)} mm"
        low, high = seen["extent"][axis]
        if extents[axis] < low / EXTENT:
            yield f"covers {extents[axis]:.0f} mm {DIRECTIONS[name]}, training at least {low:.0f} mm"
        elif extents[axis] > high * EXTENT:
            yield f"covers {extents[axis]:.0f} mm {DIRECTIONS[name]}, training at most {high:.0f} mm"


def _values(channel: Intensities, usual: Seen | None, name: str) -> Iterator[str]:
    """Doubt the values of one channel; of several doubts about one cause, the first."""
    if not (math.isfinite(channel.lowest) and math.isfinite(channel.highest)):
        return  # refused by the preprocessing
    if channel.lowest == channel.highest:
        yield f"is empty: every voxel is {_number(channel.lowest)}"
        return
    if usual is None:
        return
    if channel.low == channel.high and usual["spread"][0] > 0:
        yield f"is almost empty: 99 of 100 voxels are {_number(channel.middle)}"
        return
    doubt = _unit(channel, usual, name) or _scale(channel, usual)
    if doubt:
        yield doubt
    elif _upside_down(channel.middle_share, *usual["middle_share"]):
        yield "looks as if its intensities were inverted: most voxels are as bright as few were in the training scans"
    least, most = EMPTY_AROUND
    if usual["scheme"] == "zscore_nonzero" and usual["zero"][0] >= least and channel.zero <= most:
        yield (
            f"has {channel.zero:.0%} of its voxels exactly 0, training at least {usual['zero'][0]:.0%}; was what is outside of "
            "the structure of interest (skull, background) not removed?"
        )


def _unit(channel: Intensities, usual: Seen, name: str) -> str:
    """Doubt whether values are in the unit of the training scans."""
    reach = f"values from {_number(channel.lowest)} to {_number(channel.highest)}"
    learnt = f"the scans that the model learnt from reach from {_number(usual['lowest'][0])} to {_number(usual['highest'][1])}"
    if usual["hu"] >= MOST * usual["scans"] and not channel.air and channel.low > FAT:
        return f"looks like it is not in HU: {reach}, but {learnt}"
    if usual["lowest"][0] >= 0 and channel.low < -NEGATIVE * (channel.high - channel.low):
        looks = "looks like HU" if channel.like_hu(name) else "has negative intensities"
        return f"{looks}: {reach}, but {learnt}"
    return ""


def _scale(channel: Intensities, usual: Seen) -> str:
    """Doubt whether values are scaled and centred as in training, where that matters."""
    if usual["scheme"] not in ABSOLUTE:
        return ""
    spread, (low, high) = channel.high - channel.low, usual["spread"]
    reach = f"most values lie between {_number(channel.low)} and {_number(channel.high)}"
    learnt = f"those of the training scans between {_number(usual['low'][0])} and {_number(usual['high'][1])}"
    if not low / SPREAD <= spread <= high * SPREAD:
        return f"looks as if its intensities were scaled otherwise: {reach}, {learnt}"
    room = MOVED * (usual["high"][1] - usual["low"][0])
    if not usual["middle"][0] - room <= channel.middle <= usual["middle"][1] + room:
        return f"looks as if its intensities were shifted: {reach}, {learnt}"
    return ""


def _upside_down(share: float, low: float, high: float) -> bool:
    """Tell whether a median does not lie where it lay in training, but would if dark and bright changed places."""
    return not low - INVERTED <= share <= high + INVERTED and low - INVERTED <= 1 - share <= high + INVERTED


def _between(low: float, high: float) -> str:
    return _number(low) if _number(low) == _number(high) else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

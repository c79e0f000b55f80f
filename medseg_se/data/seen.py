"""What the scans of a training were like before they were prepared: what a scan that is predicted later is held against.

Of every case a few numbers are kept beside its arrays in the store; `summarise` makes of them one table for the checkpoint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.intensity import TAIL
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.volumes import Volume

Array = npt.NDArray[Any]

FORMAT = 1
MOST_VOXELS = 100_000  # that percentiles are taken from; their error is far below any difference that means something
AIR = (-1100.0, -850.0)  # HU
FEWEST_OF_AIR = 1e-3  # share of the voxels; a scan of the trunk has far more even where the table is cut away
CT_WORDS = {"ct", "cbct", "cect", "ncct", "hu"}
STACKED = 1.5
"""Voxels this much longer along one axis than along both others show how slices were stacked. Below, a volume was scanned."""
AXES = {"LR": "left-right", "PA": "posterior-anterior", "IS": "inferior-superior"}


@dataclass(frozen=True)
class Intensities:
    """Values of one channel in the unit of the file; percentiles and shares are those of evenly drawn voxels.

    Attributes:
        lowest: Lowest value of all voxels.
        low: The 0.5th percentile.
        middle: The median.
        high: The 99.5th percentile.
        highest: Highest value of all voxels.
        zero: Share of voxels that are exactly 0.
        air: Whether some values are those of air in HU and the others could be HU.
        whole: Whether all values are whole numbers.
    """

    lowest: float
    low: float
    middle: float
    high: float
    highest: float
    zero: float
    air: bool
    whole: bool

    @property
    def middle_share(self) -> float:
        """Where the median lies between the two percentiles, 0 to 1; 0.5 where they are equal."""
        return (self.middle - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def like_hu(self, name: str) -> bool:
        """Tell whether they could be Hounsfield units: from air near -1000 up to tissue, and whole.

        Scans that were resampled are not whole any more; of a channel that is called CT that is believed.
        """
        return self.air and (self.whole or not CT_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower())))


@dataclass(frozen=True)
class ScanFacts:
    """One scan, or label map, as it was read.

    Attributes:
        shape: Voxels along (i, j, k).
        spacing: Distance of voxel centres along (i, j, k) in mm.
        orientation: Where the axes (i, j, k) point, for example "LPS".
        placed: Whether its file says how it lies.
        plain: Whether it lies along the axes with its first voxel at the origin, which is what programs write of an array of
            whose place they know nothing.
        channels: Intensities of each channel; none of a label map.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    placed: bool
    plain: bool
    channels: tuple[Intensities, ...]

    def along(self, orientation: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return spacing and extent in mm along the axes of another orientation, whichever way these point."""
        names = [axis_name(letter) for letter in self.orientation]
        order = [names.index(axis_name(letter)) for letter in orientation]
        return tuple(self.spacing[axis] for axis in order), tuple(self.spacing[axis] * self.shape[axis] for axis in order)

    @property
    def stacked(self) -> str:
        """Along which axis, for example "inferior-superior", slices are stacked; "" where voxels are about even."""
        longest = max(range(3), key=lambda axis: self.spacing[axis])
        if self.spacing[longest] < STACKED * sorted(self.spacing)[1]:
            return ""
        return axis_name(self.orientation[longest])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any) -> ScanFacts | None:
        """Make the object that `to_dict` described; None if it did not, or in another version."""
        try:
            if content["format"] != FORMAT:
                return None
            (i, j, k), (x, y, z) = content["shape"], content["spacing"]
            channels = tuple(Intensities(**channel) for channel in content["channels"])
            lies = str(content["orientation"]), bool(content["placed"]), bool(content["plain"])
            return cls((i, j, k), (x, y, z), *lies, channels)
        except (KeyError, TypeError, ValueError):
            return None


def axis_name(letter: str) -> str:
    """Return the axis of the world, for example "inferior-superior", along which an axis that points to `letter` lies."""
    return next(name for letters, name in AXES.items() if letter in letters)


def facts_of(volume: Volume, label_map: bool = False) -> ScanFacts:
    """Measure a scan (C, I, J, K) as it was read; the same voxels are drawn every time.

    Args:
        volume: The scan, all of whose values are finite.
        label_map: Whether it is a label map, whose values are no intensities.
    """
    x, y, z = (round(mm, 6) for mm in volume.spacing)  # headers hold 2.4 as 2.39999986
    header = volume.header
    placed = header is None or int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    plain = np.array_equal(np.abs(volume.affine), np.diag([*volume.spacing, 1.0]))
    channels = () if label_map else tuple(_intensities(channel) for channel in volume.array)
    return ScanFacts(volume.shape, (x, y, z), volume.orientation, placed, plain, channels)


def _intensities(channel: Array) -> Intensities:
    flat = channel.reshape(-1)
    # A step that is no whole number of voxels does not keep hitting the same columns of the scan.
    drawn = flat[np.linspace(0, flat.size - 1, min(flat.size, MOST_VOXELS)).astype(np.int64)]
    low, middle, high = np.percentile(drawn.astype(np.float64), [100 * TAIL, 50, 100 * (1 - TAIL)]).tolist()
    lowest, highest = float(flat.min()), float(flat.max())
    air = float(np.mean((drawn >= AIR[0]) & (drawn <= AIR[1]))) >= FEWEST_OF_AIR and highest > 0 and lowest > -5000
    whole = bool(np.array_equal(drawn, np.rint(drawn)))
    return Intensities(lowest, low, middle, high, highest, float(np.mean(drawn == 0)), bool(air), whole)


def summarise(
    scans: Sequence[ScanFacts], names: Sequence[str], preprocessing: Preprocessing, synthetic: bool = False
) -> dict[str, Any] | None:
    """Return what `scans` were like as plain data; None if there are none.

    Args:
        scans: The cases of a training; label maps may be among them.
        names: Names of the channels.
        preprocessing: What was done to them.
        synthetic: Whether no patch had the intensities of a scan, so that these say nothing.

    Returns:
        "scans": how many. "orientation": that of the axes of "spacing" and "extent", each axis a pair of the lowest and highest
        number of mm. "resampled": whether all were brought to one spacing. "orientations": orientation → scans. "stacked":
        axis across the slices, "" for none → scans. "unplaced": scans whose files do not say how they lie. "plain": scans at
        the origin. "channels": names.
        "intensities": None, or for each channel "scheme", how it is scaled; "hu", how many scans look like HU, of "scans"; and
        pairs of the lowest and highest found for each number of `Intensities` and its `middle_share`.
    """
    if not scans:
        return None
    orientation = preprocessing.orientation
    along = [scan.along(orientation) for scan in scans]
    with_channels = [scan for scan in scans if len(scan.channels) == len(names)]
    intensities = None
    if with_channels and not synthetic:
        schemes = [scaling.scheme for scaling in preprocessing.for_channels(len(names))]
        intensities = [
            {"scheme": scheme, **_summarise_channel([scan.channels[place] for scan in with_channels], name)}
            for place, (name, scheme) in enumerate(zip(names, schemes, strict=True))
        ]
    return {
        "scans": len(scans),
        "orientation": orientation,
        "spacing": [_range([spacing[axis] for spacing, _ in along]) for axis in range(3)],
        "extent": [_range([extent[axis] for _, extent in along]) for axis in range(3)],
        "resampled": preprocessing.spacing is not None,
        "orientations": _counted([scan.orientation for scan in scans]),
        "stacked": _counted([scan.stacked for scan in scans]),
        "unplaced": sum(not scan.placed for scan in scans),
        "plain": sum(scan.plain for scan in scans),
        "channels": list(names),
        "intensities": intensities,
    }


def _summarise_channel(found: Sequence[Intensities], name: str) -> Mapping[str, Any]:
    numbers = ("lowest", "low", "middle", "high", "highest", "zero", "middle_share")
    ranges = {number: _range([getattr(one, number) for one in found]) for number in numbers}
    spread = _range([one.high - one.low for one in found])
    return {"scans": len(found), "hu": sum(one.like_hu(name) for one in found), **ranges, "spread": spread}


def _range(values: Sequence[float]) -> list[float]:
    return [round(min(values), 6), round(max(values), 6)]


def _counted(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))

"""What a dataset is like, as plain numbers: spacing, size, intensities, structures. Kept in one JSON file, `fingerprint.json`.

Everything with three entries runs along the world's axes, left to right, back to front, down to up (RAS), whatever the order of
the axes in the files. A scan that lies tilted is measured along its own axes, in the order of the world axes nearest to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_se.data.datalist import read_json
from medseg_se.errors import DataError
from medseg_se.files import write_json

FORMAT = 1
PERCENTILES = ("0.5", "5", "50", "95", "99.5")

Voxels = tuple[int, int, int]
Millimetres = tuple[float, float, float]


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities of one channel inside the structures, in the unit of the files (HU in CT).

    Every case gives at most as many voxels as the others, evenly drawn, so that large scans do not outvote small ones; a case
    without any structure gives none. Where no case has a structure, the nonzero voxels are taken.

    Attributes:
        name: Name of the channel.
        mean: Mean of the drawn voxels.
        deviation: Their standard deviation.
        minimum: Lowest of all voxels inside the structures, not of the drawn ones alone.
        maximum: Highest of them.
        percentiles: Percentile, one of `PERCENTILES` → intensity, of the drawn voxels.
        histogram: Drawn voxels in equal bins between the first and the last of the percentiles.
        looks_like_ct: Whether most scans hold values like Hounsfield units, with air near -1000.
    """

    name: str
    mean: float
    deviation: float
    minimum: float
    maximum: float
    percentiles: Mapping[str, float]
    histogram: tuple[int, ...]
    looks_like_ct: bool


@dataclass(frozen=True)
class CaseFacts:
    """One case that can be used for training.

    Attributes:
        id: Name of the case.
        group: What a split must not part, usually the patient.
        shape: Voxels of the whole scan.
        cropped: Voxels of the smallest box that holds every nonzero voxel of any channel.
        spacing: Distance of voxel centres in mm.
        orientation: Where the axes of the file point, for example "LPS".
        lowest: Lowest intensity of each channel.
        highest: Highest intensity of each channel.
        nonzero: Share of voxels at which some channel is not 0.
        bytes: Memory of the whole scan as float32 and its labels as int16 at its own spacing.
        volumes: Structure → volume in ml, of those that are present.
    """

    id: str
    group: str
    shape: Voxels
    cropped: Voxels
    spacing: Millimetres
    orientation: str
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    nonzero: float
    bytes: int
    volumes: Mapping[str, float]

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that are present."""
        return tuple(self.volumes)


@dataclass(frozen=True)
class StructureFacts:
    """One structure over all cases; every number is 0 if no case has it.

    Attributes:
        name: Name of the structure.
        values: Label values that mean it.
        cases: Cases in which it is present.
        median_ml: Median volume in ml over the cases in which it is present.
        smallest_ml: Smallest such volume.
        largest_ml: Largest such volume.
        extent_mm: Smallest extent in mm over these cases, for each axis by itself, of the box around the whole structure.
        share: Share of all voxels of all cases.
        frequency: Share of the voxels of the cases in which it is present, as weights by median frequency need it.
    """

    name: str
    values: tuple[int, ...]
    cases: int
    median_ml: float
    smallest_ml: float
    largest_ml: float
    extent_mm: Millimetres
    share: float
    frequency: float


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is like.

    Attributes:
        name: The dataset's own name.
        source: The file that lists its cases.
        inputs: Key of the files it was measured on; see `inputs_key`.
        channels: The channels in order.
        cases: The cases that can be used, in the order of the datalist.
        structures: The structures in order.
        background: Share of voxels that are no structure, of those whose truth is known.
        pairs: (left, right) names of structures that differ in their side only.
        together: Row and column of each structure → number of cases in which both are present.
        regions: Region → the structures whose union it is.
        unusable: Case → why it cannot be used.
        warnings: What a person should look at, a sentence or two each.
        folds: Whether the dataset itself says in which fold each case is validated.
        format: Version of the file's layout.
    """

    name: str
    source: str
    inputs: str
    channels: tuple[ChannelFacts, ...]
    cases: tuple[CaseFacts, ...]
    structures: tuple[StructureFacts, ...]
    background: float
    pairs: tuple[tuple[str, str], ...]
    together: tuple[tuple[int, ...], ...]
    regions: Mapping[str, tuple[str, ...]]
    unusable: Mapping[str, str]
    warnings: tuple[str, ...]
    folds: bool = False
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """A digest of what was measured, the same wherever the dataset lies; 32 hexadecimal digits."""
        content = {key: value for key, value in asdict(self).items() if key not in ("source", "inputs", "unusable", "warnings")}
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    @property
    def groups(self) -> int:
        """Number of groups, usually patients, with a usable case."""
        return len({case.group for case in self.cases})

    def median_spacing(self) -> Millimetres:
        """Return the median spacing in mm over the cases, each axis by itself."""
        x, y, z = np.median([case.spacing for case in self.cases], axis=0)
        return float(x), float(y), float(z)

    def median_shape(self, spacing: Millimetres, cropped: bool = True) -> Voxels:
        """Return the median number of voxels at `spacing` in mm, each axis by itself, of the cropped or the whole scans."""
        held = np.array([case.cropped if cropped else case.shape for case in self.cases])
        voxels = np.maximum(1, np.rint(held * [case.spacing for case in self.cases] / np.array(spacing)))
        i, j, k = np.rint(np.median(voxels, axis=0))
        return int(i), int(j), int(k)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object; `digest` is added for who reads the file."""
        return {"format": self.format, "digest": self.digest, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Make the object that `to_dict` described.

        Raises:
            DataError: It is of another format, something is missing, or it is not what was measured.
        """
        if content.get("format") != FORMAT:
            raise DataError(f"Expected a fingerprint of format {FORMAT}, but got {content.get('format')!r}; measure it again.")
        plain = {key: value for key, value in content.items() if key != "digest"}
        try:
            plain["channels"] = tuple(ChannelFacts(**_tuples(channel)) for channel in content["channels"])
            plain["cases"] = tuple(CaseFacts(**_tuples(case)) for case in content["cases"])
            plain["structures"] = tuple(StructureFacts(**_tuples(structure)) for structure in content["structures"])
            plain["pairs"] = tuple((left, right) for left, right in content["pairs"])
            plain["together"] = tuple(tuple(row) for row in content["together"])
            plain["regions"] = _tuples(content["regions"])
            plain["warnings"] = tuple(content["warnings"])
            made, texts = cls(**plain), [content["source"], content["inputs"], *content["warnings"]]
            texts += [*content["unusable"], *content["unusable"].values()]
            if content["digest"] != made.digest or not all(isinstance(text, str) for text in texts):
                raise ValueError("its content does not match its digest")
            return made
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"The fingerprint is damaged ({error}); measure it again.") from error

    def write(self, path: Path | str) -> None:
        """Write the fingerprint as JSON, atomically.

        Raises:
            OutputError: The file could not be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path | str) -> Fingerprint:
        """Read what `write` wrote.

        Raises:
            DataError: The file is missing, damaged or of another format.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}

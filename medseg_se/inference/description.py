"""What a program must know of a model besides its network, as plain data: written beside everything that is exported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

from torch import Tensor

from medseg_se.inference.model import Model
from medseg_se.version import __version__

AXES = {"R": "left to right", "L": "right to left", "A": "posterior to anterior", "P": "anterior to posterior"}
AXES |= {"S": "inferior to superior", "I": "superior to inferior"}


def weights_file(state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return weights as the content of a safetensors file; the same weights give the same bytes."""
    from safetensors.torch import save

    return save({name: state[name].detach().cpu().contiguous() for name in sorted(state)}, metadata)


def describe(model: Model, overlap: float) -> dict[str, Any]:
    """Return the description of a model.

    Args:
        model: The model.
        overlap: Share of a tile that its neighbour covers too, as it is recommended.
    """
    structures, regions = model.structures, model.regions
    axes = [AXES[letter] for letter in model.preprocessing.orientation]
    flat = model.flat_axis
    meaning: list[Any] = ["background", *structures.names] if regions is None else list(regions.names)
    decision = "the structure with the largest logit" if regions is None else "in a region where its logit is above 0"
    return {
        "program": f"medseg-se {__version__}",
        "checkpoint": {"digest": model.digest.split()[0]},
        "weights_sha256": hashlib.sha256(weights_file(model.network.state_dict())).hexdigest(),
        "channels": list(model.channels),
        "input": {
            "name": "tiles",
            "shape": [1, len(model.channels), *network_tile(model)],
            "type": "float32",
            "axes": ["tile", "channel", *(axis for number, axis in enumerate(axes) if number != flat)],
        },
        "output": {
            "name": "logits",
            "shape": [1, model.maps, *network_tile(model)],
            "type": "float32",
            "maps": meaning,
            "decision": decision,
        },
        "structures": structures.to_dict(),
        "label_values": label_values(model),
        "label_type": str(structures.dtype(model.label_dtype or None)),
        "regions": None
        if regions is None
        else {
            "names": list(regions.names),
            "written": [
                {"region": regions.names[place], "label": label_values(model)[index]} for place, index in regions.written
            ],
        },
        "preprocessing": model.preprocessing.to_dict(),
        "orientation": model.preprocessing.orientation,
        "tile": list(model.tile),
        "flat_axis": flat,
        "overlap": overlap,
        "tile_weights": "a Gaussian of standard deviation tile / 8 about the centre, at least 0.001",
        "postprocessing": model.postprocessing.to_dict(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("torch", "monai", "numpy")}},
    }


def network_tile(model: Model) -> list[int]:
    """Return the voxels of a tile along the axes that the network sees."""
    return [size for axis, size in enumerate(model.tile) if axis != model.flat_axis]


def label_values(model: Model) -> list[int]:
    """Return the label value that is written for each structure, that of the background first."""
    first = [model.structures.background, *model.structures.values.values()]
    return [int(values[0]) for values in first]


def _version(package: str) -> str:
    return importlib.metadata.version(package)

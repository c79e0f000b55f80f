"""medseg_se: medical volumetric segmentation with pluggable attention blocks.

The names below are imported when they are first used, so that `import medseg_se` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medseg_se.version import __version__

if TYPE_CHECKING:
    from medseg_se.attention import ATTENTION, build_attention
    from medseg_se.data.datalist import Datalist, read_datalist
    from medseg_se.inference.model import Model
    from medseg_se.inference.scans.model import Classifier, Regressor
    from medseg_se.networks import NETWORKS, build_network
    from medseg_se.structures import Structures
    from medseg_se.volumes import Volume, read_image, read_labels, write_volume

_HOME = {
    "ATTENTION": "medseg_se.attention",
    "build_attention": "medseg_se.attention",
    "NETWORKS": "medseg_se.networks",
    "build_network": "medseg_se.networks",
    "Datalist": "medseg_se.data.datalist",
    "read_datalist": "medseg_se.data.datalist",
    "Classifier": "medseg_se.inference.scans.model",
    "Model": "medseg_se.inference.model",
    "Regressor": "medseg_se.inference.scans.model",
    "Structures": "medseg_se.structures",
    "Volume": "medseg_se.volumes",
    "read_image": "medseg_se.volumes",
    "read_labels": "medseg_se.volumes",
    "write_volume": "medseg_se.volumes",
}

__all__ = [
    "ATTENTION",
    "NETWORKS",
    "Classifier",
    "Datalist",
    "Model",
    "Regressor",
    "Structures",
    "Volume",
    "__version__",
    "build_attention",
    "build_network",
    "read_datalist",
    "read_image",
    "read_labels",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'medseg_se' has no attribute {name!r}")

"""INT8 after training: NNCF measures the range of every map on typical tiles, https://github.com/openvinotoolkit/nncf."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg_se.checkpoints import reason
from medseg_se.errors import UsageError
from medseg_se.inference.engines.base import ConversionError, filled
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.inference.engines.openvino_engine import openvino_model, packed, unpacked
from medseg_se.optional import load_optional

KIND = "int8"
MOST_TILES = 64
"""Tiles that are looked at; more change the ranges no further."""


WHOLE_SCAN = ("ReduceMean", "MatMul", "Subtract", "Power", "Sqrt")
"""Operations that stay as they are in a network that answers for whole scans: means over the scan and what is made of them.

They cost next to nothing, and a whole answer hangs on each: with them in int8, a ResNet18V2 with squeeze and excitation chose
another class for 11 % of the slices, without for under 1 %.
"""


def int8_model(conversion: Conversion, calibration: Iterable[Tensor] | None, exact: Sequence[str] = ()) -> Any:
    """Return a network quantised to int8 as an `openvino.Model`, kept for the next time; it then needs no tiles.

    Args:
        conversion: The network.
        calibration: Tiles (N, C, *spatial), float32, at most `MOST_TILES` times.
        exact: Kinds of operations of OpenVINO that are not quantised.

    Raises:
        UsageError: It was not quantised before, and there are no tiles.
        ConversionError: It cannot be quantised.
    """
    return conversion.kept(KIND, lambda: packed(_quantised(conversion, calibration, exact)), unpacked)


def kept_int8(conversion: Conversion) -> Path | None:
    """Return where the quantised network is kept; None if it is not."""
    path = conversion.cache.path(f"{conversion.key(KIND)}.{KIND}")
    return path if path is not None and path.is_file() else None


def _quantised(conversion: Conversion, calibration: Iterable[Tensor] | None, exact: Sequence[str]) -> Any:
    tiles = [filled(tile.detach().float().cpu(), conversion.batch).numpy() for tile in islice(calibration or (), MOST_TILES)]
    if not tiles:
        raise UsageError("Expected scans to calibrate int8 with, but got none. They should be as those to be segmented.")
    model = openvino_model(conversion)
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its makers
    nncf = load_optional("nncf")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            nncf.set_log_level(logging.ERROR)
            left = nncf.IgnoredScope(types=list(exact), validate=False)
            return nncf.quantize(model, nncf.Dataset(tiles), subset_size=len(tiles), ignored_scope=left)
    except Exception as error:  # a library of many ways to fail
        raise ConversionError(f"This network cannot be quantised: {reason(error)}. Choose another precision.") from error

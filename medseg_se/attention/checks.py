"""What every block checks of its arguments and its input, so that all of them say it in the same words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from medseg_se.dims import check_dims
from medseg_se.errors import UsageError, unknown_name


def check_arguments(channels: int, spatial_dims: int, reduction: int = 1) -> None:
    """Refuse channel counts and reductions below 1 and dimensions other than 2 and 3."""
    check_dims(spatial_dims)
    if channels < 1:
        raise UsageError(f"Expected `channels` to be at least 1, but got {channels}.")
    if reduction < 1:
        raise UsageError(f"Expected `reduction` to be at least 1, but got {reduction}.")


def check_map(x: torch.Tensor, channels: int, spatial_dims: int, block: str) -> None:
    """Refuse an input that is not (N, channels, *spatial) with `spatial_dims` non-empty axes."""
    axes = "(N, C, H, W)" if spatial_dims == 2 else "(N, C, D, H, W)"
    if x.ndim != spatial_dims + 2 or x.shape[1] != channels:
        raise UsageError(f"Expected {block} to get {axes} with C = {channels}, but got a tensor of shape {tuple(x.shape)}.")
    if min(x.shape[2:]) < 1:
        raise UsageError(f"Expected {block} to get at least one voxel along every axis, but got shape {tuple(x.shape)}.")


def check_options(kind: str, factory: Callable[..., Any], given: Sequence[str], options: Iterable[str]) -> None:
    """Refuse `options` that `factory` does not have beside the `given` arguments, unless it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name not in given]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {kind}", option, known)

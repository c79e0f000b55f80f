"""Models in the forms that other programs read, each compared with the checkpoint before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg_se.checkpoints import read_checkpoint, reason
from medseg_se.errors import MedsegError, OutputError, UsageError, describe_os_error, unknown_name
from medseg_se.files import atomic_write
from medseg_se.inference.description import describe
from medseg_se.inference.export_forms import FORMS, Form, Network
from medseg_se.inference.model import Model
from medseg_se.inference.tiling import check_overlap
from medseg_se.inference.torchscript import network_shape
from medseg_se.optional import load_optional

LIMIT = 1e-4
"""Largest difference of a logit from the checkpoint's, relative to the range of all logits."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file or folder.
        description: The JSON that describes it.
        difference: The largest difference of a logit from the checkpoint's, relative to the range of all logits.
    """

    path: Path
    description: Path
    difference: float


def export_model(
    checkpoint: Path | str, output: Path | str, form: str = "onnx", overlap: float = 0.5, overwrite: bool = False
) -> Exported:
    """Write the model of a checkpoint in another form, and a description beside it (of a MONAI bundle: inside it).

    Args:
        checkpoint: A checkpoint of a segmentation.
        output: The file, or of a MONAI bundle the folder.
        form: "onnx", "torchscript", "torch-export", "openvino", "monai-bundle" or "safetensors".
        overlap: Share of a tile that its neighbour covers too, for the description.
        overwrite: Whether what is there is replaced.

    Raises:
        CheckpointError: As `Model.load`.
        UsageError: The form is unknown, needs a package that is not installed, or cannot hold this network; `output` exists, or
            its name does not suit the form.
        OutputError: It cannot be written, or what was written does not answer as the checkpoint does.
    """
    chosen = FORMS.get(form)
    if chosen is None:
        raise unknown_name("format", form, FORMS)
    path = Path(output)
    check_overlap(overlap)
    _check_output(path, form, chosen, overwrite)
    for package in chosen.packages:
        load_optional(package)
    model = Model.load(checkpoint, "cpu")
    description = {"format": form, **describe(model, overlap)}
    if form == "safetensors":
        description["medseg_se"] = read_checkpoint(Path(checkpoint))[0]
    try:
        files = chosen.make(model, description, path.name)
    except MedsegError:
        raise
    except Exception as error:  # an exporter may raise anything
        raise UsageError(f"The network of {checkpoint} cannot be exported as {form}: {reason(error)}.") from error
    with _beside(path) as folder:
        staged = folder / path.name
        for name, content in files.items():
            with atomic_write(folder / name if chosen.endings else staged / name) as stream:
                stream.write(content)
        difference = _difference(chosen.load(staged, model), model, f"{checkpoint} as {form}")
        description["verified"] = {"tiles": ["random", "structured"], "largest_relative_difference": difference, "limit": LIMIT}
        description["files"] = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
        place = Path(f"{path.stem}.json") if chosen.endings else Path(path.name, "configs", "medseg_se.json")
        with atomic_write(folder / place) as stream:
            stream.write((json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())
        _move(folder, path, overwrite)
    return Exported(path, path.parent / place, difference)


def _difference(network: Network, model: Model, what: str) -> float:
    """Return the largest difference from the model's own network, relative to the range of its logits.

    Raises:
        OutputError: It is above `LIMIT`, or not a number.
    """
    worst = 0.0
    with torch.no_grad():
        for tile in _tiles(network_shape(model)):
            expected, answer = model.network(tile), network(tile)
            if answer.shape != expected.shape:
                raise OutputError(f"Expected {what} to answer {tuple(expected.shape)}, but got {tuple(answer.shape)}.")
            scale = float(expected.max() - expected.min()) or 1.0
            found = float((answer - expected).abs().max()) / scale
            if not found <= LIMIT:
                raise OutputError(
                    f"Expected {what} to answer as the checkpoint does, but logits differ by {found:.2g} of their range, and "
                    f"{LIMIT:g} is the limit. Nothing was written."
                )
            worst = max(worst, found)
    return worst


def _tiles(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield a tile of noise, and one of a bright ball on a slope."""
    yield torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    axes = [torch.linspace(-1, 1, length) if length > 1 else torch.zeros(1) for length in shape[1:]]
    grid = torch.meshgrid(*axes, indexing="ij")
    radius = torch.stack(grid).square().sum(0)
    yield (grid[0] + 2.0 * (radius < 0.4)).expand(1, *shape).contiguous()


def _check_output(path: Path, form: str, chosen: Form, overwrite: bool) -> None:
    endings = chosen.endings
    if endings and path.suffix not in endings:
        raise UsageError(f"Expected `output` to end in {' or '.join(endings)} for the format {form}, but got {path.name!r}.")
    names = (
        [path]
        if not endings
        else [path, path.with_suffix(".json"), *([path.with_suffix(".bin")] if form == "openvino" else [])]
    )
    there = [name for name in names if name.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists. Choose another `output`, or replace it with --overwrite.")
    if there and path.is_dir() != (not endings and path.exists()):
        raise UsageError(
            f"{path} is {'a folder' if path.is_dir() else 'a file'}, which is not replaced. Choose another `output`."
        )
    if not endings and path.is_dir() and any(path.iterdir()) and not (path / "configs" / "metadata.json").is_file():
        raise UsageError(f"{path} is a folder, but no MONAI bundle, and is not replaced. Choose another `output`.")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path`, which vanishes with what is left in it."""
    folder = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise describe_os_error(path, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, path: Path, overwrite: bool) -> None:
    """Give what lies in `folder` its final name; `path` itself comes last, and is whole then."""
    last = folder / path.name
    try:
        if last.is_dir() and path.exists() and overwrite:
            path.rename(folder / "replaced")
        for part in sorted(folder.iterdir(), key=lambda part: part == last):
            if part.name != "replaced":
                part.replace(path.parent / part.name)
    except OSError as error:
        raise describe_os_error(path, error) from error

"""A network as ONNX, for tiles of one shape, and the key under which what is made of it is kept."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

import medseg_se
from medseg_se.checkpoints import reason
from medseg_se.inference.engines.base import ConversionError
from medseg_se.inference.engines.cache import Cache, key_of

T = TypeVar("T")
_exporting = threading.Lock()  # what records a network is one to a process, and so are the warnings that it gives


@dataclass(frozen=True)
class Conversion:
    """A network that is to be converted, and where the outcome is kept.

    Attributes:
        network: In evaluation.
        shape: (C, *spatial) of a tile.
        batch: Tiles at a time.
        device: Where the network is.
        cache: What was converted before.
        digest: What tells the weights apart.
    """

    network: nn.Module
    shape: tuple[int, ...]
    batch: int
    device: torch.device
    cache: Cache
    digest: str

    def key(self, kind: str) -> str:
        """Return the key of what is made of the network for the engine `kind`."""
        return key_of(
            kind=kind,
            digest=self.digest,
            shape=self.shape,
            batch=self.batch,
            sources=source_digest(self.network),
            versions=[f"{name} {_version(name)}" for name in ("torch", "monai", "onnx", "onnxscript", "openvino")],
        )

    def kept(self, kind: str, make: Callable[[], bytes], load: Callable[[bytes], T]) -> T:
        """Return what `load` makes of the entry of the engine `kind`, which is made first if there is none.

        An entry that cannot be loaded, though it is whole, is made anew as well.
        """
        name = f"{self.key(kind)}.{kind}"
        content = self.cache.read(name)
        if content is not None:
            try:
                return load(content)
            except Exception:  # whatever a library raises: made anew, it raises again or not
                self.cache.remove(name)
        content = make()
        made = load(content)
        self.cache.write(name, content)
        return made

    def onnx(self) -> bytes:
        """Return the network as an ONNX model with its weights inside, in float32, for exactly `batch` tiles of `shape`.

        Raises:
            ConversionError: The network cannot be exported.
        """
        return onnx_bytes(self.network, self.shape, self.batch, self.device)


def onnx_bytes(network: nn.Module, shape: tuple[int, ...], batch: int, device: torch.device) -> bytes:
    """Return a network as an ONNX model; see `Conversion.onnx`. Its input is called "tiles", its output "logits".

    Raises:
        ConversionError: The network cannot be exported.
    """
    try:
        with recording():
            tiles = torch.zeros((batch, *shape), device=device)
            exported = torch.export.export(network, (tiles,), strict=False)
            program = torch.onnx.export(
                exported, (tiles,), dynamo=True, verbose=False, input_names=["tiles"], output_names=["logits"]
            )
            if program is None:
                raise RuntimeError("the exporter returned nothing")
            content: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # an exporter may raise anything
        raise ConversionError(f"This network cannot be converted to ONNX: {reason(error)}. Choose the engine torch.") from error
    return content


@contextmanager
def recording() -> Iterator[None]:
    """Let a network be recorded: one at a time, without gradients, in no inference mode, and without the exporter's chatter."""
    with _exporting, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")  # it warns of packages that are not needed
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def source_digest(network: nn.Module) -> str:
    """Return a digest of the code that a network runs: what was converted of other code is not used again."""
    files = {getattr(sys.modules.get(type(module).__module__), "__file__", None) for module in network.modules()}
    digest = hashlib.blake2b(_package_digest().encode(), digest_size=16)
    for path in sorted(path for path in files if path is not None):
        digest.update(_file_digest(path))
    return digest.hexdigest()


@functools.cache
def _package_digest() -> str:
    root = Path(medseg_se.__file__).parent
    folders = [root / "networks", root / "attention", root / "inference" / "engines"]
    files = sorted([*(path for folder in folders for path in folder.glob("*.py")), root / "dims.py", root / "execution.py"])
    return hashlib.blake2b(b"".join(_file_digest(str(path)) for path in files), digest_size=16).hexdigest()


@functools.cache
def _file_digest(path: str) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
    except OSError:
        return path.encode(errors="backslashreplace")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"

"""What was made once and is kept beside a checkpoint: converted models, and how well engines agreed.

An entry is a file: a digest of its content, then the content. What is damaged is thrown away and made anew.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from medseg_se.errors import OutputError
from medseg_se.files import atomic_write

FOLDER = ".medseg_cache"
_DIGEST = 16


def cache_beside(checkpoint: Path) -> Path:
    """Return the folder in which is kept what is made of a checkpoint."""
    return checkpoint.parent / FOLDER


def key_of(**parts: Any) -> str:
    """Return 32 hexadecimal digits that tell these parts, plain data, apart from all others."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", errors="backslashreplace"), digest_size=16).hexdigest()


class Cache:
    """Entries by name in a folder.

    Where the folder cannot be written, nothing is kept and `notes` says so.

    Args:
        folder: Made when the first entry is written; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._complaint: str | None = None
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """Why nothing could be kept, if so."""
        return () if self._complaint is None else (self._complaint,)

    def path(self, name: str) -> Path | None:
        """Return where an entry lies, or would."""
        return None if self.folder is None else self.folder / name

    def read(self, name: str) -> bytes | None:
        """Return an entry; None if there is none, or none that is whole, which is then removed."""
        path = self.path(name)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if _digest(memoryview(content)[_DIGEST:]) == content[:_DIGEST]:
            return content[_DIGEST:]
        self.remove(name)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Keep an entry, if that is possible."""
        path = self.path(name)
        if path is None:
            return
        try:
            with atomic_write(path) as stream:
                stream.write(_digest(content))
                stream.write(content)
        except OutputError as error:
            with self._lock:
                self._complaint = f"What was converted could not be kept and is made anew at every start. {error}"

    def remove(self, name: str) -> None:
        """Throw an entry away, if that is possible."""
        path = self.path(name)
        try:
            if path is not None:
                path.unlink(missing_ok=True)
        except OSError:
            return  # the folder is read-only: whoever reads the entry again will find it damaged again


def _digest(content: bytes | memoryview) -> bytes:
    """Return 16 bytes of the SHA-256, which processors have instructions for."""
    return hashlib.sha256(content).digest()[:_DIGEST]

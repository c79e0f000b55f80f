"""Files that are either whole or not there: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from medseg_se.errors import DataError, UsageError, describe_os_error


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an error, and vanishes otherwise.

    Raises:
        OutputError: The folder is not writable, the disk is full, or the rename failed.
    """
    path = Path(path)
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)  # less the umask
        partial = beside
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        partial = None
    except OSError as error:
        raise describe_os_error(path, error) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file in `folder` and the folders below it, in order; what is hidden is left out, links are followed.

    Of something that is no folder, nothing is yielded.

    Raises:
        DataError: A folder cannot be looked into. To pass over it in silence would leave out what it holds.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot look into {error.filename}: {error.strerror}. Make it readable, or move it away.") from error

    if not folder.is_dir():
        return
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(root).stat()
        if (here.st_dev, here.st_ino) in seen:  # a link back to where it lies
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def digest_of(paths: Sequence[Path]) -> str:
    """Return a digest of the content of `paths`, 32 hexadecimal digits.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
        digest.update(content.digest())
    return digest.hexdigest()


_locks: set[IO[str]] = set()


def _let_go() -> None:
    for stream in _locks:
        stream.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # or workers would hold the locks of a process that was killed


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let no other process into a block with the same `path`, which need not exist; the system lets go when this one ends.

    Where the system has no such locks, the block just runs.

    Raises:
        UsageError: Another process is in it.
        OutputError: The file cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise describe_os_error(path, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system that has no locks
                yield
                return
            raise UsageError(
                f"Another run is writing to {path.parent}. Wait until it has ended, or choose another folder."
            ) from error
        _locks.add(stream)
        try:
            yield
        finally:
            _locks.discard(stream)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically; what cannot be said in it, as in odd names of files, is escaped."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` to `path` as indented JSON, atomically. NaN and infinity, which JSON has not, are written as null."""
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

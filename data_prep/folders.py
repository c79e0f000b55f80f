"""Folders that a converter looks through: none may vanish without a word, for the cases in it would with it."""

from __future__ import annotations

from pathlib import Path

from medseg_se.errors import DataError


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder in order, links to folders too; hidden ones are left out, a file has none.

    Raises:
        DataError: It cannot be looked into.
    """
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        return [entry for entry in inside if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise DataError(f"Cannot look into {folder}: {error.strerror}. Make it readable, or move it away.") from error

"""The recipes that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from medseg_se.errors import unknown_name


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = files("medseg_se.configs")
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of the recipe called `name`.

    Raises:
        UsageError: There is no such recipe.
    """
    stem = name[: -len(".yaml")] if name.endswith(".yaml") else name
    if stem not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return Path(str(files("medseg_se.configs") / f"{stem}.yaml"))


def recipe_summary(name: str) -> str:
    """Return the first comment line of a recipe, which says what it is for."""
    first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()

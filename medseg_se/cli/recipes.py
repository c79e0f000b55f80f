"""The recipes and experiments that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from medseg_se.errors import unknown_name

EXPERIMENTS = "experiments/"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return _stems(_folder())


def experiment_names() -> list[str]:
    """Return the names of the shipped experiments, such as experiments/hippocampus_attention."""
    return [EXPERIMENTS + stem for stem in _stems(_folder() / EXPERIMENTS)]


def shipped() -> list[str]:
    """Return the names of all that ships: first the recipes, then the experiments."""
    return [*recipe_names(), *experiment_names()]


def recipe_path(name: str) -> Path:
    """Return the file of the recipe called `name`.

    Raises:
        UsageError: There is no such recipe.
    """
    return _path("recipe", name, recipe_names())


def experiment_path(name: str) -> Path:
    """Return the file of the experiment called `name`, with or without the folder.

    Raises:
        UsageError: There is no such experiment.
    """
    return _path("experiment or folder", name if name.startswith(EXPERIMENTS) else EXPERIMENTS + name, experiment_names())


def shipped_path(name: str) -> Path:
    """Return the file of the recipe or experiment called `name`.

    Raises:
        UsageError: There is neither.
    """
    return _path("recipe", name, shipped())


def recipe_summary(name: str) -> str:
    """Return the first comment line of a recipe, which says what it is for."""
    return summary(recipe_path(name))


def summary(path: Path) -> str:
    """Return the first comment line of a YAML file."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()


def _folder() -> Path:
    return Path(str(files("medseg_se.configs")))


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _path(kind: str, name: str, names: list[str]) -> Path:
    stem = name.removesuffix(".yaml")
    if stem not in names:
        raise unknown_name(kind, name, names)
    return _folder() / f"{stem}.yaml"

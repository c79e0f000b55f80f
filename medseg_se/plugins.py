"""Blocks and networks of a user's own: Python files that are named with `--plugins` and run before a command does its work.

A file adds to the tables, as in ``ATTENTION["mine"] = Mine``; from then on the name works wherever a name of ours does. Only
files that a person names are ever run, on the command line or in the environment: no recipe and no checkpoint can ask for one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from medseg_se.errors import UsageError

FLAG = "--plugins"
VARIABLE = "MEDSEG_SE_PLUGINS"
"""Names the files for this process and for those that it starts, parted as in PATH."""
_loaded: dict[str, Path] = {}


def take_plugins(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return command-line arguments without `--plugins FILE`, which may be given several times, and the files.

    Raises:
        UsageError: No file follows.
    """
    others: list[str] = []
    files: list[Path] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != FLAG:
            others.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("-"):
            raise UsageError(f"Expected a Python file after {FLAG}, but got {file or 'nothing'}.")
        files.append(Path(file))
    return others, files


def inherited_plugins() -> list[Path]:
    """Return the files that the environment names."""
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def loaded_plugins() -> tuple[Path, ...]:
    """Return the files that were run in this process, in order."""
    return tuple(_loaded.values())


def plugin_of(maker: object) -> Path | None:
    """Return the file that a class or function of a table comes from; None if it is of no file of a user's."""
    return _loaded.get(str(getattr(maker, "__module__", "")))


def plugin_words() -> list[str]:
    """Return the arguments of a command line that run the same files."""
    return [word for path in loaded_plugins() for word in (FLAG, str(path))]


def load_plugins(files: Iterable[Path]) -> None:
    """Run files that were not run before, each as a module of its own name, here and in the processes that this one starts.

    Their folders come last in `sys.path`, so that what they define can be sent to other processes; nothing is hidden by that.

    Raises:
        UsageError: There is no such file, its name is taken, or it cannot be run.
    """
    for file in files:
        path = file.absolute()
        if path not in _loaded.values():
            _load(path)
    if _loaded:
        os.environ[VARIABLE] = os.pathsep.join(map(str, _loaded.values()))


def _load(path: Path) -> None:
    name = path.stem
    if not path.is_file() or path.suffix != ".py":
        found = "is something else" if path.exists() else "does not exist"
        raise UsageError(f"Expected the plugin {path} to be a Python file, but it {found}.")
    if not name.isidentifier():
        raise UsageError(f"Expected the plugin {path} to have a name of letters, digits and _, as modules of Python do.")
    imported = sys.modules.get(name)
    taken = _origin(name) if imported is None else str(getattr(imported, "__file__", name))
    if taken is not None and not (Path(taken).is_file() and path.samefile(taken)):
        raise UsageError(f"The plugin {path} has the name of another module. Give it one of its own, such as own_{name}.py.")
    if imported is not None:
        _loaded[name] = path
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"Cannot run the plugin {path}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        del sys.modules[name]
        raise UsageError(f"Cannot run the plugin {path}: {_where(error, path)}{type(error).__name__}: {error}") from error
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    _loaded[name] = path


def _origin(name: str) -> str | None:
    """Return the file of the module that has a name; some word if it has none."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or name


def _where(error: Exception, path: Path) -> str:
    """Return the line of the file in which it went wrong, as far as that can be told."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""

"""`medseg-prep NAME …`: bring a dataset from the layout it comes in to the datalist layout."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg_se.cli.main import run_function
from medseg_se.errors import MedsegError, UsageError, unknown_name

# Name → module beside this file; its function of the same name does the work, its docstring's first line is the help.
CONVERTERS = {"phantom": "phantom"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the converter that the first argument names on the other arguments; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    try:
        return _run(arguments)
    except MedsegError as error:
        print(f"medseg-prep: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medseg-prep: interrupted; the same command makes what is missing", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(f"Expected the name of a converter, but got none. Valid names: {', '.join(sorted(CONVERTERS))}.")
    name, *rest = arguments
    if name not in CONVERTERS:
        raise unknown_name("converter", name, CONVERTERS)
    module = importlib.import_module(f".{CONVERTERS[name]}", __package__)
    return run_function(f"medseg-prep {name}", getattr(module, CONVERTERS[name]), rest)


def _overview() -> str:
    width = max(map(len, CONVERTERS))
    lines = [f"  {name:<{width}}  {_help(module)}" for name, module in CONVERTERS.items()]
    return "\n".join(["usage: medseg-prep NAME [--help] …", "", __doc__ or "", "", "converters:", *lines])


def _help(module: str) -> str:
    """Return the first line of a converter's docstring without importing it, for imports take seconds."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

"""`medseg-prep NAME …`: bring a dataset from the layout it comes in to the datalist layout."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_se.cli.main import add_options, guarded, make_parser, run_function
from medseg_se.errors import DataError, UsageError, unknown_name

if TYPE_CHECKING:
    from .collection import Collection

# Name → module beside this file. Its function `find` says what a source holds, for `convert` to write; a module without one has
# a function of its own name that does all the work. The first line of its docstring is the help.
CONVERTERS = {
    "decathlon": "decathlon",
    "nnunet": "nnunet",
    "brats": "brats",
    "totalsegmentator": "totalsegmentator",
    "malc": "malc",
    "visceral": "visceral",
    "freesurfer": "freesurfer",
    "neurite-oasis": "neurite_oasis",
    "ixi": "ixi",
    "figshare": "figshare",
    "pictures": "pictures",
    "label-maps": "label_maps",
    "dicom": "dicom",
    "phantom": "phantom",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the converter that the first argument names on the other arguments; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    return guarded("medseg-prep", lambda: _run(arguments), "the same command makes what is missing")


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(f"Expected the name of a converter, but got none. Valid names: {', '.join(sorted(CONVERTERS))}.")
    name, *rest = arguments
    if name not in CONVERTERS:
        raise unknown_name("converter", name, CONVERTERS)
    module = importlib.import_module(f".{CONVERTERS[name]}", __package__)
    if hasattr(module, "find"):
        return _convert(name, module.find, rest)
    return run_function(f"medseg-prep {name}", getattr(module, CONVERTERS[name]), rest)


def _convert(name: str, find: Callable[..., Collection], arguments: Sequence[str]) -> int:
    """Parse the options of a converter, of the steps and of the conversion, then do it."""
    from .conversion import convert
    from .steps import Steps

    parser = make_parser(f"medseg-prep {name}", inspect.getdoc(find) or "", [find, Steps, convert])
    parser.add_argument("source", type=str, help="What is converted.")
    parser.add_argument("output", type=str, help="Folder for the dataset.")
    by_hand = ["source", "output", "collection", "steps", "options"]
    groups = [add_options(parser, part, by_hand) for part in (find, Steps, convert)]
    given = parser.parse_args(list(arguments)).as_dict()
    own, chosen, how = ({option: given[option] for option in group} for group in groups)
    steps = Steps(**chosen)  # refuses what makes no sense before the source is searched
    source = Path(given["source"])
    if not source.exists():
        raise DataError(f"No such file or folder: {source}.")
    output = Path(given["output"])
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UsageError(f"Expected an output folder outside of {source}, or a rerun would find its own results in it.")
    return convert(find(source, **own), output, steps, {"converter": name, **own}, **how)


def _overview() -> str:
    width = max(map(len, CONVERTERS))
    lines = [f"  {name:<{width}}  {_help(module)}" for name, module in CONVERTERS.items()]
    return "\n".join(["usage: medseg-prep NAME [--help] …", "", __doc__ or "", "", "converters:", *lines])


def _help(module: str) -> str:
    """Return the first line of a converter's docstring without importing it, for imports take seconds."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

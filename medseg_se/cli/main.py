"""`medseg-se`: one line of dispatch a command, so that `--help` answers before any large library is imported."""

from __future__ import annotations

import atexit
import errno
import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from medseg_se.errors import MedsegError, describe_os_error, unknown_name
from medseg_se.plugins import inherited_plugins, load_plugins, take_plugins
from medseg_se.version import __version__

TRAINING = {
    "fit": "train a network from a recipe",
    "validate": "judge a checkpoint on whole validation scans",
    "test": "judge a checkpoint on the labelled test scans, which chose nothing",
}
COMMANDS = {
    "check": "read every file of a dataset once and say what would break training",
    "plan": "fit a training to a dataset, this machine, a time and a memory",
    "cv": "train every fold, judge all cases, and keep the folds as one model",
    "predict": "segment scans with one checkpoint or several",
    "evaluate": "overlap and surface distances of predictions against the truth",
    "compare": "tell whether runs differ, or run a whole experiment and tell",
    "report": "show an evaluation on one HTML page, with a 3-D viewer or Grad-CAM",
    "export": "write a model in a form that other programs read",
    "inspect": "see what attention does inside a network, and what speaks for a class",
    "cost": "measure what attention costs: parameters, operations, memory and time",
    "networks": "list the networks, or explain one",
    "configs": "list the shipped recipes and experiments, or print one",
    "demo": "from phantoms to pictures in a few minutes, offline",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 fine, 1 a result that is not, 2 an error of the user, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    atexit.register(gc.freeze)  # or Python looks once more at all that torch has made before it lets it go, for half a second
    interrupted = "what was finished is kept, and the same command goes on from there"
    return guarded("medseg-se", lambda: _dispatch(arguments), interrupted)


def guarded(program: str, run: Callable[[], int], interrupted: str) -> int:
    """Return the exit code of `run`; what a user can mend is said in one line, and only a bug keeps its traceback.

    Args:
        program: What runs, for messages.
        run: Returns an exit code.
        interrupted: What a user who pressed Ctrl-C is told.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        return run()
    except MedsegError as error:
        return _complain(program, " ".join(str(error).split()))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _discard_output()
        return 0
    except OSError as error:
        if error.filename is not None:
            return _complain(program, f"Cannot read or write {error.filename}: {error.strerror}.")
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        return _complain(program, str(describe_os_error("the output", error)))
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130


def _complain(program: str, text: str) -> int:
    print(f"{program}: error: {text}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Send what is still to be printed to nowhere, or Python would complain about it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage() -> str:
    """Return the text of `--help`."""
    rows = {**TRAINING, **COMMANDS}
    width = max(map(len, rows))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
    return (
        f"medseg-se {__version__}: medical volumetric segmentation\n\nusage: medseg-se COMMAND [options]\n\n"
        f"commands:\n{listed}\n\n"
        "Any command takes `--plugins FILE.py`, a file of your own that adds blocks or networks.\n"
        "`medseg-se COMMAND --help` explains a command. `medseg-prep --help` lists the converters that make datasets."
    )


def _dispatch(arguments: list[str]) -> int:
    try:
        code = _run(arguments)
    except SystemExit as stop:  # the parser's way out after the help of a command
        code = int(stop.code or 0)
    sys.stdout.flush()  # here, where a reader that has left is still expected
    return code


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"medseg-se {__version__}")
        return 0
    arguments, plugins = take_plugins(arguments)
    if plugins := [*inherited_plugins(), *plugins]:
        load_plugins(plugins)
    if name in TRAINING:
        from medseg_se.cli import train

        return train.run(arguments)
    if name not in COMMANDS:
        raise unknown_name("command", name, [*TRAINING, *COMMANDS])
    from medseg_se.cli import commands

    return run_function(f"medseg-se {name}", getattr(commands, name), arguments[1:])


def run_function(prog: str, function: Callable[..., int], arguments: Sequence[str]) -> int:
    """Call a typed function with command-line arguments.

    Positional parameters become words (one or more for a list), keyword-only ones options, booleans flags. What stands after
    `--` goes to the function's `*` parameter, if it has one.
    """
    parser = make_parser(prog, inspect.getdoc(function) or "", [function])
    signature, words = inspect.signature(function), _parameter_help(function)
    by_hand: list[str] = []
    passed_on: list[str] | None = None
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            own = arguments.index("--") if "--" in arguments else len(arguments)
            arguments, passed_on = arguments[:own], [*arguments[own + 1 :]]
            parser.add_argument(name, type=str, help=words.get(name, ""), nargs="*", default=[])
            by_hand.append(name)
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            optional = parameter.default is not parameter.empty
            count: dict[str, Any] = {"nargs": "?", "default": parameter.default} if optional else {}
            if "list" in str(parameter.annotation):
                count = {"nargs": "+"}
            parser.add_argument(name, type=str, help=words.get(name, ""), **count)
            by_hand.append(name)
    add_options(parser, function, by_hand)
    given = parser.parse_args(list(arguments)).as_dict()
    in_order = [given.pop(name) for name in by_hand]
    if passed_on is not None:  # in place of what the parser found for it, which is nothing
        in_order[-1:] = passed_on
    return function(*in_order, **given)


def make_parser(prog: str, explanation: str, sources: Sequence[Callable[..., Any]]) -> Any:
    """Return a parser, still without arguments, that complains in one line and names the nearest option.

    Args:
        prog: The command.
        explanation: A docstring; what stands above its "Args:" is shown.
        sources: Functions and classes whose parameters are the options.
    """
    from jsonargparse import ArgumentParser

    from medseg_se.cli.messages import explain

    valid = [f"--{name}" for source in sources for name in inspect.signature(source).parameters]

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise explain(message, valid) from ex

    return Parser(prog=prog, description=explanation.split("\n\nArgs:")[0], allow_abbrev=False)


def add_options(parser: Any, source: Callable[..., Any], skip: Iterable[str] = ()) -> list[str]:
    """Add the parameters of a function or class as options, booleans as flags, and return their names."""
    skipped, words = set(skip), _parameter_help(source)
    names = [name for name in inspect.signature(source).parameters if name not in skipped]
    for name in names:
        if inspect.signature(source).parameters[name].default is False:
            flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            parser.add_argument(*flags, action="store_true", help=words[name])
            skipped.add(name)
    add = parser.add_class_arguments if inspect.isclass(source) else parser.add_function_arguments
    add(source, as_group=False, skip=skipped)
    return names


def _parameter_help(source: Callable[..., Any]) -> dict[str, str]:
    import docstring_parser

    parsed = docstring_parser.parse(inspect.getdoc(source) or "")
    return {item.arg_name: item.description or "" for item in parsed.params}

"""A parser's complaints, in one line: what is unknown or wrong, where it stands, and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from medseg_se.errors import UsageError, nearest

CONFIG_FLAGS = ("--config", "-c")


def explain(message: str, valid: Iterable[str], arguments: Sequence[str] = ()) -> UsageError:
    """Build the error for a parser's complaint.

    Args:
        message: What the parser said.
        valid: Every key that exists, dotted.
        arguments: The command line, whose config files are searched for the key.
    """
    valid = list(valid)
    line = " ".join(message.split())
    reasons = [reason for reason in _reasons(line) if "NoneType" not in reason]
    explained = next((reason for reason in reasons if reason.startswith(("Unknown ", "Expected '"))), None)
    if explained:  # a complaint within a complaint, which went through here before
        return UsageError(explained)
    unknown = re.search(r"(?:[Oo]ption|unrecognized arguments:) '?(?:--)?([\w.-]+)'?", line)
    if unknown and ("not accept" in line or "unrecognized" in line):
        key = unknown.group(1)
        leaves = {} if "unrecognized" in line else {name.rsplit(".", 1)[-1]: name for name in valid}
        guess = nearest(key, valid) or leaves.get(nearest(key.rsplit(".", 1)[-1], leaves) or "")
        return UsageError(f"Unknown key {key!r}{_place(key, arguments)}.{f' Did you mean {guess!r}?' if guess else ''}")
    key_found = re.match(r'Parser key "([\w.]+)":', line)
    value = re.search(r"(?:Got value|Given value): (.*)$", line)
    kinds = [kind for reason in reasons or [line] for kind in re.findall(r"Expected an? (.*?)(?:\. Got value: .*)?$", reason)]
    if key_found and value and kinds:
        key = key_found.group(1)
        return UsageError(f"Expected {key!r}{_place(key, arguments)} to be {_any_of(kinds)}, but got {value.group(1)}.")
    if "required: fit.data" in line:
        return UsageError(
            "Nothing says what to train. Give a recipe: `--config` and a YAML file or a name from `medseg-se configs`."
        )
    line = reasons[0] if reasons else line.split(" Given value type:")[0]
    return UsageError(line[:1].upper() + line[1:])


def _reasons(line: str) -> list[str]:
    """Return why none of the types fits that a value may have."""
    return [reason for reason in line.partition(" Errors: - ")[2].partition(" Given value type:")[0].split(" - ") if reason]


def _any_of(kinds: Sequence[str]) -> str:
    """Return in words what a value may be: the names that are allowed as one list, then the types."""
    literals = [kind[len("typing.Literal[") : -1].split(",") for kind in kinds if kind.startswith("typing.Literal[")]
    names = dict.fromkeys(name.strip(" '\"") for literal in literals for name in literal)
    words = [f"one of {', '.join(names)}"] if names else []
    for kind in kinds:
        if kind.startswith("dot import path"):
            words.append("the path of a class, such as package.module.Class")
        elif not kind.startswith("typing.Literal["):
            words.append("of type " + kind.replace("<class '", "").replace("'>", ""))
    return " or ".join(dict.fromkeys(words))


def _place(key: str, arguments: Sequence[str]) -> str:
    """Return " (FILE, line N)" for the config file that holds `key`, or nothing."""
    if any(argument.startswith("--") and key in argument for argument in arguments):
        return ""
    first, last = key.split(".")[0], key.split(".")[-1]
    wanted = last if first in ("trainer", "model", "data", last) else first
    for flag, value in pairwise(arguments):
        if flag in CONFIG_FLAGS and Path(value).is_file():
            for number, line in enumerate(Path(value).read_text(encoding="utf-8").splitlines(), start=1):
                if re.match(rf"\s*{re.escape(wanted)}\s*:", line):
                    return f" ({value}, line {number})"
    return ""

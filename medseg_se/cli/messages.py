"""A parser's complaints, in one line: what is unknown or wrong, where it stands, and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from medseg_se.errors import UsageError, nearest


def explain(message: str, valid: Iterable[str], arguments: Sequence[str] = ()) -> UsageError:
    """Build the error for a parser's complaint.

    Args:
        message: What the parser said.
        valid: Every key that exists, dotted.
        arguments: The command line, whose config files are searched for the key.
    """
    valid = list(valid)
    line = " ".join(message.split())
    reasons = [reason for reason in line.partition(" Errors: - ")[2].split(" - ") if reason and "NoneType" not in reason]
    line = reasons[0] if reasons else line.split(" Given value type:")[0]
    unknown = re.search(r"(?:[Oo]ption|unrecognized arguments:) '?(?:--)?([\w.-]+)'?", line)
    if unknown and ("not accept" in line or "unrecognized" in line):
        key = unknown.group(1)
        leaves = {} if "unrecognized" in line else {name.rsplit(".", 1)[-1]: name for name in valid}
        guess = nearest(key, valid) or leaves.get(nearest(key.rsplit(".", 1)[-1], leaves) or "")
        return UsageError(f"Unknown key {key!r}{_place(key, arguments)}.{f' Did you mean {guess!r}?' if guess else ''}")
    value = re.search(r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (\S+)', line)
    if value:
        key, kind = value.group(1), value.group(2).replace("<class '", "").replace("'>", "")
        return UsageError(f"Expected {key!r}{_place(key, arguments)} to be of type {kind}, but got {value.group(3)}.")
    if "parsing config" in line:
        files = ", ".join(value for flag, value in pairwise(arguments) if flag in ("--config", "-c"))
        return UsageError(f"Cannot read the config {files}: {line}")
    return UsageError(line[:1].upper() + line[1:])


def _place(key: str, arguments: Sequence[str]) -> str:
    """Return " (FILE, line N)" for the config file that holds `key`, or nothing."""
    if any(argument.startswith("--") and key in argument for argument in arguments):
        return ""
    first, last = key.split(".")[0], key.split(".")[-1]
    wanted = last if first in ("trainer", "model", "data", last) else first
    for flag, value in pairwise(arguments):
        if flag in ("--config", "-c") and Path(value).is_file():
            for number, line in enumerate(Path(value).read_text(encoding="utf-8").splitlines(), start=1):
                if re.match(rf"\s*{re.escape(wanted)}\s*:", line):
                    return f" ({value}, line {number})"
    return ""

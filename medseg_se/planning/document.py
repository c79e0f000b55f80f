"""The plan as a document: a config with a reason in every line that was decided, and a seal that tells if it was edited."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg_se.errors import UsageError
from medseg_se.files import write_text
from medseg_se.planning.recipe import WITH_ARGUMENTS
from medseg_se.planning.rules import Decision

_SEAL = "# Unchanged since it was planned: "
_KEPT = "from the recipe"


def to_yaml(config: Mapping[str, Any], decisions: Sequence[Decision], header: Sequence[str]) -> str:
    """Return the config as YAML under a header, each line with the reason of its value, sealed.

    Args:
        config: What `recipe.changed` returned.
        decisions: What was decided.
        header: Lines of text.
    """
    reasons = {decision.key: decision.reason for decision in decisions}
    lines = [f"# {_one_line(line)}".rstrip() for line in header]
    for part, content in config.items():
        if not isinstance(content, Mapping):
            lines.append(_line(0, part, content, _KEPT))
            continue
        lines.append(f"{part}:")
        for name, value in content.items():
            if name == "init_args" and part in WITH_ARGUMENTS:
                lines.append("  init_args:")
                lines += [_line(4, key, each, reasons.get(f"{part}.{key}", _KEPT)) for key, each in value.items()]
            else:
                lines.append(_line(2, name, value, reasons.get(f"{part}.{name}", "" if part in WITH_ARGUMENTS else _KEPT)))
    text = "\n".join(lines) + "\n"
    return f"{text}{_SEAL}{_digest(text)}\n"


def _line(indent: int, key: str, value: Any, reason: str) -> str:
    plain = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    text = " " * indent + f"{key}: {plain.removesuffix('...' + chr(10)).strip()}"
    return f"{text:<40}  # {_one_line(reason)}" if reason else text


def _one_line(text: str) -> str:
    """Return a text that cannot end the comment it stands in, nor hold what YAML does not allow."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def was_edited(path: Path) -> bool:
    """Tell whether the plan at `path` is no longer as `to_yaml` made it."""
    try:
        text, _, seal = path.read_text(encoding="utf-8").rpartition(_SEAL)
    except UnicodeDecodeError:
        return True
    return seal.strip() != _digest(text)


def refuse_edited(path: Path, overwrite: bool) -> None:
    """Refuse to replace a plan that a person edited, unless `overwrite`.

    Raises:
        UsageError: It was edited.
    """
    if path.is_file() and not overwrite and was_edited(path):
        raise UsageError(f"{path} was edited since it was planned. Take another `--output`, or replace it with `--overwrite`.")


def write_plan(path: Path, text: str, overwrite: bool) -> None:
    """Write a plan, atomically; one that a person edited is only replaced if `overwrite`.

    Raises:
        UsageError: It was edited.
        OutputError: It could not be written.
    """
    refuse_edited(path, overwrite)
    write_text(path, text)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

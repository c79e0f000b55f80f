"""An evaluation as a JSON document, format 2, and back; NaN is null there, and what is infinite the text "inf".

Files are named from the folder of the document, so that a folder of results can be moved as a whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_se.errors import DataError
from medseg_se.evaluation.case import CaseResult
from medseg_se.metrics.measures import MEASURES
from medseg_se.metrics.surfaces import FAMILIES
from medseg_se.structures import Structures

if TYPE_CHECKING:
    from medseg_se.evaluation.result import Evaluation

FORMAT = 2


def to_document(evaluation: Evaluation, policy: str, path: Path) -> dict[str, Any]:
    """Return the content of the evaluation.json at `path`."""
    content = {
        "format": FORMAT,
        "policy": policy,
        "definitions": evaluation.criteria.sentences(),
        "structures": evaluation.structures.to_dict(),
        "measures": [asdict(MEASURES[name]) for name in evaluation.measures],
        "surface": evaluation.surface,
        "tolerances": dict(evaluation.tolerances),
        "lesions": evaluation.lesions,
        "mean_foreground": evaluation.mean_foreground,
        "mean_foreground_interval": _interval(evaluation),
        "summary": {
            measure: {name: asdict(spread) for name, spread in evaluation.summary(measure).items()}
            for measure in evaluation.measures
        },
        "cases": [_case_to_dict(case, path.absolute().parent) for case in evaluation.cases],
        "failures": evaluation.failures,
        "unjudged": dict(evaluation.unjudged),
        "extra": list(evaluation.extra),
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def from_document(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments of the `Evaluation` that a document describes.

    Raises:
        DataError: It is none in the present format; `path` is named.
    """
    if content.get("format") != FORMAT:
        raise DataError(
            f"Expected {path} to be an evaluation in format {FORMAT}, but its format is {content.get('format')!r}. "
            "Run `medseg-se evaluate` again."
        )
    try:
        measures = tuple(measure["name"] for measure in content["measures"])
        structures, folder = Structures.from_dict(content["structures"]), path.absolute().parent
        judged = list(structures.judged())
        unknown = [name for name in (*measures, content["surface"]) if name not in {*MEASURES, *FAMILIES}]
        if unknown:
            raise ValueError(f"{unknown} are not known to this version")
        return {
            "structures": structures,
            "cases": tuple(_case(entry, measures, judged, folder) for entry in content["cases"]),
            "unjudged": dict(content["unjudged"]),
            "extra": tuple(content["extra"]),
            "measures": measures,
            "surface": content["surface"],
            "tolerances": dict(content["tolerances"]),
            "lesions": content["lesions"],
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is a damaged evaluation ({type(error).__name__}: {error}). Run `medseg-se evaluate` again."
        ) from error


def _interval(evaluation: Evaluation) -> dict[str, Any]:
    interval = evaluation.foreground_interval
    return {"low": interval.low, "high": interval.high, "n": interval.n, "reason": interval.reason}


def _case_to_dict(case: CaseResult, folder: Path) -> dict[str, Any]:
    return {**vars(case), "truth": relative(case.truth, folder), "prediction": relative(case.prediction, folder)}


def relative(path: Path | None, folder: Path) -> str | None:
    """Return where a file lies as seen from a folder; whole where it lies on another drive."""
    if path is None:
        return None
    try:
        return Path(os.path.relpath(path.absolute(), folder)).as_posix()
    except ValueError:  # on another drive
        return str(path.absolute())


def _case(entry: Mapping[str, Any], measures: tuple[str, ...], judged: list[str], folder: Path) -> CaseResult:
    files = {name: entry[name] for name in ("truth", "prediction")}
    paths = {name: None if file is None else Path(os.path.normpath(folder / file)) for name, file in files.items()}
    scores = {measure: {name: _number(entry["scores"][measure][name]) for name in judged} for measure in measures}
    return CaseResult(entry["id"], scores, entry["group"], entry["failure"], **paths, resampled=entry["resampled"])


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return str(content) if isinstance(content, float) and math.isinf(content) else content

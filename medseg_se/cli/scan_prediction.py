"""`medseg-se predict` with a checkpoint of a classification or regression: classes or numbers of whole scans, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from medseg_se.data.answers import FILE, Answers, read_answers
from medseg_se.errors import UsageError
from medseg_se.inference.engines.base import EngineName, EnginePrecision
from medseg_se.inference.predict import Which
from medseg_se.inference.scans.inputs import find_scans
from medseg_se.inference.scans.panel import load_panel
from medseg_se.inference.scans.predict import choose_scans, predict_scans
from medseg_se.inference.settings import Quality, Settings
from medseg_se.inference.shard import Shard
from medseg_se.inference.status import SHOWN, Outcome


def refuse_for_whole_scans(**options: Any) -> None:
    """Refuse options that are given and that only mean something for label maps."""
    given = [f"--{name}" for name, value in options.items() if value not in (None, False)]
    if given:
        raise UsageError(f"The checkpoint answers for whole scans and makes no label maps: leave out {', '.join(given)}.")


def answer_for_whole_scans(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] | None,
    cases: str,
    device: str,
    engine: str,
    precision: str,
    calibrate: str | None,
    quality: Quality,
    mirror: str | None,
    strict: bool,
    overwrite: bool,
    shard: Shard | None,
    readers: int,
    dry_run: bool,
) -> int:
    """Do what `medseg-se predict` was told; see there. Returns the exit code, 1 if any case failed."""
    console = Console()
    panel = load_panel(
        checkpoints,
        weights,
        device,
        cast(EnginePrecision, precision),  # what is neither is refused there
        cast(EngineName, engine),
        [calibrate] if calibrate else (),
    )
    chosen = choose_scans(find_scans(inputs, panel.scan), panel, cast(Which, cases))
    if dry_run:
        for case in chosen:
            line = f"{', '.join(map(str, case.images))} → {case.id} in {output / FILE}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    asked = Settings.of_quality(quality, panel.mirror, mirror=mirror).mirror
    outcome = predict_scans(panel, chosen, output, asked, strict=strict, overwrite=overwrite, shard=shard, readers=readers)
    render(outcome, read_answers(output), panel.notes, console)
    console.print(f"Answers: {output / FILE}", highlight=False, markup=False, soft_wrap=True)
    return 1 if any(status.status != "done" for status in outcome.values()) else 0


def render(outcome: Outcome, answers: Answers, notes: Sequence[str], console: Console) -> None:
    """Print how many scans got which class, what failed and why, and what is not to be believed."""
    rows = {case: row for row, case in enumerate(answers.ids) if case in outcome}
    if answers.is_classification:
        counts = Table("class", Column("scans", justify="right"), Column("of these unlike", justify="right"))
        chosen = answers.chosen
        for number, name in enumerate(answers.names):
            mine = [row for row in rows.values() if chosen[row] == number]
            counts.add_row(Text(name), str(len(mine)), str(sum(bool(answers.unlike[row]) for row in mine)))
        console.print(counts)
    remarks = {case: status.error or "; ".join(status.warnings) for case, status in outcome.items()}
    remarks = {case: remark for case, remark in remarks.items() if remark}
    table = Table(Column("case", overflow="fold"), "status", Column("note", overflow="fold"))
    for case in sorted(remarks, key=lambda case: (outcome[case].status == "failed", case))[-SHOWN:]:
        failed = outcome[case].status == "failed"
        table.add_row(Text(case), outcome[case].status, Text(remarks[case]), style="red" if failed else "yellow")
    if remarks:
        table.caption = f"and {len(remarks) - SHOWN} more, see status.csv" if len(remarks) > SHOWN else None
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    broken = sum(status.status == "failed" for status in outcome.values())
    unlike = sum(bool(status.warnings) for status in outcome.values())
    totals = f"{len(outcome) - broken} answered, {broken} failed; {unlike} unlike the scans of the training"
    if outcome.segmented:
        totals += (
            f"; {outcome.segmented} in {outcome.seconds:.1f} s, {outcome.segmented / max(outcome.seconds, 1e-9):.3g} a second"
        )
    console.print(totals, highlight=False)
    trained = sum(status.known == "training" for status in outcome.values())
    if trained:
        console.print(
            f"The model was trained on {trained} of these scans: its answers to them say nothing about new ones.",
            style="yellow",
        )

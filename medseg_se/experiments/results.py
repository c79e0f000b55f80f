"""From the folders of finished runs to their comparison: every variant against the same network without attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg_se.errors import DataError
from medseg_se.evaluation.compare import Compared, Correction, Seeds, compare
from medseg_se.evaluation.comparison import Comparison
from medseg_se.evaluation.result import Evaluation
from medseg_se.experiments.folder import RunFolder
from medseg_se.experiments.grid import Experiment, Run

_NOTED = ("steps", "train_seconds", "predict_seconds")


def compare_finished(
    experiment: Experiment,
    output: Path,
    costs: Mapping[str, Mapping[str, float]],
    measure: str,
    correction: Correction,
    seeds: Seeds,
) -> Comparison:
    """Compare the variants of an experiment whose runs are all finished.

    Args:
        experiment: The experiment.
        output: Its folder.
        costs: Variant → what it costs.
        measure: What is compared.
        correction: How p-values are corrected.
        seeds: What is done with several trainings of a variant.

    Raises:
        DataError: Runs of one network and seed did not begin with the same weights.
    """
    accounts = {run: RunFolder.of(output, run.name).account() for run in experiment.runs}
    _check_starts({run: account["start"] for run, account in accounts.items()})
    compared = []
    for variant in experiment.variants:
        runs = [run for run in experiment.runs if run.variant == variant]
        evaluations = {run.repeat: Evaluation.read_json(RunFolder.of(output, run.name).evaluation) for run in runs}
        noted = {key: [accounts[run][key] for run in runs if accounts[run].get(key) is not None] for key in _NOTED}
        cost = {**costs.get(variant.name, {}), **{key: float(np.mean(values)) for key, values in noted.items() if values}}
        reference = None if variant == variant.reference else experiment.title(variant.reference)
        compared.append(Compared(experiment.title(variant), evaluations, reference, cost))
    return compare(compared, measure, correction, seeds)


def _check_starts(starts: Mapping[Run, str]) -> None:
    first: dict[tuple[str, int], tuple[Run, str]] = {}
    for run, start in starts.items():
        other, known = first.setdefault((run.variant.network, run.seed), (run, start))
        if start != known:
            raise DataError(
                f"{run.name} and {other.name} did not begin with the same weights, as after an update of a library. Remove the "
                "folder of one of them, and run this again."
            )

"""Which cases the runs of an experiment may train on, and which are held out to judge them; kept as two small datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import Case, Datalist, read_datalist, read_json
from medseg_se.errors import DataError, UsageError
from medseg_se.files import write_json
from medseg_se.structures import Structures

TRAINING, HELD_OUT = "training.json", "held_out.json"


@dataclass(frozen=True)
class Cases:
    """The cases of an experiment.

    Attributes:
        training: Those that runs may train on.
        held_out: Those that runs are judged on, each run on those of which no group is among its training cases: all of a test
            set, or what the run's fold left out.
    """

    training: Datalist
    held_out: Datalist

    def judged(self, trained_on: Sequence[Case]) -> list[Case]:
        """Return the cases that judge a run, given those that it trains on.

        Raises:
            DataError: There is none.
        """
        known = {case.group for case in trained_on}
        judged = [case for case in self.held_out.training if case.group not in known]
        if not judged:
            raise DataError(f"Every held-out case of {self.held_out.source} is of a group that the run trains on.")
        return judged


def find_cases(source: str, test: int | str | None, structures: Structures | None = None) -> Cases:
    """Return the cases of a dataset, parted into those to train on and those to judge on.

    Args:
        source: The dataset.
        test: How many cases are held out, by whole groups in the order of a hash of their names, so that the split depends
            neither on the order of files nor on the machine; or another dataset; or None, where folds do it.
        structures: What the labels mean, if not what the dataset says.

    Raises:
        DataError: A dataset cannot be used, or has too few cases.
    """
    datalist = read_datalist(source, structures)
    if isinstance(test, str):
        other = read_datalist(test, structures)
        labelled = tuple(case for case in (*other.training, *other.test) if case.label is not None and case.images)
        if other.structures.names != datalist.structures.names:
            raise DataError(f"Expected {test} to have the structures of {source}, in their order, but it has others.")
        held_out = replace(other, training=labelled, test=())
    elif test is None:
        held_out = replace(datalist, training=tuple(case for case in datalist.training if case.images), test=())
    else:
        groups = _drawn([case for case in datalist.training if case.images], test)
        held_out = replace(datalist, training=tuple(case for case in datalist.training if case.group in groups), test=())
        datalist = replace(datalist, training=tuple(case for case in datalist.training if case.group not in groups))
    if not held_out.training or not datalist.training:
        raise DataError(f"Expected {source} to leave cases to train on and scans with labels to judge on, but one is missing.")
    return Cases(replace(datalist, test=()), held_out)


def _drawn(cases: Sequence[Case], count: int) -> set[str]:
    """Return whole groups that have `count` cases or the fewest more."""
    order = sorted({case.group for case in cases}, key=lambda group: hashlib.sha256(f"test:{group}".encode()).hexdigest())
    groups: set[str] = set()
    for group in order:
        if sum(case.group in groups for case in cases) >= count:
            break
        groups.add(group)
    return groups


def keep_cases(cases: Cases, folder: Path) -> Cases:
    """Write the cases to a folder, or make sure that it holds the same ones; returns them as they lie there.

    Raises:
        UsageError: It holds others.
    """
    for name, datalist in ((TRAINING, cases.training), (HELD_OUT, cases.held_out)):
        content = _content(datalist)
        if (folder / name).is_file() and read_json(folder / name) != content:
            raise UsageError(
                f"{folder} holds an experiment on other cases than {datalist.source} lists now (see {name}). Choose "
                "another folder."
            )
        write_json(folder / name, content)
    return read_cases(folder)


def read_cases(folder: Path) -> Cases:
    """Return the cases that `keep_cases` wrote."""
    return Cases(read_datalist(folder / TRAINING), read_datalist(folder / HELD_OUT))


def _content(datalist: Datalist) -> dict[str, Any]:
    """Return a datalist as a dataset.json, with full paths."""
    regions = {name: list(members) for name, members in datalist.structures.regions.items()}
    return {
        "name": datalist.name,
        "channel_names": {str(number): name for number, name in enumerate(datalist.channels)},
        "labels": datalist.structures.to_labels(),
        **({"regions": regions} if regions else {}),
        "training": [_entry(case) for case in datalist.training],
    }


def _entry(case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "image": [str(path.absolute()) for path in case.images] or None,
        "label": str(case.label.absolute()) if case.label else None,
        "group": case.group,
        **({} if case.fold is None else {"fold": case.fold}),
    }

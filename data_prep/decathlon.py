"""Medical Segmentation Decathlon: a task folder with dataset.json, or any dataset.json or CSV that this toolkit reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from medseg_se.data.datalist import Case, read_datalist
from medseg_se.data.scan import read_channels
from medseg_se.volumes import read_labels

from .collection import Collection, Item, Scan


def find(source: Path) -> Collection:
    """Convert a dataset that is listed in a dataset.json or a CSV: verified, with the steps that are asked for.

    Args:
        source: Folder or file of the dataset.
    """
    datalist = read_datalist(source)
    items = [case_item(case, test) for test, cases in ((False, datalist.training), (True, datalist.test)) for case in cases]
    return Collection(datalist.name, datalist.channels, datalist.structures, items)


def case_item(case: Case, test: bool) -> Item:
    """Return a case of a datalist as one to convert."""
    files = case.files()
    return Item(case.id, files, partial(_read, case), case.group, case.fold, test, case.attributes)


def _read(case: Case) -> Scan:
    image = read_channels(case.images) if case.images else None
    return Scan(image, None if case.label is None else read_labels(case.label))

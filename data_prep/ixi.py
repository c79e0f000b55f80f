"""IXI: nearly 600 healthy brains with the age of each person, IXI002-Guys-0828-T1.nii.gz and the table IXI.csv.

Scans and table come from https://brain-development.org/ixi-dataset/. The table there is IXI.xls, which a spreadsheet program
saves as CSV.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError, UsageError
from medseg_se.files import files_below

from .collection import Collection, Item, Scan

_SCAN = re.compile(
    r"(?P<case>IXI(?P<number>\d{3})-(?P<site>Guys|HH|IOP)-\d+-(?P<modality>[A-Z0-9]+))\.nii(\.gz)?", re.IGNORECASE
)
_OLDEST = 120.0  # years
_SEX = {"1": "male", "2": "female"}


def find(
    source: Path, *, modality: Literal["T1", "T2", "PD", "MRA"] = "T1", table: str | None = None, test: float = 0.0
) -> Collection:
    """Convert IXI scans for the regression of age; there are no label maps.

    Args:
        source: Folder that holds the scans, also in folders of their own.
        modality: Which scans are taken.
        table: The CSV with the columns IXI_ID and AGE; the only CSV in the source if not given.
        test: Share of the people of every site that is held out, in the order of a hash of their numbers, so that it is the
            same people whatever is missing otherwise.
    """
    if not 0 <= test < 1:
        raise UsageError(f"Expected `test` to be at least 0 and below 1, but got {test}.")
    matched = [(path, _SCAN.fullmatch(path.name)) for path in sorted(files_below(source))]
    scans = [(path, match) for path, match in matched if match and match["modality"].upper() == modality]
    if not scans:
        raise DataError(f"Expected {source} to hold scans such as IXI002-Guys-0828-{modality}.nii.gz, but found none.")
    path = _table(source) if table is None else Path(table)
    rows = _read_table(path)
    items, left_out = [], {}
    for scan, match in scans:
        person = rows.get(int(match["number"]), [])
        try:
            attributes = {**_facts(person, int(match["number"]), path), "site": match["site"]}
        except DataError as error:
            left_out[match["case"]] = str(error)
            continue
        items.append(Item(match["case"], (scan,), partial(_read, scan), group=f"IXI{match['number']}", attributes=attributes))
    return Collection("IXI", (modality,), None, _held_out(items, test), left_out)


def _held_out(items: list[Item], share: float) -> list[Item]:
    """Hold out a share of the people of every site, for scanners differ and so do the ages of those who were scanned."""
    sites: dict[str, set[str]] = {}
    for item in items:
        sites.setdefault(item.attributes["site"], set()).add(item.group)
    chosen = set()
    for people in sites.values():
        order = sorted(people, key=lambda person: sha256(f"test:{person}".encode()).hexdigest())
        chosen.update(order[: round(share * len(order))])
    return [replace(item, test=item.group in chosen) for item in items]


def _read(scan: Path) -> Scan:
    return Scan(read_channels([scan]))


def _table(source: Path) -> Path:
    files = sorted(files_below(source))
    tables = [path for path in files if path.suffix.lower() == ".csv"]
    if len(tables) == 1:
        return tables[0]
    if tables:
        listed = ", ".join(str(path) for path in tables)
        raise DataError(f"Expected {source} to hold one CSV with the ages, but it holds {listed}. Name it with `--table`.")
    spreadsheets = [path for path in files if re.fullmatch(r"IXI.*\.xls.?", path.name, re.IGNORECASE)]
    if spreadsheets:
        raise DataError(f"{spreadsheets[0]} cannot be read. Save it as CSV in a spreadsheet program, beside the scans.")
    raise DataError(f"Expected {source} to hold IXI.csv with the ages, but it holds no CSV. Download IXI.xls, save it as CSV.")


def _read_table(path: Path) -> dict[int, list[dict[str, str]]]:
    """Return the rows of each person, with columns age and sex; separated by comma, semicolon or tab."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=separator)]
    except csv.Error as error:
        raise DataError(f"Cannot read {path} as CSV: {error}. Save the table as CSV in a spreadsheet program.") from error
    names = [name.upper() for name in lines[0]] if lines else []
    places = {"id": names.index("IXI_ID") if "IXI_ID" in names else -1, "age": names.index("AGE") if "AGE" in names else -1}
    if min(places.values()) < 0:
        raise DataError(f"Expected {path} to have the columns IXI_ID and AGE, but got {', '.join(names) or 'none'}.")
    sex = next((place for place, name in enumerate(names) if name.startswith("SEX")), None)
    rows: dict[int, list[dict[str, str]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        if len(line) > len(names):
            raise DataError(f"Line {number} of {path} has more columns than the header. Save the table as CSV again.")
        cells = line + [""] * (len(names) - len(line))
        identity = re.fullmatch(r"(?:IXI)?(\d+)(?:\.0)?", cells[places["id"]], re.IGNORECASE)
        if identity is None:
            raise DataError(f"Expected IXI_ID in line {number} of {path} to be a number, but got {cells[places['id']]!r}.")
        row = {"age": cells[places["age"]], "sex": "" if sex is None else cells[sex]}
        rows.setdefault(int(identity[1]), []).append(row)
    return rows


def _facts(rows: list[dict[str, str]], number: int, path: Path) -> Mapping[str, Any]:
    """Return age in years and, if it is known, the sex; refuse what is missing or contradicts itself."""
    if not rows:
        raise DataError(f"{path} has no row for IXI_ID {number}, so the age is unknown. Add it, or remove the scan.")
    given = sorted({row["age"] for row in rows if row["age"]})
    ages = sorted({_age(text, number, path) for text in given})
    if not ages:
        raise DataError(f"{path} gives no age for IXI_ID {number}. Add it, or remove the scan.")
    if len(ages) > 1:
        listed = " and ".join(f"{age:.2f}" for age in ages)
        raise DataError(f"{path} gives IXI_ID {number} several ages, {listed}. Keep the right row, or remove the scan.")
    sexes = {_SEX[code] for row in rows if (code := row["sex"].removesuffix(".0")) in _SEX}
    return {"age": ages[0], **({"sex": sexes.pop()} if len(sexes) == 1 else {})}


def _age(text: str, number: int, path: Path) -> float:
    try:
        age = float(text.replace(",", "."))
    except ValueError:
        age = math.nan
    if not 0 < age <= _OLDEST:
        raise DataError(f"Expected the age of IXI_ID {number} in {path} to be years up to {_OLDEST:.0f}, but got {text!r}.")
    return age

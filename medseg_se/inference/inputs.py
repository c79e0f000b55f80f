"""What the user named on the command line, resolved to cases: files, folders or datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg_se.data.datalist import Case, describes_dataset, read_datalist
from medseg_se.errors import DataError
from medseg_se.inference.dicom_inputs import NamedSeries, cases_of, find_named, is_dicom
from medseg_se.inference.reading import series_of
from medseg_se.volumes import case_name, is_scan


def find_cases(inputs: Sequence[Path | str], channels: int) -> list[Case]:
    """Return the cases that `inputs` name.

    A file is a case. A folder with a `dataset.json` or a CSV of images, or such a file, lists its cases; any other folder is
    one case a scan. With several channels, files named `CASE_0000`, `CASE_0001`, … are the channels of one case; otherwise a
    file holds them all.

    A folder without NIfTI files is searched for DICOM series, as are those below it; each series is a case, and its files are
    the images. A DICOM file stands for its series. With several channels, `CASE_0000`, `CASE_0001`, … are folders of a series.

    Raises:
        DataError: A path does not exist, a folder holds no scan, two inputs would be written under one name, or there is but
            one series and it makes no volume.
    """
    cases: list[Case] = []
    files: list[Path] = []
    series: list[NamedSeries] = []
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise DataError(f"No such file or folder: {path}.")
        if path.is_dir():
            scans = sorted(entry for entry in path.iterdir() if is_scan(entry))
            if describes_dataset(path):
                cases += _listed(path)
            elif scans:
                files += scans
            elif found := find_named(path):
                series += found
            else:
                raise DataError(f"The folder {path} holds no .nii or .nii.gz file and no dataset.json, nor a DICOM series.")
        elif path.suffix.lower() in (".json", ".csv"):
            cases += _listed(path)
        elif is_scan(path) or not is_dicom(path):
            files.append(path)
        elif not any(one.path == path for known in series for one in known.series.slices):
            series += find_named(path)
    cases += [*_from_files(files, channels), *cases_of(series, channels)]
    if len(cases) == 1 and any(one.problem for one in series_of(cases[0])):
        (bad, *_) = [one for one in series_of(cases[0]) if one.problem]
        raise DataError(f"The series in {bad.folder} {bad.problem}")
    by_id: dict[str, Case] = {}
    for case in cases:
        if case.id in by_id:
            raise DataError(
                f"{by_id[case.id].images[0]} and {case.images[0]} would both be written as {case.id}; predict them apart."
            )
        by_id[case.id] = case
    return list(by_id.values())


def _listed(path: Path) -> list[Case]:
    datalist = read_datalist(path)
    cases = [*datalist.training, *datalist.test]
    bare = next((case for case in cases if not case.images), None)
    if bare is not None:
        raise DataError(f"Case {bare.id} of {datalist.source} has no scan, but a label map alone: there is nothing to segment.")
    return cases


def _from_files(files: Sequence[Path], channels: int) -> list[Case]:
    """Group files into cases; `_0000` is a channel number if every file has such an ending."""
    apart = [Case(case_name(path), (path,), group=case_name(path)) for path in files]
    numbered = [re.fullmatch(r"(.+)_(\d{4})", case_name(path)) for path in files]
    grouped: dict[tuple[Path, str], dict[int, Path]] = {}
    for path, match in zip(files, numbered, strict=True):
        if match:
            grouped.setdefault((path.parent, match.group(1)), {})[int(match.group(2))] = path
    if not all(numbered) or not any(0 in found for found in grouped.values()):
        return apart
    if channels == 1 and any(len(found) > 1 for found in grouped.values()):
        return apart  # scans that are numbered, not channels
    for (_, stem), found in grouped.items():
        if sorted(found) != list(range(len(found))) or len(found) != channels:
            wanted = ", ".join(f"{stem}_{number:04d}" for number in range(channels))
            raise DataError(
                f"Expected the channels {wanted} of case {stem}, but got {', '.join(p.name for p in found.values())}."
            )
    return [Case(stem, tuple(found[n] for n in sorted(found)), group=stem) for (_, stem), found in grouped.items()]

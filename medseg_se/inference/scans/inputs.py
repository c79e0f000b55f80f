"""What the user named on the command line, resolved to cases of a model of whole scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medseg_se.data.datalist import Case, describes_dataset, read_datalist
from medseg_se.data.pictures import NO_STRUCTURES, SUFFIXES, is_picture
from medseg_se.data.whole_scan import WholeScan
from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.inference.dicom_inputs import is_dicom
from medseg_se.inference.inputs import find_cases
from medseg_se.volumes import is_scan

_TABLES = (".json", ".csv")
_DICOM = (".dcm", ".ima")


def find_scans(inputs: Sequence[Path | str], scan: WholeScan) -> list[Case]:
    """Return the cases that `inputs` name.

    A dataset (its folder, `dataset.json` or CSV) lists its cases, those for training and those for test. For a model of
    volumes, all else is as for a segmentation, see `find_cases`. For a model of pictures a file is a case, called as it is; a
    folder holds one case a picture, NIfTI file or DICOM image in it and in all folders below, whose name is its way from there:
    of folders of classes "class/file.jpg", as in training. Hidden files, and folders whose names begin with "_", are left out.

    Raises:
        DataError: A path does not exist, a folder holds no scan, or two inputs have one name.
    """
    cases: list[Case] = []
    others: list[Path] = []
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise DataError(f"No such file or folder: {path}.")
        if path.suffix.lower() in _TABLES if path.is_file() else describes_dataset(path):
            listed = read_datalist(path, NO_STRUCTURES)
            cases += [_bare(case) for case in (*listed.training, *listed.test) if case.images]
        elif scan.colour is None:
            others.append(path)
        elif path.is_file():
            cases.append(Case(path.name, (path,), group=path.name))
        else:
            found = [Case(one.relative_to(path).as_posix(), (one,)) for one in _scans_below(path)]
            if not found:
                raise DataError(
                    f"The folder {path} holds no picture ({', '.join(SUFFIXES)}), no NIfTI file, no DICOM image and no "
                    "dataset.json."
                )
            cases += found
    cases += find_cases(others, scan.channels) if others else []
    by_id: dict[str, Case] = {}
    for case in cases:
        if by_id.setdefault(case.id, case) is not case and by_id[case.id].images != case.images:
            raise DataError(
                f"{by_id[case.id].images[0]} and {case.images[0]} would both be called {case.id}; predict them apart."
            )
    return list(by_id.values())


def _bare(case: Case) -> Case:
    """Return a case without its truth."""
    return replace(case, attributes={})


def _scans_below(folder: Path) -> Iterator[Path]:
    for path in files_below(folder):
        if any(part.startswith("_") for part in path.relative_to(folder).parts[:-1]):
            continue
        known = is_picture(path) or is_scan(path) or path.suffix.lower() in _DICOM
        if known or (not path.suffix and is_dicom(path)):
            yield path

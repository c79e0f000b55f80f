"""One scan cut in two, for want of a second: `python benchmarks/halves.py SCAN LABELS STRUCTURES.json OUTPUT`.

Cuts a scan with its label map in the middle between feet and head. The lower half is the training case of the dataset OUTPUT,
the upper half its test case; both keep the structures that lie in both halves, and what lies in one alone counts as background.
It says nothing about other people, only that a training on several structures runs, and what it finds in places it never saw.

Afterwards: `medseg-se fit --config wholebody_unet3d_scse --data.source OUTPUT --data.fold null`, `medseg-se predict CHECKPOINT
OUTPUT --cases unseen --output PREDICTIONS` and `medseg-se evaluate PREDICTIONS OUTPUT`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import read_structures
from medseg_se.files import write_json
from medseg_se.volumes import Volume, read_image, read_labels, reorient, write_volume

LEAST = 50  # voxels of a structure in a half


def main() -> None:
    """Cut the scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scan", "labels", "structures", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    scan, truth = (
        reorient(read(path), "RAS") for read, path in ((read_image, arguments.scan), (read_labels, arguments.labels))
    )
    structures = read_structures(arguments.structures)
    middle = scan.shape[2] // 2
    halves = {"lower": slice(0, middle), "upper": slice(middle, None)}
    held = [_held(truth.array[..., cut]) for cut in halves.values()]
    both = {name: values for name, values in structures.values.items() if all(set(values) & half for half in held)}
    kept = [value for values in both.values() for value in values]
    for name, cut in halves.items():
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (cut.start or 0)
        labels = np.where(np.isin(truth.array[..., cut], kept), truth.array[..., cut], 0)
        write_volume(Volume(scan.array[..., cut], affine, scan.header), arguments.output / "images" / f"{name}.nii.gz")
        write_volume(Volume(labels, affine, truth.header), arguments.output / "labels" / f"{name}.nii.gz")
    entries = {name: {"image": f"./images/{name}.nii.gz", "label": f"./labels/{name}.nii.gz"} for name in halves}
    write_json(
        arguments.output / "dataset.json",
        {
            "name": "halves",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **{name: list(values) for name, values in both.items()}},
            "training": [entries["lower"]],
            "test": [entries["upper"]],
        },
    )
    print(f"{len(both)} structures lie in both halves, each with {LEAST} voxels or more.")


def _held(labels: npt.NDArray[np.generic]) -> set[int]:
    """Return the label values that are present."""
    values, counts = np.unique(labels, return_counts=True)
    return {int(value) for value, count in zip(values, counts, strict=True) if count >= LEAST}


if __name__ == "__main__":
    main()

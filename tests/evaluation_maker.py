"""A small evaluation of made-up scans: two boxes in each, predicted well, shifted, and not at all."""

import json
from pathlib import Path

import numpy as np

from medseg_se.evaluation.evaluate import evaluate
from medseg_se.volumes import Volume, write_volume

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 1.0, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])  # the first axis runs to the left
NAMES = {"background": 0, "liver": 3, "spleen <b>": 7}


def truth_of(number, shape=(24, 20, 16)):
    """Label values (I, J, K) in the order of the file."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[14:20, 5:12, 4:10] = 3  # the patient's left: the first axis runs to the left
    labels[4:10, 5:12, 4 : 10 + number] = 7
    return labels


def scan_of(labels, seed=0):
    noise = np.random.default_rng(seed).normal(0, 10, labels.shape)
    return (100 + 60 * (labels == 3) + 120 * (labels == 7) + noise).astype(np.float32)


def dataset(folder, count=3):
    """Write a dataset of `count` cases below `folder` and return it."""
    entries = []
    for number in range(count):
        labels, name = truth_of(number), f"case_{number}.nii.gz"
        write_volume(Volume(labels[None], AFFINE), folder / "labelsTr" / name)
        write_volume(Volume(scan_of(labels, number)[None], AFFINE), folder / "imagesTr" / name)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    content = {"name": "boxes", "modality": {"0": "MRI"}, "labels": NAMES, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def predictions(folder, count=3):
    """Write predictions: the first right, the others shifted by two voxels more each, the last missing if there are three."""
    for number in range(min(count, 2)) if count == 3 else range(count):
        labels = np.roll(truth_of(number), 2 * number, axis=0)
        write_volume(Volume(labels[None], AFFINE), folder / f"case_{number}.nii.gz")
    return folder


def evaluated(tmp_path: Path, count=3, **options):
    """Return the evaluation of it all, and the dataset's folder."""
    data = dataset(tmp_path / "data", count)
    folder = predictions(tmp_path / "predictions", count)
    return evaluate(folder, data, progress=False, **options), data

"""Tiny cohorts for networks that answer for a whole scan: pictures in a folder a class, and blobs with an age."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

CLASSES = ("dark", "left", "right")


def picture(kind, rng, shape=(20, 24)):
    """Draw noise, with a bright half for the classes "left" and "right"."""
    array = rng.normal(60, 8, shape)
    middle = shape[1] // 2
    array[:, {"dark": slice(0, 0), "left": slice(0, middle), "right": slice(middle, None)}[kind]] += 90
    return array.clip(0, 255).astype(np.uint8)


def write_pictures(folder, each=6, classes=CLASSES, seed=0):
    """Write `each` pictures of every class."""
    rng = np.random.default_rng(seed)
    for kind in classes:
        (Path(folder) / kind).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(picture(kind, rng)).save(Path(folder) / kind / f"{number}.png")
    return Path(folder)


def write_ages(folder, cases=9, test=2, shape=(12, 14, 10), seed=0):
    """Write volumes with a cube whose edge grows with the age, and a dataset.json without labels."""
    rng = np.random.default_rng(seed)
    (Path(folder) / "images").mkdir(parents=True)
    entries = []
    for number in range(cases + test):
        array = rng.normal(10, 1, shape)
        edge = 2 + number % 5
        array[2 : 2 + edge, 2 : 2 + edge, 2 : 2 + edge] += 20
        name = f"images/head{number}.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([2.0, 2.0, 3.0, 1.0])), Path(folder) / name)
        entries.append({"image": name, "age": 20 + 10 * edge, "weight": 50.5 - number, "sex": "fm"[number % 2]})
    content = {"name": "heads", "modality": {"0": "T1"}, "training": entries[:cases], "test": entries[cases:]}
    (Path(folder) / "dataset.json").write_text(json.dumps(content))
    return Path(folder)

"""What tests of converters share: tiny scans, label maps and tables on disk in the layouts of real datasets."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (7, 6, 5)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 1.5, -20], [0, 3.0, 0, 5], [0, 0, 0, 1]])  # LSA, 2 × 3 × 1.5 mm


def scan(seed, shape=SHAPE):
    """Whole numbers as a CT holds them, different for every seed."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def label_map(values, seed=0, shape=SHAPE):
    """A label map in which every one of `values` occurs."""
    labels = np.random.default_rng(seed).choice(np.array(values, dtype=np.uint16), shape)
    labels.ravel()[: len(values)] = values
    return labels


def write(path, array, affine=AFFINE):
    """Write an array as NIfTI (or MGH) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".mgz"):
        nib.save(nib.MGHImage(array.astype(np.int32), affine), path)
    else:
        nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def summary(output):
    return json.loads((output / "conversion.json").read_text(encoding="utf-8"))


def times(output):
    """Return every file below `output` but the summary and list → when it was written."""
    made = [path for path in Path(output).rglob("*") if path.is_file() and path.parent != output]
    return {path.relative_to(output).as_posix(): path.stat().st_mtime_ns for path in made}


def truncate(path):
    """Cut a file in half, as an interrupted download leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content

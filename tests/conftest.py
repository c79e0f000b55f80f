"""Helpers that several test files share: affines of any orientation, and tiny datasets on disk."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: on scans this small, threads are in each other's way

DIRECTIONS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}


def pytest_generate_tests(metafunc):
    """A test that takes `axcodes` runs for each of the 48 ways in which three axes can lie."""
    if "axcodes" in metafunc.fixturenames:
        orders = itertools.permutations(("LR", "PA", "IS"))
        metafunc.parametrize("axcodes", ["".join(codes) for order in orders for codes in itertools.product(*order)])


@pytest.fixture
def put_back(monkeypatch):
    """Put back what a training changes in the process: handlers of signals, levels of loggers, seeds."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "")}
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def make_affine():
    """Return a function that builds an affine from axis codes, spacing in mm, an origin and a rotation in degrees."""

    def make(axcodes="RAS", spacing=(1.0, 1.0, 1.0), origin=(-10.0, 20.0, 5.0), degrees=(0.0, 0.0, 0.0)):
        directions = np.array([DIRECTIONS[code] for code in axcodes], dtype=float).T
        for axis, angle in enumerate(np.radians(degrees)):
            turn, (i, j) = np.eye(3), [other for other in range(3) if other != axis]
            turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            directions = turn @ directions
        affine = np.eye(4)
        affine[:3, :3] = directions * spacing
        affine[:3, 3] = origin
        return affine

    return make


@pytest.fixture
def write_scan():
    """Return a function that writes an array (I, J, K) or (I, J, K, C) with nibabel and returns its path."""

    def write(path, array, affine=None, kind=nib.Nifti1Image):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.asarray(array)
        nib.save(kind(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path)
        return path

    return write


@pytest.fixture
def write_decathlon(write_scan):
    """Return a function that writes a tiny Decathlon dataset: noise with a bright cube each of structures 1 and 2."""

    def write(folder, cases=6, test=1, shape=(12, 11, 10), affine=None, seed=0, channels=1):
        rng = np.random.default_rng(seed)
        names = [f"case_{number:02d}" for number in range(cases + test)]
        for name in names:
            labels = np.zeros(shape, dtype=np.uint8)
            start = rng.integers(0, 3, size=3)
            labels[tuple(slice(first, first + 4) for first in start)] = 1
            labels[tuple(slice(first + 4, first + 7) for first in start)] = 2
            image = rng.normal(100, 10, size=(*shape, channels)) + 50.0 * labels[..., None]
            split = "Tr" if name in names[:cases] else "Ts"
            write_scan(folder / f"images{split}" / f"{name}.nii.gz", image.astype(np.float32).squeeze(), affine)
            if split == "Tr":
                write_scan(folder / "labelsTr" / f"{name}.nii.gz", labels, affine)
        content = {
            "name": "cubes",
            "modality": {str(number): f"T{number + 1}" for number in range(channels)},
            "labels": {"0": "background", "1": "near", "2": "far"},
            "training": [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names[:cases]],
            "test": [f"imagesTs/{name}.nii.gz" for name in names[cases:]],
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture(autouse=True)
def _torch_computes(request, monkeypatch):
    """Let "auto" stand for torch, except in tests of engines: a training in a process that has loaded others can end it."""
    if "engines" not in request.keywords:
        for module in ("base", "checked"):
            monkeypatch.setattr(f"medseg_se.inference.engines.{module}.best_engine", lambda device: "torch")
        monkeypatch.setattr("medseg_se.inference.model.best_engine", lambda device: "torch")

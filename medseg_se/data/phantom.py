"""Phantoms: seeded heads and trunks with known truth, for trying the whole way from scan to table without any patient's data.

A subject is drawn as solids in mm, bent by a smooth warp, and then scanned: on a grid with its own spacing, orientation and
tilt, with partial volume, noise and (in MR) a bias field. Pairs of structures look alike, and what lies around the brain has
its intensities too, so that no threshold finds them. `write_phantoms` writes a Decathlon dataset of them. Heads may be those
of people whose age is known and seen, see `phantom_ages`.
"""

from __future__ import annotations

import gzip
import itertools
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from medseg_se.data.datalist import read_json
from medseg_se.data.phantom_ages import Ages, Person, Signs
from medseg_se.data.phantom_shapes import Array, Grid, majority, paint_brain, paint_torso, rotation
from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.files import atomic_write, write_json
from medseg_se.volumes import Volume, reorient, write_volume

Kind = Literal["brain", "torso"]
VERSION = 2  # raise it when the same parameters give other scans
MARKER = "phantom.json"

BRAIN_LABELS: dict[int, str] = {
    2: "Left-Cerebral-White-Matter",
    3: "Left-Cerebral-Cortex",
    4: "Left-Lateral-Ventricle",
    7: "Left-Cerebellum-White-Matter",
    8: "Left-Cerebellum-Cortex",
    10: "Left-Thalamus",
    11: "Left-Caudate",
    12: "Left-Putamen",
    14: "3rd-Ventricle",
    16: "Brain-Stem",
    17: "Left-Hippocampus",
    18: "Left-Amygdala",
    41: "Right-Cerebral-White-Matter",
    42: "Right-Cerebral-Cortex",
    43: "Right-Lateral-Ventricle",
    46: "Right-Cerebellum-White-Matter",
    47: "Right-Cerebellum-Cortex",
    49: "Right-Thalamus",
    50: "Right-Caudate",
    51: "Right-Putamen",
    53: "Right-Hippocampus",
    54: "Right-Amygdala",
}
TORSO_LABELS: dict[int, str] = {
    1: "Spleen",
    2: "Right-Kidney",
    3: "Left-Kidney",
    4: "Gallbladder",
    5: "Liver",
    6: "Stomach",
    10: "Left-Lung",
    12: "Right-Lung",
    21: "Bladder",
    26: "Spine",
    51: "Heart",
    52: "Aorta",
    77: "Left-Hip",
    78: "Right-Hip",
    88: "Left-Psoas",
    89: "Right-Psoas",
}

ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RAS", "ASL")
ANISOTROPY = ((1.0, 1.0, 1.0), (0.92, 0.92, 1.18), (1.18, 0.92, 0.92), (1.0, 1.1, 0.9))


@dataclass(frozen=True)
class _Recipe:
    """What differs between the kinds: lengths in mm, in RAS order."""

    number: int
    labels: dict[int, str]
    modality: str
    resolution: float
    limits: tuple[float, float]
    centre: tuple[float, float, float]
    field_of_view: tuple[float, float, float]
    warp: float
    paint: Callable[[Array, np.random.Generator, Signs], tuple[npt.NDArray[np.uint8], Array]]
    scan: Callable[[Grid, Array, np.random.Generator], npt.NDArray[Any]]


def draw_person(ages: Ages, subject: int, seed: int = 0) -> Person:
    """Return whose head a subject is; it depends on nothing but the arguments."""
    return ages.draw(np.random.default_rng(_sources("brain", subject, seed)[3]))


def make_subject(
    kind: Kind, subject: int, seed: int = 0, resolution: float | None = None, signs: Signs | None = None
) -> tuple[Volume, Volume]:
    """Draw and scan one subject.

    A subject depends on nothing but `kind`, `seed`, `subject` and `signs`; at another resolution it is the same subject,
    scanned again, and with other signs the same one at another age.

    Args:
        kind: "brain" (T1-weighted MR, float32) or "torso" (CT in HU, int16).
        subject: Number of the subject, from 0.
        seed: Another seed gives other subjects.
        resolution: Edge of a voxel in mm, about: spacings are mixed. The kind's own (2.4 or 6 mm) if None.
        signs: What age and sex change in a head; nothing if None.

    Returns:
        The image and, on the same grid, the label map (uint8), each (1, I, J, K).

    Raises:
        UsageError: The kind is unknown, a number is negative, or the resolution is out of range.
    """
    recipe = _recipe(kind)
    resolution = _check_resolution(recipe, resolution)
    if subject < 0 or seed < 0:
        raise UsageError(f"Expected `subject` and `seed` to be 0 or more, but got {subject} and {seed}.")
    if signs is not None and kind != "brain":
        raise UsageError(f"Expected `kind` to be brain for phantoms with an age, but got {kind}.")
    signs = signs or Signs()
    for_grid, for_anatomy, for_scan = (np.random.default_rng(source) for source in _sources(kind, subject, seed)[:3])
    grid, orientation = _draw_grid(recipe, resolution, for_grid)
    labels, values = recipe.paint(_draw_points(recipe, grid, for_anatomy, signs.size), for_anatomy, signs)
    image = recipe.scan(grid, grid.blocks(values).mean(axis=0), for_scan)
    truth = majority(grid.blocks(labels))
    scanned, labelled = (reorient(Volume(array[None], grid.affine), orientation) for array in (image, truth))
    return scanned, labelled


def write_phantoms(
    output: Path,
    kind: Kind = "brain",
    training: int = 16,
    test: int = 4,
    seed: int = 0,
    resolution: float | None = None,
    workers: int = 1,
    progress: bool = False,
    ages: Ages | None = None,
) -> Path:
    """Write a Decathlon dataset of phantoms; run again after an interruption, it makes what is missing.

    Args:
        output: The dataset's folder: imagesTr, labelsTr, imagesTs, labelsTs (to judge by) and dataset.json.
        kind: "brain" or "torso".
        training: Cases to train on.
        test: Cases to judge on.
        seed: Another seed gives other subjects.
        resolution: As in `make_subject`.
        workers: Processes that draw at once.
        progress: Show a progress bar.
        ages: Who the people are, of whom the datalist then gives age, sex and brain age; only of heads. People without an age
            if None.

    Returns:
        The path of dataset.json, which is written last.

    Raises:
        UsageError: A number is out of range, or the folder holds phantoms made with other parameters.
        DataError: The folder holds something else.
        OutputError: The folder is not writable or the disk is full.
    """
    recipe = _recipe(kind)
    resolution = _check_resolution(recipe, resolution)
    if min(training, test) < 0 or training + test < 1 or workers < 1:
        raise UsageError(
            "Expected `training` and `test` to be 0 or more with a case in all, and `workers` to be 1 or more, "
            f"but got training={training}, test={test}, workers={workers}."
        )
    if ages is not None and kind != "brain":
        raise UsageError(f"Expected `kind` to be brain for phantoms with an age, but got {kind}.")
    output = Path(output)
    parameters: dict[str, Any] = {
        "kind": kind,
        "training": training,
        "test": test,
        "seed": seed,
        "resolution": resolution,
        "version": VERSION,
    }
    parameters["ages"] = None if ages is None else asdict(ages)
    _claim(output, parameters)
    cases = [(subject, "Tr" if subject < training else "Ts") for subject in range(training + test)]
    people = [None if ages is None else draw_person(ages, subject, seed) for subject, _ in cases]
    tasks = [(output, kind, *case, seed, resolution, person) for case, person in zip(cases, people, strict=True)]
    missing = [task for task in tasks if not all(path.is_file() for path in _paths(*task[:4]))]
    _work_off(missing, workers, progress)
    entries: dict[str, list[dict[str, Any]]] = {"Tr": [], "Ts": []}
    for (subject, split), person in zip(cases, people, strict=True):
        entries[split].append(_entry(output, kind, subject, split, person))
    description = {
        "name": f"Phantom-{kind}",
        "description": f"Procedural {kind} phantoms with exact labels; no patient's data",
        "tensorImageSize": "3D",
        "modality": {"0": recipe.modality},
        "labels": {"0": "background", **{str(value): name for value, name in recipe.labels.items()}},
        "numTraining": training,
        "numTest": test,
        "training": entries["Tr"],
        "test": entries["Ts"],
        "phantom": parameters,
    }
    write_json(output / "dataset.json", description)
    return output / "dataset.json"


# ------------------------------------------------------------------------------------------------------------------- drawing


def _recipe(kind: str) -> _Recipe:
    if kind not in RECIPES:
        raise unknown_name("phantom", str(kind), get_args(Kind))
    return RECIPES[kind]


def _sources(kind: str, subject: int, seed: int) -> list[np.random.SeedSequence]:
    """Return where the randomness of grid, anatomy, scan and person comes from."""
    return np.random.SeedSequence((seed, _recipe(kind).number, subject)).spawn(4)


def _check_resolution(recipe: _Recipe, resolution: float | None) -> float:
    if resolution is None:
        return recipe.resolution
    low, high = recipe.limits
    if not low <= resolution <= high:
        raise UsageError(f"Expected `resolution` between {low} and {high} mm, but got {resolution}.")
    return float(resolution)


def _draw_grid(recipe: _Recipe, resolution: float, rng: np.random.Generator) -> tuple[Grid, str]:
    """Draw spacing, tilt (in half of the cases, at most 10 degrees in all) and the orientation of the file."""
    i, j, k = (resolution * factor for factor in ANISOTROPY[rng.integers(len(ANISOTROPY))])
    tilt = rotation(rng.uniform(-5.5, 5.5, 3) * (rng.random() < 0.5))
    a, b, c = (round(length / step) for length, step in zip(recipe.field_of_view, (i, j, k), strict=True))
    grid = Grid((a, b, c), (i, j, k), tilt, np.array(recipe.centre))
    return grid, ORIENTATIONS[rng.integers(len(ORIENTATIONS))]


def _draw_points(recipe: _Recipe, grid: Grid, rng: np.random.Generator, size: float) -> Array:
    """Place the subject in the scanner and bend it: where each fine point lies in the anatomy's own frame, (3, N)."""
    sizes = size * np.exp(0.03 * rng.normal(0, 1, 3).clip(-2, 2))
    pose = rotation(rng.uniform(-4, 4, 3)) / sizes[:, None]
    points = grid.points(pose, np.array(recipe.centre) + rng.uniform(-2, 2, 3))
    frequencies = np.sqrt(sum(np.meshgrid(*[np.arange(6.0) ** 2] * 3, indexing="ij")))
    decay = 1 / (1 + frequencies)
    decay[0, 0, 0] = 0  # a shift was drawn already
    for row in points:
        bend = grid.waves(rng.standard_normal(decay.shape) * decay)
        row += recipe.warp / bend.std() * bend.reshape(-1)
    return points


def _scan_mr(grid: Grid, brightness: Array, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Scan with a bias field of ±15 %, Rician noise and an arbitrary gain."""
    bias = grid.waves(rng.standard_normal((3, 3, 3)), finer=1)
    brightness = brightness * np.exp(0.15 / np.abs(bias).max() * bias)
    real, imaginary = rng.standard_normal((2, *brightness.shape), dtype=np.float32) * np.float32(3.5)
    scan: npt.NDArray[np.float32] = np.hypot(brightness + real, imaginary) * rng.uniform(2.5, 8)
    return scan.astype(np.float32)


def _scan_ct(grid: Grid, hu: Array, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Scan with noise that is grained, as reconstruction leaves it, in whole HU."""
    noise = gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 0.5)
    scan: npt.NDArray[np.float32] = hu + 12 / noise.std() * noise
    return np.clip(np.rint(scan), -1024, 3071).astype(np.int16)


RECIPES = {
    "brain": _Recipe(
        number=0,
        labels=BRAIN_LABELS,
        modality="MRI",
        resolution=2.4,
        limits=(0.8, 8.0),
        centre=(0, -15, 6),
        field_of_view=(164, 198, 172),
        warp=2.2,
        paint=paint_brain,
        scan=_scan_mr,
    ),
    "torso": _Recipe(
        number=1,
        labels=TORSO_LABELS,
        modality="CT",
        resolution=6.0,
        limits=(2.0, 16.0),
        centre=(0, 0, 0),
        field_of_view=(372, 264, 468),
        warp=5.0,
        paint=paint_torso,
        scan=_scan_ct,
    ),
}


# ------------------------------------------------------------------------------------------------------------------- writing


def _claim(output: Path, parameters: dict[str, Any]) -> None:
    """Mark the folder as made with `parameters`, or refuse it if it was made with others or otherwise."""
    marker = output / MARKER
    if marker.is_file():
        found = read_json(marker)
        other = {name: found.get(name) for name in parameters if found.get(name) != parameters[name]}
        if other:
            wanted = ", ".join(f"{name}={parameters[name]}" for name in other)
            has = ", ".join(f"{name}={value}" for name, value in other.items())
            raise UsageError(f"Expected {output} to hold phantoms made with {wanted}, but got {has}. Choose another folder.")
    elif output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise DataError(f"Expected {output} to be empty or to hold phantoms ({MARKER}), but it holds other files.")
    else:
        write_json(marker, parameters)


def _paths(output: Path, kind: str, subject: int, split: str) -> tuple[Path, Path]:
    name = f"{kind}_{subject:03d}{'.nii' if subject % 5 == 3 else '.nii.gz'}"
    return output / f"images{split}" / name, output / f"labels{split}" / name


def _entry(output: Path, kind: str, subject: int, split: str, person: Person | None) -> dict[str, Any]:
    image, label = (path.relative_to(output).as_posix() for path in _paths(output, kind, subject, split))
    attributes = {} if person is None else person.attributes
    return {"image": image, "label": label, "group": f"{kind}_{subject:03d}", **attributes}


def _work_off(tasks: list[tuple[Path, Kind, int, str, int, float, Person | None]], workers: int, progress: bool) -> None:
    finished: Iterable[None]
    if workers == 1 or len(tasks) < 2:
        finished = itertools.starmap(_write_case, tasks)
        _consume(finished, len(tasks), progress)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_write_case, *task) for task in tasks]
        _consume((future.result() for future in as_completed(futures)), len(tasks), progress)


def _consume(finished: Iterable[None], total: int, progress: bool) -> None:
    if progress:
        from rich.progress import track

        finished = track(finished, description="phantoms", total=total)
    for _ in finished:
        pass


def _write_case(
    output: Path, kind: Kind, subject: int, split: str, seed: int, resolution: float, person: Person | None
) -> None:
    image, labels = make_subject(kind, subject, seed, resolution, None if person is None else person.signs)
    image_path, label_path = _paths(output, kind, subject, split)
    write_volume(labels, label_path)
    if subject % 3 == 1:
        _write_scaled(image, image_path)
    elif subject % 3 == 2:
        write_volume(Volume(np.rint(image.array).astype(np.int16), image.affine), image_path)
    else:
        write_volume(image, image_path)


def _write_scaled(image: Volume, path: Path) -> None:
    """Write as scanners often do: integers that mean something only with the header's slope and intercept."""
    low, high = float(image.array.min()), float(image.array.max())
    slope, inter = float(np.float32((high - low) / 4095)), float(np.float32(low))
    stored = nib.Nifti1Image(np.rint((image.array[0] - inter) / slope).astype(np.int16), image.affine)
    stored.header.set_slope_inter(slope, inter)
    stored.header.set_xyzt_units("mm")
    content = stored.to_bytes()
    with atomic_write(path) as stream:
        stream.write(gzip.compress(content, compresslevel=4, mtime=0) if path.suffix == ".gz" else content)

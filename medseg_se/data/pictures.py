"""Pictures: JPEG, PNG and the like as scans of one slice, alone or in one folder a class."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from medseg_se.data.datalist import Case, Datalist
from medseg_se.errors import DataError, UsageError
from medseg_se.files import files_below
from medseg_se.nifti import MEMORY_LIMIT
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

log = logging.getLogger(__name__)
Colour = Literal["grey", "rgb"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ORIENTATION = "PLS"  # rows run from front to back and columns from right to left, as axial slices are shown
PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")  # what folders of a split are called
NO_STRUCTURES = Structures({"scan": (1,)})  # a datalist has some; those of whole scans have no label maps
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # more than eight bits of grey, which `convert` would cut off

_OF_FOLDERS = ("Thumbs.db", "desktop.ini")  # what Windows writes into any folder

AFFINE = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)


def is_picture(path: Path) -> bool:
    """Tell whether `path` looks like a picture; hidden files do not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def check_colour(colour: str) -> None:
    """Refuse anything but the names of `Colour`."""
    if colour not in get_args(Colour):
        raise UsageError(f"Expected `colour` to be one of {', '.join(get_args(Colour))}, but got {colour!r}.")


def read_picture(path: Path, colour: Colour = "grey", memory_limit: int = MEMORY_LIMIT) -> Volume:
    """Read a picture as float32 (C, height, width, 1), turned as its camera says.

    Its content, not its suffix, tells its format.

    Args:
        path: The file.
        colour: "grey" for one channel, the luminance of coloured pictures; "rgb" for three. CMYK is turned into RGB,
            transparent pixels into black; what has more than eight bits of grey keeps them.
        memory_limit: Bytes that the picture may claim as float32.

    Raises:
        DataError: The file is missing, damaged, no picture, or holds several.
    """
    check_colour(colour)
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise DataError(f"Expected {path} to hold one picture, but it holds {pages}. Save each to its own file.")
            if 12 * picture.width * picture.height > memory_limit:
                raise DataError(
                    f"{path} claims {picture.width} × {picture.height} pixels, more than can be read. Is it intact?"
                )
            array = _pixels(ImageOps.exif_transpose(picture), colour)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise DataError(f"Cannot read {path} as a picture: {reason.rstrip('.')}. Restore it or leave it out.") from error
    return Volume(np.ascontiguousarray(array[..., None]), AFFINE, path=path)


def _pixels(picture: Image.Image, colour: Colour) -> npt.NDArray[Any]:
    """Return (C, height, width) float32."""
    if picture.mode in _DEEP:
        grey = np.asarray(picture).astype(np.float32)[None]
        return grey if colour == "grey" else np.repeat(grey, 3, axis=0)
    plain = _on_black(picture) if picture.has_transparency_data else picture.convert("RGB")
    pixels = np.asarray(plain if colour == "rgb" else plain.convert("L"), dtype=np.float32)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _on_black(picture: Image.Image) -> Image.Image:
    """Return a picture in front of black, which is what is round a head; the colours of unseen pixels mean nothing."""
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen).convert("RGB")


def read_class_folders(folder: Path) -> Datalist:
    """Read a folder of one folder a class, each with pictures, as a datalist with the attribute "class".

    A sub-folder of a class is a group, such as a patient, with all pictures below it, and its name is the group's: folders of
    one name in several classes are one patient. Pictures that lie in the folder of the class itself have no group. Hidden
    files are left out, as are folders whose names begin with "." or "_". Files with other suffixes are named and left out.

    Raises:
        DataError: There are no such folders, one holds no picture, or they are the parts of a split and not classes.
    """
    folders = _folders(folder)
    if folders and all(kind.name.lower() in PARTS for kind in folders):
        listed = ", ".join(kind.name for kind in folders)
        raise DataError(
            f"Expected {folder} to hold a folder of pictures for each class, but got the parts of a split: {listed}. "
            "Name one of them, or list the pictures in a CSV with the columns image, class and split."
        )
    cases = []
    others: list[Path] = []
    for kind in folders:
        below_it = sorted(_files_below(kind))
        files = [path for path in below_it if is_picture(path)]
        others += [path for path in below_it if not is_picture(path)]
        if not files:
            instead = f"only {_some(kind, below_it)}" if below_it else "none"
            raise DataError(
                f"Expected {kind} to hold the pictures of a class ({', '.join(SUFFIXES)}), for {folder} has no dataset.json, "
                f"but it holds {instead}. Remove the folder, or put its pictures there."
            )
        for path in files:
            name, below = path.relative_to(folder).as_posix(), path.relative_to(kind).parts
            group = below[0] if len(below) > 1 else name
            cases.append(Case(name, (path,), group=group, attributes={"class": kind.name}))
    if others:
        log.warning("left out, for their suffixes are not those of pictures: %d files (%s)", len(others), _some(folder, others))
    if not cases:
        raise DataError(f"Expected {folder} to hold a dataset.json, a CSV, or a folder of pictures for each class.")
    return Datalist(folder.resolve().name, folder, ("image",), NO_STRUCTURES, tuple(cases))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield what is not hidden, and not in a folder whose name begins with "_"."""
    for path in files_below(folder):
        named = not path.name.startswith(".") and path.name not in _OF_FOLDERS
        if named and not any(part.startswith("_") for part in path.relative_to(folder).parts[:-1]):
            yield path


def _some(folder: Path, paths: Sequence[Path]) -> str:
    names = [path.relative_to(folder).as_posix() for path in paths[:3]]
    return ", ".join([*names, *(["…"] if len(paths) > 3 else [])])

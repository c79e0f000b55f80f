"""What phantoms are made of: oblique grids, smooth random fields, solids as signed distances in mm, a head and a trunk.

Points are (3, N) float32 arrays of RAS coordinates in mm. A solid is a function of points that is negative inside, positive
outside and close to the distance from the surface near it; so "two millimetres below the surface" is a comparison.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates

from medseg_se.data.phantom_ages import Signs

Array = npt.NDArray[np.float32]
FINER = 2  # points along each axis of a voxel; their mean and majority make its intensity and label


@dataclass(frozen=True)
class Grid:
    """A voxel grid in RAS order whose axes may be turned a little against the world's.

    Attributes:
        shape: Voxels along (i, j, k).
        spacing: Distance between voxels in mm.
        rotation: (3, 3) directions of the axes in the world.
        centre: World coordinates of the grid's centre in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rotation: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) matrix from voxel indices to RAS mm."""
        result = np.eye(4)
        result[:3, :3] = self.rotation * np.array(self.spacing)
        result[:3, 3] = self.centre - result[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return result

    def offsets(self, finer: int = FINER) -> list[npt.NDArray[np.float64]]:
        """Return, for each axis, the distance in mm of its points from the centre."""
        pairs = zip(self.shape, self.spacing, strict=True)
        return [(np.arange(n * finer, dtype=np.float64) - (n * finer - 1) / 2) * (step / finer) for n, step in pairs]

    def points(self, place: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]) -> Array:
        """Return `origin` + `place` @ (world point - centre) for every fine point, (3, N)."""
        turned = place @ self.rotation
        i, j, k = self.offsets()
        rows = [
            (row[0] * i + start)[:, None, None] + (row[1] * j)[None, :, None] + (row[2] * k)[None, None, :]
            for row, start in zip(turned, origin, strict=True)
        ]
        return np.stack(rows).astype(np.float32).reshape(3, -1)

    def waves(self, coefficients: npt.NDArray[np.float64], finer: int = FINER) -> Array:
        """Return a sum of cosines over the field of view, with `coefficients` (A, B, C) along the axes; (I, J, K)."""
        field = coefficients.astype(np.float32)
        for offsets, step, length in zip(self.offsets(finer), self.spacing, self.shape, strict=True):
            phase = offsets / (step * length) + 0.5
            basis = np.cos(np.pi * np.outer(np.arange(field.shape[0]), phase)).astype(np.float32)
            field = np.tensordot(field, basis, axes=(0, 0))  # the next axis comes to the front
        return field

    def blocks(self, fine: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Group the fine points (N,) by voxel: (FINER**3, I, J, K)."""
        i, j, k = self.shape
        parts = fine.reshape(i, FINER, j, FINER, k, FINER).transpose(1, 3, 5, 0, 2, 4)
        grouped: npt.NDArray[Any] = parts.reshape(FINER**3, i, j, k)
        return grouped


def majority(parts: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the most frequent value along the first axis; the first one met wins a tie."""
    votes = np.stack([(parts == part).sum(axis=0, dtype=np.uint8) for part in parts])
    winner: npt.NDArray[np.uint8] = np.take_along_axis(parts, votes.argmax(axis=0)[None], axis=0)[0]
    return winner


def rotation(degrees: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the (3, 3) rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=np.float64))):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
        result = turn @ result
    return result


# -------------------------------------------------------------------------------------------------------------------- solids


def ellipsoid(points: Array, centre: npt.ArrayLike, radii: npt.ArrayLike, tilt: Sequence[float] = (0, 0, 0)) -> Array:
    """Return the signed distance (to first order) from an ellipsoid turned by `tilt` degrees about x, y, z."""
    local = points - np.array(centre, dtype=np.float32)[:, None]
    if any(tilt):
        local = rotation(tilt).T.astype(np.float32) @ local
    scaled = local / np.array(radii, dtype=np.float32)[:, None]
    radius = np.sqrt(np.einsum("in,in->n", scaled, scaled))
    scaled /= np.array(radii, dtype=np.float32)[:, None]
    slope = np.sqrt(np.einsum("in,in->n", scaled, scaled))
    result: Array = radius * (radius - 1) / np.maximum(slope, 1e-6)
    return result


def tube(points: Array, path: Sequence[Sequence[float]], grow: float = 1.0, pieces: int = 12) -> Array:
    """Return the signed distance from a tube along a smooth curve.

    Args:
        points: (3, N).
        path: Rows (x, y, z, radius) in mm through which the curve runs.
        grow: Factor on the radii.
        pieces: Straight pieces that stand for the curve.
    """
    knots = np.asarray(path, dtype=np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    curve = CubicSpline(lengths, knots)(np.linspace(0, lengths[-1], pieces + 1)).astype(np.float32)
    reach = curve[:, 3].max() * grow + 2
    low, high = curve[:, :3].min(axis=0) - reach, curve[:, :3].max(axis=0) + reach
    near = np.flatnonzero(((points > low[:, None]) & (points < high[:, None])).all(axis=0))
    local, nearest = points[:, near], np.full(near.size, np.inf, dtype=np.float32)
    for start, stop in itertools.pairwise(curve):
        along, away = (stop - start)[:3], local - start[:3, None]
        share = np.clip((along @ away) / max(float(along @ along), 1e-6), 0, 1)
        away -= along[:, None] * share
        distance = np.sqrt(np.einsum("in,in->n", away, away)) - grow * (start[3] + (stop[3] - start[3]) * share)
        np.minimum(nearest, distance, out=nearest)
    result = np.full(points.shape[1], reach, dtype=np.float32)
    result[near] = nearest
    return result


def blend(a: Array, b: Array, width: float) -> Array:
    """Return the union of two solids with their seam rounded over `width` mm."""
    near = np.clip(width - np.abs(a - b), 0, None) / width
    result: Array = np.minimum(a, b) - near * near * (width / 4)
    return result


class Noise:
    """Smooth noise with zero mean, unit variance and waves of about one length; it repeats after eight of them."""

    def __init__(self, rng: np.random.Generator, wavelength: float) -> None:
        """Draw the noise for waves of `wavelength` mm."""
        self.step = wavelength / 8
        white = rng.standard_normal((64, 64, 64), dtype=np.float32)
        sigma = 8 / 5.7  # where the difference of these two Gaussians passes most
        narrow, wide = (gaussian_filter(white, width, mode="wrap", truncate=3) for width in (sigma, 1.6 * sigma))
        self.lattice = (narrow - wide) / (narrow - wide).std()

    def __call__(self, points: Array) -> Array:
        """Return the noise at `points`."""
        result: Array = map_coordinates(self.lattice, points * np.float32(1 / self.step), order=1, mode="grid-wrap")
        return result


# --------------------------------------------------------------------------------------------------------------------- brain

# Brightness in a T1-weighted scan, white matter 110; what lies outside of the brain overlaps with what lies inside.
AIR, BONE, CSF, EYE, DURA, MUSCLE, MARROW, FAT = 3.0, 22.0, 30.0, 32.0, 48.0, 64.0, 84.0, 128.0
BRAIN_BRIGHTNESS = {2: 110, 3: 76, 4: 30, 7: 106, 8: 73, 10: 91, 11: 80, 12: 84, 14: 30, 16: 101, 17: 75, 18: 73}
BRAIN_RIGHT = {2: 41, 3: 42, 4: 43, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 17: 53, 18: 54}

# Rows (x, y, z, radius) in mm, drawn for the side with positive x
VENTRICLE = [
    (8, 31, 5, 5),
    (9, 22, 13, 6.5),
    (11, 2, 22, 6),
    (15, -20, 24, 6.5),
    (24, -40, 15, 8),
    (27, -56, 9, 5),
    (24, -68, 7, 3),
]
TEMPORAL_HORN = [(25, -40, 13, 7), (32, -38, 2, 4.5), (35, -28, -9, 3.6), (34, -14, -16, 3.2)]
CAUDATE = [(13.5, 22, 0, 6.8), (16.5, 15, 9, 7.4), (18, 4, 17, 6), (21, -10, 22, 5.4), (25, -24, 22, 4.6)]
HIPPOCAMPUS = [(21, -14, -21, 6.8), (27, -20, -18, 7.4), (30, -29, -11, 6.5), (28, -37, -3, 5.7), (21, -42, 5, 4.4)]
BRAIN_STEM = [(0, -26, -4, 11), (0, -29, -16, 13), (0, -27, -30, 15.5), (0, -33, -46, 10.5), (0, -40, -60, 8.5)]


def paint_brain(points: Array, rng: np.random.Generator, signs: Signs) -> tuple[npt.NDArray[np.uint8], Array]:
    """Return FreeSurfer's label and the brightness of every point of a head, (N,) each.

    Args:
        points: (3, N) RAS mm in the head's own frame: origin at the anterior commissure.
        rng: Draws the folds, the sizes of structures and the tissues' brightness.
        signs: What its age changes; the same numbers are drawn whatever it is.
    """
    mirrored = np.concatenate([np.abs(points[:1]), points[1:]])
    hemisphere = _hemisphere(mirrored)
    temporal = ellipsoid(mirrored, (44, -17, -19), (20, 46, 20), (8, 0, 0))
    cerebellum = blend(
        ellipsoid(mirrored, (25, -66, -37), (30, 29, 24)), ellipsoid(mirrored, (0, -66, -36), (12, 27, 23)), width=8
    )
    dura = blend(blend(hemisphere, temporal, 24), cerebellum, 24) - 3
    brightness = _head(mirrored, dura, rng)
    in_stem = (np.hypot(mirrored[0], mirrored[1] + 32) < 18) & (np.abs(mirrored[2] + 30) < 45)
    inside = np.flatnonzero((dura < 1) | in_stem)
    solids = hemisphere[inside], temporal[inside], cerebellum[inside]
    found = _brain(points[:, inside], mirrored[:, inside], *solids, rng, signs)

    shades = np.zeros(256, dtype=np.float32)
    shades[list(BRAIN_BRIGHTNESS)] = list(BRAIN_BRIGHTNESS.values())
    shades[3] = shades[2] - signs.contrast * (shades[2] - shades[3])
    shades *= np.exp(rng.normal(0, 0.02, 256))
    brightness[inside] = np.where(found > 0, shades[found], brightness[inside])
    labels = np.zeros(points.shape[1], dtype=np.uint8)
    labels[inside] = _sided(found, points[0, inside] > 0, BRAIN_RIGHT)
    return labels, brightness


def _hemisphere(p: Array) -> Array:
    """Frontal, parietal and occipital lobe, above a floor that slopes over the cerebellum."""
    dome = blend(ellipsoid(p, (0, -15, 19), (66, 86, 58)), ellipsoid(p, (30, -16, 20), (35, 82, 50)), width=10)
    floor = -(p[2] + 17 + 0.04 * (p[1] + 15))
    return -blend(-dome, -floor, width=16)


def _head(p: Array, dura: Array, rng: np.random.Generator) -> Array:
    """Brightness of what surrounds the brain: scalp, skull with marrow, muscle, eyes and sinuses."""
    face = ellipsoid(p, (0, 36, -42), (56, 44, 62))
    neck = ellipsoid(p, (0, -42, -95), (58, 58, 80))
    skin = blend(blend(dura - 14, face, width=25), neck, width=30)
    brightness = np.full(p.shape[1], AIR, dtype=np.float32)
    head = np.flatnonzero(skin < 0)
    p, dura, skin = p[:, head], dura[head], skin[head]
    rough = Noise(rng, 16)(p)
    eye = ellipsoid(p, (32, 62, -26), (12.5, 13, 12.5))
    sinus = np.minimum(ellipsoid(p, (24, 58, -54), (12, 12, 12)), ellipsoid(p, (0, 50, -46), (9, 26, 18)))
    bone = (dura < 8.5 + 0.8 * rough) & (dura > 1.5)
    value = MUSCLE + 7 * rough
    for where, brighter in (
        ((rough > 1.6) | (skin > -5 + rough) | (eye < 6), FAT),
        (skin > -1.6, MUSCLE),
        (eye < 0, EYE),
        (sinus < 2 * rough, AIR),
        (bone, BONE),
        (bone & (np.abs(dura - 5.2) < 1.3 + 0.4 * rough), MARROW),
        (dura < 1.5, DURA),
        (dura < 0.5, CSF),
    ):
        value[where] = brighter
    brightness[head] = value
    return brightness


def _brain(
    points: Array,
    mirrored: Array,
    hemisphere: Array,
    temporal: Array,
    cerebellum: Array,
    rng: np.random.Generator,
    signs: Signs,
) -> npt.NDArray[np.uint8]:
    """Label the points inside of the dura with the values of the left side."""
    found = np.zeros(points.shape[1], dtype=np.uint8)
    trunk = ellipsoid(mirrored, (31, -18, -10), (14, 26, 20))  # white matter that joins the temporal lobe to the rest
    core = ellipsoid(mirrored, (0, -8, 9), (32, 40, 25))  # where the two hemispheres are one
    cerebrum = blend(np.minimum(hemisphere, temporal), trunk, width=6)
    medial = mirrored[0] - 0.9 + np.clip(-4 * core, 0, 60)
    _fold_cortex(found, points, -cerebrum, medial, rng, signs.cortex)
    found[(core < 0) & (cerebrum < 0)] = 2
    _fold_cerebellum(found, mirrored, np.maximum(cerebellum, 1.5 - cerebrum))
    for side in (points[0] < 0, points[0] >= 0):
        at = np.flatnonzero(side & (mirrored[0] < 55) & (core < 40))
        found[at] = _deep_structures(found[at], mirrored[:, at], rng, signs.ventricles)
    middle = np.flatnonzero(mirrored[0] < 24)
    p = mirrored[:, middle]
    found[middle[tube(p, BRAIN_STEM, _jitter(rng, 0.04)) < 0]] = 16
    found[middle[ellipsoid(p, (0, -14, 1), (4.2 * signs.ventricles, 16, 13)) < 0]] = 14
    found[middle[ellipsoid(p, (0, -45, -34), (8, 5, 11)) < 0]] = 0  # the fourth ventricle, not a structure here
    return found


def _fold_cortex(
    found: npt.NDArray[np.uint8], points: Array, depth: Array, medial: Array, rng: np.random.Generator, thickness: float
) -> None:
    """Label cortex and white matter: a ribbon that follows sulci, which run from the surface towards the centre."""
    below = np.minimum(depth, medial)
    found[below >= 17] = 2
    shell = np.flatnonzero((below > 0) & (below < 17))
    centre = np.stack([np.where(points[0, shell] < 0, -18, 18), np.full(shell.size, -16), np.full(shell.size, 12)])
    ray = points[:, shell] - centre.astype(np.float32)
    ray *= 56 / np.sqrt(np.einsum("in,in->n", ray, ray))
    valley = np.abs(Noise(rng, 20)(ray + centre.astype(np.float32)))
    sulcus, bank = np.exp(-((valley / 0.24) ** 2)), np.exp(-((valley / (1.1 * thickness)) ** 2))
    depth, medial = depth[shell], medial[shell]
    pial = (depth > 9 * sulcus) & (medial > 2 * sulcus)
    white = (depth > 3 * thickness + 13 * bank) & (medial > 3 * thickness + 4 * bank)
    found[shell] = np.where(pial, np.where(white, 2, 3), 0)


def _fold_cerebellum(found: npt.NDArray[np.uint8], mirrored: Array, cerebellum: Array) -> None:
    """Label the cerebellum: folia that fan out from its white matter, the tree of life of a sagittal section."""
    at = np.flatnonzero((cerebellum < 0) & (found == 0))
    depth, p = -cerebellum[at], mirrored[:, at]
    angle = np.arctan2(p[2] + 38, -p[1] - 50) + 0.12 * np.sin(0.15 * p[0])
    fan = np.abs(np.sin(7 * angle))
    label = np.where(depth > 4 + 6 * (1 - fan), 7, 8)
    found[at] = np.where(depth > 5 * np.exp(-((fan / 0.12) ** 2)), label, 0)


def _deep_structures(
    found: npt.NDArray[np.uint8], p: Array, rng: np.random.Generator, ventricles: float
) -> npt.NDArray[np.uint8]:
    """Label one side's nuclei, ventricle, hippocampus and amygdala, each moved and sized a little differently."""
    moves = rng.normal(0, 0.6, (6, 3, 1)).clip(-1.2, 1.2).astype(np.float32)
    sizes = [_jitter(rng, spread) for spread in (0.05, 0.05, 0.05, 0.1, 0.05, 0.05)]
    sizes[3] *= ventricles
    for label, solid in (
        (10, ellipsoid(p + moves[0], (11.5, -18, 8), np.array((10, 16.5, 11)) * sizes[0], (12, 0, 22))),
        (12, ellipsoid(p + moves[1], (27.5, 3, 2), np.array((7, 18.5, 12.5)) * sizes[1], (0, 10, 12))),
        (11, tube(p + moves[2], CAUDATE, sizes[2])),
        (4, np.minimum(tube(p + moves[3], VENTRICLE, sizes[3]), tube(p + moves[3], TEMPORAL_HORN, sizes[3]))),
        (17, tube(p + moves[4], HIPPOCAMPUS, sizes[4])),
        (18, ellipsoid(p + moves[5], (22, -1, -20), np.array((9.5, 9.5, 9)) * sizes[5])),
    ):
        found[solid < 0] = label
    return found


def _jitter(rng: np.random.Generator, spread: float) -> float:
    """Draw a factor about 1, at most two standard deviations away."""
    return float(np.exp(spread * np.clip(rng.normal(), -2, 2)))


def _sided(found: npt.NDArray[np.uint8], right: npt.NDArray[np.bool_], partner: dict[int, int]) -> npt.NDArray[np.uint8]:
    """Give the points on the right the values of the right side."""
    table = np.arange(256, dtype=np.uint8)
    table[list(partner)] = list(partner.values())
    return np.where(right, table[found], found)


# --------------------------------------------------------------------------------------------------------------------- trunk

# HU after contrast agent, in the portal phase: bowel, vein and organ overlap
FAT_HU, MUSCLE_HU, BLOOD_HU, GAS_HU, CONTENT_HU = -100.0, 58.0, 150.0, -920.0, 22.0
TORSO_HU = {1: 118, 2: 150, 3: 150, 4: 8, 5: 106, 6: 62, 10: -830, 21: 6, 26: 220, 51: 105, 52: 156, 77: 240, 88: 60}
TORSO_RIGHT = {10: 12, 77: 78, 88: 89}

AORTA = [
    *[(2, 14, 92, 14), (8, 10, 128, 14), (0, -6, 150, 13), (-13, -22, 140, 12.5), (-19, -25, 105, 12)],
    *[(-17, -22, 40, 11.5), (-9, -20, -40, 11), (-4, -17, -118, 10)],
]
VENA_CAVA = [(20, 12, 90, 12), (24, 0, 40, 12), (18, -18, -20, 12), (12, -18, -80, 11), (10, -16, -118, 11)]
STOMACH = [(-44, -8, 34, 24), (-60, 8, 12, 30), (-56, 32, -20, 25), (-22, 42, -42, 20), (12, 34, -34, 15)]
PSOAS = [(30, -40, -15, 7), (40, -38, -65, 16), (52, -24, -120, 19), (68, 12, -178, 16), (74, 18, -215, 13)]
PUBIS = [(88, 16, -205, 12), (56, 44, -222, 10), (8, 56, -222, 11)]


def paint_torso(points: Array, rng: np.random.Generator, signs: Signs) -> tuple[npt.NDArray[np.uint8], Array]:
    """Return the label and the HU of every point of a trunk from the hips to the apex of the lungs, (N,) each.

    Args:
        points: (3, N) RAS mm in the trunk's own frame: origin in the middle of the body, at the height of the stomach.
        rng: Draws fat, the sizes of organs and the texture of tissues.
        signs: Of a brain's age; none of them is in a trunk.
    """
    waist = 1 - 0.07 * np.exp(-(((points[2] + 50) / 60) ** 2)) - 0.2 * np.clip((points[2] - 130) / 110, 0, 1) ** 2
    body = ellipsoid(np.stack([points[0] / waist, points[1] / waist, points[2]]), (0, 0, 0), (164, 108, 1500))
    hu = np.full(points.shape[1], -1000, dtype=np.float32)
    labels = np.zeros(points.shape[1], dtype=np.uint8)
    inside = np.flatnonzero(body < 0)
    p = points[:, inside]
    fat = float(rng.uniform(12, 22))
    wall = body[inside] + fat  # 0 where the muscles begin
    fine = Noise(rng, 18)(p)
    value = _walls(p, wall, fine, Noise(rng, 60)(p))
    found, depth = _organs(p, wall + 15, rng)
    shades = np.zeros(256, dtype=np.float32)
    shades[list(TORSO_HU)] = list(TORSO_HU.values())
    shades += rng.normal(0, 4, 256)
    value = np.where(found > 0, _organ_texture(shades[found] + 6 * fine, found, depth, p, fine), value)
    hu[inside] = value
    labels[inside] = _sided(found, p[0] > 0, TORSO_RIGHT)
    return labels, hu


def _walls(p: Array, wall: Array, fine: Array, coarse: Array) -> Array:
    """HU of what is no organ: skin, fat, muscle, ribs, bowel, vein and windpipe."""
    value = np.where((wall < 0) & (wall > -15), MUSCLE_HU, FAT_HU) + 8 * fine
    inner = wall < -15
    ribs = (np.abs(wall + 10) < 4.5) & (np.sin((p[2] + 0.45 * p[1]) * (2 * np.pi / 27)) > 0.25) & (p[2] > -35)
    value[ribs] = 330
    bowel = np.where(inner & (p[2] < -15) & (p[1] > -30), coarse, -1)
    value[bowel > -0.1] = 78
    value[bowel > 0.25] = CONTENT_HU
    value[(bowel > 0.9) & (fine > 0)] = GAS_HU
    value[(np.abs(p[0]) < 60) & (p[1] < -58) & (wall < -1)] = MUSCLE_HU  # along the back
    value[tube(p, VENA_CAVA, pieces=20) < 0] = BLOOD_HU
    value[ellipsoid(p, (0, -6, 235), (10, 9, 85)) < 0] = GAS_HU
    return value


def _organs(p: Array, cavity: Array, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], Array]:
    """Label the organs with the values of the left side, and tell how deep in its organ each point lies, in mm.

    What comes later in the table displaces what came before.
    """
    mirrored = np.concatenate([np.abs(p[:1]), p[1:]])
    moves = rng.normal(0, 2, (8, 3, 1)).clip(-4, 4).astype(np.float32)
    size = [_jitter(rng, 0.06) for _ in range(8)]
    liver = np.maximum(_liver(p + moves[0], size[0]), cavity)
    heart = ellipsoid(p + moves[1], (-20, 22, 76), np.array((54, 42, 46)) * size[1], (0, 20, -20))
    heart = np.maximum(heart, 3 - liver)
    dome = ellipsoid(p, (-75, 0, -30), (85, 90, 78))  # the left half of the diaphragm
    lung = np.maximum(ellipsoid(mirrored, (74, -10, 85), (58, 84, 135)), cavity)
    for neighbour in (liver, heart, dome, mirrored[0] - 14):
        lung = np.maximum(lung, 4 - neighbour)
    found, depth = np.zeros(p.shape[1], dtype=np.uint8), np.zeros(p.shape[1], dtype=np.float32)
    for label, solid in (
        (10, lung),
        (88, tube(mirrored, PSOAS, size[2])),
        (26, _spine(p)),
        (77, _hip(mirrored)),
        (5, liver),
        (1, np.maximum(ellipsoid(p + moves[3], (-96, -34, 2), np.array((34, 50, 44)) * size[3]), cavity)),
        (6, tube(p + moves[4], STOMACH, size[4], pieces=16)),
        (2, _kidney(p + moves[5], (58, -42, -50), size[5])),
        (3, _kidney(p + moves[6], (-58, -42, -36), size[6])),
        (4, ellipsoid(p + moves[0], (46, 48, -36), (18, 18, 30), (20, 0, 0))),
        (21, ellipsoid(p, (0, 28, -188), np.array((40, 33, 31)) * size[7])),
        (51, heart),
        (52, tube(p, AORTA, pieces=28)),
    ):
        within = solid < 0
        found[within], depth[within] = label, -solid[within]
    return found, depth


def _liver(p: Array, size: float) -> Array:
    """A large right and a flat left lobe, under the dome of the diaphragm; the lower face rises to the left."""
    right = ellipsoid(p, (72, 0, 2), np.array((72, 80, 70)) * size, (0, 10, 0))
    left = ellipsoid(p, (2, 34, 26), np.array((60, 42, 34)) * size, (0, 14, 0))
    below = -(p[2] + 66 - 0.55 * (105 - p[0]) + 0.12 * (p[1] - 10))
    return -blend(-blend(right, left, width=24), -below, width=14)


def _kidney(p: Array, centre: Sequence[float], size: float) -> Array:
    """A bean: an ellipsoid with a hollow that faces the spine."""
    x, y, z = centre
    bean = ellipsoid(p, centre, np.array((29, 25, 54)) * size, (12, np.sign(x) * 8, 0))
    hilum = ellipsoid(p, (x - np.sign(x) * 27, y + 8, z), (16, 14, 20))
    return np.maximum(bean, -hilum)


def _spine(p: Array) -> Array:
    """Vertebrae and discs along a curve, arch and spinous process around the canal, and the sacrum."""
    bent = p[1] + 52 + 7 * np.sin(p[2] / 65)
    column = np.hypot(p[0], bent) - 20 - 1.2 * np.cos(p[2] * (4 * np.pi / 34))
    arch = np.hypot(p[0] * 0.8, bent + 27) - 14
    process = np.maximum(np.abs(p[0]) - 4.5, np.abs(bent + 36) - 14)
    gaps = 7 - 17 * np.abs(np.sin(p[2] * (np.pi / 34)))  # between the processes of neighbours
    bone = np.minimum(column, np.maximum(np.minimum(arch, process), gaps))
    sacrum = ellipsoid(p, (0, -60, -165), (50, 17, 46), (-18, 0, 0))
    canal = np.hypot(p[0], bent + 27) - 8
    result: Array = np.maximum(np.minimum(np.where(p[2] > -130, bone, 50), sacrum), -canal)
    return result


def _hip(mirrored: Array) -> Array:
    """Hip bone: the wing of the ilium, the socket about the femur's head and the pubis."""
    shell = np.abs(ellipsoid(mirrored, (34, 4, -142), (84, 62, 78))) - 6.5
    x, y, z = mirrored
    cut = np.maximum(np.maximum(44 - x, y - 34), np.maximum(-205 - z, z + 100))
    wing = np.maximum(shell, cut)
    socket = np.maximum(ellipsoid(mirrored, (82, 6, -202), (32, 32, 30)), -ellipsoid(mirrored, (94, 4, -210), (25, 25, 25)))
    result: Array = np.minimum(np.minimum(wing, socket), tube(mirrored, PUBIS))
    return result


def _organ_texture(value: Array, found: npt.NDArray[np.uint8], depth: Array, p: Array, fine: Array) -> Array:
    """Add what makes an organ more than one tone: cortex and discs, chambers, vessels, content and gas."""
    bone = (found == 26) | (found == 77)
    disc = (found == 26) & (np.abs(np.sin(p[2] * (np.pi / 34))) < 0.3) & (p[2] > -130)
    stomach, kidney = found == 6, (found == 2) | (found == 3)
    for where, hu in (
        (bone & (depth < 3.5), 480),
        (disc, 85),
        ((found == 10) & (fine > 1.25), -250),
        ((found == 51) & (depth > 13) & (np.abs(p[0] + 0.6 * p[1] + 6) > 5), BLOOD_HU),
        (kidney & (depth > 12), 118),
        (stomach & (depth > 5), CONTENT_HU),
        (stomach & (depth > 5) & (p[1] > 30), GAS_HU),
    ):
        value[where] = hu
    return value

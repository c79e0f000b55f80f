"""x."""

from __future__ import annotations

from dataclasses import dataclass
import numpy as np
from medseg_se.data.phantom_shapes import *
from medseg_se.volumes import Volume, reorient
from medseg_se.data.phantom_shapes import Array

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
# T1-weighted brightness with white matter at 110
TISSUE = {"air": 3, "skull": 22, "marrow": 82, "fat": 128, "muscle": 62, "eye": 30, "csf": 30, "dura": 48}
BRIGHT = {2: 110, 3: 76, 4: 30, 7: 106, 8: 73, 10: 90, 11: 80, 12: 84, 14: 30, 16: 101, 17: 75, 18: 72}
RIGHT_OF = {2: 41, 3: 42, 4: 43, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 17: 53, 18: 54}

LATERAL_VENTRICLE = [(8, 31, 5, 5), (9, 22, 13, 6.5), (11, 2, 22, 6), (15, -20, 24, 6.5), (24, -40, 15, 8), (27, -56, 9, 5), (24, -68, 7, 3)]
TEMPORAL_HORN = [(25, -40, 13, 7), (32, -38, 2, 4.5), (35, -28, -9, 3.6), (34, -14, -16, 3.2)]
CAUDATE = [(13.5, 22, 0, 6), (16.5, 15, 9, 6.8), (18, 4, 17, 5.2), (21, -10, 22, 4.6), (25, -24, 22, 4)]
HIPPOCAMPUS = [(21, -14, -21, 6.5), (27, -20, -18, 7), (30, -29, -11, 6), (28, -37, -3, 5.2), (21, -42, 5, 4)]
BRAIN_STEM = [(0, -26, -6, 11), (0, -29, -16, 13), (0, -27, -30, 15.5), (0, -33, -46, 10.5), (0, -40, -64, 8), (0, -44, -90, 7)]


def paint_brain(q: Array, rng) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(q.shape[1], np.uint8)
    bright = np.full(q.shape[1], TISSUE["air"], np.float32)
    folded = q.copy()
    folded[0] = np.abs(q[0])
    size = rng.normal(0, 1, 8)
    # head
    skull_r = 1 + 0.01 * size[0]
    vault = ellipsoid(folded, (0, -15, 10), (70 * skull_r, 91, 72))
    fossa = ellipsoid(folded, (0, -48, -36), (55, 46, 34))
    dura = blend(vault, fossa, 20)
    face = ellipsoid(folded, (0, 36, -42), (56, 44, 62))
    neck = ellipsoid(folded, (0, -42, -95), (58, 58, 80))
    scalp = blend(blend(dura - 14, face, 25), neck, 30)
    head = np.flatnonzero(scalp < 0)
    points, dura, scalp = folded[:, head], dura[head], scalp[head]
    value = np.full(head.size, TISSUE["muscle"], np.float32)
    grain = Noise(rng, 14)
    rough = grain(points)
    value += 9 * rough
    value[rough > 1.1] = TISSUE["fat"]
    value[scalp > -5.0 + rough] = TISSUE["fat"]
    value[scalp > -1.6] = TISSUE["muscle"]
    eye = ellipsoid(points, (32, 62, -26), (12.5, 13, 12.5))
    value[eye < 6] = TISSUE["fat"]
    value[eye < 0] = TISSUE["eye"]
    sinus = np.minimum(ellipsoid(points, (24, 58, -54), (12, 12, 12)), ellipsoid(points, (0, 50, -46), (9, 26, 18)))
    value[sinus < rough * 2] = TISSUE["air"]
    bone = (dura < 8.5 + rough) & (dura > 1.5)
    value[bone] = TISSUE["skull"]
    value[bone & (np.abs(dura - 5.2) < 1.3 + 0.4 * rough)] = TISSUE["marrow"]
    value[dura < 1.5] = TISSUE["dura"]
    value[dura < 0.6] = TISSUE["csf"]
    inside = np.flatnonzero(dura < 16)
    found, shade = paint_inside(q[:, head[inside]], points[:, inside], dura[inside], rng)
    got = found > 0
    value[inside[got]] = shade[got]
    labels[head[inside]] = found
    bright[head] = value
    return labels, bright


def paint_inside(q, p, dura, rng):
    left = q[0] < 0
    found = np.zeros(q.shape[1], np.uint8)
    outer = blend(ellipsoid(p, (0, -15, 19), (66, 86, 58)), ellipsoid(p, (30, -16, 20), (35, 82, 50)), 10)
    base = -(p[2] + 13 + 0.12 * (p[1] + 15) - 0.0016 * (p[1] + 20) ** 2)  # under the frontal lobe and over the cerebellum
    outer = -blend(-outer, -base, 16)
    temporal = ellipsoid(p, (44, -17, -19), (20, 46, 20), (8, 0, 0))
    stem = ellipsoid(p, (31, -18, -10), (14, 26, 20))
    cerebrum = blend(np.minimum(outer, temporal + 0.0), stem, 6)
    core = ellipsoid(p, (0, -8, 9), (32, 40, 25))
    medial = p[0] - 0.9 + np.clip(-4 * core, 0, 60)
    depth = np.minimum(-cerebrum, medial)
    shell = np.flatnonzero((depth > 0) & (depth < 16) & (dura < 0))
    # folds: noise that runs down from the surface towards the centre of the hemisphere
    away = q[:, shell] - np.where(left[shell], -18, 18)[None] * np.array([[1], [0], [0]], np.float32) - np.array([[0], [-16], [12]], np.float32)
    away *= np.float32(56) / np.sqrt(np.einsum("in,in->n", away, away))
    away[0] += np.where(left[shell], -18, 18)
    folds = Noise(rng, 25)(away)
    d = depth[shell]
    pial = d > 8 * np.exp(-((folds / 0.22) ** 2))
    white = d > 3.3 + 7.0 * np.exp(-((folds / 0.85) ** 2))
    inner = np.flatnonzero(depth >= 16)
    found[inner] = 2
    found[shell[pial]] = 3
    found[shell[pial & white]] = 2
    deep = np.flatnonzero((core < 2) & (depth > 0) | (stem < 0))
    found[deep[(core[deep] < 0)]] = 2
    # cerebellum
    lobes = blend(ellipsoid(p, (24, -66, -37), (29, 28, 21), (0, 0, 0)), ellipsoid(p, (0, -66, -36), (12, 27, 22)), 8)
    lobes = np.maximum(lobes, 1.5 - np.maximum(cerebrum, -dura * 0 - 9))
    cb = np.flatnonzero((lobes < 0) & (found == 0))
    cd = -lobes[cb]
    hub = np.array([[0], [-45], [-38]], np.float32)
    away = p[:, cb] - np.array([[15], [-52], [-38]], np.float32)
    angle = np.arctan2(away[2], -away[1]) + 0.12 * np.sin(p[0, cb] * 0.15)
    folia = np.abs(np.sin(angle * 7))
    sulcus = cd < 5 * np.exp(-((folia / 0.12) ** 2))
    wm = cd > 4 + 6 * (1 - folia)
    found[cb[~sulcus]] = 8
    found[cb[wm]] = 7
    # deep
    for side in (left, ~left):
        at = np.flatnonzero(side & (p[0] < 60) & (core < 40) & (dura < 0))
        s = p[:, at]
        def put(label, sd):
            found[at[sd < 0]] = label
        def jig(spread=0.05):
            return float(np.exp(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread)))
        move = lambda: rng.normal(0, 0.6, 3).astype(np.float32)[:, None]
        put(10, ellipsoid(s + move(), (11, -18, 8), np.array((9, 15.5, 9.5)) * jig(), (12, 0, -20)))
        put(12, ellipsoid(s + move(), (27, 3, 2), np.array((6.2, 18, 11.5)) * jig(), (0, 10, -12)))
        put(11, tube(s + move(), CAUDATE, jig()))
        put(4, np.minimum(tube(s + move(), LATERAL_VENTRICLE, g := jig(0.12)), tube(s, TEMPORAL_HORN, g)))
        put(17, tube(s + move(), HIPPOCAMPUS, jig()))
        put(18, ellipsoid(s + move(), (22, -1, -20), np.array((8.5, 8.5, 8)) * jig()))
    mid = np.flatnonzero((p[0] < 24) & (dura < 20))
    s = p[:, mid]
    bs = tube(s, BRAIN_STEM)
    found[mid[bs < 0]] = 16
    third = ellipsoid(s, (0, -14, 1), (3.6, 15, 12))
    found[mid[third < 0]] = 14
    fourth = ellipsoid(s, (0, -44, -34), (8, 5, 11))
    found[mid[fourth < 0]] = 0
    shade = np.zeros(256, np.float32)
    for k, v in BRIGHT.items():
        shade[k] = v
    value = shade[found]
    right = ~left
    table = np.arange(256, dtype=np.uint8)
    for a, b in RIGHT_OF.items():
        table[a] = b
    found[right] = table[found[right]]
    return found, value


def make_subject(kind, subject, seed=0, resolution=2.4):
    shape_rng, anatomy_rng, noise_rng = (np.random.default_rng(s) for s in np.random.SeedSequence((seed, 0, subject)).spawn(3))
    fov = np.array((164, 198, 172.0))
    centre = np.array((0, -15, 6.0))
    rng = shape_rng
    aniso = np.array([(1, 1, 1), (0.92, 0.92, 1.18), (1.18, 0.92, 0.92), (1, 1.1, 0.9)][rng.integers(4)])
    spacing = resolution * aniso
    n = np.round(fov / spacing).astype(int)
    oblique = rotation(rng.uniform(-5.5, 5.5, 3) * (rng.random() < 0.5))
    grid = Grid(tuple(map(int, n)), tuple(map(float, spacing)), oblique, centre)
    rng = anatomy_rng
    pose = rotation(rng.uniform(-5, 5, 3)) @ np.diag(1 / np.exp(rng.normal(0, 0.03, 3).clip(-0.06, 0.06)))
    q = grid.points(pose, centre + rng.normal(0, 2, 3))
    decay = np.sqrt(sum(np.meshgrid(*[np.arange(6.0) ** 2] * 3)))
    decay = np.where(decay > 0, 1 / (1 + decay), 0)
    for axis in range(3):
        c = rng.normal(0, 1, (6, 6, 6)) * decay
        w = grid.waves(c)
        q[axis] += (w * (2.2 / w.std())).reshape(-1)
    labels, bright = paint_brain(q, rng)
    label = majority(grid.blocks(labels))
    image = grid.blocks(bright).mean(axis=0)
    rng = noise_rng
    b = grid.waves(rng.normal(0, 1, (3, 3, 3)) , 1)
    b = b / np.abs(b).max() * 0.15
    image *= np.exp(b)
    sigma = 3.5
    image = np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape)).astype(np.float32)
    return Volume(image[None], grid.affine), Volume(label[None], grid.affine)

"""Label maps that several tests of metrics share: smooth structures, touching each other and the border, and a worse copy."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def blobs(shape, classes, seed=0, smooth=2.0):
    """Return indices 0 … classes - 1 in connected patches that touch each other and the border of the map."""
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    smoothed = np.stack([ndimage.gaussian_filter(channel, smooth) for channel in noise])
    return smoothed.argmax(axis=0).astype(np.int16)


def worse(labels, seed=0, share=0.3):
    """Return a copy that is moved by up to a voxel along every axis, with some voxels far from where they belong."""
    rng = np.random.default_rng(seed)
    moved = np.roll(labels, rng.integers(-1, 2, labels.ndim), tuple(range(labels.ndim)))
    result = np.where(ndimage.gaussian_filter(rng.normal(size=labels.shape), 1.5) > share, moved, labels)
    stray = tuple(rng.integers(0, length, 3) for length in labels.shape)
    result[stray] = labels.max()
    return result.astype(np.int16)

"""N4 bias correction: the slow change of brightness over an MR scan, which coils cause, is estimated and divided out.

The field is known but for a factor, so that the brightness of the whole scan may change too.

Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE Transactions on Medical Imaging 29(6), 2010.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError
from medseg_se.volumes import Volume

SHRINK = 4  # the field is smooth: it is estimated on every fourth voxel along each axis
LEAST = 8  # voxels along an axis that are left after shrinking
HU = -500.0  # MR has no such values; CT of anything that is not masked has, in the air around it


def correct_bias(image: Volume, inside: npt.NDArray[np.bool_] | None = None) -> Volume:
    """Return the MR scan without its bias field, float32, each channel corrected for itself.

    Args:
        image: (C, I, J, K).
        inside: Voxels (I, J, K) by which the field is judged, and which alone are changed; those above Otsu's threshold are
            judged, and all changed, if None.

    Raises:
        DataError: The values are those of CT, or there is nothing to judge by.
    """
    seen = image.array if inside is None else image.array[:, inside]
    if seen.min() <= HU:
        raise DataError(f"It has values down to {float(seen.min()):g}, as CT in HU does; N4 is for MR. Leave `--n4` out.")
    if sum(length > 1 for length in image.shape) < 2:
        raise DataError(f"It has {image.shape} voxels, too few for a bias field. Leave `--n4` out.")
    channels = [_corrected(channel.astype(np.float32), inside, image.spacing) for channel in image.array]
    return replace(image, array=np.stack(channels))


def _corrected(
    channel: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_] | None, spacing: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    import SimpleITK

    full = _to_sitk(channel, spacing)
    if inside is None:
        judged = SimpleITK.OtsuThreshold(full, 0, 1) > 0
    else:
        judged = _to_sitk((inside & (channel > 0)).astype(np.uint8), spacing)
    factors = [max(1, min(SHRINK, length // LEAST)) for length in full.GetSize()]
    small, small_mask = SimpleITK.Shrink(full, factors), SimpleITK.Shrink(judged, factors)
    if not SimpleITK.GetArrayViewFromImage(small_mask).any() or float(channel.max()) <= 0:
        raise DataError("It has no bright voxels by which a bias field could be judged. Leave `--n4` out, or mend its mask.")
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # cases are converted side by side
    try:
        n4.Execute(small, small_mask)
        field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(full)).T.reshape(channel.shape)
    except RuntimeError as error:
        raise DataError(f"N4 fails on it: {str(error).strip().splitlines()[-1]} Leave `--n4` out.") from error
    corrected = channel / np.exp(field)
    result = corrected if inside is None else np.where(inside, corrected, channel)
    return np.ascontiguousarray(result, dtype=np.float32)


def _to_sitk(array: npt.NDArray[Any], spacing: tuple[float, float, float]) -> Any:
    import SimpleITK

    wide = [axis for axis in range(3) if array.shape[axis] > 1] or [0]  # a slice is a picture in two dimensions
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.reshape([array.shape[axis] for axis in wide]).T))
    image.SetSpacing([spacing[axis] for axis in wide])
    return image

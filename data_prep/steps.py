"""Steps that people need on the way from a scanner to a network, as options of every converter, in this order:
reorient, mask, N4 bias correction, resample, crop. Image and label map go through them together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medseg_se.volumes import check_orientation, reorient

from .collection import Scan


@dataclass(frozen=True)
class Steps:
    """What is done to every case; nothing unless asked for.

    Attributes:
        reorient: Where the axes of the result point, for example RAS.
    """

    reorient: str | None = None

    def __post_init__(self) -> None:
        if self.reorient is not None:
            check_orientation(self.reorient)

    def __call__(self, scan: Scan) -> Scan:
        """Return the case after all steps.

        Raises:
            DataError: A step cannot be done on this case.
        """
        if self.reorient is not None:
            image = None if scan.image is None else reorient(scan.image, self.reorient)
            labels = None if scan.labels is None else reorient(scan.labels, self.reorient)
            scan = replace(scan, image=image, labels=labels)
        return scan

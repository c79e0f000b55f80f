"""How a scan is looked at: how far tiles overlap, which mirror images are asked too, and what need not be computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from medseg_se.data.augmentation import MIRRORS
from medseg_se.errors import UsageError, unknown_name
from medseg_se.inference.tiling import check_overlap

Skip = Literal["none", "constant", "air"]
Tiles = Literal["trained", "fitted"]
Quality = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Settings:
    """What is given to every scan of a cohort.

    Attributes:
        overlap: Share of a tile that its neighbour covers too, at least 0 and below 1.
        mirror: Directions along which mirror images are asked too, each alone and all together; the answers are averaged.
            Of a mirror image from left to right, structures of the left and of the right change places.
        skip: What is not computed. "constant": of tiles in which every voxel is the same, as in empty corners, one is asked for
            all of them, which changes nothing. "air": besides, tiles that lie outside of the body, as long as those that are
            asked for a check hold nothing. "none": everything is computed.
        tiles: "trained": as large as the patches of the training. "fitted": larger where that spares computing, see
            `fitted_tile`.
    """

    overlap: float = 0.5
    mirror: tuple[str, ...] = ()
    skip: Skip = "constant"
    tiles: Tiles = "trained"

    def __post_init__(self) -> None:
        check_overlap(self.overlap)
        for name, kind in (("skip", Skip), ("tiles", Tiles)):
            if (given := getattr(self, name)) not in get_args(kind):
                raise UsageError(f"Expected `{name}` to be one of {', '.join(get_args(kind))}, but got {given!r}.")
        for direction in self.mirror:
            if direction not in MIRRORS:
                raise UsageError(f"Expected `mirror` to name directions ({', '.join(MIRRORS)}), but got {direction!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that tells two settings apart."""
        return {**asdict(self), "mirror": list(self.mirror)}

    @classmethod
    def of_quality(
        cls,
        quality: Quality,
        trained: tuple[str, ...] = (),
        *,
        overlap: float | None = None,
        mirror: str | None = None,
        skip: Skip | None = None,
        tiles: Tiles | None = None,
    ) -> Settings:
        """Return the settings of a quality; docs/prediction.md has what each was measured to take and to give.

        Args:
            quality: "fast": tiles overlap by a quarter, are fitted to the scan, and leave the air out. "balanced": tiles
                overlap by half. "best": mirror images are asked besides.
            trained: Directions along which patches were mirrored in training.
            overlap: In place of that of the quality.
            mirror: The same: "none", "trained", or directions separated by commas.
            skip: The same.
            tiles: The same.

        Raises:
            UsageError: There is no such quality, or a setting makes no sense.
        """
        if quality not in get_args(Quality):
            raise unknown_name("quality", quality, get_args(Quality))
        chosen: dict[Quality, dict[str, Any]] = {
            "fast": {"overlap": 0.25, "skip": "air", "tiles": "fitted"},
            "balanced": {},
            "best": {"mirror": trained},
        }
        given: dict[str, Any] = {"overlap": overlap, "mirror": None, "skip": skip, "tiles": tiles}
        if mirror is not None:
            words = {"none": (), "trained": trained}
            given["mirror"] = words[mirror] if mirror in words else tuple(mirror.replace(" ", "").split(","))
        return cls(**{**chosen[quality], **{name: value for name, value in given.items() if value is not None}})

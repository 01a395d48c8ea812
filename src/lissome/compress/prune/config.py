"""What to prune, and by what measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from lissome.core.config import Config

Kind = Literal["channels", "heads", "neurons", "blocks"]
Importance = Literal["gradient", "taylor", "l1", "l2", "activation"]


class PruneConfig(Config):
    """Remove whole channels, attention heads, neurons and blocks.

    ratio: share of the units to remove from every group of `kinds`. keep: group -> how many of its units stay; where it is given, `ratio` is not used
    and all other groups stay whole.
    importance: how a unit is scored (see `importance`). compare: whether every group loses the same share, or the units of all groups of a kind
    compete ("global"), each score divided by the mean of its group.
    round_to: the width that is left is a multiple of this; None for what the kernels of this machine like: 16 with AVX-512, else 8.
    drop_blocks: how many whole blocks to remove, the least important ones.
    through_norms: also cut dimensions over which a layer normalisation averages (the hidden size of a transformer). Its average is then taken over
    fewer numbers, so such a cut is never exact.
    """

    ratio: float = Field(default=0.25, ge=0, lt=1)
    keep: Mapping[str, int] = {}
    kinds: tuple[Kind, ...] = ("channels", "heads", "neurons")
    importance: Importance = "l2"
    compare: Literal["group", "global"] = "group"
    round_to: int | None = Field(default=None, ge=1)
    drop_blocks: int = Field(default=0, ge=0)
    through_norms: bool = False

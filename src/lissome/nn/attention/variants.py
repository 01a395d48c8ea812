"""Patterns of the literature by name: `use(model, "window-64-entropy-8")`. Each is a few lines, writes itself out and draws itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lissome.kernels.attention.selection import TILE
from lissome.nn.attention.chosen import Scorer, pooled_keys, top_blocks, top_share
from lissome.nn.attention.importance import feature_entropy, top_tokens
from lissome.nn.attention.patterns import Pattern, PerHead, multi_scale, per_head, window


def window_entropy() -> Pattern:
    """A window of 64 and the 8 tokens whose keys have the highest entropy, of each key head."""
    return window(64) | top_tokens(8, feature_entropy)


def routed(ratios: Sequence[float], width: int = 512, scorer: Scorer = pooled_keys) -> PerHead:
    """Heads that spend `width` keys each, some on what is near and the rest on the blocks that score highest.

    ratios: of each head in turn, the share spent on the window, 0 to 1; a window is at least one block, which alone sees the queries beside.
    """
    if not len(ratios) or any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"routed: {list(ratios)} are no ratios; at least one, each from 0 (blocks wherever they lie) to 1 (a window alone)")
    if width < TILE or width % TILE:
        raise ValueError(f"routed: a width of {width} is not a whole number of blocks of {TILE}")

    def head(ratio: float) -> Pattern:
        blocks = min(width // TILE - 1, round((1 - ratio) * width / TILE))
        near = window(width - blocks * TILE)
        return near | top_blocks(blocks, scorer) if blocks else near

    return per_head(*map(head, ratios))


def window_routed() -> Pattern:
    """512 keys a head: all in the window, three quarters, half, a quarter, in turn."""
    return routed([1.0, 0.75, 0.5, 0.25])


def top_k() -> Pattern:
    """The window of the query's own block, and a quarter of the blocks before it, those that score highest."""
    return window(64) | top_share(0.25)


def three_scales() -> Pattern:
    """Windows of 32, 64 and 128, one a head in turn."""
    return multi_scale(32, 64, 128)


VARIANTS: dict[str, Callable[[], Pattern]] = {
    "window-64-entropy-8": window_entropy,
    "window-512-routed": window_routed,
    "top-k": top_k,
    "multi-scale": three_scales,
}
"""By the name that `written.parse` and `use` take."""

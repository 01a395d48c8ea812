"""Neurons in clusters of one size."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from lissome.compress.experts.config import SplitConfig
from lissome.compress.experts.find import Dense
from lissome.core.errors import BadInput

ROUNDS = 8
TOKENS = 1024
"""Calibration tokens by which neurons are compared."""


def check_sizes(name: str, neurons: int, config: SplitConfig) -> None:
    """Raise BadInput where the neurons do not go into the experts evenly, naming numbers that would do."""
    routed = neurons - config.shared
    if routed >= config.experts and routed % config.experts == 0:
        return
    could = [str(count) for count in range(2, min(routed, 128) + 1) if routed % count == 0]
    told = f"{neurons:,} neurons" + (f", {config.shared:,} of them shared," if config.shared else "")
    raise BadInput(
        f"the {told} of {name} cannot be divided among {config.experts} experts", expected=f"one of {', '.join(could[:12])} experts" if could else None
    )


@torch.no_grad()
def clusters(dense: Dense, values: torch.Tensor, config: SplitConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(neurons of each expert [experts, size], shared neurons [shared]), each neuron once; values: the neurons' over calibration tokens [n, neurons]."""
    generator = torch.Generator().manual_seed(config.seed)
    matter = values.abs().mean(0) * dense.down.weight.norm(dim=0)
    always = matter.sort(descending=True, stable=True).indices[: config.shared].sort().values
    rest = torch.ones(dense.neurons, dtype=torch.bool)
    rest[always.cpu()] = False
    routed = rest.nonzero()[:, 0]
    if config.cluster == "random":
        places = torch.randperm(len(routed), generator=generator).view(config.experts, -1)
    elif config.cluster == "weights":
        rows = dense.up.weight if dense.gate is None else torch.cat([dense.up.weight, dense.gate.weight], 1)
        places = balanced_means(rows.float().cpu()[routed], config.experts, generator)
    else:
        some = torch.linspace(0, len(values) - 1, min(TOKENS, len(values))).round().long()
        magnitude = values[some].abs().float().cpu().T
        places = balanced_means((magnitude - magnitude.mean(1, keepdim=True))[routed], config.experts, generator)
    return routed[places.sort(1).values], always.cpu()


def balanced_means(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Places of the rows [n, features] in `count` clusters of one size [count, n / count], by cosine to the clusters' means: k-means whose clusters fill up."""
    rows = functional.normalize(rows, dim=1)
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    found = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        before = found
        found = _filled((rows @ centres.T).numpy(), len(rows) // count)
        if (found == before).all():
            break
        members = functional.one_hot(torch.from_numpy(found), count).to(rows.dtype)
        centres = functional.normalize(members.T @ rows, dim=1)
    return torch.from_numpy(np.argsort(found, kind="stable").reshape(count, -1))


def _filled(likeness: np.ndarray, size: int) -> np.ndarray:
    """Cluster of each row [n], the likeliest pairs first, at most `size` rows to a cluster; likeness: [n, clusters].

    Deferred acceptance (Gale and Shapley 1962): each row asks its likeliest cluster, which keeps the likeliest that asked, and whom it sends away asks on. As
    both sides go by the same number, that is what taking the pairs one by one would give.
    """
    n, count = likeness.shape
    wish, at = np.argsort(-likeness, axis=1, kind="stable"), np.zeros(n, np.int64)
    while True:
        found: np.ndarray = wish[np.arange(n), at]
        order = np.lexsort((-likeness[np.arange(n), found], found))
        first = np.searchsorted(found[order], np.arange(count))
        over = order[np.arange(n) - first[found[order]] >= size]
        if not len(over):
            return found
        at[over] += 1

"""How sure an answer is, as one number in [0, 1] from its logits; 1 is certain."""

from __future__ import annotations

import math
from typing import Literal

import torch

Rule = Literal["max-probability", "margin", "entropy", "complexity"]
"""complexity: not the answer but the input decides, before any block has run."""
NEVER = 2.0
"""A threshold that no confidence reaches."""


def confidence(logits: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Confidence [n] of logits [n, classes]; NaN where they are not finite, which reaches no threshold.

    max-probability: of the likeliest class. margin: between the two likeliest. entropy: 1 - H / log(classes) (Teerapittayanon et al., BranchyNet, 2016).
    """
    probabilities = logits.float().softmax(-1)
    if rule == "max-probability":
        found = probabilities.amax(-1)
    elif rule == "margin":
        best = probabilities.topk(2, dim=-1).values
        found = best[:, 0] - best[:, 1]
    elif rule == "entropy":
        found = 1 + torch.special.xlogy(probabilities, probabilities).sum(-1) / math.log(logits.shape[-1])
    else:
        raise ValueError(f"{rule} is not told by logits")
    return torch.where(torch.isfinite(logits).all(-1), found, torch.nan)

"""Structured pruning: remove whole channels, attention heads, neurons and blocks, so that the tensors really shrink.

found = groups(model, example)                  # what can be cut, what cannot and why
scores = importance(model, found, "taylor", loss=loss, batches=batches)
smaller = apply(model, found, {"layer": [0, 2, 3]})
smaller = prune(model, PruneConfig(ratio=0.5), example)    # the three in one
"""

from lissome.compress.prune.apply import apply
from lissome.compress.prune.choose import choose
from lissome.compress.prune.config import PruneConfig
from lissome.compress.prune.find import groups
from lissome.compress.prune.groups import Group, Groups, LeftAlone
from lissome.compress.prune.importance import importance
from lissome.compress.prune.run import Pruned, prune, prune_to

__all__ = ["Group", "Groups", "LeftAlone", "PruneConfig", "Pruned", "apply", "choose", "groups", "importance", "prune", "prune_to"]

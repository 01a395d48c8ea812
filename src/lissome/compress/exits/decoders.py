"""A language model learns to say with its early layers what it says with all, so that these can draft for it (Elhoushi et al., "LayerSkip", 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadModel
from lissome.nn.depth.blocks import find_blocks, hidden_of
from lissome.nn.depth.exits import check_after
from lissome.train.batches import LABELS
from lissome.train.loop import Loss


def draft_loss(after: Sequence[int], scale: float = 0.5) -> Loss:
    """A loss callable for a causal transformers model: cross entropy of its logits, and `scale` times that of one early exit.

    after: numbers of layers below each exit; each call draws one of them from torch's global generator, since an exit's logits cost as much as the model's own.
    (The paper takes them in turn; checkpoints restore the generator, and so a resumed run goes on with the same exits.) An exit goes through the model's own
    final norm and head, as the drafts of `engines.decoding.speculative` do. Batches: input_ids [n, length], and labels, the token after each place.
    """

    def loss(module: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        model: Any = module
        _, blocks = find_blocks(module)
        places = check_after(after, len(blocks))
        at = places[int(torch.randint(len(places), ()))]
        trunk = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
        if trunk is None or not isinstance(getattr(trunk, "norm", None), nn.Module):
            raise BadModel(f"{type(module).__name__} has no final norm that its exits could share", expected="a Llama-shaped transformers model")
        states: list[torch.Tensor] = []
        handle = blocks[at - 1].register_forward_hook(lambda _, __, output: states.append(hidden_of(output)))
        try:
            last = trunk(input_ids=batch["input_ids"], use_cache=False)[0]
        finally:
            handle.remove()
        head, labels = model.get_output_embeddings(), batch[LABELS].long().flatten()
        whole, early = (functional.cross_entropy(head(one).float().flatten(0, 1), labels) for one in (last, trunk.norm(states[0])))
        return whole + scale * early

    return loss

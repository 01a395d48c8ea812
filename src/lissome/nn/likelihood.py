"""Log-likelihoods of tokens without logits of the whole vocabulary for every place at once.

49,152 words at 8,192 places are 1.6 GB in float32: the trunk runs once, the head on some rows at a time, and of each row one number is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lissome.nn.call import accepted, call
from lissome.nn.models.assembly import ModularModel

IGNORED = -100
"""A target that is not scored, as torch's losses and transformers have it."""
FLOATS = 1 << 25
"""Logits held at once (128 MB)."""


def parts_of(module: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """A causal language model's trunk and head, where logits are head(trunk(...)[0]) and nothing else; None for other modules."""
    if isinstance(module, ModularModel):
        return module.language_parts()
    config: Any = getattr(module, "config", None)
    trunk = getattr(module, str(getattr(module, "base_model_prefix", "")), None)
    head: Any = getattr(module, "get_output_embeddings", lambda: None)()
    plain = (
        type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")) and isinstance(head, nn.Linear) and isinstance(trunk, nn.Module) and trunk is not module
    )
    altered = any(getattr(config, name, None) not in (None, 1, 1.0) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
    return (trunk, head) if plain and not altered and isinstance(trunk, nn.Module) else None


def hidden_states(trunk: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The trunk's last hidden states [n, length, dim] on the inputs of `batch` that it takes."""
    names = accepted(trunk, tuple(batch))
    extra: dict[str, Any] = {"use_cache": False} if getattr(getattr(trunk, "config", None), "use_cache", False) else {}
    output = trunk(**{name: batch[name] for name in names}, **extra)
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def token_log_likelihoods(module: nn.Module, batch: Mapping[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each target [n, length], float32; 0 where the target is IGNORED.

    batch: the module's inputs, such as input_ids [n, length]; targets [n, length] int64: the token that should come after each place. Trains: the head's
    logits are computed again in the backward pass. A module whose head is not found gives all its logits at once.
    """
    parts = parts_of(module)
    scored = (targets != IGNORED).flatten()
    wanted = targets.flatten()[scored].long()
    if parts is None:
        logits = call(module, batch)
        return _spread(_chosen(logits.flatten(0, 1)[scored], wanted), scored, targets)
    trunk, head = parts
    rows = hidden_states(trunk, batch).flatten(0, 1)[scored]
    step = max(1, FLOATS // head.out_features)
    found = []
    for begin in range(0, len(rows), step):
        some = rows[begin : begin + step], wanted[begin : begin + step]
        if torch.is_grad_enabled() and rows.requires_grad:
            found.append(checkpoint(lambda h, t: _chosen(head(h), t), *some, use_reentrant=False))
        else:
            found.append(_chosen(head(some[0]), some[1]))
    return _spread(torch.cat(found or [rows.sum(-1)]), scored, targets)


def window_log_likelihoods(module: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-likelihood of every token but the first, given those before it [n, length - 1], float32; 0 where the token is padding.

    batch: input_ids [n, length], and attention_mask [n, length] where windows are padded on the right. Memory beyond the trunk's is bounded.
    """
    targets = following(batch["input_ids"])
    if "attention_mask" in batch:
        targets = targets.masked_fill(functional.pad(batch["attention_mask"][:, 1:], (0, 1)) == 0, IGNORED)
    return token_log_likelihoods(module, batch, targets)[:, :-1]


def following(ids: torch.Tensor) -> torch.Tensor:
    """The targets of ids [n, length]: each token's next one, IGNORED for the last."""
    return functional.pad(ids[:, 1:], (0, 1), value=IGNORED)


def _chosen(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax of logits [rows, words] at targets [rows], float32."""
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def _spread(values: torch.Tensor, scored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of the scored places, at their places."""
    whole = torch.zeros(len(scored), dtype=torch.float32, device=values.device)
    return whole.masked_scatter(scored, values.float()).view(like.shape)

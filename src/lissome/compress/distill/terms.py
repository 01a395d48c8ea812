"""The losses between a student and its teacher: functions of tensors, in float32, each a mean over what is not padding.

mask: bool [batch, length], True where there is a token; None where nothing is padded.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_logits(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, mask: torch.Tensor | None = None) -> torch.Tensor:
    """temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) (Hinton et al. 2015), in nats.

    Outputs [batch, classes], or [batch, length, classes] with `mask`. A single output is no distribution: squared error then.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        return _mean((student - teacher).square().squeeze(-1), mask)
    return temperature**2 * _mean(_divergence(student / temperature, teacher / temperature), mask)


def hidden_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of states [batch, length, width] (or any shape, without mask), as a share of the teacher's mean square."""
    student, teacher = student.float(), teacher.float()
    if mask is None:
        return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)
    error, scale = (student - teacher).square().mean(-1), teacher.square().mean(-1)
    return _mean(error, mask) / _mean(scale, mask).clamp_min(1e-12)


def relation_divergence(student: torch.Tensor, teacher: torch.Tensor, heads: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """KL between the self-similarities of projections [batch, length, width] cut into `heads` parts (Wang et al. 2021).

    A part's relation is softmax(x x^T / sqrt(its width)) over the tokens; widths of student and teacher may differ, `heads` must divide both.
    """
    return _mean(_divergence(_relation(student, heads, mask), _relation(teacher, heads, mask)).mean(1), mask)


def map_divergence(
    student: tuple[torch.Tensor, torch.Tensor, int, float],
    teacher: tuple[torch.Tensor, torch.Tensor, int, float],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL between attention distributions. Each side: query and key [batch, length, width], number of heads, scale; both have equally many heads."""
    return _mean(_divergence(attention_logits(*student, mask), attention_logits(*teacher, mask)).mean(1), mask)


def attention_logits(query: torch.Tensor, key: torch.Tensor, heads: int, scale: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What attention takes the softmax of [batch, heads, length, length]: scaled similarities, padded keys at the lowest float."""
    logits = _parts(query, heads) @ _parts(key, heads).transpose(-1, -2) * scale
    return logits if mask is None else logits.masked_fill(~mask[:, None, None, :], torch.finfo(logits.dtype).min)


def _relation(x: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    return attention_logits(x, x, heads, (x.shape[-1] // heads) ** -0.5, mask)


def _parts(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, length, width] -> [batch, heads, length, width / heads], float32."""
    return x.float().view(*x.shape[:2], heads, -1).transpose(1, 2)


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of logits over the last dimension, which goes away."""
    expected, found = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    return functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of values [batch] or [batch, length], over unmasked positions where they are per position."""
    if mask is None or values.ndim < 2:
        return values.mean()
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp_min(1.0)

"""`attend`: attention over what a selection shows, by the fastest backend that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from lissome.core.errors import BadConfig, BadTensor, closest
from lissome.kernels.attention import chunked, dense, flex, native, reference
from lissome.kernels.attention.selection import Selection
from lissome.nn.attention.crossover import FEW, costs

Backend = Literal["auto", "native", "chunked", "dense", "flex", "reference"]
_WHOLE: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Selection, float], torch.Tensor]] = {
    "reference": reference.attend,
    "dense": dense.attend,
    "flex": flex.attend,
}
"""Backends whose gradients are torch's own."""
PAIRS = 1 << 27
"""More pairs than these are never computed with a mask, whatever it would save: some times as many bytes would be held."""
_FORWARD = {"native": native.forward, "chunked": chunked.forward}
_BACKWARD = {"native": native.backward, "chunked": chunked.backward}


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, *, scale: float | None = None, backend: Backend = "auto") -> torch.Tensor:
    """Softmax attention of every query over the keys that the selection shows it.

    q [batch, heads, queries, dim], k [batch, kv_heads, keys, dim], v [batch, kv_heads, keys, value_dim] -> [batch, heads, queries, value_dim]. heads is a
    multiple of kv_heads. scale: of the scores, 1 / sqrt(dim) by default. A query that sees no key gives zeros. All backends train, but for "flex" on a CPU:
    "native" is C++ on the CPU (float32, bfloat16), "chunked" torch anywhere, "dense" torch's own attention over all pairs with a mask, "flex" torch's
    FlexAttention, compiled, "reference" the plain way. "auto" takes the native kernel where it can and where visiting blocks pays, by what was measured once
    on this machine. The selection is moved to q's device.

    Raises BadTensor (a ValueError) for shapes and devices that do not fit each other or the selection, for a selection that holds together badly, for a type
    or width that the backend does not take, and where the result is not finite; BadConfig for a backend that there is not.
    """
    _check(q, k, v, selection)
    selection = selection if selection.blocks.device == q.device else selection.to(q.device)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    way = _way(q, k, v, selection, backend)
    whole = _WHOLE.get(way)
    with torch.autocast(q.device.type, enabled=False):  # a backend chooses its own precision
        out = whole(q, k, v, selection, scale) if whole else _Attend.apply(q, k, v, selection, scale, way)  # type: ignore[no-untyped-call]
    if not torch.isfinite(out.detach().sum()) and not torch.isfinite(out.detach()).all():
        raise BadTensor(f"the result is not finite: q {_told(q)}, k {_told(k)} or v {_told(v)} holds NaN or infinity, or their products overflow")
    return out


def _way(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, backend: Backend) -> str:
    """The backend that runs."""
    if backend not in get_args(Backend):
        raise BadConfig(f'there is no attention backend "{backend}".{closest(str(backend), get_args(Backend))}', expected=", ".join(get_args(Backend)))
    if backend not in ("auto", "native"):
        return backend
    trouble = native.fits(q, v)
    if backend == "native" and trouble:
        raise BadTensor(f"the native kernel cannot take q {_told(q)}, v {_told(v)}: {trouble}", do='use backend="auto"')
    if backend == "native":
        return backend
    if trouble:
        return "chunked"
    if q.shape[0] * q.shape[1] * selection.queries * selection.keys > PAIRS:
        return "native"
    here = costs(torch.get_num_threads(), q.dtype, selection.queries <= FEW)
    return "native" if here.pays(selection, *q.shape[:2]) else "dense"


class _Attend(torch.autograd.Function):
    """Forward and backward of one backend, keeping only what is linear in the length."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float, backend: str) -> torch.Tensor:
        out, lse = _FORWARD[backend](q, k, v, selection, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = selection, scale, backend
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        selection, scale, backend = ctx.how
        with torch.autocast(q.device.type, enabled=False):
            found = _BACKWARD[backend](grad, q, k, v, out, lse, selection, scale)
        return *(one.to(given.dtype) for one, given in zip(found, (q, k, v), strict=True)), None, None, None


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection) -> None:
    if not isinstance(selection, Selection):
        raise BadTensor(f"attend takes a selection, not {type(selection).__name__}", do="call attend(q, k, v, select(pattern, sight))")
    shapes = f"q {_told(q)}, k {_told(k)}, v {_told(v)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise BadTensor(f"{shapes} do not fit", expected="[batch, heads, length, dim] each")
    if not (q.dtype == k.dtype == v.dtype and q.dtype.is_floating_point):
        raise BadTensor(f"{shapes} are of different types or not floats", expected="one floating-point type")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise BadTensor(f"{shapes} do not fit each other", expected="one batch size, k and v of one length, q and k of one dim, heads a multiple of kv_heads")
    if not (q.device == k.device == v.device):
        raise BadTensor(f"{shapes} are on {q.device}, {k.device} and {v.device}", expected="one device")
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise BadTensor(f"{shapes}: there is nothing to attend with", expected="no dimension of 0")
    if (q.shape[2], k.shape[2]) != (selection.queries, selection.keys):
        raise BadTensor(f"{shapes}: the selection is for {selection.queries} queries and {selection.keys} keys")
    batch, heads = selection.blocks.shape[:2]
    if batch not in (1, q.shape[0]) or heads not in (1, q.shape[1]):
        raise BadTensor(f"{shapes}: the selection is for batch {batch} and {heads} heads", expected="1, or as many as q has")
    selection.check()


def _told(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

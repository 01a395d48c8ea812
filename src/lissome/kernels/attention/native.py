"""The C++ kernel behind torch tensors: float32 and bfloat16 on the CPU."""

from __future__ import annotations

import ctypes
import dataclasses

import torch

from lissome.core.errors import BadInput
from lissome.kernels.attention.selection import Selection
from lissome.kernels.library import library

DIM_MAX = 256


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64)]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "extra", "dim", "value_dim")),
        ("half", ctypes.c_int32),
        ("kv_half", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("lead", ctypes.c_int32),
        *((name, _Rows) for name in ("q", "k", "v", "grad")),
        ("blocks", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tiles", "most", "selection_batch", "selection_head")),
        ("tokens", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("token_batch", "token_head")),
        ("bits", ctypes.c_void_p),
        ("out", _Rows),
        *((name, ctypes.c_void_p) for name in ("lse", "delta", "dq", "dk", "dv")),
    ]


def fits(q: torch.Tensor, v: torch.Tensor) -> str | None:
    """Why the kernel cannot take these tensors here; None where it can."""
    if q.device.type != "cpu":
        return f"it runs on the CPU, and the tensors are on {q.device}"
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16, not {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > DIM_MAX:
        return f"it takes head dimensions up to {DIM_MAX}, not {max(q.shape[-1], v.shape[-1])}"
    return library().trouble


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `chunked.forward`."""
    q, k, v, selection = _contiguous(q), _contiguous(k), _contiguous(v), _plain(selection)
    out, lse = q.new_empty(*q.shape[:3], v.shape[-1]), torch.empty(q.shape[:3])
    given = _arguments(q, k, v, selection, scale)
    given.out, given.lse = _rows(out), lse.data_ptr()
    _run("lissome_attention_forward", given)
    return out, lse


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, selection: Selection, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `chunked.backward`."""
    grad, q, k, v, lse, selection = _contiguous(grad), _contiguous(q), _contiguous(k), _contiguous(v), lse.contiguous(), _plain(selection)
    delta = (grad.float() * out.float()).sum(-1).contiguous()
    dq, dk, dv = (torch.empty(one.shape) for one in (q, k, v))
    given = _arguments(q, k, v, selection, scale)
    given.grad, given.lse, given.delta = _rows(grad), lse.data_ptr(), delta.data_ptr()
    given.dq, given.dk, given.dv = dq.data_ptr(), dk.data_ptr(), dv.data_ptr()
    _run("lissome_attention_backward", given)
    return dq, dk, dv


def _arguments(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float) -> _Attention:
    """The arguments that both ways share; the tensors must outlive the call."""
    batch, heads, queries, dim = q.shape
    given = _Attention(batch, heads, k.shape[1], queries, k.shape[2], selection.extra, dim, v.shape[-1])
    given.half = given.kv_half = int(q.dtype == torch.bfloat16)
    given.threads, given.scale, given.lead = torch.get_num_threads(), scale, selection.lead
    given.q, given.k, given.v = _rows(q), _rows(k), _rows(v)
    given.blocks, given.masks, given.bits = selection.blocks.data_ptr(), selection.masks.data_ptr(), selection.bits.data_ptr()
    given.tiles, given.most = selection.blocks.shape[2:]
    given.selection_batch, given.selection_head = _steps(selection.blocks)
    if selection.tokens is not None:
        given.tokens = selection.tokens.data_ptr()
        given.token_batch, given.token_head = _steps(selection.tokens)
    return given


def _rows(tensor: torch.Tensor) -> _Rows:
    return _Rows(tensor.data_ptr(), *tensor.stride()[:3])


def _steps(tensor: torch.Tensor) -> tuple[int, int]:
    """Strides of batch and head, 0 where there is one for all."""
    return (tensor.stride(0) if tensor.shape[0] > 1 else 0), (tensor.stride(1) if tensor.shape[1] > 1 else 0)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernel reads any other stride."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _plain(selection: Selection) -> Selection:
    """What the kernel is given addresses of: checked, as it trusts every number in it."""
    selection.check()
    parts = {name: getattr(selection, name).contiguous() for name in ("blocks", "masks", "bits")}
    return dataclasses.replace(selection, **parts, tokens=None if selection.tokens is None else selection.tokens.contiguous())


def _run(name: str, given: _Attention) -> None:
    code = getattr(library().loaded(), name)(ctypes.byref(given))
    if code == 2:
        raise MemoryError(f"{name}: no memory for its scratch")
    if code:
        raise BadInput(f"{name} refused its arguments (code {code})")

"""torch's FlexAttention over a selection: generated code for the machine at hand. Trains on CUDA; on a CPU it computes forward alone.

The selection becomes a BlockMask: blocks that are seen whole, blocks that are seen in part, and a rule that reads the selection's bits. Keys that are visited
by themselves are gathered behind the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from lissome.core.errors import BadTensor, EnvironmentLacks
from lissome.kernels.attention.selection import FULL, TILE, Selection, blocks_of

CPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA_TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}
"""What generated code works on at once; a selection's blocks of 64 must be multiples of each."""
NONE, ALL = 0, 1
"""First rows of the table of bits; those of the selection follow."""


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection, scale: float, *, compiled: bool = True) -> torch.Tensor:
    """As `reference.attend`, in the type of q. compiled: without it torch computes all pairs by the same rule, which is for tests.

    Raises BadTensor where gradients are asked for on a CPU, or for a type that the CPU's code does not take; EnvironmentLacks where nothing can be compiled.
    """
    from torch.nn.attention.flex_attention import flex_attention

    on_cpu = q.device.type == "cpu"
    if compiled and on_cpu:
        _check(q, k, v)
    q, k, v, mask = prepared(q, k, v, selection)
    if not compiled:
        out: Any = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return _rows(out, selection)
    options: dict[str, Any] = {} if on_cpu else {"kernel_options": CUDA_TILES}
    try:
        out = _compiled(on_cpu)(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1], **options)
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EnvironmentLacks(
                f"FlexAttention could not be compiled: {first}", do='install a C++ compiler (on a GPU: triton), or use backend="auto"'
            ) from error
        raise
    return _rows(out, selection)


def prepared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """What FlexAttention takes: queries from the begin of their first tile on, keys and values with the gathered ones behind, and the BlockMask."""
    from torch.nn.attention.flex_attention import BlockMask

    if selection.lead:
        q = functional.pad(q, (0, 0, selection.lead, 0))
    if selection.tokens is not None:
        k, v = _with_tokens(k, v, selection)
    rows, bits = _tables(selection)
    order = [torch.argsort(one.int(), dim=-1, descending=True, stable=True).int() for one in (rows > ALL, rows == ALL)]
    counts = [one.sum(-1).int() for one in (rows > ALL, rows == ALL)]
    mask = BlockMask.from_kv_blocks(
        counts[0],
        order[0],
        counts[1],
        order[1],
        BLOCK_SIZE=TILE,
        mask_mod=_rule(rows, bits),
        seq_lengths=(q.shape[2], k.shape[2]),
        compute_q_blocks=torch.is_grad_enabled() and any(one.requires_grad for one in (q, k, v)),
    )
    return q, k, v, mask


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if torch.is_grad_enabled() and any(one.requires_grad for one in (q, k, v)):
        raise BadTensor("FlexAttention computes no gradients on a CPU", do='use backend="auto" to train, or torch.no_grad() where none are needed')
    if q.dtype not in CPU_TYPES:
        raise BadTensor(f"FlexAttention on a CPU does not take {str(q.dtype).removeprefix('torch.')}", expected="float32, bfloat16 or float16")


def _rows(out: Any, selection: Selection) -> torch.Tensor:
    found: torch.Tensor = out[:, :, selection.lead :]
    return found


def _with_tokens(k: torch.Tensor, v: torch.Tensor, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values up to a whole block, then those of the tokens; for every query head where heads of a group have tokens of their own."""
    assert selection.tokens is not None
    tokens = selection.tokens
    heads, kv_heads = tokens.shape[1], k.shape[1]
    if heads > 1:
        grouped = tokens.view(tokens.shape[0], kv_heads, heads // kv_heads, -1)
        if bool((grouped == grouped[:, :, :1]).all()):
            tokens = grouped[:, :, 0]
        else:
            k, v = (one.repeat_interleave(heads // kv_heads, 1) for one in (k, v))
    index = tokens.expand(k.shape[0], k.shape[1], -1)[..., None]
    padding = (0, 0, 0, selection.plain * TILE - selection.keys)
    tail = (0, 0, 0, -selection.extra % TILE)
    found = [torch.cat([functional.pad(one, padding), functional.pad(one.gather(2, index.expand(-1, -1, -1, one.shape[-1])), tail)], 2) for one in (k, v)]
    return found[0], found[1]


def _tables(selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
    """Which row of bits each visit reads [b, h, tiles, blocks] int32 (NONE where there is no visit), and the rows [n, 64] int64."""
    device, blocks = selection.blocks.device, selection.plain + blocks_of(selection.extra)
    inside = torch.arange(TILE, device=device)
    whole = torch.stack([torch.zeros_like(inside), torch.full_like(inside, -1)])
    ends = torch.stack([-(inside < (length - 1) % TILE + 1).long() for length in (selection.keys, max(1, selection.extra))])
    filled = 1 << (len(selection.bits) + 3).bit_length()  # numbers that recur, as code is compiled for a shape
    bits = torch.cat([whole, selection.bits, selection.bits.new_zeros(filled - len(selection.bits) - 4, TILE), ends])
    visited = selection.blocks >= 0
    at = torch.where(selection.masks == FULL, ALL, selection.masks.long() + 2)
    if selection.tokens is not None:  # keys are filled up to whole blocks then, and what fills them is not to be seen
        full = selection.masks == FULL
        for row, number, length in ((len(bits) - 2, selection.plain - 1, selection.keys), (len(bits) - 1, blocks - 1, selection.extra)):
            if length % TILE:
                at = torch.where(full & (selection.blocks == number), row, at)
    rows = torch.zeros(*selection.blocks.shape[:3], blocks + 1, dtype=torch.int32, device=device)
    rows.scatter_(3, torch.where(visited, selection.blocks, blocks).long(), at.int())
    return rows[..., :blocks].contiguous(), bits


def _rule(rows: torch.Tensor, bits: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Whether a query sees a key, by places alone: right for every pair, visited or not."""
    own_batch, own_head = rows.shape[0] > 1, rows.shape[1] > 1

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        at = b if own_batch else torch.zeros_like(b), h if own_head else torch.zeros_like(h), i // TILE, j // TILE
        word = bits[rows[at], j % TILE]
        return ((word >> (i % TILE)) & 1) != 0

    return sees


@functools.lru_cache(maxsize=2)
def _compiled(on_cpu: bool) -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled; on a CPU for each shape anew, as torch 2.13's CPU template miswrites a rule that reads tensors of symbolic sizes."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False if on_cpu else None)

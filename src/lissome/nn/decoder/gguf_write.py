"""GGUF files written: the inverse of `gguf`, byte for byte what llama.cpp reads (ggml-org/ggml, docs/gguf.md, version 3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lissome.core.cache import disk_errors
from lissome.core.errors import BadInput
from lissome.kernels.decoder.packed import Codes
from lissome.nn.decoder.gguf import ALIGNMENT, ARRAY, BLOCK, MAGIC, SCALARS, STRING

F32, Q4_0, Q4_1, Q8_0 = 0, 2, 3, 8
U32, I32, FLOAT, BOOL = 4, 5, 6, 7


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write a file. tensors: floats, or `Codes`, which must be in groups of 32; of 4 bits they become Q4_0 where every offset is minus eight scales, else Q4_1.

    Raises BadInput for codes and values that the format has no place for.
    """
    blocks = {name: _block(name, tensor) for name, tensor in tensors.items()}
    head = [MAGIC, struct.pack("<IQQ", 3, len(blocks), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(key, value)
        head += [_text(key), struct.pack("<I", kind), data]
    offset = 0
    for name, (kind, shape, data) in blocks.items():
        head += [_text(name), struct.pack("<I", len(shape)), struct.pack(f"<{len(shape)}Q", *shape[::-1]), struct.pack("<IQ", kind, offset)]
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    with disk_errors("a GGUF file", path.parent), path.open("wb") as file:
        file.write(_padded(b"".join(head)))
        for _, _, data in blocks.values():
            file.write(_padded(data))


def _block(name: str, tensor: Any) -> tuple[int, tuple[int, ...], bytes]:
    """Type, shape and bytes of a tensor."""
    if not isinstance(tensor, Codes):
        floats = np.ascontiguousarray(tensor, "<f4")
        return F32, floats.shape, floats.tobytes()
    if tensor.group != BLOCK:
        raise BadInput(f'"{name}" is in groups of {tensor.group}', expected=f"groups of {BLOCK}, as GGUF has them")
    shape = tuple(tensor.codes.shape)
    scale, offset = (one.astype("<f2")[..., None].view(np.uint8) for one in (tensor.scale, tensor.offset))
    codes = tensor.codes.reshape(shape[0], -1, BLOCK)
    if tensor.bits == 8:
        if bool((tensor.offset != 0).any()):
            raise BadInput(f'"{name}" has codes of 8 bits with an offset', expected="none, as Q8_0 has no place for it")
        return Q8_0, shape, np.concatenate([scale, codes.view(np.uint8)], -1).tobytes()
    halves = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    around_eight = bool((tensor.offset == np.float16(-8) * tensor.scale).all())
    return (Q4_0 if around_eight else Q4_1), shape, np.concatenate([scale, *([] if around_eight else [offset]), halves], -1).tobytes()


def _value(key: str, value: Any) -> tuple[int, bytes]:
    """Type and bytes of a value."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, int) and -(1 << 31) <= value < 1 << 32:
        kind = U32 if value >= 0 else I32
        return kind, struct.pack(SCALARS[kind], value)
    if isinstance(value, float):
        return FLOAT, struct.pack("<f", value)
    if isinstance(value, list) and value and all(type(one) is type(value[0]) for one in value) and not isinstance(value[0], list):
        kinds = [_value(key, one) for one in value]
        inner = I32 if isinstance(value[0], int) and not isinstance(value[0], bool) else kinds[0][0]
        data = b"".join(struct.pack("<i", one) for one in value) if inner == I32 else b"".join(one for _, one in kinds)
        return ARRAY, struct.pack("<IQ", inner, len(value)) + data
    raise BadInput(f'"{key}" is {value!r}', expected="a text, a number, a truth value, or a list of one kind of them")


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)

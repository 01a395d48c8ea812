"""Read IDX files (the format of MNIST): a four-byte magic number, big-endian sizes, then the values."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from pathlib import Path

import numpy as np

from lissome.core.errors import BadTask

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path, where: str) -> np.ndarray:
    """The array in an IDX file, plain or .gz, in this machine's byte order.

    where: what named the file, for a missing one. Raises BadTask when the file is missing, is no IDX file, or holds less or more than its header says.
    """
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else contextlib.nullcontext(raw) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not 1 <= head[3] <= 4:
                raise BadTask("not an IDX file", where=str(path), expected="the magic number 0, 0, type, dimensions", do="fetch the file again")
            kind = np.dtype(TYPES[head[2]])
            sizes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
            wanted = int(np.prod(shape, dtype=object)) * kind.itemsize
            data = _read(file, wanted + 1)  # no more than that: a small .gz may unpack to a very large file
    except FileNotFoundError as error:
        raise BadTask(f'the file "{path}" does not exist', where=where, do="paths are relative to the YAML file: correct it, or put the file there") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadTask(f"the compressed file is damaged: {error}", where=str(path), do="fetch the file again") from error
    except OSError as error:
        raise BadTask(f'cannot read "{path}": {error.strerror}', where=where, expected="a readable file") from error
    if len(sizes) < 4 * head[3] or len(data) != wanted:
        found = "more" if len(data) > wanted else f"{len(data):,}"
        raise BadTask(f"the IDX file is damaged: its header says {wanted:,} bytes of data, there are {found}", where=str(path), do="fetch the file again")
    return np.frombuffer(data, dtype=kind).reshape(shape).astype(kind.newbyteorder("="))


def _read(file: io.BufferedIOBase, most: int) -> bytes:
    """Up to `most` bytes, block by block: a damaged header may ask for more than there is memory."""
    held = bytearray()
    while len(held) < most and (block := file.read(min(most - len(held), 1 << 20))):
        held += block
    return bytes(held)

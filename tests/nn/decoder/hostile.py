"""Run in a process of its own, whose address space is bounded: every length, offset and count of a GGUF file, or of a decoder's folder, is attacked in turn.

    python hostile.py gguf FILE | folder FOLDER

What opens is run for some tokens. Prints how many files were tried and how many opened; a crash, a traceback or memory beyond the bound ends it.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.engines.decoding.engine import open_engine
from lissome.nn.decoder import gguf

MORE = 400 << 20
"""Bytes of address space beyond what the process has when it begins."""
SHOWN = 6
"""Strings of a list that are attacked: the first ones stand for all."""


def bounded() -> None:
    """No allocation of more than MORE from here on."""
    now = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE, now + MORE))


def fields(path: Path) -> list[tuple[int, str]]:
    """Where the numbers of a GGUF file's header stand, and of what form they are."""
    found: list[tuple[int, str]] = []
    original = gguf._Reader.number

    def noted(reader: gguf._Reader, form: str) -> object:
        found.append((reader.at, form))
        return original(reader, form)

    gguf._Reader.number = noted  # type: ignore[method-assign]
    try:
        gguf.read_gguf(path)
    finally:
        gguf._Reader.number = original  # type: ignore[method-assign]
    shown, last = [], 0
    for at, form in found:
        last = last + 1 if form == "<Q" else 0
        if last <= SHOWN:
            shown.append((at, form))
    return shown


def gguf_files(path: Path) -> Iterator[bytes]:
    """The file with one number changed, and cut short at it."""
    raw = path.read_bytes()
    for at, form in fields(path):
        size = struct.calcsize(form)
        yield raw[:at]
        for value in (0, 1, 255, 1 << 31, 1 << 40, (1 << 63) - 8, (1 << 64) - 1):
            data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            if data != raw[at : at + size]:
                yield raw[:at] + data + raw[at + size :]


STRANGE = (0, -1, 1, 17, 1 << 31, 1 << 62, 1 << 70, 0.5, "x", None, [], {}, [1 << 40, 1 << 40], [0, 1 << 62], True)


def changed(tree: object) -> Iterator[object]:
    """The tree with one leaf, list or table after another put out of order, or away."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items:
        for other in STRANGE:
            yield _with(tree, key, other)
        for inner in changed(value):
            yield _with(tree, key, inner)
        if isinstance(tree, dict):
            yield {name: one for name, one in tree.items() if name != key}


def _with(tree: object, key: object, value: object) -> object:
    made = dict(tree) if isinstance(tree, dict) else list(tree)  # type: ignore[call-overload]
    made[key] = value
    return made


def attack(put: Callable[[bytes], Path], files: Iterator[bytes]) -> tuple[int, int]:
    """How many were tried, and how many opened."""
    tried = opened = 0
    for data in files:
        tried += 1
        where = put(data)
        try:
            engine = open_engine(where, threads=1)
            engine.read([1, 2, 3])
            opened += 1
        except (BadModel, BadInput, BadConfig):
            pass
        except BaseException as error:
            raise SystemExit(f"attack {tried}: {type(error).__name__}: {error}") from error
    return tried, opened


def put(path: Path, where: Path, data: bytes) -> Path:
    """A new file each time: one that is mapped still must not be cut."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return where


def folder_attacks(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Files of a packed folder, out of order."""
    description, tensors = folder / "decoder.json", folder / "decoder.safetensors"
    told, raw = json.loads(description.read_text()), tensors.read_bytes()
    told["matrices"] = dict(list(told["matrices"].items()))
    for tree in changed(told):
        yield description, json.dumps(tree).encode()
    for data in (b"", b"[]", b"[" * 100_000, b"\xff\xfe", description.read_bytes()[:-20]):
        yield description, data
    yield description, description.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, rest = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    few = {name: header[name] for name in ("cosine", "norm", "embedding", "layers.0.q", "layers.0.ffn_norm")}
    for tree in changed(few):
        text = json.dumps({**{name: one for name, one in header.items() if name not in few}, **tree}).encode() if isinstance(tree, dict) else b"{}"
        text += b" " * (-len(text) % 8)
        yield tensors, len(text).to_bytes(8, "little") + text + rest
    for value in (0, 1, length - 1, length + 1, 1 << 31, 1 << 62, (1 << 64) - 1):
        yield tensors, value.to_bytes(8, "little") + raw[8:]
    for cut in (0, 4, 8, 9, 8 + length // 2, 8 + length, len(raw) - 1):
        yield tensors, raw[:cut]
    for text in (b"{}", b"[]", b"[" * 100_000, b"\xff" * 16, b'{"a":1}'):
        yield tensors, len(text).to_bytes(8, "little") + text + rest


def main() -> None:
    """Attack what the command line names."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    if kind == "gguf":
        files = list(gguf_files(path))
        target = path.with_name("hostile.gguf")
        open_engine(path, threads=1).read([1, 2, 3])
        bounded()
        print(*attack(lambda data: put(target, target, data), iter(files)))
        return
    attacks = list(folder_attacks(path))
    open_engine(path, threads=1).read([1, 2, 3])
    bounded()
    turn = iter(attacks)
    tried = opened = 0
    for target, data in turn:
        one = attack(lambda data, target=target: put(target, path, data), iter([data]))  # type: ignore[misc]
        tried, opened = tried + one[0], opened + one[1]
    print(tried, opened)


if __name__ == "__main__":
    main()

"""Debian packages and message catalogues made on the spot."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = "Content-Type: text/plain; charset=UTF-8\n"


def ar(*members: tuple[str, bytes]) -> bytes:
    """An ar archive."""
    out = b"!<arch>\n"
    for name, content in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return out


def tar(files: Mapping[str, bytes], links: Sequence[str] = (), mode: str = "w:xz") -> bytes:
    """A tar archive of files and of symbolic links to /etc/passwd."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(info)
    return held.getvalue()


def deb(files: Mapping[str, bytes], links: Sequence[str] = (), mode: str = "w:xz") -> bytes:
    """A Debian package of these files."""
    kind = mode[1:].replace(":", ".").rstrip(".")
    return ar(("debian-binary", b"2.0\n"), ("control.tar.xz", tar({"./control": b"Package: tiny\n"})), (f"data.tar{kind}", tar(files, links, mode)))


def mo(messages: Mapping[str, str], order: str = "<", header: str = HEADER, encoding: str = "utf-8") -> bytes:
    """A compiled catalogue, messages sorted as msgfmt sorts them."""
    pairs = sorted((source.encode(encoding), target.encode(encoding)) for source, target in ({"": header} | dict(messages)).items())
    at = 28 + 16 * len(pairs)
    tables: list[bytes] = [b"", b""]
    body = b""
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack(f"{order}2I", len(pair[side]), at + len(body))
            body += pair[side] + b"\0"
    start = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return start + tables[0] + tables[1] + body


def write(path: Path, content: bytes) -> Path:
    """The path, written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path

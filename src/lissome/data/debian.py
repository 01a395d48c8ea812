"""Debian packages without dpkg: a .deb is an `ar` archive (ar(5), deb(5)) whose member data.tar.* holds the files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lissome.core.errors import BadInput, EnvironmentLacks

MAGIC = b"!<arch>\n"
HEADER = 60
"""Bytes before a member: name 16, time 12, owner 6, group 6, mode 8, size 10, all in ASCII, and two that end it."""


def is_deb(archive: Path) -> bool:
    """Whether the file begins as an ar archive does."""
    with archive.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def data_tar(archive: Path) -> IO[bytes]:
    """The tar archive with a package's files, as it is compressed (zstd, which tarfile reads from Python 3.14 on, is taken off), in memory.

    Raises BadInput where the file is cut short, is no .deb, or is one of an unknown version; EnvironmentLacks where zstd is needed and not there.
    """
    version = None
    for name, content in members(archive):
        if version is None:
            version = content.strip()
            if name != "debian-binary" or not version.startswith(b"2."):
                raise _broken(archive, f'it begins with "{name}" and not with debian-binary 2.0')
        elif name == "data.tar.zst":
            return _without_zstd(content, archive)
        elif name.startswith("data.tar"):
            return io.BytesIO(content)
    raise _broken(archive, "it has no data.tar")


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every member of an ar archive. Raises BadInput for a header that makes no sense, or says more than there is."""
    left = archive.stat().st_size - len(MAGIC)
    with archive.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise _broken(archive, "it does not begin as an ar archive")
        while left > 0:
            header = file.read(HEADER)
            digits = header[48:58].strip()
            if len(header) != HEADER or header[58:] != b"`\n" or not digits.isdigit():
                raise _broken(archive, f"the header of a member, {left:,} bytes before the end, is damaged")
            size = int(digits)
            if size > left - HEADER:
                raise _broken(archive, f"a member should have {size:,} bytes and {left - HEADER:,} are left")
            yield header[:16].decode("latin-1").strip().rstrip("/"), file.read(size)
            file.read(size % 2)  # members begin at even places
            left -= HEADER + size + size % 2


def _without_zstd(content: bytes, archive: Path) -> IO[bytes]:
    """The tar archive inside zstd."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise EnvironmentLacks(
            "its files are compressed with zstd, which Python reads from 3.14 on",
            where=str(archive),
            do="use Python 3.14 or later, or a package with data.tar.xz",
        ) from error
    opened: IO[bytes] = zstd.open(io.BytesIO(content))
    return opened


def _broken(archive: Path, what: str) -> BadInput:
    return BadInput(f"it cannot be unpacked: {what}", where=str(archive), expected="a Debian package", do="delete the file and fetch it again")

"""Unpack an archive from the network without trusting it: nothing is executed, nothing lands outside the folder, sizes are bounded.

The rules are those of the standard library's `data` filter for tarfile, applied alike to zip files and to every Python version: no absolute paths, no `..`,
no devices. Stricter in two ways: links are refused altogether and so is a second file of the same name. Where only some files of an archive are wanted,
the others may be anything but badly named: they are passed over.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from lissome.core.cache import disk_errors
from lissome.core.errors import BadInput
from lissome.data.debian import data_tar, is_deb

BLOCK = 1 << 20
MAX_FILES = 100_000
MAX_PASSED = 4 << 30
"""Bytes of files that are passed over: reading past them takes time, though no space."""


class UnsafeArchive(BadInput):
    """An archive that tries to write outside its folder, or is larger than it was declared to be."""


def unpack(archive: Path, into: Path, limit: int, max_files: int = MAX_FILES, only: Sequence[str] = ()) -> None:
    """Unpack a .zip, .whl, .tar, .tar.gz, .tgz or .deb into the existing folder `into`.

    limit: bytes that all files together may take once unpacked, counted while writing (a header's own word is not trusted). only: shell patterns of the
    files that are wanted, such as "usr/share/locale/de/*"; none: all.
    Raises UnsafeArchive for a member with an unsafe name or kind and for too much data, BadInput for a file that is no archive.
    """
    written = files = 0
    try:
        for name, source in _members(archive, only):
            target = _inside(name, into, archive)
            files += 1
            if files > max_files:
                raise _too_large(archive, f"more than {max_files:,} files")
            written += _write(name, source, target, limit - written, archive, limit)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError is zipfile's word for an encrypted member, NotImplementedError for an unknown compression
        raise BadInput(
            f"it cannot be unpacked: {error}", where=str(archive), expected="a .zip, .whl, .tar.gz or .deb archive", do="delete the file and fetch it again"
        ) from error


def _write(name: str, source: IO[bytes] | None, target: Path, room: int, archive: Path, limit: int) -> int:
    """Make a folder (no source) or copy a file; return its bytes. Refuses a second file of the same name and anything beyond `room`."""
    size = 0
    try:
        with disk_errors("an unpacked archive", target):
            if source is None:
                target.mkdir(parents=True, exist_ok=True)
                return 0
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as out:
                while block := source.read(BLOCK):
                    size += len(block)
                    if size > room:
                        raise _too_large(archive, f"more than {limit:,} bytes unpacked")
                    out.write(block)
    except gzip.BadGzipFile:
        raise
    except OSError as error:  # it is there already, is a folder, or its name is too long
        raise UnsafeArchive(f'"{name}" in it cannot be written: {error.strerror}', where=str(archive), do="do not use this archive") from error
    return size


def _members(archive: Path, only: Sequence[str]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, open stream or None for a folder) of every wanted member; links and devices among them raise."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not _wanted(info.orig_filename, only, archive):
                    continue
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _bad_kind(archive, info.filename)
                # orig_filename: ZipFile cuts a name at a zero byte, which would hide what follows it
                yield info.orig_filename, None if info.is_dir() else zipped.open(info)
        return
    passed = 0
    with tarfile.open(fileobj=data_tar(archive), mode="r:*") if is_deb(archive) else tarfile.open(archive, "r:*") as tarred:
        for member in tarred:
            if not _wanted(member.name, only, archive):
                passed += member.size
                if passed > MAX_PASSED:
                    raise _too_large(archive, f"more than {MAX_PASSED:,} bytes")
            elif member.isdir():
                yield member.name, None
            elif member.isreg():
                stream = tarred.extractfile(member)
                assert stream is not None, "a regular member always has a stream"
                yield member.name, stream
            else:
                raise _bad_kind(archive, member.name)


def _wanted(name: str, only: Sequence[str], archive: Path) -> bool:
    """Whether a member is asked for; a name that leads outside raises either way."""
    if not only:
        return True
    plain = PurePosixPath(name).as_posix()
    if plain != ".":  # "./" itself, with which Debian's archives begin
        _inside(name, Path(), archive)
    return any(fnmatchcase(plain, pattern) for pattern in only)


def _inside(name: str, into: Path, archive: Path) -> Path:
    """`into` / `name`, refused unless it is a plain relative path; a backslash or a drive letter would mean something else on Windows."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(c in name for c in "\\:\0"):
        raise UnsafeArchive(
            f'it holds a file named "{name}", which would be written outside its folder',
            where=str(archive),
            expected="relative paths without `..`",
            do="do not use this archive; nothing of it was kept",
        )
    return into.joinpath(*parts)


def _bad_kind(archive: Path, name: str) -> UnsafeArchive:
    return UnsafeArchive(
        f'"{name}" in it is a link or a device', where=str(archive), expected="plain files and folders", do="do not use this archive; nothing of it was kept"
    )


def _too_large(archive: Path, what: str) -> UnsafeArchive:
    return UnsafeArchive(f"it holds {what}, more than was declared for it", where=str(archive), do="do not use this archive; nothing of it was kept")

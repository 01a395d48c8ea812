"""Compiled message catalogues (.mo, the GNU gettext manual, "The Format of GNU MO Files"), read without trusting them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lissome.core.errors import BadInput

MAGIC = 0x950412DE
CONTEXT, PLURAL = "\x04", "\x00"
MAX_SHARE = 4
"""Strings may overlap in a file, so that a small one can claim to hold much: more than this many times its own size is refused."""


class Message(NamedTuple):
    """A message and its translation; context is "" where it has none."""

    context: str
    source: str
    target: str


def read_mo(path: Path) -> list[Message]:
    """The messages of a catalogue in its order (sorted by the message), without the header entry; a plural is a message of its own, with the second form.

    Raises BadInput for a file that is no catalogue, that points outside itself, or whose text is not in the encoding it names.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read it: {error.strerror}", where=str(path)) from error
    pairs = list(_strings(raw, path))
    header = next((target for source, target in pairs if not source), b"")
    encoding = _encoding(header, path)
    try:
        texts = [(source.decode(encoding), target.decode(encoding)) for source, target in pairs if source]
    except UnicodeDecodeError as error:
        raise _broken(path, f"a message is not {encoding}: {error.reason}") from error
    return [message for source, target in texts for message in _messages(source, target)]


def _strings(raw: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(message, translation) of every entry, as bytes."""
    if len(raw) < 20:
        raise _broken(path, f"{len(raw)} bytes hold no header")
    order = next((order for order in "<>" if struct.unpack(f"{order}I", raw[:4])[0] == MAGIC), None)
    if order is None:
        raise _broken(path, "it does not begin as a catalogue")
    revision, count, sources, targets = struct.unpack(f"{order}4I", raw[4:20])
    if revision >> 16 > 1:
        raise _broken(path, f"it is of version {revision >> 16}")
    if max(sources, targets) + 8 * count > len(raw):
        raise _broken(path, f"{count:,} messages are announced, more than {len(raw):,} bytes hold")
    total = 0
    for at in range(0, 8 * count, 8):
        found = []
        for table in (sources, targets):
            length, offset = struct.unpack(f"{order}2I", raw[table + at : table + at + 8])
            total += length
            if offset + length > len(raw):
                raise _broken(path, f"message {at // 8 + 1} lies outside of it")
            found.append(raw[offset : offset + length])
        if total > MAX_SHARE * len(raw):
            raise _broken(path, f"its messages would take more than {MAX_SHARE} times its size")
        yield found[0], found[1]


def _encoding(header: bytes, path: Path) -> str:
    """The encoding that the header entry names; UTF-8 where it names none."""
    named = re.search(rb"charset=([\w-]+)", header)
    encoding = named.group(1).decode("ascii") if named else "utf-8"
    try:
        "".encode(encoding)
        b"".decode(encoding)
    except (LookupError, TypeError) as error:
        raise _broken(path, f'it names an encoding "{encoding}" that is not known') from error
    return encoding


def _messages(source: str, target: str) -> Iterator[Message]:
    context, _, text = source.rpartition(CONTEXT)
    forms, translations = text.split(PLURAL), target.split(PLURAL)
    yield Message(context, forms[0], translations[0])
    if len(forms) > 1 and len(translations) > 1:
        yield Message(context, forms[1], translations[1])


def _broken(path: Path, what: str) -> BadInput:
    return BadInput(f"it cannot be read: {what}", where=str(path), expected="a compiled message catalogue (.mo)", do="delete the file and fetch it again")

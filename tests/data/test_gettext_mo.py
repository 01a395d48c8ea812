"""Compiled catalogues: what msgfmt would write is read back, and a hostile file is an error that says what is wrong with it."""

from __future__ import annotations

import gettext
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.data.gettext_mo import Message, read_mo

from .archives import mo, write

TEXTS = st.text(st.characters(exclude_characters="\0\x04", exclude_categories=("Cs",)), min_size=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mo") / "a.mo"


@settings(max_examples=50, deadline=None)
@given(messages=st.dictionaries(TEXTS, TEXTS, max_size=8), order=st.sampled_from("<>"))
def test_what_is_written_is_read(place, messages, order):
    write(place, mo(messages, order))
    found = read_mo(place)
    assert {one.source: one.target for one in found} == messages
    assert all(one.context == "" for one in found)


@settings(max_examples=50, deadline=None)
@given(messages=st.dictionaries(st.text("abc", min_size=1), st.text("äöü", min_size=1), min_size=1, max_size=5))
def test_it_reads_what_the_standard_library_reads(place, messages):
    raw = mo(messages)
    theirs = gettext.GNUTranslations(io.BytesIO(raw))
    assert all(theirs.gettext(one.source) == one.target for one in read_mo(write(place, raw)))


def test_contexts_and_plurals_are_taken_apart(place):
    raw = mo({"menu\x04Open": "Öffnen", "%d file\0%d files": "%d Datei\0%d Dateien", "lone\0plural": "nur eine"})
    assert set(read_mo(write(place, raw))) == {
        Message("menu", "Open", "Öffnen"),
        Message("", "%d file", "%d Datei"),
        Message("", "%d files", "%d Dateien"),
        Message("", "lone", "nur eine"),
    }


def test_the_encoding_is_the_one_it_names(place):
    raw = mo({"size": "Größe"}, header="Content-Type: text/plain; charset=ISO-8859-1\n", encoding="latin-1")
    assert read_mo(write(place, raw)) == [Message("", "size", "Größe")]
    with pytest.raises(BadInput, match="a message is not utf-8"):
        read_mo(write(place, mo({"size": "Größe"}, header="", encoding="latin-1")))
    for name in ("klingon", "hex"):
        with pytest.raises(BadInput, match=f'names an encoding "{name}" that is not known'):
            read_mo(write(place, mo({"a": "b"}, header=f"charset={name}\n")))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_cut_file_is_an_error_and_nothing_else(place, data):
    raw = mo({"hello there": "guten Tag", "bye": "tschüss"})
    at = data.draw(st.integers(0, len(raw) - 30))
    with pytest.raises(BadInput, match="cannot be read"):
        read_mo(write(place, raw[:at]))


@settings(max_examples=50, deadline=None)
@given(raw=st.binary(max_size=200), begun=st.booleans())
def test_any_bytes_are_a_catalogue_or_a_clear_error(place, raw, begun):
    try:
        read_mo(write(place, (struct.pack("<2I", 0x950412DE, 0) if begun else b"") + raw))
    except BadInput as error:
        assert "cannot be read" in str(error)  # noqa: PT017  either is right


def changed(at: int, value: int) -> bytes:
    raw = bytearray(mo({"hello": "hallo", "bye": "tschüss"}))
    raw[at : at + 4] = struct.pack("<I", value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes hold no header"),
        (b"#!/bin/sh\n" * 10, "does not begin as a catalogue"),
        (changed(4, 7 << 16), "of version 7"),
        (changed(8, 2**31), "2,147,483,648 messages are announced"),
        (changed(12, 2**32 - 1), "messages are announced, more than"),
        (changed(28 + 12, 10_000), "message 2 lies outside of it"),
        (changed(28 + 8, 2**32 - 1), "message 2 lies outside of it"),
    ],
)
def test_a_hostile_file_says_what_is_wrong(place, raw, message):
    with pytest.raises(BadInput, match=message) as caught:
        read_mo(write(place, raw))
    assert "fetch it again" in str(caught.value)


def test_messages_that_all_are_the_whole_file_are_refused(place):
    """A small file must not become a large list."""
    count = 500
    size = 20 + 8 * count
    raw = struct.pack("<5I", 0x950412DE, 0, count, 20, 20) + struct.pack("<2I", size, 0) * count
    with pytest.raises(BadInput, match="more than 4 times its size"):
        read_mo(write(place, raw))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.mo: cannot read it"):
        read_mo(tmp_path / "none.mo")

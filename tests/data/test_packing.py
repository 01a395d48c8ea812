"""Documents to windows: the stream is kept, each token scored once, nothing is held that is not needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadConfig, BadTask
from lissome.data.packing import IGNORED, pack, text_files, texts, token_ids

DOCUMENTS = st.lists(st.lists(st.integers(1, 50), max_size=30), max_size=12)


def plain(documents, length, stride, remainder):
    """The obvious way: the whole stream, then slices of it."""
    stream = [token for ids in documents if ids for token in [*ids, 0]]
    begins = [begin for begin in range(0, len(stream), stride) if begin + length <= len(stream)]
    found = [stream[begin : begin + length] for begin in begins]
    rest = stream[begins[-1] + stride if begins else 0 :]
    seen = length - stride if begins else 0
    if remainder == "pad" and len(rest) > max(1, seen):
        found.append(rest)
    return found


@given(DOCUMENTS, st.integers(2, 12), st.integers(1, 12), st.sampled_from(["drop", "pad"]))
def test_windows_are_slices_of_the_stream(documents, length, stride, remainder):
    stride = min(stride, length)
    expected = plain(documents, length, stride, remainder)
    found = list(pack(documents, length, 0, stride=stride, remainder=remainder))
    assert [window.ids.tolist() for window in found] == expected
    scored = []
    for i, window in enumerate(found):
        asked = window.targets != IGNORED
        assert asked[-1] == False  # noqa: E712  numpy's
        assert (window.targets[:-1][asked[:-1]] == window.ids[1:][asked[:-1]]).all()
        scored += [i * stride + 1 + int(place) for place in np.flatnonzero(asked)]
        assert (np.diff(window.documents) == (window.ids[:-1] == 0)).all()
        assert window.documents[0] == 0
    assert len(set(scored)) == len(scored)
    if stride < length and found:  # every token but the first is scored, up to the end of the last window
        assert scored == list(range(1, (len(found) - 1) * stride + len(found[-1].ids)))


def test_an_endless_stream_is_read_no_further_than_needed():
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield [number + 1] * 5

    assert len(list(itertools.islice(pack(endless(), 8, 0), 3))) == 3
    assert len(read) <= 5


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (4, 5), (4, 0)])
def test_windows_that_cannot_be_cut(length, stride):
    with pytest.raises(BadConfig, match=f"windows of {length} tokens every {stride} cannot be cut"):
        list(pack([[1, 2, 3]], length, 0, stride=stride))


def test_files_and_lines(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second\ndocument", encoding="utf-8")
    (tmp_path / "a.md").write_text("first", encoding="utf-8-sig")
    (tmp_path / "empty.rst").write_text(" \n")
    (tmp_path / "deep" / "c.jsonl").write_text('{"body": "third"}\n\n{"body": "fourth"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89")
    paths = text_files(tmp_path, "t.yaml:2")
    assert [path.name for path in paths] == ["a.md", "b.txt", "c.jsonl", "empty.rst"]
    assert list(texts(paths, "body")) == ["first", "second\ndocument", "third", "fourth"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r'a\.jsonl:2: there is no text under the key "text"'),
        ("a.jsonl", b'{"text": 3}\n', r'a\.jsonl:1: there is no text under the key "text"'),
        ("a.jsonl", b"[1]\n", "there is no text under the key"),
        ("a.jsonl", b"{\n", r"a\.jsonl:1: not valid JSON"),
        ("a.txt", b"caf\xe9", r"a\.txt: byte 0xe9 is not utf-8 text"),
    ],
)
def test_text_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadTask, match=message):
        list(texts([tmp_path / name]))


def test_an_encoding_and_places_that_do_not_exist(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert list(texts([tmp_path / "a.txt"], encoding="latin-1")) == ["café"]
    with pytest.raises(BadTask, match='there is no encoding "latin-99"'):
        list(texts([tmp_path / "a.txt"], encoding="latin-99"))
    with pytest.raises(BadTask, match=r"t\.yaml:2: .*nowhere. does not exist"):
        text_files(tmp_path / "nowhere", "t.yaml:2")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(BadTask, match=r'"a\.pdf" is of no known kind'):
        text_files(tmp_path / "a.pdf", "t.yaml:2")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadTask, match="there is no text in the folder"):
        text_files(tmp_path / "none", "t.yaml:2")


def test_token_ids_have_nothing_around_them(tokenizer_dir):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))  # cuts to 5 tokens and pads to 128 by itself
    assert [ids.tolist() for ids in token_ids(["a b c good bad film number", "b"], tokenizer)] == [[9, 10, 11, 6, 7, 8, 5], [10]]

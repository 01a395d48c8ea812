"""Pairs from catalogues: what is cleaned and refused, that no message is in two splits, and documents that both sides share."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadTask, Unreachable
from lissome.data import catalogues, sources
from lissome.data.catalogue_packages import PACKAGES
from lissome.data.catalogues import SEPARATOR, Pair, clean, corpus, near_key, pack, pairs_in, split_pairs
from lissome.data.sources import MB, fetch

from .archives import deb, mo, write


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (("_Open a file", "Datei ö_ffnen bitte"), ("Open a file", "Datei öffnen bitte")),
        (("E&xit the game", "Spiel be&enden"), ("Exit the game", "Spiel beenden")),
        (("set foo_bar to one", "setze foo_bar auf eins"), ("set foo_bar to one", "setze foo_bar auf eins")),
        (("snap_to the __grid", "am __Raster einrasten"), ("snap_to the __grid", "am __Raster einrasten")),
        (("Cats & dogs here", "Katzen & Hunde hier"), ("Cats & dogs here", "Katzen & Hunde hier")),
        (("<b>Very bold</b> text", "<b>Sehr fetter</b> Text"), ("Very bold text", "Sehr fetter Text")),
        (("uses <built-in> code", "nutzt <built-in> Code"), ("uses <built-in> code", "nutzt <built-in> Code")),
        (("Cats &amp; dogs here", "Katzen &amp; Hunde hier"), ("Cats & dogs here", "Katzen & Hunde hier")),
        (("two\n  lines here", "zwei\n\tZeilen hier"), ("two lines here", "zwei Zeilen hier")),
        (("menu entry|Open it now", "Jetzt öffnen bitte"), ("Open it now", "Jetzt öffnen bitte")),
        (("a|b means either", "a|b heißt eines davon"), ("a|b means either", "a|b heißt eines davon")),
    ],
)
def test_what_is_cleaned(given_, expected):
    assert clean(*given_) == expected


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("not translated", "not translated"),
        ("Not Translated", "not translated"),
        ("Open", "Öffnen"),
        ("<p></p>", "<br/>"),
        ("%s: %d / %d", "%s: %d von %d"),
        ("some words here", ""),
        ("a short one", "eine sehr viel längere Übersetzung als es sein dürfte, mit Erklärung"),
        ("0x00 0x01 0x02 0x03 ab cd", "0x00 0x01 0x02 0x03 ab cde"),
        ("very long " * 300, "sehr lang " * 300),
    ],
)
def test_what_is_refused(source, target):
    assert clean(source, target) is None


@settings(max_examples=25, deadline=None)
@given(source=st.text(), target=st.text())
def test_a_clean_pair_has_single_spaces_and_no_separator(source, target):
    for side in clean(source, target) or ():
        assert side == " ".join(side.split())
        assert SEPARATOR not in side


@settings(max_examples=50, deadline=None)
@given(texts=st.tuples(*[st.text("ab _&<>|", min_size=1, max_size=30)] * 2))
def test_cleaning_a_clean_pair_of_plain_words_changes_nothing(texts):
    once = clean(*texts)
    if once and not any(set("_&<>|") & set(side) for side in once):
        assert clean(*once) == once


def test_near_keys():
    assert near_key("Cannot open %s: error 5!") == near_key("cannot open {name} error 17")
    assert near_key("cannot open it") != near_key("cannot close it")


def some(count: int, group: str = "a") -> list[Pair]:
    names = ["".join(chr(97 + int(digit)) for digit in f"{i:04d}") for i in range(count)]
    return [Pair(f"the {group} word {name}", f"das {group} Wort {name}", group) for name in names]


def keys(pairs) -> set[bytes]:
    return {near_key(text) for pair in pairs for text in (pair.source, pair.target)}


@settings(max_examples=15, deadline=None)
@given(
    words=st.lists(
        st.tuples(st.sampled_from(["open", "close", "read", "write", "find"]), st.integers(0, 99), st.sampled_from("abcdefgh")), min_size=20, max_size=60
    ),
    stretch=st.sampled_from([1, 7]),
    seed=st.integers(0, 3),
)
def test_no_message_is_in_two_splits_in_either_language(words, stretch, seed):
    pairs = [Pair(f"{word} {kind} file {number}", f"{word} {kind}-Datei", f"group {kind}") for word, number, kind in words]
    try:
        found = split_pairs([*pairs, *some(80)], seed=seed, shares={"train": 0.6, "validation": 0.2, "test": 0.2}, stretch=stretch)
    except BadTask:
        return  # what was drawn left a split empty
    parts = [keys(part) for part in found.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len({pair.source for part in found.values() for pair in part}) == sum(map(len, found.values()))


def test_whole_catalogues_stay_together_and_stretches_too():
    pairs = [pair for name in "abcdefghijklmnopqrst" for pair in some(40, name)]
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    whole = split_pairs(pairs, seed=0, shares=shares)
    groups = [{pair.group for pair in part} for part in whole.values()]
    assert sum(map(len, groups)) == 20
    assert sum(map(len, whole.values())) == len(pairs)
    for part in split_pairs(pairs, seed=0, shares=shares, stretch=10).values():
        places = [pairs.index(pair) for pair in part]
        assert {place - place % 10 + i for place in places for i in range(10)} == set(places)
    assert split_pairs(pairs, seed=0, shares=shares) == whole


def test_what_cannot_be_split_is_said():
    with pytest.raises(BadTask, match='no pair is left for the split "'):
        split_pairs(some(20), seed=0, shares={"train": 0.8, "test": 0.2})
    with pytest.raises(BadTask, match="no pair is left"):
        split_pairs([], seed=0, shares={"train": 0.8, "test": 0.2})
    with pytest.raises(BadConfig, match="stretches of 0 messages"):
        split_pairs(some(20), seed=0, shares={"train": 0.8, "test": 0.2}, stretch=0)


def words(text: str) -> int:
    return len(text.replace(SEPARATOR, " | ").split())


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from("ab")), max_size=30), tokens=st.integers(1, 40))
def test_documents_hold_every_message_that_fits_in_order_and_no_more_than_asked(sizes, tokens):
    pairs = [Pair(" ".join([f"s{i}"] * a), " ".join([f"t{i}"] * b), group) for i, (a, b, group) in enumerate(sizes)]
    found = pack(pairs, words, tokens)
    assert all(words(one.source) <= tokens and words(one.target) <= tokens for one in found)
    assert all(one.source.count(SEPARATOR) == one.target.count(SEPARATOR) for one in found)
    apart = [Pair(s, t, one.group) for one in found for s, t in zip(one.source.split(SEPARATOR), one.target.split(SEPARATOR), strict=True)]
    assert apart == [pair for pair in pairs if max(words(pair.source), words(pair.target)) <= tokens]
    for one, then in itertools.pairwise(found):  # none could have taken the next message too
        first = max(words(SEPARATOR.join((a, b.split(SEPARATOR)[0]))) for a, b in zip(one[:2], then[:2], strict=True))
        assert one.group != then.group or first > tokens


def test_documents_of_nothing_are_refused():
    with pytest.raises(BadConfig, match="documents of 0 tokens"):
        pack(some(3), words, 0)


def package(tmp_path, monkeypatch, name, messages):
    raw = deb({f"./usr/share/locale/de/LC_MESSAGES/{name}.mo": mo(messages), f"./usr/share/locale/fr/LC_MESSAGES/{name}.mo": mo(messages)})
    chosen = PACKAGES[0].model_copy(update={"archive": f"{name}.deb", "package": name, "sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)})
    write(tmp_path / f"{name}.deb", raw)
    monkeypatch.setenv("LISSOME_SOURCES", str(tmp_path))
    return chosen


def test_a_corpus_comes_from_packages_and_then_from_the_cache(tmp_path, monkeypatch):
    packages = [package(tmp_path, monkeypatch, name, {pair.source: pair.target for pair in some(60, name)}) for name in ("one", "two", "three")]
    cache, shares = Cache(tmp_path / "cache"), {"train": 0.5, "validation": 0.25, "test": 0.25}
    found = corpus(cache, packages=packages, shares=shares, stretch=10)
    assert sum(map(len, found.splits.values())) == 180
    assert {pair.group for part in found.splits.values() for pair in part} == {"one/one", "two/two", "three/three"}
    monkeypatch.setattr(catalogues, "fetch", None)
    assert corpus(cache, packages=packages, shares=shares, stretch=10) == found


def test_every_package_is_pinned_and_kept_small():
    assert len({one.name for one in PACKAGES}) == len(PACKAGES)
    for one in PACKAGES:
        assert len(one.sha256) == 64
        assert one.archive.endswith("_all.deb")
        assert "apt" not in one.only
        assert one.licence
    assert sum(one.size for one in PACKAGES) < 150 * MB


def test_a_version_that_is_gone_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("LISSOME_SOURCES", raising=False)

    def gone(*_: object) -> None:
        raise Unreachable("Version '1' for 'gramps' was not found", do="run `apt-get update`")

    monkeypatch.setattr(sources, "deb_download", gone)
    with pytest.raises(Unreachable, match="was not found") as caught:
        fetch(PACKAGES[3], Cache(tmp_path))
    assert "get gramps_5.1.5-1_all.deb on another machine" in str(caught.value)


@pytest.mark.network
def test_a_real_package(tmp_path, fetched):
    chosen = next(one for one in PACKAGES if one.package == "siril-common")
    folder, _ = fetched(chosen)
    pairs = list(pairs_in(folder, "siril"))
    assert len(pairs) > 1500
    assert pairs[0].group == "siril/siril"

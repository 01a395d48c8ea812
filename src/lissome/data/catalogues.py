"""Parallel text from translated programs: the messages of Debian packages in English and German, as pairs and as documents of many messages.

A catalogue is sorted by its messages, so neighbours begin alike and what is joined to a document is no running text: it has the length of one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lissome.core.cache import Cache, digest
from lissome.core.errors import BadConfig, BadTask
from lissome.core.progress import Progress
from lissome.core.task import SplitName
from lissome.data.catalogue_packages import PACKAGES
from lissome.data.duplicates import example_key
from lissome.data.gettext_mo import read_mo
from lissome.data.sources import Source, fetch
from lissome.data.splitting import ALGORITHM, split_rows, units_of

SHARES: Mapping[SplitName, float] = {"train": 0.92, "validation": 0.03, "test": 0.05}
SEPARATOR = "\n"
"""Between the messages of a document; a cleaned message has none inside."""
CLEANING = 2
"""Raised when the same catalogues would give other pairs; part of the cache's key."""
LONGEST = 2000
"""Characters of a message; longer ones are licences and tables."""

_TAGS = "a|b|i|u|p|br|hr|tt|em|strong|span|small|big|qt|html|body|head|li|ul|ol|nobr|h[1-6]|para|filename|link|table|tr|td|th|font|code|center|div|img|sub|sup"
_MARKUP = re.compile(rf"</?(?:{_TAGS}|interface|application|title|emphasis|command|icode|note|warning|item|list)\b[^<>]*>", re.I)
_MARKER = re.compile(r"(?<![_&])[_&](?=[^\W\d_])")
_WORD = re.compile(r"[^\W\d_]{2,}")
_PLACE = re.compile(r"%(?:\(\w+\)|\d+\$)?[-+#0-9.*']*(?:[hlLqjzt]*[a-zA-Z]|\d)|\$\w+|\{[^{}]*\}|\d+|[\W_]")


class Pair(NamedTuple):
    """An English text and its German translation; group: the catalogue they come from."""

    source: str
    target: str
    group: str


@dataclass(frozen=True)
class Corpus:
    """Pairs by split; no message, and none that differs only in numbers, places to fill or punctuation, is in two of them. fingerprint: of all pairs."""

    splits: Mapping[SplitName, Sequence[Pair]]
    fingerprint: str


def corpus(
    cache: Cache | None = None,
    progress: Progress | None = None,
    *,
    packages: Sequence[Source] = PACKAGES,
    seed: int = 0,
    shares: Mapping[SplitName, float] = SHARES,
    stretch: int | None = None,
) -> Corpus:
    """The pairs of `packages`, fetched, cleaned and split the first time, from the cache afterwards.

    stretch: how many neighbouring messages of a catalogue stay in one split; None: whole catalogues do, so that the test's programs were never seen.
    Raises Unreachable, WrongChecksum, and BadTask where no pair is left.
    """
    cache = cache or Cache()
    key = digest("catalogues", CLEANING, ALGORITHM, [one.sha256 for one in packages], seed, shares, stretch)
    stored = cache.get("corpora", key)
    if stored is None:
        pairs = [pair for package in packages for pair in pairs_in(fetch(package, cache, progress), package.package)]
        split = split_pairs(pairs, seed=seed, shares=shares, stretch=stretch)
        stored = {name: [list(pair) for pair in part] for name, part in split.items()}
        cache.put("corpora", key, stored)
    splits: dict[SplitName, list[Pair]] = {name: [Pair(*row) for row in stored[name]] for name in shares}
    return Corpus(splits, digest({name: stored[name] for name in shares}))


def pairs_in(folder: Path, name: str = "") -> Iterator[Pair]:
    """The good pairs of the catalogues in `folder`, catalogue by catalogue; `name` begins their groups."""
    for path in sorted(folder.rglob("*.mo")):
        for message in read_mo(path):
            pair = clean(message.source, message.target)
            if pair is not None:
                yield Pair(*pair, f"{name}/{path.stem}" if name else path.stem)


def clean(source: str, target: str) -> tuple[str, str] | None:
    """A message and its translation as plain text, or None where they are no pair to learn from.

    Keyboard markers (_File, &File), markup and a context before "|" are taken out, white space is made single. Refused: what is not translated, has fewer
    than two words on a side, hardly any letters, or lengths that do not fit each other.
    """
    if "|" in source and "|" not in target and re.match(r"[^|\n]{1,60}\|\S", source):
        source = source.split("|", 1)[1]  # gettext's older way to write a context
    source, target = _unmarked(_plain(source), _plain(target))
    ratio = len(source) / max(1, len(target))
    if source.casefold() == target.casefold() or not 0.4 <= ratio <= 2.5 or max(len(source), len(target)) > LONGEST:
        return None
    if not (_prose(source) and _prose(target)):
        return None
    return source, target


def _plain(text: str) -> str:
    """Without markup and entities, white space single."""
    return " ".join(html.unescape(_MARKUP.sub(" ", text)).split())


def _unmarked(source: str, target: str) -> tuple[str, str]:
    """Without the one keyboard marker that both sides have. A marked word that is the same on both sides, such as foo_bar, is a name and stays."""
    found = [_MARKER.findall(text) for text in (source, target)]
    if not all(len(marks) == 1 for marks in found) or found[0] != found[1]:
        return source, target
    at = [_MARKER.search(text) for text in (source, target)]
    words = [text[text.rfind(" ", 0, one.start()) + 1 :].split(" ", 1)[0] for text, one in zip((source, target), at, strict=True) if one]
    if words[0] == words[1] and not words[0].startswith(found[0][0]):
        return source, target
    return _MARKER.sub("", source), _MARKER.sub("", target)


def _prose(text: str) -> bool:
    """Two words or more, and half of it letters or spaces."""
    return len(_WORD.findall(text)) >= 2 and sum(c.isalpha() or c == " " for c in text) >= 0.6 * len(text)


def near_key(text: str) -> bytes:
    """Equal for texts that differ only in case, numbers, places to fill (%s, {name}) and punctuation."""
    return example_key(_PLACE.sub(" ", text))


def split_pairs(pairs: Iterable[Pair], *, seed: int, shares: Mapping[SplitName, float], stretch: int | None = None) -> dict[SplitName, list[Pair]]:
    """Pairs by split, those of one group (or of one stretch of a group) together; each message once, and in one split alone.

    Where two are alike, in English or in German, the one in the smaller split stays, so that what is left of train has not been tested. Raises BadTask
    where a split is left empty.
    """
    if stretch is not None and stretch < 1:
        raise BadConfig(f"stretches of {stretch} messages cannot be made.", expected="at least 1, or None for whole catalogues")
    rows = _once(pairs)
    places = [(pair.group, i // stretch if stretch else 0) for _, group in groupby(rows, lambda pair: pair.group) for i, pair in enumerate(group)]
    parts = split_rows([0] * len(rows), shares, seed, units_of(len(rows), places)) if rows else {}
    found: dict[SplitName, list[Pair]] = {}
    seen: set[bytes] = set()
    for name in sorted(shares, key=lambda one: shares[one]):
        kept = [pair for pair in (rows[i] for i in parts.get(name, ())) if not seen & {near_key(pair.source), near_key(pair.target)}]
        seen.update(key for pair in kept for key in (near_key(pair.source), near_key(pair.target)))
        found[name] = kept
        if not kept:
            raise BadTask(f'no pair is left for the split "{name}"', expected="catalogues with enough different messages", do="give more of them, or a stretch")
    return {name: found[name] for name in shares}


def _once(pairs: Iterable[Pair]) -> list[Pair]:
    """Each English message once, the first time it comes."""
    seen: set[bytes] = set()
    kept = []
    for pair in pairs:
        key = near_key(pair.source)
        if key not in seen:
            seen.add(key)
            kept.append(pair)
    return kept


def pack(pairs: Iterable[Pair], count: Callable[[str], int], tokens: int) -> list[Pair]:
    """Documents: neighbouring messages of one group, joined by SEPARATOR on both sides alike while neither side has more than `tokens` tokens.

    count(text): its tokens; a separator is taken to be one. A message that is too long by itself is left out.
    """
    if tokens < 1:
        raise BadConfig(f"documents of {tokens} tokens cannot be made.", expected="at least 1")
    found: list[Pair] = []
    held: list[Pair] = []
    room = [tokens, tokens]
    for pair in pairs:
        sizes = [count(pair.source), count(pair.target)]
        if max(sizes) > tokens:
            continue
        full = any(left < size + 1 for left, size in zip(room, sizes, strict=True))
        if held and (full or held[0].group != pair.group):
            found.append(_joined(held))
            held, room = [], [tokens, tokens]
        room = [left - size - bool(held) for left, size in zip(room, sizes, strict=True)]
        held.append(pair)
    return [*found, _joined(held)] if held else found


def _joined(pairs: Sequence[Pair]) -> Pair:
    return Pair(SEPARATOR.join(pair.source for pair in pairs), SEPARATOR.join(pair.target for pair in pairs), pairs[0].group)

"""Text of four domains, from pinned packages: code, law, finance, general prose. What experts are asked about, and what a model is calibrated on.

code: Django's own modules. law: the licences of the SPDX list, each once. finance: what GnuCash, KMyMoney, Grisbi say to their users, in English.
general: sentences of newspapers' editorials and of film and product reviews.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lissome.core.cache import Cache
from lissome.core.errors import BadInput
from lissome.core.progress import Progress
from lissome.data.catalogue_packages import PACKAGES
from lissome.data.gettext_mo import read_mo
from lissome.data.packing import text_files, texts, token_ids
from lissome.data.sources import fetch

if TYPE_CHECKING:
    import tokenizers

FINANCE = ("gnucash-common", "kmymoney-common", "grisbi-common")
EDITORIALS = ("nytEditorialSnippets", "movieReviewSnippets", "amazonReviewSnippets")
TOGETHER = 40
"""Messages or sentences joined to one document: they are short, and stand in the file in an order."""
SHORTEST = 400
"""Characters of a document; shorter ones are left out."""
Half = Literal["even", "odd"]


def domain_texts(cache: Cache | None = None, progress: Progress | None = None, half: Half | None = None) -> dict[str, list[str]]:
    """Documents by domain, fetched the first time. half: every second one; models are calibrated on the even ones and looked at on the odd ones.

    Raises what `fetch` raises.
    """
    found = {
        "code": list(_code(fetch("django-docs", cache, progress).parent / "django")),
        "law": list(_law(fetch("licences", cache, progress))),
        "finance": [text for one in PACKAGES if one.package in FINANCE for text in _messages(fetch(one, cache, progress))],
        "general": list(_sentences(fetch("sentiment", cache, progress))),
    }
    long = {name: [text for text in documents if len(text) >= SHORTEST] for name, documents in found.items()}
    return {name: documents[half == "odd" :: 1 if half is None else 2] for name, documents in long.items()}


def given_texts(places: Mapping[str, Path]) -> dict[str, list[str]]:
    """Documents by domain from files or folders of text. Raises BadTask for what is no text."""
    return {name: list(texts(text_files(place, f"the domain {name}"))) for name, place in places.items()}


def domain_windows(
    documents: Mapping[str, Sequence[str]], tokenizer: tokenizers.Tokenizer, length: int, count: int, separator: int | None = None
) -> dict[str, list[np.ndarray]]:
    """At most `count` windows of `length` tokens for each domain, int64, from documents that lie evenly over its whole.

    No two windows have tokens of one document: what a test permutes must be exchangeable, and windows of one text are not. A window begins with a document and
    the last document's rest is dropped. separator: the token between documents; by default the tokenizer's id 0. Raises BadInput for a domain with fewer
    tokens than one window.
    """
    found = {}
    for name, texts_of in documents.items():
        order = np.random.default_rng(0).permutation(len(texts_of))
        windows = list(itertools.islice(_apart(token_ids((texts_of[i] for i in order), tokenizer), length, separator or 0), count))
        if not windows:
            raise BadInput(f"the domain {name} has fewer than {length} tokens", do="give more text of it, or shorter windows")
        found[name] = windows
    return found


def _apart(documents: Iterable[np.ndarray], length: int, separator: int) -> Iterator[np.ndarray]:
    """Windows of whole documents and the beginning of one more."""
    held: list[int] = []
    for ids in documents:
        held += [*ids.tolist(), separator] if len(ids) else []
        if len(held) >= length:
            yield np.array(held[:length], dtype=np.int64)
            held = []


def _code(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if "locale" not in path.parts:
            yield path.read_text(encoding="utf-8")


def _law(folder: Path) -> Iterator[str]:
    """Each licence's text; versions that differ in what may come later have one text."""
    seen = set()
    for path in sorted(folder.glob("*.json")):
        text = json.loads(path.read_text(encoding="utf-8")).get("licenseText", "")
        if text not in seen:
            seen.add(text)
            yield text


def _messages(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.mo")):
        said = [one.source.replace("_", "").replace("&", "") for one in read_mo(path)]
        said = [one for one in said if len(one.split()) >= 4]
        yield from ("\n".join(said[at : at + TOGETHER]) for at in range(0, len(said), TOGETHER))


def _sentences(folder: Path) -> Iterator[str]:
    for name in EDITORIALS:
        lines = (folder / f"{name}_GroundTruth.txt").read_text(encoding="latin-1").splitlines()
        said = [line.split("\t")[2].strip() for line in lines if line.count("\t") >= 2]
        yield from ("\n".join(said[at : at + TOGETHER]) for at in range(0, len(said), TOGETHER))

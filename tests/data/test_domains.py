"""Texts of four domains."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput, BadTask
from lissome.data import domains
from lissome.data.domains import SHORTEST, domain_texts, domain_windows, given_texts
from lissome.data.sources import SOURCES
from lissome.data.vocabulary import train_tokenizer

from .archives import mo, write

LONG = "Some words that go on and on. " * (SHORTEST // 20)


def test_documents_come_from_their_sources(tmp_path, monkeypatch):
    files = {
        "django-docs/django/core/files.py": LONG,
        "django-docs/django/locale/de/formats.py": LONG,
        "django-docs/django/empty.py": "",
        "licences/MIT.json": json.dumps({"licenseText": LONG + "MIT"}),
        "licences/MIT-again.json": json.dumps({"licenseText": LONG + "MIT"}),
        **{f"sentiment/{name}_GroundTruth.txt": f"1\t2.0\t{LONG}\n" for name in domains.EDITORIALS},
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    (tmp_path / "django-docs" / "docs").mkdir()
    for name in domains.FINANCE:
        (tmp_path / f"messages-{name}").mkdir()
        write(tmp_path / f"messages-{name}" / "a.mo", mo({"_Open": "Auf", f"The account has no opening balance {LONG}": "Keins"}, "<"))

    def fetch(wanted, *_):
        name = wanted if isinstance(wanted, str) else wanted.name
        return tmp_path / name / ("docs" if name == "django-docs" else "")

    monkeypatch.setattr(domains, "fetch", fetch)
    found = domain_texts()
    assert {name: len(texts) for name, texts in found.items()} == {"code": 1, "law": 1, "finance": 3, "general": 3}
    halves = domain_texts(half="even"), domain_texts(half="odd")
    assert {name: (halves[0][name], halves[1][name]) for name in found} == {name: (texts[::2], texts[1::2]) for name, texts in found.items()}
    assert found["finance"][0].startswith("The account has no opening balance") and "Auf" not in found["finance"][0]


def test_its_sources_are_in_the_table():
    assert {"django-docs", "licences", "sentiment"} <= set(SOURCES)
    assert {one.package for one in domains.PACKAGES} >= set(domains.FINANCE)


def test_windows_have_one_length_and_a_domain_without_enough_is_named():
    tokenizer = train_tokenizer([LONG], 300)
    found = domain_windows({"a": [LONG] * 5, "b": [LONG]}, tokenizer, 16, 3)
    assert [len(every) for every in found.values()] == [3, 1]
    assert all(window.shape == (16,) and window.dtype == np.int64 for every in found.values() for window in every)
    with pytest.raises(BadInput, match="the domain b has fewer than 4000 tokens"):
        domain_windows({"b": [LONG]}, tokenizer, 4000, 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(2, 50))
def test_no_two_windows_share_a_document(lengths, length):
    """Every token of document i is i + 1."""
    windows = list(domains._apart((np.full(n, i + 1) for i, n in enumerate(lengths)), length, 0))
    owners = [set(one[one > 0].tolist()) for one in windows]
    assert len(set().union(*owners)) == sum(map(len, owners)) and all(len(one) == length and one[0] > 0 for one in windows)
    assert bool(windows) == (sum(n + 1 for n in lengths if n) >= length)


def test_texts_of_ones_own(tmp_path):
    (tmp_path / "law.txt").write_text("We, the parties.")
    assert given_texts({"law": tmp_path / "law.txt"}) == {"law": ["We, the parties."]}
    with pytest.raises(BadTask, match=r'"[^"]*none.txt" does not exist'):
        given_texts({"law": tmp_path / "none.txt"})

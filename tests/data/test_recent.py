"""Text of 2026."""

from __future__ import annotations

import pytest

from lissome.core.errors import BadInput
from lissome.data import recent
from lissome.data.recent import FILES, SHORTEST, recent_text
from lissome.data.sources import SOURCES


def test_only_new_files_that_say_something(tmp_path, monkeypatch):
    for name in FILES:
        for path in (
            "releases/6.1.txt",
            "releases/6.0.1.txt",
            "releases/5.2.txt",
            "releases/1.0.txt",
            "whats_new/v1.9.rst",
            "whats_new/v0.20.rst",
            "changelog_21.rst",
        ):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text("new " * (10 if path.endswith("6.0.1.txt") else SHORTEST))
    monkeypatch.setattr(recent, "fetch", lambda name, *_: tmp_path / name)
    assert list(recent_text()) == ["django-docs/releases/6.1.txt", "scikit-learn-docs/whats_new/v1.9.rst", "sqlalchemy-docs/changelog_21.rst"]
    (tmp_path / "sqlalchemy-docs" / "changelog_21.rst").unlink()
    with pytest.raises(BadInput, match='the source "sqlalchemy-docs" holds none of'):
        recent_text()


def test_its_sources_are_in_the_table():
    assert set(FILES) <= set(SOURCES)


@pytest.mark.network
@pytest.mark.slow
def test_there_is_enough_of_it(fetched):
    for name in FILES:
        _, cache = fetched(name)
    found = recent_text(cache)
    assert sum(map(len, found.values())) > 500_000
    assert "2026" in found["django-docs/releases/6.1.txt"]

"""Records beside models: what was written is read, and what is no record says so."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lissome.core.config import Config
from lissome.core.errors import BadArtifact
from lissome.core.record import read_record, write_record


class Asked(Config):
    share: float = 0.5


@dataclass(frozen=True)
class Found:
    folder: str
    kept: tuple[float, ...]
    note: str | None = None


def test_a_record_reads_back_beside_what_it_came_of(tmp_path):
    found = Found("out", (0.5, 0.25))
    write_record(tmp_path / "found.json", found, Asked(share=0.75), "model", "task")
    assert read_record(Found, tmp_path / "found.json", "find") == found
    assert '"share": 0.75' in (tmp_path / "found.json").read_text()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_what_is_no_record_names_the_verb(tmp_path, text):
    if text is not None:
        (tmp_path / "found.json").write_text(text)
    with pytest.raises(BadArtifact, match=r"found.json cannot be read: .*\n.*lissome find"):
        read_record(Found, tmp_path / "found.json", "find")

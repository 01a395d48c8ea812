"""Prose that no model of 2024 has read: release notes that packages of 2026 carry, in files that were begun after November 2024."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lissome.core.cache import Cache
from lissome.core.errors import BadInput
from lissome.core.progress import Progress
from lissome.data.sources import fetch

FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "django-docs": ("releases/5.2.?*.txt", "releases/6.*.txt", "topics/tasks.txt", "ref/tasks.txt", "ref/csp.txt", "howto/csp.txt"),
        "scikit-learn-docs": ("whats_new/v1.[789].rst",),
        "sqlalchemy-docs": ("changelog_21.rst", "migration_21.rst"),
    }
)
"""Which files of a source are new. Django 5.2.1 is of May 2025 and the tasks and CSP pages came with 6.0, scikit-learn 1.7 is of June 2025, SQLAlchemy 2.1 of
2026 (some of its notes lay in the repository before they were released)."""
SHORTEST = 2_000
"""Characters below which a file is left out: notes of a release that changed one thing are all form."""


def recent_text(cache: Cache | None = None, progress: Progress | None = None) -> dict[str, str]:
    """Documents by name ("django-docs/releases/6.1.txt"), in order of name, fetched the first time. Raises what `fetch` raises."""
    found = {}
    for name, patterns in FILES.items():
        folder = fetch(name, cache, progress)
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if not paths:
            raise BadInput(
                f'the source "{name}" holds none of {", ".join(patterns)}', where=str(folder), do="this is an error in lissome's table: please report it"
            )
        for path in paths:
            text = path.read_text(encoding="utf-8")
            if len(text) >= SHORTEST:
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = text
    return found

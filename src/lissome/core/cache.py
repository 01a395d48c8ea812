"""A content-keyed cache of folders: what was learned survives kill -9, and equal work is never done twice.

An entry appears by one rename of a finished folder, so a half-written entry is never seen.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import BadInput, EnvironmentLacks, closest

LEDGER = "ledger"
"""The kind that records which plans a test split has judged. It is no saved work: clearing everything keeps it."""


def digest(*parts: Any) -> str:
    """A 16-hex-digit key of JSON-able parts; dict order does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    """Chunked sha256, for Python 3.10."""
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()


@contextmanager
def disk_errors(what: str, where: Path) -> Iterator[None]:
    """Turn "no space left" and "read-only" into an error that says what to free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentLacks(
                f"no disk space left while writing {what}",
                where=str(where),
                do="free some space (`lissome cache clear` frees lissome's own), or set LISSOME_CACHE to a larger disk",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise EnvironmentLacks(
                f"cannot write {what}: {error.strerror}", where=str(where), do="choose a folder you may write to (LISSOME_CACHE for the cache)"
            ) from error
        raise


UNFINISHED = ".lissome-unfinished"
"""A file that stands in an output folder while it is being written."""


def check_out(out: Path, record: str) -> None:
    """Raise BadInput unless a verb may write into `out`: it is new, empty, or holds the `record` of an earlier run or what a killed one left."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not any((out / name).is_file() for name in (record, UNFINISHED)))):
        raise BadInput("the output folder exists and holds something else.", where=str(out), do="name a new folder")


@contextmanager
def writing(what: str, out: Path) -> Iterator[None]:
    """Make the folder `out`, to be filled inside; where that ends early, by kill -9 too, the same verb may write into it again."""
    with disk_errors(what, out):
        out.mkdir(parents=True, exist_ok=True)
        (out / UNFINISHED).touch()
        yield
        (out / UNFINISHED).unlink(missing_ok=True)


TAG = "CACHEDIR.TAG"
"""Marks a cache folder for backup tools too (https://bford.info/cachedir)."""


@dataclass(frozen=True)
class Entry:
    """One finished cache entry, for `lissome cache`."""

    kind: str
    key: str
    path: Path
    bytes: int
    made: float


class Cache:
    """Folders under `root`, each at kind/key."""

    def __init__(self, root: Path | None = None):
        default = os.environ.get("LISSOME_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lissome"
        self.root = Path(root or default)

    def path(self, kind: str, key: str) -> Path:
        """Where the entry is or would be."""
        return self.root / kind / key

    def folder(self, kind: str, key: str, make: Callable[[Path], object]) -> Path:
        """The entry's folder; `make(empty folder)` fills it the first time. A failed make leaves nothing.

        A make that ended early returns the key (str) of what it did: the folder is kept under that one, and the next call makes the entry.
        """
        final = self.path(kind, key)
        if final.is_dir():
            return final
        with disk_errors(f"the {kind} cache", self.root):
            self._place(final.parent)
            working = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=final.parent))
            try:
                early = make(working)
                final = self.path(kind, early) if isinstance(early, str) else final
                try:
                    working.rename(final)
                except OSError:
                    if not final.is_dir():  # else another process finished the same entry first
                        raise
            finally:
                shutil.rmtree(working, ignore_errors=True)
        return final

    def get(self, kind: str, key: str) -> Any | None:
        """A stored JSON value, or None. A damaged file counts as absent, so that the value is made again."""
        path = self.path(kind, key) / "value.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError:  # neither JSON nor UTF-8
            return None

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store a JSON value, replacing what was there."""
        folder = self.path(kind, key)
        with disk_errors(f"the {kind} cache", self.root):
            self._place(folder)
            temporary = folder / f".value-{os.getpid()}.json"
            _write_json(temporary, value)
            temporary.replace(folder / "value.json")

    def _place(self, folder: Path) -> None:
        """Make a folder below the root. The root gets the usual tag of cache folders, without which nothing is ever removed from it."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / TAG).exists() and not any(self.root.iterdir()):
            (self.root / TAG).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# A cache of lissome; `lissome cache clear` empties it.\n")
        folder.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        """Every finished entry, largest first."""
        found = []
        for folder in self.root.glob("*/*") if self.root.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                found.append(Entry(folder.parent.name, folder.name, folder, size, folder.stat().st_mtime))
        return sorted(found, key=lambda entry: -entry.bytes)

    def clear(self, kind: str | None = None) -> int:
        """Remove all entries, or those of one kind; return the bytes freed. Abandoned half-written folders go too.

        Without `kind`, the ledger (the record of what a test split has judged) stays; it goes only when asked for by name.
        Raises BadInput for a kind that is not there, and for a folder that held other things before it became a cache.
        """
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / TAG).is_file():
            raise BadInput(
                "this folder was not made by lissome, so nothing in it is removed.", where=str(self.root), do="point LISSOME_CACHE at a folder of its own"
            )
        # What is removed comes from listing the root, never from the caller's text: "../x" or "/x" is no kind.
        folders = {path.name: path for path in self.root.iterdir() if path.is_dir()} if self.root.is_dir() else {}
        known = sorted(folders)
        if kind is not None and kind not in folders:
            raise BadInput(f'nothing cached of kind "{kind}".{closest(kind, known)}', where=str(self.root), expected=", ".join(known) or "nothing: it is empty")
        going = [name for name in known if name != LEDGER] if kind is None else [kind]
        freed = sum(entry.bytes for entry in self.entries() if entry.kind in going)
        for name in going:
            shutil.rmtree(folders[name], ignore_errors=True)
        return freed

    def sweep(self, older_than_s: float = 86_400) -> None:
        """Remove half-written folders that a killed process left behind."""
        for folder in self.root.glob("*/.*-*") if (self.root / TAG).is_file() else ():
            if folder.is_dir() and time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)


def record_use(cache: Cache, task: str, model: str, plan: str) -> int:
    """Note that the test split judged `plan`; return how many different plans it has judged for this model."""
    key = digest(LEDGER, task, model)
    plans = set(cache.get(LEDGER, key) or ())
    plans.add(plan)
    cache.put(LEDGER, key, sorted(plans))
    return len(plans)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")

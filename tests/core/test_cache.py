from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.cache import TAG, Cache, check_out, digest, disk_errors, file_sha256, writing
from lissome.core.errors import BadInput, EnvironmentLacks


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def left_behind(cache: Cache) -> list[str]:
    return sorted(str(path.relative_to(cache.root)) for path in cache.root.rglob("*") if path.name != TAG) if cache.root.is_dir() else []


def test_made_once_then_found(cache):
    made = []

    def make(folder: Path) -> None:
        made.append(1)
        (folder / "weights").write_text("w")

    first, second = cache.folder("model", "k", make), cache.folder("model", "k", make)
    assert first == second == cache.path("model", "k")
    assert (second / "weights").read_text() == "w"
    assert made == [1]


def test_what_ended_early_is_kept_under_its_own_key_and_made_again(cache):
    made = []

    def make(folder: Path) -> str | None:
        made.append(1)
        (folder / "weights").write_text(str(len(made)))
        return "k-early" if len(made) < 3 else None

    first, second = cache.folder("model", "k", make), cache.folder("model", "k", make)
    assert first == second == cache.path("model", "k-early")
    assert (second / "weights").read_text() == "1", "an entry that is there stays"
    assert cache.folder("model", "k", make) == cache.path("model", "k")
    assert left_behind(cache) == ["model", "model/k", "model/k-early", "model/k-early/weights", "model/k/weights"]


def test_a_failed_make_leaves_nothing_and_can_be_repeated(cache):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cache.folder("model", "k", fail)
    assert left_behind(cache) == ["model"]
    assert cache.folder("model", "k", lambda folder: (folder / "a").touch()).is_dir()


def test_ctrl_c_leaves_nothing(cache):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.folder("model", "k", interrupted)
    assert cache.entries() == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_kill_9_leaves_no_entry_and_the_next_run_makes_it(cache):
    script = """
        import os, signal, sys
        from pathlib import Path
        from lissome.core.cache import Cache
        def make(folder):
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        Cache(Path(sys.argv[1])).folder("model", "k", make)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(cache.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert cache.entries() == []
    cache.folder("model", "k", lambda folder: (folder / "whole").write_text("y"))
    assert [path.name for path in cache.path("model", "k").iterdir()] == ["whole"]
    abandoned = [path for path in (cache.root / "model").iterdir() if path.name.startswith(".")]
    assert len(abandoned) == 1
    cache.sweep()
    assert abandoned[0].exists()  # young: it may belong to a running process
    os.utime(abandoned[0], (0, 0))
    cache.sweep()
    assert not abandoned[0].exists()
    assert cache.path("model", "k").is_dir()


def test_two_that_finish_the_same_entry_agree(cache):
    ready = threading.Barrier(2)

    def make(folder: Path) -> None:
        (folder / "a").write_text("same")
        ready.wait(timeout=10)

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cache.folder("model", "k", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache.path("model", "k")] * 2
    assert left_behind(cache) == ["model", os.path.join("model", "k"), os.path.join("model", "k", "a")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_what_to_free_and_leaves_nothing(cache):
    with pytest.raises(EnvironmentLacks) as caught:
        cache.folder("engines", "k", lambda folder: Path("/dev/full").write_text("x"))
    text = str(caught.value)
    assert "no disk space left while writing the engines cache" in text
    assert "lissome cache clear" in text
    assert "LISSOME_CACHE" in text
    assert str(cache.root) in text
    assert caught.value.exit_code == 4
    assert left_behind(cache) == ["engines"]


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "no disk space"), (errno.EDQUOT, "no disk space"), (errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")]
)
def test_disk_errors_teach(number, says):
    with pytest.raises(EnvironmentLacks, match=says), disk_errors("the report", Path("/somewhere")):
        raise OSError(number, os.strerror(number))


def test_other_errors_of_the_disk_pass_through():
    with pytest.raises(FileNotFoundError), disk_errors("the report", Path("/somewhere")):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_cache_below_a_file_is_explained_or_at_least_an_oserror(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((EnvironmentLacks, OSError)):
        Cache(tmp_path / "file").put("kind", "k", 1)


def test_values(cache):
    assert cache.get("table", "k") is None
    cache.put("table", "k", {"a": [1, 2]})
    assert cache.get("table", "k") == {"a": [1, 2]}
    cache.put("table", "k", "new")
    assert cache.get("table", "k") == "new"
    assert [path.name for path in cache.path("table", "k").iterdir()] == ["value.json"]


@pytest.mark.parametrize("damaged", [b"", b'{"a": [1,', b"\xff\xfe"])
def test_a_damaged_value_counts_as_absent_and_can_be_replaced(cache, damaged):
    cache.put("table", "k", 1)
    (cache.path("table", "k") / "value.json").write_bytes(damaged)
    assert cache.get("table", "k") is None
    cache.put("table", "k", 2)
    assert cache.get("table", "k") == 2


def test_a_value_that_cannot_be_written_leaves_the_old_one(cache, monkeypatch):
    cache.put("table", "k", "old")
    real = Path.write_text

    def full(self, *args, **kwargs):
        real(self, "{half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(EnvironmentLacks, match="no disk space"):
            cache.put("table", "k", "new")
    assert cache.get("table", "k") == "old"


def test_entries_largest_first_and_clear(cache):
    cache.put("a", "small", 1)
    cache.put("b", "large", "x" * 1000)
    entries = cache.entries()
    assert [(entry.kind, entry.key) for entry in entries] == [("b", "large"), ("a", "small")]
    assert entries[0].bytes == 1002
    assert cache.clear("b") == 1002
    assert [entry.kind for entry in cache.entries()] == ["a"]
    assert cache.clear() == 1
    assert cache.entries() == []
    assert Cache(cache.root / "never made").clear() == 0


def test_only_what_is_cached_can_be_cleared(cache, tmp_path):
    """Text that leads out of the cache is a kind that is not there."""
    precious = tmp_path / "precious" / "k"
    precious.mkdir(parents=True)
    (precious / "value.json").write_text("1")
    cache.put("forms", "k", 1)
    for kind in ("../precious", str(precious.parent), "forms/k", "forms/../../precious", ".", "..", ""):
        with pytest.raises(BadInput) as caught:
            cache.clear(kind)
        assert f'nothing cached of kind "{kind}".' in str(caught.value)
    assert (precious / "value.json").exists()
    assert [entry.kind for entry in cache.entries()] == ["forms"]


def test_a_mistyped_kind_names_the_nearest(cache):
    cache.put("forms", "k", 1)
    cache.put("probe", "k", 1)
    with pytest.raises(BadInput) as caught:
        cache.clear("form")
    assert 'nothing cached of kind "form". Did you mean "forms"?' in str(caught.value)
    assert "Expected: forms, probe" in str(caught.value)
    assert str(cache.root) in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(BadInput, match="Expected: nothing: it is empty"):
        Cache(cache.root / "never made").clear("forms")


def test_clearing_everything_keeps_the_ledger_unless_it_is_named(cache):
    cache.put("ledger", "k", ["plan"])
    cache.put("forms", "k", 1)
    assert cache.clear() == 1
    assert cache.get("ledger", "k") == ["plan"]
    assert cache.clear("ledger") == len('["plan"]')
    assert cache.entries() == []


def test_where_the_cache_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "mine"))
    assert Cache().root == tmp_path / "mine"
    monkeypatch.delenv("LISSOME_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().root == tmp_path / "xdg" / "lissome"


@given(value=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), min_size=2))
def test_digest_ignores_the_order_of_keys_and_nothing_else(value):
    turned = dict(reversed(value.items()))
    assert digest("kind", value) == digest("kind", turned)
    assert digest("kind", value) != digest("kinds", value)
    assert len(digest(value)) == 16


def test_digest_keeps_parts_apart():
    assert digest("ab", "c") != digest("a", "bc")


def test_file_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_folder_that_is_not_a_cache_is_never_emptied(tmp_path):
    """LISSOME_CACHE set to a home folder by mistake: entries may be written, but nothing is removed."""
    (tmp_path / "letters" / ".git-old").mkdir(parents=True)
    cache = Cache(tmp_path)
    cache.put("kind", "key", 1)
    with pytest.raises(BadInput, match="was not made by lissome, so nothing in it is removed"):
        cache.clear()
    cache.sweep(older_than_s=-1)
    assert (tmp_path / "letters" / ".git-old").is_dir()


def test_a_folder_that_was_not_finished_may_be_written_again(tmp_path):
    out = tmp_path / "out"

    def interrupted() -> None:
        with writing("the model", out):
            (out / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    check_out(out, "record.json")
    with writing("the model", out):
        (out / "weights").write_text("whole")
    with pytest.raises(BadInput, match="the output folder exists and holds something else"):
        check_out(out, "record.json")
    check_out(out, "weights")
    assert [path.name for path in out.iterdir()] == ["weights"]

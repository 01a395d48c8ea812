"""The registry clients, against a registry that is a folder on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from lissome.core.errors import Unreachable
from lissome.data import clients
from lissome.data.clients import WrongChecksum, deb_download, npm_pack, pip_download


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks at instead of an index."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name in [key for key in os.environ if key.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(key, value)
    return folder


def sdist(registry: Path, setup: str, project: str | None = None, name: str = "tiny") -> tuple[Path, str]:
    """A source archive tiny 1.0 and its sha256. project: its pyproject.toml."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = registry / f"{stem}.tar.gz"
    files = {"setup.py": setup, "PKG-INFO": f"Metadata-Version: 1.0\nName: {name}\nVersion: 1.0\n", **({"pyproject.toml": project} if project else {})}
    with tarfile.open(path, "w:gz") as file:
        for member, text in files.items():
            info = tarfile.TarInfo(f"{stem}/{member}")
            info.size = len(text.encode())
            file.addfile(info, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_a_source_archive_is_downloaded_and_its_setup_is_not_run(registry: Path, into: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "was-run"
    path, sha = sdist(registry, f"open({str(sentinel)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='tiny', version='1.0')\n")
    got = pip_download("tiny", "1.0", sha, True, into)
    assert got.read_bytes() == path.read_bytes()
    assert not sentinel.exists()


@pytest.mark.parametrize("backend", ["setuptools.build_meta", "mesonpy"])
def test_a_named_back_end_is_not_run_either_whatever_python_it_asks_for(registry: Path, into: Path, tmp_path: Path, backend: str) -> None:
    sentinel = tmp_path / "was-run"
    project = f"[build-system]\nrequires = []\nbuild-backend = {backend!r}\n[project]\nname = 'tiny-docs'\nversion = '1.0'\nrequires-python = '>=9'\n"
    path, sha = sdist(registry, f"open({str(sentinel)!r}, 'w').close()\n", project, "tiny-docs")
    assert pip_download("tiny-docs", "1.0", sha, True, into).read_bytes() == path.read_bytes()
    assert not sentinel.exists()


def test_another_file_under_the_same_version_is_refused_with_both_sums(registry: Path, into: Path) -> None:
    _, sha = sdist(registry, "raise SystemExit('must not run')")
    pinned = "a" * 64
    with pytest.raises(WrongChecksum) as caught:
        pip_download("tiny", "1.0", pinned, True, into)
    text = str(caught.value)
    assert sha in text
    assert pinned in text
    assert "do not use it" in text
    assert caught.value.exit_code == 2


def test_a_registry_without_the_package_says_so(registry: Path, into: Path) -> None:
    with pytest.raises(Unreachable, match=r"pip download tiny==1.0` brought nothing: .*No matching distribution") as caught:
        pip_download("tiny", "1.0", "a" * 64, True, into)
    assert caught.value.exit_code == 4


def test_no_answer_in_time(registry: Path, into: Path) -> None:
    with pytest.raises(Unreachable, match=r"gave no answer within 0 s"):
        pip_download("tiny", "1.0", "a" * 64, True, into, timeout_s=0.01)


def test_an_unreachable_index_is_named_without_its_address(registry: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(Unreachable) as caught:
        pip_download("tiny", "1.0", "a" * 64, False, into)
    assert "secret" not in str(caught.value)
    assert "Failed to establish a new connection" in str(caught.value)


def test_without_pip_the_way_out_is_named(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="pip is not installed here") as caught:
        pip_download("tiny", "1.0", "a" * 64, True, into)
    assert "ensurepip" in str(caught.value)


def test_without_npm_the_way_out_is_named(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="npm is not installed") as caught:
        npm_pack("tiny", "1.0", "a" * 64, into)
    assert "Node.js" in str(caught.value)


def npm_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_npm_leaves_its_archive(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_stand_in(tmp_path, monkeypatch, 'printf "%s" "$*" > tiny-1.0.tgz')
    got = npm_pack("tiny", "1.0", "a" * 64, into)
    assert got.name == "tiny-1.0.tgz"
    assert "pack tiny@1.0 --ignore-scripts" in got.read_text()


def test_npm_that_fails_is_quoted(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_stand_in(tmp_path, monkeypatch, "echo 'npm error code ETARGET at http://mirror.example/tiny' >&2; exit 1")
    with pytest.raises(Unreachable, match=r"npm error code ETARGET at .address."):
        npm_pack("tiny", "1.0", "a" * 64, into)


def apt_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_apt_leaves_its_archive(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_stand_in(tmp_path, monkeypatch, 'printf "%s" "$*" > tiny_1%3a1.0_all.deb')
    got = deb_download("tiny", "1:1.0", "a" * 64, into)
    assert got.name == "tiny_1%3a1.0_all.deb"
    assert "download tiny=1:1.0" in got.read_text()


@pytest.mark.parametrize("said", ["E: Version '1.0' for 'tiny' was not found", "E: Unable to locate package tiny"])
def test_a_debian_version_that_is_not_there_names_the_reason(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    apt_stand_in(tmp_path, monkeypatch, f'echo "{said}" >&2; exit 100')
    with pytest.raises(Unreachable, match=said.removeprefix("E: ")) as caught:
        deb_download("tiny", "1.0", "a" * 64, into)
    assert "apt-get update" in str(caught.value)
    assert "one that was replaced is gone" in str(caught.value)
    assert caught.value.exit_code == 4


def test_apt_that_fails_is_quoted(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_stand_in(tmp_path, monkeypatch, "echo 'E: Failed to fetch http://mirror.example/tiny' >&2; exit 100")
    with pytest.raises(Unreachable, match=r"brought nothing: Failed to fetch .address."):
        deb_download("tiny", "1.0", "a" * 64, into)


def test_without_apt_the_way_out_is_named(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="apt-get is not installed") as caught:
        deb_download("tiny", "1.0", "a" * 64, into)
    assert "Debian 12" in str(caught.value)

"""Archives from a hostile registry: nothing may land outside the folder or beyond the declared size."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.data.unpack import UnsafeArchive, unpack

LIMIT = 100_000
BAD_NAMES = ["../evil", "a/../../evil", "/etc/evil", "a/..", "..\\evil", "C:evil", "C:\\evil", "\\\\host\\evil"]


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            file.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(path: Path, *members: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "into"
    folder.mkdir(parents=True)
    return folder


def outside(into: Path) -> list[Path]:
    return [path for path in into.parent.rglob("*") if path != into and into not in path.parents]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_tar_with_a_path_outside_is_refused(name: str, tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", (member(name), b"x"))
    with pytest.raises(UnsafeArchive, match="outside its folder") as caught:
        unpack(archive, into, LIMIT)
    assert str(archive) in str(caught.value)
    assert not outside(into)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_zip_with_a_path_outside_is_refused(name: str, tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match="outside its folder"):
        unpack(zipped(tmp_path / "a.whl", (name, b"x", 0)), into, LIMIT)
    assert not outside(into)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tgz", (member("link", kind, "../.."), b""), (member("link/evil"), b"x"))
    with pytest.raises(UnsafeArchive, match='"link" in it is a link or a device'):
        unpack(archive, into, LIMIT)
    assert not outside(into)


def test_a_link_in_a_zip_is_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match="link or a device"):
        unpack(zipped(tmp_path / "a.zip", ("link", b"../..", stat.S_IFLNK | 0o777)), into, LIMIT)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_bomb_stops_at_the_declared_size(suffix: str, tmp_path: Path, into: Path) -> None:
    path, data = tmp_path / f"bomb.{suffix}", b"\0" * 5_000_000
    archive = zipped(path, ("big", data, 0)) if suffix == "zip" else tar(path, (member("big"), data))
    assert archive.stat().st_size < LIMIT
    with pytest.raises(UnsafeArchive, match="more than 100,000 bytes unpacked"):
        unpack(archive, into, LIMIT)


def test_many_small_files_count_together(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match="bytes unpacked"):
        unpack(tar(tmp_path / "a.tar", *[(member(f"f{i}"), b"x" * 40_000) for i in range(3)]), into, LIMIT)


def test_too_many_files_are_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match="more than 5 files"):
        unpack(tar(tmp_path / "a.tar", *[(member(f"f{i}"), b"") for i in range(6)]), into, LIMIT, max_files=5)


def test_the_same_name_twice_is_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match='"f" in it cannot be written: File exists'):
        unpack(tar(tmp_path / "a.tar", (member("f"), b"good"), (member("f"), b"evil")), into, LIMIT)


def test_a_file_used_as_a_folder_is_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match='"f/g" in it cannot be written'):
        unpack(tar(tmp_path / "a.tar", (member("f"), b"x"), (member("f/g"), b"x")), into, LIMIT)


def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path, into: Path) -> None:
    with pytest.raises(UnsafeArchive, match="File name too long"):
        unpack(tar(tmp_path / "a.tar", (member("f" * 300), b"x")), into, LIMIT)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 cut short", b"\x1f\x8b\x08\x00 cut short"])
def test_what_is_no_archive_is_named(data: bytes, tmp_path: Path, into: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="cannot be unpacked") as caught:
        unpack(path, into, LIMIT)
    assert "fetch it again" in str(caught.value)


def test_a_truncated_archive_is_an_error(tmp_path: Path, into: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", (member("f"), bytes(range(256)) * 200))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(path, into, LIMIT)


names = st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@given(parts=st.lists(st.lists(st.one_of(names, st.sampled_from(["..", ".", "", "/"])), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_no_name_ever_leaves_the_folder(parts: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("case")
    into = root / "outer" / "into"
    into.mkdir(parents=True)
    archive = tar(root / "a.tar.gz", *[(member("/".join(p)), b"x") for p in parts])
    with contextlib.suppress(BadInput):
        unpack(archive, into, LIMIT)
    assert not outside(into)


def test_contents_arrive_whole(tmp_path: Path, into: Path) -> None:
    unpack(tar(tmp_path / "a.tgz", (member("d", tarfile.DIRTYPE), b""), (member("d/f.txt"), b"hello"), (member("./g"), b"there")), into, LIMIT)
    assert (into / "d/f.txt").read_bytes() == b"hello"
    assert (into / "g").read_bytes() == b"there"

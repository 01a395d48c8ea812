"""Download one pinned package with its registry's ordinary client, pip, npm or apt-get: mirrors, proxies and credentials set up for it hold here too."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lissome.core.errors import BadInput, Unreachable

TIMEOUT_S = 900
"""Longest wait for one client. Large enough for 100 MB at 1 Mbit/s."""

INERT_BACKEND = '''
"""Stands in for a build back-end while pip downloads a source archive: gives the metadata pip asks for and runs nothing of the archive."""
import os

class _Inert:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        name, version = os.environ["LISSOME_SDIST"].split()
        folder = f"{name.replace('-', '_')}-{version}.dist-info"
        os.makedirs(os.path.join(metadata_directory, folder))
        with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as file:
            file.write(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return folder

__legacy__ = _Inert()
get_requires_for_build_wheel, prepare_metadata_for_build_wheel = __legacy__.get_requires_for_build_wheel, __legacy__.prepare_metadata_for_build_wheel
'''
STOOD_IN = ("setuptools.build_meta", "mesonpy")
"""The build back-ends that the source archives in the table name."""


class WrongChecksum(BadInput):
    """An archive whose sha256 is not the pinned one."""


def wrong_checksum(where: str, expected: str, found: str) -> WrongChecksum:
    """The error for a file that is not the pinned one."""
    return WrongChecksum(
        f"the archive's sha256 is {found}",
        where=where,
        expected=f"sha256 {expected}",
        do="delete the file and fetch it again; if it stays so, your registry or mirror serves another file under this version: do not use it",
    )


def pip_download(package: str, version: str, sha256: str, sdist: bool, into: Path, timeout_s: float = TIMEOUT_S) -> Path:
    """Download one wheel or source archive into the empty folder `into`; return the file.

    pip is given the hash, so it refuses a wrong file before it does anything with it. For a source archive pip insists on asking the build back-end for
    metadata, which would run the archive's setup.py: an inert back-end takes the place of setuptools and meson (no build isolation, first on PYTHONPATH), so
    that nothing inside the archive is executed. Holds for archives that bring no back-end of their own, which is what those in the table are; as they are
    only read, it does not matter for which Python they were written.
    Raises WrongChecksum, Unreachable.
    """
    requirements = into / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = ["--no-binary", ":all:", "--no-build-isolation", "--ignore-requires-python"] if sdist else ["--only-binary", ":all:"]
    arguments = ["download", "--no-deps", *kind, "--no-input", "--retries", "1", "--timeout", "20", "-r", str(requirements), "-d", str(into / "files")]
    # PIP_USE_PEP517 rather than the option: newer pips always build that way and may drop the option
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USE_PEP517": "1", "LISSOME_SDIST": f"{package} {version}"}
    if sdist:
        shim = into / "inert"
        for module in STOOD_IN:
            at = shim.joinpath(*module.split(".")).with_suffix(".py")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(INERT_BACKEND, encoding="utf-8")
        (shim / "setuptools" / "__init__.py").write_text("", encoding="utf-8")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(shim), os.environ.get("PYTHONPATH", "")]))
    output = _run([*_pip(package), *arguments], into, environment, f"pip download {package}=={version}", timeout_s)
    return _only_file(into / "files", output, f"pip download {package}=={version}", sha256)


def npm_pack(package: str, version: str, sha256: str, into: Path, timeout_s: float = TIMEOUT_S) -> Path:
    """Download one npm package's archive into the empty folder `into`; return the file. No script of the package runs. Raises Unreachable."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable(f"npm is not installed, and {package} is only on npm's registry.", do="install npm (it comes with Node.js)")
    folder = into / "files"
    folder.mkdir()
    arguments = ["pack", f"{package}@{version}", "--ignore-scripts", "--fetch-retries", "1", "--fetch-timeout", "60000"]
    output = _run([npm, *arguments], folder, dict(os.environ), f"npm pack {package}@{version}", timeout_s)
    return _only_file(folder, output, f"npm pack {package}@{version}", sha256)


def deb_download(package: str, version: str, sha256: str, into: Path, timeout_s: float = TIMEOUT_S) -> Path:
    """Download one Debian package into the empty folder `into`; return the file. Nothing is installed, no script of the package runs, no root is needed.

    apt-get reads the lists that `apt-get update` fetched last. A release holds one version of a package: one that was replaced there is gone, and an error
    says so. Raises Unreachable.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise Unreachable(f"apt-get is not installed, and {package} is a Debian package.", do="use a Debian 12 system, or a container of one")
    folder = into / "files"
    folder.mkdir()
    name = f"apt-get download {package}={version}"
    arguments = ["download", f"{package}={version}", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    output = _run([apt, *arguments], folder, {**os.environ, "LC_ALL": "C"}, name, timeout_s)
    if re.search(r"Version .* was not found|Unable to locate package", output):
        raise Unreachable(
            f"`{name}`: {_complaint(output)}.",
            do="run `apt-get update` as root and try again; this version is that of Debian 12, another release has another, and one that was replaced is gone",
        )
    return _only_file(folder, output, name, sha256)


def _pip(package: str) -> list[str]:
    """How to call pip: this interpreter's, else the one on PATH (an environment made by uv has none of its own)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise Unreachable(f"pip is not installed here, and {package} comes from the Python package index.", do=f"{sys.executable} -m ensurepip")
    return [found]


def _run(command: list[str], folder: Path, environment: dict[str, str], name: str, timeout_s: float) -> str:
    """Run a client; return what it printed. The exit code is judged by whether a file came (see _only_file)."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(
            f"`{name}` gave no answer within {timeout_s:.0f} s.", do="check the network or the registry's mirror, then run the same command again"
        ) from error
    except OSError as error:
        raise Unreachable(f"`{name}` could not be started: {error.strerror}.", do="check that the client runs by itself in a terminal") from error
    return done.stderr + "\n" + done.stdout


def _only_file(folder: Path, output: str, name: str, expected: str) -> Path:
    """The one archive that the client left in `folder`; else its own complaint, as WrongChecksum or Unreachable."""
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    if len(files) == 1:
        return files[0]
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    if got:
        raise wrong_checksum(f"`{name}`", expected, got.group(1))
    raise Unreachable(f"`{name}` brought nothing: {_complaint(output)}.", do="check the network or the registry's mirror, then run the same command again")


def _complaint(output: str) -> str:
    """The client's own error lines in short, addresses left out. pip says why it cannot connect only in its warnings, so that comes first."""
    reason = re.search(r"Failed to [^'\"]+|[^'\":(]*(?:timed out|not known|name resolution|verify failed)[^'\":(]*", output)
    lines = [
        line.removeprefix("ERROR: ").removeprefix("E: ").strip() for line in output.splitlines() if line.startswith(("ERROR", "npm error", "npm ERR!", "E: "))
    ]
    said = [*([reason.group().strip()] if reason else []), *[line for line in lines if line and "complete log" not in line][:2]]
    return re.sub(r"\S+://\S+", "(address)", "; ".join(said))[:300].rstrip(". ") or "it left no file"

"""Versions of what influences results, read from package metadata: nothing is imported."""

from __future__ import annotations

import platform
from importlib import metadata

from lissome.version import VERSION

_INFLUENTIAL = ("torch", "numpy", "transformers", "onnx", "onnxruntime", "openvino", "nncf")


def versions() -> dict[str, str]:
    """Installed versions of lissome, Python and the packages that influence results; what is not installed is left out."""
    found = {"lissome": VERSION, "python": platform.python_version()}
    for package in _INFLUENTIAL:
        if (version := installed(package)) is not None:
            found[package] = version
    return found


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

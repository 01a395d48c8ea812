"""The C++ compiler that torch.compile uses here."""

from __future__ import annotations

import os
import shutil
import sys

NAMES = {"darwin": "clang++", "win32": "cl"}


def compiler() -> str | None:
    """Path of the C++ compiler Inductor uses, or None.

    $CXX, and where it is not set the system's usual one: g++, clang++ on macOS, cl on Windows. Inductor looks no further
    (`torch._inductor.config.cpp.cxx`): with clang++ alone on Linux, CXX=clang++ has to be set.
    """
    return shutil.which(wanted())


def wanted() -> str:
    """The name Inductor asks for, whether or not it is there."""
    return os.environ.get("CXX", NAMES.get(sys.platform, "g++"))

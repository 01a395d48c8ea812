"""The native library: found beside this file, loaded once, or a line that says why not."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from lissome.core.errors import EnvironmentLacks

VERSION = 5


@dataclass(frozen=True)
class Library:
    """handle: the loaded library, or None with the reason in `trouble`. isa: the instruction set that its kernels use here."""

    handle: ctypes.CDLL | None
    trouble: str | None
    isa: str = ""

    def loaded(self) -> ctypes.CDLL:
        """The library. Raises EnvironmentLacks where there is none."""
        if self.handle is None:
            raise EnvironmentLacks(f"the native kernels cannot run: {self.trouble}", do="use another backend, or install a C++ compiler and lissome again")
        return self.handle


@functools.lru_cache(maxsize=1)
def library() -> Library:
    """The native kernels of this installation."""
    given = os.environ.get("LISSOME_NATIVE")  # another build, such as one with a sanitizer
    path = Path(given) if given else next(iter(sorted(Path(__file__).parent.glob("_native*.so"))), None)
    if path is None:
        return Library(None, "this installation was built without a C++ compiler")
    try:
        handle = _loaded(path)
    except OSError as error:
        return Library(None, str(error))
    if handle.lissome_version() != VERSION:
        return Library(None, f"{path.name} is of another version of lissome")
    handle.lissome_isa.restype = ctypes.c_char_p
    return Library(handle, None, handle.lissome_isa().decode())


def _loaded(path: Path) -> ctypes.CDLL:
    """The file as a library. Where the system has no OpenMP runtime, torch brings one; where it has, torch takes the same by its name."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401
        return ctypes.CDLL(str(path))

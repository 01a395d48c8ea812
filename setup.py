"""The kernels, with a plain C interface that ctypes loads; all else stands in pyproject.toml.

Optional: without a C++ compiler the package installs all the same, and torch computes instead.
"""

import glob

from setuptools import Extension, setup

NATIVE = "src/lissome/kernels/native"

setup(
    ext_modules=[
        Extension(
            "lissome.kernels._native",
            sources=[f"{NATIVE}/{name}.cpp" for name in ("attention", "decoder", "isa")],
            depends=sorted(glob.glob(f"{NATIVE}/*.h")),
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-pthread", "-Wno-unknown-pragmas"],
            extra_link_args=["-fopenmp", "-pthread"],
            language="c++",
            optional=True,
        )
    ]
)

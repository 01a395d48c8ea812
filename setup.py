"""The kernels, with a plain C interface that ctypes loads; all else stands in pyproject.toml.

Optional: without a C++ compiler the package installs all the same, and torch computes instead.
"""

from setuptools import Extension, setup

NATIVE = "src/lissome/kernels/native"

setup(
    ext_modules=[
        Extension(
            "lissome.kernels._native",
            sources=[f"{NATIVE}/attention.cpp"],
            depends=[f"{NATIVE}/attention.h", f"{NATIVE}/attention_body.h"],
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wno-unknown-pragmas"],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
    ]
)

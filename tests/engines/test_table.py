from __future__ import annotations

import sys

import pytest

from lissome.core.errors import MissingExtra
from lissome.engines import openvino, ort, torch_compiled, torch_eager
from lissome.engines.table import ENGINES, MIXED, PRECISIONS, Load, engine, has_bf16, load

WITH, WITHOUT = ("AVX2", "AVX512-VNNI", "AVX512-BF16"), ("AVX2", "AVX512-VNNI")


def absent(*packages):
    return lambda package: None if package in packages else "1.2.3"


def test_modules():
    assert [engine(name) for name in ENGINES] == [torch_eager, torch_compiled, ort, openvino]
    with pytest.raises(KeyError):
        engine("tflite")


@pytest.mark.parametrize(("module", "package", "extra"), [(ort, "onnxruntime", "onnx"), (ort, "onnxscript", "onnx"), (openvino, "openvino", "openvino")])
def test_not_installed_names_its_extra(monkeypatch, module, package, extra):
    monkeypatch.setattr(module, "installed", absent(package))
    support = module.support(WITH)
    assert support.version is None
    assert support.precisions == ()
    assert support.extra == extra
    assert support.missing["*"].startswith("not installed; pip install")
    assert f"lissome[{extra}" in support.missing["*"]


def test_openvino_without_nncf(monkeypatch):
    monkeypatch.setattr(openvino, "installed", absent("nncf"))
    support = openvino.support(WITH)
    assert support.precisions == ("fp32", "bf16", MIXED)
    assert support.missing["int8-static"] == 'needs NNCF; pip install "lissome[openvino]"'


@pytest.mark.parametrize("module", [torch_eager, torch_compiled, openvino])
def test_bf16_needs_the_instructions(module, monkeypatch):
    monkeypatch.setattr(torch_compiled, "compiler", lambda: "/usr/bin/g++")
    assert "bf16" in module.support(WITH).precisions
    support = module.support(WITHOUT)
    assert "bf16" not in support.precisions
    assert "this CPU has no bf16 instructions" in support.missing["bf16"]


@pytest.mark.parametrize(
    ("isa", "expected"), [(WITH, True), (WITHOUT, False), (("AMX-BF16",), True), (("NEON", "bf16"), True), (("NEON", "SVE"), False), ((), False)]
)
def test_bf16_instructions(isa, expected):
    assert has_bf16(isa) is expected


def test_onnxruntime():
    support = ort.support(WITH)
    assert support.precisions == ("fp32", "int8-dynamic", "int8-static", MIXED)
    assert "bf16" in support.missing


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert torch_compiled.compiler() is None
    support = torch_compiled.support(WITH)
    assert support.engine == "torch.compile"
    assert support.precisions == ()
    assert support.missing == {"*": "torch.compile needs a C++ compiler here; install g++ (Debian: apt install g++)"}


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_compilers(monkeypatch, tmp_path, name):
    """Which one is asked for without $CXX depends on the system; see tests/machine/test_compiler.py."""
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", name)
    assert torch_compiled.compiler() == str(tmp_path / name)
    support = torch_compiled.support(WITH)
    assert (support.engine, support.precisions) == ("torch.compile", ("fp32", "bf16"))
    assert set(support.missing) == {"int8-dynamic", "int8-static"}
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert torch_compiled.compiler() is None


@pytest.mark.parametrize(("name", "package", "extra"), [("onnxruntime", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")])
def test_loading_without_the_engine(forms, monkeypatch, name, package, extra):
    """An artifact that was brought to a machine without its engine."""
    form = forms.form("mlp", name, "fp32")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as error:
        load(name, form, Load("fp32", 1))
    assert f"running on {name} needs the package {package}" in str(error.value)
    assert f'pip install "lissome[{extra}]"' in str(error.value)


def test_precisions_are_those_of_the_manifest():
    from lissome.core.manifest import Precision

    assert Precision.__args__ == (*PRECISIONS, MIXED)

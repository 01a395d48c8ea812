from __future__ import annotations

import sys

import numpy as np
import pytest

from lissome.core.errors import EnvironmentLacks, MissingExtra
from lissome.machine.stacks import RUNNERS, Stack, onnxruntime_runner, openvino_runner

STACK = Stack(32, (32, 48, 16))


def expected(stack: Stack) -> np.ndarray:
    """The stack in float64."""
    x, weights = stack.arrays()
    y = x.astype(np.float64)
    for i, weight in enumerate(weights):
        y = y @ weight
        y = np.maximum(y, 0) if i + 1 < len(weights) else y
    return y


@pytest.mark.parametrize("key", RUNNERS, ids=" ".join)
def test_every_runner_computes_the_stack(key):
    engine, precision = key
    if engine != "torch":
        pytest.importorskip(engine)
    try:
        out = np.asarray(RUNNERS[key](STACK, precision, 1)())
    except EnvironmentLacks as error:
        pytest.skip(error.what)
    want = expected(STACK)
    # What int8 may be off by: a few steps of 1/127 of the range; bf16: of 2^-8.
    tolerance = {"fp32": 1e-5, "bf16": 0.03, "int8-dynamic": 0.1, "int8-static": 0.15}[precision]
    assert out.shape == want.shape
    assert np.abs(out - want).mean() / np.abs(want).mean() < tolerance


def test_flops_count_multiplications_and_additions():
    assert STACK.flops == 2 * 32 * (32 * 48 + 48 * 16)


@pytest.mark.parametrize(("runner", "package", "extra"), [(onnxruntime_runner, "onnxruntime", "onnx"), (openvino_runner, "openvino", "openvino")])
def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch, runner, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as error:
        runner(STACK, "fp32", 1)
    assert f'pip install "lissome[{extra}]"' in error.value.text()

import ctypes
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.kernels import library as where
from lissome.kernels.decoder.arrays import LINE, address, hold, room, untouched_zeros


@given(st.lists(st.integers(0, 9), max_size=3), st.sampled_from([np.uint8, np.float32, np.uint16]))
def test_arrays_begin_at_a_cache_line(shape, dtype):
    made, zeros = room(shape, dtype), untouched_zeros(shape, dtype)
    assert made.shape == zeros.shape == tuple(shape) and made.dtype == zeros.dtype == dtype
    assert (address(made) % LINE == 0 or not made.size) and not zeros.any()
    made[...], zeros[...] = 3, 3
    assert np.array_equal(made, zeros)


@pytest.mark.parametrize("size", [1 << 52, 1 << 70])
def test_more_memory_than_there_is_is_said(size):
    with pytest.raises(BadInput, match=r"there is no memory for [\d,.]+ GB of keys and values"):
        untouched_zeros((size,), np.uint8)


def test_tensors_are_held_without_a_copy():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        some: np.ndarray
        none: np.ndarray | None = None

        def __post_init__(self):
            hold(self, "some", "none")

    tensor = torch.zeros(3)
    held = Holder(tensor)
    tensor[1] = 5
    assert isinstance(held.some, np.ndarray) and held.some[1] == 5 and held.none is None


def test_a_system_without_openmp_takes_the_one_that_torch_brings(monkeypatch):
    """The first try fails as the loader's does where libgomp is missing."""
    tries = []

    def loads(path):
        tries.append(path)
        if len(tries) == 1:
            raise OSError("libgomp.so.1: cannot open shared object file")
        return "loaded"

    monkeypatch.setattr(ctypes, "CDLL", loads)
    assert where._loaded("x.so") == "loaded" and tries == ["x.so", "x.so"]


def test_a_file_that_is_no_library_is_said(monkeypatch, tmp_path):
    (tmp_path / "x.so").write_bytes(b"no library")
    monkeypatch.setenv("LISSOME_NATIVE", str(tmp_path / "x.so"))
    found = where.library.__wrapped__()
    assert found.handle is None and "x.so" in found.trouble
    with pytest.raises(where.EnvironmentLacks, match="the native kernels cannot run"):
        found.loaded()

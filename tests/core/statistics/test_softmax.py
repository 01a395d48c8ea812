import numpy as np
import pytest
import torch

from lissome.core.statistics import log_softmax


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_it_is_torchs_and_leaves_what_it_is_given(kind):
    values = (30 * np.random.default_rng(0).normal(size=(5, 40))).astype(kind)
    before = values.copy()
    found = log_softmax(values)
    assert found.dtype == kind and np.array_equal(values, before)
    np.testing.assert_allclose(found, torch.log_softmax(torch.from_numpy(values), -1).numpy(), rtol=1e-5, atol=1e-5)

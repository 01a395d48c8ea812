"""Tiny models with calibration batches, quantised once a test run; one thread."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QuantizeConfig
from lissome.nn.load import as_model
from tests.nn import tiny

torch.set_num_threads(1)

MAKERS = {"bert": tiny.bert, "cnn": tiny.cnn, "mlp": tiny.mlp, "mlp_without_bias": tiny.mlp_without_bias}


def batches_of(name, count=4, seed=100):
    make = {"bert": lambda i: tiny.texts(8, 5 + 4 * i, seed + i), "cnn": lambda i: tiny.images(8, seed + i)}.get(name, lambda i: tiny.rows(8, seed + i))
    return [tiny.tensors(make(i)) for i in range(count)]


class Zoo:
    """Models by name, and what `quantize` makes of them."""

    @cache  # noqa: B019  lives as long as the test run
    def model(self, name):
        return as_model(MAKERS[name]())

    @cache  # noqa: B019
    def quantized(self, name, **options):
        return quantize(self.model(name), QuantizeConfig(smallest=1, **options), batches_of(name))


@pytest.fixture(scope="session")
def zoo():
    return Zoo()

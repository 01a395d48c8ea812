"""Recipes of the tiny models. Forms are exported once a test run: the tests of forms and of engines share one cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lissome.core.cache import Cache
from lissome.export.forms import Recipe, build_form
from lissome.machine.identity import identify, saturates
from lissome.nn.call import call
from lissome.nn.load import load_model
from tests.nn import tiny

Arrays = dict[str, np.ndarray]
SATURATES = saturates(identify().isa)
"""Whether int8 weights must keep to 7 bits on the machine that runs the tests."""
MODELS = ("bert", "cnn", "mlp", "mlp_without_bias")


@dataclass(frozen=True)
class Tiny:
    """A tiny model with its recipe. batch(size, length, seed): inputs."""

    recipe: Recipe
    batch: Callable[[int, int, int], Arrays]

    def reference(self, batch: Arrays) -> np.ndarray:
        """What torch computes in float32."""
        with torch.no_grad():
            return call(self.recipe.model.module, tiny.tensors(batch)).numpy()


class Forms:
    """Tiny models by name, and their forms."""

    def __init__(self, root: Path):
        self.cache, self.root, self.made = Cache(root / "cache"), root, {}

    def __getitem__(self, name: str) -> Tiny:
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def form(self, name: str, engine: str, precision: str) -> Path:
        return build_form(self[name].recipe, engine, precision, self.cache)

    def _make(self, name: str) -> Tiny:
        if name == "bert":
            folder = tiny.bert_folder(self.root / "bert", labels=3)
            calibration = [tiny.texts(8, 5 + 4 * i, 100 + i) for i in range(8)]
            return Tiny(Recipe(load_model(str(folder)), tiny.texts(2, 9), calibration, "texts", variable_length=True, reduce_range=SATURATES), tiny.texts)
        make = tiny.images if name == "cnn" else tiny.rows
        calibration = [make(8, 100 + i) for i in range(8)]
        recipe = Recipe(load_model(f"tests.nn.tiny:{name}"), make(2), calibration, "noise", reduce_range=SATURATES)
        return Tiny(recipe, lambda size, length, seed: make(size, seed))

"""Files of tensors, mapped: which file of a folder holds what, and numbers of types that numpy has not."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lissome.core.errors import BadModel
from lissome.nn.mapped import tensors_in, widened

INDEX = "model.safetensors.index.json"


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_widening_is_exact(values):
    narrow = torch.tensor(values, dtype=torch.float32).bfloat16()
    assert np.array_equal(widened(narrow.view(torch.int16).numpy().view(np.uint16), "BF16"), narrow.float().numpy())


def test_what_the_index_names_or_the_model_or_every_file(tmp_path):
    for name in ("adapter", "model", "part-1", "part-2"):
        save_file({name: torch.ones(2), "shared": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    assert set(tensors_in(tmp_path)) == {"model", "shared"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"part-1": "part-1.safetensors", "part-2": "part-2.safetensors", "shared": "part-2.safetensors"}}))
    found = tensors_in(tmp_path)
    assert {name: file.path.name for name, file in found.items()} == {
        "part-1": "part-1.safetensors",
        "part-2": "part-2.safetensors",
        "shared": "part-2.safetensors",
    }
    (tmp_path / INDEX).unlink()
    (tmp_path / "model.safetensors").unlink()
    assert set(tensors_in(tmp_path)) == {"adapter", "part-1", "part-2", "shared"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"there are no weights in it \(\*\.safetensors\)"),
        ({"model.safetensors": "x"}, "it has 1 bytes and is no safetensors file"),
        ({INDEX: "{}"}, "its index does not say which file holds which tensor"),
        ({INDEX: '{"weight_map": {"a": "../../elsewhere"}}'}, "it cannot be read: No such file"),
    ],
)
def test_folders_that_are_not_whole_are_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadModel, match=message):
        tensors_in(tmp_path)

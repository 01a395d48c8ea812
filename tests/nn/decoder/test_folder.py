import dataclasses
import json

import numpy as np
import pytest
import torch

from lissome.core.errors import BadModel
from lissome.kernels.decoder.arrays import LINE, address
from lissome.kernels.decoder.ffn import Experts, Ffn
from lissome.kernels.decoder.packed import pack
from lissome.kernels.decoder.reference import Reference
from lissome.nn.decoder.check import check_weights
from lissome.nn.decoder.folder import DESCRIPTION, About, load_decoder, save_decoder
from tests.kernels.decoder.test_ffn import decoder, layer

KINDS = [
    Ffn(),
    Ffn("gate-first", "relu", 0.25),
    Ffn("plain", "relu2"),
    Ffn("experts", experts=Experts(4, 2, "sigmoid", "scores", 2.5, torch.randn(4), torch.randn(4), shared=True)),
]


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models

    save_decoder(decoder(*(layer(ffn, 4) for ffn in KINDS)), tmp_path, Tokenizer(models.WordLevel({"a": 0}, "a")), About())
    return tmp_path


def test_kinds_come_back(folder):
    weights, description = load_decoder(folder)
    assert [one.kind for one in description.ffn] == ["gated", "gate-first", "plain", "experts"]
    assert weights.layers[1].ffn == KINDS[1] and np.array_equal(weights.layers[3].ffn.experts.bias, KINDS[3].experts.bias)
    before, after = (Reference(one, 1, 8, half=False) for one in (decoder(*(layer(ffn, 4) for ffn in KINDS)), weights))
    step = [torch.arange(3), torch.zeros(3), torch.arange(3), torch.arange(3)]
    assert np.array_equal(before.step(*step), after.step(*step))


def test_mapped_matrices_in_tiles_begin_at_a_cache_line(folder):
    weights, description = load_decoder(folder)
    every = [weights.embedding, *(one for layer in weights.layers for one in layer.matrices.values())]
    assert {one.layout for one in every} == {"tiles", "neurons"} and description.layers == 4
    assert all(address(one.data) % LINE == 0 for one in every if one.layout == "tiles")
    assert all(address(one) % 4 == 0 for layer in weights.layers for one in (layer.attention_norm, layer.ffn_norm))


def test_a_folder_that_names_no_kinds_is_gated(tmp_path, folder):
    told = json.loads((folder / DESCRIPTION).read_text())
    told |= {"ffn": [], "layers": 1}
    (folder / DESCRIPTION).write_text(json.dumps(told))
    assert [one.ffn for one in load_decoder(folder)[0].layers] == [Ffn()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ffn: ffn[:2], "it names 2 feed-forward parts for 4 layers"),
        (lambda ffn: [ffn[0], ffn[1] | {"threshold": -1}, *ffn[2:]], "cannot be read"),
        (lambda ffn: [ffn[0], ffn[1] | {"kind": "magic"}, *ffn[2:]], "cannot be read"),
        (lambda ffn: [*ffn[:3], ffn[3] | {"experts": ffn[3]["experts"] | {"count": 10**9}}], "cannot be read"),
        (lambda ffn: [*ffn[:3], ffn[3] | {"experts": ffn[3]["experts"] | {"scale": float("inf")}}], "cannot be read"),
    ],
)
def test_kinds_that_make_no_sense(folder, change, message):
    told = json.loads((folder / DESCRIPTION).read_text())
    told["ffn"] = change(told["ffn"])
    (folder / DESCRIPTION).write_text(json.dumps(told))
    with pytest.raises(BadModel, match=message):
        load_decoder(folder)


@pytest.mark.parametrize("name", ["layers.0.q", "embedding"])
def test_layouts_that_the_kernel_would_misread(folder, name):
    told = json.loads((folder / DESCRIPTION).read_text())
    told["matrices"][name]["layout"] = "neurons"
    (folder / DESCRIPTION).write_text(json.dumps(told))
    with pytest.raises(BadModel, match=r"bytes cannot be|is laid out by neuron"):
        load_decoder(folder)


def test_experts_that_do_not_fit_one_another_are_named():
    weights = decoder(layer(KINDS[3], 4))
    first = weights.layers[0]
    smaller = {name: pack(torch.randn(32, one.columns)) if name.endswith("1.gate") else one for name, one in first.matrices.items()}
    with pytest.raises(BadModel, match=r"layer 0: its experts have \d+, \d+ neurons"):
        check_weights(dataclasses.replace(weights, layers=[dataclasses.replace(first, matrices=smaller)]), "here")

"""Models that are put together: positions, padding, heads, and the sparse kind against the full one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lissome.core.errors import BadConfig, BadInput, BadModel, BadTensor
from lissome.nn.call import accepted, call
from lissome.nn.likelihood import parts_of, token_log_likelihoods
from lissome.nn.load import as_model, load_model, save_model
from lissome.nn.models.assembly import assemble, parts_table
from lissome.nn.models.presets import PRESETS, bert, mobile, vit
from tests.nn.models.small import LENGTH, VOCABULARY, decoder, ids, model, padded

FULL = {"kind": "full", "heads": 4, "kv_heads": 2}


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 80), t=st.integers(0, 78), pattern=st.sampled_from([None, "window(16)", "window(8) | sink(4)"]))
def test_nothing_from_the_future(n, t, pattern):
    attention = {**FULL, "kind": "sparse", "pattern": pattern} if pattern else FULL
    made = model(blocks=[{"attention": attention, "ffn": {"kind": "gated", "inner": 24}, "repeat": 2}])
    before, t = ids(1, n), min(t, n - 2)
    after = before.clone()
    after[:, t + 1 :] = (after[:, t + 1 :] + 1) % VOCABULARY
    assert_close(made(after)[:, : t + 1], made(before)[:, : t + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_pattern_that_shows_all_is_full_attention(causal):
    blocks = {"ffn": {"kind": "dense", "inner": 24}, "repeat": 2}
    full = model(causal=causal, blocks=[{"attention": FULL, **blocks}])
    sparse = model(causal=causal, blocks=[{"attention": {**FULL, "kind": "sparse", "pattern": "everything()"}, **blocks}])
    tokens, mask = padded(3, 80)
    assert_close(sparse(tokens, mask)[mask.bool()], full(tokens, mask)[mask.bool()], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["decoder", "encoder"])
@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_padding_changes_nothing(preset, pool):
    heads = {"topic": {"kind": "classification", "classes": 3, "pool": pool}}
    made = model(heads=heads) if preset == "decoder" else assemble(bert(VOCABULARY, 32, 2, 4, 48, LENGTH, answers=heads))
    tokens, mask = padded()
    assert_close(made(tokens, mask)[1], made(tokens[1:2, :13])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_several_heads_on_one_trunk():
    heads = {
        "next": "lm",
        "topic": {"kind": "classification", "classes": 3},
        "tag": {"kind": "token", "classes": 5},
        "price": {"kind": "regression", "pool": "last"},
    }
    made = model(heads=heads)
    found = made(ids(), heads=("topic", "next", "tag", "price"))
    shapes = {name: list(value.shape) for name, value in found.items()}
    assert shapes == {"topic": [2, 3], "next": [2, 20, VOCABULARY], "tag": [2, 20, 5], "price": [2, 1]}
    assert torch.equal(made(ids()), found["next"])  # the first is what verbs get
    assert accepted(made, ("input_ids", "attention_mask")) == ("input_ids", "attention_mask")
    assert torch.equal(call(made, {"input_ids": ids()}), found["next"])
    with pytest.raises(BadInput, match=r'the model has no head "topics". Did you mean "topic"\?\n  Expected: next, topic, tag, price'):
        made(ids(), heads=("topics",))


@torch.no_grad()
def test_without_heads_the_hidden_states_are_the_answer():
    assert model(heads={})(ids()).shape == (2, 20, 32)
    with pytest.raises(BadInput, match="no head: it gives hidden states"):
        model(heads={})(ids(), heads=("lm",))


@torch.no_grad()
def test_the_likelihood_takes_the_head_in_pieces():
    made = model()
    _trunk, head = parts_of(made)
    assert head.weight is made.trunk.embedding.table.weight
    targets = ids(seed=1)
    plain = made(ids()).log_softmax(-1).gather(2, targets[..., None])[..., 0]
    assert_close(token_log_likelihoods(made, {"input_ids": ids()}, targets), plain)
    assert parts_of(model(heads={"topic": {"kind": "classification", "classes": 2}})) is None


@torch.no_grad()
@pytest.mark.parametrize("scaling", [{}, {"scaling": "linear", "factor": 2.0}, {"scaling": "llama3", "factor": 8.0, "original": 32}])
def test_rotation_depends_on_distance_alone(scaling):
    from lissome.nn.models.positions import Rotary, turned

    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    angles = Rotary(LENGTH, **scaling).angles(64, 16, q.device)
    scores = turned(q.expand(1, 1, 64, 16), angles) @ turned(k.expand(1, 1, 64, 16), angles).mT
    assert_close(scores[0, 0].diagonal(-5), scores[0, 0, 5, :1].expand(59), atol=1e-4, rtol=1e-4)
    assert (scores[0, 0, 5, 0] - scores[0, 0, 0, 0]).abs() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("preset", [{"positions": "learned"}, {"positions": "none"}, {"embedding": {"kind": "tokens", "vocabulary": 99, "types": 2}}])
def test_a_folder_gives_the_same_model_back(tmp_path, preset):
    made = model(**preset, heads={"lm": "lm", "topic": {"kind": "classification", "classes": 2}})
    before = as_model(made, "in memory")
    save_model(before, tmp_path)
    after = load_model(str(tmp_path))
    assert after.fingerprint == before.fingerprint
    assert after.module.config == made.config
    assert torch.equal(after.module(ids()), made(ids()))
    assert after.module.heads["lm"].linear.weight is after.module.trunk.embedding.table.weight


def test_a_fingerprint_sees_what_the_weights_do_not_show():
    changed = [{}, {"positions": {"kind": "rotary", "base": 5000.0}}, {"causal": False}]
    attention = {**FULL, "kind": "sparse", "pattern": "window(16)"}
    changed.append({"blocks": [{"attention": attention, "ffn": {"kind": "gated", "inner": 64}, "norm": {"kind": "rms", "eps": 1e-5}, "repeat": 3}]})
    assert len({as_model(model(**one)).fingerprint for one in changed}) == len(changed)


def test_a_folder_that_names_parts_from_elsewhere(tmp_path):
    save_model(as_model(model()), tmp_path)
    path = tmp_path / "architecture.json"
    path.write_text(path.read_text().replace('"gated"', '"os:system"'))
    with pytest.raises(BadModel, match='there is no ffn called "os:system"'):
        load_model(str(tmp_path))


@torch.no_grad()
def test_images():
    made = assemble(vit(16, 4, 32, 2, 4, 48, 5, channels=1))
    assert made(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert accepted(made, ("pixel_values",)) == ("pixel_values",)
    with pytest.raises(BadTensor, match=r"images of shape \[3, 16, 16\] do not fit; the model takes \[1, 16, 16\]"):
        made(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks": [{"attention": {"kind": "full", "heads": 5}, "ffn": {"kind": "gated", "inner": 8}}]}, "block 0.attention: full: 5 heads do not divide"),
        ({"blocks": [{"attention": {"kind": "full", "heads": 4, "kv_heads": 3}, "ffn": {"kind": "gated", "inner": 8}}]}, "3 key heads do not divide 4 heads"),
        ({"blocks": [{"attention": {**FULL, "kind": "sparse", "pattern": "windw(3)"}, "ffn": {"kind": "gated", "inner": 8}}]}, 'Did you mean "window"'),
        ({"embedding": {"kind": "patches", "image": 10, "patch": 4}, "heads": {}}, "patches of 4 pixels do not divide an image of 10"),
        ({"embedding": {"kind": "patches", "image": 8, "patch": 4}, "heads": {}}, "the model has 96 positions, but the image has 4 patches"),
        ({"embedding": {"kind": "patches", "image": 8, "patch": 4}, "length": 5}, 'head "lm": lm: a language head needs an embedding of tokens'),
        ({"positions": {"kind": "rotary", "scaling": "llama3", "low": 4, "high": 4}}, "high (4.0) must be above low (4.0)"),
    ],
)
def test_sizes_that_do_not_fit(changes, says):
    with pytest.raises(BadConfig) as caught:
        model(**changes)
    assert says in str(caught.value)


def test_inputs_that_do_not_fit():
    with pytest.raises(BadTensor, match="97 positions are more than the model's 96"):
        model()(ids(1, 97))
    odd = [{"attention": {"kind": "full", "heads": 2, "dim": 3}, "ffn": {"kind": "gated", "inner": 8}}]
    with pytest.raises(BadTensor, match="heads of width 3 cannot be turned"):
        model(blocks=odd)(ids())


def counted(config) -> tuple[int, int]:
    """Parameters, and what the table adds up to; without memory or random numbers."""
    with torch.device("meta"):
        made = assemble(config)
    return sum(p.numel() for p in made.parameters()), sum(count for *_, count in parts_table(made))


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_counts_every_parameter_once(name):
    total, added_up = counted(PRESETS[name]())
    assert total == added_up


def test_what_makes_the_mobile_preset_light():
    total, _ = counted(mobile())
    assert 8.75e6 < total < 8.85e6  # what its docstring says
    heavy = mobile(kv_heads=8, inner=1024).model_dump(mode="json")
    heavy["heads"]["lm"]["tied"] = False
    assert counted(decoder(**heavy))[0] > 1.8 * total

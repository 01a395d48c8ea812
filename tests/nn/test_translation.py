"""A translator with a pattern: all visible is the dense model; a pattern reaches encoder and decoder; nothing comes from the future."""

from __future__ import annotations

import pytest
import torch

from lissome.core.errors import BadConfig
from lissome.nn.attention import in_transformers
from lissome.nn.translation import TranslatorConfig, local_global, translator

SMALL = {"vocabulary": 61, "length": 256, "width": 32, "heads": 2, "layers": 2, "inner": 48}


def made(pattern=None, **changes):
    return translator(TranslatorConfig(**(SMALL | {"pattern": pattern} | changes)))


def inputs(source=150, target=130, batch=2):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 61, (batch, length), generator=generator) for length in (source, target)]
    seen = torch.ones(batch, source, dtype=torch.long)
    seen[-1, source - source // 3 :] = 0
    return {"input_ids": ids[0], "attention_mask": seen, "decoder_input_ids": ids[1]}


@pytest.mark.parametrize(("source", "target"), [(150, 130), (64, 64), (3, 70), (90, 2)])
@torch.no_grad()
def test_everything_visible_is_the_dense_model(source, target):
    given = inputs(source, target)
    for changed in (given, {**given, "attention_mask": torch.ones_like(given["attention_mask"])}):
        dense, sparse = made()(**changed), made("everything()")(**changed)
        torch.testing.assert_close(sparse.logits, dense.logits, atol=2e-5, rtol=2e-5)
        real = changed["attention_mask"].bool()
        torch.testing.assert_close(sparse.encoder_last_hidden_state[real], dense.encoder_last_hidden_state[real], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_texts_no_longer_than_a_window_are_the_dense_models():
    """So what is learned from single messages is the same for both."""
    given = inputs(64, 50)
    dense, sparse = made()(**given), made(local_global(64, 8, 256))(**given)
    torch.testing.assert_close(sparse.logits, dense.logits, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_equal_lengths_on_both_sides_do_not_make_cross_attention_sparse():
    """Encoder and decoder of one length look alike to an attention function: only window(1) in self-attention tells them apart."""
    given = inputs(80, 80)
    calls = []
    original = in_transformers.attend

    def noted(q, k, *rest, **options):
        calls.append((q.shape[2], k.shape[2]))
        return original(q, k, *rest, **options)

    in_transformers.attend = noted
    try:
        made("window(8)")(**given)
    finally:
        in_transformers.attend = original
    assert calls == [(80, 80)] * 4  # two layers of each; the two cross attentions are not among them


@torch.no_grad()
def test_a_pattern_reaches_the_encoder_both_ways_and_the_decoder_up_to_its_own_place():
    model, given = made("window(5)", layers=1), inputs(100, 100, batch=1)
    given["attention_mask"] = torch.ones_like(given["attention_mask"])
    base = model(**given)
    other = {**given, "input_ids": given["input_ids"].clone()}
    other["input_ids"][0, 50] = 7 if int(given["input_ids"][0, 50]) != 7 else 8
    changed = (model(**other).encoder_last_hidden_state != base.encoder_last_hidden_state).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(46, 55))
    other = {**given, "decoder_input_ids": given["decoder_input_ids"].clone()}
    other["decoder_input_ids"][0, 50] = 7 if int(given["decoder_input_ids"][0, 50]) != 7 else 8
    changed = (model(**other).logits != base.logits).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(50, 55))


@pytest.mark.parametrize("pattern", ["everything()", "window(20) | tokens([0, 40])", "window(8) | top_blocks(1)"])
@torch.no_grad()
def test_token_by_token_is_what_comes_in_one_go(pattern):
    model, given = made(pattern), inputs(120, 90)
    whole = model(**given, use_cache=False).logits
    encoder = model.get_encoder()(given["input_ids"], attention_mask=given["attention_mask"])
    state, found = None, []
    for at in range(90):
        out = model(
            encoder_outputs=encoder,
            attention_mask=given["attention_mask"],
            decoder_input_ids=given["decoder_input_ids"][:, at : at + 1],
            past_key_values=state,
            use_cache=True,
        )
        state = out.past_key_values
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=5e-5, rtol=5e-5)


def test_dense_and_sparse_begin_with_the_same_weights_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    a, b = made().state_dict(), made("window(8)").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], tensor) for name, tensor in made(seed=1).state_dict().items())


def test_local_and_global_as_text():
    assert local_global(64, 8, 1024) == "window(64) | tokens([0, 128, 256, 384, 512, 640, 768, 896])"
    assert local_global(64, 8, 12).count(",") == 7
    assert local_global(64, 0, 100) == "window(64)"


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"width \(32\) must be a multiple of heads \(3\)"):
        made(heads=3)
    with pytest.raises(BadConfig, match="there is no pattern"):
        made("widow(3)")

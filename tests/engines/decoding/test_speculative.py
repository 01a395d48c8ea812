import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput, BadModel
from lissome.engines.decoding.engine import Engine
from lissome.engines.decoding.sampling import Sampler, Sampling, drawn
from lissome.engines.decoding.speculative import Drafting, Speculative, settled
from lissome.engines.decoding.text import Spoken, generate
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.packed import chosen_rows, pack, unpack
from lissome.kernels.decoder.reference import Reference, dense
from lissome.kernels.library import library
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.modules import from_llama
from lissome.nn.decoder.tokenizer import tokenizer_of
from tests.nn.decoder.small import as_gguf, coded, llama

MODELS = {seed: llama(layers=3, seed=seed, vocab_size=300) for seed in range(4)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of(read_gguf(as_gguf(llama(), tmp_path_factory.mktemp("gguf") / "small.gguf")))


class Plain(Engine):
    """An engine on the plain twin: row after row, so that several rows at once are the same to the last bit."""

    def __init__(self, weights, tokenizer, capacity=64):
        super().__init__(weights, tokenizer, capacity=capacity, threads=1)
        self._decoder = Reference(weights, 1, capacity)


def follow(reader, sampler, prompt, count):
    """As the text loop does."""
    kept, logits = list(prompt), reader.read(list(prompt))
    for _ in range(count):
        kept.append(sampler.draw(logits, kept))
        logits = reader.read([kept[-1]], start=len(kept) - 1)
    return kept[len(prompt) :]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.sampled_from(sorted(MODELS)),
    layers=st.integers(1, 2),
    tokens=st.integers(1, 7),
    least=st.sampled_from([0.0, 0.2, 0.9]),
    head=st.sampled_from([None, 2, 100]),
    penalty=st.sampled_from([1.0, 1.3]),
    prompt=st.lists(st.integers(0, 299), min_size=1, max_size=5),
)
def test_greedy_output_is_that_of_plain_decoding(tokenizer, seed, layers, tokens, least, head, penalty, prompt):
    weights, sampling = from_llama(MODELS[seed]), Sampling(repetition_penalty=penalty)
    engine = Plain(weights, tokenizer)
    expected = follow(engine, Sampler(sampling), prompt, 15)
    drafts = Speculative(engine, Sampler(sampling), Drafting(layers=layers, tokens=tokens, least=least, head=head))
    assert follow(drafts, drafts, prompt, 15) == expected
    assert drafts.accepted <= drafts.drafted and drafts.checks + drafts.accepted >= 14


@pytest.mark.skipif(library().handle is None, reason="no native kernels")
@pytest.mark.parametrize("seed", sorted(MODELS))
def test_greedy_output_of_the_kernel(tokenizer, seed):
    engine = Engine(from_llama(MODELS[seed], lambda _, w: coded(w, 8)), tokenizer, capacity=128, threads=1)
    expected = follow(engine, Sampler(Sampling()), [5, 6, 7], 40)
    drafts = Speculative(engine, Sampler(Sampling()), Drafting(layers=2, tokens=5))
    assert follow(drafts, drafts, [5, 6, 7], 40) == expected


def test_a_model_whose_last_layer_adds_nothing_accepts_every_draft(tokenizer):
    model = llama(layers=2)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    drafts = Speculative(Plain(from_llama(model), tokenizer), Sampler(Sampling()), Drafting(layers=1, tokens=4))
    follow(drafts, drafts, [1, 2], 21)
    assert drafts.accepted == drafts.drafted == 16 and drafts.checks == 4


def test_a_draft_of_nonsense_costs_no_token_of_the_text(tokenizer):
    """NaN in the draft's head alone: nothing is drafted, and the text is the model's own."""
    engine = Plain(from_llama(MODELS[0]), tokenizer)
    expected = follow(engine, Sampler(Sampling()), [1, 2], 8)
    drafts = Speculative(engine, Sampler(Sampling()), Drafting(layers=1, head=64))
    drafts.early.weights.head.data.view(np.float32)[:] = np.nan
    assert follow(drafts, drafts, [1, 2], 8) == expected and drafts.drafted == 0


def test_nan_in_the_model_is_said(tokenizer):
    model = llama(layers=2)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    drafts = Speculative(Plain(from_llama(model), tokenizer), Sampler(Sampling()), Drafting(layers=1))
    drafts._last = (1, 0)
    with pytest.raises(BadModel, match="its logits are not finite"):
        drafts._said([1])


@settings(max_examples=30, deadline=None)
@given(meant=st.lists(st.integers(0, 5), min_size=4, max_size=4), proposed=st.lists(st.integers(0, 5), min_size=4, max_size=4), seed=st.integers(0, 99))
def test_settled_tokens_are_drawn_from_what_is_meant(meant, proposed, seed):
    """The probability of each outcome, by integrating over the uniform draw with a fine grid in its place."""
    if not sum(meant) or not sum(proposed):
        return
    p, q = (np.array(one) / sum(one) for one in (meant, proposed))
    stands = np.where(q > 0, (p / q.clip(min=1e-12)).clip(max=1), 0)
    more = (p - q).clip(min=0)
    rest = more / more.sum() if more.sum() > 0 else p
    outcome = q * stands + (q * (1 - stands)).sum() * rest
    np.testing.assert_allclose(outcome, p, atol=1e-12)
    token = drawn(q, np.random.default_rng(seed))
    assert float(p[settled(p, q, token, np.random.default_rng(seed))]) > 0  # never what the model would not say


def test_drawn_texts_have_the_models_distribution(tokenizer):
    """Pairs of tokens after a prompt, 500 drawn: chi-square against the model's own probabilities, with a false alarm once in 100,000."""
    from scipy.stats import chi2

    engine = Plain(from_llama(llama(layers=2, vocab_size=300)), tokenizer, capacity=8)
    sampling = Sampling(temperature=1.5, top_k=3)
    plain = Sampler(sampling)
    first = plain.probabilities(engine.read([1, 2]))
    expected = {}
    for a in np.flatnonzero(first):
        second = plain.probabilities(engine.read([1, 2, a]))
        for b in np.flatnonzero(second):
            expected[a, b] = float(first[a] * second[b])
    drafts = Speculative(engine, Sampler(sampling), Drafting(layers=1, tokens=2))
    seen = dict.fromkeys(expected, 0)
    engine.read([1])
    count = 500
    for _ in range(count):
        drafts._ready.clear()
        said: list[int] = []
        drafts._last = (2, 1)
        while len(said) < 2:
            said += drafts._said([1, 2, *said])
            drafts._last = (said[-1], 1 + len(said))
        seen[tuple(said[:2])] += 1
    statistic = sum((seen[key] - count * p) ** 2 / (count * p) for key, p in expected.items())
    assert sum(expected.values()) == pytest.approx(1)
    assert drafts.accepted > 0 and drafts.accepted < drafts.drafted
    assert chi2.sf(statistic, len(expected) - 1) > 1e-5


@pytest.mark.parametrize("capacity", [6, 7, 9])
@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_a_full_room_ends_or_slides_as_without_drafts(tokenizer, capacity, overflow):
    engine = Plain(from_llama(MODELS[1]), tokenizer, capacity=capacity)
    ways = []
    for drafting in (None, Drafting(layers=1, tokens=3)):
        spoken = Spoken()
        text = "".join(generate(engine, "abc", Sampling(), most=14, overflow=overflow, spoken=spoken, drafting=drafting))
        ways.append((text, spoken.tokens, spoken.reason))
    assert ways[0] == ways[1]


def test_what_cannot_draft_is_refused(tokenizer):
    engine = Plain(from_llama(MODELS[0]), tokenizer)
    with pytest.raises(BadInput, match=r"3 layers cannot draft for a model of 3[\s\S]*1 to 2"):
        Speculative(engine, Sampler(Sampling()), Drafting(layers=3))
    with pytest.raises(BadInput, match="cannot choose among 301 tokens: there are 300"):
        Speculative(engine, Sampler(Sampling()), Drafting(layers=1, head=301))
    with pytest.raises(BadInput, match="there are no layers 2 to 2: the model has 3"):
        engine.part(2, 2)


@pytest.mark.skipif(library().handle is None, reason="no native kernels")
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_parts_after_one_another_are_the_whole(bits):
    weights = from_llama(MODELS[2], None if bits == 32 else lambda _, w: coded(w, bits))
    tokens, slots, places = np.random.default_rng(0).integers(300, size=20), np.zeros(20), np.arange(20)
    for made in (lambda: Decoder(weights, 1, 32, Pool(2)), lambda: Reference(weights, 1, 32)):
        whole, parted = made(), made()
        expected = whole.step(tokens, slots, places, places)
        states = np.empty((20, 64), np.float32)
        assert parted.part(0, 2).step(tokens, slots, places, np.arange(0), end=states).shape[0] == 0
        found = parted.part(2, 3).step(tokens, slots, places, places, begin=states)
        assert np.array_equal(found, expected) and parted.keys.tolist() == whole.keys.tolist()
        head = chosen_rows(weights.head, [7, 3, 250])
        some = parted.part(2, 3, head).step(tokens, slots, places, places, begin=states)
        close = 0 if isinstance(whole, Decoder) else 1e-5  # a product of another width may be summed in another order by numpy
        np.testing.assert_allclose(some, expected[:, [7, 3, 250]], rtol=close, atol=close)
    with pytest.raises(BadInput, match="are not those of 20 rows"):
        Decoder(weights, 1, 32, Pool(1)).step(tokens, slots, places, places, begin=states[:3])


def test_chosen_rows_are_the_rows():
    weight = torch.randn(50, 64)
    for one in (weight, coded(weight), coded(weight, 8)):
        packed = pack(one)
        some = np.array(list(itertools.islice(itertools.cycle([49, 0, 17]), 20)))
        assert np.array_equal(dense(chosen_rows(packed, some)), dense(packed)[some])
    assert isinstance(unpack(pack(weight)), np.ndarray)

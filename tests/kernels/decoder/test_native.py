from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.kernels.decoder.native import Decoder, Pool
from lissome.kernels.decoder.reference import Reference
from lissome.kernels.library import library
from lissome.nn.decoder.modules import from_llama
from tests.nn.decoder.small import coded, llama

pytestmark = pytest.mark.skipif(library().handle is None, reason=f"no native kernels: {library().trouble}")
MODEL = llama()


def rows(tokens, slots, positions, wanted=None):
    wanted = range(len(tokens)) if wanted is None else wanted
    return tuple(np.array(list(one)) for one in (tokens, slots, positions, wanted))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_steps_equal_the_reference(data):
    """Prompts of any length in several sequences, then single tokens, in one call or in many."""
    weights = from_llama(MODEL, data.draw(st.sampled_from([None, lambda _, w: coded(w), lambda _, w: coded(w, 8)])))
    half, inputs = data.draw(st.booleans()), data.draw(st.sampled_from([32, 16, 8]))
    fast, plain = Decoder(weights, 3, 100, Pool(data.draw(st.integers(1, 3))), half, inputs), Reference(weights, 3, 100, half)
    lengths = [0, 0, 0]
    for _ in range(data.draw(st.integers(1, 4))):
        given_: list[list[int]] = [[], [], []]
        for slot in data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]:
            for _ in range(data.draw(st.sampled_from([1, 1, 2, 7, 20]))):
                for column, value in zip(given_, (data.draw(st.integers(0, 299)), slot, lengths[slot]), strict=True):
                    column.append(value)
                lengths[slot] += 1
        step = rows(*given_)
        found, expected = fast.step(*step), plain.step(*step)
        if inputs == 8:
            assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()
        else:
            np.testing.assert_allclose(found, expected, rtol=2e-3 if half else 1e-4, atol=2e-2 if half or inputs == 16 else 1e-3)


def test_the_logits_are_those_of_transformers():
    tokens = torch.randint(0, 300, (1, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = MODEL(tokens).logits[0]
    decoder = Decoder(from_llama(MODEL), 1, 200, Pool(2), half=False)
    np.testing.assert_allclose(decoder.step(*rows(tokens[0].tolist(), [0] * 150, range(150))), expected, rtol=1e-3, atol=1e-3)


def test_the_same_bits_twice():
    weights = from_llama(MODEL, lambda _, w: coded(w))
    step = rows(range(60), [0] * 60, range(60))
    first, second = (Decoder(weights, 1, 64, Pool(2)).step(*step) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "step",
    [rows([300], [0], [0]), rows([-1], [0], [0]), rows([0], [1], [0]), rows([0], [0], [64]), rows([0], [0], [-1]), rows([0], [0], [0], [1])],
)
def test_what_is_out_of_range_is_refused(step):
    with pytest.raises(BadInput, match="refused its arguments"):
        Decoder(from_llama(MODEL), 1, 64, Pool(1)).step(*step)


def test_more_room_than_positions():
    with pytest.raises(BadInput, match="room for 500 tokens, but positions for 256"):
        Decoder(from_llama(MODEL), 1, 500, Pool(1))


def test_calls_of_two_threads_wait_for_one_another():
    weights, pool = from_llama(MODEL, lambda _, w: coded(w)), Pool(2)
    decoders = [Decoder(weights, 1, 64, pool) for _ in range(2)]
    step = rows(range(20), [0] * 20, range(20))
    expected = decoders[0].step(*step)
    with ThreadPoolExecutor(2) as team:
        found = list(team.map(lambda at: decoders[at % 2].step(*step), range(20)))
    assert all(np.array_equal(one, expected) for one in found)


def test_nothing_to_do():
    assert Decoder(from_llama(MODEL), 1, 8, Pool(2)).step(*(np.zeros(0, np.int32) for _ in range(4))).shape == (0, 300)


@pytest.mark.parametrize("heads", [(6, 2, 64), (6, 1, 48), (8, 8, 16), (8, 4, 80)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_single_rows_see_what_tiles_see_of_a_long_context(heads, half, threads):
    """Keys are shared among threads in pieces, by rows of different lengths; sizes of heads that do and do not fill whole vectors."""
    model = llama(1, hidden_size=96, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=heads[2])
    weights = from_llama(model)
    lengths = [1, 63, 64, 130, 239]
    one, all_ = (Decoder(weights, 5, 256, Pool(threads), half) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 300, (n + 1,), generator=draw).tolist() for n in lengths]
    expected = [all_.step(*rows(text, [slot] * len(text), range(len(text)), [len(text) - 1]))[0] for slot, text in enumerate(texts)]
    for slot, text in enumerate(texts):
        one.step(*rows(text[:-1], [slot] * (len(text) - 1), range(len(text) - 1), [0]))
    found = one.step(*rows([text[-1] for text in texts], range(5), lengths))
    np.testing.assert_allclose(found, np.stack(expected), rtol=2e-3 if half else 1e-4, atol=2e-2 if half else 1e-4)


@pytest.mark.parametrize("heads", [(6, 2, 64), (6, 1, 48), (4, 4, 16), (8, 4, 80), (2, 1, 256)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_prompts_in_integers_see_what_floats_see(heads, half, threads):
    """Long runs whose layers round their inputs to 16 bits: in pieces that begin within a block of 64, beside a second sequence, and after single tokens."""
    model = llama(1, hidden_size=96, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=heads[2])
    weights = from_llama(model, lambda _, w: coded(w))
    draw = torch.Generator().manual_seed(1)
    one, other = (torch.randint(0, 300, (230,), generator=draw).tolist() for _ in range(2))
    fast, plain = Decoder(weights, 2, 256, Pool(threads), half, 16), Decoder(weights, 2, 256, Pool(1), half, 32)
    pieces = [(one, 0, 0, 70), (one, 0, 70, 71), (one, 0, 71, 150), (one, 0, 150, 230)]
    for text, slot, begin, end in pieces:
        step = (text[begin:end], [slot] * (end - begin), range(begin, end))
        if begin == 71:
            step = tuple([*mine, *its] for mine, its in zip(step, (other[:130], [1] * 130, range(130)), strict=True))
        found, expected = fast.step(*rows(*step)), plain.step(*rows(*step))
        spread = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 2e-3 * spread, "the roundings of 12 bits and more"


@pytest.mark.parametrize("inputs", [16, 32])
def test_what_is_not_finite_reaches_the_rows_after_it_alone(inputs):
    weights = from_llama(MODEL, lambda _, w: coded(w))
    begin = np.random.default_rng(0).standard_normal((150, 64)).astype(np.float32)
    begin[70, 3] = np.nan
    end = np.zeros_like(begin)
    Decoder(weights, 1, 160, Pool(2), inputs=inputs).step(*rows(range(150), [0] * 150, range(150), []), begin, end)
    assert np.isfinite(end[: 70 if inputs == 16 else 64]).all() and np.isnan(end[70:]).all(), "in floats, rows of the same tile may be lost with it"


def test_prompts_do_not_see_what_comes_after():
    weights = from_llama(MODEL, lambda _, w: coded(w))
    texts = [[*range(100), *range(late, late + 50)] for late in (100, 200)]
    early = [Decoder(weights, 1, 160, Pool(2), inputs=16).step(*rows(text, [0] * 150, range(150), range(100))) for text in texts]
    assert np.array_equal(*early), "every scale is of one key or one query"

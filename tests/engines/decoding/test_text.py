import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lissome.compress.quantize.packing import pack_to
from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.engines.decoding.bench import bench
from lissome.engines.decoding.engine import Batch, Engine, open_engine
from lissome.engines.decoding.sampling import Sampling
from lissome.engines.decoding.speculative import Drafting
from lissome.engines.decoding.text import Spoken, _Text, chat_prompt, generate
from lissome.kernels.decoder.packed import pack
from lissome.nn.decoder.folder import DESCRIPTION, TENSORS, About
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.tokenizer import tokenizer_of
from tests.nn.decoder.small import as_gguf, llama

BYTES = bytes_to_unicode()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return as_gguf(llama(), tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def engine(path):
    return open_engine(path, slots=2, capacity=64, threads=1)


class Scripted:
    """An engine that says what it is told, token by token."""

    def __init__(self, engine: Engine, says: str, capacity: int = 1000) -> None:
        self.tokenizer, self.about, self.capacity, self.ends = engine.tokenizer, engine.about, capacity, engine.ends
        self.left, self.reads = self.tokenizer.encode(says).ids, []

    def read(self, tokens, slot=0, start=0):
        self.reads.append((list(tokens), start))
        logits = np.zeros(262, np.float32)
        logits[self.left.pop(0) if self.left else 2] = 5
        return logits


def said(engine, says, capacity=1000, **options):
    spoken = Spoken()
    scripted = Scripted(engine, says, capacity)
    return list(generate(scripted, "the", Sampling(), spoken=spoken, **options)), spoken, scripted


def test_greedy_text_is_what_transformers_generates(path):
    model = llama()
    engine = Engine(open_engine(path).weights, tokenizer_of(read_gguf(path)), threads=1)
    as_gguf(model, path.parent / "again.gguf")  # sets the model's weights to what the codes stand for
    prompt = engine.tokenizer.encode("the man").ids
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0, len(prompt) :].tolist()
    spoken = Spoken()
    "".join(generate(engine, "the man", Sampling(), most=20, spoken=spoken))
    same = sum(a == b for a, b in zip(spoken.tokens, expected, strict=False))
    assert spoken.tokens == expected[: len(spoken.tokens)] or same >= 15  # keys and values are kept in bfloat16: a tie may fall the other way


def test_pieces_are_whole_characters_and_nothing_is_lost(engine):
    pieces, spoken, _ = said(engine, "a \u00e9\u4e2d\u6587 z")
    assert "".join(pieces) == "a \u00e9\u4e2d\u6587 z" and not any("\ufffd" in piece for piece in pieces)
    assert spoken.reason == "stop"


def test_a_long_text_is_given_out_whole(engine):
    text = "the man and 12 others. " * 20
    assert "".join(said(engine, text, most=2000)[0]) == text


@pytest.mark.parametrize(("stop", "expected"), [(["others"], "the man and "), (["xyz"], "the man and others"), (["man and o", "nd"], "the man a")])
def test_stop_strings_end_it_and_are_not_given_out(engine, stop, expected):
    pieces, _, _ = said(engine, "the man and others", stop=stop)
    assert "".join(pieces) == expected


def test_the_most_tokens(engine):
    pieces, spoken, _ = said(engine, "abcdef", most=3)
    assert "".join(pieces) == "abc" and spoken.reason == "length" and len(spoken.tokens) == 3


def test_nothing_is_computed_behind_the_last_token(engine):
    _, _, scripted = said(engine, "abcdef", most=3)
    assert len(scripted.reads) == 3  # the prompt, and two of the three tokens


def test_spaces_stand_with_a_tokenizer_that_drops_the_first(engine):
    """As SentencePiece's decoders do: a word's own space is dropped where the word is decoded first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["the", *(f"word{i}" for i in range(90)), "end."]
    tokenizer = Tokenizer(models.WordLevel({f"\u2581{word}": i for i, word in enumerate(words)}, "\u2581the"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    written = " ".join([*words[1:], "word3", "end.", "word4", "word5"])
    scripted = Scripted(engine, "")
    scripted.tokenizer, scripted.left, scripted.ends = tokenizer, tokenizer.encode(written).ids, lambda: {0}
    found = "".join(generate(scripted, "the", Sampling(), most=len(words) + 3))
    assert found == f" {written}"


def test_a_stop_string_begins_in_the_answer(engine):
    pieces, spoken, _ = said(engine, "ee but", stop=["ee"])
    assert "".join(pieces) == "" and spoken.reason == "stop"
    pieces, spoken, _ = said(engine, "e but", stop=["ee"], most=5)  # the prompt ends in an e
    assert "".join(pieces) == "e but"


def test_when_the_room_is_used_up_it_stops_or_forgets(engine):
    pieces, spoken, _ = said(engine, "abcdefghij", capacity=5)
    assert spoken.reason == "room" and "".join(pieces) == "abcde"
    pieces, spoken, scripted = said(engine, "abcdefghij", capacity=5, overflow="slide")
    assert "".join(pieces) == "abcdefghij"
    assert max(len(tokens) + start for tokens, start in scripted.reads) <= 5


def test_sliding_keeps_the_first_tokens_and_the_newest_at_places_from_zero(engine):
    _, _, scripted = said(engine, "abcdefghijklmnopqrstuvwxyz", capacity=20, overflow="slide")
    first = engine.tokenizer.encode("the").ids
    written = first + engine.tokenizer.encode("abcdefghijklmnopqrstuvwxyz").ids
    slid = [(tokens, start) for tokens, start in scripted.reads[1:] if len(tokens) > 1]
    assert slid and slid[0] == (written[21 - 6 : 21], 4)  # the first four stand where they stood
    assert said(engine, "a", capacity=4, overflow="slide")[2].reads[0][0] == first  # what fits is left alone


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 40))
def test_broken_utf8_never_holds_the_stream_up(engine, raw, capacity):
    """Bytes that are no text come out as replacement characters three bytes later at the most, and all of it is what decoding at once gives."""
    letters = engine.tokenizer.encode("").ids + [engine.tokenizer.token_to_id(BYTES[one]) for one in raw]
    text = _Text(engine, (), [])
    pieces = []
    for at, token in enumerate(letters):
        pieces.append(text.add(token)[0])
        so_far = engine.tokenizer.decode(letters[: at + 1], skip_special_tokens=False)
        assert len("".join(pieces)) >= len(so_far) - 3
    pieces.append(text.rest())
    assert "".join(pieces) == raw.decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", ["man and", "n a", "\u00e9\u4e2d"])
def test_stop_strings_across_tokens_and_bytes(engine, stop):
    pieces, spoken, _ = said(engine, "the man and \u00e9\u4e2d z", stop=[stop])
    assert "".join(pieces) == "the man and \u00e9\u4e2d z".partition(stop)[0] and spoken.reason == "stop"


def test_logits_that_are_not_finite_name_the_step(engine):
    scripted = Scripted(engine, "abcdef")
    read = scripted.read
    scripted.read = lambda tokens, slot=0, start=0: read(tokens, slot, start) * (float("nan") if len(scripted.reads) == 4 else 1)
    spoken = Spoken()
    with pytest.raises(BadModel, match="token 4 of the answer, place 4: its logits are not finite"):
        list(generate(scripted, "the", Sampling(), spoken=spoken))
    assert len(spoken.tokens) == 3


def test_a_template_that_fails_as_a_program_does(engine):
    for template in ("{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ messages[0].content | int('x', 99) }}{{ none.x.y }}"):
        with pytest.raises(BadConfig, match="chat template fails"):
            chat_prompt(Engine(engine.weights, engine.tokenizer, About(chat_template=template), threads=1), [{"role": "user", "content": "x"}])


def test_two_sequences_side_by_side_are_as_each_alone(engine):
    engine = Engine(engine.weights, engine.tokenizer, slots=2, capacity=64, threads=1, inputs=16)
    alone = [engine.read(tokens) for tokens in ([5, 6, 7], [8, 9])]
    engine.read([5, 6], slot=0)
    engine.read([8], slot=1)
    both = engine.step(Batch(np.array([7, 9]), np.array([0, 1]), np.array([2, 1]), np.array([0, 1])))
    np.testing.assert_allclose(both, np.stack(alone), rtol=1e-3, atol=5e-3)  # inputs of several rows may be rounded to 16 bits


def test_a_packed_folder_says_the_same_and_is_loaded_without_a_copy(path, tmp_path, engine):
    pack_to(tmp_path / "packed", str(path))
    again = open_engine(tmp_path / "packed", capacity=64, threads=1)
    assert np.array_equal(again.read([5, 6, 7]), engine.read([5, 6, 7]))
    assert again.about == engine.about and again.ends() == engine.ends()


def test_a_chat_by_the_models_own_template(engine):
    assert chat_prompt(engine, [{"role": "user", "content": "hi"}]) == "<|im_start|>user: hi<|im_end|><|im_start|>"
    plain = Engine(engine.weights, engine.tokenizer, threads=1)
    with pytest.raises(BadConfig, match="no chat template"):
        chat_prompt(plain, [])
    broken = Engine(engine.weights, engine.tokenizer, About(chat_template="{{ raise() }}"), threads=1)
    with pytest.raises(BadConfig, match="chat template fails"):
        chat_prompt(broken, [])


class Noted:
    """An engine whose reads are noted: the tokens, and where they begin."""

    def __init__(self, engine: Engine) -> None:
        self.tokenizer, self.about, self.capacity, self.ends, self.engine, self.reads = engine.tokenizer, engine.about, engine.capacity, engine.ends, engine, []

    def read(self, tokens, slot=0, start=0):
        self.reads.append((list(tokens), start))
        return self.engine.read(tokens, slot, start)


@pytest.mark.parametrize("capacity", [250, 60])
def test_a_chat_goes_on_from_what_it_has_read(path, capacity):
    """The same texts as by reading the whole conversation at each turn; of a long one less is read, of one that slid what is left."""
    ways = []
    for again in (False, True):
        noted = Noted(open_engine(path, capacity=capacity, threads=1, inputs=32))
        messages, answers, spoken, prompts = [], [], Spoken(), []
        for said in ("the man", "and then", "another 42"):
            messages.append({"role": "user", "content": said})
            spoken = Spoken(read=[] if again else spoken.read)
            prompts.append(len(noted.reads))
            coming = generate(noted, chat_prompt(noted, messages), Sampling(), most=12, overflow="slide", spoken=spoken)
            answers.append("".join(coming))
            messages.append({"role": "assistant", "content": answers[-1]})
        ways.append((answers, [noted.reads[at] for at in prompts]))
    assert ways[0][0] == ways[1][0]
    assert [start for _, start in ways[1][1]] == [0, 0, 0] and ways[0][1][0] == ways[1][1][0]
    if capacity == 250:
        for (new, start), (whole, _) in zip(ways[0][1][1:], ways[1][1][1:], strict=True):
            assert start > 0 and new == whole[start:]


@pytest.mark.parametrize(("held", "start"), [([], 0), ([250, 251, 252], 0), (1, 1), (2, 2)])
def test_what_the_slot_does_not_hold_is_read(engine, held, start):
    ids = engine.tokenizer.encode("the man").ids
    scripted, spoken = Scripted(engine, "ab"), Spoken(read=held if isinstance(held, list) else [*ids[:held], 250, 251])
    list(generate(scripted, "the man", Sampling(), spoken=spoken))
    assert scripted.reads[0] == (ids[start:], start)
    assert spoken.read == ids + engine.tokenizer.encode("ab").ids  # what was read, and so stands in the slot


def test_the_last_token_is_read_again_for_its_logits(engine):
    ids = engine.tokenizer.encode("the man").ids
    scripted = Scripted(engine, "ab")
    list(generate(scripted, "the man", Sampling(), spoken=Spoken(read=[*ids, 7, 8])))
    assert scripted.reads[0] == (ids[-1:], len(ids) - 1)


def test_drafts_begin_anew(path):
    engine = open_engine(path, capacity=64, threads=1)
    spoken = Spoken(read=engine.tokenizer.encode("the man").ids)
    list(generate(engine, "the man", Sampling(), most=4, spoken=spoken, drafting=Drafting(layers=1)))
    assert spoken.read == []  # drafts read ahead of what stands


def test_templates_get_the_text_that_ends_a_turn(engine):
    end = engine.tokenizer.token_to_id("<|im_end|>")
    about = About(chat_template="{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", end_tokens=(end,))
    zephyr = Engine(engine.weights, engine.tokenizer, about, threads=1)
    assert chat_prompt(zephyr, [{"role": "user", "content": "hi"}]) == "hi<|im_end|>"


def test_numbers_that_cannot_be(engine):
    with pytest.raises(BadInput, match=r"100,000 threads on \d+ cores only wait for one another"):
        Engine(engine.weights, engine.tokenizer, threads=100_000)
    with pytest.raises(BadModel, match="texts begin with token 999, and the model has 300"):
        Engine(engine.weights, engine.tokenizer, About(begin_token=999), threads=1)


def test_a_template_cannot_reach_out(engine):
    evil = Engine(engine.weights, engine.tokenizer, About(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"), threads=1)
    with pytest.raises(BadConfig, match="chat template fails"):
        chat_prompt(evil, [])


def test_bad_prompts(engine):
    with pytest.raises(BadInput, match="the prompt has 0 tokens"):
        generate(engine, "", Sampling())
    with pytest.raises(BadInput, match="the prompt has 100 tokens, and there is room for 64"):
        generate(engine, "a" * 100, Sampling())
    with pytest.raises(BadInput, match="place 64 is beyond the 64 tokens"):
        engine.read([1], start=64)


def test_bad_models(path, tmp_path, engine):
    with pytest.raises(BadModel, match="no decoder at"):
        open_engine(tmp_path)
    pack_to(tmp_path / "packed", str(path))
    (tmp_path / "packed" / TENSORS).write_bytes((tmp_path / "packed" / TENSORS).read_bytes()[:1000])
    with pytest.raises(BadModel, match=r"ends at byte [\d,]+, and the file at 1,000|claims a header of"):
        open_engine(tmp_path / "packed")
    (tmp_path / "packed" / DESCRIPTION).write_text("{}")
    with pytest.raises(BadModel, match="the decoder cannot be read"):
        open_engine(tmp_path / "packed")
    wide = tokenizer_of(read_gguf(path))
    wide.add_tokens([f"extra{i}" for i in range(100)])
    with pytest.raises(BadModel, match="the tokenizer has 362 tokens and the model 300"):
        Engine(engine.weights, wide)
    many = pack(np.zeros((5000, 64)))
    with pytest.raises(BadModel, match="the tokenizer has 262 tokens and the model 5,000"):
        Engine(dataclasses.replace(engine.weights, embedding=many, head=many), tokenizer_of(read_gguf(path)))


def test_speed_is_measured_with_intervals(path):
    found = bench(open_engine(path, slots=2, capacity=40, threads=1), 20, 4, 6)
    assert [one.name for one in found] == ["prefill", "decode"]
    assert all(0 < one.low <= one.value <= one.high and one.n == 6 and one.unit == "tokens/s" for one in found)

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from lissome.cli.main import run as command
from lissome.compress.distill import DistillConfig, DistillTaskConfig, distil_for_task, distill
from lissome.compress.distill.capture import attentions, blocks, evenly, listening
from lissome.compress.distill.examples import keys_of
from lissome.compress.distill.pupil import Pairs
from lissome.compress.distill.store import Layout, Store
from lissome.compress.distill.teacher import OUTPUTS, Teacher
from lissome.compress.distill.terms import attention_logits, hidden_error, map_divergence, relation_divergence, soft_logits
from lissome.core.cache import Cache
from lissome.core.errors import BadConfig, BadInput, BadModel, Diverged
from lissome.nn.load import as_model, load_model
from lissome.train.batches import Batches
from lissome.train.config import TrainConfig
from lissome.train.finetune import score_of
from tests.nn.tiny import bert, cnn, images, tensors, texts
from tests.train.small import bits, loader, number_task, small, word_task

SHORT = TrainConfig(epochs=2, lr=2e-3, precision="fp32")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def student(seed: int = 1, **changes: object) -> nn.Module:
    """A BERT of one block, half as wide as `bert()`."""
    return bert(seed=seed, **{"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, **changes})


# --- the losses, against plain loops in float64


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(teacher: np.ndarray, other: np.ndarray) -> float:
    p, q = softmax(teacher), softmax(other)
    return float(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), classes=st.integers(2, 6), temperature=st.floats(0.5, 8))
def test_soft_logits_equal_the_plain_sum(seed, rows, classes, temperature):
    rng = np.random.default_rng(seed)
    mine, theirs = rng.normal(size=(rows, classes)) * 3, rng.normal(size=(rows, classes)) * 3
    expected = temperature**2 * np.mean([kl(theirs[i] / temperature, mine[i] / temperature) for i in range(rows)])
    assert float(soft_logits(torch.tensor(mine), torch.tensor(theirs), temperature)) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert float(soft_logits(torch.tensor(theirs), torch.tensor(theirs), temperature)) == pytest.approx(0, abs=1e-5)


def some_mask(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    mask = np.zeros((rows, length), dtype=bool)
    for i in range(rows):
        mask[i, : rng.integers(1, length + 1)] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), length=st.integers(1, 5))
def test_hidden_and_token_losses_leave_padding_out(seed, rows, length):
    rng = np.random.default_rng(seed)
    mine, theirs, mask = rng.normal(size=(rows, length, 4)), rng.normal(size=(rows, length, 4)), some_mask(rng, rows, length)
    places = [(i, j) for i in range(rows) for j in range(length) if mask[i, j]]
    error = sum(((mine[p] - theirs[p]) ** 2).mean() for p in places) / sum((theirs[p] ** 2).mean() for p in places)
    m, t, k = torch.tensor(mine), torch.tensor(theirs), torch.tensor(mask)
    assert float(hidden_error(m, t, k)) == pytest.approx(error, rel=1e-4)
    assert float(soft_logits(m, t, 1.0, k)) == pytest.approx(np.mean([kl(theirs[p], mine[p]) for p in places]), rel=1e-3, abs=1e-5)
    noise = torch.where(k[..., None], m, 1e3 * torch.ones_like(m))
    assert float(hidden_error(noise, t, k)) == pytest.approx(error, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), length=st.integers(1, 5), heads=st.sampled_from([1, 2, 4]))
def test_relations_equal_the_plain_loops(seed, rows, length, heads):
    rng = np.random.default_rng(seed)
    mine, theirs, mask = rng.normal(size=(rows, length, 8)), rng.normal(size=(rows, length, 12)), some_mask(rng, rows, length)

    def plain(x: np.ndarray, i: int, h: int, row: int) -> np.ndarray:
        width = x.shape[-1] // heads
        part = x[i, :, h * width : (h + 1) * width]
        return np.array([part[row] @ part[column] / math.sqrt(width) for column in range(length) if mask[i, column]])

    values = [
        np.mean([kl(plain(theirs, i, h, row), plain(mine, i, h, row)) for h in range(heads)]) for i in range(rows) for row in range(length) if mask[i, row]
    ]
    found = relation_divergence(torch.tensor(mine), torch.tensor(theirs), heads, torch.tensor(mask))
    assert float(found) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5)


def test_one_output_is_taught_by_its_square():
    assert float(soft_logits(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]), 4.0)) == 2.5


def test_a_row_without_tokens_gives_no_nan():
    x, mask = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([[True, True, False], [False] * 3])
    total = relation_divergence(x, torch.randn(2, 3, 4), 2, mask) + hidden_error(x, torch.randn(2, 3, 4), mask)
    total.backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[1] == 0).all()


def test_maps_from_captured_projections_are_transformers_own():
    module, batch = bert(attn_implementation="eager"), tensors(texts(4, 9))
    own = attentions(module)
    with torch.no_grad(), listening(module, [name for one in own for name in (one.query, one.key)]) as heard:
        expected = module(**batch, output_attentions=True).attentions
    assert [one.heads for one in own] == [2, 2]
    for one, maps in zip(own, expected, strict=True):
        logits = attention_logits(heard[one.query], heard[one.key], one.heads, one.scale, batch["attention_mask"].bool())
        assert torch.allclose(functional.softmax(logits, -1), maps, atol=1e-5)
    same = (heard[own[0].query], heard[own[0].key], 2, own[0].scale)
    assert float(map_divergence(same, same, batch["attention_mask"].bool())) == pytest.approx(0, abs=1e-6)


# --- what is found inside models


def test_blocks_and_attention_are_found():
    assert blocks(bert()) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert blocks(cnn()) == ["blocks.0", "blocks.1", "blocks.2"]
    assert blocks(nn.Linear(2, 2)) == []
    assert attentions(cnn()) == []
    assert evenly(["a", "b"], ["1", "2", "3", "4", "5", "6"]) == [("a", "3"), ("b", "6")]
    assert evenly(list("abcd"), list("123456")) == [("a", "2"), ("b", "3"), ("c", "5"), ("d", "6")]


@pytest.mark.parametrize(("family", "exact"), [("DistilBert", True), ("Roberta", True), ("Llama", False)])
def test_other_families_of_attention(family, exact):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 40}
    names = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50, "max_position_embeddings": 40}
    config = getattr(transformers, f"{family}Config")(**(names if family == "DistilBert" else sizes))
    found = attentions(getattr(transformers, f"{family}Model")(config))
    assert [one.heads for one in found] == [4, 4]
    assert all(one.exact == exact for one in found)


def test_an_example_keeps_its_key_whatever_it_is_padded_to():
    short, long = tensors(texts(3, 8)), tensors(texts(3, 8))
    wider = {name: functional.pad(value, (0, 5)) for name, value in long.items()}
    assert keys_of(short) == keys_of(wider)
    assert len(set(keys_of(short))) == 3
    assert keys_of(short | {"labels": torch.ones(3)}) == keys_of(short), "labels are no input"
    left = {name: value.flip(1) for name, value in short.items()}
    assert keys_of(left) != keys_of({name: functional.pad(value, (5, 0)) for name, value in left.items()}), "padding on the left is not understood"
    assert keys_of((torch.ones(3, 2), torch.ones(4))) is not None
    assert keys_of({"a": torch.ones(3, 2), "b": torch.ones(1, 2)}) is None


# --- the teacher's store


TOKENS, ONE = Layout("<f2", (3,), True), Layout("<f4", (2,), False)


def states(n: int, length: int) -> np.ndarray:
    return np.full((length, 3), n, np.float16)


def test_arrays_are_read_back_by_later_processes(cache):
    store = Store(cache, "k")
    for n in range(5):
        assert store.put(bytes([n]) * 16, states(n, n + 1), TOKENS, n + 1)
    assert np.array_equal(store.get(bytes([3]) * 16), states(3, 4)), "before anything was flushed"
    store.close()
    again = Store(cache, "k")
    assert len(again) == 5
    assert again.used == store.used == 15 * 6
    assert again.layout == TOKENS
    for n in range(5):
        assert np.array_equal(again.get(bytes([n]) * 16), states(n, n + 1))
    assert not again.put(bytes([3]) * 16, states(3, 4), TOKENS, 4), "it is there already"
    assert not again.put(b"x" * 16, np.zeros(2), ONE, 1), "another layout"
    assert again.put(b"x" * 16, states(7, 2), TOKENS, 2)
    again.close()
    assert len(Store(cache, "k")) == 6, "two processes, two files"


def test_what_a_killed_process_left_half_written_is_not_seen(cache):
    store = Store(cache, "k")
    for n in range(4):
        store.put(bytes([n]) * 16, states(n, 2), TOKENS, 2)
    store.close()
    data = next(store.folder.glob("*.data"))
    os.truncate(data, data.stat().st_size - 1)
    assert len(Store(cache, "k")) == 3
    os.truncate(data.with_suffix(".index"), 2 * 32 + 7)
    assert len(Store(cache, "k")) == 2
    (store.folder / "layout.json").write_text("{")
    assert len(Store(cache, "k")) == 0


def test_the_teacher_runs_once_for_each_example(cache):
    task, guide = word_task(), as_model(bert(vocab_size=50))
    wanted = ["bert.encoder.layer.0"]
    teacher = Teacher(guide, wanted, cache, 100, keep_all=True)
    batches = Batches(task, "train", 16)
    said = [teacher(batch) for batch in batches.epoch(0)]
    assert teacher.runs == len(batches)
    for batch in batches.epoch(1):
        teacher(batch)
    assert teacher.runs == len(batches), "another order and other padding: nothing new"
    teacher.close()
    later = Teacher(guide, wanted, cache, 100, keep_all=True)
    for batch, before in zip(batches.epoch(0), said, strict=True):
        again = later(batch)
        assert torch.equal(again[OUTPUTS], before[OUTPUTS])
        kept = batch["attention_mask"].bool()
        with torch.no_grad(), listening(guide.module, wanted) as heard:
            guide.module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        assert torch.allclose(again[wanted[0]][kept], heard[wanted[0]][kept], atol=1e-2, rtol=1e-3), "float16"
    assert later.runs == 0


def test_without_room_the_teacher_still_teaches(cache):
    task, guide = word_task(), as_model(bert(vocab_size=50))
    full, none = Teacher(guide, [], cache, 1e-5, False), Teacher(guide, [], cache, 0, False)
    for batch in Batches(task, "train", 16).epoch(0):
        assert torch.equal(full(batch)[OUTPUTS], none(batch)[OUTPUTS])
    assert not none.stores
    assert len(full.stores[OUTPUTS]) == 1


def test_a_student_that_needs_less_reads_what_was_kept_for_another(cache):
    task, guide = word_task(), as_model(bert(vocab_size=50))
    more = Teacher(guide, ["bert.encoder.layer.0"], cache, 100, keep_all=True)
    for batch in Batches(task, "train", 16).epoch(0):
        more(batch)
    more.close()
    less = Teacher(guide, [], cache, 100, keep_all=False)
    for batch in Batches(task, "train", 16).epoch(0):
        less(batch)
    assert less.runs == 0


# --- distilling


def test_a_smaller_student_learns_its_teachers_answers(cache):
    task, teacher, small_one = word_task(), as_model(bert(vocab_size=50)), as_model(student(vocab_size=50))
    before = (bits(teacher.module), bits(small_one.module))

    def apart(module: nn.Module) -> float:
        rows = list(Batches(task, "validation", 100, shuffle=False).epoch(0))
        with torch.no_grad():
            return float(np.mean([float(soft_logits(module(**_inputs(b)).logits, teacher.module(**_inputs(b)).logits)) for b in rows]))

    config = DistillConfig(hidden=0.5, attention=0.5, cache_hidden=True)
    taught = distill(small_one, teacher, config, Batches(task, "train", 10), TrainConfig(epochs=15, lr=5e-3, precision="fp32"), cache=cache)
    assert (bits(teacher.module), bits(small_one.module)) == before
    assert apart(taught.module) < 0.5 * apart(small_one.module)
    assert set(taught.module.state_dict()) == set(small_one.module.state_dict()), "the maps between widths are gone"
    assert all(p.requires_grad for p in taught.module.parameters())


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("kind", ["relations", "maps"])
def test_all_attention_layers(cache, kind):
    task, config = word_task(), DistillConfig(logits=0, attention=1, attention_kind=kind, attention_layers="all")
    taught = distill(as_model(bert(seed=1, vocab_size=50)), as_model(bert(vocab_size=50)), config, Batches(task, "train", 20), SHORT, cache=cache)
    assert bits(taught.module) != bits(bert(seed=1, vocab_size=50))


def test_a_cnn_with_plain_loaders_and_its_own_loss(cache):
    teacher, pupil = cnn(), cnn()
    x = torch.from_numpy(images(24)["images"])
    batches = [(x[i : i + 8], torch.arange(8) % 4) for i in range(0, 24, 8)]
    seen = []

    def hard(module, batch):
        seen.append(1)
        return functional.cross_entropy(module(batch[0]), batch[1])

    taught = distill(pupil, teacher, DistillConfig(hidden=1, labels=0.5), batches, TrainConfig(epochs=2, precision="fp32"), loss=hard, cache=cache)
    assert len(seen) == 6, "one forward pass a step"
    assert bits(taught.module) != bits(pupil)
    only = distill(pupil, teacher, DistillConfig(), [x], TrainConfig(steps=2, precision="fp32"), cache=cache)
    assert bits(only.module) != bits(pupil), "batches without labels"


def test_the_sum_is_what_the_terms_say(cache):
    torch.manual_seed(0)
    teacher, pupil = small(0, dropout=0.0), small(1, dropout=0.0)
    batch = next(iter(loader(shuffle=False)))
    losses = []
    config = DistillConfig(logits=2.0, temperature=3.0, labels=0.25, cache_mb=0)
    distill(pupil, teacher, config, [batch], TrainConfig(steps=1, precision="fp32"), cache=cache, done=lambda result, best: losses.append(result.history))
    pupil.train()
    teacher.eval()
    expected = 2.0 * soft_logits(pupil(batch[0]), teacher(batch[0]), 3.0) + 0.25 * functional.cross_entropy(pupil(batch[0]), batch[1])
    assert losses[0][0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_killed_run_resumes_to_the_same_bits(cache, tmp_path, monkeypatch):
    from lissome.compress.distill import pupil as module_under_test

    task, teacher = word_task(), as_model(bert(vocab_size=50))
    config, training = DistillConfig(hidden=1), TrainConfig(epochs=2, lr=1e-3, precision="fp32", checkpoint_every=3)

    def run(folder):
        return distill(as_model(student(vocab_size=50)), teacher, config, Batches(task, "train", 10), training, resume=folder, cache=cache)

    calls, real = [], module_under_test.terms.soft_logits

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 14:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(module_under_test.terms, "soft_logits", dying)
    with pytest.raises(MemoryError):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert os.listdir(tmp_path / "run")
    assert bits(run(tmp_path / "run").module) == bits(run(None).module)


def test_the_best_weights_are_kept_and_patience_ends_it(cache):
    ended = []
    scores = iter([3.0, 2.0, 1.0, 0.0])
    pupil = as_model(small(1))
    made = distill(
        pupil,
        small(0),
        DistillConfig(),
        loader(),
        TrainConfig(steps=40, precision="fp32"),
        validate=lambda module: next(scores),
        evaluate_every=1,
        patience=2,
        cache=cache,
        done=lambda result, best: ended.append((result.steps, result.stopped, best.step)),
    )
    assert ended == [(3, "no progress in 2 evaluations since step 1", 1)]
    assert bits(made.module) != bits(pupil.module)


def test_frozen_parameters_keep_their_values(cache):
    pupil = as_model(small(1))
    made = distill(pupil, small(0), DistillConfig(), loader(), SHORT, cache=cache, frozen=lambda name: name.startswith("first"))
    assert torch.equal(made.module.first.weight, pupil.module.first.weight)
    assert not torch.equal(made.module.head.weight, pupil.module.head.weight)
    assert all(p.requires_grad for p in made.module.parameters())


# --- bad input


def test_checkpoints_belong_to_the_student_the_teacher_and_the_terms(cache, tmp_path):
    """All have the same shapes, so only who they are tells them apart."""

    def run(pupil=1, guide=0, temperature=2.0):
        return distill(as_model(small(pupil)), as_model(small(guide)), DistillConfig(temperature=temperature), loader(), SHORT, resume=tmp_path, cache=cache)

    first = run()
    assert bits(run().module) == bits(first.module)
    for other in ({"pupil": 2}, {"guide": 2}, {"temperature": 3.0}):
        with pytest.raises(BadConfig, match="the checkpoint belongs to"):
            run(**other)


def test_models_that_cannot_be_compared(cache):
    task, guide = word_task(), as_model(bert(vocab_size=50))
    batches = Batches(task, "train", 10)

    def failing(pupil, error, message, guide=guide, **terms):
        with pytest.raises(error, match=message):
            distill(pupil, guide, DistillConfig(**terms), batches, SHORT, cache=cache)

    failing(student(labels=3, vocab_size=50), BadModel, r"the student gives outputs of the shape \[10, 3\], the teacher \[10, 2\]")
    failing(bert(vocab_size=50, num_hidden_layers=3), BadConfig, "the student has 3 blocks, the teacher 2", hidden=1)
    failing(student(vocab_size=50, num_attention_heads=1), BadConfig, "the student has 1 heads, the teacher 2", attention=1, attention_kind="maps")
    failing(student(vocab_size=50), BadModel, 'no module called "nothing"', hidden=1, layers=(("nothing", "bert.encoder.layer.0"),))
    failing(student(vocab_size=50), BadConfig, "cannot both be cut into 5 parts", attention=1, relation_heads=5)
    with pytest.raises(BadModel, match="no attention with separate linear projections was found in the student"):
        Pairs(cnn(), bert(), DistillConfig(attention=1))
    with pytest.raises(BadModel, match="no blocks were found in the teacher"):
        Pairs(cnn(), nn.Linear(2, 2), DistillConfig(hidden=1))
    x = torch.from_numpy(images(4)["images"])
    with pytest.raises(BadModel, match="differ in width alone"):
        distill(cnn(), cnn(), DistillConfig(hidden=1, layers=(("blocks.0", "blocks.2"),)), [x], SHORT, cache=cache)


def test_batches_and_losses_that_make_no_sense(cache):
    pupil, guide = small(1), small(0)
    with pytest.raises(BadConfig, match="its weight is 0"):
        distill(pupil, guide, DistillConfig(), loader(), SHORT, loss=lambda module, batch: module(batch[0]).sum(), cache=cache)
    with pytest.raises(BadInput, match="ran the student 2 times"):
        distill(pupil, guide, DistillConfig(labels=1), loader(), SHORT, loss=lambda m, b: (m(b[0]) + m(b[0])).sum(), cache=cache)
    with pytest.raises(BadInput, match="the batch has no labels"):
        distill(pupil, guide, DistillConfig(labels=1), [torch.randn(4, 8)], SHORT, cache=cache)
    with pytest.raises(BadInput, match="cannot tell inputs and labels apart"):
        distill(pupil, guide, DistillConfig(), ["a"], SHORT, cache=cache)
    with pytest.raises(BadInput, match="the loader gave no batches"):
        distill(pupil, guide, DistillConfig(), [], SHORT, cache=cache)
    with pytest.raises(Diverged, match="the loss became nan at step 1"):
        distill(pupil, guide, DistillConfig(labels=1), loader(), SHORT, loss=lambda m, b: m(b[0]).sum() * float("nan"), cache=cache)
    with pytest.raises(BadModel, match="the teacher's outputs hold NaN or infinity"):
        distill(pupil, guide, DistillConfig(), [torch.full((2, 8), float("nan"))], SHORT, cache=cache)
    with pytest.raises(ValidationError, match="nothing comes from the teacher"):
        DistillConfig(logits=0, labels=1)


# --- on tasks, and from the command line


def test_on_a_task_it_is_cached(cache):
    task, teacher, pupil = number_task(), as_model(small(0)), as_model(small(1))
    config = DistillTaskConfig(train=SHORT, size=8, freeze_embeddings=False)
    made = distil_for_task(pupil, teacher, task, config, cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.root.rglob("*") if path.is_file()}
    again = distil_for_task(pupil, teacher, task, config, cache)
    assert again.fingerprint == made.fingerprint != pupil.fingerprint
    assert stamps == {path: path.stat().st_mtime_ns for path in cache.root.rglob("*") if path.is_file()}
    record_of = json.loads(next(cache.root.glob("distill/*/distill.json")).read_text())
    assert record_of["score"] == pytest.approx(score_of(made.module, task))
    assert made.module.drop.p == pupil.module.drop.p, "dropout was off only while it learned"
    distil_for_task(pupil, teacher, task, config.model_copy(update={"size": 16}), cache)
    assert len(list(cache.root.glob("teacher/*/*.data"))) == 1, "a second student reads what the teacher said"


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "student"
    arguments = ["distill", "lissome.nn.cnn:small_cnn", "--teacher", "lissome.nn.cnn:small_cnn", "--task", "lissome.data.digits:digits_task"]
    assert command([*arguments, "--out", str(out), "--epochs", "1", "--batch", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["score"] <= 1
    assert found["parameters"][0] == found["parameters"][1]
    assert load_model(str(out)).fingerprint == found["fingerprint"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    assert command([*arguments, "--out", str(tmp_path / "full")]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert command([*arguments, "--out", str(out), "--logits", "0"]) == 2
    assert "nothing comes from the teacher" in capsys.readouterr().err

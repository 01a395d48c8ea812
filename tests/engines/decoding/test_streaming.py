"""A decoder within a memory budget: the same bits, fewer pages. Peaks are those of a child process, since this one's holds everything that ran before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import BadInput, BadModel
from lissome.engines.decoding.engine import Batch, Engine, open_engine, pack_gguf, packed
from lissome.engines.decoding.streaming import Streamed, plan, units_of
from lissome.kernels.decoder.packed import Codes, pack
from lissome.kernels.library import library
from lissome.machine.budget import SPARE, Budget, resident
from lissome.nn.decoder.folder import TENSORS, load_decoder, map_decoder, save_decoder
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.tokenizer import tokenizer_of
from lissome.nn.decoder.weights import from_gguf, halves_first
from tests.nn.decoder.small import as_gguf, llama

pytestmark = [
    pytest.mark.skipif(library().handle is None, reason="no native kernels"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages of a file are given back on Linux alone"),
]
AMPLE = 1 << 40


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(tmp_path_factory, request):
    home = tmp_path_factory.mktemp("streamed")
    path = as_gguf(llama(layers=5, vocab_size=1000, tie_word_embeddings=request.param == "tied"), home / "m.gguf")
    pack_gguf(path, home / "m")
    return home / "m"


def streamed(folder: Path, kept: int, rows: int = 256) -> Engine:
    """An engine that keeps so many of its parts in memory."""
    engine = open_engine(folder, slots=2, capacity=64, threads=1, budget=AMPLE)
    assert engine.streamed is not None
    engine.streamed.kept = kept
    object.__setattr__(engine.streamed.plan, "rows", rows)
    return engine


@pytest.mark.parametrize("kept", [0, 2, 99])
def test_logits_are_the_resident_models_bit_for_bit(folder, kept):
    whole, parts = open_engine(folder, slots=2, capacity=64, threads=1), streamed(folder, kept)
    draw = np.random.default_rng(kept)
    prompt = draw.integers(262, size=30)
    rows = Batch(prompt, np.repeat([0, 1], [21, 9]), np.array([*range(21), *range(9)]), np.array([3, 20, 29]))
    assert np.array_equal(parts.step(rows), whole.step(rows))
    for at in range(4):
        tokens = draw.integers(262, size=2)
        step = Batch(tokens, np.array([0, 1]), np.array([21 + at, 9 + at]), np.array([0, 1]))
        assert np.array_equal(parts.step(step), whole.step(step))


def test_a_long_prompt_goes_part_by_part_as_the_resident_model_given_the_same_parts(folder):
    whole, parts = open_engine(folder, capacity=64, threads=1), streamed(folder, 0, rows=7)
    tokens = list(range(5, 25))
    expected = [whole.read(tokens[at : at + 7], start=at) for at in range(0, 20, 7)][-1]
    assert np.array_equal(parts.read(tokens), expected)


def test_pages_are_given_back(folder):
    engine = streamed(folder, 0)
    mapped = engine.streamed.mapped
    mapped.load([(0, mapped.size)])
    assert in_memory(mapped) == pytest.approx(mapped.size, abs=2 * 4096)
    mapped.drop([(0, mapped.size)])
    assert in_memory(mapped) == 0
    engine.read([1, 2, 3])
    engine.streamed._coming[1].result()
    first = engine.streamed.units[0].size  # the next step's first part has been read already
    assert in_memory(mapped) <= first + 4 * 65536  # what the system maps around it


def in_memory(mapped) -> int:
    """Bytes of the map that this process has, by /proc/self/smaps."""
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            begin, end = (int(one, 16) for one in head[0].split("-"))
            mine = begin <= mapped.address < end
        elif mine and head[0] == "Rss:":
            found += 1024 * int(head[1])
    return found


def test_a_file_that_was_cut_meanwhile_is_an_error_not_a_crash(tmp_path):
    pack_gguf(as_gguf(llama(layers=3), tmp_path / "m.gguf"), tmp_path / "m")
    engine = streamed(tmp_path / "m", 0)
    engine.read([1, 2])
    os.truncate(tmp_path / "m" / TENSORS, 20_000)
    with pytest.raises(BadModel, match="it can no longer be read"):
        engine.read([1, 2])


def test_the_plan_adds_up_and_keeps_what_fits(folder):
    weights, _, mapped = map_decoder(folder)
    units = units_of(weights, mapped)
    assert [one.layer for one in units[:5]] == list(range(5)) and all(one.head is not None for one in units[5:])
    assert sum(one.head.rows for one in units[5:]) == 1000
    budget = Budget(400_000_000, 200_000_000)
    ample = plan(budget, weights, units, 1, None, 1)
    assert ample.kept == len(units) and ample.streamed == 0 and ample.capacity == 256 // 1
    least = ample.budget.bytes - (budget.room - ample.window - ample.cache - ample.scratch)
    tight = plan(Budget(least + units[0].size + 10, 200_000_000), weights, units, 1, ample.capacity, 1)
    assert tight.kept < len(units) or tight.rows < ample.rows
    with pytest.raises(BadInput, match=r"too small: this process takes 200 MB without a model, two parts of the model [\d.]+ MB, keys and values of 64 tokens"):
        plan(Budget(200_000_000 + SPARE + 1000, 200_000_000), weights, units, 1, 64, 1)


def test_a_process_that_grows_gives_back_what_it_kept(folder, monkeypatch):
    engine = streamed(folder, 99)
    expected = engine.read([1, 2, 3])
    monkeypatch.setattr(Budget, "over", lambda self: True)
    assert np.array_equal(engine.read([1, 2, 3]), expected)
    assert engine.streamed.kept == 0


def test_a_gguf_file_is_packed_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    path = as_gguf(llama(), tmp_path / "m.gguf")
    expected = open_engine(path, threads=1, capacity=64).read([4, 5])
    engine = open_engine(path, threads=1, budget=AMPLE, capacity=64)
    assert np.array_equal(engine.read([4, 5]), expected)
    assert packed(path).parent.parent == tmp_path / "cache" and len(list((tmp_path / "cache" / "decoder").iterdir())) == 1


def test_packing_slice_by_slice_is_packing(tmp_path, monkeypatch):
    monkeypatch.setattr("lissome.nn.decoder.weights.SLICE", 64 * 16)
    monkeypatch.setattr("lissome.nn.decoder.pack_file.POSITIONS", 100)
    path = as_gguf(llama(tie_word_embeddings=False, vocab_size=301), tmp_path / "m.gguf")
    pack_gguf(path, tmp_path / "m")
    file = read_gguf(path)
    found, told = load_decoder(tmp_path / "m")
    save_decoder(from_gguf(file), tmp_path / "plain", tokenizer_of(file), told.about)
    plain, again = load_decoder(tmp_path / "plain")
    assert told == again and np.array_equal(found.cosine, plain.cosine) and np.array_equal(found.sine, plain.sine)
    assert np.array_equal(found.embedding.data, plain.embedding.data) and np.array_equal(found.head.data, plain.head.data)
    for at, name in ((0, "attn_q"), (4, "ffn_down"), (2, "attn_k")):  # whole, as `pack` lays a tensor out
        whole = file.tensor(f"blk.{at % 2}.{name}.weight")
        whole = halves_first(whole, {"attn_q": 4, "attn_k": 2}[name]) if name in ("attn_q", "attn_k") else whole
        assert np.array_equal(pack(whole).data, found.layers[at % 2].matrices[name.rpartition("_")[2]].data)
    for a, b in zip(found.layers, plain.layers, strict=True):
        assert all(np.array_equal(a.matrices[name].data, b.matrices[name].data) for name in a.matrices)
        assert np.array_equal(a.attention_norm, b.attention_norm) and np.array_equal(a.ffn_norm, b.ffn_norm)


def test_layers_alone_cannot_be_had(folder):
    with pytest.raises(BadInput, match="layers alone cannot be had within a memory budget"):
        streamed(folder, 0).part(0, 1)


def test_a_prediction_is_an_estimate(folder):
    found = streamed(folder, 0).streamed.predicted()
    assert found.method == "estimated" and found.value > 0 and found.unit == "s"
    assert isinstance(streamed(folder, 0).streamed, Streamed)


@pytest.mark.parametrize(("processors", "from_disk", "times"), [(2, False, 1.5), (3, False, 1.0), (2, True, 1.0), (1, True, 1.5)])
def test_reading_from_memory_takes_a_processor_and_reading_from_the_disk_waits(folder, monkeypatch, processors, from_disk, times):
    found = streamed(folder, 0).streamed
    found.kept, found.threads = 0, 2
    monkeypatch.setattr(found, "measured", lambda _: (2.0, 1.0))  # bytes a second
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    assert found.predicted(from_disk).value == pytest.approx(times * sum(unit.size for unit in found.units))


CHILD = """
import json, sys
import numpy as np
from lissome.engines.decoding.engine import Batch, open_engine
from lissome.machine.memory import peak_rss
from lissome.machine.budget import resident
folder, budget, rows, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
floor = resident()
if out:
    engine = open_engine(folder, capacity=64, threads=1, budget=budget or None)
    rows = engine.streamed.plan.rows if engine.streamed else rows
    prompt = list(range(3, 43))
    logits = [engine.read(prompt[at : at + rows], start=at) for at in range(0, 40, rows)][-1:]
    logits += [engine.read([at + 1], start=40 + at) for at in range(2)]
    np.save(out, np.stack(logits))
print(json.dumps({"peak": 1e6 * peak_rss("").value, "floor": floor, "rows": rows}))
"""


def child(folder: Path, budget: int = 0, rows: int = 40, out: str = "") -> dict:
    words = [sys.executable, "-c", CHILD, str(folder), str(budget), str(rows), out]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def written(folder: Path, layers: int, hidden: int, ffn: int) -> int:
    """A decoder of random codes on disk, written layer by layer; its bytes."""
    from lissome.kernels.decoder.native import Layer, Weights
    from lissome.nn.decoder.folder import About
    from lissome.nn.decoder.weights import rotations

    draw = np.random.default_rng(0)

    def made(rows: int, columns: int):
        codes = draw.integers(16, size=(rows, columns), dtype=np.uint8)
        scale = np.full((rows, columns // 32), 0.1 / columns**0.5, np.float16)
        return pack(Codes(codes, scale, -8 * scale))

    one = {"q": (hidden, hidden), "k": (256, hidden), "v": (256, hidden), "o": (hidden, hidden), "gate": (ffn, hidden), "up": (ffn, hidden)}
    shared = {name: made(*shape) for name, shape in (one | {"down": (hidden, ffn)}).items()}
    layer = Layer(np.ones(hidden), np.ones(hidden), shared)
    embedding, heads = made(1024, hidden), hidden // 64
    weights = Weights([layer] * layers, embedding, embedding, np.ones(hidden), *rotations(64, 256, 10000.0), heads, 4, 64, 1e-5, 0.125)
    file = as_gguf(llama(), folder.parent / "small.gguf")
    save_decoder(weights, folder, tokenizer_of(read_gguf(file)), About())
    return (folder / TENSORS).stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "over_floor"), [(8, 60_000_000), (80, 300_000_000)])
def test_a_model_larger_than_its_budget_stays_below_it(tmp_path, layers, over_floor):
    """Some 100 MB within 60, and about a gigabyte within 300: the peak of a process of its own, and the resident model's bits."""
    size = written(tmp_path / "m", layers, 2048, 2048)
    budget = child(tmp_path / "m")["floor"] + over_floor
    found = child(tmp_path / "m", budget, out=str(tmp_path / "parts.npy"))
    whole = child(tmp_path / "m", rows=found["rows"], out=str(tmp_path / "whole.npy"))
    assert size > 1.3 * over_floor
    assert found["peak"] <= budget < whole["peak"]
    assert np.array_equal(*(np.load(tmp_path / name) for name in ("whole.npy", "parts.npy")))


def test_this_process_is_measured():
    assert 50_000_000 < resident() < 1 << 36


def test_a_long_text_leaves_no_embeddings_behind(tmp_path):
    written(tmp_path / "m", 2, 512, 512)
    engine = streamed(tmp_path / "m", 0)
    found = []
    for first in (3, 600, 900):
        engine.read([first + at * 5 for at in range(15)])
        engine.streamed._coming[1].result()
        found.append(in_memory(engine.streamed.mapped))
    assert found[-1] <= found[0] + 4 * 4096

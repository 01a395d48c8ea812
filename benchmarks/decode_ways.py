"""One way to run a decoder, in a process of its own that benchmarks/decode.py talks to: a line of JSON in, a line of JSON out.

    python benchmarks/decode_ways.py lissome|lissome-8|lissome-16|lissome-32|llama.cpp|transformers-fp32|transformers-bf16 MODEL THREADS SLOTS CAPACITY

llama.cpp runs in an interpreter that need not have lissome, so nothing beyond the standard library is imported before it is needed; lissome's own process
imports neither torch nor transformers, as `lissome generate` does not. First the process prints {"load": seconds} (imports are not counted); then
{"do": "read", "slot", "tokens"} clears the slot and reads so many tokens into it, {"do": "write", "slots", "tokens"} writes so many, one a step in each of the
first slots, and {"do": "memory"} asks for the peak. Replies: {"seconds"} or {"mb"}. Tokens are drawn by lot: what they are does not matter to the time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


class Lissome:
    """lissome's own decoder. inputs: bits that inputs are rounded to where several rows share the weights."""

    def __init__(self, model: str, threads: int, slots: int, capacity: int, inputs: int | str = "mixed") -> None:
        import numpy as np

        from lissome.engines.decoding.engine import Batch, open_engine

        self.np, self.batch = np, Batch
        begun = time.perf_counter()
        self.engine = open_engine(model, slots=slots, capacity=capacity, threads=threads, inputs=inputs)
        self.load = time.perf_counter() - begun

    def read(self, tokens: list[int], slot: int) -> None:
        """Begin a slot anew with these."""
        self.engine.read(tokens, slot)

    def write(self, tokens: list[int], place: int) -> None:
        """One token at `place` of each of the first slots."""
        which = self.np.arange(len(tokens))
        self.engine.step(self.batch(self.np.array(tokens), which, self.np.full(len(tokens), place), which))


class LlamaCpp:
    """llama.cpp through its C interface, as llama-cpp-python brings it."""

    def __init__(self, model: str, threads: int, slots: int, capacity: int) -> None:
        import llama_cpp

        self.c, self.slots = llama_cpp, slots
        llama_cpp.llama_backend_init()
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        begun = time.perf_counter()
        loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = capacity * slots, capacity, slots
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(loaded, params)
        self.load = time.perf_counter() - begun
        if not self.context:
            raise SystemExit("llama.cpp did not open the model")
        self.rows = llama_cpp.llama_batch_init(capacity, 0, 1)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        for i, (token, slot, place, wanted) in enumerate(rows):
            self.rows.token[i], self.rows.pos[i], self.rows.n_seq_id[i], self.rows.seq_id[i][0], self.rows.logits[i] = token, place, 1, slot, wanted
        self.rows.n_tokens = len(rows)
        if self.c.llama_decode(self.context, self.rows):
            raise SystemExit("llama.cpp did not read the tokens")
        self.c.llama_synchronize(self.context)

    def read(self, tokens: list[int], slot: int) -> None:
        """Begin a slot anew with these."""
        self.c.llama_memory_seq_rm(self.c.llama_get_memory(self.context), slot, -1, -1)
        self._decode([(token, slot, i, i + 1 == len(tokens)) for i, token in enumerate(tokens)])

    def write(self, tokens: list[int], place: int) -> None:
        """One token at `place` of each of the first slots."""
        self._decode([(token, slot, place, True) for slot, token in enumerate(tokens)])


class Transformers:
    """The dequantised weights in transformers. Slots are read one by one and then written as one batch, each having read equally many."""

    def __init__(self, model: str, threads: int, slots: int, capacity: int, dtype: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        begun = time.perf_counter()
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.load = time.perf_counter() - begun
        self.kept: dict[int, list[int]] = {}
        self.cache: Any = None

    def _run(self, tokens: list[list[int]], cache: Any) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def read(self, tokens: list[int], slot: int) -> None:
        """Begin a slot anew with these."""
        self.kept[slot], self.cache = tokens, self._run([tokens], None)

    def write(self, tokens: list[int], place: int) -> None:
        """One token at `place` of each of the first slots."""
        self.cache = self._run([[token] for token in tokens], self.cache)

    def warm(self, count: int) -> None:
        """Put the slots beside each other, before the clock runs."""
        if count > 1:
            self.cache = self._run([self.kept[slot] for slot in range(count)], None)


WAYS: dict[str, Any] = {
    "lissome": Lissome,
    "lissome-8": lambda *given: Lissome(*given, inputs=8),
    "lissome-16": lambda *given: Lissome(*given, inputs=16),
    "lissome-32": lambda *given: Lissome(*given, inputs=32),
    "llama.cpp": LlamaCpp,
    "transformers-fp32": lambda *given: Transformers(*given, dtype="float32"),
    "transformers-bf16": lambda *given: Transformers(*given, dtype="bfloat16"),
}


def peak_mb() -> float:
    """The most memory that was resident. Not from getrusage, which on Linux remembers the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM"))


def answer(way: Any, asked: dict[str, Any], places: dict[int, int], lot: random.Random) -> dict[str, float]:
    """Do one thing, and say how long it took."""
    if asked["do"] == "memory":
        return {"mb": peak_mb()}
    count = asked["tokens"]
    if asked["do"] == "read":
        tokens = [lot.randrange(1000, 40000) for _ in range(count)]
        places[asked["slot"]] = count
        begun = time.perf_counter()
        way.read(tokens, asked["slot"])
        return {"seconds": time.perf_counter() - begun}
    if hasattr(way, "warm"):
        way.warm(asked["slots"])
    begun = time.perf_counter()
    for i in range(count):
        way.write([lot.randrange(1000, 40000) for _ in range(asked["slots"])], places[0] + i)
    return {"seconds": time.perf_counter() - begun}


def main() -> None:
    """Open the way, then answer until the input ends."""
    name, model, *sizes = sys.argv[1:]
    way, places, lot = WAYS[name](model, *map(int, sizes)), {}, random.Random(0)
    print(json.dumps({"load": way.load}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(way, json.loads(line), places, lot)), flush=True)


if __name__ == "__main__":
    main()

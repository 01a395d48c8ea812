"""How fast an engine reads a prompt and writes tokens."""

from __future__ import annotations

import time

import numpy as np

from lissome.core.measurement import Measurement
from lissome.core.statistics import achieved_confidence, median_interval
from lissome.engines.decoding.engine import Batch, Engine
from lissome.machine.identity import identify
from lissome.machine.memory import peak_rss


def bench(engine: Engine, prompt: int, tokens: int, rounds: int) -> list[Measurement]:
    """Tokens per second of reading `prompt` tokens into one slot ("prefill") and of writing `tokens` in every slot at once ("decode"), over rounds.

    The tokens are drawn by lot: what they are does not matter to the time. A first round is not counted.
    Within a memory budget also the seconds a step was predicted to take, those it took, and this process's peak memory.
    """
    machine, lot = identify().fingerprint, np.random.default_rng(0)
    vocabulary, slots = engine.weights.embedding.rows, np.arange(engine.slots)
    reading, writing, each = [], [], []
    streamed = engine.streamed
    predicted = [streamed.predicted()] if streamed else []
    for at in range(-1, rounds):
        given = lot.integers(vocabulary, size=prompt).tolist()
        begun = time.perf_counter()
        engine.read(given)
        read = time.perf_counter() - begun
        for slot in range(1, engine.slots):
            engine.read(given, slot)
        begun = time.perf_counter()
        for step in range(tokens):
            token = lot.integers(vocabulary, size=engine.slots)
            engine.step(Batch(token, slots, np.full(engine.slots, prompt + step), slots))
        wrote = time.perf_counter() - begun
        if at >= 0:
            reading.append(prompt / read)
            writing.append(tokens * engine.slots / wrote)
            each.append(wrote / tokens)
    found = [_over(name, values, machine) for name, values in (("prefill", reading), ("decode", writing))]
    if not streamed:
        return found
    return [*found, *predicted, _over("s_per_token", each, machine, "s"), peak_rss(machine)]


def _over(name: str, values: list[float], machine: str, unit: str = "tokens/s") -> Measurement:
    value, low, high = median_interval(values)
    return Measurement(name, value, low, high, unit, len(values), "measured", machine, min(0.95, achieved_confidence(len(values))))

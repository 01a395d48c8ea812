"""A decoder larger than its memory: layers are read from the mapped file while the one before them runs, and given back after.

Weights stay where they are in the file, so the kernel reads the same bytes at the same addresses as when all of them are in memory: the logits are the
resident model's, bit for bit. What the budget has room for stays in memory: as the layers come round in turn, always the same first ones are kept (of what was
used least lately nothing would ever be there again when its turn comes).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lissome.core.errors import BadInput
from lissome.core.measurement import Measurement
from lissome.kernels.decoder.arrays import Array, room
from lissome.kernels.decoder.ffn import BY_NEURON
from lissome.kernels.decoder.native import INPUTS, Decoder, Inputs, Pool, Weights
from lissome.kernels.decoder.packed import ROWS, Packed, packed_bytes
from lissome.machine.budget import Budget, megabytes
from lissome.machine.identity import identify
from lissome.nn.mapped import Mapped, Span, can_stream, merged, size_of

ROWS_OFFERED = (256, 64, 16, 4, 1)
"""Rows that are read at once; a longer prompt is read in parts, each of which reads all weights once."""
LOOKED_UP = 64
"""Rows whose embeddings are looked up before their pages are given back."""
AROUND = 1 << 16
"""Bytes that the system maps around a page that is touched (fault_around_bytes, Linux)."""
FEW, HEADS_TOGETHER = 8, 4
"""Of the kernel (native/matrix_body.h, native/look_body.h): rows that are multiplied straight from the codes, and query heads that share a look at the keys."""
CAPACITIES = (4096, 2048, 1024, 512, 256, 128, 64)
SAMPLES = 6
"""Units that are read and computed with for a prediction, after one that is not counted."""


@dataclass(frozen=True)
class Plan:
    """How a budget is used, in bytes. cache: keys and values of `capacity` tokens; scratch: of a step of `rows` rows; window: two units, the one that runs and
    the one that is being read; kept: how many of the units stay in memory; streamed: bytes that are read for every token."""

    budget: Budget
    capacity: int
    rows: int
    cache: int
    scratch: int
    window: int
    kept: int
    units: int
    streamed: int

    def __str__(self) -> str:
        parts = f"process {megabytes(self.budget.floor)}, keys and values {megabytes(self.cache)} ({self.capacity:,} tokens), scratch {megabytes(self.scratch)}"
        stays = f"{self.kept} of {self.units} parts of the model stay, {megabytes(self.streamed)} are read for each token"
        return f"Budget {megabytes(self.budget.bytes)}: {parts}, two parts at a time {megabytes(self.window)}; {stays}"


@dataclass(frozen=True)
class Unit:
    """What is in memory at a time: a layer, or some rows of the head. layer: its number, or None; begin: the first of the head's rows."""

    spans: tuple[Span, ...]
    layer: int | None
    begin: int = 0
    head: Packed | None = None

    @property
    def size(self) -> int:
        """Bytes of its pages."""
        return size_of(self.spans)


def units_of(weights: Weights, mapped: Mapped) -> list[Unit]:
    """The layers in turn, then the head in pieces no larger than the largest layer. (An expert of a layer would be a unit of its own here.)"""
    found = [Unit(_spans(mapped, [one.data for one in layer.matrices.values()]), at) for at, layer in enumerate(weights.layers)]
    most = max([one.size for one in found], default=1 << 20)
    head, tile = weights.head, packed_bytes(ROWS, weights.head.columns, weights.head.bits, weights.head.group)
    step = max(1, most // tile) * ROWS
    for begin in range(0, head.rows, step):
        rows = min(step, head.rows - begin)
        data = head.data[begin // ROWS * tile : -(-(begin + rows) // ROWS) * tile]
        found.append(Unit(_spans(mapped, [data]), None, begin, dataclasses.replace(head, data=data, rows=rows)))
    return found


def plan(budget: Budget, weights: Weights, units: Sequence[Unit], slots: int, capacity: int | None, threads: int) -> Plan:
    """How to use the budget. capacity: tokens a sequence is to have room for, or None for what fits.

    Raises BadInput with all figures where the largest two parts, one row and the keys and values do not fit.
    """
    window = max((a.size + b.size for a, b in zip(units, [*units[1:], units[0]], strict=True)), default=0)
    positions = weights.cosine.shape[0]
    each = 4 * len(weights.layers) * slots * weights.kv_heads * weights.dim  # bytes of a token's keys and values, in bfloat16
    turned = 4 * weights.dim  # and of its rotation: cosine and sine
    left = budget.room - window - _scratch(weights, slots, threads, CAPACITIES[-1], slots)
    tokens = capacity or next((one for one in CAPACITIES if one <= positions and (each + turned) * one <= left // 2), min(CAPACITIES[-1], positions))
    cache = (each + turned) * tokens
    fitting = [(rows, _scratch(weights, rows, threads, tokens, slots)) for rows in ROWS_OFFERED if rows >= slots or rows == ROWS_OFFERED[-1]]
    rows, scratch = next((one for one in fitting if one[1] <= max(fitting[-1][1], (budget.room - window - cache) // 3)), fitting[-1])
    needed = budget.bytes - budget.room + window + cache + scratch
    if needed > budget.bytes:
        raise BadInput(
            f"a memory budget of {megabytes(budget.bytes)} is too small: this process takes {megabytes(budget.floor)} without a model, "
            f"two parts of the model {megabytes(window)}, keys and values of {tokens:,} tokens {megabytes(cache)}, "
            f"scratch and spare {megabytes(needed - budget.floor - window - cache)}",
            expected=f"at least {megabytes(needed)}",
            do="give it more, or a smaller --context" if tokens > CAPACITIES[-1] else "give it more",
        )
    left, kept = budget.bytes - needed, 0
    while kept < len(units) and units[kept].size <= left:
        left -= units[kept].size
        kept += 1
    return Plan(budget, tokens, rows, cache, scratch, window, kept, len(units), sum(one.size for one in units[kept:]))


class Streamed:
    """As `native.Decoder`, with a plan of how many layers are in memory."""

    def __init__(self, weights: Weights, mapped: Mapped, slots: int, capacity: int | None, threads: int, budget: Budget, inputs: Inputs = INPUTS) -> None:
        can_stream()
        self.mapped, self.units = mapped, units_of(weights, mapped)
        self.plan = plan(budget, weights, self.units, slots, capacity, threads)
        self.kept, self.threads = self.plan.kept, threads
        self.weights = _apart(weights, self.plan.capacity)
        self.whole = Decoder(self.weights, slots, self.plan.capacity, Pool(threads), inputs=inputs)
        self.parts = [self._part(unit) for unit in self.units]
        self._lookup = self._head(self.units[-1].head or weights.head)
        found = mapped.span(weights.embedding.data)
        self._embedding = -1 if found is None else found[0]
        self._reader = ThreadPoolExecutor(1, "lissome-reader")
        self._coming: tuple[int, Future[None]] | None = None
        mapped.drop([(0, mapped.size)])

    def step(self, tokens: Array, slots: Array, positions: Array, wanted: Array) -> Array:
        """Logits [wanted, vocabulary] of the rows `wanted`, after all rows were read; more rows than the plan's go part by part."""
        most, found = self.plan.rows, room((len(wanted), self.weights.head.rows))
        for begin in range(0, len(tokens), most):
            rows = slice(begin, begin + most)
            mine = np.flatnonzero((wanted >= begin) & (wanted < begin + most))
            self._sweep(tokens[rows], slots[rows], positions[rows], wanted[mine] - begin, found, mine)
        return found

    def predicted(self, from_disk: bool | None = None) -> Measurement:
        """Seconds for a token of one sequence, estimated from the measured speed of reading some units and of computing on them.

        from_disk: read the units from the disk, as where the file does not fit into the memory that is free (the default then); else from wherever the system
        has them. Reading from the disk goes on while computing, as it waits most of the time, if there are two processors; reading from memory is work for
        a processor, and goes on beside only where one has no thread of the kernel's.
        """
        from_disk = self._beyond_memory() if from_disk is None else from_disk
        read, compute = self.measured(from_disk)
        side_by_side = len(os.sched_getaffinity(0)) > (1 if from_disk else self.threads)
        total = 0.0
        for at, unit in enumerate(self.units):
            reading, computing = (0.0 if at < self.kept else unit.size / read), unit.size / compute
            total += max(reading, computing) if side_by_side else reading + computing
        return Measurement("predicted_s_per_token", total, total, total, "s", SAMPLES, "estimated", identify().fingerprint)

    def _beyond_memory(self) -> bool:
        import psutil

        return bool(self.mapped.size > psutil.virtual_memory().available)

    def measured(self, from_disk: bool | None = None) -> tuple[float, float]:
        """Bytes a second of reading units from this file, and of computing one row with them (place 0 of the first sequence is used, then written anew)."""
        from_disk = self._beyond_memory() if from_disk is None else from_disk
        step = max(1, len(self.units) // SAMPLES)
        sample = list(range(0, len(self.units), step))[-SAMPLES:]
        one, states = np.zeros(1, np.int32), np.zeros((1, self.weights.embedding.columns), np.float32)
        read, computed = 0.0, 0.0
        for turn, at in enumerate([sample[0], *sample]):
            unit = self.units[at]
            if from_disk:
                self.mapped.forget(unit.spans)
            if turn == 1:
                read = computed = 0.0
            begun = time.perf_counter()
            self.mapped.load(unit.spans)
            read += time.perf_counter() - begun
            begun = time.perf_counter()
            self.parts[at].step(one, one, one, one if unit.layer is None else one[:0], states, None if unit.layer is None else states.copy())
            computed += time.perf_counter() - begun
            self.mapped.drop(unit.spans)
        size = sum(self.units[at].size for at in sample)
        return size / max(read, 1e-9), size / max(computed, 1e-9)

    def _sweep(self, tokens: Array, slots: Array, positions: Array, wanted: Array, logits: Array, into: Array) -> None:
        self.mapped.check()  # the first unit was read ahead, at the end of the step before
        states = self._embedded(tokens, slots, positions)
        last = states
        for at, (unit, part) in enumerate(zip(self.units, self.parts, strict=True)):
            if unit.layer is None and not len(wanted):
                break
            self._await(at)
            self._fetch((at + 1) % len(self.units))
            if unit.layer is not None:
                part.step(tokens, slots, positions, wanted[:0], states, states)
            else:
                if last is states:
                    last = states[wanted]
                rows, zeros = np.arange(len(wanted)), np.zeros(len(wanted), np.int32)
                logits[into, unit.begin : unit.begin + part.weights.head.rows] = part.step(zeros, zeros, zeros, rows, last)
            if at >= self.kept:
                self.mapped.drop(unit.spans)
            elif self.plan.budget.over():
                self.kept = at  # the process has grown: what comes from here on is no longer kept
                self.mapped.drop([span for one in self.units[at : self.plan.kept] if one is not self.units[(at + 1) % len(self.units)] for span in one.spans])

    def _embedded(self, tokens: Array, slots: Array, positions: Array) -> Array:
        """States [rows, hidden] before the first layer."""
        vocabulary = self.weights.embedding.rows
        if len(tokens) and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
            raise BadInput(f"a token is none of the {vocabulary:,} of the vocabulary", expected=f"0 to {vocabulary - 1:,}")
        states = room((len(tokens), self.weights.embedding.columns))
        for begin in range(0, len(tokens), LOOKED_UP):
            rows = slice(begin, begin + LOOKED_UP)
            touched = self._tiles(tokens[rows])
            self.mapped.load(touched)
            self._lookup.step(tokens[rows], slots[rows], positions[rows], tokens[:0], None, states[rows])
            self.mapped.drop((max(0, start - AROUND), min(end + AROUND, self.mapped.size)) for start, end in touched)
        return states

    def _tiles(self, tokens: Array) -> tuple[Span, ...]:
        """Where the embeddings of tokens lie in the file."""
        one = self.weights.embedding
        tile = packed_bytes(ROWS, one.columns, one.bits, one.group)
        starts = [self._embedding + token // ROWS * tile for token in set(tokens.tolist())] if self._embedding >= 0 else []
        return merged((start, start + tile) for start in starts)

    def _part(self, unit: Unit) -> Decoder:
        return self._head(unit.head) if unit.head is not None else self.whole.part(unit.layer or 0, (unit.layer or 0) + 1)

    def _head(self, head: Packed) -> Decoder:
        """A decoder without layers: what it is given goes through the last norm and these rows of the head."""
        weights = dataclasses.replace(self.weights, layers=[], head=head)
        return Decoder(weights, self.whole.slots, self.whole.capacity, self.whole.pool, inputs=self.whole.inputs, kept=(self.whole.keys, self.whole.values))

    def _fetch(self, at: int) -> None:
        """Begin to read a unit."""
        self._coming = (at, self._reader.submit(self.mapped.load, self.units[at].spans))

    def _await(self, at: int) -> None:
        """Have a unit in memory."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming[1].result()
            if coming[0] != at and coming[0] >= self.kept:
                self.mapped.drop(self.units[coming[0]].spans)
        if coming is None or coming[0] != at:
            self.mapped.load(self.units[at].spans)


def _apart(weights: Weights, capacity: int) -> Weights:
    """The weights with their norms and rotations copied: they are small, and needed all the time."""
    layers = [dataclasses.replace(one, attention_norm=one.attention_norm.copy(), ffn_norm=one.ffn_norm.copy()) for one in weights.layers]
    cosine, sine = weights.cosine[:capacity].copy(), weights.sine[:capacity].copy()
    return dataclasses.replace(weights, layers=layers, norm=weights.norm.copy(), cosine=cosine, sine=sine)


def _scratch(weights: Weights, rows: int, threads: int, capacity: int, wanted: int) -> int:
    """Bytes of a step's intermediate values (native/decoder_body.h), with the logits and what the sampler makes of them."""
    hidden, ffn = weights.embedding.columns, max((layer.ffn.neurons(layer.matrices) for layer in weights.layers), default=0)
    q, kv = weights.heads * weights.dim, weights.kv_heads * weights.dim
    looks, rounded = HEADS_TOGETHER * (capacity + weights.dim + 16), 72 * max(hidden, ffn, q)  # a thread's scores, and its rounded inputs
    shared = rows * (max(hidden, q) + ffn) * 7 // 8  # rows rounded for all threads: codes of 8 and of 16 bits, and scales
    floats = shared + rows * (5 * hidden + 2 * q + 2 * kv + 2 * ffn) + threads * (looks + rounded + 256 * 64 + 64 * 1024) + 8 * wanted * weights.head.rows
    experts = [layer.ffn.experts for layer in weights.layers if layer.ffn.experts is not None]
    floats += rows * max((one.count + one.active * (1 + 2 * hidden + 2 * ffn) for one in experts), default=0)  # pairs of a row and an expert
    if any(layer.ffn.kind in BY_NEURON for layer in weights.layers):
        floats += threads * (FEW * hidden + ffn + hidden)  # what each thread's neurons add, which they are, and their scales
    return 4 * floats + min(LOOKED_UP, rows) * AROUND


def _spans(mapped: Mapped, arrays: Sequence[Array]) -> tuple[Span, ...]:
    """Where arrays lie in the file; those that were copied are in memory in any case."""
    return merged(span for one in arrays if (span := mapped.span(one)) is not None)

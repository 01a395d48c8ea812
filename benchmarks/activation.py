"""Sparse activations: a decoder's step with silent neurons left out against the dense one, and how many zeros short training gives at which loss.

    python benchmarks/activation.py [--json] [--write docs/activation.md] [--parts speed,classifier,language] [--seconds 20] [--layers 30]

speed: decoders whose attention adds nothing, in the sizes of SmolLM2-135M's feed-forward parts (576 x 1,536), 4-bit weights drawn by lot, one sequence; the
share of zeros is set by the threshold and measured on the very tokens that are timed. Dense: as many weights of as many bits, interleaved.
classifier: MiniLM on sentiment, GELU -> ReLU. language: a gated model of bytes, trained here on documentation, SiLU -> ReLU. Both are trained for
more zeros by `lissome sparsify-activations --train` as a library, and judged once on the test split: the classifier by its mean score (`--risk drop`), the
language model by what each window loses.

JSON schema (--json): {"machine": str, "cpu": str, "created": ISO date, "versions": {package: version}, "speed": [{"name": str, "zeros": figure in %,
"step": figure in ms, "speedup": figure, "multiplications": share, counted}], "quality": [{"name": str, "trained": bool, "status": str, "zeros": figure in %,
"lost": figure in %, "multiplications": share, counted, "layers": [{"layer": int, "zeros": figure}], "minutes": float}]}
with figure = {"value", "low", "high", "unit", "n"}.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

from language_model import bytes_model
from lissome.compress.activation import ActivationConfig, Silenced, sparsify_activations
from lissome.core.cache import Cache
from lissome.core.measurement import Measurement
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.statistics import median_interval
from lissome.core.task import Task
from lissome.kernels.decoder.ffn import Activation, Ffn
from lissome.kernels.decoder.native import Decoder, Layer, Pool, Weights
from lissome.kernels.decoder.packed import Codes, pack, pack_by_neuron
from lissome.machine.identity import identify
from lissome.machine.interleave import interleave, measured, speedup
from lissome.nn.decoder.weights import rotations
from lissome.optimize.demo import sentiment
from lissome.report.markdown import markdown_table
from lissome.train.config import TrainConfig
from publishing import Document, made_on, on, options, plain, publish, spread

HIDDEN, NEURONS, TOKENS, DIM = 576, 1536, 64, 32
SILENT = {"0 % silent": 0.0, "50 % silent": 0.5, "70 % silent": 0.7, "80 % silent": 0.8, "85 % silent": 0.85, "90 % silent": 0.9, "95 % silent": 0.95}
KEEP = 0.99


def coded(draw: torch.Generator, rows: int, columns: int) -> Codes:
    """Random 4-bit weights with variance 1 / columns, groups of 32."""
    codes = torch.randint(0, 16, (rows, columns), generator=draw).to(torch.uint8)
    scale = torch.full((rows, columns // 32), (columns * 21.25) ** -0.5).half()  # 21.25: the variance of 0..15
    return Codes(codes, scale, (-7.5 * scale.float()).half())


class Made:
    """Layers of one activation, and what each token's neurons say in them; attention adds nothing, so that what a token meets is its own."""

    def __init__(self, layers: int, activation: Activation):
        draw = torch.Generator().manual_seed(0)
        self.embedding = pack(torch.randn(TOKENS, HIDDEN, generator=draw))
        self.attention = {name: pack(coded(draw, DIM, HIDDEN)) for name in ("q", "k", "v")} | {"o": pack(torch.zeros(HIDDEN, DIM))}
        self.activation = activation
        self.parts = [tuple(coded(draw, NEURONS, HIDDEN) for _ in range(3)) for _ in range(layers)]  # gate, up, down transposed
        self.sparse = [{"gate": pack(gate), "up": pack_by_neuron(up), "down": pack_by_neuron(down)} for gate, up, down in self.parts]
        self.start = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))

    def weights(self, share: float, sparse: bool) -> tuple[Weights, list[float]]:
        """A decoder whose layers silence this share, and the zeros of each token; where not sparse the same model, every neuron computed."""
        act = {"silu": functional.silu, "relu": functional.relu, "relu2": lambda x: functional.relu(x).square()}[self.activation]
        state, layers, spoken = self.start, [], torch.zeros(TOKENS)
        for at, (gate, up, down) in enumerate(self.parts):
            by_gate, by_up, by_down = (torch.from_numpy(one.dense()) for one in (gate, up, down))
            x = functional.rms_norm(state, (HIDDEN,), eps=1e-5)
            asked = act(x @ by_gate.T)
            sizes = asked.abs().flatten()
            threshold = float(sizes.kthvalue(max(1, round(share * len(sizes)))).values) if share else 0.0
            kept = torch.where(asked.abs() <= threshold, 0, asked)
            spoken += (kept != 0).float().mean(1)
            state = state + (kept * (x @ by_up.T)) @ by_down
            matrices = self.sparse[at] if sparse else {"gate": self.sparse[at]["gate"], "up": pack(up), "down": pack(coded(torch.Generator(), HIDDEN, NEURONS))}
            ffn = Ffn("gate-first", self.activation, threshold) if sparse else Ffn("gated", self.activation)
            layers.append(Layer(torch.ones(HIDDEN), torch.ones(HIDDEN), self.attention | matrices, ffn))
        turns = rotations(DIM, 128, 10000.0)
        made = Weights(layers, self.embedding, self.embedding, torch.ones(HIDDEN), *turns, heads=1, kv_heads=1, dim=DIM, epsilon=1e-5, scale=DIM**-0.5)
        return made, (100 * (1 - spoken / len(layers))).tolist()


def speed(layers: int, seconds: float, progress: Progress) -> list[Document]:
    """Dense against sparse at every share, one sequence."""
    machine, pool, made = identify().fingerprint, Pool(torch.get_num_threads()), Made(layers, "silu")
    decoders: dict[str, Decoder] = {"dense": Decoder(made.weights(0.0, sparse=False)[0], 1, 128, pool)}
    zeros: dict[str, list[float]] = {"dense": [0.0] * TOKENS}
    for name, share in SILENT.items():
        weights, found = made.weights(share, sparse=True)
        decoders[name], zeros[name] = Decoder(weights, 1, 128, pool), found

    def tokens(decoder: Decoder) -> None:
        for token in range(TOKENS):
            decoder.step(torch.tensor([token]), torch.zeros(1), torch.zeros(1), torch.zeros(0))  # at place 0, so that keys and values cost nothing

    progress.stage("timing the decoder's step")
    taken = interleave({name: lambda decoder=decoder: tokens(decoder) for name, decoder in decoders.items()}, seconds)
    rows = []
    for name in decoders:
        step = measured("step", [1e3 * one / TOKENS for one in taken[name]], "ms", machine)
        silent = Measurement("zeros", *median_interval(zeros[name]), "%", TOKENS, "measured", machine)
        ratio = speedup(taken["dense"], taken[name], machine)
        done = 1.0 if name == "dense" else (1 + 2 * (1 - sum(zeros[name]) / TOKENS / 100)) / 3
        rows.append({"name": name, "zeros": plain(silent), "step": plain(step), "speedup": plain(ratio), "multiplications": done})
    return rows


def judged(name: str, model: Model, task: Task, config: ActivationConfig, cache: Cache, progress: Progress) -> list[Document]:
    """What the thresholds give by themselves, and what training for them gives."""
    rows = []
    for adapt in (False, True):
        begun = time.perf_counter()
        activation = config.activation if adapt else "same"  # no model bears another activation without training
        asked = config.model_copy(update={"adapt": adapt, "activation": activation})
        found = sparsify_activations(model, task, asked, cache, progress)[1]
        rows.append(_row(f"{name}, {'trained' if adapt else 'as it is'}", found, (time.perf_counter() - begun) / 60))
    return rows


def _row(name: str, found: Silenced, minutes: float) -> Document:
    kept = found.kept
    gone = None if kept is None else dataclasses.replace(kept, name="lost", value=100 - kept.value, low=100 - kept.high, high=100 - kept.low)
    layers = [{"layer": one.layer, "zeros": plain(one.zeros)} for one in found.layers]
    lows = [sum(getattr(one.zeros, side) for one in found.layers) / max(1, len(found.layers)) for side in ("value", "low", "high")]
    zeros = {"value": lows[0], "low": lows[1], "high": lows[2], "unit": "%", "n": found.layers[0].zeros.n if found.layers else 0}
    row = {"name": name, "trained": found.trained, "status": found.status, "zeros": zeros, "lost": plain(gone)}
    return row | {"multiplications": found.multiplications, "layers": layers, "minutes": minutes}


def run(parts: Sequence[str], layers: int, seconds: float, steps: int, progress: Progress) -> Document:
    """The whole benchmark as its JSON document."""
    cache, document = Cache(), on(identify()) | {"speed": [], "quality": []}
    if "speed" in parts:
        document["speed"] = speed(layers, seconds, progress)
    if "classifier" in parts:
        config = ActivationConfig(keep=KEEP, risk="drop", activation="relu", share=0.88, size=32, train=TrainConfig(steps=steps, lr=1e-4, precision="fp32"))
        document["quality"] += judged("MiniLM, sentiment", *sentiment(cache, progress), config, cache, progress)
    if "language" in parts:
        config = ActivationConfig(keep=KEEP, activation="relu", share=0.9, size=32, train=TrainConfig(steps=steps, lr=5e-4, precision="fp32"))
        document["quality"] += judged("bytes, gated", *bytes_model(cache, progress), config, cache, progress)
    return document


def table(document: Document) -> str:
    """Two tables: speed, and zeros with what they cost."""
    fast = [
        [row["name"], spread(row["zeros"], 1), spread(row["step"], 3), spread(row["speedup"]), f"{100 * row['multiplications']:.0f} %"]
        for row in document["speed"]
    ]
    kept = [
        [row["name"], row["status"], spread(row["zeros"], 1), spread(row["lost"]), f"{100 * row['multiplications']:.0f} %", f"{row['minutes']:.1f}"]
        for row in document["quality"]
    ]
    by_layer = [[row["name"], *(f"{one['zeros']['value']:.0f}" for one in row["layers"])] for row in document["quality"] if row["layers"]]
    shown = []
    if fast:
        shown.append(markdown_table(fast, ["step of", "zeros, %", "ms", "times the dense", "multiplications (counted)"]))
    if kept:
        shown.append(markdown_table(kept, ["model", "verdict", "zeros, %", "quality lost, %", "multiplications (counted)", "minutes"]))
    if by_layer:
        deepest = max(len(row) for row in by_layer) - 1
        shown.append(markdown_table([row + [""] * (deepest + 1 - len(row)) for row in by_layer], ["zeros by layer, %", *map(str, range(deepest))]))
    return "\n\n".join([*shown, made_on(document)])


def main() -> None:
    """Run, print, and write the tables into the docs when asked."""
    parser = options(__doc__, "activation")
    parser.add_argument("--parts", default="speed,classifier,language")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    publish(given, lambda progress: run(given.parts.split(","), given.layers, given.seconds, given.steps, progress), table)


if __name__ == "__main__":
    main()

"""A small gated language model of bytes, trained here, and its task: what benchmarks take where a pretrained model would need a larger machine to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.core.cache import Cache, digest
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.task import Split, Task
from lissome.data.sources import fetch
from lissome.nn.load import as_model, save_model
from lissome.train.batches import WindowBatches
from lissome.train.config import TrainConfig
from lissome.train.finetune import language_loss, trained_once
from lissome.train.loop import train

SOURCES = ("django-docs", "scikit-learn-docs", "sqlalchemy-docs")
WINDOW, TRAIN, HELD_OUT = 128, 50_000, {"calibration": 64, "validation": 600, "test": 600}
APART = 4
"""Windows that a held-out document gives at most, evenly spread over it: neighbouring windows are much alike, and the tests take examples to be independent."""
SHORTEST = 4_000
"""Characters below which a document is left out, so that its windows stand apart."""
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
TRAINING = TrainConfig(steps=1500, lr=2e-3, schedule="cosine", precision="fp32", weight_decay=0.05)
BATCH = 32


def collate(rows: list[np.ndarray], padding: str = "longest") -> dict[str, np.ndarray]:
    """Windows of equal length as one batch."""
    return {"input_ids": np.stack(rows).astype(np.int64), "attention_mask": np.ones((len(rows), WINDOW), np.int64)}


def documentation(cache: Cache, progress: Progress) -> list[str]:
    """The documents of some projects, in order of name."""
    folders = [fetch(name, cache, progress) for name in SOURCES]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in (".txt", ".rst")]
    return [text for path in paths if len(text := path.read_text(encoding="utf-8")) >= SHORTEST]


def spread_out(windows: list[np.ndarray]) -> list[np.ndarray]:
    """`APART` of a document's windows, as far from one another as it allows."""
    return [windows[at] for at in sorted({int(place) for place in np.linspace(0, len(windows) - 1, APART)})]


def bytes_task(cache: Cache, progress: Progress) -> Task:
    """Windows of bytes of documentation; an example's score is exp of the mean log-likelihood of its next bytes, in (0, 1].

    Documents, in an order drawn by lot, go to one split each; a held-out one gives at most `APART` windows, all others of it are dropped.
    """
    found, documents = {name: [] for name in ("train", *HELD_OUT)}, documentation(cache, progress)
    for at in np.random.default_rng(0).permutation(len(documents)):
        data = np.frombuffer(documents[at].encode(), np.uint8)
        windows = [data[at : at + WINDOW] for at in range(0, len(data) - WINDOW + 1, WINDOW)]
        short = next((split for split, count in HELD_OUT.items() if len(found[split]) < count), "train")
        found[short] += windows if short == "train" else spread_out(windows)
    rows = {split: part[: HELD_OUT.get(split, TRAIN)] for split, part in found.items()}

    def score(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        likely = torch.from_numpy(outputs[:, :-1]).log_softmax(-1)
        ids = torch.from_numpy(np.stack(list(targets)).astype(np.int64))
        return likely.gather(-1, ids[:, 1:, None]).mean((1, 2)).exp().numpy()

    splits = {split: Split(part, np.stack(part)) for split, part in rows.items()}
    mark = digest("bytes", WINDOW, [bytes(one) for part in rows.values() for one in part])
    return Task("bytes", "language-modelling", splits, collate, score, mark, "benchmarks/language_model.py", exact=False)


def bytes_model(cache: Cache, progress: Progress, training: TrainConfig = TRAINING) -> tuple[Model, Task]:
    """The model, trained the first time, and its task."""
    from transformers import LlamaConfig, LlamaForCausalLM

    task = bytes_task(cache, progress)
    torch.manual_seed(0)
    fresh: Any = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=256, max_position_embeddings=WINDOW, tie_word_embeddings=True, pad_token_id=None))
    model = as_model(fresh, "bytes")

    def make(empty: Path, checkpoints: Path) -> None:
        train(fresh, WindowBatches(task.splits["train"].inputs, BATCH), language_loss(), training, resume=checkpoints, progress=progress)
        save_model(as_model(fresh, "bytes"), empty)

    key = digest("bytes model", 2, SIZES, training.model_dump(exclude={"checkpoint_every"}), task.fingerprint)
    return trained_once(cache, "finetune", key, model, make), task

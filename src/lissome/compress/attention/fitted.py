"""The learned scorers that candidates name: fitted once to the dense model's attention on the train split, and kept in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lissome.compress.attention.config import SparsifyConfig
from lissome.compress.attention.indexing import IMPORTANCE, IndexingConfig, fit_importance, fit_indexers
from lissome.core.cache import Cache, digest
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.core.task import Task
from lissome.nn.attention.learned import WORDS, attach, attentions, load_indexers, save_indexers, scorers
from lissome.nn.attention.patterns import Pattern
from lissome.nn.attention.written import parse
from lissome.train.batches import Batches

VERSION = 1
"""Part of the cache key: raise it when the same config would give other scorers."""

FITS = {"indexer": (fit_indexers, IndexingConfig()), "importance": (fit_importance, IMPORTANCE)}


def fitted(model: Model, twin: Any, task: Task, config: SparsifyConfig, cache: Cache, progress: Progress) -> Path | None:
    """A folder that `load_indexers` takes, with a scorer for every layer and kind that a candidate names; None where none is named.

    twin: the model's sparse self, in every layer dense; it holds the scorers afterwards, and nothing else of it changes. A layer has one scorer of a kind: it
    learns what all the candidates that name it ask of it. A second call reads the result from the cache; a killed one goes on where it was.
    Raises BadConfig for a candidate that is no pattern, BadInput where the texts are too short for any choice, and what `train` raises.
    """
    wanted = {word: [pattern for pattern in map(parse, config.candidates or ()) if word in scorers(pattern)] for word in WORDS}
    if not any(wanted.values()):
        return None
    settings = (config.fit_steps, config.batch(task.kind), config.train.seed)
    named = {word: [str(pattern) for pattern in patterns] for word, patterns in wanted.items()}
    key = digest("scorers", VERSION, model.fingerprint, task.fingerprint, named, settings, torch.__version__)
    checkpoints = cache.path("training", key)
    folder = cache.folder("scorers", key, lambda empty: _make(twin, task, config, wanted, empty, checkpoints, progress))
    shutil.rmtree(checkpoints, ignore_errors=True)
    load_indexers(twin, folder)
    return folder


def _make(twin: Any, task: Task, config: SparsifyConfig, wanted: dict[str, list[Pattern]], empty: Path, checkpoints: Path, progress: Progress) -> None:
    """Fit the scorers and write them into the folder `empty`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        attach(twin, lambda layer: {word for word, patterns in wanted.items() if patterns})
    batches = Batches(task, "train", config.batch(task.kind), seed=config.train.seed)
    for word, (fit, begin) in FITS.items():
        if not wanted[word]:
            continue
        training = begin.train.model_copy(update={"steps": config.fit_steps, "seed": config.train.seed})
        result = fit(twin, batches, begin.model_copy(update={"train": training}), patterns=wanted[word], resume=checkpoints / word, progress=progress)
        losses = [row["loss"] for row in result.history]
        few = max(1, len(losses) // 10)
        first, last = (sum(part) / few for part in (losses[:few], losses[-few:]))
        progress.say(f"{word} of every layer fitted in {result.seconds:.0f} s, {result.steps} steps: {first:.3f} nats from dense attention, then {last:.3f}.")
    save_indexers(twin, empty)


def key_of(folder: Path | None) -> list[str]:
    """What stands for the scorers that `fitted` made in a cache key: the key of the fit; nothing where there are none."""
    return [] if folder is None else [folder.name]


def only(module: Any, folder: Path, plan: Sequence[str | None]) -> None:
    """Give each layer of `module` the scorers of `folder` that its pattern names, and take all others away."""
    layers = list(attentions(module))
    everything = set(WORDS)
    for _, layer in layers:
        _without(layer, everything)  # so that they always stand in the same order: a fingerprint reads it
    load_indexers(module, folder)
    for _, layer in layers:
        text = plan[layer.layer_idx]
        _without(layer, everything if text is None else everything - scorers(parse(text)))


def _without(layer: Any, words: set[str]) -> None:
    for word in words:
        if getattr(layer, word, None) is not None:
            delattr(layer, word)

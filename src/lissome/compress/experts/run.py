"""Split a dense model into experts in one call, and the verb that does it from a folder into a folder."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.experts.cluster import check_sizes
from lissome.compress.experts.config import SplitConfig
from lissome.compress.experts.find import dense_networks
from lissome.compress.experts.quantize import quantize_experts
from lissome.compress.experts.split import Fit, split
from lissome.core.cache import check_out, writing
from lissome.core.errors import BadInput, BadModel
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.data import load_task
from lissome.data.domains import domain_texts, domain_windows
from lissome.data.tokens import open_tokenizer
from lissome.nn.load import as_model, finished, load_model, save_model
from lissome.nn.moe.in_models import FIELD, put_experts
from lissome.nn.moe.layer import MoE
from lissome.nn.moe.packed import PackedExperts
from lissome.train.batches import Batches

RECORD = "split.json"
WINDOWS, LENGTH = 16, 256
"""Windows of each domain, and their tokens, that a language model is calibrated on."""


@dataclass(frozen=True)
class Split:
    """What was split. fits: a layer each. read: share of the networks' neurons that a token reads; parameters: of the whole model, dense and split."""

    folder: str
    fits: tuple[Fit, ...]
    read: float
    parameters: tuple[int, int]
    fingerprint: str


def split_experts(model: Model | nn.Module, batches: Iterable[Any], config: SplitConfig, progress: Progress | None = None) -> tuple[Model, Split]:
    """A copy of `model` whose feed-forward networks are layers of experts; the model given is left as it was.

    batches: calibration data that the model takes. With config.active == config.experts the copy computes what the model does, up to the order of sums.
    Raises BadModel for a model that is no transformers model, is split already, or has no network that can be split (saying which came closest); BadInput
    where the experts do not divide the neurons, or there is no data.
    """
    progress = progress or Silent()
    start = model if isinstance(model, Model) else as_model(model)
    if start.architecture.kind != "huggingface":
        raise BadModel(
            f"{type(start.module).__name__} is no transformers model, so that it was split could not be noted in its configuration.", where=start.ref
        )
    settings: Any = start.module.config
    if getattr(settings, FIELD, None):
        raise BadModel("the model's feed-forward networks are experts already.", where=start.ref, do="give the dense original")
    networks = dense_networks(start.module)
    for name, dense in networks.items():
        check_sizes(name, dense.neurons, config)
    progress.stage("listening to the feed-forward networks")
    inputs = inputs_of(start.module, list(networks), batches, config.tokens)
    progress.stage("splitting", len(networks))
    layers: dict[str, MoE] = {}
    fits = []
    for name, dense in networks.items():
        layers[name], fit = split(name, dense, *inputs.pop(name), config)
        fits.append(fit)
        progress.step(1, f"{name}: {fit.router:.2f} off")
    module = put_experts(copy.deepcopy(start.module), layers)
    if config.group:
        quantize_experts(module, config.group)
    shown: Any = module.config
    architecture = start.architecture.model_copy(update={"config": json.loads(shown.to_json_string(use_diff=False))})
    made = finished(module, architecture, start.ref, start.directory)
    whole = sum(dense.neurons for dense in networks.values())
    read = sum(layer.config.active * layer.config.neurons + layer.config.shared for layer in layers.values()) / whole
    return made, Split("", tuple(fits), read, (_parameters(start.module), _parameters(module)), made.fingerprint)


def split_to(out: Path, model: str, config: SplitConfig, task: str | None = None, progress: Progress | None = None) -> Split:
    """Split the model that `model` names and write it into `out`.

    task: its calibration split is what the model is watched on; without one, a model with a tokenizer reads the texts of `data.domains`. Raises BadInput
    where `out` holds something else or there is nothing to calibrate on, and what load_model, load_task and split_experts raise.
    """
    check_out(out, RECORD)
    progress = progress or Silent()
    start = load_model(model)
    dense_networks(start.module)  # before any data is fetched
    made, found = split_experts(start, calibration(start, task, progress), config, progress)
    result = dataclasses.replace(found, folder=str(out))
    with writing("the model", out):
        save_model(made, out)
        (out / RECORD).write_text(
            json.dumps({"config": config.model_dump(), "model": start.fingerprint, **dataclasses.asdict(result)}, indent=1), encoding="utf-8"
        )
    return result


def calibration(model: Model, task: str | None, progress: Progress) -> Iterable[Any]:
    """Batches to watch the model on."""
    if task is not None:
        return Batches(load_task(task, model.directory), "calibration", 8, shuffle=False)
    if model.directory is None or not (model.directory / "tokenizer.json").is_file():
        raise BadInput("there is nothing to calibrate on: the model has no tokenizer, and no task was given", where=model.ref, do="give --task TASK")
    tokenizer, _ = open_tokenizer(model.directory, model.ref)
    windows = domain_windows(domain_texts(progress=progress, half="even"), tokenizer, LENGTH, WINDOWS)
    return [{"input_ids": torch.from_numpy(one)[None]} for every in zip(*windows.values(), strict=False) for one in every]


@torch.no_grad()
def inputs_of(module: nn.Module, names: list[str], batches: Iterable[Any], tokens: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into the modules `names` on `batches`: rows [n, width] to fit on and rows held out, about 3/4 and 1/4 of `tokens`, drawn from all batches read.

    Whole batches are held out, as tokens of one text hang together; of a single batch, its last quarter of rows. Padding (attention_mask 0) is left out.
    """
    held: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    mask: list[torch.Tensor | None] = [None]

    def keep(name: str) -> Any:
        def hook(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2)
            real = mask[0]
            held[name].append(rows if real is None or real.numel() != len(rows) else rows[real.flatten().to(rows.device)])

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    was, module_eval = module.training, module.eval()
    try:
        for batch in itertools.islice(batches, 256):
            told = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            mask[0] = None if told is None else torch.as_tensor(told).bool()
            forward(module_eval, batch)
            if sum(map(len, held[names[0]])) >= 2 * tokens:
                break
    finally:
        module.train(was)
        for handle in handles:
            handle.remove()
    if sum(map(len, held[names[0]])) < 2:
        raise BadInput("there is no calibration data: no batch reached the feed-forward networks", expected="at least one batch that the model takes")
    return {name: _parted(rows, tokens) for name, rows in held.items()}


def _parted(batches: list[torch.Tensor], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to fit on and rows held out, drawn the same for every module."""
    if len(batches) == 1:
        batches = list(batches[0].tensor_split([max(1, 3 * len(batches[0]) // 4)]))
        order = [1, 0]
    else:
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    out = max(1, len(batches) // 4)
    fitted, left = (torch.cat([batches[at] for at in some]) for some in (order[out:], order[:out]))
    return _some(fitted, 3 * tokens // 4), _some(left, tokens // 4)


def _some(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the rows, drawn, the same for every module."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[order]


def _parameters(module: nn.Module) -> int:
    """Weights of a module, those that are held as codes among them."""
    packed = (one.weights for one in module.modules() if isinstance(one, PackedExperts))
    return sum(weight.numel() for weight in module.parameters()) + sum(packed)

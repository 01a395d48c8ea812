"""How much each unit matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.compress.batches import forward
from lissome.compress.prune.blocks import calls, skipped
from lissome.compress.prune.config import Importance
from lissome.compress.prune.groups import Group, Groups, Member
from lissome.core.errors import BadInput, Diverged
from lissome.core.model import Model
from lissome.nn.resize import tensors

Loss = Callable[[nn.Module, Any], torch.Tensor]
Scores = dict[str, torch.Tensor]


def importance(model: Model | nn.Module, groups: Groups, method: Importance, *, loss: Loss | None = None, batches: Iterable[Any] | None = None) -> Scores:
    """A score of every unit of every group: float64 [units], larger for what matters more. The model given is left as it was.

    l1, l2: norm of the unit's weights, over all slices that go with it (Li et al. 2017).
    gradient: L2 norm of the loss's gradient by those weights, over all batches.
    taylor: sum of |weight x gradient|, a first-order estimate of how the loss changes without the unit (Molchanov et al. 2019).
    activation: mean |output| of the unit; of a block, one minus the cosine between its input and output (Men et al. 2024, ShortGPT).
    Of a block, gradient and taylor give how much the loss rises without it, measured: a whole block is too large a change for a first-order estimate.
    loss(module, batch) gives a scalar; gradient and taylor need it. batches: for all but l1 and l2; without a loss they are named inputs, with or
    without `labels`, or tuples (inputs..., labels). Raises BadInput where one is missing or cannot be read, Diverged when a score is not finite.
    """
    module = copy.deepcopy(model.module if isinstance(model, Model) else model).eval()
    if method in ("l1", "l2"):
        values = {name: weight.detach().double().abs() ** (1 if method == "l1" else 2) for name, weight in _weights(module).items()}
        scores = {group.name: _summed(group, values) for group in groups}
    elif batches is None or (loss is None and method != "activation"):
        needed = "batches" if loss is not None or method == "activation" else "a loss and batches"
        raise BadInput(f'the importance "{method}" is measured on data: it needs {needed}.', do='give loss=... and batches=..., or use importance "l2"')
    elif method == "activation":
        scores = _activations(module, groups, loss, batches)
    else:
        scores = _gradients(module, groups, method, loss, batches)  # type: ignore[arg-type]
    if method in ("l2", "gradient"):
        scores = {name: score if method == "gradient" and groups[name].blocks else score.sqrt() for name, score in scores.items()}
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise Diverged(f'the importance of the units of "{name}" is not finite.', do="look for NaN in the data and the loss")
    return scores


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in tensors(module).items() if isinstance(tensor, nn.Parameter)}


def _summed(group: Group, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of `values` (one number a weight) over all slices of each unit [units]."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for unit, at in enumerate(group.blocks):
        start = f"{group.name}.{at}."
        total[unit] = sum(float(value.sum()) for name, value in values.items() if name.startswith(start))
    for member in group.members:
        if isinstance(member.place, int) and member.owner in values:
            value = values[member.owner]
            total += _by_unit(group, member, value.sum(dim=[d for d in range(value.ndim) if d != member.place]) if value.ndim > 1 else value)
    return total


def _by_unit(group: Group, member: Member, value: torch.Tensor) -> torch.Tensor:
    """Sum of `value` [indices] over the indices of each unit [units]."""
    labels = torch.from_numpy(member.labels)
    return torch.zeros(group.units, dtype=torch.float64).index_add_(0, labels[labels >= 0], value.double().cpu()[labels >= 0])


def _gradients(module: nn.Module, groups: Groups, method: Importance, loss: Loss, batches: Iterable[Any]) -> Scores:
    """Means over batches of the sum of g^2, or |w g|, for each unit. Batch by batch: the mean gradient of a trained model is close to nothing."""
    weights = _weights(module)
    for weight in weights.values():
        weight.requires_grad_(weight.is_floating_point())
    total = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    count = 0
    for batch in batches:
        module.zero_grad(set_to_none=True)
        value = loss(module, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise BadInput("the loss callable did not return one number that depends on the weights.", do="take the mean over the batch, without no_grad")
        torch.autograd.backward(value)
        with torch.no_grad():
            graded = {name: weight.grad.double() for name, weight in weights.items() if weight.grad is not None}
            values = {name: (g * weights[name]).abs() if method == "taylor" else g * g for name, g in graded.items()}
            for group in groups:
                total[group.name] += _rises(module, group, loss, batch) - float(value) if group.blocks else _summed(group, values)
        count += 1
    _check_count(count)
    return {name: score / count for name, score in total.items()}


def _rises(module: nn.Module, group: Group, loss: Loss, batch: Any) -> torch.Tensor:
    """The loss without each block [units]."""
    found = []
    for at in group.blocks:
        with skipped(module, f"{group.name}.{at}"):
            found.append(float(loss(module, batch)))
    return torch.tensor(found, dtype=torch.float64)


def _activations(module: nn.Module, groups: Groups, loss: Loss | None, batches: Iterable[Any]) -> Scores:
    total = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    layers = sorted({maker.owner for group in groups for maker in group.makers} | {f"{group.name}.{at}" for group in groups for at in group.blocks})
    count = 0
    for batch in batches:
        with calls(module, layers) as seen, torch.no_grad():
            if loss is not None:
                loss(module, batch)
            else:
                forward(module, batch)
        for group in groups:
            total[group.name] += _influence(group, seen) if group.blocks else _loudness(group, seen)
        count += 1
    _check_count(count)
    return {name: score / count for name, score in total.items()}


def _loudness(group: Group, seen: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """Mean |output| of each unit over the layers that make it."""
    means, found = torch.zeros(group.units, dtype=torch.float64), 0
    for maker in group.makers:
        place = int(maker.place)
        for _, output in seen.get(maker.owner, []):
            if output.ndim > 1 and output.shape[place] == len(maker.labels):
                size = output.abs().double().mean(dim=[d for d in range(output.ndim) if d != place % output.ndim])
                means, found = means + _by_unit(group, maker, size) / group.width, found + 1
    if not found:
        raise BadInput(f'no layer\'s output shows the units of "{group.name}".', do='use another importance, such as "taylor"')
    return means / found


def _influence(group: Group, seen: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """1 - cos(input, output) of each block, averaged over examples."""
    pairs = [seen[f"{group.name}.{at}"][0] for at in group.blocks]
    return torch.stack([1 - functional.cosine_similarity(given.flatten(1).double(), made.flatten(1).double()).mean() for given, made in pairs])


def _check_count(count: int) -> None:
    if not count:
        raise BadInput("there are no batches to measure importance on.", expected="at least one", do="give a list or a loader that is not used up")

"""transformers' own models with experts (Mixtral, Qwen-MoE, DeepSeek...), computed here: an implementation of its ExpertsInterface (transformers 5).

use(model)  # or, after register(), model.set_experts_implementation("lissome")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lissome.core.errors import BadModel, EnvironmentLacks
from lissome.nn.moe.dispatch import dispatch

NAME = "lissome"


def use(model: Any) -> Any:
    """Let the model's experts be computed by the sorted, dropless dispatch. Changes the model in place and returns it. Raises BadModel where it has none."""
    register()
    if not any(hasattr(one, "has_gate") and hasattr(one, "down_proj") for one in model.modules()):
        raise BadModel(
            f"{type(model).__name__} has no experts that go through transformers' ExpertsInterface",
            expected="a model with a mixture of experts, such as Mixtral or Qwen2Moe",
            do="split a dense model's feed-forward networks: lissome split-experts MODEL --out DIR",
        )
    model.set_experts_implementation(NAME)
    return model


def register() -> None:
    """Make "lissome" an experts implementation of transformers. Raises EnvironmentLacks for a release that has no such interface."""
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError as error:
        raise EnvironmentLacks("this release of transformers has no ExpertsInterface", do="pip install 'transformers>=5'") from error
    ExpertsInterface.register(NAME, torch.compiler.disable(experts))  # type: ignore[no-untyped-call]


def experts(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """transformers' experts function: tokens [n, width], choices and weights [n, active] -> [n, width]."""
    first, second = ("gate_up_proj" if self.has_gate else "up_proj"), "down_proj"
    matrices = [getattr(self, name).unbind(0) for name in (first, second)]
    biases = [getattr(self, f"{name}_bias").unbind(0) if self.has_bias else None for name in (first, second)]

    def product(at: int, number: int, rows: torch.Tensor) -> torch.Tensor:
        weight, bias = matrices[at][number], biases[at]
        return functional.linear(rows.to(weight.dtype), weight.T if self.is_transposed else weight, None if bias is None else bias[number])

    def one(number: int, rows: torch.Tensor) -> torch.Tensor:
        sums = product(0, number, rows)
        out = product(1, number, self._apply_gate(sums) if self.has_gate else self.act_fn(sums))
        return self.post_expert_norm(out) if getattr(self, "has_post_expert_norm", False) else out

    return dispatch(hidden_states, top_k_index, top_k_weights, len(matrices[1]), one)


def is_experts(module: nn.Module) -> bool:
    """Whether a module is called with tokens, choices and weights, as transformers' experts and those of this package are."""
    return hasattr(module, "num_experts") and (hasattr(module, "down_proj") or hasattr(module, "down")) and "Experts" in type(module).__name__

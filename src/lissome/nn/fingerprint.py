"""What a model is, in 16 hex digits, and whether its numbers are numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadModel

_NOT_BEHAVIOUR = ("_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "transformers_version")
"""Keys of a transformers config that say where a model came from, not what it computes; some change when it is saved and read again."""


def fingerprint(module: nn.Module) -> str:
    """16 hex digits of what the module computes: its layers with their settings, its own code, its config, and the bytes of its state.

    Weights alone would not do: two models may share them and differ in a stride, the number of attention heads or a line of `forward`.
    The code of torch and transformers is left out (their versions are part of every cache key). Tied weights are hashed once.
    """
    total, seen = hashlib.sha256(f"{type(module).__qualname__}{module!r}".encode()), set()
    for source in _sources(module):
        total.update(source.encode())
    for config in _configs(module):
        total.update(json.dumps(_behaviour(json.loads(config.to_json_string(use_diff=False))), sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        storage = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if storage not in seen and tensor.numel():
            seen.add(storage)
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def check_finite(module: nn.Module, ref: str) -> None:
    """Raise BadModel naming the first weight that holds NaN or infinity. Buffers may hold infinities: attention masks do."""
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        broken = ~torch.isfinite(tensor) if name in weights else torch.isnan(tensor)
        if broken.any():
            raise BadModel(
                f"the weights hold NaN or infinity: {int(broken.sum())} of {tensor.numel()} values in {name}.",
                where=ref,
                do="load an earlier checkpoint; training probably diverged",
            )


def _sources(module: nn.Module) -> list[str]:
    """Source code of the classes that are neither torch's nor transformers', in a fixed order; only their names where there is no source."""
    kinds = {kind for layer in module.modules() for kind in type(layer).__mro__ if kind.__module__.split(".")[0] not in ("torch", "transformers", "builtins")}
    found = []
    for kind in sorted(kinds, key=lambda k: (k.__module__, k.__qualname__)):
        try:
            found.append(inspect.getsource(kind))
        except (OSError, TypeError):  # typed into an interpreter, or compiled
            found.append(f"{kind.__module__}.{kind.__qualname__}")
    return found


def _configs(module: nn.Module) -> list[Any]:
    """The module's transformers config, which holds those of its parts; of a module without one, those of the models in it."""
    found: dict[int, Any] = {}
    for layer in module.modules():
        config: Any = getattr(layer, "config", None)
        if hasattr(config, "to_json_string"):
            found.setdefault(id(config), config)
            if layer is module:
                break
    return list(found.values())


def _behaviour(config: Any) -> Any:
    """A config without what does not change results, at every depth."""
    if not isinstance(config, dict):
        return config
    return {key: _behaviour(value) for key, value in config.items() if key not in _NOT_BEHAVIOUR}

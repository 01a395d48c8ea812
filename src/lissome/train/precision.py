"""Whether bf16 pays on this machine, found by timing a few steps of each."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lissome.train.checkpoint import random_state, set_random_state

PAYS = 1.15
"""Least speed-up for which bf16's coarser arithmetic is accepted; a smaller one may be the timing's noise."""

PAIRS, ENOUGH_S = 9, 6.0
"""Pairs of steps that are timed, and the seconds after which three pairs must do: the choice may not cost more than it can save."""


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which the forward pass and the loss run."""
    if precision != "bf16":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16), AttentionInFloat():
        yield


class AttentionInFloat(TorchFunctionMode):
    """Within it, attention on the CPU is computed in float32 where autocast would take bfloat16; its output is bfloat16 again.

    torch's fused attention is several times slower backwards in bfloat16 than in float32 on CPUs (torch 2.13), which costs more than the rest gains.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, with its tensors in float32 if it is attention in bfloat16."""
        kwargs = kwargs or {}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if func is not functional.scaled_dot_product_attention or tensors[0].device.type != "cpu" or tensors[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_in_float, args), **{name: _in_float(value) for name, value in kwargs.items()}).to(torch.bfloat16)


def _in_float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def choose_precision(module: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor], device: torch.device) -> tuple[str, str]:
    """ "bf16" or "fp32" for training `module`, and the reason with its figures.

    Times forward and backward on `batch` in both, alternating, after one untimed pair, and compares the quickest of each: other work on the
    machine can only add time. Weights, buffers, gradients and the random generators are left as they were.
    """
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters()):
        return "fp32", "the weights are 16-bit already, so nothing is cast"
    before, training = random_state(), module.training
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train()
    try:
        times: list[tuple[float, float]] = []
        begun = time.perf_counter()
        for turn in range(PAIRS + 1):
            fp32, reference = _timed(module, batch, loss, device, "fp32")
            bf16, value = _timed(module, batch, loss, device, "bf16")
            if not math.isfinite(value) and math.isfinite(reference):
                return "fp32", "the loss is not finite in bf16"
            if turn:  # the first turn warms up
                times.append((fp32, bf16))
            if len(times) >= 3 and time.perf_counter() - begun > ENOUGH_S:
                break
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        module.zero_grad(set_to_none=True)
        module.train(training)
        set_random_state(before)
    fp32, bf16 = (1e3 * min(column) for column in zip(*times, strict=True))
    ratio = fp32 / bf16
    chosen = "bf16" if ratio >= PAYS else "fp32"
    return chosen, f"at best a step takes {fp32:.3g} ms in fp32 and {bf16:.3g} ms in bf16 ({ratio:.2f}x, {len(times)} pairs; bf16 is taken from {PAYS}x)"


def _timed(module: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor], device: torch.device, precision: str) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and the loss."""
    begun = time.perf_counter()
    with autocast(device, precision):
        value = loss(module, batch)
    value.backward()  # type: ignore[no-untyped-call]
    result = value.item()  # waits for an asynchronous device
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - begun
    module.zero_grad(set_to_none=True)
    return taken, result

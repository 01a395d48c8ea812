"""The experts' weights as codes of 4 bits, in groups along the columns."""

from __future__ import annotations

import torch
from torch import nn

from lissome.compress.quantize.weights import grouped, weight_scales
from lissome.core.errors import BadInput, BadModel
from lissome.core.quantization import LayerQuant
from lissome.kernels.decoder.packed import Codes
from lissome.nn.moe.balance import layers_of
from lissome.nn.moe.experts import Experts
from lissome.nn.moe.in_models import put_experts
from lissome.nn.moe.layer import MoE


@torch.no_grad()
def quantize_experts(module: nn.Module, group: int = 32) -> nn.Module:
    """Give the experts in `module` weights of 4 bits, with a scale and an offset for `group` columns, in place; the router and the shared expert stay.

    Raises BadModel where there are none in float, BadInput for a group that the kernel does not take or that does not go into the width and the neurons.
    """
    named = {name: one for name, one in module.named_modules() if isinstance(one, MoE) and isinstance(one.experts, Experts)}
    if not named:
        held = "hold 4 bits already" if any(True for _ in layers_of(module)) else "are not there"
        raise BadModel(f"{type(module).__name__}: experts in float {held}", do="split its feed-forward networks first: lissome split-experts MODEL --out DIR")
    made = {name: _quantized(name, one, group) for name, one in named.items()}
    if "" in made:
        raise BadInput("a layer of experts cannot be put in its own place", do="quantise the model that holds it")
    return put_experts(module, made)


def _quantized(name: str, layer: MoE, group: int) -> MoE:
    config = layer.config
    if group not in (32, 64, 128) or layer.width % group or config.neurons % group:
        raise BadInput(
            f"groups of {group} do not go into the experts of {name}, {layer.width} wide with {config.neurons} neurons",
            expected="32, 64 or 128, dividing both",
            do="choose another group, or fewer experts",
        )
    made = MoE(layer.width, config.model_copy(update={"group": group})).to(layer.router.weight.device, layer.router.weight.dtype)
    experts = layer.experts
    assert isinstance(experts, Experts)
    state = {key: value for key, value in layer.state_dict().items() if key not in ("experts.up", "experts.down")}
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert set(missing) == {"experts.up", "experts.down"} and not unexpected, (missing, unexpected)
    for number in range(config.experts):
        made.experts.fill(number, codes(experts.up[number], group), codes(experts.down[number], group))  # type: ignore[operator]
    return made.train(layer.training)


def codes(weight: torch.Tensor, group: int) -> Codes:
    """Weights [rows, columns] in codes of 4 bits: the range that loses least is searched, then rounded to half precision before the codes are chosen."""
    weight = weight.detach().float().cpu()
    quant = LayerQuant(precision="w4a16", group=group, symmetric=False)  # type: ignore[arg-type]
    scales = weight_scales(weight, quant)
    assert scales.zero is not None
    scale = torch.from_numpy(scales.weight).half()
    offset = (-torch.from_numpy(scales.zero).float() * scale.float()).half()
    wide = scale.float().clamp_min(torch.finfo(torch.float16).tiny)[..., None]
    found = ((grouped(weight, group) - offset.float()[..., None]) / wide).round().clamp(0, 15)
    return Codes(found.to(torch.uint8).flatten(1).numpy(), scale.numpy(), offset.numpy())

"""Fewer bits: quantisation after training, and the torch twin of what is deployed. Training with it is in `lissome.compress.qat`."""

from __future__ import annotations

from lissome.compress.quantize.apply import quantize
from lissome.compress.quantize.config import QatTaskConfig, QuantizeConfig
from lissome.compress.quantize.simulate import simulate
from lissome.compress.quantize.store import load_quantized, save_quantized

__all__ = ["QatTaskConfig", "QuantizeConfig", "load_quantized", "quantize", "save_quantized", "simulate"]

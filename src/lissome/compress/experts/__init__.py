"""Dense models split into experts: neurons in clusters, a router fitted on calibration activations; all experts together are the dense model.

made, found = split_experts(model, batches, SplitConfig(experts=16, active=4))
"""

from lissome.compress.experts.config import SplitConfig
from lissome.compress.experts.find import Dense, dense_networks
from lissome.compress.experts.quantize import quantize_experts
from lissome.compress.experts.run import Split, split_experts, split_to

__all__ = ["Dense", "Split", "SplitConfig", "dense_networks", "quantize_experts", "split_experts", "split_to"]

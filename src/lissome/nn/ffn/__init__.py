"""Feed-forward parts whose neurons may say nothing."""

from lissome.nn.ffn.activation import Thresholded, Tightening, activated
from lissome.nn.ffn.plan import ActivationPlan, FeedForward, feed_forwards, restore, use, watching

__all__ = ["ActivationPlan", "FeedForward", "Thresholded", "Tightening", "activated", "feed_forwards", "restore", "use", "watching"]

"""Exits as a pass: train their heads, certify their thresholds, write a folder."""

from lissome.compress.exits.config import ExitsConfig
from lissome.compress.exits.run import Exited, exit_early, exits_to
from lissome.compress.exits.train import train_exits

__all__ = ["Exited", "ExitsConfig", "exit_early", "exits_to", "train_exits"]

"""Distillation: a student, of the same size or smaller, learns to answer as its teacher does."""

from lissome.compress.distill.config import DistillConfig, DistillTaskConfig
from lissome.compress.distill.run import distill
from lissome.compress.distill.task import Distilled, distil_for_task, distill_to

__all__ = ["DistillConfig", "DistillTaskConfig", "Distilled", "distil_for_task", "distill", "distill_to"]

"""How to distil, as data. Importing this needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lissome.core.config import Config
from lissome.train.config import TrainConfig


class DistillConfig(Config):
    """What the student is taught, as weights of a sum of losses; a weight of 0 leaves a term out.

    logits: the teacher's softened outputs, temperature^2 * KL(teacher || student) (Hinton et al. 2015); squared error where there is one output only.
    hidden: states of paired blocks, as squared error relative to the teacher's mean square, through a linear map where widths differ (Romero et al.
    2015); the map is trained with the student and thrown away.
    attention: "relations" compares query-query, key-key and value-value similarities (Wang et al. 2021, MiniLMv2), which need no equal number of
    heads; "maps" compares the attention distributions of equally many heads (Jiao et al. 2020).
    labels: the hard labels: the loss callable that was given, else cross entropy.

    layers: pairs of module names (student's, teacher's) whose outputs are compared; None pairs the blocks evenly, the last with the last.
    attention_layers: the last block with attention only, as in MiniLM, or all, paired evenly. relation_heads: into how many parts widths are cut for
    relations; None takes the largest number that divides both and is at most the teacher's heads.
    cache_mb: most megabytes of one teacher's outputs that the cache keeps; what is over is computed each time. 0 keeps nothing.
    cache_hidden: keep what the hidden and attention terms need as well (float16), not the outputs alone.
    """

    logits: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    hidden: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    attention_kind: Literal["relations", "maps"] = "relations"
    labels: float = Field(default=0.0, ge=0)
    layers: tuple[tuple[str, str], ...] | None = None
    attention_layers: Literal["last", "all"] = "last"
    relation_heads: int | None = Field(default=None, ge=1)
    cache_mb: float = Field(default=512.0, ge=0)
    cache_hidden: bool = False

    @model_validator(mode="after")
    def _teaches(self) -> DistillConfig:
        if not (self.logits or self.hidden or self.attention):
            raise ValueError("nothing comes from the teacher: give logits, hidden or attention a weight above 0")
        return self


class DistillTaskConfig(Config):
    """How to distil on a task's train split.

    terms: what is taught. train: how long and how fast. size: examples per batch.
    variations: share of a batch's texts that are altered, each time anew, so that the teacher has more to say than what it was fitted to
    (variations.py); 0 for inputs other than token ids.
    freeze_embeddings: what lies before the first block keeps its weights. dropout: probability for the student's dropout layers; None leaves them as
    they are.
    evaluate_every: steps between looks at the validation score; None means after each epoch. The best weights seen are kept. patience: looks
    without progress before it stops; None means never.
    """

    terms: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig(epochs=3, lr=2e-4, precision="auto")
    size: int = Field(default=32, ge=1)
    variations: float = Field(default=0.0, ge=0, le=1)
    freeze_embeddings: bool = False
    dropout: float | None = Field(default=0.0, ge=0, lt=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)

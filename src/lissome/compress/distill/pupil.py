"""The student with what it needs while it learns: the sum of the losses, and the linear maps between widths that are thrown away afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lissome.compress.batches import forward
from lissome.compress.distill import terms
from lissome.compress.distill.capture import Attention, attentions, blocks, evenly, listening
from lissome.compress.distill.config import DistillConfig
from lissome.compress.distill.examples import hard_loss, mask_of
from lissome.compress.distill.teacher import OUTPUTS
from lissome.core.errors import BadConfig, BadInput, BadModel
from lissome.nn.call import output_tensor

Loss = Callable[[nn.Module, Any], torch.Tensor]
Said = Mapping[str, torch.Tensor]


class Pairs:
    """What of the student is compared with what of the teacher. Raises BadConfig or BadModel where a term has nothing to compare."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DistillConfig):
        self.hidden = _hidden_pairs(student, teacher, config) if config.hidden else []
        self.attention = _attention_pairs(student, teacher, config) if config.attention else []
        self.values = config.attention_kind == "relations"

    def student(self) -> list[str]:
        """Names of the student's modules to listen to."""
        return self._names(0)

    def teacher(self) -> list[str]:
        """Names of the teacher's modules to listen to."""
        return self._names(1)

    def _names(self, side: int) -> list[str]:
        found = [pair[side] for pair in self.hidden]
        for pair in self.attention:
            one = pair[side]
            found += [one.query, one.key, one.value] if self.values else [one.query, one.key]
        return list(dict.fromkeys(found))


class Pupil(nn.Module):
    """A student whose forward takes a batch and returns the distillation loss, a scalar.

    `student` alone is kept. `maps` are linear maps without bias from the student's widths to the teacher's, made on the first batch given.
    """

    def __init__(self, student: nn.Module, pairs: Pairs, teach: Callable[[Any], Said], config: DistillConfig, loss: Loss | None):
        super().__init__()
        self.student, self.maps = student, nn.ModuleDict()
        self._pairs, self._teach, self._config, self._loss = pairs, [teach], config, loss

    def forward(self, batch: Any) -> torch.Tensor:
        """The weighted sum of the terms on `batch`."""
        config = self._config
        with listening(self.student, self._pairs.student()) as heard:
            outputs, hard = self._study(batch)
        said = self._teach[0](batch)
        with torch.autocast(outputs.device.type, enabled=False):
            mask = mask_of(batch)
            total = outputs.new_zeros((), dtype=torch.float32)
            if config.logits:
                per_token = mask is not None and outputs.ndim > 2 and outputs.shape[1] == mask.shape[1]
                total = total + config.logits * terms.soft_logits(outputs, said[OUTPUTS], config.temperature, mask if per_token else None)
            if config.hidden:
                total = total + config.hidden * self._hidden(heard, said, mask)
            if config.attention:
                total = total + config.attention * self._attention(heard, said, mask)
            return total if hard is None else total + config.labels * hard.float()

    def begin(self, batch: Any) -> None:
        """Check on one batch that student and teacher can be compared, and make the maps; the student is left as it was."""
        said = self._teach[0](batch)
        with _evaluating(self.student), torch.no_grad(), listening(self.student, self._pairs.student()) as heard:
            outputs = forward(self.student, batch)
        if self._config.logits and outputs.shape != said[OUTPUTS].shape:
            raise BadModel(
                f"the student gives outputs of the shape {list(outputs.shape)}, the teacher {list(said[OUTPUTS].shape)}.",
                expected="one shape",
                do="give the student a head of the teacher's size, or set logits to 0 and teach hidden states",
            )
        mask = mask_of(batch)
        for i, (mine, theirs) in enumerate(self._pairs.hidden):
            if mine not in heard:
                raise BadModel(f'the module "{mine}" did not run, so nothing can be compared with it.', do="pair other modules in `layers`")
            student, teacher = _rows(heard[mine], mask), _rows(said[theirs], mask)
            if student.shape[:-1] != teacher.shape[:-1]:
                raise BadModel(
                    f'the outputs of "{mine}" have the shape {list(heard[mine].shape)}, those of the teacher\'s "{theirs}" {list(said[theirs].shape)}.',
                    expected="shapes that differ in width alone",
                    do="pair other modules in `layers`",
                )
            if student.shape[-1] != teacher.shape[-1]:
                self.maps[str(i)] = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False, device=outputs.device)

    def _study(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One forward pass of the student: its outputs, and the hard-label loss where it has a weight."""
        if self._loss is None or not self._config.labels:
            outputs = forward(self.student, batch)
            return outputs, hard_loss(outputs, batch) if self._config.labels else None
        given: list[Any] = []
        handle = self.student.register_forward_hook(lambda _, __, output: given.append(output))
        try:
            hard = self._loss(self.student, batch)
        finally:
            handle.remove()
        if len(given) != 1:
            raise BadInput(f"the loss callable ran the student {len(given)} times.", expected="one forward pass, whose outputs the other terms share")
        return output_tensor(given[0]), hard

    def _hidden(self, heard: Said, said: Said, mask: torch.Tensor | None) -> torch.Tensor:
        """Mean of the hidden-state errors over all pairs."""
        errors = []
        for i, (mine, theirs) in enumerate(self._pairs.hidden):
            student, teacher = _rows(heard[mine], mask), _rows(said[theirs], mask)
            student = self.maps[str(i)](student.float()) if str(i) in self.maps else student
            errors.append(terms.hidden_error(student, teacher, mask if _per_token(heard[mine], mask) else None))
        return torch.stack(errors).mean()

    def _attention(self, heard: Said, said: Said, mask: torch.Tensor | None) -> torch.Tensor:
        """Mean of the attention terms over all pairs."""
        found = []
        for mine, theirs in self._pairs.attention:
            if not self._pairs.values:
                assert mine.heads and theirs.heads
                student = (heard[mine.query], heard[mine.key], mine.heads, mine.scale)
                found.append(terms.map_divergence(student, (said[theirs.query], said[theirs.key], theirs.heads, theirs.scale), mask))
                continue
            for own, other in ((mine.query, theirs.query), (mine.key, theirs.key), (mine.value, theirs.value)):
                heads = self._config.relation_heads or _common_parts(heard[own].shape[-1], said[other].shape[-1], theirs.heads or 12)
                if heard[own].shape[-1] % heads or said[other].shape[-1] % heads:
                    raise BadConfig(f"widths {heard[own].shape[-1]} and {said[other].shape[-1]} cannot both be cut into {heads} parts.", do="relation_heads")
                found.append(terms.relation_divergence(heard[own], said[other], heads, mask))
        return torch.stack(found).mean()


def _hidden_pairs(student: nn.Module, teacher: nn.Module, config: DistillConfig) -> list[tuple[str, str]]:
    if config.layers is not None:
        return list(config.layers)
    mine, theirs = blocks(student), blocks(teacher)
    if not mine or not theirs:
        which = "student" if not mine else "teacher"
        raise BadModel(f"no blocks were found in the {which}, so hidden states cannot be paired.", do="name the modules in `layers`, or set hidden to 0")
    if len(mine) > len(theirs):
        raise BadConfig(f"the student has {len(mine)} blocks, the teacher {len(theirs)}.", expected="no more than the teacher", do="name pairs in `layers`")
    return evenly(mine, theirs)


def _attention_pairs(student: nn.Module, teacher: nn.Module, config: DistillConfig) -> list[tuple[Attention, Attention]]:
    mine, theirs = attentions(student), attentions(teacher)
    if not mine or not theirs:
        raise BadModel(
            f"no attention with separate linear projections was found in the {'student' if not mine else 'teacher'}.",
            expected="projections called query/key/value, q_proj/k_proj/v_proj, q_lin/k_lin/v_lin or q/k/v",
            do="set attention to 0",
        )
    if config.attention_layers == "last":
        pairs = [(mine[-1], theirs[-1])]
    else:
        own, other = {one.name: one for one in mine}, {one.name: one for one in theirs}
        pairs = [(own[a], other[b]) for a, b in evenly(list(own), list(other))]
    if config.attention_kind == "maps":
        for a, b in pairs:
            for which, one in (("student", a), ("teacher", b)):
                if not one.exact:
                    raise BadModel(
                        f'attention maps of the {which}\'s "{one.name}" do not follow from its projections (rotary or relative positions, grouped or causal).',
                        do='use attention_kind "relations"',
                    )
            if a.heads != b.heads:
                raise BadConfig(f"the student has {a.heads} heads, the teacher {b.heads}.", expected="equally many", do='use attention_kind "relations"')
    return pairs


def _common_parts(student: int, teacher: int, most: int) -> int:
    """The largest number of parts, at most `most`, into which both widths can be cut."""
    both = math.gcd(student, teacher)
    return next(n for n in range(min(most, both), 0, -1) if both % n == 0)


def _per_token(value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    return mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape


def _rows(value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """States with their width last: images [batch, channels, height, width] are turned."""
    return value.movedim(1, -1) if value.ndim == 4 and not _per_token(value, mask) else value


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training

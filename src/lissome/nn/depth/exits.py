"""A model with exits: rows of a batch whose answer is sure after an early block leave, and the rest goes on without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lissome.core.errors import BadInput, BadModel
from lissome.nn.call import call, unfused
from lissome.nn.depth.blocks import each_argument, each_output, find_blocks, fixed_places, hidden_of
from lissome.nn.depth.complexity import Complexity
from lissome.nn.depth.confidence import NEVER, Rule, confidence
from lissome.nn.depth.heads import ExitHead, kind_of

MASK, IDS = "attention_mask", "input_ids"


class _AllLeft(Exception):
    """No row is left to go on: no error, but the way out of the model's own forward."""


class Exits(nn.Module):
    """`module` with an exit after some of its blocks. Called with named inputs, as `nn.call` does; gives logits [n, classes] in the batch's order.

    after: number of blocks below each exit, rising; heads: one each. rule, thresholds: a row leaves at the first exit where its confidence is at least the
    exit's threshold; logits that are not finite never leave. complexity: needed for that rule; scores inputs before any block runs.
    The blocks may be called with any arguments: tensors in them whose first size is the batch's are cut down to the rows that are left, but not those at
    the places `fixed`, which `fixed_places` finds (a table of as many positions as the batch has rows).
    taken: exit by which each row of the last call left [n]; the number of exits for rows that went all the way.
    """

    thresholds: torch.Tensor
    trained: torch.Tensor

    def __init__(
        self,
        module: nn.Module,
        heads: Mapping[int, ExitHead],
        *,
        rule: Rule = "max-probability",
        blocks: str | None = None,
        complexity: Complexity | None = None,
        trained: bool = False,
        fixed: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.blocks, every = find_blocks(module, blocks)
        self.after = check_after(sorted(heads), len(every))
        self.depth, self.fixed = len(every), tuple(fixed)
        self.heads = nn.ModuleList(heads[at] for at in self.after)
        self.rule, self.complexity = rule, complexity
        if rule == "complexity" and complexity is None:
            raise BadInput("exits by complexity need something that tells it", do="fit a Complexity on texts")
        self.register_buffer("thresholds", torch.full((len(self.after),), NEVER))
        self.register_buffer("trained", torch.tensor(trained))
        self.frozen = False
        self.taken = torch.zeros(0, dtype=torch.long)

    def leave_at(self, thresholds: Sequence[float]) -> Exits:
        """Set the thresholds, one for each exit; NEVER closes one. Raises BadModel for heads that were not trained."""
        if len(thresholds) != len(self.after):
            raise BadInput(f"{len(thresholds)} thresholds do not fit {len(self.after)} exits", expected="one for each exit")
        if any(one != one for one in thresholds):
            raise BadInput("a threshold is not a number", expected=f"confidences from 0 to 1, or {NEVER:g} for never")
        if not bool(self.trained) and any(one <= 1 for one in thresholds):
            raise BadModel(
                "the exit heads were not trained, so what they say means nothing", do="train them first: `lissome exits`, or compress.exits.train_exits"
            )
        self.thresholds.copy_(torch.tensor(thresholds))
        return self

    def train(self, mode: bool = True) -> Exits:
        """As usual, but a frozen trunk stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.module.eval()
        return self

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes]; inputs by name, batch first."""
        count = _count(inputs)
        self.taken = torch.full((count,), len(self.after))
        if count == 0:
            head: Any = self.heads[0]
            nothing: torch.Tensor = head.out.weight.new_zeros(0, head.classes)
            return nothing
        flow = _Flow(self, inputs, count)
        with flow.hooked(), unfused():
            try:
                last: torch.Tensor | None = call(self.module, inputs)
            except _AllLeft:
                last = None
        if not flow.left:
            assert last is not None
            return last
        logits = torch.cat([*(one for _, one in flow.left), *([] if last is None else [last])])
        order = torch.cat([*(rows for rows, _ in flow.left), *([] if last is None else [flow.rows])])
        return torch.empty_like(logits).index_copy(0, order, logits)

    def all_logits(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """What every exit says of every row [n, classes], and, last, what the whole model says. Nothing leaves; a frozen trunk gets no gradients."""
        states: list[torch.Tensor] = []
        blocks = self.every()
        handles = [blocks[at - 1].register_forward_hook(lambda _, __, output: states.append(hidden_of(output))) for at in self.after]
        try:
            with unfused(), torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                last = call(self.module, inputs)
        finally:
            for handle in handles:
                handle.remove()
        if len(states) != len(self.after):
            raise BadModel(
                f"the blocks of {self.blocks} ran {len(states)} times where {len(self.after)} exits stand", do="name the list of blocks that runs once"
            )
        return [*(head(state, inputs.get(MASK)) for head, state in zip(self.heads, states, strict=True)), last]

    def every(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.module.get_submodule(self.blocks).children())

    def spec(self) -> dict[str, Any]:
        """What it is built from, besides the module and the weights."""
        heads = {str(at): head.spec() for at, head in zip(self.after, self.heads, strict=True)}  # type: ignore[operator]
        complexity = self.complexity.spec() if self.complexity else None
        return {"blocks": self.blocks, "rule": self.rule, "heads": heads, "complexity": complexity, "fixed": list(self.fixed)}

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"rule={self.rule}, after={self.after}, blocks={self.blocks!r}, fixed={self.fixed}"


class _Flow:
    """One call. rows: the batch's rows that are still in; left: those that are not, with their logits."""

    def __init__(self, exits: Exits, inputs: Mapping[str, torch.Tensor], count: int) -> None:
        self.exits, self.count = exits, count
        self.rows = torch.arange(count, device=next(one.device for one in inputs.values() if one.ndim))
        self.left: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.mask = inputs.get(MASK)
        self.sure: torch.Tensor | None = None
        if exits.rule == "complexity" and exits.complexity is not None:
            if IDS not in inputs:
                raise BadInput("complexity is told by token ids, and the inputs have none", expected=f'an input "{IDS}"', do="choose another rule")
            self.sure = 1 - exits.complexity(inputs[IDS], self.mask)
        self._cut: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the blocks while the model runs."""
        exits = self.exits
        blocks = exits.every()
        open_ = [(number, at) for number, (at, one) in enumerate(zip(exits.after, exits.thresholds.tolist(), strict=True)) if one < NEVER]
        handles: list[Any] = [blocks[at - 1].register_forward_hook(self._exit(number)) for number, at in open_]
        handles += [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in (blocks[open_[0][1] :] if open_ else [])]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        """Arguments of a block, of the rows that are left."""
        return each_argument(args, kwargs, self._remaining) if self.left else None

    def _remaining(self, place: str, value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 0 or value.shape[0] != self.count or len(self.rows) == self.count or place in self.exits.fixed:
            return value
        known = self._cut.get(id(value))
        if known is None:  # the tensor itself is kept beside, so that its id stays its own
            known = self._cut[id(value)] = (value, value.index_select(0, self.rows))
        return known[1]

    def _exit(self, number: int) -> Any:
        head, threshold = self.exits.heads[number], float(self.exits.thresholds[number])

        def decide(_: nn.Module, __: Any, output: Any) -> Any:
            mask = None if self.mask is None else self._remaining("", self.mask)
            if self.sure is not None and not bool((self.sure[self.rows] >= threshold).any()):
                return None
            logits = head(hidden_of(output), mask)
            sure = confidence(logits, self.exits.rule) if self.sure is None else self.sure[self.rows]
            leave = (sure >= threshold) & torch.isfinite(logits).all(-1)
            if not bool(leave.any()):
                return None
            self.left.append((self.rows[leave], logits[leave]))
            self.exits.taken[self.rows[leave].to(self.exits.taken.device)] = number
            if bool(leave.all()):
                raise _AllLeft
            here, stay = len(self.rows), (~leave).nonzero().flatten()
            self.rows = self.rows[stay]
            self._cut.clear()

            def kept(place: str, one: torch.Tensor) -> torch.Tensor:
                return one.index_select(0, stay) if one.ndim and one.shape[0] == here and place not in self.exits.fixed else one

            return each_output(output, kept)

        return decide


def with_exits(
    module: nn.Module,
    after: Sequence[int],
    example: Mapping[str, torch.Tensor],
    *,
    rule: Rule = "max-probability",
    blocks: str | None = None,
    inner: int = 128,
    complexity: Complexity | None = None,
) -> Exits:
    """`module` (which is shared, not copied) with fresh exit heads after the given numbers of blocks.

    example: a batch of named inputs, by which the heads' sizes and the places that do not follow the batch are found. Raises BadModel where no blocks are found
    or the model gives no logits [n, classes], BadInput for exits at blocks that do not exist.
    """
    name, every = find_blocks(module, blocks)
    places = check_after(after, len(every))
    shapes: dict[int, torch.Tensor] = {}
    handles = [every[at - 1].register_forward_hook(lambda _, __, output, at=at: shapes.__setitem__(at, hidden_of(output))) for at in places]
    training = module.training
    try:
        with torch.no_grad(), unfused():
            logits = call(module.eval(), example)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise BadModel(f"the model's output has the shape {list(logits.shape)}", expected="logits [examples, classes] of at least two classes")
    if set(shapes) != set(places):
        raise BadModel(f"the blocks of {name} do not run when the model does", do="name the list of blocks that runs")
    heads = {at: ExitHead(*kind_of(hidden), logits.shape[1], inner) for at, hidden in shapes.items()}
    return Exits(module, heads, rule=rule, blocks=name, complexity=complexity, fixed=fixed_places(module, example, name)).train(training)


def check_after(after: Sequence[int], depth: int) -> tuple[int, ...]:
    """The numbers of blocks after which there are exits, in order. Raises BadInput for ones that do not exist."""
    places = tuple(sorted(set(after)))
    if not places:
        raise BadInput("there is no exit", expected=f"numbers of blocks from 1 to {depth - 1}")
    wrong = [at for at in places if not 1 <= at < depth]
    if wrong:
        raise BadInput(
            f"there is no exit after block {wrong[0]}: the model has {depth} blocks", expected=f"1 to {depth - 1}; after the last stands the model's own head"
        )
    return places


def _count(inputs: Mapping[str, torch.Tensor]) -> int:
    first = next((one for one in inputs.values() if isinstance(one, torch.Tensor) and one.ndim), None)
    if first is None:
        raise BadInput("there are no inputs", expected="named tensors, batch first")
    return len(first)

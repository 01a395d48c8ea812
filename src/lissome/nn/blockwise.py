"""Torch models block by block: a block's weights are read from the mapped file before it runs and given back after.

A skeleton without weights is built; hooks bring in those of each block. Weights are copied to where an allocation of their own would lie (64-byte aligned), so
that the same kernels see the same numbers in the same way: what comes out is the resident model's, bit for bit. While a block runs, a thread reads the next.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lissome.core.errors import BadInput, BadModel
from lissome.machine.budget import Budget, measured_budget, megabytes, parse_bytes
from lissome.nn.mapped import Tensors, can_stream, tensors_in
from lissome.nn.quiet import quietly

ALIGNMENT = 64
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SMALL = 1_000_000
"""Bytes: modules outside of the blocks stay in memory up to this size."""
SLICE = 1 << 20
"""Bytes that are copied at a time."""
SCRATCH = 32_000_000
"""Bytes that are left for what flows between the blocks, unless another amount is given."""


@dataclass(frozen=True)
class Piece:
    """A parameter of a unit. owner, key: where it hangs; file, stored: where its numbers are."""

    owner: nn.Module
    key: str
    file: Tensors
    stored: str
    shape: tuple[int, ...]

    def span(self) -> tuple[int, int]:
        """Its bytes in the file."""
        one = self.file.stored[self.stored]
        return one.start, one.end

    def tensor(self) -> torch.Tensor:
        """Its numbers where they lie in the file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that these bytes cannot be written; nobody does
            stored = self.file.array(self.stored)
            return torch.from_numpy(stored.view(np.int16) if self.dtype == torch.bfloat16 else stored).view(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers in the file."""
        return DTYPES[self.file.stored[self.stored].kind]


@dataclass(frozen=True)
class Unit:
    """What comes and goes as one: a block, or a large module outside of the blocks."""

    name: str
    module: nn.Module
    pieces: tuple[Piece, ...]
    size: int


class Blockwise:
    """A model whose units come and go. Call `model` as ever, without gradients.

    units: in the order in which they are expected to run (another order costs time, not correctness); kept: the first so many stay in memory.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], dtype: torch.dtype, budget: Budget, scratch: int) -> None:
        self.model, self.units, self.dtype, self.budget = model, list(units), dtype, budget
        self.window = max((a.size + b.size for a, b in zip(units, [*units[1:], units[0]], strict=True)), default=0) if len(units) > 1 else 2 * units[0].size
        needed = budget.bytes - budget.room + self.window + scratch
        if needed > budget.bytes:
            raise BadInput(
                f"a memory budget of {megabytes(budget.bytes)} is too small: this process takes {megabytes(budget.floor)} with what must stay of the model, "
                f"two parts of it {megabytes(self.window)}, what flows between them and spare {megabytes(needed - budget.floor - self.window)}",
                expected=f"at least {megabytes(needed)}",
                do="give it more",
            )
        self._room = torch.empty(self.window + ALIGNMENT, dtype=torch.uint8)
        self._reader = ThreadPoolExecutor(1, "lissome-reader")
        self._coming: tuple[int, Future[list[torch.Tensor]]] | None = None
        self._front = True
        self._kept: dict[int, list[torch.Tensor]] = {}
        left, self.kept = budget.bytes - needed, 0
        while self.kept < len(units) and units[self.kept].size <= left:
            left -= units[self.kept].size
            self.kept += 1
        self._hooks = [hook for at, unit in enumerate(units) for hook in self._hook(at, unit)]

    @property
    def streamed(self) -> int:
        """Bytes that are read for each call."""
        return sum(one.size for one in self.units[self.kept :])

    def _hook(self, at: int, unit: Unit) -> tuple[Any, Any]:
        before = unit.module.register_forward_pre_hook(lambda *_: self._enter(at))
        return before, unit.module.register_forward_hook(lambda *_: self._leave(at), always_call=True)

    def _enter(self, at: int) -> None:
        if torch.is_grad_enabled():
            raise BadInput("a model that is read block by block cannot be trained", do="call it within torch.no_grad()")
        tensors = self._kept.get(at) or self._awaited(at)
        for piece, tensor in zip(self.units[at].pieces, tensors, strict=True):
            piece.owner._parameters[piece.key] = nn.Parameter(tensor, requires_grad=False)
        following = (at + 1) % len(self.units)
        if following != at and following not in self._kept:
            self._coming = (following, self._reader.submit(self._read, following, self._next_side(following)))

    def _leave(self, at: int) -> None:
        for piece in self.units[at].pieces:
            piece.owner._parameters[piece.key] = nn.Parameter(torch.empty(piece.shape, dtype=self.dtype, device="meta"), requires_grad=False)
        if self._kept and self.budget.over():
            self.kept = 0  # the process has grown: nothing is kept beyond its turn from here on
            if self._coming:
                self._coming[1].result()
            self._kept.clear()

    def _awaited(self, at: int) -> list[torch.Tensor]:
        coming, self._coming = self._coming, None
        tensors = coming[1].result() if coming else []
        if not coming or coming[0] != at:
            tensors = self._read(at, self._next_side(at))
        return tensors

    def _next_side(self, at: int) -> torch.Tensor | None:
        """Room for a unit at the end of the shared room that the unit before it does not use; None where it is to stay, in memory of its own."""
        if at < self.kept:
            return None
        self._front = not self._front
        size = self.units[at].size
        start = 0 if self._front else (len(self._room) - size) // ALIGNMENT * ALIGNMENT
        return self._room[start : start + size]

    def _read(self, at: int, room: torch.Tensor | None) -> list[torch.Tensor]:
        unit, found, begin = self.units[at], [], 0
        space = torch.empty(unit.size, dtype=torch.uint8) if room is None else room
        for piece in unit.pieces:
            size = _bytes(piece.shape, self.dtype)
            into = space[begin : begin + size].view(self.dtype).view(piece.shape)
            _copy(piece, into.view(-1))
            found.append(into)
            begin += -(-size // ALIGNMENT) * ALIGNMENT
        if room is None:
            self._kept[at] = found
        return found

    def close(self) -> None:
        """Take the hooks off and end the reader; the model has no weights then."""
        for hook in self._hooks:
            hook.remove()
        self._reader.shutdown()


def load_blockwise(folder: str | Path, budget: int | str, *, dtype: torch.dtype = torch.float32, scratch: int = SCRATCH) -> Blockwise:
    """The transformers model in a folder of safetensors, for a process that may take `budget` bytes ("300MB") at its peak.

    dtype: that the model computes in. scratch: bytes for what flows between the blocks. Raises BadModel for a folder that holds none or lacks a tensor,
    BadInput for a budget that is less than the process, two blocks and the scratch take.
    """
    can_stream()
    path = Path(folder).expanduser()
    model, files = _skeleton(path, dtype), tensors_in(path)
    prefix, head = f"{getattr(model, 'base_model_prefix', '')}.", model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = getattr(model.config, "tie_word_embeddings", False)
    words = next((name for name, one in model.named_modules() if one is model.get_input_embeddings()), "")

    def piece(owner: nn.Module, name: str, key: str, parameter: torch.Tensor) -> Piece:
        full = f"{name}.{key}" if name else key
        options = [full, full.removeprefix(prefix), prefix + full]
        if tied and owner is head and key == "weight":
            options += [f"{words}.weight", f"{words}.weight".removeprefix(prefix), f"{prefix}{words}.weight"]
        found = next((one for one in options if one in files), None)
        if found is None:
            raise BadModel(f'there is no tensor for "{full}"', where=str(path), expected="every weight of the model in its safetensors")
        if files[found].stored[found].shape != tuple(parameter.shape):
            raise BadModel(f'"{found}" has the shape {list(files[found].stored[found].shape)}', where=str(path), expected=str(list(parameter.shape)))
        return Piece(owner, key, files[found], found, tuple(parameter.shape))

    blocks = _blocks(model)
    inside = {id(one) for _, block in blocks for one in block.modules()}
    units = [_unit(name, block, piece, dtype) for name, block in blocks]
    for name, module in model.named_modules():
        own = {key: one for key, one in module._parameters.items() if one is not None}
        if id(module) in inside or not own:
            continue
        pieces = [piece(module, name, key, one) for key, one in own.items()]
        if isinstance(module, nn.Embedding) and pieces[0].dtype == dtype:
            _look_up_in_file(module, pieces[0])
        elif sum(_bytes(one.shape, dtype) for one in pieces) > SMALL:
            units.append(_unit(name, module, piece, dtype))
        else:
            for one in pieces:
                module._parameters[one.key] = nn.Parameter(one.tensor().to(dtype, copy=True), requires_grad=False)
    if not units:
        raise BadModel("it has no blocks that could come and go", where=str(path), expected="a model with a list of blocks")
    for file in files.values():
        file.mapped.drop([(0, file.mapped.size)])
    size = parse_bytes(budget) if isinstance(budget, str) else budget
    return Blockwise(model.eval(), units, dtype, measured_budget(size), scratch)


def _copy(piece: Piece, into: torch.Tensor) -> None:
    """Slice by slice, so that no more than one is in memory twice."""
    given, mapped, start = piece.tensor().view(-1), piece.file.mapped, piece.span()[0]
    step = SLICE // given.element_size()
    for begin in range(0, len(given), step):
        end = min(begin + step, len(given))
        span = (start + begin * given.element_size(), start + end * given.element_size())
        mapped.load([span])
        into[begin:end] = given[begin:end]
        mapped.drop([span])
    mapped.drop([piece.span()])  # and what the system mapped around the slices


def _unit(name: str, module: nn.Module, piece: Any, dtype: torch.dtype) -> Unit:
    pieces = [
        piece(owner, ".".join(part for part in (name, inner) if part), key, one)
        for inner, owner in module.named_modules()
        for key, one in owner._parameters.items()
        if one is not None
    ]
    size = sum(-(-_bytes(one.shape, dtype) // ALIGNMENT) * ALIGNMENT for one in pieces)
    return Unit(name, module, tuple(pieces), size)


def _look_up_in_file(module: nn.Embedding, piece: Piece) -> None:
    """Rows of an embedding are read where they stand: looking up computes nothing. The pages go after each call."""
    module._parameters["weight"] = nn.Parameter(piece.tensor(), requires_grad=False)
    module.register_forward_hook(lambda *_: piece.file.mapped.drop([piece.span()]))


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's longest list of modules by weight: its blocks."""
    lists = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one) > 1]
    if not lists:
        return []
    name, found = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return [(f"{name}.{at}", block) for at, block in enumerate(found)]


def _skeleton(folder: Path, dtype: torch.dtype) -> Any:
    """The model without weights; what it computes for itself (tables of positions) is there."""
    import transformers

    try:
        config = quietly(lambda: transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError) as error:
        raise BadModel(f"its configuration cannot be read: {str(error).splitlines()[0]}", where=str(folder), expected="a Hugging Face folder") from error
    names = getattr(config, "architectures", None) or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        raise BadModel(f'its architecture is "{names[0] if names else None}"', where=str(folder), expected="one that transformers has")
    with _without_weights():
        return quietly(lambda: kind._from_config(config, dtype=dtype))


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters that are registered meanwhile have a shape alone."""
    register = nn.Module.register_parameter

    def bare(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.detach().to("meta"), requires_grad=False))

    nn.Module.register_parameter = bare  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    size = dtype.itemsize
    for width in shape:
        size *= width
    return size

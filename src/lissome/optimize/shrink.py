"""The dearest change: leave out blocks, heads, neurons and channels, then let the smaller model learn from the original.

What to leave out is solved from tables (`costs`), built and timed before anything is trained: a shape's speed does not depend on its weights, so a
plan that is too slow is mended in seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lissome.compress.distill.config import DistillConfig, DistillTaskConfig
from lissome.compress.distill.task import distil_for_task, share_taught
from lissome.compress.prune import importance
from lissome.core.contract import Limit
from lissome.core.errors import BadModel, LissomeError
from lissome.core.manifest import Option, PartChoice, PartOption
from lissome.core.measurement import Measurement
from lissome.optimize.additive import Choice, Point, front, within
from lissome.optimize.bench import Bench, Variant, vary
from lissome.optimize.costs import Cost, losses, megabytes, savings, typical, variant_row
from lissome.optimize.options import ORIGINAL
from lissome.optimize.sensitivity import HARDEST, Probe
from lissome.optimize.solve import Reading, read_cost
from lissome.optimize.structure import Change, Part, Structure, cut, structure_of
from lissome.optimize.tables import ROUNDS, Row, side_by_side
from lissome.train.batches import Batches
from lissome.train.config import TrainConfig
from lissome.train.finetune import classification_loss

if TYPE_CHECKING:
    import torch

    from lissome.core.model import Model
    from lissome.core.task import Task

EPOCHS, LONG = 4, 12
"""Epochs of the first lessons, and of those that are given when accuracy alone is still missed; twice as many where each brings other texts."""
VARIATIONS = 0.7
"""Share of a batch's texts that are altered (Jiao et al. 2020)."""
IMPORTANCE_BATCHES = 16
MENDS = 5
"""How often a plan that turns out too slow or too large is solved again, for limits tightened by what the sum of savings was off."""
CHECK_ROUNDS = 45
"""Rounds in which a plan is timed, and what is made of it: with the nine of a table, an interval is a tenth of the median to either side, and so much would
be cut in vain."""
WASTE = 0.05
"""Of what the limits allow: a plan that leaves more is tried again larger, as every part that is cut in vain costs accuracy."""
QUANTITIES = ("latency", "size", "memory")
"""What a change costs or saves, in the order of a choice's costs."""
SPARE = 0.97
"""A plan is solved for this share of what a limit allows, and its interval has to keep that: what is taught by it is measured anew, and must not miss."""


@dataclass(frozen=True)
class Ground:
    """What planning a structure stands on. option: engine and precision it is planned for; scores: importance of every unit; original, base, floor: the
    original, and under that option the model and its smallest shape, timed in one run."""

    structure: Structure
    option: Option
    scores: Mapping[str, torch.Tensor]
    original: Row
    base: Row
    floor: Row


def ground(bench: Bench, original: Row, options: Sequence[Option]) -> Ground:
    """The ground under the option for which the model has to shrink least.

    How much it has to shrink is read off the line from base to smallest shape. Raises BadModel when nothing can shrink.
    """
    bench.progress.stage("what can shrink in the model")
    structure = structure_of(bench.model, bench.recipe.example)  # type: ignore[arg-type]
    if not structure.parts:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in structure.groups.left[:3])
        raise BadModel(f"nothing in this model can shrink. {reasons}", where=bench.model.ref)
    scores = unit_scores(bench, structure)
    least = [ways[-1] for part in structure.parts for ways in part.changes if ways] + [part.out for part in structure.parts if part.out]
    smallest = cut(structure, least, scores)
    made: list[Row] = []
    for option in options:
        bench.check_spend("the smallest shape was built")
        try:
            made += [variant_row(bench, model, option) for model in (bench.model, smallest)]
        except LissomeError as error:
            if option is options[-1] and not made:
                raise
            bench.progress.say(f"Not planned for {option.name}: {error.what}")
    before, *rows = with_results([Row(ORIGINAL, original.form, original.size), *made], bench)
    grounds = [Ground(structure, base.option, scores, before, base, floor) for base, floor in zip(rows[::2], rows[1::2], strict=True)]
    return min(grounds, key=lambda one: _shrinkage(bench, one))


def _shrinkage(bench: Bench, base: Ground) -> float:
    """What share of the way from the base to the smallest shape the limits ask for; above 1 when not even that keeps them."""
    if base.base.trouble is not None or base.floor.trouble is not None:
        return math.inf
    gained = [before - after for before, after in zip(_spent(base.base), _spent(base.floor), strict=True)]
    asked = [(budget, gain) for budget, gain in zip(_budgets(bench, base), gained, strict=True) if budget is not None and budget < 0]
    return max((-budget / gain if gain > 0 else math.inf for budget, gain in asked), default=0.0)


def _spent(row: Row) -> tuple[float, float, float]:
    """What a timed row takes: ms a call (median), MB of files, MB of peak memory."""
    assert row.result is not None
    return typical(row.result), row.size / 1e6, row.result.memory_mb


def with_results(rows: list[Row], bench: Bench, rounds: int = ROUNDS) -> list[Row]:
    """The rows with what they gave beside the first, the original."""
    for row, pair in zip(rows, side_by_side(bench, rows, rounds), strict=True):
        row.result, row.original, row.trouble = pair.own, pair.first, pair.own.failed
    return rows


def unit_scores(bench: Bench, structure: Structure) -> dict[str, torch.Tensor]:
    """Importance of every unit: first-order Taylor on training batches where there are classes, else the weights' norm."""
    if not bench.task.classes:
        return importance(bench.model, structure.groups, "l2")
    batches = Batches(bench.task, "train", 32, seed=bench.seed)
    return importance(bench.model, structure.groups, "taylor", loss=classification_loss(), batches=itertools.islice(batches, IMPORTANCE_BATCHES))


def readings_of(bench: Bench, row: Row) -> list[Reading]:
    """How a timed row, beside the original of its own run, stands against the limits other than accuracy."""
    return [read_cost(row, limit, bench.contract.level, bench.machine.fingerprint) for limit in bench.contract.costs()]


def missed(bench: Bench, row: Row, share: float = 1.0) -> list[Reading]:
    """The limits other than accuracy that a timed row does not keep; of those that are measured anew later, so large a share of what they allow."""
    return [reading for reading in readings_of(bench, row) if reading.excess > (1.0 if reading.limit.quantity == "size" else share)]


def plan(bench: Bench, base: Ground, probe: Probe) -> tuple[Model, tuple[PartChoice, ...], Point] | None:
    """The shape of least loss whose limits on speed and size hold when it is built and timed; None where none was found.

    A plan that misses is solved again for tighter budgets, one that then leaves much unused for budgets between. Where no plan's interval keeps a limit, one
    whose median does is taken: it is measured again, for longer, once it was taught.
    """
    costs = savings(bench, base.structure, base.option, base.scores)
    harm = losses(bench, base.structure, probe, base.scores)
    wanted = budgets = kept = _budgets(bench, base)
    menus = [_menu(part, costs, harm) for part in base.structure.parts]
    together = _together(base, costs)
    bench.progress.say(f"Together the parts of {base.option.name} save {together[0]:.0%} of the time that they save one by one.")
    likely = held = loose = None  # held: the last plan that is safely within the limits, found for `kept`; loose: the last budgets whose plan is not
    for _ in range(MENDS + 1):
        bench.check_spend("a plan was found")
        point = _solved(menus, budgets, together)
        if point is None or (held and point.picks == held[2].picks):
            break
        changes = [change for menu, pick in zip(menus, point.picks, strict=True) for change in menu[pick][1]]
        smaller = cut(base.structure, changes, base.scores)
        beside = [Row(ORIGINAL, base.original.form, base.original.size), variant_row(bench, smaller, base.option)]
        row = with_results(beside, bench, CHECK_ROUNDS)[1]
        if row.trouble is not None:
            break
        over = missed(bench, row, SPARE)
        found = smaller, _choices(base.structure.parts, menus, point, costs, harm, bench), point
        if over:
            loose = budgets
            if likely is None and all(_median_holds(reading) for reading in over):
                likely = found
        else:
            held, kept = found, budgets
            spare = SPARE - max((reading.excess for reading in readings_of(bench, row)), default=SPARE)
            if loose is None or spare < WASTE:
                break
            bench.progress.say(f"The plan leaves {spare:.0%} of what the limits allow; trying a larger shape.")
        budgets = _between(kept, loose) if held else _tighter(bench, base, row, point, over, wanted, budgets)
    return held or likely


def _tighter(bench: Bench, base: Ground, row: Row, point: Point, over: Sequence[Reading], wanted: Budgets, budgets: Budgets) -> Budgets:
    """What to solve for after a plan for `budgets` that missed: the limits less what it was off its parts' sums."""
    assert row.result is not None and row.original is not None
    begun = (typical(row.original) * _share(base), *_spent(base.base)[1:])
    off = [now - was - sum_ for now, was, sum_ in zip(_at_worst(row, over), begun, point.costs, strict=True)]
    bench.progress.say(
        f"The plan is not safely within {over[0].limit}: {over[0].figure}. It is {off[0]:+.2f} ms a call, {off[1]:+.2f} MB of files and {off[2]:+.1f} MB "
        "of memory off what its parts add up to; solving again with that."
    )
    kinds = {reading.limit.quantity for reading in over}
    least = [(1 - SPARE) * now for now in _spent(row)]
    each = zip(QUANTITIES, wanted, budgets, off, least, strict=True)
    return tuple(_tightened(first, last, *step) if kind in kinds else last for kind, first, last, *step in each)


def _between(one: Budgets, other: Budgets) -> Budgets:
    """Budgets halfway between two."""
    return tuple(None if a is None or b is None else (a + b) / 2 for a, b in zip(one, other, strict=True))


def _together(base: Ground, costs: Mapping[tuple[object, ...], Cost]) -> tuple[float, ...]:
    """Of what changes save one by one (latency, size, memory), the share that they save together, as the smallest shape shows; between 0.3 and 1.

    What does not shrink with the parts (starting the engine's threads, layers that stay) is counted once for each part that is timed by itself.
    """
    parts = base.structure.parts
    stays = {part.out.group: part for part in parts if part.out}  # one block of a list stays; all cost about the same, so the last stands for it
    least = [[part.out] if part.out and stays[part.out.group] is not part else [ways[-1] for ways in part.changes if ways] for part in parts]
    known = [costs.get(change.signature) for change in itertools.chain(*least)]
    if base.floor.trouble is not None or None in known:
        return (1.0, 1.0, 1.0)
    alone = [sum(values) for values in zip(*((cost.latency.value, cost.size, cost.memory) for cost in known if cost), strict=True)]
    saved = [before - after for before, after in zip(_spent(base.base), _spent(base.floor), strict=True)]
    return tuple(min(1.0, max(0.3, real / summed)) if summed > 0 else 1.0 for real, summed in zip(saved, alone, strict=True))


def _median_holds(reading: Reading) -> bool:
    """Whether the point keeps the limit, though its interval does not."""
    if reading.figure is None:
        return False
    return reading.figure.value >= reading.limit.bound if reading.limit.relative else reading.figure.value <= reading.limit.bound


def _at_worst(row: Row, over: Sequence[Reading]) -> tuple[float, float, float]:
    """What a timed row takes, ms, MB and MB; a latency that misses its limit at the bad end of its interval, as that end has to keep the limit."""
    latency, size, memory = _spent(row)
    for reading in over:
        figure = reading.figure
        if reading.limit.quantity == "latency" and figure is not None and min(figure.value, figure.low) > 0 and math.isfinite(figure.high):
            latency *= figure.value / figure.low if reading.limit.relative else figure.high / figure.value
    return latency, size, memory


def _tightened(wanted: float | None, now: float | None, off: float, least: float) -> float | None:
    """The budget to solve for next, where the plan for `now` came out `off` above what its parts add up to; at least `least` below `now`."""
    return None if wanted is None or now is None else min(wanted - off, now - least)


def _share(base: Ground) -> float:
    """Latency of the base over the original's, from their own run: runs differ in how fast the machine is, so figures of another run are scaled."""
    assert base.base.result is not None and base.original.result is not None
    return typical(base.base.result) / typical(base.original.result)


def taught(bench: Bench, smaller: Model, changed: str, parts: tuple[PartChoice, ...], length: float, steps: Sequence[str]) -> Variant:
    """The smaller model after learning from the original for `length` epochs, or until --spend was used up, as a variant.

    Raises OutOfTime where that was before a step.
    """
    begun = time.perf_counter()
    model = distil_for_task(smaller, bench.model, bench.task, lesson(bench, length), bench.cache, bench.progress, deadline=bench.deadline)
    took = time.perf_counter() - begun
    share, far, note = share_taught(model), f"{length:g} epochs", f"taught by the original for {length:g} epochs"
    if share < 1:
        far = f"{share * length:.3g} of {length:g} epochs"
        note = f"taught by the original, stopped by --spend after {far}"
    note += f", {took / 60:.1f} min" if took > 5 else ""
    return vary(bench, model, f"{changed}, distilled {far}", parts, (*steps, note))


def epochs(bench: Bench, most: int) -> int:
    """How many epochs EPOCHS or LONG stands for here: altered texts are new each time, so more of them still teach."""
    return 2 * most if _of_tokens(bench.task) else most


def lesson(bench: Bench, length: float) -> DistillTaskConfig:
    """How the smaller model is taught: softened outputs, the states of paired blocks, and the labels, on texts of which most are altered."""
    terms = DistillConfig(logits=1.0, temperature=2.0, hidden=1.0 if bench.task.variable_length else 0.0, labels=0.3)
    training = TrainConfig(epochs=length, lr=3e-4, precision="auto", seed=bench.seed)
    variations = VARIATIONS if _of_tokens(bench.task) else 0.0
    return DistillTaskConfig(terms=terms, train=training, variations=variations, freeze_embeddings=bench.task.variable_length)


def _of_tokens(task: Task) -> bool:
    """Whether a batch is token ids with a mask."""
    return {"input_ids", "attention_mask"} <= set(task.collate(task.splits["train"].inputs[:1], "longest"))


def seconds_per_epoch(bench: Bench) -> float:
    """How long an epoch of teaching takes here at most: three steps of the original itself, the first not counted."""
    import copy

    batches, loss = Batches(bench.task, "train", 32, seed=bench.seed), classification_loss()
    module, times = copy.deepcopy(bench.model.module), []
    for batch in itertools.islice(batches, 3):
        begun = time.perf_counter()
        loss(module, batch).backward()
        times.append(time.perf_counter() - begun)
    return statistics.mean(times[1:] or times) * len(batches)


def words(parts: Sequence[PartChoice]) -> str:
    """What a plan does, in a few words: "2 of 6 blocks out, 9 parts narrower"."""
    out = sum(part.chosen == "left out" for part in parts)
    narrower = sum(part.chosen not in ("left out", "whole") for part in parts)
    kinds = [*([f"{out} blocks out"] if out else []), *([f"{narrower} parts narrower"] if narrower else [])]
    return ", ".join(kinds) or "whole"


Budgets = tuple[float | None, ...]
"""What the contract asks of each of QUANTITIES: by how much it may grow, negative where it must shrink; None without a limit."""


def _budgets(bench: Bench, base: Ground) -> Budgets:
    """Changes of latency (ms), size and memory (MB) that the contract asks of the base."""
    assert base.base.result is not None and base.original.result is not None
    now, was = typical(base.base.result), typical(base.original.result)
    found: dict[str, float] = {}
    for limit in bench.contract.limits():
        if limit.quantity == "latency":
            allowed = was / limit.bound if limit.relative else limit.bound * now / _figure(base.base, limit)
            found["latency"] = SPARE * allowed - now
        elif limit.quantity in QUANTITIES:
            before, after = _figure(base.original, limit), _figure(base.base, limit)
            found[limit.quantity] = (before / limit.bound if limit.relative else limit.bound) * SPARE - after
    return tuple(found.get(quantity) for quantity in QUANTITIES)


def _figure(row: Row, limit: Limit) -> float:
    assert row.result is not None
    figure = row.result.figure(limit.name, "here")
    return figure.value if figure is not None else math.inf


Menu = list[tuple[Choice, tuple[Change, ...]]]


def _menu(part: Part, costs: Mapping[tuple[object, ...], Cost], harm: Mapping[Change, float]) -> Menu:
    """What can be done to a part, with the sums of what each change costs and saves; what could not be measured is not offered."""
    menu: Menu = []
    for changes in part.options():
        if any(change.signature not in costs or not math.isfinite(harm[change]) for change in changes):
            continue
        loss = sum(harm[change] for change in changes)
        saved = sum(costs[change.signature].latency.value for change in changes)
        smaller = sum(costs[change.signature].size for change in changes)
        lighter = sum(costs[change.signature].memory for change in changes)
        menu.append((Choice(_named(changes), loss, (-saved, -smaller, -lighter)), changes))
    return menu


def _named(changes: Sequence[Change]) -> str:
    return ", ".join(change.name for change in changes) or "whole"


def _solved(menus: Sequence[Menu], budgets: Budgets, together: Sequence[float] = (1.0, 1.0, 1.0)) -> Point | None:
    """The plan of least loss within the budgets; each cost counts by its share in `together`."""
    scaled = [[tuple(cost * share for cost, share in zip(choice.costs, together, strict=True)) for choice, _ in menu] for menu in menus]
    groups = [
        [dataclasses.replace(choice, costs=costs) for (choice, _), costs in zip(menu, each, strict=True)] for menu, each in zip(menus, scaled, strict=True)
    ]
    latency, *others = budgets
    if any(budget is not None for budget in others):
        return within(groups, budgets)
    points = front(groups)
    kept = [point for point in points if latency is None or point.costs[0] <= latency]
    return min(kept, key=lambda point: point.loss, default=points[0])  # the fastest, where none seems fast enough: only timing it tells


def _choices(
    parts: Sequence[Part], menus: Sequence[Menu], point: Point, costs: Mapping[tuple[object, ...], Cost], harm: Mapping[Change, float], bench: Bench
) -> tuple[PartChoice, ...]:
    """The plan for the manifest: of each part what was taken, beside each single change and leaving it whole."""
    machine, found = bench.machine.fingerprint, []
    examples = min(HARDEST, len(bench.task.splits["validation"]))
    for part, menu, pick in zip(parts, menus, point.picks, strict=True):
        taken = menu[pick]
        shown = [one for one in menu if len(one[1]) <= 1 or one is taken]
        options = []
        for choice, changes in shown:
            spans = [costs[change.signature].latency for change in changes]
            n, how = min((one.n for one in spans), default=0), "estimated" if len(changes) > 1 else "measured"  # a sum of what was measured is no measurement
            value, low, high = (sum(getattr(one, end) for one in spans) for end in ("value", "low", "high"))
            saves = Measurement("saves", value, low, high, "ms", n, how, machine, bench.contract.level)  # type: ignore[arg-type]
            loss = sum(harm[change] for change in changes)
            hurts = Measurement("divergence", loss, loss, loss, "nats", examples, how, machine, 0.0)  # type: ignore[arg-type]
            _, size, memory = (-cost for cost in choice.costs)
            more = megabytes(size, memory, machine, summed=len(changes) > 1)
            options.append(PartOption(name=choice.name, loss=hurts, saves=saves, **more))
        found.append(PartChoice(part=part.name, chosen=taken[0].name, options=tuple(options)))
    return tuple(found)

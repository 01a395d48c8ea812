"""Escalation: when no way of running the model as it is keeps the contract, the model itself is changed, what takes least time here first.

Each rung says first whether it could help at all, by what was measured so far, and how long it would take here. The climb ends at the first rung that leaves
a row which keeps every limit; when `--spend` is used up no rung and no table is begun, a training ends with its best so far, and what it made is judged.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lissome.core.cache import digest
from lissome.core.errors import EnvironmentLacks, Interrupted, LissomeError, OutOfTime
from lissome.core.manifest import Option, PartChoice
from lissome.core.model import Model
from lissome.core.quantization import Quantized
from lissome.export.forms import MIXED
from lissome.optimize import precision, shrink
from lissome.optimize.bench import Bench, Variant
from lissome.optimize.costs import typical
from lissome.optimize.options import ORIGINAL
from lissome.optimize.remembered import recalled, remember
from lissome.optimize.sensitivity import Probe, probe_of
from lissome.optimize.solve import LIKELY, SURE, Solution, distance, latency_of, solve
from lissome.optimize.survey import finalists
from lissome.optimize.tables import Row, build_variant, measure_rows
from lissome.train.finetune import score_of

WAYS = 3
"""How many ways of running a changed model are tried: engine and precision."""
TABLE_S = 90.0
"""About what the tables of a rung take, before anything was timed: a guess, only used to compare with --spend."""


class CannotHelp(Exception):
    """A rung that cannot lead to the contract, or not in the time that is left; the message is the reason, as sentences."""


@dataclass(frozen=True)
class Shape:
    """A planned smaller model, not yet taught. options: the ways it is run in; step: how it was planned."""

    model: Model
    parts: tuple[PartChoice, ...]
    options: list[Option]
    step: str


@dataclass
class Climb:
    """Where the climb stands. rows: everything tried, the original first.

    quantized, steps: the int8 model that two rungs on precision build on, and how it came about. shape, small: the smaller model that a rung planned,
    and what it was after its last lessons, until it is quantised.
    """

    bench: Bench
    rows: list[Row]
    solution: Solution
    quantized: Quantized | None = None
    steps: list[str] = field(default_factory=list)
    shape: Shape | None = None
    small: Variant | None = None

    @functools.cached_property
    def probe(self) -> Probe:
        """The original on the hardest validation examples."""
        return probe_of(self.bench)

    @functools.cached_property
    def epoch(self) -> float:
        """Seconds that an epoch of training takes here at most; measured once and kept, so that the same contract climbs in the same order. 0: untaught."""
        if not self.bench.task.classes:
            return 0.0
        key = digest("epoch-1", self.bench.key(ORIGINAL), self.bench.task.fingerprint, self.bench.threads, self.bench.seed)
        stored: float | None = self.bench.cache.get("epochs", key)
        if stored is None:
            stored = shrink.seconds_per_epoch(self.bench)
            self.bench.cache.put("epochs", key, stored)
        return stored

    def solve(self, sure: float = SURE) -> Solution:
        """The solution over all rows so far."""
        return solve(self.rows, self.bench.contract, self.bench.machine.fingerprint, len(self.bench.task.splits["test"]), sure)

    def options(self) -> list[Option]:
        """Ways that run the model as it is: first what is nearest to the limits other than accuracy, of equals the fastest.

        Several of one engine too: a precision that is no faster for the whole model may be for a smaller one. Compiled ones are left out, as every shape
        would be compiled anew.
        """
        usable = [row for row in self.rows if row.usable and row.variant is None and row.keepable and row.option.engine != "torch.compile"]
        best: dict[tuple[str, str], Option] = {}
        for row in sorted(usable, key=lambda row: (distance(shrink.missed(self.bench, row)), latency_of(row, self.solution.name))):
            best.setdefault((row.option.engine, row.option.precision), row.option)
        return list(best.values())[:WAYS]


@dataclass(frozen=True)
class Rung:
    """One kind of change. climb: the new rows, built and scored but not timed; raises CannotHelp with the reason.

    seconds: about what it takes here. after: the rung that it builds on.
    """

    name: str
    climb: Callable[[Climb], list[Row]]
    seconds: Callable[[Climb], float] = lambda _: 0.0
    after: str | None = None


def escalate(bench: Bench, rows: list[Row], solution: Solution) -> Solution:
    """Climb until a row keeps every limit or nothing is left to try; `rows` grows by what was tried.

    What earlier contracts tried for the same model comes first: it costs nothing.
    """
    known = recalled(bench, rows[0])
    if known:
        earlier = Climb(bench, [*rows, *known], solution)
        finalists(bench, earlier.rows)
        found = earlier.solve()
        if found.ranked:
            bench.progress.say(f"Of {len(known)} ways that earlier contracts made of this model, {found.ranked[0].option.name} keeps every limit.")
            rows += known
            return found
    climb = Climb(bench, rows, solution)
    left = list(RUNGS)
    while left:
        if bench.time_is_up():
            bench.progress.say(f"Not tried: {', '.join(rung.name for rung in left)}. --spend is used up.")
            break
        rung = cheapest(left, climb)
        left.remove(rung)
        begun = time.perf_counter()
        try:
            new = rung.climb(climb)
        except CannotHelp as reason:
            bench.progress.say(f"Not tried: {rung.name}. {reason}.")
            continue
        except OutOfTime as error:
            bench.progress.say(f"Left out: {rung.name}. {error.what.rstrip('.')}; what it did so far is kept for the next contract.")
            continue
        except (EnvironmentLacks, Interrupted):
            raise
        except LissomeError as error:  # a pass that fails leaves the model as it was, and the climb goes on
            bench.progress.say(f"{rung.name} failed and was left out: {error.what}")
            continue
        measure_rows(bench, [rows[0], *new], rows[0], shrink.CHECK_ROUNDS)  # as a plan was timed: a wider interval would refuse what it promised
        rows += new
        finalists(bench, rows)
        remember(bench, new)
        climb.solution = climb.solve()
        bench.progress.say(f"{rung.name}: {time.perf_counter() - begun:.0f} s.")
        if climb.solution.ranked:
            return climb.solution
    likely = climb.solve(LIKELY)
    if likely.ranked:
        bench.progress.say(f"By validation {likely.ranked[0].option.name} keeps every limit, but not for sure: the test split will tell.")
        return likely
    return climb.solution


def cheapest(left: Sequence[Rung], climb: Climb) -> Rung:
    """Of the rungs that wait for no other, the one that takes least time here; the first of equals."""
    waiting = [rung.name for rung in left]
    ready = [rung for rung in left if rung.after not in waiting]
    return ready[0] if len(ready) == 1 else min(ready, key=lambda rung: rung.seconds(climb))


def check_time(bench: Bench, name: str, seconds: float, least: float | None = None) -> None:
    """Say how long something takes here; raise CannotHelp where --spend leaves less.

    least: seconds that are enough for a start, where --spend ends it early with what there is (None: all of it).
    """
    about = f"about {_duration(seconds)} here"
    if bench.time_is_up(seconds if least is None else least):
        first = "" if least is None or least >= seconds else f", about {_duration(least)} of it for a start"
        raise CannotHelp(f"It takes {about}{first}, and --spend leaves less")
    bench.progress.say(f"Next: {name}, {about}{', which --spend may cut short' if bench.time_is_up(seconds) else ''}.")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def mixed_options(climb: Climb) -> list[Option]:
    """Engines on which a precision per layer may help: where int8 keeps every limit but the one on accuracy, or came out too wrong to be timed.

    Raises CannotHelp without one.
    """
    if climb.bench.contract.limit("max_drop") is None:
        raise CannotHelp("It makes int8 more accurate, and there is no limit on accuracy")
    if climb.bench.model.architecture.kind == "exported":
        raise CannotHelp("A module in memory could not be built again; give a factory")
    found: dict[str, Option] = {}
    int8 = [row for row in climb.rows if row.variant is None and row.option.engine in MIXED and row.option.precision.startswith("int8")]
    timed = sorted((row for row in int8 if row.result is not None and not row.result.failed), key=lambda row: latency_of(row, climb.solution.name))
    wrong = [row for row in int8 if row.result is None and row.parity is not None and not row.parity.ok]
    for row in (*timed, *wrong):
        if row in wrong or not shrink.missed(climb.bench, row):
            found.setdefault(row.option.engine, Option(engine=row.option.engine, precision="mixed", padding=row.option.padding))
    if not found:
        raise CannotHelp("Even with every layer in int8, the limits other than accuracy are missed")
    return list(found.values())


def better_scales(climb: Climb) -> list[Row]:
    """Static int8 with the best of several ways to find scales."""
    options = mixed_options(climb)
    check_time(climb.bench, "better int8 scales", TABLE_S)
    climb.quantized, step = precision.best_scales(climb.bench, climb.probe)
    climb.steps.append(step)
    return build_variant(precision.varied(climb.bench, climb.quantized, "scales searched", (), climb.steps), options)


def layers_in_float(climb: Climb) -> list[Row]:
    """The layers whose rounding costs most accuracy for the least time are left in float."""
    options = mixed_options(climb)
    if climb.quantized is None:
        raise CannotHelp("There is no int8 model to start from")
    check_time(climb.bench, "sensitive layers in float", 2 * TABLE_S)
    found = precision.table(climb.bench, climb.quantized, options[0], climb.probe)
    rows: list[Row] = []
    for point in precision.plans(found, _room(climb, found)):
        rows += build_variant(precision.planned(climb.bench, climb.quantized, found, point, climb.steps), options[:1])
    if not rows:
        raise CannotHelp("No layer can be left in float within the limit on latency")
    return rows


def quantised_training(climb: Climb) -> list[Row]:
    """The int8 model trained with its rounding in place."""
    options = mixed_options(climb)
    if climb.quantized is None or not climb.bench.task.classes:
        raise CannotHelp("There is no int8 classifier to start from")
    check_time(climb.bench, "training with int8 in place", 2 * precision.QAT_EPOCHS * climb.epoch)
    trained, change, step = precision.trained(climb.bench, climb.quantized, climb.bench.model)
    return build_variant(precision.varied(climb.bench, trained, change, (), (*climb.steps, step)), options)


def prune_and_distil(climb: Climb) -> list[Row]:
    """A smaller shape that keeps the limits on speed and size, taught by the original."""
    bench = climb.bench
    if not bench.task.classes:
        raise CannotHelp("It teaches classifiers so far, and the task has no classes")
    if bench.model.architecture.kind == "exported":
        raise CannotHelp("A module in memory could not be built again; give a factory")
    if (bench.contract.limit("size") or bench.contract.limit("memory")) and importlib.util.find_spec("scipy") is None:
        raise CannotHelp('A limit on size or memory beside others is solved by scipy, which is not installed: pip install "lissome[plan]"')
    options = climb.options()
    check_time(bench, "tables of what can shrink", 2 * TABLE_S)
    mixed = int8_by_layer(options) if bench.contract.limit("max_drop") else []
    base = shrink.ground(bench, climb.rows[0], [*options, *mixed])
    if base.floor.trouble is not None:
        raise CannotHelp(f"The smallest shape of the model does not run under {base.option.name}: {base.floor.trouble}")
    over = shrink.missed(bench, base.floor)
    if over:
        raise CannotHelp(f"Even the smallest shape of the model under {base.option.name} misses {over[0].limit}: {over[0].figure}")
    epochs = shrink.epochs(bench, shrink.EPOCHS)
    check_time(bench, "prune and distil", epochs * climb.epoch + TABLE_S, climb.epoch + TABLE_S)
    begun = time.perf_counter()
    found = shrink.plan(bench, base, climb.probe)
    if found is None:
        raise CannotHelp("No combination of smaller parts is fast and small enough")
    smaller, parts, point = found
    step = f"{shrink.words(parts)}, planned for {base.option.name} in {time.perf_counter() - begun:.0f} s ({point.loss:.2g} nats before teaching)"
    climb.shape = Shape(smaller, parts, options, step)
    return taught_rows(climb, climb.shape, epochs)


def distil_longer(climb: Climb) -> list[Row]:
    """The same smaller shape, taught for longer."""
    shape = climb.shape
    if shape is None:
        raise CannotHelp("There is no smaller shape to teach")
    tried = [row for row in climb.rows if row.variant and row.usable and row.variant.parts == shape.parts]
    if climb.solve(LIKELY).ranked:
        raise CannotHelp("The smaller shape is likely to keep every limit already")
    if not any(not shrink.missed(climb.bench, row) for row in tried):
        raise CannotHelp("The smaller shape misses more than the limit on accuracy")
    epochs = shrink.epochs(climb.bench, shrink.LONG)
    check_time(climb.bench, "longer lessons for the smaller model", epochs * climb.epoch, climb.epoch)
    return taught_rows(climb, shape, epochs)


def int8_by_layer(options: Sequence[Option]) -> list[Option]:
    """The engines of some ways, each with lissome's own int8 graph, where they can run it."""
    found: dict[str, Option] = {}
    for one in options:
        if one.engine in MIXED:
            found.setdefault(one.engine, Option(engine=one.engine, precision="mixed", padding=one.padding))
    return list(found.values())


def taught_rows(climb: Climb, shape: Shape, epochs: float) -> list[Row]:
    """The rows of a smaller shape after `epochs` of teaching."""
    climb.small = shrink.taught(climb.bench, shape.model, shrink.words(shape.parts), shape.parts, epochs, (shape.step,))
    return build_variant(climb.small, shape.options)


def small_in_int8(climb: Climb) -> list[Row]:
    """The smaller model in static int8 with the best of several ways to find scales, and the same after training with its rounding in place."""
    bench, shape, limit = climb.bench, climb.shape, climb.bench.contract.limit("max_drop")
    small, climb.small = climb.small, None
    if small is None or shape is None:
        raise CannotHelp("There is no smaller model to quantise")
    options = int8_by_layer(shape.options)
    if limit is None or not options:
        raise CannotHelp("It makes int8 more accurate, and that is not what is missing")
    assert climb.rows[0].scores is not None
    was = float(climb.rows[0].scores.mean())
    drop = was - score_of(small.bench.model.module, bench.task)
    if drop > limit.bound / 100 * (was if limit.relative else 1):
        raise CannotHelp(f"Even in float the smaller model loses {100 * drop:.2f} points on validation")
    check_time(bench, "the smaller model in int8", 2 * precision.QAT_EPOCHS * climb.epoch + TABLE_S)
    quantized, step = precision.best_scales(small.bench, climb.probe)
    calibrated = precision.varied(small.bench, quantized, f"{small.change}, int8 scales searched", small.parts, (*small.steps, step))
    rows = build_variant(calibrated, options)
    try:
        trained, change, lesson = precision.trained(small.bench, quantized, bench.model)
    except OutOfTime as error:
        bench.progress.say(f"Without training: {error.what}")
        return rows
    learned = precision.varied(small.bench, trained, f"{small.change}, {change}", small.parts, (*small.steps, step, lesson))
    return [*rows, *build_variant(learned, options)]


def _room(climb: Climb, found: precision.Table) -> float | None:
    """Milliseconds that a median call may take more than the int8 model's, all from the table's own run; None without a limit.

    A limit on the 95th percentile is turned into one on the median by how far apart the two are for the int8 model.
    """
    limit = climb.bench.contract.limit("latency")
    if limit is None:
        return None
    now, machine = typical(found.whole), climb.bench.machine.fingerprint
    if limit.relative:
        allowed = typical(found.original) / limit.bound
    else:
        own = found.whole.figure(limit.name, machine)
        assert own is not None
        allowed = limit.bound * now / own.value
    return shrink.SPARE * allowed - now


SCALES, TRAINED, SMALLER, LONGER = "better int8 scales", "training with int8 in place", "prune and distil", "distil for longer"
RUNGS = (
    Rung(SCALES, better_scales, lambda _: TABLE_S),
    Rung("sensitive layers in float", layers_in_float, lambda _: 2 * TABLE_S, SCALES),
    Rung(TRAINED, quantised_training, lambda climb: 2 * precision.QAT_EPOCHS * climb.epoch, SCALES),
    Rung(SMALLER, prune_and_distil, lambda climb: 3 * TABLE_S + shrink.epochs(climb.bench, shrink.EPOCHS) * climb.epoch, TRAINED),  # which is always less
    Rung("the smaller model in int8", small_in_int8, lambda climb: TABLE_S + 2 * precision.QAT_EPOCHS * climb.epoch, SMALLER),
    Rung(LONGER, distil_longer, lambda climb: shrink.epochs(climb.bench, shrink.LONG) * climb.epoch, SMALLER),
    Rung("the longer taught model in int8", small_in_int8, lambda climb: TABLE_S + 2 * precision.QAT_EPOCHS * climb.epoch, LONGER),
)

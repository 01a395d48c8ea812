"""The pass: train exits, choose their thresholds where validation certifies them, judge once on the test split, measure the time, write a folder."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lissome.compress.batches import forward, inputs_of
from lissome.compress.exits.choose import Answers, certified, nearest_yes, path_of
from lissome.compress.exits.config import ExitsConfig
from lissome.compress.exits.train import train_exits
from lissome.compress.quality import check_enough, judged, needed, scores_of
from lissome.core.cache import Cache, check_out, digest, record_use, writing
from lissome.core.errors import BadModel
from lissome.core.measurement import Measurement
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent
from lissome.core.record import write_record
from lissome.core.statistics import DropTest, certify_drop
from lissome.core.task import SplitName, Task
from lissome.data import load_task
from lissome.machine.identity import identify
from lissome.machine.interleave import interleave, speedup
from lissome.nn.depth.blocks import find_blocks
from lissome.nn.depth.complexity import Complexity, fit_complexity, vocabulary_of
from lissome.nn.depth.confidence import NEVER, confidence
from lissome.nn.depth.exits import IDS, MASK, Exits, with_exits
from lissome.nn.depth.store import as_exits_model, save_exits
from lissome.nn.load import load_model, save_model
from lissome.train.batches import LABELS, Batches

RECORD = "exits.json"
Status = Literal["met", "not met", "no"]
TEXTS = 4000
"""Train texts that complexity is fitted on at the most."""


@dataclass(frozen=True)
class Exit:
    """One exit, or the end of the model. after: blocks below it; threshold: confidence from which rows leave, None: closed, or the end; share: of the test
    split's rows that leave here (of validation's where the test split was not asked); score: their mean score, None where there are none."""

    after: int
    threshold: float | None
    share: float
    score: float | None


@dataclass(frozen=True)
class Exited:
    """What came of it.

    folder: what `load_model` opens. status: "met": the folder's model has exits and keeps the score; "not met": the test split did not confirm it; "no": no
    thresholds were certified, or they save no time here. Where it is not "met" the folder holds the model as it was. sentence: the verdict; nearest: the
    nearest yes, "" where it is not needed. saved: time saved in % by rows of a batch, measured; blocks: mean share of the blocks that a row runs.
    drop: in points, on the test split. scores: mean scores there, of the original and with exits. choices: points of the path that were certified, of all.
    """

    folder: str
    status: Status
    sentence: str
    nearest: str
    rule: str
    max_drop: float
    exits: tuple[Exit, ...]
    blocks: float
    saved: dict[str, Measurement]
    drop: Measurement | None
    scores: tuple[float, float] | None
    choices: tuple[int, int]
    seconds: float
    fingerprint: str


def exits_to(out: Path, model: str, task: str, config: ExitsConfig | None = None, cache: Cache | None = None, progress: Progress | None = None) -> Exited:
    """Give the model that `model` names exits that keep its score on the task that `task` names, and write it into `out`.

    Raises BadInput where `out` holds something else, and what load_model, load_task and exit_early raise.
    """
    check_out(out, RECORD)
    config = config or ExitsConfig()
    start = load_model(model)
    loaded = load_task(task, start.directory)
    made, found = exit_early(start, loaded, config, cache, progress)
    found = dataclasses.replace(found, folder=str(out))
    with writing("the model", out):
        save_exits(made, out) if isinstance(made.module, Exits) else save_model(made, out)
        write_record(out / RECORD, found, config, start.fingerprint, loaded.fingerprint)
    return found


def exit_early(
    model: Model, task: Task, config: ExitsConfig | None = None, cache: Cache | None = None, progress: Progress | None = None
) -> tuple[Model, Exited]:
    """`model` with exits after some blocks whose thresholds are certified to cost at most `config.max_drop`; else `model` as it was.

    The heads learn on the train split, the path of thresholds is made on calibration, its boldest certified point is found on validation, and the test split
    judges that one, once. Raises BadModel for a model without blocks or class logits, BadTask for a task too small to certify anything.
    """
    config, cache, progress = config or ExitsConfig(), cache or Cache(), progress or Silent()
    alpha, delta = config.max_drop, 1 - config.confidence
    check_enough(task, alpha, {"validation": delta, "test": delta})
    work = _Work(model, task, config, cache, progress)
    exits, seconds = work.trained()
    answers = {split: work.answers(exits, split) for split in ("calibration", "validation")}
    costs = np.array([*exits.after, exits.depth], dtype=np.float64) / exits.depth
    path = path_of(answers["calibration"], costs)
    seen = answers["validation"]
    at = certified(seen, path, alpha, delta, config.risk, task.exact, task.ref)
    thresholds = path[at or 0]
    found = Exited(
        "", "no", "", "", config.rule, alpha, _table(exits, seen, thresholds), float(costs[seen.taken(thresholds)].mean()), {}, None, None,
        (0 if at is None else at + 1, len(path)), seconds, model.fingerprint,
    )  # fmt: skip
    if at is None or found.blocks == 1:
        return model, dataclasses.replace(
            found, sentence=_no(found, seen, delta), nearest=_nearest(nearest_yes(seen, path, costs, delta, config.risk, task.exact))
        )
    exits.leave_at(thresholds.tolist())
    work.check_rows(exits)
    found = dataclasses.replace(found, saved=work.saved(exits))
    if all(one.low <= 0 for one in found.saved.values()):
        figures = ", ".join(f"{one.value:.1f} % [{one.low:.1f}, {one.high:.1f}] at {name}" for name, one in found.saved.items())
        return model, dataclasses.replace(found, sentence=f"NO   the exits are certified but save no time here: {figures}. The model was left as it was.")
    made = as_exits_model(exits, model)
    return work.judged(made, exits, found)


@dataclass
class _Work:
    model: Model
    task: Task
    config: ExitsConfig
    cache: Cache
    progress: Progress

    def trained(self) -> tuple[Exits, float]:
        """A copy of the model with trained heads, and the seconds it took."""
        module = copy.deepcopy(self.model.module)
        batches = Batches(self.task, "train", self.config.size, seed=self.config.train.seed)
        example = inputs_of(batches.batch([0, 1]))
        _, every = find_blocks(module, self.config.blocks)
        after = self.config.after or tuple(sorted({max(1, len(every) // 3), max(1, len(every) // 2), max(1, 2 * len(every) // 3)}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            by_answer = "max-probability" if self.config.rule == "complexity" else self.config.rule
            exits = with_exits(module, after, example, rule=by_answer, blocks=self.config.blocks, inner=self.config.inner)
        key = digest("exits", 1, self.model.fingerprint, self.task.fingerprint, exits.spec(), self.config.model_dump(mode="json"), torch.__version__)
        self.progress.stage("training the exits")
        result = train_exits(exits, batches, self.config, resume=self.cache.path("training", key), progress=self.progress, identity=key)
        exits.eval()
        if self.config.rule == "complexity":
            exits.rule, exits.complexity = "complexity", self.complexity(exits)
        return exits, result.seconds

    def complexity(self, exits: Exits) -> Complexity:
        """Complexity fitted on train texts; hard are those which the first exit gets wrong and the whole model does not."""
        from lissome.data.tokens import open_tokenizer

        if self.model.directory is None:
            raise BadModel("complexity is told by the model's tokenizer, and it has none", where=self.model.ref, do="choose another rule")
        self.progress.stage("fitting the complexity")
        tokenizer, _ = open_tokenizer(self.model.directory, self.model.ref)
        batches = Batches(self.task, "train", 64, shuffle=False)
        drawn = np.random.default_rng(self.config.train.seed).permutation(len(batches.split))[:TEXTS]
        drawn = drawn[np.argsort(batches.lengths[drawn], kind="stable")]
        texts: list[list[int]] = []
        hard: list[bool] = []
        for begin in range(0, len(drawn), 64):
            batch = batches.batch(drawn[begin : begin + 64])
            if IDS not in batch:
                raise BadModel("complexity is told by token ids, and the task's inputs have none", where=self.task.ref, do="choose another rule")
            mask = batch.get(MASK, torch.ones_like(batch[IDS]))
            texts += [ids[kept.bool()].tolist() for ids, kept in zip(batch[IDS], mask, strict=True)]
            with torch.inference_mode():
                said = [one.argmax(-1) for one in exits.all_logits(inputs_of(batch))]
            hard += ((said[0] != batch[LABELS]) & (said[-1] == batch[LABELS])).tolist()
        return fit_complexity(texts, vocabulary_of(tokenizer), np.array(hard))

    def answers(self, exits: Exits, split: SplitName) -> Answers:
        """Confidences and scores of all exits on a split, and the original's scores."""
        self.progress.stage(f"scoring {split}")
        batches = Batches(self.task, split, self.config.size, shuffle=False)
        count, targets = len(self.task.splits[split]), np.asarray(self.task.splits[split].targets)
        sure, scores = np.empty((len(exits.after), count)), np.empty((len(exits.after) + 1, count))
        for rows in batches.rows(0):
            inputs = inputs_of(batches.batch(rows))
            with torch.inference_mode():
                every = exits.all_logits(inputs)
                simple = 1 - exits.complexity(inputs[IDS], inputs.get(MASK)) if exits.rule == "complexity" and exits.complexity else None
                for number, logits in enumerate(every):
                    scores[number, rows] = self.task.score(logits.float().numpy(), targets[rows])
                    if number < len(exits.after):
                        finite = torch.isfinite(logits).all(-1)
                        told = confidence(logits, exits.rule) if simple is None else torch.where(finite, simple, torch.nan)
                        sure[number, rows] = told.numpy()
        original = scores[-1] if self.config.frozen else scores_of(self.model.module, self.task, split, self.config.size)
        return Answers(sure, scores, original)

    def check_rows(self, exits: Exits) -> None:
        """Raise BadModel where leaving changes what the rows that stay are told."""
        batch = inputs_of(Batches(self.task, "validation", 7, shuffle=False).batch(range(min(7, len(self.task.splits["validation"])))))
        with torch.inference_mode():
            found = exits(**batch)
            every = torch.stack(exits.all_logits(batch))
        expected = every[exits.taken, torch.arange(len(found))]
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise BadModel(
                "rows that stay are told something else when others leave: the blocks' arguments are not all laid out by rows",
                where=self.model.ref,
                do="name another list of blocks, or write the model so that a block's inputs have the batch first",
            )

    def saved(self, exits: Exits) -> dict[str, Measurement]:
        """Share of the time that is saved, in %, with one row and with 32 a batch, on validation rows drawn by lot."""
        self.progress.stage("timing")
        drawn = np.random.default_rng(0).permutation(len(self.task.splits["validation"]))
        return {name: time_saved(self.model, exits, self.task, drawn, size, self.config.seconds) for name, size in (("batch 1", 1), ("batch 32", 32))}

    def judged(self, made: Model, exits: Exits, found: Exited) -> tuple[Model, Exited]:
        """The test split, once."""
        self.progress.stage("the test split, once")
        task, delta = self.task, 1 - self.config.confidence
        times = record_use(self.cache, task.fingerprint, self.model.fingerprint, f"exits {made.fingerprint}")
        before = scores_of(self.model.module, task, "test", self.config.size)
        after, taken = _run(exits, task, self.config.size)
        level = 1 - delta / times  # each further plan judged by this split has to clear a higher bar
        if self.config.risk == "lost":
            test = judged(before, after, task, found.max_drop, delta, times)
        else:
            test = certify_drop(before, after, found.max_drop, level, task.exact)
        drop = Measurement("drop", 100 * test.drop, 100 * test.low, 100 * test.upper, "pt", test.n, "measured", identify().fingerprint, 2 * level - 1)
        shares = tuple(
            dataclasses.replace(one, share=float((taken == at).mean()), score=float(after[taken == at].mean()) if (taken == at).any() else None)
            for at, one in enumerate(found.exits)
        )
        costs = np.array([one.after for one in found.exits]) / exits.depth
        status: Status = "met" if test.certified else "not met"
        found = dataclasses.replace(
            found, status=status, sentence=_verdict(test, times, self.config), drop=drop, exits=shares, blocks=float(costs[taken].mean()),
            scores=(float(before.mean()), float(after.mean())),
        )  # fmt: skip
        return (made, dataclasses.replace(found, fingerprint=made.fingerprint)) if test.certified else (self.model, found)


def time_saved(model: Model, exits: Exits, task: Task, drawn: np.ndarray, size: int, seconds: float) -> Measurement:
    """Share of the time in % that `exits` saves against `model` on 96 of the rows `drawn` of validation in batches of `size`, interleaved."""
    batches = Batches(task, "validation", size, shuffle=False)
    given = [inputs_of(batches.batch(drawn[begin : begin + size])) for begin in range(0, min(96, len(drawn)), size)]

    def passes(module: torch.nn.Module) -> None:
        with torch.inference_mode():
            for inputs in given:
                forward(module, inputs)

    taken = interleave({"whole": lambda: passes(model.module), "exits": lambda: passes(exits)}, seconds)
    found = speedup(taken["whole"], taken["exits"], identify().fingerprint)
    value, low, high = (100 * (1 - 1 / one) for one in (found.value, found.low, found.high))
    return dataclasses.replace(found, name="time saved", value=value, low=low, high=high, unit="%")


def _run(exits: Exits, task: Task, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and exits of the test split, as the model really runs."""
    batches = Batches(task, "test", size, shuffle=False)
    targets = np.asarray(task.splits["test"].targets)
    scores, taken = np.empty(len(targets)), np.empty(len(targets), dtype=np.int64)
    for rows in batches.rows(0):
        with torch.inference_mode():
            logits = forward(exits, batches.batch(rows))
        scores[rows] = task.score(logits.float().numpy(), targets[rows])
        taken[rows] = exits.taken.numpy()
    return scores, taken


def _table(exits: Exits, answers: Answers, thresholds: np.ndarray) -> tuple[Exit, ...]:
    taken, outcome = answers.taken(thresholds), answers.outcome(thresholds)
    closed = [None if one >= NEVER else float(one) for one in thresholds]
    return tuple(
        Exit(after, threshold, float((taken == at).mean()), float(outcome[taken == at].mean()) if (taken == at).any() else None)
        for at, (after, threshold) in enumerate(zip((*exits.after, exits.depth), (*closed, None), strict=True))
    )


def _verdict(test: DropTest, times: int, config: ExitsConfig) -> str:
    what = "accuracy drop" if config.risk == "drop" else "right answers lost"
    often = "seen once" if times == 1 else f"seen {times} times"
    figures = f"measured {100 * test.drop:.2f}, upper bound {100 * test.upper:.2f}, n = {test.n:,} test examples, {often}"
    said = f"{what} <= {100 * test.margin:.4g} pt ({100 * config.confidence:.3g} %): {figures}"
    return f"MET   {said}" if test.certified else f"NOT MET   {said}. The model was left as it was."


def _no(found: Exited, seen: Answers, delta: float) -> str:
    n, least = len(seen.original), needed(found.max_drop, delta)
    whole = float(seen.scores[-1].mean() - seen.original.mean())
    shift = f" Trained with its exits, the whole model scores {100 * whole:+.2f} pt." if whole else ""
    return (
        f"NO   no exit is certain enough to cost at most {100 * found.max_drop:.4g} pt, by {n:,} validation examples (at least {least:,} are "
        f"needed, more where answers change).{shift} The model was left as it was."
    )


def _nearest(yes: tuple[float, float] | None) -> str:
    if yes is None:
        return "No loss up to 10 pt would be certified for exits that save a block in a hundred."
    return f"Nearest yes: --max-drop {100 * yes[0]:.1f}% would leave out {100 * yes[1]:.0f} % of the blocks, by what validation says."

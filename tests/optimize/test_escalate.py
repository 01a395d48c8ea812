"""The climb on the small problem. Contracts here limit size and accuracy: a test never depends on a time."""

from __future__ import annotations

import shutil

import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.errors import BadModel
from lissome.core.manifest import Option, read_manifest
from lissome.core.measurement import Measurement
from lissome.data import load_task
from lissome.engines.artifact import open_artifact
from lissome.machine.identity import identify
from lissome.nn.load import load_model
from lissome.optimize import escalate, shrink
from lissome.optimize.bench import make_bench
from lissome.optimize.escalate import CannotHelp, check_time
from lissome.optimize.options import ORIGINAL
from lissome.optimize.recheck import verify
from lissome.optimize.run import optimize
from lissome.optimize.sensitivity import probe_of
from lissome.optimize.solve import Reading
from lissome.optimize.tables import built


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _apart(here, own_cache, monkeypatch):
    """A cache apart: what is judged here does not count as a use of the test split elsewhere. No test finds what another made."""
    shutil.rmtree(own_cache / "variants", ignore_errors=True)
    monkeypatch.setenv("LISSOME_CACHE", str(own_cache))


class Heard:
    """Progress that remembers what was said."""

    def __init__(self):
        self.said = []

    def stage(self, text, total=None):
        pass

    def step(self, n=1, note=""):
        pass

    def say(self, text):
        self.said.append(text)


def test_a_size_that_int8_alone_cannot_keep_is_met_by_pruning_and_teaching(here, tmp_path):
    heard = Heard()
    result = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="3%", size="5x"), out=tmp_path / "artifact", progress=heard)
    assert result.verdict.status == "met"
    assert any(text.startswith("Next: prune and distil, about") for text in heard.said)
    assert "Not tried: better int8 scales. Even with every layer in int8, the limits other than accuracy are missed." in heard.said
    manifest = read_manifest(result.folder)
    assert "distilled" in manifest.plan.name
    assert any("neurons" in part.chosen for part in manifest.parts)
    assert all(part.taken.loss.value >= 0 for part in manifest.parts)
    assert len(manifest.steps) == 2
    assert load_model(str(result.folder / "changed")).fingerprint != load_model(str(result.folder)).fingerprint == manifest.model.fingerprint
    assert verify(result.folder).verdict.status == "met"


def test_accuracy_that_int8_loses_is_met_by_better_scales(here, tmp_path):
    heard = Heard()
    result = optimize("tiny_model:outlier", str(here / "task.yaml"), Contract(max_drop="3%", size="2x"), out=tmp_path / "artifact", progress=heard)
    assert result.verdict.status == "met"
    assert result.manifest.plan.precision == "mixed"
    assert result.manifest.plan.change == "scales searched"
    assert "int8 scales by" in result.manifest.steps[0]
    int8 = [row.outcome for row in result.manifest.tried if row.option.engine == "onnxruntime" and row.option.precision.startswith("int8")]
    assert set(int8) <= {"over limit", "failed"}
    assert open_artifact(result.folder).predict([[1.0, 1, 0, 0, 0, 0]])[0]["label"] == "right"
    assert verify(result.folder).verdict.status == "met"


def test_the_smaller_model_in_int8(here, tmp_path, monkeypatch):
    """Where the smaller model keeps the limits in no precision of the whole, its scales are searched and it is trained with them."""
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))  # where no earlier contract made what keeps this one
    heard = Heard()
    rungs = (escalate.Rung("prune and distil", lambda climb: escalate.prune_and_distil(climb)[:0]), escalate.Rung("in int8", escalate.small_in_int8))
    monkeypatch.setattr(escalate, "RUNGS", rungs)
    monkeypatch.setattr(shrink, "SPARE", 0.8)  # in so small a graph the scales of its layers weigh a tenth of the file
    result = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="3%", size="4.5x"), out=tmp_path / "artifact", progress=heard)
    assert result.verdict.status == "met"
    assert result.manifest.plan.precision == "mixed"
    assert "distilled 4 epochs, " in result.manifest.plan.change
    assert {row.option.change.rsplit(", ")[-1] for row in result.manifest.tried if row.option.change} == {"int8 scales searched", "trained in int8"}
    assert verify(result.folder).verdict.status == "met"


def test_a_new_limit_takes_what_an_earlier_contract_made(here, tmp_path, monkeypatch):
    """The second contract finds the taught model without a rung; with another seed, or another batch size, nothing is known."""
    first = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="3%", size="5x"), out=tmp_path / "first")
    heard = Heard()
    monkeypatch.setattr(escalate, "RUNGS", ())
    second = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="4%", size="4.9x"), out=tmp_path / "second", progress=heard)
    assert second.verdict.status == "met"
    assert second.manifest.plan == first.manifest.plan
    assert (second.manifest.steps, second.manifest.parts) == (first.manifest.steps, first.manifest.parts)
    assert any(text.startswith("Of ") and text.endswith(f"{first.manifest.plan.name} keeps every limit.") for text in heard.said)
    assert verify(second.folder).verdict.status == "met"
    other = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="4%", size="4.9x", batch=2), out=tmp_path / "third")
    assert other.verdict.status == "infeasible"


def test_a_quantised_model_is_remembered_with_its_scales(here, tmp_path, monkeypatch):
    task = str(here / "task.yaml")
    first = optimize("tiny_model:outlier", task, Contract(max_drop="3%", size="2x"), out=tmp_path / "first")
    monkeypatch.setattr(escalate, "RUNGS", ())
    second = optimize("tiny_model:outlier", task, Contract(max_drop="3.5%", size="2x"), out=tmp_path / "second")
    assert (second.verdict.status, second.manifest.plan) == ("met", first.manifest.plan)
    assert verify(second.folder).verdict.status == "met"


def test_what_left_the_cache_is_not_recalled(here, tmp_path, monkeypatch, own_cache):
    task = str(here / "task.yaml")
    optimize("tiny_model:build", task, Contract(max_drop="3%", size="5x"), out=tmp_path / "first")
    monkeypatch.setattr(escalate, "RUNGS", ())
    Cache(own_cache).clear("distill")
    gone = optimize("tiny_model:build", task, Contract(max_drop="4%", size="4.9x"), out=tmp_path / "second")
    assert gone.verdict.status == "infeasible"


@pytest.mark.parametrize(("small", "contract", "reason"), [
    (False, Contract(max_drop="3%", size="5x"), "There is no smaller model to quantise"),
    (True, Contract(size="5x"), "that is not what is missing"),
    (True, Contract(max_drop="3%", size="5x"), r"Even in float the smaller model loses \d+\.\d\d points on validation"),
])  # fmt: skip
def test_why_the_smaller_model_in_int8_cannot_help(here, small, contract, reason):
    from lissome.core.manifest import Option
    from lissome.nn.load import as_model
    from lissome.optimize.bench import vary
    from lissome.optimize.escalate import Climb, Shape, small_in_int8
    from lissome.optimize.tables import build_rows

    bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), contract, identify(), Cache(), Heard())
    blank = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    torch.nn.init.zeros_(blank[1].weight)
    climb = Climb(bench, build_rows(bench, []), None)
    if small:
        climb.shape, climb.small = Shape(bench.model, (), [Option(engine="onnxruntime", precision="fp32")], ""), vary(bench, as_model(blank.eval()), "blank")
    with pytest.raises(CannotHelp, match=reason):
        small_in_int8(climb)


def test_a_pass_that_fails_is_left_out_and_the_climb_goes_on(here, tmp_path, monkeypatch):
    heard = Heard()

    def broken(climb):
        raise BadModel("the pass gave NaN", where="net.2")

    monkeypatch.setattr(escalate, "RUNGS", (escalate.Rung("first", broken), escalate.Rung("second", broken)))
    result = optimize("tiny_model:build", str(here / "task.yaml"), Contract(max_drop="3%", size="5x"), out=tmp_path / "artifact", progress=heard)
    assert result.verdict.status == "infeasible"
    assert [text for text in heard.said if "left out" in text] == [f"{name} failed and was left out: the pass gave NaN" for name in ("first", "second")]


def test_what_takes_longer_than_is_left_is_not_begun(here):
    heard = Heard()
    task = load_task(str(here / "task.yaml"))
    bench = make_bench(load_model("tiny_model:build"), task, Contract(size="5x", spend="10s"), identify(), Cache(), heard)
    with pytest.raises(CannotHelp, match="It takes about 3 min here, and --spend leaves less"):
        check_time(bench, "something", 180)
    check_time(bench, "something", 2)
    assert heard.said == ["Next: something, about 2 s here."]


def test_a_plan_that_is_off_is_solved_again_for_a_tighter_limit(here, monkeypatch):
    """The first shape that is built misses the limit on size; the next one is smaller, and where it is too small by far, one between is tried."""
    heard, asked = Heard(), []
    bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(size="2x"), identify(), Cache(), heard)
    base = shrink.ground(bench, built(bench, ORIGINAL), [Option(engine="onnxruntime", precision="fp32")])
    solved = shrink._solved
    monkeypatch.setattr(shrink, "_solved", lambda menus, budgets, together: asked.append(budgets[1]) or solved(menus, budgets, together))
    real = shrink.missed
    size = Contract(size="2x").limit("size")
    monkeypatch.setattr(shrink, "missed", lambda bench, row, share: [Reading(size, 3.0, 1.5, None)] if len(asked) < 2 else real(bench, row, share))
    assert shrink.plan(bench, base, probe_of(bench)) is not None
    assert asked[1] < asked[0] < 0
    assert all(asked[1] < one < asked[0] for one in asked[2:])


def test_a_plan_whose_median_alone_keeps_a_limit_is_taken_where_none_is_surer(here, monkeypatch):
    bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(size="2x"), identify(), Cache(), Heard())
    base = shrink.ground(bench, built(bench, ORIGINAL), [Option(engine="onnxruntime", precision="fp32")])
    figure = Measurement("size", 2.1, 1.9, 2.3, "x", 9, "measured", "any", 0.95)
    monkeypatch.setattr(shrink, "missed", lambda bench, row, share: [Reading(Contract(size="2x").limit("size"), 1.9, 2 / 1.9, figure)])
    assert shrink.plan(bench, base, probe_of(bench)) is not None
    monkeypatch.setattr(shrink, "missed", lambda bench, row, share: [Reading(Contract(size="3x").limit("size"), 1.9, 3 / 1.9, figure)])
    assert shrink.plan(bench, base, probe_of(bench)) is None


def test_an_option_that_cannot_be_built_is_not_planned_for(here, monkeypatch):
    heard = Heard()
    bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(size="2x"), identify(), Cache(), heard)
    plain, mixed = Option(engine="onnxruntime", precision="fp32"), Option(engine="onnxruntime", precision="mixed")
    original = built(bench, ORIGINAL)
    base = shrink.ground(bench, original, [plain, mixed])
    assert base.option == mixed, "in int8 it has to shrink least"
    assert base.floor.size < base.base.size < original.size
    real = shrink.variant_row

    def refusing(bench, model, option):
        if option == mixed:
            raise BadModel("nothing in it can be quantised")
        return real(bench, model, option)

    monkeypatch.setattr(shrink, "variant_row", refusing)
    assert shrink.ground(bench, original, [mixed, plain]).option == plain
    assert "Not planned for onnxruntime mixed: nothing in it can be quantised" in heard.said
    with pytest.raises(BadModel, match="can be quantised"):
        shrink.ground(bench, original, [mixed])


@pytest.mark.parametrize(("epoch", "order"), [
    (600, ["scales", "float", "trained", "smaller", "small int8", "longer", "longer int8"]),
    (60, ["scales", "trained", "float", "smaller", "small int8", "longer", "longer int8"]),
    (1, ["scales", "trained", "float", "smaller", "longer", "small int8", "longer int8"]),
])  # fmt: skip
def test_of_two_rungs_that_build_on_one_the_shorter_comes_first(here, tmp_path, monkeypatch, epoch, order):
    monkeypatch.setattr(shrink, "seconds_per_epoch", lambda bench: epoch)
    bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(size="5x"), identify(), Cache(tmp_path), Heard())
    climb, left, found = escalate.Climb(bench, [], None), list(escalate.RUNGS), []
    while left:
        found.append(escalate.cheapest(left, climb))
        left.remove(found[-1])
    names = ["scales", "float", "trained", "smaller", "small int8", "longer", "longer int8"]
    assert [names[escalate.RUNGS.index(rung)] for rung in found] == order


def test_the_time_of_an_epoch_is_measured_once(here, tmp_path, monkeypatch):
    times = iter([7.0])
    monkeypatch.setattr(shrink, "seconds_per_epoch", lambda bench: next(times))
    for _ in range(2):
        bench = make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(size="5x"), identify(), Cache(tmp_path), Heard())
        assert escalate.Climb(bench, [], None).epoch == 7.0

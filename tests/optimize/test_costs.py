"""What a table does when not everything can be built or timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.manifest import Option
from lissome.core.progress import Silent
from lissome.data import load_task
from lissome.engines.measure import Result, Subject
from lissome.engines.process import EngineFailed
from lissome.machine.identity import identify
from lissome.nn.load import load_model
from lissome.optimize import costs, tables
from lissome.optimize.bench import make_bench
from lissome.optimize.sensitivity import probe_of
from lissome.optimize.structure import structure_of
from lissome.optimize.tables import Row

ORT = Option(engine="onnxruntime", precision="fp32")


@pytest.fixture
def bench(here, tmp_path):
    return make_bench(load_model("tiny_model:build"), load_task(str(here / "task.yaml")), Contract(max_drop="3%"), identify(), Cache(tmp_path), Silent())


def result(name, crowded=False, failed=None):
    return Result(Subject(name, "torch", "fp32", None, [], 0), {"latency_p50": [1.0]}, [], 0.0, 1.0, failed="no room" if crowded else failed, crowded=crowded)


def holding(room, ran):
    """`timed` on a machine whose memory holds `room` processes at once."""

    def timed(bench, rows, rounds):
        ran.append(len(rows))
        return [result(row.option.name, crowded=at >= room) for at, row in enumerate(rows)], ""

    return timed


@pytest.mark.parametrize(("room", "runs"), [(9, [5]), (3, [5, 3]), (2, [5, 4, 3, 2])])
def test_what_memory_does_not_hold_at_once_is_timed_in_turns(bench, monkeypatch, room, runs):
    ran = []
    monkeypatch.setattr(tables, "timed", holding(room, ran))
    pairs = tables.side_by_side(bench, [Row(ORT) for _ in range(5)])
    assert ran == runs
    assert not any(pair.own.failed for pair in pairs)
    assert pairs[0].own is pairs[0].first


def test_what_never_fits_is_said_to_have_failed(bench, monkeypatch):
    monkeypatch.setattr(tables, "timed", holding(1, []))
    assert [pair.own.failed for pair in tables.side_by_side(bench, [Row(ORT), Row(ORT)])] == [None, "no room"]


def test_without_the_first_there_is_nothing_to_compare_with(bench, monkeypatch):
    monkeypatch.setattr(tables, "timed", lambda bench, rows, rounds: ([result("first", failed="it died")], ""))
    with pytest.raises(EngineFailed, match="the model could not be timed: it died"):
        tables.side_by_side(bench, [Row(ORT)])


def test_whatever_an_exporter_raises_comes_out_as_one_error(bench, monkeypatch):
    def broken(bench, option):
        raise RuntimeError("Unsupported: aten::strange\nmore")

    monkeypatch.setattr(costs, "built", broken)
    with pytest.raises(EngineFailed, match="onnxruntime fp32 cannot be built: Unsupported: aten::strange"):
        costs.variant_row(bench, bench.model, ORT)


def test_a_table_with_a_gap_is_not_kept(bench, monkeypatch):
    structure = structure_of(bench.model, bench.recipe.example)
    scores = {group.name: torch.ones(group.units) for group in structure.groups}
    real, calls = costs.built, []

    def once(bench, option):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return real(bench, option)

    monkeypatch.setattr(costs, "built", once)
    first = costs.savings(bench, structure, ORT, scores)
    again = costs.savings(bench, structure, ORT, scores)
    assert len(again) == len(first) + 1


def test_losses_are_kept(bench, monkeypatch):
    structure, probe = structure_of(bench.model, bench.recipe.example), probe_of(bench)
    scores = {group.name: torch.ones(group.units) for group in structure.groups}
    found = costs.losses(bench, structure, probe, scores)
    monkeypatch.setattr(costs, "cut", None)
    assert costs.losses(dataclasses.replace(bench), structure, probe, scores) == found

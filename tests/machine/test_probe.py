from __future__ import annotations

import pytest

from lissome.core.cache import Cache
from lissome.machine import probe as probe_module
from lissome.machine.identity import identify
from lissome.machine.layers import Layers
from lissome.machine.noise import judge
from lissome.machine.probe import Probe, find_compiler, installed_engines, probe, probe_key

from .test_levers import layer, peaks


@pytest.fixture
def calls(monkeypatch):
    """Measuring replaced by known figures; says what was called."""
    made = []
    monkeypatch.setattr(probe_module, "measure_peaks", lambda machine, cores, noise=None: made.append("peaks") or peaks())
    monkeypatch.setattr(
        probe_module, "measure_layers", lambda machine, cores, gflops, noise=None: made.append(gflops) or Layers(what="w", timings=(layer("torch", "fp32", 9),))
    )
    monkeypatch.setattr(probe_module, "watch", lambda: made.append("watch") or judge(0, 0, 0))
    return made


class Steps:
    """A Progress that remembers."""

    def __init__(self):
        self.stages, self.steps = [], 0

    def stage(self, text, total=None):
        self.stages.append((text, total))

    def step(self, n=1, note=""):
        self.steps += n

    def say(self, text):
        pass


def kept(cache: Cache, noise) -> Probe:
    """Put a probe with that noise into the cache."""
    found = probe().model_copy(update={"noise": noise})
    cache.put("probe", probe_key(identify()), found.model_dump(mode="json"))
    return found


def test_a_probe_is_whole_and_survives_json(calls):
    progress = Steps()
    found = probe(progress=progress)
    assert found.machine.fingerprint == identify().fingerprint
    assert found.machine.noise == found.noise.sentence
    assert found.engines["torch"] == found.versions["torch"]
    assert set(found.engines) | set(found.missing) == set(probe_module.ENGINES)
    assert "usable core" in found.cores
    assert progress.stages == [("probing this machine", 3)]
    assert progress.steps == 3
    assert calls == ["peaks", 210]
    said = found.sentences
    assert any("2 threads give" in s for s in said)
    assert any("compiler" in s for s in said)
    assert found.energy.sentence in said
    assert Probe.model_validate_json(found.model_dump_json()) == found


def test_the_second_probe_comes_from_the_cache(calls, tmp_path):
    cache = Cache(tmp_path)
    first = kept(cache, judge(0, 0, 0))
    calls.clear()
    assert probe(cache) == first
    assert calls == []
    probe(cache, fresh=True)
    assert "peaks" in calls


def test_a_noisy_answer_is_measured_again_once_it_is_quiet(calls, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    noisy = kept(cache, judge(0, 0.9, 0))
    assert noisy.sentences[0] == noisy.noise.sentence
    calls.clear()
    probe(cache)
    assert calls[:2] == ["watch", "peaks"]
    noisy = kept(cache, judge(0, 0.9, 0))
    monkeypatch.setattr(probe_module, "watch", lambda: judge(0, 0.9, 0))
    calls.clear()
    assert probe(cache) == noisy
    assert calls == []


def test_other_versions_are_another_probe(calls, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    kept(cache, judge(0, 0, 0))
    monkeypatch.setattr(probe_module, "versions", lambda: {"torch": "99"})
    calls.clear()
    probe(cache)
    assert "peaks" in calls


@pytest.mark.parametrize("broken", ['{"machine": 1}', "not json at all", "[]", "null"])
def test_a_broken_entry_is_measured_again(calls, tmp_path, broken):
    cache = Cache(tmp_path)
    path = cache.path("probe", probe_key(identify())) / "value.json"
    path.parent.mkdir(parents=True)
    path.write_text(broken)
    assert probe(cache).machine.fingerprint == identify().fingerprint
    assert "peaks" in calls
    assert Probe.model_validate(cache.get("probe", probe_key(identify()))).engines


def test_no_compiler_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_compiler()
    assert found.path is None
    assert "torch.compile is left out. To get one: " in found.sentence
    monkeypatch.setenv("CXX", "mistyped++")
    found = find_compiler()
    assert found.path is None
    assert 'CXX is set to "mistyped++", which is not there' in found.sentence


def test_engines_that_are_missing_name_the_extra(monkeypatch):
    monkeypatch.setattr(probe_module, "installed", lambda package: None if package in ("openvino", "executorch") else "1.0")
    found, missing = installed_engines()
    assert found["torch"] == "1.0"
    assert missing == {"openvino": 'pip install "lissome[openvino]"', "executorch": "pip install executorch"}


@pytest.mark.slow
def test_the_whole_probe_on_this_machine(tmp_path):
    cache = Cache(tmp_path)
    found = probe(cache)
    assert found.peaks.get("fp32").figure.value > 0
    assert {t.engine for t in found.layers.timings} >= {"torch"}
    assert {"bf16", "int8", "threads"} <= {lever.name for lever in found.levers}
    assert cache.get("probe", probe_key(found.machine)) is not None

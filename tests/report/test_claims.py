"""Claims: what a benchmark prints is held against what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lissome.core.errors import BadConfig, BadInput, EnvironmentLacks
from lissome.core.progress import Silent
from lissome.report.claims import Check, Claim, Figure, judge, kept, page, read_claims, try_claims, verdict

ROOT = Path(__file__).parents[2]
TEXT = """\
title: Twice as fast
says: "2x"
data: noise
baseline: itself
command: python benchmark.py --json
checks:
  - {what: speed-up, read: "rows[ours].speedup", at_least: 2, unit: x}
  - {what: drop, read: drop, at_most: 1, unit: pt}
"""


def printed(low=2.1, drop=0.5):
    return {
        "created": "2026-01-02T03:04",
        "cpu": "a CPU",
        "drop": drop,
        "rows": [{"name": "theirs"}, {"name": "ours", "speedup": {"value": 2.5, "low": low, "high": 3}}],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "faster.yaml").write_text(TEXT)
    (tmp_path / "benchmark.py").write_text(f"print({json.dumps(printed())!r})")
    return tmp_path / "claims"


def claim(**changes):
    checks = (Check(what="speed-up", read="rows[ours].speedup", at_least=2), Check(what="drop", read="drop", at_most=1))
    return Claim(**({"title": "t", "says": "2x", "data": "d", "baseline": "b", "command": "python x", "checks": checks} | changes))


@pytest.mark.parametrize(("document", "expected"), [(printed(), "met"), (printed(low=1.9), "not met"), (printed(drop=1.1), "not met")])
def test_the_whole_interval_must_hold(document, expected):
    assert verdict(claim(), judge(claim(), document)) == expected


def test_the_paths_that_claims_read_are_in_what_benchmarks_print():
    """Names in brackets stand in the benchmark's source, so that a renamed row does not go unnoticed until the next run."""
    for name, one in read_claims(ROOT / "claims").items():
        source = (ROOT / one.command.split()[1]).read_text(encoding="utf-8") if one.command else ""
        for check in one.checks:
            for part in re.findall(r"\[([^\]]*)\]", check.read):
                way = re.sub(r", \d+( to \d+)?(, (float32|bfloat16))?(?=, (?:trained|with)|$)", "", part)  # lengths, groups and types are worked out
                assert all(word in source for word in re.split(r", (?=trained|with|torch|OpenVINO|ONNX|prefill)", way)), f"{name}: {part}"


def test_the_other_verdicts():
    assert verdict(claim(condition="with VNNI"), judge(claim(), printed())) == "bounded"
    assert verdict(claim(condition="with VNNI"), judge(claim(), printed(low=1))) == "not met"
    assert verdict(claim(command=None, checks=(), untestable="no GPU"), None) == "not testable here"
    assert verdict(claim(), None) == "not run"


def test_what_was_not_reached_is_not_met(folder):
    document = printed() | {"rows": [{"name": "ours", "speedup": None}]}
    (folder.parent / "benchmark.py").write_text(f"import json; print(json.dumps({document!r}))")
    try_claims(folder, [], Silent())
    assert verdict(read_claims(folder)["faster"], kept(folder, "faster")) == "not met"
    assert "speed-up not reached (>= 2)" in page(folder)


def test_other_checks_are_judged_anew(folder):
    try_claims(folder, [], Silent())
    (folder / "faster.yaml").write_text(TEXT.replace("at_least: 2,", "at_least: 2.2,"))
    assert verdict(read_claims(folder)["faster"], kept(folder, "faster")) == "not met"
    (folder / "faster.yaml").write_text(TEXT.replace("what: drop", "what: loss"))
    assert verdict(read_claims(folder)["faster"], kept(folder, "faster")) == "not run"
    assert "not run" in page(folder)


def test_one_that_fails_does_not_stop_the_others(folder):
    (folder / "broken.yaml").write_text(TEXT.replace("benchmark.py", "missing.py"))
    with pytest.raises(EnvironmentLacks, match="ended with exit code 2"):
        try_claims(folder, [], Silent())
    assert kept(folder, "faster") is not None


def test_a_benchmark_is_run_and_kept(folder):
    try_claims(folder, [], Silent())
    found = kept(folder, "faster")
    assert found.figures == (Figure(what="speed-up", value=2.5, low=2.1, high=3), Figure(what="drop", value=0.5, low=0.5, high=0.5))
    text = page(folder)
    assert "speed-up 2.50 [2.10, 3.00] x (>= 2); drop 0.500 pt (<= 1)" in text
    assert "| met " in text
    assert "2026-01-02, a CPU" in text


def test_from_the_command_line(folder, capsys):
    from lissome.cli.main import run

    target = folder.parent / "page.md"
    target.write_text("<!-- claims -->\n<!-- /claims -->\n")
    assert run(["claims", "faster", "--folder", str(folder), "--page", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"faster": "met"}
    before = target.read_text()
    (folder.parent / "benchmark.py").unlink()
    assert run(["claims", "--render", "--folder", str(folder), "--page", str(target)]) == 0, "nothing is run"
    assert target.read_text() == before
    target.write_text("")
    assert run(["claims", "--folder", str(folder), "--page", str(target)]) == 0, "hours of benchmarks start only where they are asked for"
    assert capsys.readouterr().out.endswith("faster: met\n")
    assert not target.read_text()


@pytest.mark.parametrize(
    ("code", "said"), [("raise SystemExit(3)", "ended with exit code 3"), ("print('well')", "failed: Expecting value"), ("print([])", "no JSON object")]
)
def test_a_benchmark_that_fails_is_named(folder, code, said):
    (folder.parent / "benchmark.py").write_text(code)
    with pytest.raises(EnvironmentLacks, match=said):
        try_claims(folder, ["faster"], Silent())
    assert kept(folder, "faster") is None


def test_bad_input(folder, tmp_path):
    with pytest.raises(BadInput, match=r'no claim "fastre"\. Did you mean "faster"'):
        try_claims(folder, ["fastre"], Silent())
    with pytest.raises(BadInput, match="there is no claim here"):
        read_claims(tmp_path)
    (folder.parent / "benchmark.py").write_text("print('{\"rows\": []}')")
    with pytest.raises(BadInput, match=r'printed no "rows\[ours\]\.speedup": there is nothing at "rows\[ours\]"'):
        try_claims(folder, [], Silent())
    (folder / "faster.yaml").write_text(TEXT.replace("at_least: 2, ", ""))
    with pytest.raises(BadConfig, match="at_least or at_most, one of them"):
        read_claims(folder)
    (folder / "faster.yaml").write_text(TEXT.split("command")[0])
    with pytest.raises(BadConfig, match="`untestable` with the reason"):
        read_claims(folder)


def test_the_page_says_what_was_measured():
    """docs/claims.md is what the claim files and their results make."""
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert text.split("<!-- claims -->")[1].split("<!-- /claims -->")[0].strip() == page(ROOT / "claims").strip()


def test_every_command_names_a_benchmark():
    for name, one in read_claims(ROOT / "claims").items():
        assert one.command is None or (ROOT / one.command.split()[1]).exists(), name

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lissome.core.errors import EnvironmentLacks
from lissome.core.measurement import Measurement
from lissome.report.html import interval_bar, render, write_report
from tests.report import manifests

VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """Collects elements and text, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(params=sorted(manifests.ALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_page_is_well_formed(name: str) -> None:
    page = Page(render(manifests.ALL[name]()))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_nothing_is_fetched(name: str) -> None:
    text = render(manifests.ALL[name]())
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    loads = [(tag, a) for tag, a in Page(text).tags if tag in ("img", "iframe", "object", "embed") or "src" in a]
    assert loads == []


def test_the_policy_allows_this_style_and_this_script_only(name: str) -> None:
    text = render(manifests.ALL[name]())
    policy = next(a["content"] for tag, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside.group(1).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    attributes = [key for _, a in Page(text).tags for key in a]
    assert "style" not in attributes
    assert not [key for key in attributes if key.startswith("on")]


def test_hostile_names_are_only_text() -> None:
    page = Page(render(manifests.hostile()))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert "<script>alert(1)</script>" in page.text
    assert "</script><img src=x onerror=alert(2)>" in page.text


def test_the_verdict_comes_first() -> None:
    text = Page(render(manifests.met())).text
    assert text.index("Every limit was met.") < text.index("upper bound 0.78") < text.index("Before and after") < text.index("What was tried")


@pytest.mark.parametrize(
    ("name", "headline", "words"),
    [
        ("met", "Every limit was met.", "seen once"),
        ("not_met", "The contract was not met.", "about 4,100 test examples are needed"),
        ("infeasible", "The contract cannot be met on this machine.", "--max-drop 0.8pt --latency 1.2ms"),
    ],
)
def test_each_status_has_its_words(name: str, headline: str, words: str) -> None:
    text = Page(render(manifests.ALL[name]())).text
    assert headline in text
    assert words in text


def test_every_option_is_listed_with_its_reason() -> None:
    text = Page(render(manifests.met())).text
    for row in manifests.ENCODER:
        assert row.option.name in text
        assert row.why in text


def test_what_must_be_known_to_trust_it_is_there() -> None:
    manifest = manifests.met()
    text = Page(render(manifest)).text
    for expected in (manifest.replay, manifest.machine.cpu, manifest.machine.noise, "5,840 examples", "openvino 2026.2.0", "negative, positive", "used once"):
        assert expected in text
    assert "used for 3 plans" in Page(render(manifests.not_met())).text


def test_unknown_figures_are_dashes() -> None:
    text = render(manifests.digits())
    assert "nan" not in re.sub(r"<script>.*?</script>|dominant|data-\w+=\"nan\"", "", text, flags=re.S).lower()
    assert ">None<" not in text
    assert "–" in text


def test_a_manifest_with_almost_nothing_still_makes_a_page() -> None:
    base = manifests.met()
    bare = base.model_copy(
        update={
            "tried": base.tried[:1],
            "plan": base.tried[0].option,
            "original_score": None,
            "chosen_score": None,
            "drop": None,
            "versions": {},
            "files": {},
            "verdict": base.verdict.model_copy(update={"clauses": ()}),
            "machine": base.machine.model_copy(update={"isa": (), "noise": ""}),
        }
    )
    Page(render(bare))
    Page(render(bare.model_copy(update={"tried": manifests.ENCODER[-2:]})))


def test_the_interval_bar_shows_the_interval_against_the_limit() -> None:
    manifest = manifests.met()
    for clause in manifest.verdict.clauses:
        bar = interval_bar(clause, manifest)
        assert bar is not None
        assert bar.low <= bar.at <= bar.high < bar.limit.at
    late = manifests.not_met()
    bar = interval_bar(late.verdict.clauses[1], late)
    assert bar is not None
    assert bar.limit.at < bar.low


def test_a_clause_without_figure_or_limit_has_no_bar() -> None:
    manifest = manifests.met()
    clause = manifest.verdict.clauses[0]
    assert interval_bar(clause.model_copy(update={"figure": None}), manifest) is None
    nan = Measurement("memory", math.nan, math.nan, math.nan, "MB", 0, "measured", "m")
    assert interval_bar(clause.model_copy(update={"figure": nan}), manifest) is None


def test_an_estimate_is_marked_wherever_it_stands() -> None:
    base = manifests.met()
    energy = manifests.measured("energy", 3.1, 0.4, "mJ", method="estimated")
    rows = tuple(row.model_copy(update={"figures": (*row.figures, energy)}) if row.figures else row for row in base.tried)
    text = Page(render(base.model_copy(update={"tried": rows}))).text
    assert "3.10 mJ (estimated)" in text
    assert "It cannot satisfy a limit" in text


def test_the_file_is_written_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = write_report(manifests.met(), tmp_path / "runs" / "a" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EnvironmentLacks, match="no disk space left while writing the report"):
        write_report(manifests.met(), tmp_path / "report.html")


def test_a_factor_is_held_against_a_factor() -> None:
    manifest = manifests.infeasible_factor()
    drop, speed = (interval_bar(clause, manifest) for clause in manifest.verdict.clauses)
    assert drop is not None
    assert drop.limit.text == "limit 1 %"
    assert drop.high < drop.limit.at
    assert speed is not None
    assert speed.limit.text == "limit 20x"
    assert speed.high < speed.limit.at == speed.allowed[0]
    assert "The test split was not used" in Page(render(manifest)).text


def test_a_figure_in_another_unit_than_its_limit_has_no_bar() -> None:
    manifest = manifests.met()
    clause = manifest.verdict.clauses[2]
    assert interval_bar(clause.model_copy(update={"figure": manifests.measured("memory", 96, 1, "KB")}), manifest) is None


def test_a_summary_that_repeats_a_clause_is_replaced() -> None:
    base = manifests.not_met()
    repeated = base.verdict.model_copy(update={"summary": f"Not met: {base.verdict.clauses[1].sentence}"})
    text = Page(render(base.model_copy(update={"verdict": repeated}))).text
    assert "1 of 3 limits hold." in text
    assert "Not met: latency" not in text

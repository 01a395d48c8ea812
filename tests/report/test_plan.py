from __future__ import annotations

import json

from lissome.cli.main import run as command
from lissome.core.manifest import PartChoice, PartOption, write_manifest
from lissome.optimize.costs import megabytes
from lissome.report.html import render
from lissome.report.plan import plan_table, plan_text
from tests.report import manifests
from tests.report.test_terminal import shown


def option(name: str, saves: float, loss: float) -> PartOption:
    return PartOption(name=name, loss=manifests.measured("divergence", loss, 0.0, "nats"), saves=manifests.measured("saves", saves, 0.02, "ms"))


def planned():
    base = manifests.ALL["met"]() if "met" in manifests.ALL else next(iter(manifests.ALL.values()))()
    parts = (
        PartChoice(part="encoder.layer.0", chosen="384 of 1536 neurons", options=(option("all", 0, 0), option("384 of 1536 neurons", 0.31, 0.0213))),
        PartChoice(part="encoder.layer.1", chosen="removed", options=(option("all", 0, 0), option("removed", 1.2, 0.4))),
    )
    plan = base.plan.model_copy(update={"change": "5 of 6 blocks, distilled"})
    return base.model_copy(update={"parts": parts, "plan": plan, "steps": ("pruned in 20 s", "distilled in 3 min")})


def test_the_table_has_a_line_a_part_with_the_alternatives():
    lines = shown(plan_table(planned()), 120).splitlines()
    assert lines[1].split() == ["encoder.layer.0", "384", "of", "1536", "neurons", "0.310", "0.021", "all", "0/0"]
    assert "removed" in lines[2]
    assert "1.20" in lines[2]


def test_what_a_choice_saves_in_megabytes_is_shown():
    plan = planned()
    chosen = plan.parts[1].options[1].model_copy(update=megabytes(3.25, 7.5, "here"))
    parts = (plan.parts[0], plan.parts[1].model_copy(update={"options": (plan.parts[1].options[0], chosen)}))
    plan = plan.model_copy(update={"parts": parts})
    assert shown(plan_table(plan), 120).splitlines()[2].split()[:5] == ["encoder.layer.1", "removed", "1.20", "7.50", "3.25"]
    assert '<td data-head="memory">7.50</td><td data-head="files">3.25</td>' in render(plan)


def test_the_text_names_plan_and_steps():
    text = plan_text(planned())
    assert "5 of 6 blocks, distilled" in text
    assert text.index("pruned in 20 s") < text.index("distilled in 3 min")
    plain = planned().model_copy(update={"parts": (), "steps": ()})
    assert "the whole model runs one way" in plan_text(plain)


def test_the_report_has_a_section_for_it():
    page = render(planned())
    assert "The plan, part by part" in page
    assert "384 of 1536 neurons" in page
    assert "The plan, part by part" not in render(planned().model_copy(update={"parts": ()}))


def test_the_command(tmp_path, capsys):
    write_manifest(planned(), tmp_path)
    assert command(["explain-plan", str(tmp_path)]) == 0
    assert "encoder.layer.1" in capsys.readouterr().out
    assert command(["explain-plan", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][1]["chosen"] == "removed"
    assert command(["explain-plan", str(tmp_path / "nowhere")]) == 2
    assert "not a lissome artifact" in capsys.readouterr().err

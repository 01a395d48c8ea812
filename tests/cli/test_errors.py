"""Bad input at the command line: one screen that says what to do, the right exit code, nothing lost, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lissome.cli import main as cli
from lissome.cli.main import run as command
from lissome.version import VERSION

TASK = "kind: text-classification\ndata: texts.csv\ntext: text\nlabel: label\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    rows = "\n".join(f"text number {i},{'good' if i % 3 else 'bad'}" for i in range(200))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows}\n")
    (tmp_path / "task.yaml").write_text(TASK)
    return tmp_path


def failing(arguments: list[str], code: int, capsys) -> str:
    """Run, check the exit code and the shape of the message, return it."""
    assert command(arguments) == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) < 25
    return shown.err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--latency", "0ms", 'a limit on latency must be above zero; write "10ms"'),
        ("--max-drop", "-1%", "an allowed drop lies between 0 and 100 points"),
        ("--latency", "fast", '"fast" is not a limit on latency; write "10ms", "p95 10ms", or "3x"'),
        ("--memory", "60", '"60" is not a limit on memory'),
        ("--confidence", "120%", "is not a confidence"),
        ("--batch", "0", "a batch holds at least one example"),
        ("--spend", "soon", '"soon" is not a duration; write "90s", "20min" or "2h"'),
        ("--ram", "2x", "is not an amount of memory"),
    ],
)
def test_limits_that_make_no_sense(folder, capsys, option, value, expected):
    shown = failing(["optimize", "m", "--task", "task.yaml", "--size", "1MB", option, value], 2, capsys)
    assert expected in shown
    assert option in shown


@pytest.mark.parametrize("value", ["banana", "", "0s"])
def test_a_time_to_train_that_makes_no_sense(folder, capsys, value):
    shown = failing(["fine-tune", "m", "--task", "task.yaml", "--out", "out", "--spend", value], 2, capsys)
    assert f'--spend: "{value}" is not a duration; write "90s", "20min" or "2h"' in shown


def test_only_what_is_cached_can_be_cleared(folder, capsys):
    (folder / "cache" / "forms" / "k").mkdir(parents=True)
    (folder / "cache" / "CACHEDIR.TAG").touch()
    (folder / "precious").mkdir()
    for kind in ("../precious", str(folder / "precious")):
        assert f'nothing cached of kind "{kind}".' in failing(["cache", "clear", kind], 2, capsys)
    assert (folder / "precious").is_dir()
    shown = failing(["cache", "clear", "form"], 2, capsys)
    assert 'Did you mean "forms"?' in shown
    assert "Expected: forms" in shown
    assert command(["cache", "clear", "forms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": 0}
    assert not (folder / "cache" / "forms").exists()


def test_cache_alone_shows_it(folder, capsys):
    (folder / "cache" / "forms" / "some-key").mkdir(parents=True)
    assert command(["cache"]) == 0
    alone = capsys.readouterr().out
    assert "forms" in alone
    assert command(["cache", "show"]) == 0
    assert capsys.readouterr().out == alone
    assert command(["cache", "--json"]) == 0
    assert [entry["key"] for entry in json.loads(capsys.readouterr().out)["entries"]] == ["some-key"]
    assert "Expected: lissome cache clear --json" in failing(["cache", "--json", "clear"], 2, capsys)
    assert (folder / "cache" / "forms").is_dir()


def test_no_limit_at_all(folder, capsys):
    assert "a contract needs at least one limit" in failing(["optimize", "m", "--task", "task.yaml"], 2, capsys)


def test_a_missing_model(folder, capsys):
    shown = failing(["optimize", "nowhere", "--task", "task.yaml", "--max-drop", "5%"], 2, capsys)
    assert 'no model at "nowhere"' in shown
    assert "Expected: a Hugging Face directory or id, a GGUF file, package.module:factory" in shown


def test_a_pickle_is_refused_with_the_way_out(folder, capsys):
    (folder / "model.pt").write_bytes(b"\x80\x04")
    shown = failing(["optimize", "model.pt", "--task", "task.yaml", "--max-drop", "5%"], 2, capsys)
    assert "lissome never reads pickles" in shown
    assert "weights_only=True" in shown


def test_an_unknown_yaml_key_is_named_with_its_line(folder, capsys):
    (folder / "task.yaml").write_text(TASK + "lable: x\n")
    shown = failing(["task", "check", "task.yaml"], 2, capsys)
    assert "task.yaml:5" in shown
    assert "lable" in shown


def test_a_label_column_that_is_not_there(folder, capsys):
    (folder / "task.yaml").write_text(TASK.replace("label: label", "label: lable"))
    shown = failing(["task", "check", "task.yaml"], 2, capsys)
    assert "task.yaml:4" in shown
    assert 'Did you mean "label"?' in shown


def test_something_that_is_no_artifact(folder, capsys):
    for verb in (["verify", "."], ["run", ".", "--input", "x"]):
        assert "not a lissome artifact: it has no manifest.json" in failing(verb, 2, capsys)


def test_nothing_to_predict(folder, capsys):
    assert "there is nothing to predict" in failing(["run", "."], 2, capsys)


def test_an_unknown_verb_or_option(folder, capsys):
    assert "No such command" in failing(["optimise"], 2, capsys)
    assert "No such option" in failing(["optimize", "m", "--task", "t", "--latancy", "1ms"], 2, capsys)


def test_ctrl_c_says_that_nothing_is_lost(folder, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lissome.optimize.run.prepared", interrupted)
    shown = failing(["optimize", "m", "--task", "task.yaml", "--max-drop", "5%"], 130, capsys)
    assert "What was learned so far is kept" in shown


def test_a_full_disk_says_what_to_free(folder, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("lissome.optimize.run.prepared", full)
    shown = failing(["optimize", "m", "--task", "task.yaml", "--max-drop", "5%"], 4, capsys)
    assert "no disk space left" in shown
    assert "lissome cache clear" in shown


def test_a_bug_is_reported_as_one(folder, capsys, monkeypatch):
    def wrong(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("lissome.optimize.run.prepared", wrong)
    shown = failing(["optimize", "m", "--task", "task.yaml", "--max-drop", "5%"], 1, capsys)
    assert "This is a bug in lissome: ZeroDivisionError" in shown
    assert "ZeroDivisionError" in Path(shown.split("with the file ")[1].strip()).read_text()


def test_errors_are_json_when_json_was_asked_for(folder, capsys):
    assert command(["verify", ".", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "BadArtifact"
    assert error["exit_code"] == 2


def test_the_demo_falls_back_to_digits_when_no_registry_answers(folder, capsys, monkeypatch):
    from lissome.core.errors import Unreachable
    from lissome.optimize import demo

    def unreachable(*_: object) -> None:
        raise Unreachable("the registry did not answer")

    asked = []
    monkeypatch.setattr(demo, "sentiment", unreachable)
    monkeypatch.setattr(demo, "small", lambda *_: ("model", "task"))
    monkeypatch.setattr(demo, "optimize", lambda *given, **_: asked.append(given))
    demo.demo()
    assert asked == [("model", "task", demo.DIGITS_CONTRACT)]


def test_every_verb_explains_itself(capsys):
    for verb in ("optimize", "demo", "run", "verify", "probe", "measure", "fine-tune", "task check", "cache", "cache show", "cache clear"):
        assert command([*verb.split(), "--help"]) == 0
        assert "Usage:" in capsys.readouterr().out


def test_the_command_line_is_frozen():
    """Verbs and options are a promise; changing one is a decision that changes this test and the changelog."""
    import typer

    cli._register()
    group = typer.main.get_command(cli.app)
    found = {}
    for name, verb in group.commands.items():
        verbs = {f"{name} {inner}": one for inner, one in verb.commands.items()} if hasattr(verb, "commands") else {name: verb}
        if getattr(verb, "invoke_without_command", False):  # a group that does something alone
            verbs[name] = verb
        for full, one in verbs.items():
            found[full] = sorted(option for parameter in one.params for option in parameter.opts if option.startswith("--"))
    limits = ["--batch", "--confidence", "--energy", "--json", "--latency", "--max-drop", "--memory", "--out", "--ram", "--seed", "--size", "--spend", "--task"]
    drawn = [
        "--context",
        "--max-tokens",
        "--memory-budget",
        "--min-p",
        "--repetition-penalty",
        "--seed",
        "--stop",
        "--temperature",
        "--threads",
        "--top-k",
        "--top-p",
    ]
    assert found == {
        "optimize": limits,
        "demo": ["--digits", "--json", "--out"],
        "run": ["--file", "--input", "--json"],
        "verify": ["--json", "--task"],
        "explain-plan": ["--json"],
        "claims": ["--all", "--folder", "--json", "--page", "--render"],
        "probe": ["--fresh", "--json"],
        "measure": ["--batch", "--engine", "--json", "--precision", "--rounds", "--task", "--vs"],
        "fine-tune": ["--adaptive-precision", "--batch", "--epochs", "--freeze-embeddings", "--json", "--lr", "--out", "--seed", "--spend", "--task"],
        "prune": ["--compare", "--drop-blocks", "--importance", "--json", "--out", "--ratio", "--round-to", "--task", "--through-norms"],
        "quantize": [
            "--adaptive-layers",
            "--adaptive_layers",
            "--bias-correction",
            "--bias_correction",
            "--group",
            "--json",
            "--layer",
            "--least-examples",
            "--method",
            "--out",
            "--output",
            "--percentile",
            "--precision",
            "--rounding",
            "--sensitivity",
            "--smooth",
            "--spare",
            "--symmetric",
            "--task",
        ],
        "qat": ["--batch", "--epochs", "--json", "--lr", "--method", "--out", "--output", "--precision", "--seed", "--spend", "--task", "--teacher"],
        "distill": [
            "--attention",
            "--batch",
            "--epochs",
            "--freeze-embeddings",
            "--hidden",
            "--json",
            "--labels",
            "--logits",
            "--lr",
            "--out",
            "--patience",
            "--seed",
            "--spend",
            "--task",
            "--teacher",
            "--temperature",
            "--variations",
        ],
        "sparse-train": [
            "--batch",
            "--epochs",
            "--json",
            "--lr",
            "--out",
            "--pattern",
            "--saliency",
            "--schedule",
            "--seed",
            "--sparsity",
            "--spend",
            "--stages",
            "--task",
        ],
        "sparsify": [
            "--batch",
            "--candidate",
            "--confidence",
            "--epochs",
            "--examples",
            "--fit-steps",
            "--json",
            "--keep",
            "--lr",
            "--out",
            "--seed",
            "--spend",
            "--task",
            "--train",
        ],
        "exits": [
            "--after",
            "--batch",
            "--blocks",
            "--confidence",
            "--epochs",
            "--frozen",
            "--json",
            "--lr",
            "--max-drop",
            "--out",
            "--risk",
            "--rule",
            "--seed",
            "--spend",
            "--task",
        ],
        "generate": sorted([*drawn, "--draft-head", "--draft-layers", "--draft-tokens", "--json", "--prompt", "--slide"]),
        "sparsify-activations": [
            "--activation",
            "--batch",
            "--confidence",
            "--epochs",
            "--examples",
            "--json",
            "--keep",
            "--lr",
            "--on",
            "--out",
            "--penalty",
            "--risk",
            "--seed",
            "--sparsity",
            "--spend",
            "--task",
            "--train",
        ],
        "chat": sorted([*drawn, "--message", "--system"]),
        "bench-decode": ["--batch", "--json", "--memory-budget", "--prompt-tokens", "--rounds", "--threads", "--tokens"],
        "pack": ["--embedding", "--gguf", "--group", "--json", "--method", "--out", "--symmetric", "--task", "--text", "--tokens"],
        "build": ["--json", "--out", "--tokenizer"],
        "swap": ["--attention", "--ffn", "--head", "--json", "--layers", "--norm", "--out", "--positions", "--remove-head"],
        "experts": ["--domain", "--json", "--layer", "--length", "--windows"],
        "split-experts": ["--active", "--cluster", "--experts", "--group", "--json", "--out", "--shared", "--task"],
        "task check": ["--json", "--model"],
        "cache": ["--json"],
        "cache show": ["--json"],
        "cache clear": ["--json"],
    }


def test_the_version_is_told(capsys):
    assert command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lissome {VERSION}"

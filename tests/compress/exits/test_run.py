import json
import re

import pytest
import torch

from lissome.cli.main import run as command
from lissome.compress.exits import ExitsConfig, exits_to
from lissome.compress.exits import run as running
from lissome.core.cache import Cache
from lissome.core.errors import BadInput, BadModel, BadTask
from lissome.core.measurement import Measurement
from lissome.machine.identity import identify
from lissome.nn.call import call
from lissome.nn.load import load_model
from lissome.train.config import TrainConfig

HERE = "tests.compress.exits.worlds"
QUICK = ExitsConfig(max_drop=0.05, after=(1, 3), inner=16, seconds=0.05, train=TrainConfig(epochs=6, lr=2e-2, precision="fp32"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def faster(monkeypatch):
    """The clock says that exits save time: these nets are too small for it."""
    said = Measurement("time saved", 40, 35, 45, "%", 9, "measured", identify().fingerprint)
    monkeypatch.setattr(running, "time_saved", lambda *_: said)


@pytest.mark.parametrize("risk", ["drop", "lost"])
def test_rows_leave_early_where_early_blocks_know(tmp_path, faster, risk):
    found = exits_to(tmp_path / "out", f"{HERE}:open_net", f"{HERE}:signs", QUICK.model_copy(update={"risk": risk}))
    assert found.status == "met" and found.blocks < 0.6
    what = "accuracy drop" if risk == "drop" else "right answers lost"
    assert re.match(rf"MET   {what} <= 5 pt \(95 %\): measured .*, n = 500 test examples, seen once", found.sentence)
    assert sum(one.share for one in found.exits) == pytest.approx(1) and [one.after for one in found.exits] == [1, 3, 4]
    again = load_model(str(tmp_path / "out")).module
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = call(again, {"x": x})
    assert int((again.taken < 2).sum()) > 200
    assert ((logits[:, 1] > logits[:, 0]) == (x[:, 0] > 0)).float().mean() > 0.9
    record = json.loads((tmp_path / "out" / "exits.json").read_text())
    assert record["status"] == "met" and record["saved"]["batch 1"]["unit"] == "%"


def test_a_whole_model_trains_with_its_exits(tmp_path, faster):
    config = QUICK.model_copy(update={"frozen": False, "train": TrainConfig(epochs=6, lr=2e-2, precision="fp32")})
    assert exits_to(tmp_path / "out", f"{HERE}:open_net", f"{HERE}:signs", config).status == "met"


def test_no_is_said_with_the_nearest_yes_and_the_model_is_left_as_it_was(tmp_path, faster):
    found = exits_to(tmp_path / "out", f"{HERE}:hidden_net", f"{HERE}:signs", QUICK.model_copy(update={"max_drop": 0.01}))
    assert found.status == "no" and found.fingerprint == load_model(f"{HERE}:hidden_net").fingerprint
    assert found.sentence.startswith("NO   no exit is certain enough to cost at most 1 pt, by 400 validation examples (at least 299 are needed")
    assert "Nearest yes: --max-drop" in found.nearest or found.nearest.startswith("No loss up to 10 pt")
    assert type(load_model(str(tmp_path / "out")).module).__name__ == "Net"


def test_exits_that_save_no_time_are_not_shipped(tmp_path, monkeypatch):
    said = Measurement("time saved", -4, -9, -1, "%", 9, "measured", identify().fingerprint)
    monkeypatch.setattr(running, "time_saved", lambda *_: said)
    found = exits_to(tmp_path / "out", f"{HERE}:open_net", f"{HERE}:signs", QUICK)
    assert found.status == "no" and "save no time here: -4.0 % [-9.0, -1.0] at batch 1" in found.sentence


def test_the_clock_is_read(tmp_path):
    found = exits_to(tmp_path / "out", f"{HERE}:open_net", f"{HERE}:signs", QUICK)
    assert all(one.unit == "%" and one.low <= one.value <= one.high < 100 for one in found.saved.values()) and set(found.saved) == {"batch 1", "batch 32"}


def test_bad_input(tmp_path):
    with pytest.raises(BadTask, match=r"validation split has 60 examples[\s\S]*373 would be needed"):
        exits_to(tmp_path / "few", f"{HERE}:open_net", f"{HERE}:few_signs", QUICK.model_copy(update={"max_drop": 0.008}))
    with pytest.raises(BadInput, match="no exit after block 4"):
        exits_to(tmp_path / "late", f"{HERE}:open_net", f"{HERE}:signs", QUICK.model_copy(update={"after": (4,)}))
    with pytest.raises(BadModel, match="no list of blocks"):
        exits_to(tmp_path / "named", f"{HERE}:open_net", f"{HERE}:signs", QUICK.model_copy(update={"blocks": "layers"}))
    with pytest.raises(BadModel, match="complexity is told by the model's tokenizer"):
        exits_to(tmp_path / "complex", f"{HERE}:open_net", f"{HERE}:signs", QUICK.model_copy(update={"rule": "complexity"}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-drop", "0%"], "--max-drop"),
        (["--max-drop", "100%"], "--max-drop"),
        (["--rule", "luck"], "--rule"),
        (["--after", "a"], "--after"),
        (["--confidence", "40%"], "--confidence"),
    ],
)
def test_the_verb_says_what_is_wrong(tmp_path, capsys, options, says):
    assert command(["exits", f"{HERE}:open_net", "--task", f"{HERE}:signs", "--out", str(tmp_path / "out"), *options]) == 2
    assert says in capsys.readouterr().err


def test_the_verb(tmp_path, capsys, faster):
    words = ["exits", f"{HERE}:open_net", "--task", f"{HERE}:signs", "--out", str(tmp_path / "out"), "--max-drop", "5%", "--epochs", "6", "--lr", "2e-2"]
    assert command([*words, "--after", "1,3"]) == 0
    shown = capsys.readouterr().out
    assert "share of inputs" in shown and "MET   accuracy drop <= 5 pt" in shown and "time saved" in shown

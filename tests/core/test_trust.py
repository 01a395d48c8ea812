from __future__ import annotations

import pytest

from lissome.core import trust
from lissome.core.errors import BadArtifact, BadModel
from lissome.core.trust import check_target, name_target


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.delenv("LISSOME_TRUST", raising=False)


@pytest.mark.parametrize(
    "target", ["subprocess:getoutput", "os:system", "torch.hub:load", "lissome.nn.factory:call_factory", "lissomeevil:x", "", "my.own:build2"]
)
def test_code_that_nobody_named_is_refused(target):
    name_target("my.own:build")
    with pytest.raises(BadModel) as error:
        check_target(target, "folder/architecture.json", BadModel)
    assert str(error.value).startswith(f"folder/architecture.json: it needs the code {target}, which was not named by you.")
    assert f"LISSOME_TRUST={target} lissome" in str(error.value)


def test_what_was_named_here_or_listed_or_is_known_may_run(monkeypatch):
    name_target("my.own:build")
    monkeypatch.setenv("LISSOME_TRUST", "a.b:c, d:e")
    for target in ("my.own:build", "a.b:c", "d:e", "lissome.nn.cnn:small_cnn", "lissome.data.digits:digits_task"):
        check_target(target, "x", BadArtifact)


@pytest.mark.parametrize("listed", ["", ",", " , "])
def test_an_empty_list_trusts_nothing(monkeypatch, listed):
    monkeypatch.setenv("LISSOME_TRUST", listed)
    with pytest.raises(BadArtifact, match="needs the code a:b"):
        check_target("a:b", "x", BadArtifact)

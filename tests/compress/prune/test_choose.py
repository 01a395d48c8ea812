"""Which units stay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissome.compress.prune import Group, Groups, PruneConfig, choose
from lissome.compress.prune.choose import best, preferred_multiple, round_up
from lissome.core.errors import BadInput


def group(name="a", units=16, kind="neurons", **changes):
    return Group(name, kind, units, 10, **changes)


def listed(*groups):
    return Groups(groups, (), 1000, "", {}, (1,))


def rising(*groups):
    return {one.name: torch.arange(one.units, dtype=torch.float64) + 1 for one in groups}


@given(units=st.integers(1, 200), width=st.sampled_from([1, 2, 3, 8, 32]), multiple=st.integers(1, 32), count=st.integers(1, 200))
def test_widths_are_rounded_up_to_the_multiple(units, width, multiple, count):
    found = round_up(group(units=units, width=width), min(count, units), multiple)
    assert min(count, units) <= found <= units
    assert (found * width) % multiple == 0 or found == units
    smaller = [n for n in range(min(count, units), found) if (n * width) % multiple == 0]
    assert smaller == []


@given(scores=st.lists(st.floats(0, 10), min_size=1, max_size=30), data=st.data())
def test_the_best_stay(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    kept = best(group(units=len(scores)), torch.tensor(scores, dtype=torch.float64), count)
    assert len(kept) == count == len(set(kept))
    assert kept == sorted(kept)
    gone = [score for unit, score in enumerate(scores) if unit not in kept]
    assert not gone or max(gone) <= min(scores[unit] for unit in kept)


@given(ratio=st.floats(0.01, 0.99), units=st.integers(1, 64))
def test_the_ratio_is_never_exceeded(ratio, units):
    one, spare = group(units=units), group("b", 100)  # always cut, as a ratio that cuts nothing at all is refused
    kept = choose(listed(one, spare), rising(one, spare), PruneConfig(ratio=ratio, round_to=1)).get("a", range(units))
    assert math.isclose(len(kept), units * (1 - ratio), abs_tol=1) and len(kept) >= max(1, math.floor(units * (1 - ratio)))


def test_only_asked_kinds_and_exact_groups():
    groups = (group("n"), group("h", 4, "heads", width=8), group("hidden", 16, "channels", exact=False), group("layers", 3, "blocks", blocks=(0, 1, 2)))
    some = listed(*groups)
    assert set(choose(some, rising(*groups), PruneConfig(ratio=0.5, round_to=1))) == {"n", "h"}
    assert set(choose(some, rising(*groups), PruneConfig(ratio=0.5, round_to=1, kinds=("heads",)))) == {"h"}
    assert set(choose(some, rising(*groups), PruneConfig(ratio=0.5, round_to=1, through_norms=True))) == {"n", "h", "hidden"}


def test_explicit_counts_leave_all_else_whole():
    groups = (group("n"), group("h", 4, "heads"))
    assert choose(listed(*groups), rising(*groups), PruneConfig(keep={"n": 3})) == {"n": [13, 14, 15]}
    assert choose(listed(*groups), rising(*groups), PruneConfig(keep={"n": 16})) == {}


def test_globally_the_weakest_group_loses_most():
    groups = (group("even", 8), group("uneven", 8))
    scores = {"even": torch.ones(8, dtype=torch.float64), "uneven": torch.tensor([0.1] * 6 + [3.7] * 2, dtype=torch.float64)}
    kept = choose(listed(*groups), scores, PruneConfig(ratio=0.375, compare="global", round_to=1))
    assert kept == {"uneven": [6, 7]}
    scaled = {name: score * 100 if name == "even" else score for name, score in scores.items()}
    assert choose(listed(*groups), scaled, PruneConfig(ratio=0.375, compare="global", round_to=1)) == kept


def test_blocks_go_by_their_importance():
    groups = (group("a", 2, "blocks", blocks=(1, 2), least=0), group("b", 3, "blocks", blocks=(0, 1, 2)))
    scores = {"a": torch.tensor([5.0, 2.0]), "b": torch.tensor([1.0, 0.5, 0.7])}
    chosen = lambda drop: choose(listed(*groups), scores, PruneConfig(ratio=0, drop_blocks=drop))  # noqa: E731
    assert chosen(1) == {"b": [0, 2]}
    assert chosen(3) == {"b": [0], "a": [0]}
    assert chosen(4) == {"b": [0], "a": []}
    with pytest.raises(BadInput, match="5 blocks cannot be dropped") as error:
        chosen(5)
    assert "at most 4" in str(error.value)


def test_bad_input():
    one = group()
    with pytest.raises(BadInput, match='there is no group "b" to prune'):
        choose(listed(one), rising(one), PruneConfig(keep={"b": 1}))
    with pytest.raises(BadInput, match='the group "a" cannot keep 17 units') as error:
        choose(listed(one), rising(one), PruneConfig(keep={"a": 17}))
    assert "1 to 16" in str(error.value)
    with pytest.raises(BadInput, match="1 blocks cannot be dropped") as error:
        choose(listed(one), rising(one), PruneConfig(drop_blocks=1))
    assert "a model with residual blocks in a list" in str(error.value)


def refusal(*given, **options):
    with pytest.raises(BadInput) as error:
        choose(listed(*given), rising(*given), PruneConfig(**options))
    return str(error.value)


@pytest.mark.parametrize("compare", ["group", "global"])
def test_a_ratio_that_rounds_back_to_the_whole_is_refused(compare):
    told = refusal(group("n"), group("h", 2, "heads", width=16), ratio=0.25, round_to=16, compare=compare)
    assert "a ratio of 0.25 cuts nothing: rounded up to multiples of 16, all widths are the whole ones again." in told
    assert 'The widest group, "h", has 2 heads, 32 wide.' in told
    assert "raise the ratio, or lower round_to" in told


def test_kinds_that_the_model_does_not_have_are_refused():
    told = refusal(group("n"), group("c", 8, "channels"), group("layers", 3, "blocks", blocks=(0, 1, 2)), kinds=("heads",))
    assert "this model has no heads that can be cut." in told
    assert "blocks (by drop_blocks) or channels or neurons" in told
    assert "this model has no channels or heads or neurons that can be cut." in refusal(group("layers", 3, "blocks", blocks=(0, 1, 2)))
    told = refusal(group("hidden", 16, "channels", exact=False), group("n"), kinds=("channels",))
    assert "a normalisation averages over all channels that could be cut, so no such cut is exact." in told
    assert "set through_norms" in told


def test_asking_for_nothing_is_no_mistake():
    groups = (group("n"), group("layers", 3, "blocks", blocks=(0, 1, 2)))
    assert choose(listed(*groups), rising(*groups), PruneConfig(ratio=0)) == {}
    assert set(choose(listed(*groups), rising(*groups), PruneConfig(ratio=0.1, round_to=16, drop_blocks=1))) == {"layers"}


def test_the_machine_says_what_widths_it_likes():
    assert preferred_multiple() in (8, 16)

import sys

import numpy as np
import pytest

from lissome.core.errors import BadInput
from lissome.machine.budget import SPARE, Budget, give_back, measured_budget, megabytes, parse_bytes, resident

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gives pages back on Linux alone")


@pytest.mark.parametrize(("text", "size"), [("300MB", 300_000_000), ("2GiB", 2 << 30), ("1.5gb", 1_500_000_000)])
def test_amounts(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "300", "2x", "-1MB", "lots"])
def test_what_is_no_amount(text):
    with pytest.raises(BadInput, match=f'"{text}" is not an amount of memory'):
        parse_bytes(text)


def test_a_budget_below_the_process_is_refused_with_figures():
    with pytest.raises(BadInput, match=r"a memory budget of 5\.0 MB is less than this process takes without a model: \d+ MB now, [\d,]+ MB at its peak"):
        measured_budget(5_000_000)
    found = measured_budget(1 << 40)
    assert found.room == (1 << 40) - found.floor - SPARE and 0 < found.floor <= 1 << 36


def test_memory_that_is_used_is_seen():
    before = resident()
    kept = np.ones(40_000_000, np.uint8)
    assert resident() - before > 30_000_000
    assert Budget(before, 0).over() and not Budget(1 << 40, 0).over()
    del kept


@linux
def test_giving_back_takes_nothing_away_that_is_needed():
    import torch

    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    before, expected = resident(), x @ x
    give_back()
    assert resident() <= before
    assert torch.equal(x @ x, expected)


def test_words():
    assert megabytes(300_000_000) == "300 MB" and megabytes(1_500_000) == "1.5 MB"

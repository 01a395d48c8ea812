import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.core.statistics import dependence, mutual_information


def test_mutual_information_of_known_tables():
    assert mutual_information(np.array([[5, 0], [0, 5]])) == pytest.approx(1)
    assert mutual_information(np.array([[2, 4], [3, 6]])) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.zeros((2, 2))) == 0


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=5))
def test_mutual_information_is_bounded(rows):
    table = np.array(rows)
    assert 0 <= mutual_information(table) <= np.log2(min(table.shape)) + 1e-9


def test_groups_that_choose_their_own_columns_are_dependent():
    groups = np.repeat([0, 1], 10)
    counts = np.where(groups[:, None] == np.arange(2), 40, 10)
    found = dependence(counts, groups, draws=200)
    assert found.dependent and found.bits > found.chance and found.p_value <= 2 / 201  # a permutation may happen to keep the groups


def test_windows_that_hang_together_are_no_evidence():
    """Each window has a taste of its own, whatever its group: tokens would say yes, windows say no, in 95 % of all cases."""
    generator = np.random.default_rng(1)
    refused = 0
    for seed in range(200):
        tastes = generator.dirichlet(np.full(8, 0.3), size=12)
        counts = np.stack([generator.multinomial(200, taste) for taste in tastes])
        refused += dependence(counts, np.repeat([0, 1, 2], 4), seed=seed, draws=99).dependent
    assert refused <= 18  # 200 times 5 %, and three standard deviations


def test_what_cannot_be_compared():
    with pytest.raises(BadInput, match="2 windows of 1 groups cannot be compared"):
        dependence(np.ones((2, 3)), np.array([1, 1]))
    with pytest.raises(BadInput, match="do not belong together"):
        dependence(np.ones((2, 3)), np.array([1, 2, 3]))
    with pytest.raises(BadInput, match="5 draws cannot reach"):
        dependence(np.ones((2, 3)), np.array([1, 2]), draws=5)

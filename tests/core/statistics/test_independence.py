import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import BadInput
from lissome.core.statistics import dependence, dependences, mutual_information


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


def layers(generator: np.random.Generator, count: int = 12) -> list[np.ndarray]:
    """Counts of layers whose windows have tastes of their own, which have nothing to do with any group; some layers' tastes are stronger."""
    shapes = np.geomspace(0.2, 20, count)
    return [np.stack([generator.multinomial(50, generator.dirichlet(np.full(4, shape))) for _ in range(9)]) for shape in shapes]


def test_the_strongest_of_many_layers_is_no_evidence():
    """Its own p-value says so far too often, the family's in at most 5 % of all cases."""
    generator, groups = np.random.default_rng(2), np.repeat([0, 1, 2], 3)
    alone = together = 0
    for seed in range(60):
        found = dependences(layers(generator), groups, seed=seed, draws=99)
        strongest = max(found, key=lambda one: one.deviations)
        assert strongest.p_family == min(one.p_family for one in found) and all(one.p_family >= one.p_value - 1 / 100 for one in found)
        alone, together = alone + (strongest.p_value <= 0.05), together + strongest.dependent
    assert together <= 8 and alone > 12  # 60 times 5 %, and three standard deviations


def test_one_layer_among_many_that_depends_is_found():
    groups = np.repeat([0, 1, 2], 3)
    depends = np.where(groups[:, None] == np.arange(4), 40, 10)
    found = dependences([*layers(np.random.default_rng(3), 5), depends], groups, draws=400)
    assert found[-1].dependent and max(found, key=lambda one: one.deviations) is found[-1]


def test_a_layer_alone_is_a_family_of_one():
    counts, groups = layers(np.random.default_rng(4), 1)[0], np.repeat([0, 1, 2], 3)
    one = dependence(counts, groups, draws=99)
    assert one.p_family == one.p_value and one == dependences([counts, counts], groups, draws=99)[1]
    flat = dependence(np.ones((9, 4)), groups, draws=99)
    assert (flat.deviations, flat.p_value, flat.p_family) == (0, 1, 1)


def test_what_cannot_be_compared():
    with pytest.raises(BadInput, match="2 windows of 1 groups cannot be compared"):
        dependence(np.ones((2, 3)), np.array([1, 1]))
    with pytest.raises(BadInput, match="do not belong together"):
        dependence(np.ones((2, 3)), np.array([1, 2, 3]))
    with pytest.raises(BadInput, match="5 draws cannot reach"):
        dependence(np.ones((2, 3)), np.array([1, 2]), draws=5)

import numpy as np
import pytest
import torch

from lissome.core.errors import BadInput
from lissome.nn.depth.complexity import Complexity, fit_complexity

TOKENS = ["[PAD]", "the", "cat", "sat", ",", "because", "##ish", "epistemology", "a", "dog"]


def fitted(hard=None):
    rng = np.random.default_rng(0)
    texts = [rng.choice([1, 2, 3, 8, 9], size=rng.integers(3, 8)).tolist() for _ in range(30)] + [[1, 7, 4, 5, 1, 2], [7, 4, 1]]
    return fit_complexity(texts, TOKENS, hard), texts


def test_figures_by_hand():
    made, texts = fitted()
    ids = torch.tensor([[1, 2, 6, 4, 5], [1, 2, 0, 0, 0]])
    found = made.figures(ids, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]))
    seen = [sum(token in text for text in texts) for token in range(len(TOKENS))]
    rarity = [np.log((1 + len(texts)) / (1 + seen[token])) for token in range(len(TOKENS))]
    assert found[0].tolist() == pytest.approx([np.mean([rarity[t] for t in (1, 2, 6, 4, 5)]), np.log(6), 2 / 5, (3 + 3 + 3 + 7) / 3], rel=1e-5)
    assert found[1].tolist() == pytest.approx([(rarity[1] + rarity[2]) / 2, np.log(3), 0, 3], rel=1e-5)


def test_padding_changes_nothing_and_rare_tangled_texts_score_higher():
    made, _ = fitted()
    simple = made(torch.tensor([[1, 2, 3]]))
    assert made(torch.tensor([[1, 2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])).item() == pytest.approx(simple.item())
    assert float(made(torch.tensor([[1, 7, 4, 5, 7]]))) > float(simple)
    assert 0 <= float(simple) <= 1


def test_what_is_hard_weighs_the_figures():
    rng = np.random.default_rng(1)
    texts = [[1] * int(rng.integers(2, 30)) for _ in range(200)]
    hard = np.array([len(text) > 15 for text in texts])
    made = fit_complexity(texts, TOKENS, hard)
    assert float(made.weight[1]) > 1
    scores = torch.cat([made(torch.tensor([text])) for text in texts]).numpy()
    assert scores[hard].min() > scores[~hard].max()
    again = Complexity(**made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(torch.tensor([[1, 2]])), made(torch.tensor([[1, 2]])))


def test_bad_texts():
    with pytest.raises(BadInput, match="3 texts are too few"):
        fit_complexity([[1]] * 3, TOKENS)
    with pytest.raises(BadInput, match="token 10 is beyond the 10 tokens"):
        fitted()[0](torch.tensor([[10]]))

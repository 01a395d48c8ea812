import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.nn.attention.chosen import pooled_keys, random_blocks, top_blocks
from lissome.nn.attention.mass import kept, oracle_blocks, seen
from lissome.nn.attention.patterns import Sight, everything, per_head, select, sink, tokens, window


def sight(queries: int, keys: int, seed: int = 0, causal: bool = True, heads: int = 4) -> Sight:
    draw = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, heads, queries, 16, generator=draw), torch.randn(2, 2, keys, 16, generator=draw)
    return Sight(queries, keys, keys - queries, heads, causal, q, 2 * k)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(0, 150), st.booleans(), st.integers(0, 100))
def test_rows_see_what_the_whole_mask_says(queries, before, causal, seed):
    where = sight(queries, queries + before, seed, causal)
    rows = torch.randperm(queries, generator=torch.Generator().manual_seed(seed))[:7]
    for pattern in (window(20) | sink(3), per_head(window(5), window(70)) | tokens([1, 40]), window(8) | top_blocks(1)):
        selection = select(pattern, where)
        assert torch.equal(seen(selection, rows), selection.dense()[:, :, rows])


def test_everything_keeps_all_and_a_window_keeps_its_part():
    where, rows = sight(200, 200), torch.tensor([0, 63, 64, 150])
    assert torch.allclose(kept(where, select(everything(), where), rows), torch.ones(2, 4, 4))
    share = kept(where, select(window(10), where), rows)
    k = where.k.repeat_interleave(2, 1)
    row = ((where.q[:, :, 150] * 0.25)[:, :, None] @ k[:, :, :151].transpose(-1, -2)).softmax(-1)[:, :, 0]
    assert torch.allclose(share[..., 3], row[..., 141:151].sum(-1), atol=1e-5)


def test_the_oracle_is_beaten_by_no_scorer():
    where, rows = sight(640, 640, 3), torch.arange(640)
    shares = [kept(where, select(window(64) | top_blocks(2, scorer), where), rows).mean() for scorer in (oracle_blocks, pooled_keys, random_blocks)]
    assert shares[0] > max(shares[1:])

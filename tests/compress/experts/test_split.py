import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from lissome.compress.experts import SplitConfig, dense_networks, quantize_experts, split_experts, split_to
from lissome.compress.experts.cluster import _filled, balanced_means
from lissome.compress.experts.find import Dense
from lissome.compress.experts.quantize import codes
from lissome.compress.experts.run import inputs_of
from lissome.compress.experts.split import expert_outputs, layer_of, ridge, split
from lissome.core.errors import BadInput, BadModel
from lissome.kernels.decoder.packed import pack
from lissome.kernels.decoder.reference import dense as unpacked
from lissome.nn.load import load_model, save_model
from lissome.nn.moe.balance import layers_of
from lissome.nn.moe.packed import PackedExperts
from tests.nn import tiny


def llama(seed: int = 0, **changes: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 60}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "max_position_embeddings": 64, "initializer_range": 0.2, **changes})).eval()


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(60, (4, 32), generator=generator)} for _ in range(4)]


@st.composite
def networks(draw) -> tuple[Dense, int]:
    neurons, gated, bias = draw(st.sampled_from([8, 24])), draw(st.booleans()), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 100)))
    layers = [nn.Linear(6, neurons, bias=bias).double() for _ in range(2)]
    dense = Dense(layers[0], layers[1] if gated else None, nn.Linear(neurons, 6, bias=bias).double(), draw(st.sampled_from(["silu", "gelu", "relu", "relu2"])))
    return dense, draw(st.sampled_from([1, 2, 4]))


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from(["activations", "weights", "random"]), st.sampled_from([0, 4]))
def test_all_experts_are_the_dense_network(case, cluster, shared):
    """In float64 they differ by the order of the sums alone: 1e-12 of the largest output."""
    dense, experts = case
    config = SplitConfig(experts=experts, active=experts, shared=shared, cluster=cluster)
    x = torch.randn(40, 6, dtype=torch.float64)
    layer, fit = split("ffn", dense, x[:30], x[30:], config)
    expected = dense.down(dense.values(x))
    assert (layer(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert fit.router < 1e-12 and fit.scale == 1


@torch.no_grad()
def test_all_experts_are_the_dense_model():
    """In float32, 1e-5 of the largest logit."""
    model, batch = llama(), batches()[0]
    made, found = split_experts(model, batches(), SplitConfig(experts=16, active=16))
    expected = model(**batch).logits
    assert (made.module(**batch).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert found.read == 1 and len(list(layers_of(made.module))) == 2 and not list(layers_of(model))


@torch.no_grad()
def test_the_router_beats_chance_and_future_tokens_change_nothing():
    made, found = split_experts(llama(), batches(), SplitConfig(experts=8, active=2))
    assert all(fit.largest <= fit.router < fit.random for fit in found.fits) and found.read == 0.25
    ids = batches()[0]["input_ids"][:1]
    changed = torch.cat([ids[:, :20], (ids[:, 20:] + 7) % 60], 1)
    assert_close(made.module(input_ids=changed).logits[:, :20], made.module(input_ids=ids).logits[:, :20], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [None, 32])
@torch.no_grad()
def test_a_split_model_comes_back_from_its_folder(tmp_path, group):
    made, _ = split_experts(llama(intermediate_size=256, tie_word_embeddings=True), batches(), SplitConfig(experts=4, active=2, shared=128, group=group))
    save_model(made, tmp_path)
    again = load_model(str(tmp_path))
    assert again.fingerprint == made.fingerprint
    batch = batches()[0]
    assert torch.equal(again.module(**batch).logits, made.module(**batch).logits)
    (tmp_path / "architecture.json").unlink()
    assert torch.equal(load_model(str(tmp_path)).module(**batch).logits, made.module(**batch).logits)


@torch.no_grad()
def test_experts_of_four_bits_compute_with_the_weights_their_codes_stand_for(monkeypatch):
    made, _ = split_experts(llama(), batches(), SplitConfig(experts=4, active=2))
    (layer, _), batch = list(layers_of(made.module)), batches()[0]
    exact = [unpacked(pack(codes(layer.experts.up[at], 32))) for at in range(4)]
    original = layer.experts.up.clone()
    quantize_experts(made.module, 32)
    packed = next(layers_of(made.module)).experts
    assert isinstance(packed, PackedExperts)
    assert all(torch.equal(unpacked(packed.matrix("up", at)), exact[at]) for at in range(4))
    assert (torch.stack(exact) - original).norm() < 0.1 * original.norm()
    native = made.module(**batch).logits
    monkeypatch.setattr("lissome.nn.moe.packed.library", lambda: type("No", (), {"handle": None}))
    assert_close(made.module(**batch).logits, native, rtol=1e-4, atol=1e-4)


def test_only_chosen_experts_are_read(monkeypatch):
    made, _ = split_experts(llama(), batches(), SplitConfig(experts=4, active=1))
    quantize_experts(made.module)
    layer = next(layers_of(made.module))
    asked = []
    matrix = PackedExperts.matrix
    monkeypatch.setattr(PackedExperts, "matrix", lambda self, name, number: asked.append(number) or matrix(self, name, number))
    x = torch.randn(1, 32)
    with torch.no_grad():
        layer(x)
    assert set(asked) == set(layer.router(x).index[0].tolist())


def test_balanced_clusters_find_what_belongs_together():
    centres = torch.eye(4)
    rows = centres.repeat_interleave(5, 0) + 0.1 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = balanced_means(rows, 4, torch.Generator().manual_seed(3))
    assert sorted(found.flatten().tolist()) == list(range(20)) and found.shape == (4, 5)


def one_by_one(likeness: np.ndarray, size: int) -> np.ndarray:
    """What `_filled` is held to: the likeliest pairs one after the other."""
    n, count = likeness.shape
    found, room = np.full(n, -1), np.full(count, size)
    for pair in np.argsort(-likeness, axis=None, kind="stable").tolist():
        row, cluster = divmod(pair, count)
        if found[row] < 0 and room[cluster]:
            found[row] = cluster
            room[cluster] -= 1
    return found


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 6), st.sampled_from([2, 5, 10**9]), st.integers(0, 1000))
def test_clusters_fill_up_as_pair_by_pair(count, size, absent, values, seed):
    """With ties, and with room left over."""
    rows = max(1, count * size - absent)
    likeness = np.random.default_rng(seed).integers(0, values, (rows, count)).astype(np.float32)
    assert (_filled(likeness, size) == one_by_one(likeness, size)).all()


def test_rows_held_out_are_of_other_batches_and_none_is_padding():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.ffn = nn.Embedding.from_pretrained(torch.arange(100.0)[:, None]), nn.Linear(1, 1)

        def forward(self, input_ids, attention_mask=None):
            return self.ffn(self.table(input_ids))

    mask = torch.tensor([[1, 1, 1, 0]])
    batches = [{"input_ids": torch.full((1, 4), at) + torch.tensor([0, 0, 0, 50]), "attention_mask": mask} for at in range(9)]
    fitted, held = inputs_of(Sums(), ["ffn"], batches, 1000)["ffn"]
    assert len(fitted) == 7 * 3 and len(held) == 2 * 3 and max(fitted.max(), held.max()) < 50
    assert not set(fitted.flatten().tolist()) & set(held.flatten().tolist())
    fitted, held = inputs_of(Sums(), ["ffn"], [{"input_ids": torch.arange(8)[None]}], 1000)["ffn"]
    assert sorted(fitted.flatten().tolist()) == [0, 1, 2, 3, 4, 5] and sorted(held.flatten().tolist()) == [6, 7]


def test_the_fit_is_what_the_layer_loses(monkeypatch):
    """Computed from the experts' outputs, a few rows at a time as where memory is short, it is the layer's own error."""
    torch.manual_seed(0)
    dense = Dense(nn.Linear(6, 24).double(), nn.Linear(6, 24).double(), nn.Linear(24, 6).double(), "silu")
    x, held = torch.randn(90, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    layer, fit = split("ffn", dense, x, held, SplitConfig(experts=4, active=2))
    with torch.no_grad():
        expected = dense.down(dense.values(held))
        assert_close(expert_outputs(layer, held).sum(1) + layer.down_bias, expected)
        assert fit.router == pytest.approx(float((layer(held) - expected).norm() / (expected - layer.down_bias).norm()))
    monkeypatch.setattr("lissome.compress.experts.split.MOST", 4 * 6 * 40)
    again, _ = split("ffn", dense, x, held, SplitConfig(experts=4, active=2, rescale=False))
    assert_close(again.router.weight, layer.router.weight)


@pytest.mark.parametrize("group", [None, 32])
def test_parameters_are_those_of_the_experts_too(group):
    model = llama(intermediate_size=256)
    _, found = split_experts(model, batches(), SplitConfig(experts=4, active=2, group=group))
    routers = 2 * (4 * 32 + 4)
    assert found.parameters == (sum(one.numel() for one in model.parameters()), found.parameters[0] + routers)


def test_quantising_keeps_the_dtype():
    made, _ = split_experts(llama(), batches(), SplitConfig(experts=4, active=2))
    quantize_experts(made.module.bfloat16())
    layer = next(layers_of(made.module))
    assert layer.router.weight.dtype == torch.bfloat16 and layer.router.bias.dtype == torch.float32


def test_ridge_finds_a_linear_map():
    x = torch.randn(200, 5, dtype=torch.float64)
    targets = x @ torch.randn(5, 3, dtype=torch.float64) + 2
    weight, offset = ridge(x, targets, 1e-9)
    assert_close((x @ weight.T + offset) * targets.std(), targets, rtol=1e-5, atol=1e-5)


def test_networks_are_found_by_what_they_compute():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return self.b(self.a(x).sin())

    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), Odd())
    found = dense_networks(model)
    assert list(found) == ["0"] and found["0"].activation == "gelu" and found["0"].neurons == 16
    with pytest.raises(
        BadModel, match=r"has no feed-forward network that can be split. Modules of two or three linear layers compute something else: 1 \(Odd\)"
    ):
        dense_networks(nn.Sequential(nn.Identity(), Odd()))


def test_bad_input(tmp_path):
    with pytest.raises(ValidationError, match="8 active experts of 4"):
        SplitConfig(experts=4, active=8)
    with pytest.raises(BadInput, match=r"128 neurons of model.layers.0.mlp cannot be divided among 5 experts\s+Expected: one of 2, 4, 8, 16"):
        split_experts(llama(), batches(), SplitConfig(experts=5, active=2))
    with pytest.raises(BadInput, match=r"128 neurons, 100 of them shared, of model.layers.0.mlp cannot be divided among 16"):
        split_experts(llama(), batches(), SplitConfig(experts=16, active=2, shared=100))
    with pytest.raises(BadModel, match=r"BertForSequenceClassification has no feed-forward network that can be split[\s\S]*BERT, are not offered"):
        split_experts(tiny.bert(), [], SplitConfig())
    with pytest.raises(BadInput, match="there is no calibration data"):
        split_experts(llama(), [], SplitConfig())
    with pytest.raises(BadModel, match="experts in float are not there"):
        quantize_experts(llama())
    made, _ = split_experts(llama(), batches(), SplitConfig(experts=8, active=2))
    with pytest.raises(BadModel, match="experts already"):
        split_experts(made, batches(), SplitConfig(experts=8, active=2))
    with pytest.raises(BadInput, match=r"groups of 32 do not go into the experts of model.layers.0.mlp, 32 wide with 16 neurons"):
        quantize_experts(made.module)
    llama().save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match="no tokenizer, and no task was given"):
        split_to(tmp_path / "out", str(tmp_path / "model"), SplitConfig())


def test_a_broken_note_is_named(tmp_path):
    import json

    made, _ = split_experts(llama(), batches(), SplitConfig(experts=8, active=2))
    save_model(made, tmp_path)
    for name in ("config.json", "architecture.json"):
        said = json.loads((tmp_path / name).read_text())
        (said if name == "config.json" else said["config"])["lissome_experts"]["model.layers.1.mlp"]["active"] = 9
        (tmp_path / name).write_text(json.dumps(said))
    with pytest.raises(BadModel, match=r'experts in the place of "model.layers.1.mlp" cannot be built'):
        load_model(str(tmp_path))


def test_layer_of_keeps_every_neuron():
    dense = Dense(nn.Linear(4, 6, bias=False), None, nn.Linear(6, 4, bias=False), "relu")
    layer = layer_of(dense, torch.tensor([[4, 1], [0, 2]]), torch.tensor([3, 5]), SplitConfig(experts=2, active=1, shared=2))
    assert torch.equal(layer.experts.up[0], dense.up.weight[[4, 1]]) and torch.equal(layer.shared.down, dense.down.weight[:, [3, 5]])

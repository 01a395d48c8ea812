import pytest
import torch
from torch.testing import assert_close

from lissome.core.errors import BadModel, EnvironmentLacks
from lissome.nn.moe import in_transformers
from lissome.nn.moe.in_transformers import use
from lissome.nn.moe.watch import watching
from tests.nn import tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64}


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, initializer_range=0.3)).eval()


def qwen():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"intermediate_size": 24, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes, initializer_range=0.3)).eval()


def gpt_oss():
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    model = GptOssForCausalLM(GptOssConfig(**SIZES, **sizes, initializer_range=0.3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


pytest.importorskip("transformers.integrations.moe")


@pytest.mark.parametrize("make", [mixtral, qwen, gpt_oss])
@torch.no_grad()
def test_logits_are_those_of_transformers(make):
    model, ids = make(), torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    model.set_experts_implementation("eager")
    expected = model(input_ids=ids).logits
    assert use(model) is model and model.config._experts_implementation == "lissome"
    assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_transformers():
    model, ids = mixtral(), torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    found = []
    for way in ("eager", "lissome"):
        use(model) if way == "lissome" else model.set_experts_implementation(way)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: one.grad.clone() for name, one in model.named_parameters()})
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_future_tokens_change_nothing():
    model = use(mixtral())
    ids = torch.randint(50, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 12:] = torch.randint(50, (1, 8), generator=torch.Generator().manual_seed(2))
    assert_close(model(input_ids=changed).logits[:, :12], model(input_ids=ids).logits[:, :12], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_choices_are_counted():
    model = mixtral()
    with watching(model) as watched:
        model(input_ids=torch.zeros(2, 5, dtype=torch.long))
    assert list(watched.calls) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert all(rows.shape == (1, 8) and rows.sum() == 2 * 5 * 2 for rows in watched.counts().values())


def test_a_model_without_experts_is_refused():
    with pytest.raises(BadModel, match="BertForSequenceClassification has no experts"):
        use(tiny.bert())
    with pytest.raises(BadModel, match=r"has no experts: all of its feed-forward networks are dense[\s\S]*lissome split-experts"):
        with watching(tiny.bert()):
            pass


def test_an_old_transformers_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    with pytest.raises(EnvironmentLacks, match="no ExpertsInterface"):
        in_transformers.register()

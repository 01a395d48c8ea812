"""Models that are read block by block give the bits of the resident ones."""

import os
import subprocess
import sys

import pytest
import torch

from lissome.core.errors import BadInput, BadModel
from lissome.machine.budget import Budget
from lissome.nn.blockwise import load_blockwise

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages of a file are given back on Linux alone")
AMPLE = 1 << 40
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 5, "vocab_size": 3000, "max_position_embeddings": 64}


def models():
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    return {
        "bert": lambda: BertForSequenceClassification(BertConfig(**WIDE, num_labels=3)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, num_key_value_heads=2)),
        "tied": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=True)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=4, n_head=4, vocab_size=500, n_positions=64)),
    }


@pytest.fixture(scope="module", params=["bert", "llama", "tied", "gpt2"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model = models()[request.param]().eval()
    model.save_pretrained(folder, max_shard_size="1MB" if request.param == "llama" else "5GB")
    return model, folder


@pytest.mark.parametrize("kept", [0, 2, 99])
def test_what_comes_out_is_the_resident_models_bit_for_bit(saved, kept):
    model, folder = saved
    parts = load_blockwise(folder, AMPLE)
    parts.kept = min(kept, len(parts.units))
    for seed in range(3):
        ids = torch.randint(0, 400, (2, 9 + seed), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            assert torch.equal(parts.model(ids).logits, model(ids).logits)
    assert len(parts._kept) == parts.kept
    for unit in parts.units:
        assert all(one.is_meta for one in unit.module.parameters())
    parts.close()


def test_other_ways_through_a_model_are_right_too(saved):
    """Blocks that run twice, or from the last to the first."""
    model, folder = saved
    parts = load_blockwise(folder, AMPLE)
    parts.kept = 0
    names = [unit.name for unit in parts.units if ".mlp" not in unit.name][:4]
    blocks = {name: (model.get_submodule(name), parts.model.get_submodule(name)) for name in names}
    for name in [*reversed(names), names[0], names[0]]:
        (theirs, mine), seen = blocks[name], {}
        hook = mine.register_forward_pre_hook(lambda module, args, seen=seen: seen.update({k: v.clone() for k, v in module.named_parameters()}))
        with torch.no_grad(), pytest.raises(TypeError):
            mine()  # without inputs it fails, after its weights came
        hook.remove()
        assert seen and all(torch.equal(seen[key], value) for key, value in theirs.named_parameters())
    assert all(one.is_meta for unit in parts.units for one in unit.module.parameters())


def test_a_budget_that_is_too_small_is_refused_with_figures(saved):
    with pytest.raises(BadInput, match="a memory budget of 60 MB is less than this process takes without a model"):
        load_blockwise(saved[1], "60MB")


def test_the_figures_of_the_plan(saved, monkeypatch):
    monkeypatch.setattr("lissome.nn.blockwise.measured_budget", lambda size: Budget(size, 100_000_000))
    figures = r"this process takes 100 MB with what must stay of the model, two parts of it [\d.]+ MB(.|\n)*at least 1\d\d MB"
    with pytest.raises(BadInput, match=figures):
        load_blockwise(saved[1], 113_000_000)


def test_a_process_that_grows_gives_back_what_it_kept(saved, monkeypatch):
    model, folder = saved
    parts, ids = load_blockwise(folder, AMPLE), torch.tensor([[1, 2, 3]])
    monkeypatch.setattr(Budget, "over", lambda self: True)
    with torch.no_grad():
        assert torch.equal(parts.model(ids).logits, model(ids).logits)
        assert torch.equal(parts.model(ids).logits, model(ids).logits)
    assert parts.kept == 0 and not parts._kept


def test_training_is_refused(saved):
    with pytest.raises(BadInput, match="cannot be trained"):
        load_blockwise(saved[1], AMPLE).model(torch.tensor([[1]]))


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    models()["bert"]().save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "bert.encoder.layer.1.output.dense.bias"
    tensors = load_file(path)
    save_file({**tensors, name: torch.zeros(3)}, path)
    with pytest.raises(BadModel, match=r'"bert\.encoder\.layer\.1\.output\.dense\.bias" has the shape \[3\]'):
        load_blockwise(tmp_path, AMPLE)
    save_file({key: one for key, one in tensors.items() if key != name}, path)
    with pytest.raises(BadModel, match=r'there is no tensor for "bert\.encoder\.layer\.1'):
        load_blockwise(tmp_path, AMPLE)


def test_what_is_no_model(tmp_path):
    with pytest.raises(BadModel, match="its configuration cannot be read"):
        load_blockwise(tmp_path, AMPLE)
    models()["bert"]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(BadModel, match="its index does not say"):
        load_blockwise(tmp_path, AMPLE)


CHILD = """
import sys, torch
from lissome.machine.memory import peak_rss
from lissome.nn.blockwise import load_blockwise
import transformers
ids = torch.arange(32)[None]
if sys.argv[2] == "none":
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
else:
    model = load_blockwise(sys.argv[1], int(sys.argv[2])).model
with torch.no_grad():
    found = [model(ids + at, use_cache=False).logits for at in range(2)]
torch.save(torch.stack(found), sys.argv[3])
print(1e6 * peak_rss("").value)
"""


@pytest.mark.slow
def test_a_model_larger_than_its_budget_stays_below_it(tmp_path):
    """A gigabyte in float32, within 300 MB above what Python and torch take."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816, "num_hidden_layers": 20, "vocab_size": 8000}
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=128)).save_pretrained(tmp_path)
    budget, found = 620_000_000, {}
    for given in ("none", str(budget)):
        out = tmp_path / f"{given}.pt"
        words = [sys.executable, "-c", CHILD, str(tmp_path), given, str(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        found[given] = (float(done.stdout), torch.load(out, weights_only=True))
    assert torch.equal(found["none"][1], found[str(budget)][1])
    assert found[str(budget)][0] <= budget < found["none"][0]

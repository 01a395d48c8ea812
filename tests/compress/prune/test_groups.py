"""What is found in models of every family, and what is left alone with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lissome.compress.prune import groups
from lissome.core.errors import BadInput, BadModel
from lissome.nn.load import as_model
from tests.compress.prune import zoo


def found(module, **inputs):
    return groups(as_model(module), inputs)


def told(listed):
    """(units, kind) by name, without blocks."""
    return {group.name: (group.units, group.kind) for group in listed if group.kind != "blocks"}


def reasons(listed):
    return {one.name: one.reason for one in listed.left}


class TestFamilies:
    def test_mixed_cnn(self):
        listed = zoo.found("mixed")[1]
        assert told(listed) == {
            "stem": (4, "channels"),  # of 16 channels, cut at one place in each of the 4 groups of `grouped`
            "deep": (24, "channels"),
            "grouped": (8, "channels"),
            "side": (12, "channels"),
            "head": (20, "neurons"),
        }
        assert reasons(listed) == {"stem": "its 4 parts are cut instead", "out": "it is the model's output"}
        members = {(member.owner, member.place) for member in listed["deep"].members}
        assert members == {
            ("deep.weight", 0), ("deep.bias", 0), ("deep", "out_channels"),
            ("depthwise.weight", 0), ("depthwise.bias", 0), ("depthwise", "in_channels"), ("depthwise", "out_channels"), ("depthwise", "groups"),
            ("point.weight", 1), ("point", "in_channels"),
        }  # fmt: skip

    def test_norms(self):
        listed = zoo.found("norms")[1]
        assert told(listed) == {"stem": (8, "channels"), "up": (10, "channels"), "wide": (12, "channels"), "a": (18, "neurons")}
        assert [group.exact for group in listed] == [True, True, False, True]
        assert {("groups", "num_groups"), ("groups", "num_channels")} <= {(member.owner, member.place) for member in listed["stem"].members}

    def test_encoder(self):
        listed = zoo.found("bert")[1]
        layer = "bert.encoder.layer"
        per_layer = {f"{layer}.{i}.attention.self.query": (4, "heads") for i in range(3)} | {
            f"{layer}.{i}.intermediate.dense": (64, "neurons") for i in range(3)
        }
        assert told(listed) == {"bert.embeddings.word_embeddings": (32, "channels"), **per_layer, "bert.pooler.dense": (32, "neurons")}
        assert [(group.name, group.units, group.least) for group in listed if group.kind == "blocks"] == [(layer, 3, 1)]
        assert not listed["bert.embeddings.word_embeddings"].exact
        assert "width of an attention head" in reasons(listed)[f"{layer}.0.attention.self.query"]

    def test_key_heads_go_with_the_query_heads_they_serve(self):
        listed = zoo.found("llama")[1]
        heads = listed["model.layers.0.self_attn.q_proj"]
        assert (heads.units, heads.kind, heads.width) == (4, "heads", 16)
        cut = {member.owner: int((member.labels == 0).sum()) for member in heads.members if member.owner.endswith("weight")}
        path = "model.layers.0.self_attn"
        assert cut == {f"{path}.q_proj.weight": 16, f"{path}.k_proj.weight": 8, f"{path}.v_proj.weight": 8, f"{path}.o_proj.weight": 16}

    def test_a_single_key_head_leaves_its_query_heads(self):
        model = zoo.model("llama", num_key_value_heads=1, num_hidden_layers=1)
        heads = groups(model, zoo.example("llama"))["model.layers.0.self_attn.q_proj"]
        assert heads.units == 8
        assert ("model.layers.0.self_attn", "num_key_value_groups") in {(member.owner, member.place) for member in heads.members}
        assert {member.owner for member in heads.members if "weight" in member.owner} == {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo"}

    def test_eager_attention_is_followed_as_the_fused_one_is(self):
        eager = zoo.model("llama", attn_implementation="eager", num_hidden_layers=1)
        assert eager.module.config._attn_implementation == "eager"
        fused = {name: size for name, size in told(zoo.found("llama")[1]).items() if ".1." not in name and ".2." not in name}
        assert told(groups(eager, zoo.example("llama"))) == fused

    def test_fused_query_key_value(self):
        heads = zoo.found("heads")[1]["qkv"]
        assert (heads.units, heads.kind) == (4, "heads")
        assert ("", "num_heads") in {(member.owner, member.place) for member in heads.members}

    def test_blocks_of_a_cnn(self):
        listed = zoo.found("resnet")[1]
        assert [(g.name, g.blocks, g.least) for g in listed if g.kind == "blocks"] == [
            ("resnet.encoder.stages.0.layers", (1, 2), 0),
            ("resnet.encoder.stages.1.layers", (1,), 0),
        ]
        assert reasons(listed)["resnet.encoder.stages.0.layers.0"] == "its output has another shape than its input"


class Unfollowed(nn.Module):
    """A recurrent layer in the middle."""

    def __init__(self):
        super().__init__()
        self.a, self.lstm, self.b, self.c = nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.lstm(self.a(x))[0])))


class Overlapping(nn.Module):
    """Two layers whose weights are the same memory, as two tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x):
        return self.c(torch.relu(self.a(x)) * self.b(x))


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x) + torch.arange(8.0))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 2)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.a(-x)


class Plain(nn.Module):
    """Blocks with and without a shortcut."""

    class Block(nn.Module):
        def __init__(self, shortcut):
            super().__init__()
            self.a, self.shortcut = nn.Sequential(nn.Linear(6, 6)), shortcut

        def forward(self, x):
            return torch.relu(self.a(x)) + (x if self.shortcut else 0)

    def __init__(self):
        super().__init__()
        self.blocks, self.out = nn.ModuleList(self.Block(i != 1) for i in range(3)), nn.Linear(6, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class TestLeftAlone:
    def test_an_operation_that_is_not_followed(self):
        listed = found(Unfollowed(), x=torch.randn(2, 5, 6))
        assert told(listed) == {"b": (10, "neurons")}
        assert reasons(listed)["a"] == "it reaches the operation lstm, which pruning does not follow"

    def test_weights_that_overlap_in_memory(self):
        assert reasons(found(Overlapping(), x=torch.randn(2, 6)))["a"] in ("it shares its memory with a.weight", "it shares its memory with b.weight")

    def test_a_constant_in_the_code(self):
        listed = found(Literal(), x=torch.randn(2, 6))
        assert told(listed) == {}
        assert reasons(listed)["a"] == "it meets a constant in the model's code"

    def test_a_sum_with_the_input(self):
        listed = found(Plain(), x=torch.randn(2, 6))
        assert reasons(listed)["blocks.0.a.0"] == "it is the model's input"

    def test_code_that_does_not_follow_its_own_sizes(self):
        listed = zoo.found("stubborn")[1]
        assert told(listed) == {"proj": (24, "neurons")}
        assert any("the code of Stubborn does not follow its size: RuntimeError: shape" in one.reason for one in listed.left)

    def test_attention_of_torch_itself(self):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2, enable_nested_tensor=False)
        listed = found(encoder.eval(), src=torch.randn(2, 5, 16))
        assert told(listed) == {"layers.0.linear1": (24, "neurons"), "layers.1.linear1": (24, "neurons")}
        assert "MultiheadAttention" in " ".join(one.reason for one in listed.left)
        assert [group.name for group in listed if group.kind == "blocks"] == ["layers"]

    def test_a_block_without_a_shortcut(self):
        listed = found(Plain(), x=torch.randn(2, 6))
        assert [group.blocks for group in listed if group.kind == "blocks"] == [(0, 2)]
        assert reasons(listed)["blocks.1"] == "no shortcut leads around it"

    def test_a_model_that_does_not_trace(self):
        with pytest.raises(BadModel, match="the model cannot be traced, so nothing in it can be pruned: its control flow, a number or a shape") as error:
            found(Branching(), x=torch.randn(2, 6))
        assert "the forward of Branching itself" in str(error.value)
        assert "move that code into a layer of its own, which is then left alone" in str(error.value)

    def test_a_model_whose_outputs_are_not_finite(self):
        class Masked(nn.Sequential):
            def forward(self, x):
                return super().forward(x).masked_fill(torch.tensor([False, True]), float("-inf"))

        torch.manual_seed(0)
        with pytest.raises(BadModel, match="2 of the 4 numbers that the model gives for the example are NaN or infinite, so no cut can be checked") as error:
            found(Masked(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), x=torch.randn(2, 6))
        assert "a mask can be a large number such as -1e4 instead of -inf" in str(error.value)
        with pytest.raises(BadModel, match=r'look at the example: its input "x" is not finite itself'):
            found(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), x=torch.full((2, 6), float("nan")))

    def test_asking_for_what_is_not_there(self):
        listed = zoo.found("cnn")[1]
        with pytest.raises(BadInput, match=r'there is no group "stem" to prune\. Did you mean "stem.0"\?'):
            listed["stem"]


class Shuffled(nn.Module):
    """Channels are split, one half is worked on, and the two are shuffled together, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.work, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        both = torch.stack([left, self.work(right)], dim=2)
        return self.head(functional.relu(both.flatten(1, 2)).mean((2, 3)))


def test_shuffled_halves_are_cut_alike():
    listed = found(Shuffled(), images=torch.randn(2, 3, 5, 5))
    assert told(listed) == {"stem": (8, "channels")}
    assert {(m.owner, int((m.labels == 0).sum())) for m in listed["stem"].members if m.place == 0} == {
        ("stem.weight", 2), ("stem.bias", 2), ("work.weight", 1), ("work.bias", 1),
    }  # fmt: skip

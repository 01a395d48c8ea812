"""Removing units: the result equals the original with those units at zero, shrinks for real, and can be built again."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lissome.compress.prune import apply, groups
from lissome.compress.prune.find import silenced
from lissome.core.errors import BadInput, BadModel
from lissome.nn.call import call
from lissome.nn.load import as_model, build, load_model, save_model
from tests.compress.prune import zoo
from tests.compress.prune.zoo import found


def slowly(*names):
    """Families that are tried with the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


ALL = ["cnn", *zoo.FACTORIES, "bert", "llama", *slowly("roberta", "distilbert", "gpt2", "vit", "resnet")]
PROPERTY = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def output(module, name):
    with torch.no_grad():
        return call(module, zoo.example(name))


def some_of_each(data, listed):
    """A random choice of units for a random choice of groups."""
    chosen = data.draw(st.lists(st.sampled_from(listed), min_size=1, max_size=4, unique_by=lambda group: group.name))
    return {group.name: sorted(data.draw(st.sets(st.integers(0, group.units - 1), min_size=max(1, group.units // 3)))) for group in chosen}


def half(listed):
    return {group.name: list(range(0, group.units, 2)) for group in listed if group.kind != "blocks"}


@pytest.mark.parametrize("name", ALL)
class TestEveryFamily:
    @PROPERTY
    @given(data=st.data())
    def test_a_removed_unit_is_a_unit_at_zero(self, name, data):
        model, listed = found(name)
        keep = some_of_each(data, [group for group in listed if group.exact])
        pruned = apply(model, listed, keep)
        expected = output(silenced(model.module, [(listed[group], units) for group, units in keep.items()]), name)
        torch.testing.assert_close(output(pruned.module, name), expected, rtol=1e-3, atol=1e-4)

    def test_half_of_everything_shrinks_and_comes_back(self, name, tmp_path):
        model, listed = found(name)
        before = {key: value.clone() for key, value in model.module.state_dict().items()}
        pruned = apply(model, listed, half(listed))
        total = sum(p.numel() for p in pruned.module.parameters())
        assert total < 0.72 * listed.parameters
        assert pruned.fingerprint != model.fingerprint
        assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
        save_model(pruned, tmp_path)
        again = load_model(str(tmp_path))
        assert torch.equal(output(again.module, name), output(pruned.module, name))
        assert torch.equal(output(build(tmp_path, vouched=True), name), output(pruned.module, name))
        assert again.fingerprint == pruned.fingerprint
        assert again.architecture.resize == pruned.architecture.resize
        assert str(again.module) == str(pruned.module)

    def test_parameters_of_a_unit_are_what_goes_with_it(self, name):
        model, listed = found(name)
        for group in [group for group in listed if group.kind != "blocks"][:4]:
            pruned = apply(model, listed, {group.name: range(1, group.units)})
            assert listed.parameters - sum(p.numel() for p in pruned.module.parameters()) == group.parameters, group.name


@pytest.mark.parametrize("name", ["mixed", *slowly("bert", "llama", "resnet")])
def test_twice_is_like_once(name, tmp_path):
    model, listed = found(name)
    groups_of = [group for group in listed if group.exact][:3]
    first = apply(model, listed, {group.name: range(1, group.units) for group in groups_of})
    save_model(first, tmp_path / "first")
    first = load_model(str(tmp_path / "first"))
    again = groups(first, zoo.example(name))
    assert [again[group.name].units for group in groups_of] == [group.units - 1 for group in groups_of]
    second = apply(first, again, {group.name: range(1, group.units - 1) for group in groups_of})
    once = apply(model, listed, {group.name: range(2, group.units) for group in groups_of})
    assert torch.equal(output(second.module, name), output(once.module, name))
    assert second.architecture.resize == once.architecture.resize
    save_model(second, tmp_path / "second")
    assert torch.equal(output(load_model(str(tmp_path / "second")).module, name), output(once.module, name))


class TestBlocks:
    @pytest.mark.parametrize("name", ["bert", "cnn", "llama", *slowly("distilbert", "resnet")])
    def test_dropped_blocks_do_not_run(self, name, tmp_path):
        model, listed = found(name)
        group = next(group for group in listed if group.kind == "blocks")
        pruned = apply(model, listed, {group.name: range(1, group.units)})
        gone = model.module.get_submodule(f"{group.name}.{group.blocks[0]}")
        handle = gone.register_forward_hook(lambda _layer, args, kwargs, made: self.passed(args, kwargs, made), with_kwargs=True)
        expected = output(model.module, name)
        handle.remove()
        assert torch.equal(output(pruned.module, name), expected)
        save_model(pruned, tmp_path)
        assert torch.equal(output(load_model(str(tmp_path)).module, name), expected)

    @staticmethod
    def passed(args, kwargs, made):
        """What comes out of a block that does nothing: what went in."""
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return (given, *made[1:]) if isinstance(made, tuple) else given

    def test_a_transformer_says_its_depth_in_its_config(self, tmp_path):
        import transformers

        model, listed = found("llama")
        pruned = apply(model, listed, {"model.layers": [0, 2]})
        assert pruned.architecture.config["num_hidden_layers"] == pruned.module.config.num_hidden_layers == 2
        assert [layer.self_attn.layer_idx for layer in pruned.module.model.layers] == [0, 1]
        assert model.module.config.num_hidden_layers == 3
        save_model(pruned, tmp_path)
        alone = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()  # shallower, but of ordinary shapes: transformers needs no help with it
        torch.testing.assert_close(output(alone, "llama"), output(pruned.module, "llama"))
        tokens = pruned.module.generate(zoo.example("llama")["input_ids"][:1], max_new_tokens=3, do_sample=False, use_cache=True)
        assert torch.equal(tokens, pruned.module.generate(zoo.example("llama")["input_ids"][:1], max_new_tokens=3, do_sample=False, use_cache=False))

    def test_with_units_of_the_blocks_that_stay_and_of_those_that_go(self, tmp_path):
        model, listed = found("bert")
        keep = {**half([group for group in listed if group.exact]), "bert.encoder.layer": [0, 2]}
        pruned = apply(model, listed, keep)
        assert [layer.intermediate.dense.out_features for layer in pruned.module.bert.encoder.layer] == [32, 32]
        assert all(int(name.split(".")[3]) < 2 for name in pruned.architecture.resize.shapes if ".layer." in name)
        save_model(pruned, tmp_path)
        again = load_model(str(tmp_path))
        assert torch.equal(output(again.module, "bert"), output(pruned.module, "bert"))
        twice = apply(again, groups(again, zoo.example("bert")), {"bert.encoder.layer": [1]})
        save_model(twice, tmp_path / "twice")
        assert torch.equal(output(load_model(str(tmp_path / "twice")).module, "bert"), output(twice.module, "bert"))

    @pytest.mark.slow
    def test_blocks_of_a_cnn_are_in_the_plan(self, tmp_path):
        model, listed = found("resnet")
        once = apply(model, listed, {"resnet.encoder.stages.0.layers": [1]})
        assert once.architecture.resize.blocks == {"resnet.encoder.stages.0.layers": (0, 2)}
        twice = apply(once, groups(once, zoo.example("resnet")), {"resnet.encoder.stages.0.layers": []})
        assert twice.architecture.resize.blocks == {"resnet.encoder.stages.0.layers": (0,)}
        save_model(twice, tmp_path)
        assert torch.equal(output(load_model(str(tmp_path)).module, "resnet"), output(twice.module, "resnet"))

    def test_one_block_must_stay_where_all_could_go(self):
        model, listed = found("bert")
        with pytest.raises(BadInput, match=r'nothing of the group "bert\.encoder\.layer" would be left'):
            apply(model, listed, {"bert.encoder.layer": []})


class TestBadInput:
    def refusal(self, keep, name="cnn"):
        with pytest.raises(BadInput) as error:
            apply(*found(name), keep)
        return str(error.value)

    def test_unknown_group(self):
        assert 'there is no group "blocks.0.conv" to prune. Did you mean "blocks.0.conv1"?' in self.refusal({"blocks.0.conv": [0]})

    def test_group_that_is_left_alone(self):
        assert "It is left alone: it is the model's output." in self.refusal({"head": [0]})

    @pytest.mark.parametrize(("units", "named"), [([0, 8], 8), ([-1, 2], -1)])
    def test_unit_that_is_not_there(self, units, named):
        text = self.refusal({"stem.0": units})
        assert f'the group "stem.0" has no unit {named}.' in text
        assert "0 to 7" in text

    def test_nothing_left(self):
        assert 'nothing of the group "stem.0" would be left.' in self.refusal({"stem.0": []})

    def test_groups_of_another_model(self):
        with pytest.raises(BadInput, match="the groups are of another model, or of this one before it was changed"):
            apply(found("mixed")[0], found("cnn")[1], {"stem.0": [0, 1]})


class Counting(nn.Module):
    """Its code wants three blocks."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(6, 6))

        def forward(self, x):
            return x + self.inside(x)

    def __init__(self):
        super().__init__()
        self.blocks, self.out, self.scale = nn.ModuleList(self.Block() for _ in range(3)), nn.Linear(6, 2), None

    def forward(self, x):
        for at in range(3):
            x = self.blocks[at](x)
        return self.out(x) if self.scale is None else self.out(x) * self.scale


def test_a_smaller_model_that_does_not_run_is_not_returned():
    model = as_model(Counting())
    listed = groups(model, {"x": torch.randn(2, 6)})
    with pytest.raises(BadModel, match="the pruned model does not run: IndexError: "):
        apply(model, listed, {"blocks": [0, 1]})
    model.module.scale = float("nan")
    with pytest.raises(BadModel, match="and holds NaN or infinity"):
        apply(model, listed, {"blocks": [0, 1, 2]})
    assert len(model.module.blocks) == 3


def test_the_plan_is_json(tmp_path):
    model, listed = found("cnn")
    save_model(apply(model, listed, {"blocks.0.conv1": [0, 3, 4]}), tmp_path)
    plan = json.loads((tmp_path / "architecture.json").read_text())["resize"]
    assert plan["shapes"]["blocks.0.conv1.weight"] == [3, 8, 3, 3]
    assert plan["shapes"]["blocks.0.conv2.weight"] == [8, 3, 3, 3]
    assert plan["attributes"] == {
        "blocks.0.conv1": {"out_channels": 3},
        "blocks.0.bn1": {"num_features": 3},
        "blocks.0.conv2": {"in_channels": 3},
    }
    assert set(plan["shapes"]) == {
        "blocks.0.conv1.weight",
        "blocks.0.conv2.weight",
        *(f"blocks.0.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    }


def test_tied_weights_stay_tied():
    model, listed = found("gpt2")
    pruned = apply(model, listed, half(listed))
    assert pruned.module.lm_head.weight is pruned.module.transformer.wte.weight
    assert pruned.module.lm_head.weight.shape == (100, 16)

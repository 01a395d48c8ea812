from __future__ import annotations

import itertools

import pytest
import torch

from lissome.core.cache import Cache
from lissome.core.contract import Contract
from lissome.core.progress import Silent
from lissome.data import load_task
from lissome.machine.identity import identify
from lissome.nn.load import as_model, load_model
from lissome.optimize.bench import make_bench
from lissome.optimize.structure import cut, keep_of, structure_of


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, max_position_embeddings=32)
    example = {"input_ids": torch.randint(1, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    return structure_of(as_model(BertForSequenceClassification(config).eval()), example)


def scores(structure):
    return {group.name: torch.arange(group.units, dtype=torch.double) for group in structure.groups}


def test_a_block_is_one_part_with_its_heads_and_neurons(encoder):
    blocks = [part for part in encoder.parts if part.out]
    assert [part.name for part in blocks] == [f"bert.encoder.layer.{i}" for i in range(3)]
    assert {change.kind for ways in blocks[0].changes for change in ways} == {"heads", "neurons"}
    combined = [len(ways) + 1 for ways in blocks[0].changes]
    assert len(blocks[0].options()) == combined[0] * combined[1] + 1
    assert blocks[0].out.name == "left out"


def test_equal_parts_have_equal_signatures(encoder):
    by_block = [[change.signature for change in itertools.chain(*part.changes, [part.out])] for part in encoder.parts if part.out]
    assert by_block[0] == by_block[1] == by_block[2]
    assert len(set(by_block[0])) == len(by_block[0])


def test_what_is_cut_shrinks_and_the_best_units_stay(encoder):
    part = encoder.parts[0]
    narrower = [ways[-1] for ways in part.changes] + [encoder.parts[2].out]
    keep = keep_of(encoder, narrower, scores(encoder))
    for ways in part.changes:
        assert keep[ways[-1].group] == list(range(ways[-1].units - ways[-1].keep, ways[-1].units))
    smaller = cut(encoder, narrower, scores(encoder)).module
    assert len(smaller.bert.encoder.layer) == 2
    assert smaller.bert.encoder.layer[0].intermediate.dense.out_features == part.changes[1][-1].keep


def test_one_block_always_stays(encoder):
    everything = [part.out for part in encoder.parts if part.out]
    assert keep_of(encoder, everything, scores(encoder))["bert.encoder.layer"] == [2]
    assert len(cut(encoder, everything, scores(encoder)).module.bert.encoder.layer) == 1


class TestPrecision:
    @pytest.fixture
    def bench(self, here):
        return make_bench(load_model("tiny_model:outlier"), load_task(str(here / "task.yaml")), Contract(max_drop="3%"), identify(), Cache(), Silent())

    def test_the_layer_with_the_stretched_range_is_found_and_left_in_float(self, bench):
        from lissome.compress.quantize.apply import quantize
        from lissome.compress.quantize.task import calibration
        from lissome.core.manifest import Option
        from lissome.optimize.precision import METHODS, planned, plans, table
        from lissome.optimize.sensitivity import probe_of

        quantized = quantize(bench.model, METHODS[0].model_copy(update={"smallest": 1}), calibration(bench.task))
        found = table(bench, quantized, Option(engine="onnxruntime", precision="mixed"), probe_of(bench))
        names = [one.layers for one in found.sets]
        assert names == [("0",), ("2",), ("4",)]
        assert found.loss[1] > 10 * max(found.loss[0], found.loss[2])
        points = plans(found, None)
        assert points
        assert all(point.picks[1] == 1 for point in points)
        assert points[0].loss <= 0.5 * sum(found.loss)
        variant = planned(bench, quantized, found, points[0], ())
        assert "2" not in variant.bench.quantized.quantization.layers
        assert [part.chosen for part in variant.parts][1] == "float"

    def test_layers_that_read_the_same_tensor_are_one_set(self):
        from transformers import BertConfig, BertForSequenceClassification

        from lissome.core.quantization import LayerQuant, Quantization
        from lissome.optimize.precision import shared_layers

        config = BertConfig(vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
        module = BertForSequenceClassification(config).eval()
        names = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear) and "encoder" in name]
        found = shared_layers(module, Quantization(layers={name: LayerQuant() for name in names}), {"input_ids": torch.ones(1, 5, dtype=torch.long)})
        assert [len(one.layers) for one in found] == [3, 1, 1, 1] * 2
        assert found[0].signature == found[4].signature != found[1].signature
        assert found[0].name == "bert.encoder.layer.0.attention.self.query + 2"

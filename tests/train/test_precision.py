from __future__ import annotations

import pytest
import torch

from lissome.train import precision
from lissome.train.config import TrainConfig
from lissome.train.loop import train
from lissome.train.precision import AttentionInFloat, choose_precision
from tests.train.small import bits, data, loader, loss, small

CPU = torch.device("cpu")


def timed(fp32, bf16, value=1.0):
    return lambda module, batch, loss, device, kind: (fp32, value) if kind == "fp32" else (bf16, value)


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "bf16"), (1.0, "fp32"), (0.95, "fp32"), (2.0, "fp32")])
def test_taken_only_where_it_pays(monkeypatch, bf16, chosen):
    monkeypatch.setattr(precision, "_timed", timed(1.0, bf16))
    found, why = choose_precision(small(), 1, loss, CPU)
    assert found == chosen
    assert f"1e+03 ms in fp32 and {1e3 * bf16:.3g} ms in bf16 ({1 / bf16:.2f}x, 9 pairs" in why


def test_timing_leaves_no_trace():
    module = small().train()
    batch = next(iter(loader(shuffle=False)))
    before, buffers = bits(module), module.norm.num_batches_tracked.item()
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    chosen, why = choose_precision(module, batch, loss, CPU)
    assert torch.equal(torch.rand(1), expected)
    assert bits(module) == before
    assert module.norm.num_batches_tracked.item() == buffers
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    assert chosen in ("fp32", "bf16")
    assert "9 pairs" in why


def test_not_where_the_loss_overflows(monkeypatch):
    monkeypatch.setattr(precision, "_timed", lambda module, batch, loss, device, kind: (1.0, 1.0) if kind == "fp32" else (0.1, float("nan")))
    assert choose_precision(small(), 1, loss, CPU) == ("fp32", "the loss is not finite in bf16")


def test_16_bit_weights_are_left_alone():
    assert choose_precision(small().bfloat16(), 1, loss, CPU)[0] == "fp32"


def test_the_choice_and_its_reason_are_in_the_result(monkeypatch):
    monkeypatch.setattr(precision, "_timed", timed(1.0, 0.4))
    result = train(small(), loader(), loss, TrainConfig(steps=2))
    assert result.precision == "bf16"
    assert "2.50x" in result.why


def test_auto_gives_the_bits_of_the_precision_it_chose(monkeypatch):
    monkeypatch.setattr(precision, "PAYS", 1e9)
    auto, named = small(), small()
    train(auto, loader(), loss, TrainConfig(steps=5))
    train(named, loader(), loss, TrainConfig(steps=5, precision="fp32"))
    assert bits(auto) == bits(named)


def test_three_pairs_must_do_when_they_are_slow(monkeypatch):
    calls = []
    monkeypatch.setattr(precision, "_timed", lambda module, batch, loss, device, kind: (calls.append(kind), (1.0, 1.0))[1])
    monkeypatch.setattr(precision, "ENOUGH_S", 0.0)
    assert "3 pairs" in choose_precision(small(), 1, loss, CPU)[1]
    assert calls == ["fp32", "bf16"] * 4  # a pair to warm up, then three


def test_a_busy_machine_does_not_hide_the_gain(monkeypatch):
    times = {"fp32": iter([1.0, 5.0, 1.0, 9.0] * 3), "bf16": iter([9.0, 0.5, 7.0, 9.0] * 3)}
    monkeypatch.setattr(precision, "_timed", lambda module, batch, loss, device, kind: (next(times[kind]), 1.0))
    assert choose_precision(small(), 1, loss, CPU)[0] == "bf16"


def test_the_batch_of_middle_size_is_timed(monkeypatch):
    seen = []
    monkeypatch.setattr(precision, "_timed", lambda module, batch, loss, device, kind: (seen.append(len(batch[0])), (1.0, 1.0))[1])
    x, y = data(20)
    train(small(), list(zip(x.split((12, 2, 6)), y.split((12, 2, 6)), strict=True)), loss, TrainConfig())
    assert set(seen) == {6}


@pytest.mark.parametrize("by_name", [False, True])
def test_attention_in_float_is_float32_attention_rounded(by_name):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(q.float(), k.float(), v.float(), attn_mask=mask).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), AttentionInFloat():
        found = attend(query=q, key=k, value=v, attn_mask=mask) if by_name else attend(q, k, v, mask)
        assert attend(q.float(), k, v.float()).dtype == torch.bfloat16, "what autocast does to float32 is left to it"
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert torch.isfinite(q.grad).all()

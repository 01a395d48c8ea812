"""Tiny Llama classifiers whose attention is known, and tasks whose labels are what they say.

Tokens 2 and 3 vote for the one class and the other; token 1, four of which may begin a text, votes strongly. The last token's output is the mean vote of
what it attends to: of the near past where `near`, of everything otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lissome.core.task import Split, Task, correct
from lissome.nn.call import call

START, PLUS, MINUS = 1, 2, 3
WIDTH, HEADS, KEYS, DIM = 32, 4, 2, 8
GAIN = 60.0
"""Makes scores fall from 0 to about -100 over 64 places: with rotary positions of frequency 0.01, a constant query and key give cos(0.01 distance)."""


def llama(near: bool, layers: int = 2) -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=KEYS, vocab_size=8, head_dim=DIM,
        max_position_embeddings=512, attention_bias=True, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    module = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        words = module.model.embed_tokens.weight
        words[START, 0] = 1
        words[PLUS, 0], words[MINUS, 0], words[2:4, 1] = 0.1, -0.1, 1
        for layer in module.model.layers:
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
            if near:
                layer.self_attn.q_proj.bias.view(HEADS, DIM)[:, 2] = GAIN
                layer.self_attn.k_proj.bias.view(KEYS, DIM)[:, 2] = GAIN
        first = module.model.layers[0].self_attn
        first.v_proj.weight.view(KEYS, DIM, WIDTH)[:, 0, 0] = 1
        first.o_proj.weight.view(WIDTH, HEADS, DIM)[2, :, 0] = 1
        module.model.norm.weight.fill_(1)
        module.score.weight[0, 2], module.score.weight[1, 2] = -1, 1
    return module


def folder(path: Path, near: bool) -> str:
    llama(near).save_pretrained(path)
    return str(path)


def texts(n: int, seed: int, lean: float = 0.0, starts: int = 4) -> list[np.ndarray]:
    """Texts of about 200 to 290 tokens. lean: how much more likely than the other the one vote is in a text; 0: even. starts: strong votes at the begin."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        share = 0.5 + lean / 2 * rng.choice([-1, 1])
        found.append(np.concatenate([np.full(starts, START), rng.choice([PLUS, MINUS], size=int(rng.integers(196, 287)), p=[share, 1 - share])]))
    return found


def collate(rows, padding="longest"):
    width = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def task(near: bool, n: int = 40, lean: float = 0.0, train: int = 8, starts: int = 4) -> Task:
    """Texts whose labels are the dense model's own answers."""
    module = llama(near)
    splits = {}
    for seed, (name, count) in enumerate({"train": train, "calibration": 4, "validation": n, "test": n}.items()):
        given = texts(count, seed, lean, starts)
        with torch.no_grad():
            answers = call(module, {key: torch.from_numpy(value) for key, value in collate(given).items()}).argmax(-1).numpy()
        splits[name] = Split(given, answers)
    ref = f"worlds:{'near' if near else 'far'}-{n}-{lean}-{train}-{starts}"
    return Task("votes", "text-classification", splits, collate, correct, ref, ref, classes=("minus", "plus"), variable_length=True)


def near_task() -> Task:
    return task(near=True)


def far_task() -> Task:
    return task(near=False, starts=0)


def leaning_task() -> Task:
    """The far past says what the near one says; but the strong first votes weigh more in a window, which a model can learn to live with."""
    return task(near=False, n=40, lean=0.5, train=64)


def short_task() -> Task:
    """Too few examples to certify much."""
    return task(near=True, n=20)


def language_task() -> Task:
    """A language-modelling task: exp of the mean log-likelihood of a text's next tokens, in (0, 1]."""
    length = 256

    def score(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(outputs[:, :-1]).log_softmax(-1)
        ids = torch.stack([torch.from_numpy(rows[int(i)]) for i in targets])
        return logits.gather(-1, ids[:, 1:, None]).mean((1, 2)).exp().numpy()

    rows = [row[:length] for row in texts(260, 7) if len(row) >= length][:70]
    parts = {"train": range(4), "calibration": range(4, 8), "validation": range(8, 39), "test": range(39, 70)}
    splits = {name: Split([rows[i] for i in part], np.array(part)) for name, part in parts.items()}
    return Task("votes", "language-modelling", splits, collate, score, "worlds-language", "worlds:language", exact=False, variable_length=True)

"""Tiny models of every family that pruning must follow, with inputs. Weights are random but large enough for units to matter."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from lissome.compress.prune import Groups, groups
from lissome.core.model import Architecture, Model
from lissome.nn.load import as_model, finished
from tests.nn import tiny

HERE = "tests.compress.prune.zoo"


class Mixed(nn.Module):
    """A CNN with a residual, a depthwise and a grouped convolution, a concatenation, a gate, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.depthwise, self.point = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.gate = nn.Conv2d(32, 32, 1)
        self.side = nn.Conv2d(16, 12, 1)
        self.head, self.out = nn.Linear((32 + 12) * 4, 20), nn.Linear(20, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(images)))
        x = x + self.point(functional.relu6(self.depthwise(functional.relu6(self.deep(x)))))
        y = functional.silu(self.grouped(x))
        y = y * torch.sigmoid(self.gate(y.mean(dim=(2, 3), keepdim=True)))
        z = torch.cat([y, torch.tanh(self.side(x))], dim=1)
        z = functional.adaptive_avg_pool2d(z, 2).flatten(1)
        return self.out(functional.gelu(self.head(z)))


class Joined(nn.Module):
    """A residual, a depthwise and a grouped convolution, and a concatenation: what torch-pruning follows too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.depthwise, self.point = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 16, 1)
        self.into, self.grouped, self.side = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 3, padding=1, groups=4), nn.Conv2d(16, 12, 1)
        self.merge, self.head, self.out = nn.Conv2d(44, 10, 1), nn.Linear(40, 20), nn.Linear(20, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(images)))
        x = x + self.point(functional.relu6(self.depthwise(functional.relu6(self.deep(x)))))
        z = self.merge(torch.cat([self.grouped(self.into(x)), self.side(x)], dim=1))
        return self.out(functional.gelu(self.head(functional.adaptive_avg_pool2d(z, 2).flatten(1))))


class Norms(nn.Module):
    """Group and layer normalisation, a transposed convolution, a GLU, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.groups = nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16)
        self.up, self.slope = nn.ConvTranspose2d(16, 10, 2), nn.PReLU(10)
        self.wide, self.layer = nn.Linear(10, 24), nn.LayerNorm(12)
        self.a, self.b = nn.Linear(12, 18, bias=False), nn.Linear(18, 12, bias=False)
        self.out = nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.up(torch.relu(self.groups(self.stem(images)))))
        x = self.layer(functional.glu(self.wide(x.mean((2, 3)))))
        x = x + functional.linear(torch.relu(self.a(x)), self.a.weight.t()) + self.b(torch.relu(self.a(x)))
        return self.out(x)


class Heads(nn.Module):
    """Attention written by hand, with one matrix for queries, keys and values."""

    def __init__(self, width: int = 24, num_heads: int = 4):
        super().__init__()
        self.num_heads, self.qkv, self.proj, self.out = num_heads, nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)
        self.head_dim = width // num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.out(x + self.proj((scores @ v).transpose(1, 2).reshape(batch, length, -1))).mean(1)


class Stubborn(Heads):
    """Its code divides a width that pruning does not change by the number of heads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(
            self.proj((q @ k.transpose(-2, -1)).softmax(-1) @ v).mean(2)
            if False
            else self.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))
        ).mean(1)


def made(module: nn.Module) -> nn.Module:
    """Eval mode, with statistics and offsets that are not what a fresh module has."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.2)
    return module.eval()


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return made(Mixed())


def joined() -> nn.Module:
    torch.manual_seed(0)
    return made(Joined())


def norms() -> nn.Module:
    torch.manual_seed(0)
    return made(Norms())


def heads() -> nn.Module:
    torch.manual_seed(0)
    return made(Heads())


def stubborn() -> nn.Module:
    torch.manual_seed(0)
    return made(Stubborn())


def transformer(name: str, **changes: object) -> nn.Module:
    """A tiny transformers model by its short name."""
    import transformers as t

    torch.manual_seed(0)
    text = {"vocab_size": tiny.VOCABULARY, "num_labels": 3, "initializer_range": 0.2, "pad_token_id": 0}
    if name == "bert":
        return made(tiny.bert(3, num_hidden_layers=3, num_attention_heads=4, **changes))
    if name == "roberta":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
        return made(t.RobertaForSequenceClassification(t.RobertaConfig(**{**text, **sizes, **changes})))
    if name == "distilbert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
        return made(t.DistilBertForSequenceClassification(t.DistilBertConfig(**{**text, **sizes, **changes})))
    if name == "llama":
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48}
        return made(t.LlamaForCausalLM(t.LlamaConfig(**{**text, **sizes, "head_dim": 8, **changes})))
    if name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return made(t.GPT2LMHeadModel(t.GPT2Config(**{**text, **sizes, **changes})))
    if name == "vit":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
        return made(t.ViTForImageClassification(t.ViTConfig(**{"num_labels": 3, "initializer_range": 0.2, **sizes, **changes})))
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [3, 2], "layer_type": "bottleneck", "num_labels": 3}
    return made(t.ResNetForImageClassification(t.ResNetConfig(**{**sizes, **changes})))


FACTORIES = ("mixed", "norms", "heads")
TRANSFORMERS = ("bert", "roberta", "distilbert", "llama", "gpt2", "vit", "resnet")


def model(name: str, **changes: object) -> Model:
    """The Model of that name."""
    if name in TRANSFORMERS:
        return as_model(transformer(name, **changes), name)
    module = tiny.cnn() if name == "cnn" else globals()[name]()
    target = "tests.nn.tiny:cnn" if name == "cnn" else f"{HERE}:{name}"
    return finished(module, Architecture(kind="factory", target=target), name)


def example(name: str, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of the model of that name."""
    torch.manual_seed(2)
    if name in ("bert", "roberta", "distilbert", "llama", "gpt2"):
        return tiny.tensors(tiny.texts(batch, 7))
    if name in ("heads", "stubborn"):
        return {"x": torch.randn(batch, 5, 24)}
    if name == "cnn":
        return tiny.tensors(tiny.images(batch))
    side, key = (16, "pixel_values") if name == "vit" else (32, "pixel_values") if name == "resnet" else (9, "images")
    return {key: torch.randn(batch, 3, side, side)}


@functools.cache
def found(name: str) -> tuple[Model, Groups]:
    """The model of that name and its groups; neither is ever changed."""
    of = model(name)
    return of, groups(of, example(name))

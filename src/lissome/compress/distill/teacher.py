"""The teacher: what it says of a batch, read from the cache where it has said it before."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lissome.compress.distill.capture import listening
from lissome.compress.distill.examples import keys_of, lengths_of, mask_of, outputs_of
from lissome.compress.distill.store import Field, Store
from lissome.core.cache import Cache, digest
from lissome.core.errors import BadModel
from lissome.core.model import Model
from lissome.core.progress import Progress
from lissome.train.batches import Ordered
from lissome.train.checkpoint import seed_everything

VERSION = 1
"""Part of the cache key: raise it when the same teacher would leave other records."""

OUTPUTS = "outputs"
"""Name of the teacher's output tensor among what it says; the others are module names."""


class Teacher:
    """A model in eval mode, without gradients, in float32. It is called with batches and says its outputs and what the modules `wanted` gave.

    What the cache holds is read: the outputs, and the rest where `keep_all`. A batch of which one example is missing is run as a whole.
    """

    def __init__(self, model: Model, wanted: Sequence[str], cache: Cache, cache_mb: float, keep_all: bool):
        self.module, self.ref, self.wanted, self.runs = model.module, model.ref, list(wanted), 0
        self.store = None
        if cache_mb and (keep_all or not wanted):
            self.store = Store(cache, digest("teacher", VERSION, model.fingerprint, self.wanted, torch.__version__), int(cache_mb * 1e6))

    def __call__(self, batch: Any) -> dict[str, torch.Tensor]:
        """What the teacher says of `batch`, on the batch's device."""
        keys = keys_of(batch) if self.store is not None else None
        if self.store is None or keys is None:
            return self._run(batch)
        if any(key not in self.store for key in keys):
            said = self._run(batch)
            if not self._keep(batch, keys, said):
                return said
        return self._recall(batch, keys)

    def prepare(self, data: Ordered, batches: int | None, seed: int, progress: Progress) -> None:
        """Run over the first epoch's batches (at most `batches`), so that training only reads. Random draws are those of training's own first epoch."""
        if self.store is None:
            return
        length = min(batches or len(data), len(data) or batches or 0)
        progress.stage("the teacher's outputs", length)
        seed_everything(seed, 0)
        for batch in itertools.islice(data.epoch(0), length):
            keys = keys_of(batch)
            if keys is not None and any(key not in self.store for key in keys) and not self._keep(batch, keys, self._run(batch)):
                break  # the cache is full
            progress.step()
        self.store.flush()

    def _run(self, batch: Any) -> dict[str, torch.Tensor]:
        """Run the teacher. Raises BadModel when its outputs are not finite."""
        self.runs += 1
        device = next((value.device for value in _tensors(batch)), torch.device("cpu"))
        if next((p.device for p in self.module.parameters()), device) != device:
            self.module = copy.deepcopy(self.module).to(device)
        self.module.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), listening(self.module, self.wanted) as heard:
            said = {OUTPUTS: outputs_of(self.module, batch)}
        if not bool(torch.isfinite(said[OUTPUTS]).all()):
            raise BadModel("the teacher's outputs hold NaN or infinity.", where=self.ref, do="check its weights and the data, or take another teacher")
        absent = next((name for name in self.wanted if name not in heard), None)
        if absent is not None:
            raise BadModel(f'the module "{absent}" did not run, so it has nothing to teach.', where=self.ref, do="pair other modules in `layers`")
        return said | {name: heard[name].float() for name in self.wanted}

    def _keep(self, batch: Any, keys: list[bytes], said: dict[str, torch.Tensor]) -> bool:
        """Add the batch's examples to the store; whether all are there now."""
        assert self.store is not None
        mask, lengths = mask_of(batch), lengths_of(batch)
        fields = []
        for name, value in said.items():
            per_token = mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape
            if value.shape[0] != len(keys) or (per_token and lengths is None):
                return False
            fields.append(Field(name, "<f4" if name == OUTPUTS else "<f2", tuple(value.shape[2 if per_token else 1 :]), per_token))
        arrays = {name: value.cpu().numpy().astype(field.dtype) for (name, value), field in zip(said.items(), fields, strict=True)}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return False  # beyond float16's range
        for i, key in enumerate(keys):
            length = lengths[i] if lengths is not None else 1
            rows = {field.name: arrays[field.name][i, :length] if field.per_token else arrays[field.name][i] for field in fields}
            self.store.put(key, rows, fields, length)
        return all(key in self.store for key in keys)

    def _recall(self, batch: Any, keys: list[bytes]) -> dict[str, torch.Tensor]:
        """What was said of the batch's examples, padded with zeros to the batch's length."""
        assert self.store is not None
        device = next((value.device for value in _tensors(batch)), torch.device("cpu"))
        mask = mask_of(batch)
        records = [self.store.get(key) for key in keys]
        said = {}
        for field in self.store.fields:
            shape = (len(keys), *((mask.shape[1],) if field.per_token and mask is not None else ()), *field.row)
            joined = np.zeros(shape, dtype=np.float32)
            for i, record in enumerate(records):
                if field.per_token:
                    joined[i, : len(record[field.name])] = record[field.name]
                else:
                    joined[i] = record[field.name]
            said[field.name] = torch.from_numpy(joined).to(device)
        return said


def _tensors(batch: Any) -> list[torch.Tensor]:
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else (batch,)
    return [value for value in values if isinstance(value, torch.Tensor)]

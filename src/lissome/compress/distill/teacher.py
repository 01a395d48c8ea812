"""The teacher: what it says of a batch, read from the cache where it has said it before."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lissome.compress.batches import forward
from lissome.compress.distill.capture import listening
from lissome.compress.distill.examples import keys_of, lengths_of, mask_of
from lissome.compress.distill.store import Layout, Store
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

    What it said before is read from the cache: the outputs, and the rest where `keep_all`; at most `cache_mb` megabytes are kept. A batch of which one
    example is missing is run as a whole.
    """

    def __init__(self, model: Model, wanted: Sequence[str], cache: Cache, cache_mb: float, keep_all: bool):
        self.module, self.ref, self.wanted, self.most, self.runs = model.module, model.ref, list(wanted), cache_mb * 1e6, 0
        names = [OUTPUTS, *wanted] if cache_mb and (keep_all or not wanted) else []
        self.stores = {name: Store(cache, digest("teacher", VERSION, model.fingerprint, name, torch.__version__)) for name in names}

    def __call__(self, batch: Any) -> dict[str, torch.Tensor]:
        """What the teacher says of `batch`, on the batch's device."""
        keys = keys_of(batch) if self.stores else None
        if keys is None:
            return self._run(batch)
        if not self._knows(keys):
            said = self._run(batch)
            if not self._keep(batch, keys, said):
                return said
        return {name: self._recall(batch, keys, store) for name, store in self.stores.items()}

    def prepare(self, data: Ordered, batches: int | None, seed: int, progress: Progress, deadline: float | None = None) -> None:
        """Run over the first epoch's batches (at most `batches`), so that training only reads. Random draws are those of training's own first epoch.

        deadline: on the monotonic clock; what was not said by then is said when it is asked for.
        """
        if not self.stores:
            return
        length = min(batches or len(data), len(data) or batches or 0)
        progress.stage("the teacher's outputs", length)
        seed_everything(seed, 0)
        for batch in itertools.islice(data.epoch(0), length):
            if deadline is not None and time.monotonic() >= deadline:
                break
            keys = keys_of(batch)
            if keys is not None and not self._knows(keys) and not self._keep(batch, keys, self._run(batch)):
                break  # the cache is full, or this teacher's outputs do not fit it
            progress.step()

    def close(self) -> None:
        """Bring what was said to the disk."""
        for store in self.stores.values():
            store.close()

    def _run(self, batch: Any) -> dict[str, torch.Tensor]:
        """Run the teacher. Raises BadModel when its outputs are not finite."""
        self.runs += 1
        device = next((value.device for value in _tensors(batch)), torch.device("cpu"))
        if next((p.device for p in self.module.parameters()), device) != device:
            self.module = copy.deepcopy(self.module).to(device)
        self.module.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), listening(self.module, self.wanted) as heard:
            said = {OUTPUTS: forward(self.module, batch)}
        if not bool(torch.isfinite(said[OUTPUTS]).all()):
            raise BadModel("the teacher's outputs hold NaN or infinity.", where=self.ref, do="check its weights and the data, or take another teacher")
        absent = next((name for name in self.wanted if name not in heard), None)
        if absent is not None:
            raise BadModel(f'the module "{absent}" did not run, so it has nothing to teach.', where=self.ref, do="pair other modules in `layers`")
        return said | {name: heard[name].float() for name in self.wanted}

    def _knows(self, keys: list[bytes]) -> bool:
        return all(key in store for store in self.stores.values() for key in keys)

    def _keep(self, batch: Any, keys: list[bytes], said: dict[str, torch.Tensor]) -> bool:
        """Add the batch's examples to the stores; whether all are there now."""
        mask, lengths = mask_of(batch), lengths_of(batch)
        for name, store in self.stores.items():
            value = said[name]
            per_token = mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape
            if value.shape[0] != len(keys) or (per_token and lengths is None):
                return False
            layout = Layout("<f4" if name == OUTPUTS else "<f2", tuple(value.shape[2 if per_token else 1 :]), per_token)
            array = value.cpu().numpy().astype(layout.dtype)
            if not np.isfinite(array).all():
                return False  # beyond float16's range
            for i, key in enumerate(keys):
                length = lengths[i] if lengths is not None else 1
                if sum(one.used for one in self.stores.values()) + layout.bytes(length) > self.most:
                    return False
                store.put(key, array[i, :length] if per_token else array[i], layout, length)
        return self._knows(keys)

    def _recall(self, batch: Any, keys: list[bytes], store: Store) -> torch.Tensor:
        """What was said of the batch's examples, padded with zeros to the batch's length."""
        assert store.layout is not None
        mask, layout = mask_of(batch), store.layout
        joined = np.zeros((len(keys), *((mask.shape[1],) if layout.per_token and mask is not None else ()), *layout.row), dtype=np.float32)
        for i, key in enumerate(keys):
            array = store.get(key)
            if layout.per_token:
                joined[i, : len(array)] = array
            else:
                joined[i] = array
        return torch.from_numpy(joined).to(next((value.device for value in _tensors(batch)), torch.device("cpu")))


def _tensors(batch: Any) -> list[torch.Tensor]:
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else (batch,)
    return [value for value in values if isinstance(value, torch.Tensor)]

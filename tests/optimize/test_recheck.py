"""`verify` on artifacts that moved, whose data changed, or that come from someone else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lissome.core import trust
from lissome.core.errors import BadArtifact, BadModel, BadTask
from lissome.core.manifest import Manifest, TaskInfo, read_manifest, write_manifest
from lissome.data import load_task
from lissome.data.fingerprint import data_fingerprint
from lissome.data.inputs import save_inputs
from lissome.optimize.recheck import _same_task, verify


def info(task, ref):
    return TaskInfo(
        ref=ref, name=task.name, kind=task.kind, fingerprint=task.fingerprint, sizes=task.sizes(), classes=task.classes, data=data_fingerprint(task)
    )


def spoilt(met, tmp_path, **task) -> Path:
    """A copy of the artifact whose manifest names another task."""
    folder = Path(shutil.copytree(met.folder, tmp_path / "copy"))
    manifest = read_manifest(folder)
    write_manifest(manifest.model_copy(update={"task": manifest.task.model_copy(update=task)}), folder)
    return folder


def test_edited_labels_are_noticed_though_every_count_is_the_same(met, here, tmp_path):
    for name in ("rows.csv", "task.yaml"):
        shutil.copy(here / name, tmp_path / name)
    task = str(tmp_path / "task.yaml")
    assert data_fingerprint(load_task(task)) == met.manifest.task.data
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([f"{float(cells[0]) + 0.5:.4f}", *cells[1:]])
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadTask) as error:
        verify(met.folder, task)
    assert str(error.value).startswith(f"{task}: the task's data are not those this artifact was judged on.")
    assert "give the original data with --task" in str(error.value)
    shutil.copy(here / "rows.csv", tmp_path / "rows.csv")
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    left, right = (next(i for i, row in enumerate(rows) if row.endswith(f",{side}")) for side in ("left", "right"))
    rows[left], rows[right] = rows[left].replace("left", "right"), rows[right].replace("right", "left")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(BadTask, match="the task's data are not those this artifact was judged on"):
        verify(met.folder, task)


def test_a_task_that_the_manifest_names_is_not_run_unless_the_user_names_it(met, here, tmp_path):
    (tmp_path / "their_task.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    folder = spoilt(met, tmp_path, ref="their_task:make")
    with pytest.raises(BadArtifact) as error:
        verify(folder)
    assert str(error.value).startswith(f"{folder / 'manifest.json'}: it needs the code their_task:make, which was not named by you.")
    assert "LISSOME_TRUST=their_task:make lissome" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_the_artifact_names_is_not_run_unless_the_user_names_it(met, here, monkeypatch):
    monkeypatch.setattr(trust, "_named", set())
    with pytest.raises(BadModel, match="it needs the code tiny_model:build, which was not named by you"):
        verify(met.folder)


def test_texts_are_batched_with_what_the_artifact_keeps_not_with_a_guess(met, tmp_path):
    """A tokenizer.json without a padding token, as many are: the settings come from inputs.json."""
    import tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = tokenizers.Tokenizer(WordLevel({"none": 0, "film": 1, "good": 2, "bad": 3}, unk_token="none"))
    made.pre_tokenizer = Whitespace()
    (tmp_path / "model").mkdir()
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "distilbert", "pad_token_id": 0, "max_position_embeddings": 8}))
    rows = "".join(f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}\n" for i in range(200))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "task.yaml").write_text("kind: text-classification\ndata: rows.csv\nlabel: label\n")
    ref = str(tmp_path / "task.yaml")
    task = load_task(ref, tmp_path / "model")
    folder = tmp_path / "artifact"
    (folder / "inputs").mkdir(parents=True)
    save_inputs(task, folder / "inputs")
    manifest: Manifest = met.manifest.model_copy(update={"task": info(task, ref)})
    known = _same_task(folder, manifest, None)
    texts = task.splits["test"].inputs[:4]
    for name, array in task.collate(texts, "fixed").items():
        np.testing.assert_array_equal(known.collate(texts, "fixed")[name], array)

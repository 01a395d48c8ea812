from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lissome.core import trust
from lissome.core.errors import BadArtifact, BadInput
from lissome.data import digits_task, load_task
from lissome.data.inputs import load_inputs, save_inputs


def images(write, tmp_path, dtype):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "i.npz", images=(rng.random((60, 6, 4)) * 255).astype(dtype), labels=np.arange(60) % 2)
    return load_task(str(write("t.yaml", "kind: image-classification\ndata: i.npz\n")))


def kept(task, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    save_inputs(task, folder)
    return folder


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_only_images_of_bytes_can_be_read_from_pictures(write, tmp_path, dtype):
    from PIL import Image

    task = images(write, tmp_path, dtype)
    inputs = load_inputs(kept(task, tmp_path))
    example = task.splits["test"].inputs[0]
    np.testing.assert_array_equal(inputs.collate([example], "longest")["pixel_values"], task.collate([example], "longest")["pixel_values"])
    Image.fromarray(example[0].astype("uint8")).save(tmp_path / "p.png")
    if dtype == "uint8":
        np.testing.assert_array_equal(inputs.parse(str(tmp_path / "p.png")), example)
        return
    for parse in (inputs.parse, task.parse):
        with pytest.raises(BadInput) as error:
            parse(str(tmp_path / "p.png"))
        assert "this task's images are arrays of numbers, not pictures: predict from Python" in str(error.value)


def test_digits_take_numbers_and_pictures(tmp_path):
    from PIL import Image

    inputs = load_inputs(kept(digits_task(), tmp_path))
    assert inputs.parse(",".join(["16"] * 64)).max() == 1
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "p.png")
    assert inputs.parse(str(tmp_path / "p.png")).max() == 1


def test_code_that_the_file_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "_named", set())
    folder = kept(digits_task(), tmp_path)
    path = folder / "inputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ref": "subprocess:getoutput"}))
    with pytest.raises(BadArtifact) as error:
        load_inputs(folder)
    assert str(error.value).startswith(f"{path}: it needs the code subprocess:getoutput, which was not named by you.")
    assert "LISSOME_TRUST=subprocess:getoutput" in str(error.value)


def test_texts_are_batched_as_in_the_task(reviews, tokenizer_dir, tmp_path):
    """The tokenizer's file alone does not say what it takes: the settings are kept with it."""
    config = json.loads((tokenizer_dir / "config.json").read_text())
    (tokenizer_dir / "config.json").write_text(json.dumps({**config, "type_vocab_size": 1}))
    task = load_task(str(reviews), tokenizer_dir)
    inputs = load_inputs(kept(task, tmp_path))
    texts = task.splits["test"].inputs[:3]
    for padding in ("longest", "multiple-of-16", "fixed"):
        ours, theirs = inputs.collate(texts, padding), task.collate(texts, padding)
        assert list(ours) == list(theirs) == ["input_ids", "attention_mask"]
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])
    bare = replace(load_task(str(reviews)), collate=inputs.collate)
    assert bare.collate(texts, "longest")["input_ids"].shape == (3, task.collate(texts, "longest")["input_ids"].shape[1])

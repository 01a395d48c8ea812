"""Files that lie: no crash, no memory beyond what the file's own size calls for, and an error that says what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lissome.core.errors import BadModel
from lissome.engines.decoding.engine import open_engine, pack_gguf
from lissome.nn.decoder.folder import DESCRIPTION, TENSORS, load_decoder
from lissome.nn.decoder.gguf import read_gguf
from lissome.nn.decoder.weights import from_gguf
from lissome.nn.mapped import Mapped, Tensors
from tests.nn.decoder.small import as_gguf, llama

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds an address space")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path):
    path = as_gguf(llama(layers=1), tmp_path / "m.gguf")
    pack_gguf(path, tmp_path / "m")
    return path


def attacked(kind: str, path: Path) -> tuple[int, int]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    words = [sys.executable, str(Path(__file__).with_name("hostile.py")), kind, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    tried, opened = done.stdout.split()
    return int(tried), int(opened)


@linux
def test_every_number_of_a_gguf_file_is_attacked(model):
    tried, opened = attacked("gguf", model)
    assert tried > 500 and opened < tried / 2


@linux
def test_every_number_of_a_packed_folder_is_attacked(model):
    tried, opened = attacked("folder", model.parent / "m")
    assert tried > 1000 and opened < tried / 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.context_length": 1 << 31}, "it has 2,147,483,648 positions"),
        ({"llama.attention.key_length": 24}, "its heads are 24 wide"),
        ({"llama.attention.key_length": 1 << 30}, "its heads are 1073741824 wide"),
        ({"llama.attention.head_count_kv": 3}, "it has 4 heads and 3 of keys"),
        ({"llama.attention.head_count": 8}, r'the tensor "blk\.0\.attn_q\.weight" has the shape \[64, 64\]'),
        ({"llama.embedding_length": 128}, r'the tensor "token_embd\.weight" has the shape \[300, 64\]'),
        ({"llama.block_count": 1 << 31}, "it has 2,147,483,648 layers"),
        ({"llama.rope.freq_base": "fast"}, "its metadata has 'fast' for \"llama.rope.freq_base\""),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "its metadata has 0.0"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path, metadata, message):
    path = as_gguf(llama(layers=1), tmp_path / "m.gguf", **metadata)
    with pytest.raises(BadModel, match=message):
        from_gguf(read_gguf(path))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("norm", torch.zeros(1), r"the last norm has the shape \[1\]"),
        ("layers.0.ffn_norm", torch.zeros(2, 32), r"layer 0, ffn_norm has the shape \[2, 32\]"),
        ("cosine", torch.zeros(3, 8), r"sine has the shape \[256, 8\]"),
        ("sine", torch.zeros(256, 8, dtype=torch.float16), 'the tensor "sine" is of F16'),
        ("layers.0.q", torch.zeros(10, dtype=torch.uint8), '"layers.0.q": 10 bytes cannot be 64 x 64 weights of 4 bits'),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, name, tensor, message):
    from safetensors.torch import load_file, save_file

    path = model.parent / "m" / TENSORS
    save_file({**load_file(path), name: tensor}, path)
    with pytest.raises(BadModel, match=message):
        load_decoder(model.parent / "m")


def test_a_description_that_does_not_fit_is_named(model):
    path = model.parent / "m" / DESCRIPTION
    told = json.loads(path.read_text())
    told["matrices"]["layers.0.up"] |= {"rows": 64, "columns": 96}
    path.write_text(json.dumps(told))
    with pytest.raises(BadModel, match=r"layer 0, up has the shape \[64, 96\](.|\n)*\[96, 64\]"):
        open_engine(model.parent / "m")


def test_safetensors_are_read_in_place(tmp_path):
    from safetensors.torch import save_file

    given = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7, dtype=torch.uint8),
        "c": torch.randn(2, 2).bfloat16(),
        "d": torch.tensor(True),
        "e": torch.zeros(0, 3),
    }
    save_file(given, tmp_path / "t.safetensors", metadata={"format": "pt"})
    file = Tensors(tmp_path / "t.safetensors")
    assert set(file.stored) == set(given) and all(np.array_equal(file.array(name), one) for name, one in given.items() if name != "c")
    assert np.array_equal(file.floats("c"), given["c"].float()) and file.array("c").dtype == np.uint16
    assert file.mapped.span(file.array("a")) == (file.stored["a"].start, file.stored["a"].end)
    assert file.mapped.span(np.zeros(3)) is None
    with pytest.raises(BadModel, match='there is no tensor "x"'):
        file.array("x")
    with pytest.raises(BadModel, match='"b" is of U8'):
        file.floats("b")


def test_a_type_that_is_not_offered_is_named(tmp_path):
    text = b'{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text + b"x")
    with pytest.raises(BadModel, match='"a" is of type "F8_E5M2"'):
        Tensors(tmp_path / "t")


def test_no_file(tmp_path):
    with pytest.raises(BadModel, match="it cannot be read: No such file"):
        Mapped(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BadModel, match="has 0 bytes and is no safetensors file"):
        Tensors(tmp_path / "empty")

"""GGUF decoders, converted once into a Hugging Face folder in the cache: safetensors in float32, the configuration, the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lissome.core.cache import Cache, file_sha256
from lissome.core.errors import BadInput, BadModel, MissingExtra
from lissome.core.progress import Progress, Silent
from lissome.data.sources import fetch, source
from lissome.nn.factory import first_line
from lissome.nn.quiet import quietly

MAGIC = b"GGUF"
VERSION = 1
"""Part of the cache's key: raise it when the same file would give another folder."""
_BROKEN = (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError, MemoryError, AttributeError)
"""What the readers raise for a file that is cut short or altered: they trust its counts and offsets."""


def converted(path: Path, cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The Hugging Face folder of a GGUF file, made the first time and found by the file's sha256 afterwards.

    Raises BadModel for a file that is no GGUF, is cut short, or holds an architecture that transformers does not read; MissingExtra without the gguf package.
    """
    cache, progress = cache or Cache(), progress or Silent()
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BadModel("this is no GGUF file: it does not begin with the letters GGUF.", where=str(path), do="fetch the file again")

    def make(into: Path) -> None:
        progress.stage(f"converting {path.name}")
        _convert(path, into)

    return cache.folder("gguf", f"{file_sha256(path)[:16]}-{VERSION}", make)


def source_model(name: str = "smollm2-135m", cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The Hugging Face folder of the decoder that a source holds as GGUF, fetched and converted the first time.

    Raises BadInput for a source that holds none, and what `fetch` and `converted` raise.
    """
    files = sorted(fetch(name, cache, progress).glob("*.gguf"))
    if len(files) != 1:
        raise BadInput(f'the source "{name}" holds {len(files)} GGUF files, not one', where=source(name).holds, expected="smollm2-135m")
    return converted(files[0], cache, progress)


def architecture_of(path: Path) -> str:
    """The architecture that the file says it holds, such as "llama". Raises BadModel for a file that cannot be read to its end."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", "reading a GGUF file") from error
    try:
        reader = gguf.GGUFReader(path)  # maps the file, and lays every tensor over it
        field = reader.fields.get("general.architecture")
        named = field.contents() if field else None
    except _BROKEN as error:
        raise BadModel(
            f"the file is cut short or damaged: {first_line(error)}", where=str(path), expected="a GGUF file, whole", do="fetch the file again"
        ) from error
    if not isinstance(named, str):
        raise BadModel("the file does not say which architecture it holds (general.architecture).", where=str(path), expected="a GGUF file of a decoder")
    return named


def _convert(path: Path, into: Path) -> None:
    """Write the model and its tokenizer into the folder `into`, dequantised to float32."""
    import torch
    import transformers

    architecture = architecture_of(path)
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    later: Any = getattr(transformers, "GgufConfig", None)
    extra = {"quantization_config": later(dequantize=True)} if later else {}  # older releases always dequantise
    try:
        module = quietly(lambda: transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options, **extra))
        tokenizer = quietly(lambda: transformers.AutoTokenizer.from_pretrained(path.parent, **options))
    except Exception as error:  # an architecture that transformers cannot read surfaces as whatever its code meets first
        raise BadModel(
            f'transformers {transformers.__version__} cannot read a GGUF file of the architecture "{architecture}": {first_line(error)}',
            where=str(path),
            do="give the Hugging Face folder of the same model, or update transformers",
        ) from error
    quietly(lambda: module.save_pretrained(into))
    tokenizer.save_pretrained(into)

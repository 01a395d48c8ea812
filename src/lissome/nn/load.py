"""Load a model from a Hugging Face directory or id, a factory, a factory with a safetensors state, or an artifact.

Weights come from safetensors only: a pickle can run code when it is read, so pickles are refused with the way out.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.cache import disk_errors
from lissome.core.errors import BadModel, Unreachable, closest
from lissome.core.model import Architecture, Model

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
FORMS = "a Hugging Face directory or id, package.module:factory, package.module:factory@weights.safetensors, or a lissome artifact"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt", "vocab.json", "chat_template.jinja")


def load_model(ref: str, classes: int | None = None) -> Model:
    """The model that `ref` names, in eval mode, float32.

    classes: give a Hugging Face encoder a fresh classification head of this size (for fine-tuning).
    Raises BadModel for what cannot or must not be read, Unreachable for an id when no hub answers.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return _from_directory(path, ref, classes)
    if path.is_file() or path.suffix in PICKLES:
        raise _not_a_model_file(path, ref)
    if ":" in ref and not ref.startswith((".", "/")):
        return _from_factory(ref)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", ref) and not path.parent.is_dir():
        return _from_directory(_from_hub(ref), ref, classes)
    raise BadModel(f'no model at "{ref}".{_near(path)}', expected=FORMS, do="check the path")


def as_model(module: nn.Module | Model, ref: str = "") -> Model:
    """Wrap a module that is already in memory; a Model passes through."""
    if isinstance(module, Model):
        return module
    config = getattr(module, "config", None)
    if hasattr(module, "save_pretrained") and config is not None:
        architecture = Architecture(kind="huggingface", target=type(module).__name__, config=json.loads(config.to_json_string(use_diff=False)))
    else:
        architecture = Architecture(kind="exported", target=f"{type(module).__module__}:{type(module).__qualname__}")
    return finished(module, architecture, ref or architecture.target)


def finished(module: nn.Module, architecture: Architecture, ref: str, directory: Path | None = None) -> Model:
    """A Model of a module whose weights are final: eval mode, weights checked, fingerprint taken."""
    module.eval()
    check_finite(module, ref)
    return Model(module, architecture, ref, fingerprint(module), directory)


def check_finite(module: nn.Module, ref: str) -> None:
    """Raise BadModel naming the first weight tensor that holds NaN or infinity."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise BadModel(
                f"the weights hold NaN or infinity: {count} of {tensor.numel()} values in {name}.",
                where=ref,
                do="load an earlier checkpoint; training probably diverged",
            )


def fingerprint(module: nn.Module) -> str:
    """16 hex digits of the class, the names, shapes and bytes of the state, tied weights hashed once."""
    total, seen = hashlib.sha256(type(module).__qualname__.encode()), set()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()[:16]


def save_model(model: Model, folder: Path) -> list[Path]:
    """Write weights as safetensors with the architecture beside them; return the files `build` needs."""
    from safetensors.torch import save_model as save_safetensors

    with disk_errors("the model", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "architecture.json").write_text(model.architecture.model_dump_json(indent=1), encoding="utf-8")
        if model.architecture.kind == "huggingface":
            _quietly(lambda: model.module.save_pretrained(folder))  # type: ignore[operator]
        else:
            save_safetensors(model.module, str(folder / "model.safetensors"))
        for name in TOKENIZER_FILES:
            if model.directory and (model.directory / name).is_file() and model.directory.resolve() != folder.resolve():
                (folder / name).write_bytes((model.directory / name).read_bytes())
    return sorted(p for p in folder.iterdir() if p.name in ("architecture.json", "config.json") or p.suffix == ".safetensors")


def build(folder: Path) -> nn.Module:
    """The module that `save_model` wrote, in eval mode. Raises BadModel when it cannot be built again."""
    architecture = Architecture.model_validate_json((folder / "architecture.json").read_text(encoding="utf-8"))
    if architecture.kind == "huggingface":
        return _transformers_module(folder, architecture.target, None)
    if architecture.kind == "exported":
        raise BadModel(
            f"{architecture.target} came as a module in memory, so it cannot be built again from files.",
            where=str(folder),
            do="give lissome a factory instead: package.module:function",
        )
    module: nn.Module = _call_factory(architecture.target, architecture.config)
    _load_state(module, folder / "model.safetensors", architecture.target)
    return module.eval()


def _from_directory(path: Path, ref: str, classes: int | None) -> Model:
    if (path / "manifest.json").is_file() and (path / "model").is_dir():
        path = path / "model"
    if (path / "architecture.json").is_file() and classes is None:
        architecture = Architecture.model_validate_json((path / "architecture.json").read_text(encoding="utf-8"))
        if architecture.kind != "huggingface":
            return finished(build(path), architecture, ref, path)
    config_path = path / "config.json"
    if not config_path.is_file():
        raise BadModel("the directory has no config.json, so it is not a Hugging Face model.", where=str(path), expected=FORMS)
    if not list(path.glob("*.safetensors")):
        pickled = next((f for f in sorted(path.iterdir()) if f.suffix in PICKLES), None)
        if pickled:
            raise _pickle_refused(pickled)
        raise BadModel("the directory has a config.json but no weights (*.safetensors).", where=str(path), do="copy model.safetensors beside config.json")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"config.json is not valid JSON: {error}", where=str(config_path)) from error
    if config.get("auto_map"):
        raise BadModel(
            "the model brings its own Python code (auto_map in config.json), which lissome does not run.",
            where=str(path),
            do="install the code as a package and name its factory: package.module:factory",
        )
    target = (config.get("architectures") or [""])[0]
    if classes is not None:
        target = re.sub(r"(Model|For\w+)$", "ForSequenceClassification", target)
    module = _transformers_module(path, target, classes)
    architecture = Architecture(kind="huggingface", target=target, config=json.loads(module.config.to_json_string(use_diff=False)))  # type: ignore[union-attr,operator]
    return finished(module, architecture, ref, path)


def _transformers_module(path: Path, target: str, classes: int | None) -> nn.Module:
    import transformers
    from safetensors import SafetensorError

    known = getattr(transformers, target, None)
    if not (isinstance(known, type) and issubclass(known, nn.Module)):
        raise BadModel(
            f'transformers {transformers.__version__} has no model class "{target}".',
            where=str(path / "config.json"),
            do="check `architectures` in config.json, or update transformers",
        )
    extra = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        module: nn.Module = _quietly(
            lambda: known.from_pretrained(  # type: ignore[attr-defined]
                path, dtype=torch.float32, local_files_only=True, use_safetensors=True, **extra
            )
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadModel(
            f"the weights cannot be loaded into {target}: {_first_line(error)}", where=str(path), do="check that config.json and the weights belong together"
        ) from error
    return module.eval()


def _from_factory(ref: str) -> Model:
    target, _, weights = ref.partition("@")
    module = _call_factory(target, {})
    if isinstance(module, Model):
        return module
    if weights:
        if Path(weights).suffix != ".safetensors":
            raise _pickle_refused(Path(weights)) if Path(weights).suffix in PICKLES else BadModel(f'"{weights}" is not a safetensors file', where=ref)
        _load_state(module, Path(weights), target)
    return finished(module, Architecture(kind="factory", target=target), ref)


def _call_factory(target: str, config: Mapping[str, Any]) -> Any:
    module_name, _, name = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a factory in the user's own folder is the usual case
    try:
        package = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadModel(
            f'cannot import "{module_name}": {error}', where=target, do="run lissome from the folder that holds the module, or install it"
        ) from error
    function = getattr(package, name, None)
    if not callable(function):
        names = [n for n in dir(package) if callable(getattr(package, n)) and not n.startswith("_")]
        raise BadModel(f'"{module_name}" has no function "{name}".{closest(name, names)}', where=target)
    try:
        made = function(**config)
    except TypeError as error:
        raise BadModel(f"the factory cannot be called without arguments: {error}", where=target, do="give every parameter a default") from error
    if not isinstance(made, nn.Module | Model):
        raise BadModel(f"the factory returned {type(made).__name__}.", where=target, expected="a torch.nn.Module")
    return made


def _load_state(module: nn.Module, path: Path, target: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model as load_safetensors

    try:
        load_safetensors(module, str(path), strict=True)
    except FileNotFoundError:
        raise BadModel("the weights file does not exist.", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise BadModel(f"the weights file cannot be read: {_first_line(error)}", where=str(path), expected="a safetensors file, whole") from error
    except RuntimeError as error:
        raise BadModel(
            f"the weights do not fit {target}: {_first_line(error)}", where=str(path), do="use the factory and the arguments that the weights were trained with"
        ) from error


def _from_hub(ref: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = huggingface_hub.snapshot_download(ref, allow_patterns=["*.json", "*.safetensors", "*.txt"], etag_timeout=5)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise Unreachable(f'"{ref}" is no folder here and no model hub answered for it.', do="give a local directory, or try again online") from error
    return Path(folder)


def _not_a_model_file(path: Path, ref: str) -> BadModel:
    if path.suffix in PICKLES:
        return _pickle_refused(path)
    if path.suffix == ".safetensors":
        return BadModel("a state alone does not say what to build.", where=ref, do=f"name the factory with it: package.module:factory@{path.name}")
    if path.suffix == ".gguf":
        return BadModel("GGUF files hold decoders, which `optimize` does not take.", where=ref, expected=FORMS)
    return BadModel("this file is not a model.", where=ref, expected=FORMS)


def _pickle_refused(path: Path) -> BadModel:
    return BadModel(
        "this checkpoint is a pickle, which can run any code when it is read; lissome never reads pickles.",
        where=str(path),
        expected="safetensors",
        do=(
            'if you trust its origin, convert it once: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), 'model.safetensors')\""
        ),
    )


def _near(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path()
    return closest(path.name, [p.name for p in parent.iterdir()])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _quietly(work: Any) -> Any:
    """Run a transformers call without its progress bars and load reports, which belong to no one here."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return work()
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()

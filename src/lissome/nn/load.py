"""Load a model from a Hugging Face directory or id, a GGUF file, a factory, a factory with a safetensors state, or an artifact.

Weights come from safetensors only: a pickle can run code when it is read, so pickles are refused with the way out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.cache import disk_errors
from lissome.core.errors import BadModel, Unreachable, closest
from lissome.core.model import Architecture, Model, Resize
from lissome.core.trust import check_target, name_target
from lissome.nn.factory import call_factory, first_line, load_state
from lissome.nn.fingerprint import check_finite, fingerprint
from lissome.nn.gguf import converted
from lissome.nn.models.assembly import ModularModel, architecture_of
from lissome.nn.quiet import quietly
from lissome.nn.resize import resize

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(@.+)?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
FORMS = "a Hugging Face directory or id, a GGUF file, package.module:factory, package.module:factory@weights.safetensors, or a lissome artifact"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt", "vocab.json", "chat_template.jinja")


def load_model(ref: str, classes: int | None = None) -> Model:
    """The model that `ref` names, in eval mode, float32.

    classes: give a Hugging Face encoder a fresh classification head of this size (for fine-tuning); a factory chooses its own.
    Raises BadModel for what cannot or must not be read, Unreachable for an id when no hub answers.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return _from_directory(path, ref, classes)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise _not_a_model_file(path, ref)
        return _from_directory(converted(path), ref, classes)
    if FACTORY.fullmatch(ref):
        return _from_factory(ref)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", ref) and not path.parent.is_dir():
        return _from_directory(_from_hub(ref), ref, classes)
    raise BadModel(f'no model at "{ref}".{_near(path)}', expected=FORMS, do="check the path")


def as_model(module: nn.Module | Model, ref: str = "") -> Model:
    """Wrap a module that is already in memory; a Model passes through."""
    if isinstance(module, Model):
        _note_code(module.architecture)
        return module
    if isinstance(module, ModularModel):
        return finished(module, architecture_of(module), ref or type(module).__name__)
    import transformers

    config: Any = getattr(module, "config", None)
    if config is not None and getattr(transformers, type(module).__name__, None) is type(module):
        architecture = Architecture(kind="huggingface", target=type(module).__name__, config=json.loads(config.to_json_string(use_diff=False)))
    else:
        architecture = Architecture(kind="exported", target=f"{type(module).__module__}:{type(module).__qualname__}")
    return finished(module, architecture, ref or architecture.target)


def finished(module: nn.Module, architecture: Architecture, ref: str, directory: Path | None = None) -> Model:
    """A Model of a module whose weights are final: eval mode, weights checked, fingerprint taken."""
    module.eval()
    check_finite(module, ref)
    _note_code(architecture)
    return Model(module, architecture, ref, fingerprint(module), directory)


def save_model(model: Model, folder: Path) -> list[Path]:
    """Write weights as safetensors with the architecture beside them; return the files `build` needs."""
    from safetensors.torch import save_model as save_safetensors

    with disk_errors("the model", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "architecture.json").write_text(model.architecture.model_dump_json(indent=1), encoding="utf-8")
        if model.architecture.kind == "huggingface" and not _altered(model.architecture):
            quietly(lambda: model.module.save_pretrained(folder))  # type: ignore[operator]
            _save_scorers(model.module, folder)
        else:
            if model.architecture.kind == "huggingface":
                _save_config(model, folder)
            save_safetensors(model.module, str(folder / "model.safetensors"))
        for name in TOKENIZER_FILES:
            if model.directory and (model.directory / name).is_file() and model.directory.resolve() != folder.resolve():
                (folder / name).write_bytes((model.directory / name).read_bytes())
    return sorted(p for p in folder.iterdir() if p.name in ("architecture.json", "config.json") or p.name.endswith((".safetensors", ".safetensors.index.json")))


def build(folder: Path, *, vouched: bool = False) -> nn.Module:
    """The module that `save_model` wrote, in eval mode. vouched: the caller has checked the code that the folder names.

    Raises BadModel when it cannot be built again, or needs code that the user did not name.
    """
    architecture = _read_architecture(folder)
    if architecture.kind == "huggingface":
        return _altered_transformers_module(folder, architecture) if _altered(architecture) else _transformers_module(folder, architecture.target, None)
    if architecture.kind == "exported":
        raise BadModel(
            f"{architecture.target} came as a module in memory, so it cannot be built again from files.",
            where=str(folder),
            do="give lissome a factory instead: package.module:function",
        )
    if not vouched:
        check_target(architecture.target, str(folder / "architecture.json"), BadModel)
    made = call_factory(architecture.target, architecture.config)
    module = made.module if isinstance(made, Model) else made
    if architecture.resize:
        resize(module, architecture.resize)
    load_state(module, folder / "model.safetensors", architecture.target)
    return module.eval()


def from_config(target: str, config: Any, plan: Resize | None = None, where: str = "") -> nn.Module:
    """A transformers class in float32, its weights yet to be loaded: resized by `plan`, with the experts, the sparse attention and the activations that its
    config names. config: the content of config.json, or transformers' object of it. Raises BadModel where it cannot be built.
    """
    from lissome.nn.moe.in_models import restore as restore_experts

    known = _transformers_class(where, target)
    try:
        made = known.config_class.from_dict(dict(config)) if isinstance(config, Mapping) else config
        module: nn.Module = quietly(lambda: known(made)).float()
    except Exception as error:  # broken configs surface as whatever the model's own code meets first
        raise _unbuildable(target, where, error) from error
    if plan:
        resize(module, plan)
    return _with_patterns(restore_experts(module))


def _from_directory(path: Path, ref: str, classes: int | None) -> Model:
    if (path / "manifest.json").is_file():
        if not (path / "model").is_dir():
            raise BadModel("this artifact was made from a module in memory, so its original is not in it.", where=str(path), do="give the original itself")
        path = path / "model"
    if (path / "architecture.json").is_file():
        architecture = _read_architecture(path)
        if _altered(architecture) and classes is not None:
            raise BadModel("a pruned or split model keeps the head it has.", where=str(path), do="fine-tune the head first, then prune or split")
        if architecture.kind != "huggingface":
            return finished(build(path), architecture, ref, path)
        if _altered(architecture):
            module = build(path)
            return finished(module, architecture.model_copy(update={"config": _config(module)}), ref, path)
    if not (path / "config.json").is_file():
        raise BadModel("the directory has no config.json, so it is not a Hugging Face model.", where=str(path), expected=FORMS)
    _check_weights(path)
    target = _class_name(path)
    if classes is not None:
        target = re.sub(r"(LMHeadModel|Model|For\w+)$", "ForSequenceClassification", target)
    module = _transformers_module(path, target, classes)
    return finished(module, Architecture(kind="huggingface", target=target, config=_config(module)), ref, path)


def _config(module: nn.Module) -> dict[str, Any]:
    """All of a transformers module's config."""
    config: Any = module.config
    whole: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return whole


def _note_code(architecture: Architecture) -> None:
    """A model that is in memory here was made by code that has already run here."""
    if architecture.kind == "factory":
        name_target(architecture.target)


def _read_architecture(folder: Path) -> Architecture:
    path = folder / "architecture.json"
    try:
        return Architecture.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"architecture.json cannot be read: {first_line(error)}", where=str(path), do="copy the whole folder again") from error


def _check_weights(path: Path) -> None:
    """Raise unless there are weights in safetensors."""
    if list(path.glob("*.safetensors")):
        return
    pickled = next((f for f in sorted(path.iterdir()) if f.suffix in PICKLES), None)
    if pickled:
        raise _pickle_refused(pickled)
    raise BadModel("the directory has a config.json but no weights (*.safetensors).", where=str(path), do="copy model.safetensors beside config.json")


def _class_name(path: Path) -> str:
    """The transformers class that config.json names. Raises BadModel for broken JSON, code of the model's own, or no name."""
    where = path / "config.json"
    try:
        config = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"config.json is not valid JSON: {error}", where=str(where)) from error
    if not isinstance(config, dict):
        raise BadModel("config.json holds no keys and values.", where=str(where), expected="the config.json of a Hugging Face model")
    if config.get("auto_map"):
        raise BadModel(
            "the model brings its own Python code (auto_map in config.json), which lissome does not run.",
            where=str(path),
            do="install the code as a package and name its factory: package.module:factory",
        )
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise BadModel("config.json does not name the model's class.", where=str(where), do='add it: "architectures": ["BertForSequenceClassification"]')
    return str(names[0])


def _unbuildable(target: str, where: str, error: Exception) -> BadModel:
    return BadModel(f"{target} cannot be built from config.json: {first_line(error)}", where=where)


def _transformers_class(where: str, target: str) -> Any:
    import transformers

    known: Any = getattr(transformers, target, None)
    if not (isinstance(known, type) and issubclass(known, nn.Module)):
        raise BadModel(
            f'transformers {transformers.__version__} has no model class "{target}".',
            where=where,
            do="check `architectures` in config.json, or update transformers",
        )
    return known


def _save_config(model: Model, folder: Path) -> None:
    """Write config.json as save_pretrained does; a pruned model's weights are written by name, as its shapes are not the config's."""
    config: Any = copy.deepcopy(model.module.config)
    config.architectures = [model.architecture.target]
    quietly(lambda: config.save_pretrained(folder))


def _save_scorers(module: Any, folder: Path) -> None:
    """The learned scorers of sparse attention, in the file of their own that `restore` reads: transformers builds a model without them."""
    if getattr(module.config, "lissome_attention", None) is None:
        return
    from lissome.nn.attention.learned import WORDS, attentions, save_indexers

    if any(getattr(layer, word, None) is not None for _, layer in attentions(module) for word in WORDS):
        save_indexers(module, folder)


def _altered(architecture: Architecture) -> bool:
    """Whether a transformers model is not as its class builds it: pruned, or with experts that the class does not know."""
    return architecture.kind == "huggingface" and bool(architecture.resize or architecture.config.get("lissome_experts"))


def _altered_transformers_module(path: Path, architecture: Architecture) -> nn.Module:
    """The class built from config.json, altered as it says, with the weights from model.safetensors."""
    where = str(path / "config.json")
    known = _transformers_class(where, architecture.target)
    try:
        config = known.config_class.from_pretrained(path, local_files_only=True)
    except Exception as error:  # broken configs surface as whatever the model's own code meets first
        raise _unbuildable(architecture.target, where, error) from error
    module = from_config(architecture.target, config, architecture.resize, where)
    load_state(module, path / "model.safetensors", architecture.target)
    return module.eval()


def _transformers_module(path: Path, target: str, classes: int | None) -> nn.Module:
    known = _transformers_class(str(path / "config.json"), target)
    if classes is None and json.loads((path / "config.json").read_text(encoding="utf-8")).get("lissome_experts"):
        return _altered_transformers_module(path, Architecture(kind="huggingface", target=target))
    extra = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "output_loading_info": True, **extra}
    try:
        module, loading = quietly(lambda: known.from_pretrained(path, **options))
    except Exception as error:  # broken configs and weights surface as whatever the model's own code meets first
        raise BadModel(
            f"the weights cannot be loaded into {target}: {first_line(error)}", where=str(path), do="check that config.json and the weights belong together"
        ) from error
    _check_all_loaded(module, [*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])], path, fresh_head=classes is not None)
    return _with_patterns(module).eval()


def _with_patterns(module: Any) -> nn.Module:
    """The module, with the sparse attention and the activations that its configuration names."""
    found: nn.Module = module
    if getattr(module.config, "lissome_attention", None) is not None:
        from lissome.nn.attention.in_transformers import restore

        restore(module)
    if getattr(module.config, "lissome_activation", None) is not None:
        from lissome.nn.ffn import restore as restore_activations

        restore_activations(module)
    return found


def _check_all_loaded(module: nn.Module, absent: Iterable[str], path: Path, *, fresh_head: bool) -> None:
    """Raise if weights were left at random values: transformers only warns. A fresh head, and the pooler below it, may be."""
    random = sorted(absent)
    if fresh_head:
        body = f"{module.base_model_prefix}."
        random = [name for name in random if name.startswith(body) and "pooler" not in name]
    if random:
        others = f" and {len(random) - 1} more" if len(random) > 1 else ""
        raise BadModel(
            f"the weights do not hold {random[0]}{others}, which {type(module).__name__} needs; they would be random.",
            where=str(path),
            do="name the class that the weights were saved from (`architectures` in config.json), or train the missing head (`lissome fine-tune`)",
        )


def _from_factory(ref: str) -> Model:
    target, _, weights = ref.partition("@")
    path = Path(weights).expanduser()
    if path.suffix in PICKLES:
        raise _pickle_refused(path)
    if weights and path.suffix != ".safetensors":
        raise BadModel(f'"{weights}" is not a safetensors file.', where=ref, expected="package.module:factory@weights.safetensors")
    made = call_factory(target, {})
    name_target(target)
    if isinstance(made, Model) and not weights:
        _note_code(made.architecture)
        return made
    module = made.module if isinstance(made, Model) else made
    if weights:
        load_state(module, path, target)
    return finished(module.float(), Architecture(kind="factory", target=target), ref)


def _from_hub(ref: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(ref, allow_patterns=["*.json", "*.safetensors", "*.txt"], etag_timeout=5)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BadModel(f'"{ref}" is no folder here, and the model hub has no model of that name (or it is private).', expected=FORMS) from error
    except OSError as error:  # every way in which a hub does not answer: offline, refused, timed out, server error
        raise Unreachable(f'"{ref}" is no folder here and no model hub answered for it.', do="give a local directory, or try again online") from error
    return Path(folder)


def _not_a_model_file(path: Path, ref: str) -> BadModel:
    if path.suffix in PICKLES:
        return _pickle_refused(path)
    if path.suffix == ".safetensors":
        return BadModel("a state alone does not say what to build.", where=ref, do=f"name the factory with it: package.module:factory@{path.name}")
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

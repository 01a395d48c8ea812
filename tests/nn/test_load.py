from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lissome.core import trust
from lissome.core.errors import BadModel, Unreachable
from lissome.core.model import Architecture, Model
from lissome.nn.call import call
from lissome.nn.load import as_model, build, load_model, save_model
from tests.nn import tiny

HERE = "tests.nn.tiny"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tiny.bert_folder(tmp_path_factory.mktemp("models") / "bert", labels=3)


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of the tiny BERT that a test may spoil."""
    return shutil.copytree(kept, tmp_path / "bert")


def outputs(module):
    inputs = tiny.tensors(tiny.texts(3, 6)) if hasattr(module, "config") else tiny.tensors(tiny.rows(3))
    with torch.no_grad():
        return call(module, inputs)


def refusal(ref, kind=BadModel, **options):
    with pytest.raises(kind) as error:
        load_model(str(ref), **options)
    return str(error.value)


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    data = {key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not None}
    path.write_text(json.dumps(data))


class TestDirectory:
    def test_loads(self, folder):
        model = load_model(str(folder))
        assert (model.architecture.kind, model.architecture.target, model.ref, model.directory) == (
            "huggingface",
            "BertForSequenceClassification",
            str(folder),
            folder,
        )
        assert not model.module.training
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}
        assert torch.equal(outputs(model.module), outputs(tiny.bert(3)))

    def test_half_weights_become_float32(self, folder):
        tiny.bert(3).to(torch.bfloat16).save_pretrained(folder)
        assert {p.dtype for p in load_model(str(folder)).module.parameters()} == {torch.float32}

    def test_fresh_head_of_another_size(self, folder):
        model = load_model(str(folder), classes=5)
        assert outputs(model.module).shape == (3, 5)
        before = load_file(folder / "model.safetensors")
        for name, value in model.module.state_dict().items():
            assert name.startswith("classifier") or torch.equal(value, before[name]), name

    @pytest.mark.parametrize("saved", ["BertModel", "BertForMaskedLM"])
    def test_fresh_head_on_an_encoder_saved_otherwise(self, tmp_path, saved):
        import transformers

        getattr(transformers, saved)(tiny.bert().config).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [saved]
        model = load_model(str(tmp_path), classes=4)
        assert model.architecture.target == "BertForSequenceClassification"
        assert outputs(model.module).shape == (3, 4)

    def test_fresh_head_does_not_hide_a_body_that_does_not_fit(self, folder):
        edit(folder / "config.json", intermediate_size=96)
        text = refusal(folder, classes=5)
        assert "do not hold bert.encoder.layer.0.intermediate.dense.bias and 5 more" in text
        assert "they would be random" in text

    def test_prints_nothing(self, folder, capfd):
        load_model(str(folder), classes=5)
        load_model(str(folder))
        assert capfd.readouterr() == ("", "")


class TestBrokenDirectory:
    def test_no_config(self, tmp_path):
        text = refusal(tmp_path)
        assert text.startswith(f"{tmp_path}: the directory has no config.json")
        assert "package.module:factory" in text

    def test_only_a_pickle(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        text = refusal(folder)
        assert f"{folder / 'pytorch_model.bin'}: this checkpoint is a pickle" in text
        assert "weights_only=True" in text

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert "no weights (*.safetensors)" in refusal(folder)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [("{", "config.json is not valid JSON"), ("[1]", "holds no keys and values"), ("{}", "does not name the model's class")],
    )
    def test_config_is_broken(self, folder, content, expected):
        (folder / "config.json").write_text(content)
        text = refusal(folder)
        assert expected in text
        assert str(folder / "config.json") in text

    def test_own_code_is_not_run(self, folder):
        edit(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})
        (folder / "modeling.py").write_text("raise SystemExit('ran')")
        text = refusal(folder)
        assert "brings its own Python code" in text
        assert "package.module:factory" in text

    @pytest.mark.parametrize("name", ["BertForTelepathy", "AutoTokenizer", "__name__"])
    def test_unknown_class(self, folder, name):
        edit(folder / "config.json", architectures=[name])
        assert f'has no model class "{name}"' in refusal(folder)

    @pytest.mark.parametrize("keep", [0, 5, 0.5])
    def test_truncated_weights(self, folder, keep):
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
        text = refusal(folder)
        assert "the weights cannot be loaded into BertForSequenceClassification" in text
        assert "belong together" in text

    @pytest.mark.parametrize(
        "changes", [{"hidden_size": 64}, {"hidden_size": "wide"}, {"num_attention_heads": 5}, {"model_type": None, "hidden_act": "no such"}]
    )
    def test_config_of_another_model(self, folder, changes):
        edit(folder / "config.json", **changes)
        assert "the weights cannot be loaded into BertForSequenceClassification" in refusal(folder)

    def test_weights_without_the_head(self, folder):
        path = folder / "model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if not k.startswith("classifier")}, path, metadata={"format": "pt"})
        text = refusal(folder)
        assert "do not hold classifier.bias and 1 more" in text
        assert "lissome fine-tune" in text

    def test_more_layers_than_weights(self, folder):
        edit(folder / "config.json", num_hidden_layers=3)
        assert "do not hold bert.encoder.layer.2." in refusal(folder)

    def test_nan_weights_are_named(self, folder):
        path = folder / "model.safetensors"
        state = load_file(path)
        state["classifier.bias"][1] = float("nan")
        save_file(state, path, metadata={"format": "pt"})
        text = refusal(folder)
        assert f"{folder}: the weights hold NaN or infinity: 1 of 3 values in classifier.bias." in text


class TestPath:
    def test_missing_with_the_nearest_name(self, folder):
        text = refusal(folder.parent / "bret")
        assert f'no model at "{folder.parent / "bret"}"' in text
        assert 'Did you mean "bert"?' in text

    def test_missing_with_nothing_near(self, tmp_path):
        text = refusal(tmp_path / "model.pt")
        assert "no model at" in text
        assert "Did you mean" not in text
        assert "a Hugging Face directory or id" in text

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib"])
    def test_pickles_are_refused_unread(self, tmp_path, suffix):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
        text = refusal(path)
        assert f"{path}: this checkpoint is a pickle, which can run any code" in text
        assert f"torch.load('weights{suffix}', weights_only=True)" in text

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("model.safetensors", "factory@model.safetensors"),
            ("model.gguf", "does not begin with the letters GGUF"),
            ("model.onnx", "this file is not a model"),
            ("README", "this file is not a model"),
        ],
    )
    def test_other_files(self, tmp_path, name, expected):
        (tmp_path / name).write_bytes(b"x")
        assert expected in refusal(tmp_path / name)


class TestFactory:
    def test_loads(self):
        model = load_model(f"{HERE}:mlp")
        assert model.architecture == Architecture(kind="factory", target=f"{HERE}:mlp")
        assert model.directory is None
        assert not model.module.training
        assert torch.equal(outputs(model.module), outputs(tiny.mlp()))

    def test_with_a_state(self, tmp_path):
        torch.manual_seed(5)
        trained = tiny.Mlp()
        save_file(trained.state_dict(), tmp_path / "w.safetensors")
        model = load_model(f"{HERE}:mlp@{tmp_path / 'w.safetensors'}")
        assert torch.equal(outputs(model.module), outputs(trained))
        assert model.fingerprint != load_model(f"{HERE}:mlp").fingerprint

    def test_a_model_passes_through(self, tmp_path):
        assert load_model(f"{HERE}:finished_model").ref == "in memory"
        save_file({name: value + 1 for name, value in tiny.mlp().state_dict().items()}, tmp_path / "w.safetensors")
        model = load_model(f"{HERE}:finished_model@{tmp_path / 'w.safetensors'}")
        assert torch.equal(model.module.head.bias, tiny.mlp().head.bias + 1)

    def test_double_weights_become_float32(self, tmp_path, monkeypatch):
        (tmp_path / "doubles_factory.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(3, 2).double()\n")
        monkeypatch.chdir(tmp_path)
        assert load_model("doubles_factory:make").module.weight.dtype is torch.float32

    def test_state_does_not_exist(self, tmp_path):
        assert f"{tmp_path / 'w.safetensors'}: the weights file does not exist" in refusal(f"{HERE}:mlp@{tmp_path / 'w.safetensors'}")

    @pytest.mark.parametrize("keep", [0, 7, 200])
    def test_state_is_truncated(self, tmp_path, keep):
        path = tmp_path / "w.safetensors"
        save_file(tiny.mlp().state_dict(), path)
        path.write_bytes(path.read_bytes()[:keep])
        text = refusal(f"{HERE}:mlp@{path}")
        assert f"{path}: the weights file cannot be read" in text
        assert "a safetensors file, whole" in text

    @pytest.mark.parametrize(("factory", "named"), [("cnn", "head.weight"), ("mlp_without_bias", "head.bias")])
    def test_state_of_another_model(self, tmp_path, factory, named):
        path = tmp_path / "w.safetensors"
        save_file(tiny.mlp().state_dict(), path)
        text = refusal(f"{HERE}:{factory}@{path}")
        assert f"the weights do not fit {HERE}:{factory}" in text
        assert named in text, "what differs is named"

    def test_state_of_another_shape(self, tmp_path):
        path = tmp_path / "w.safetensors"
        save_file({**tiny.mlp().state_dict(), "head.bias": torch.zeros(9)}, path)
        assert "head.bias" in refusal(f"{HERE}:mlp@{path}")

    @pytest.mark.parametrize("name", ["w.pt", "w.bin"])
    def test_state_in_a_pickle(self, name):
        assert f"{name}: this checkpoint is a pickle" in refusal(f"{HERE}:mlp@{name}")

    def test_state_in_another_format(self):
        assert '"w.npz" is not a safetensors file' in refusal(f"{HERE}:mlp@w.npz")

    def test_nan_weights_are_named(self, tmp_path):
        path, state = tmp_path / "w.safetensors", tiny.mlp().state_dict()
        state["second.bias"][0] = float("nan")
        save_file(state, path)
        assert "1 of 48 values in second.bias" in refusal(f"{HERE}:mlp@{path}")

    @pytest.mark.parametrize(
        ("ref", "expected"),
        [
            (f"{HERE}:with_arguments", "cannot be called without arguments: missing a required argument: 'width'"),
            (f"{HERE}:no_module", "the factory returned dict."),
            (f"{HERE}:failing", "the factory failed: KeyError: 'no such layer'"),
            (f"{HERE}:mpl", 'has no function "mpl". Did you mean "mlp"?'),
            (f"{HERE}:not_a_function", 'has no function "not_a_function"'),
            ("tests.nn.tinny:mlp", "cannot import \"tests.nn.tinny\": No module named 'tests.nn.tinny'"),
            ("nowhere_at_all:make", "run lissome from the folder that holds the module"),
        ],
    )
    def test_refusals(self, ref, expected):
        text = refusal(ref)
        assert expected in text
        assert text.startswith(f"{ref}: ")

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("def make(:", 'importing "MODULE" failed: SyntaxError'),
            ("raise OSError('no licence file')", 'importing "MODULE" failed: OSError: no licence file'),
            ("import not_installed_here", "install not_installed_here, which the module imports"),
        ],
    )
    def test_modules_that_cannot_be_imported(self, tmp_path, monkeypatch, code, expected, request):
        name = f"broken_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        assert expected.replace("MODULE", name) in refusal(f"{name}:make")


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch):
        """Stands where the hub is; set `answer` to a path or an exception."""
        import huggingface_hub

        class Hub:
            answer: object = None
            asked = ()

            def __call__(self, ref, **options):
                self.asked = (*self.asked, ref)
                if isinstance(self.answer, BaseException):
                    raise self.answer
                return str(self.answer)

        stand_in = Hub()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
        return stand_in

    def test_id(self, hub, kept):
        hub.answer = kept
        model = load_model("someone/tiny-bert")
        assert hub.asked == ("someone/tiny-bert",)
        assert (model.ref, model.directory) == ("someone/tiny-bert", kept)

    @pytest.mark.parametrize("name", ["LocalEntryNotFoundError", "OfflineModeIsEnabled"])
    def test_offline(self, hub, name):
        import huggingface_hub.errors

        hub.answer = getattr(huggingface_hub.errors, name)("no")
        text = refusal("someone/tiny-bert", Unreachable)
        assert '"someone/tiny-bert" is no folder here and no model hub answered for it.' in text
        assert "give a local directory" in text

    def test_no_such_model(self, hub):
        from huggingface_hub.errors import RepositoryNotFoundError

        class Gone(RepositoryNotFoundError):
            def __init__(self):
                Exception.__init__(self, "404")

        hub.answer = Gone()
        assert "the model hub has no model of that name" in refusal("someone/tiny-brt")

    def test_a_missing_local_folder_is_not_looked_for_elsewhere(self, hub, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        assert "no model at" in refusal("bert/missing")
        assert "no model at" in refusal("missing")
        assert hub.asked == ()


class TestSaved:
    def test_round_trip_of_a_hugging_face_model(self, folder, tmp_path):
        (folder / "tokenizer.json").write_text("{}")
        (folder / "notes.txt").write_text("private")
        model = load_model(str(folder))
        files = save_model(model, tmp_path / "saved")
        assert [f.name for f in files] == ["architecture.json", "config.json", "model.safetensors"]
        assert {f.name for f in (tmp_path / "saved").iterdir()} == {f.name for f in files} | {"tokenizer.json"}
        assert torch.equal(outputs(build(tmp_path / "saved")), outputs(model.module))
        again = load_model(str(tmp_path / "saved"))
        assert again.fingerprint == model.fingerprint
        assert again.architecture.target == model.architecture.target

    @pytest.mark.parametrize("factory", ["mlp", "cnn"])
    def test_round_trip_of_a_factory(self, tmp_path, factory):
        model = load_model(f"{HERE}:{factory}")
        with torch.no_grad():
            model.module.head.bias.add_(1)  # weights that the factory alone would not give
        model = Model(model.module, model.architecture, model.ref, "")
        save_model(model, tmp_path)
        x = tiny.tensors(tiny.images(3) if factory == "cnn" else tiny.rows(3))
        with torch.no_grad():
            assert torch.equal(call(build(tmp_path), x), call(model.module, x))
        again = load_model(str(tmp_path))
        assert again.architecture == model.architecture
        assert torch.equal(call(again.module, x), call(model.module, x))

    def test_tied_weights_stay_tied(self, tmp_path):
        from tests.nn.test_fingerprint import Tied

        model = as_model(Tied())
        save_model(Model(model.module, Architecture(kind="factory", target="tests.nn.test_fingerprint:Tied"), "x", ""), tmp_path)
        built = build(tmp_path, vouched=True)
        assert built.a.weight is built.b.weight
        assert torch.equal(built.a.weight, model.module.a.weight)

    def test_an_artifact_is_its_original(self, tmp_path):
        model = load_model(f"{HERE}:mlp")
        save_model(model, tmp_path / "model")
        (tmp_path / "manifest.json").write_text("{}")
        assert load_model(str(tmp_path)).fingerprint == model.fingerprint

    def test_an_artifact_without_its_original(self, tmp_path):
        (tmp_path / "manifest.json").write_text("{}")
        assert "made from a module in memory, so its original is not in it" in refusal(tmp_path)

    def test_a_module_in_memory_cannot_be_built_again(self, tmp_path):
        save_model(as_model(nn.Linear(2, 2)), tmp_path)
        with pytest.raises(BadModel) as error:
            build(tmp_path)
        assert "torch.nn.modules.linear:Linear came as a module in memory" in str(error.value)
        assert "package.module:function" in str(error.value)

    @pytest.mark.parametrize("target", ["subprocess:getoutput", "lissome.nn.factory:call_factory"])
    def test_code_that_a_folder_names_is_not_run(self, tmp_path, target):
        call = {"cmd": f"touch {tmp_path / 'ran'}"}
        config = call if target.startswith("subprocess") else {"target": "subprocess:getoutput", "config": call}
        (tmp_path / "architecture.json").write_text(json.dumps({"kind": "factory", "target": target, "config": config}))
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path / 'architecture.json'}: it needs the code {target}, which was not named by you.")
        assert f"LISSOME_TRUST={target} lissome" in message
        assert not (tmp_path / "ran").exists()

    def test_code_that_a_folder_names_runs_once_the_user_names_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(trust, "_named", set())
        save_model(load_model(f"{HERE}:mlp"), tmp_path)
        monkeypatch.setattr(trust, "_named", set())
        assert f"needs the code {HERE}:mlp" in refusal(tmp_path)
        monkeypatch.setenv("LISSOME_TRUST", f"{HERE}:mlp")
        assert load_model(str(tmp_path)).architecture.target == f"{HERE}:mlp"
        monkeypatch.delenv("LISSOME_TRUST")
        monkeypatch.setattr(trust, "_named", set())
        load_model(f"{HERE}:mlp")
        assert load_model(str(tmp_path)).architecture.target == f"{HERE}:mlp"

    @pytest.mark.parametrize("content", ["", "{", '{"kind": "pickle", "target": "x"}', '{"kind": "factory"}'])
    def test_broken_architecture(self, tmp_path, content):
        (tmp_path / "architecture.json").write_text(content)
        assert f"{tmp_path / 'architecture.json'}: architecture.json cannot be read" in refusal(tmp_path)

    def test_a_state_that_is_gone(self, tmp_path):
        save_model(load_model(f"{HERE}:mlp"), tmp_path)
        (tmp_path / "model.safetensors").unlink()
        assert "the weights file does not exist" in refusal(tmp_path)


class TestInMemory:
    def test_hugging_face(self):
        model = as_model(tiny.bert())
        assert (model.architecture.kind, model.architecture.target) == ("huggingface", "BertForSequenceClassification")
        assert as_model(model) is model

    def test_a_class_that_only_looks_like_transformers(self):
        import transformers

        class BertForSequenceClassification(transformers.BertForSequenceClassification):
            pass

        assert as_model(BertForSequenceClassification(tiny.bert().config)).architecture.kind == "exported"

    def test_nan(self):
        module = tiny.mlp()
        module.head.bias.data[0] = float("nan")
        with pytest.raises(BadModel, match=r"mine: the weights hold NaN or infinity: 1 of 4 values in head\.bias"):
            as_model(module, "mine")

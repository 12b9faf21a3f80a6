"""Modules from checkpoints, and hyperparameters in files."""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from fulmen.core import saving
from fulmen.core.hparams import dump_hparams
from fulmen.core.module import LightningModule
from fulmen.utilities.parsing import AttributeDict

VERSION = {"pytorch-lightning_version": "2.6.6"}


class Net(LightningModule):
    def __init__(self, width, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, width)


def saved(tmp_path, module, **changes):
    path = tmp_path / "net.ckpt"
    checkpoint = {**VERSION, "state_dict": module.state_dict(), **dump_hparams(module), **changes}
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, path)
    return path


# ---- module


def test_module_comes_back_with_hparams_and_weights(tmp_path):
    net = Net(3, lr=0.5)
    loaded = Net.load_from_checkpoint(saved(tmp_path, net))

    assert loaded.hparams == {"width": 3, "lr": 0.5}
    assert loaded.layer.weight.equal(net.layer.weight)
    assert loaded.training


def test_an_open_file_is_read_too(tmp_path):
    with saved(tmp_path, Net(3)).open("rb") as file:
        assert Net.load_from_checkpoint(file).hparams.width == 3


def test_arguments_override_stored_hparams_and_unknown_ones_are_dropped(tmp_path):
    loaded = Net.load_from_checkpoint(saved(tmp_path, Net(3)), lr=0.7, unknown=1)

    assert loaded.hparams == {"width": 3, "lr": 0.7}


def test_a_constructor_with_kwargs_gets_everything(tmp_path):
    class Open(LightningModule):
        def __init__(self, width, **kwargs):
            super().__init__()
            self.layer = torch.nn.Linear(2, width)
            self.got = kwargs

    assert Open.load_from_checkpoint(saved(tmp_path, Net(3)), more=1).got == {"lr": 0.1, "more": 1}


class FromConfig(LightningModule):
    def __init__(self, conf, scale=1):
        super().__init__()
        self.save_hyperparameters(conf)
        self.got = (conf, scale)


@pytest.mark.parametrize("kind", [dict, Namespace, AttributeDict])
def test_a_config_goes_to_the_argument_it_came_from(tmp_path, kind):
    path = saved(tmp_path, FromConfig(kind(x=1, y=2)))

    assert FromConfig.load_from_checkpoint(path).got == ({"x": 1, "y": 2}, 1)
    assert FromConfig.load_from_checkpoint(path, x=7).got == ({"x": 7, "y": 2}, 1)
    assert FromConfig.load_from_checkpoint(path, scale=3).got == ({"x": 1, "y": 2}, 3)
    assert FromConfig.load_from_checkpoint(path, conf={"z": 1}).got == ({"z": 1}, 1)


def test_an_argument_the_file_lacks_is_asked_for(tmp_path):
    path = saved(tmp_path, Net(3), hyper_parameters={"lr": 0.1})

    with pytest.raises(TypeError, match=r"requires the arguments \['width'\].*load_from_checkpoint\(path, width=...\)"):
        Net.load_from_checkpoint(path)
    assert Net.load_from_checkpoint(path, width=3).hparams.width == 3


def test_calling_it_on_an_instance_is_refused(tmp_path):
    with pytest.raises(TypeError, match="called on an instance of `Net`"):
        Net(3).load_from_checkpoint(saved(tmp_path, Net(3)))


def test_hooks_run_before_the_weights_are_loaded(tmp_path):
    calls = []

    class Late(Net):
        def configure_model(self):
            calls.append("configure_model")
            self.late = torch.nn.Linear(1, 1)

        def on_load_checkpoint(self, checkpoint):
            calls.append(checkpoint["state_dict"].pop("extra"))

        def load_state_dict(self, *args, **kwargs):
            calls.append("load_state_dict")
            return super().load_state_dict(*args, **kwargs)

    built = Late(3)
    built.late = torch.nn.Linear(1, 1)
    path = saved(tmp_path, built, state_dict={**built.state_dict(), "extra": "on_load_checkpoint"})

    assert Late.load_from_checkpoint(path).late.weight.equal(built.late.weight)
    assert calls == ["configure_model", "on_load_checkpoint", "load_state_dict"]


class Bigger(Net):
    def __init__(self, width, lr=0.1, strict_loading=None):
        super().__init__(width, lr)
        self.extra = torch.nn.Linear(1, 1)
        if strict_loading is not None:
            self.strict_loading = strict_loading


def test_weights_must_match_by_default(tmp_path):
    with pytest.raises(RuntimeError, match=r"Missing key.*extra\.weight"):
        Bigger.load_from_checkpoint(saved(tmp_path, Net(3)))


@pytest.mark.parametrize("how", [{"strict": False}, {"strict_loading": False}])
def test_weights_that_do_not_match_are_named_when_that_is_allowed(tmp_path, how):
    with pytest.warns(UserWarning, match=r"Keys of the model that the checkpoint does not have.*extra\.weight"):
        Bigger.load_from_checkpoint(saved(tmp_path, Net(3)), **how)
    if "strict" in how:
        with pytest.warns(UserWarning, match=r"Keys of the checkpoint that the model does not have.*extra\.weight"):
            Net.load_from_checkpoint(saved(tmp_path, Bigger(3)), **how)


@pytest.mark.parametrize("explicit", [True, False])
def test_strict_must_not_contradict_the_module(tmp_path, explicit):
    with pytest.raises(ValueError, match=f"contradicts `Bigger.strict_loading = {explicit}`"):
        Bigger.load_from_checkpoint(saved(tmp_path, Bigger(3)), strict=not explicit, strict_loading=explicit)


def test_a_file_without_version_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Net(3).state_dict(), path)

    with pytest.raises(KeyError, match="pytorch-lightning_version"):
        Net.load_from_checkpoint(path, width=3)


def test_objects_in_foreign_hparams_need_trust(tmp_path):
    path = saved(tmp_path, Net(3), hyper_parameters={"width": 3, "lr": Path("x")})

    with pytest.raises(
        pickle.UnpicklingError, match=r"holds an object of type `pathlib\S*`.*pass `weights_only=False`"
    ):
        Net.load_from_checkpoint(path)
    assert Net.load_from_checkpoint(path, weights_only=False).hparams.lr == Path("x")


class WithFunction(LightningModule):
    def __init__(self, act):
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.filterwarnings("ignore:The hyperparameters `act` of `WithFunction`")
def test_own_hparams_that_are_no_plain_data_need_an_argument_or_trust(tmp_path):
    path = saved(tmp_path, WithFunction(torch.relu))

    with pytest.raises(
        TypeError, match=r"\['act'\], which the checkpoint has only in pickled form.*weights_only=False"
    ):
        WithFunction.load_from_checkpoint(path)
    assert WithFunction.load_from_checkpoint(path, act=torch.tanh).hparams.act is torch.tanh
    assert WithFunction.load_from_checkpoint(path, weights_only=False).hparams.act is torch.relu


def test_hparams_of_lightning_before_1_0_are_found(tmp_path):
    path = saved(tmp_path, Net(3), hyper_parameters=None, hparams={"width": 3})

    assert Net.load_from_checkpoint(path).hparams.width == 3


def test_tensors_of_an_absent_device_go_to_the_cpu():
    storage = torch.ones(1).untyped_storage()

    assert saving._where_available(storage, "cuda:99") is storage


# ---- files made by the command line


def test_only_trusted_instantiators_are_called(tmp_path, monkeypatch):
    hparams = {"width": 3, "_instantiator": "mine.make", "_class_path": f"{__name__}.Bigger"}
    path = saved(tmp_path, Bigger(3), hyper_parameters=hparams)

    with pytest.raises(ValueError, match=r"'mine.make', which is not in the list of trusted instantiators"):
        Net.load_from_checkpoint(path)
    monkeypatch.setitem(saving.INSTANTIATORS, "mine.make", lambda cls, config: cls(**config))
    monkeypatch.setattr(Bigger, "__module__", __name__)
    assert type(Net.load_from_checkpoint(path)) is Bigger


def test_a_class_path_must_be_an_imported_subclass(tmp_path, monkeypatch):
    monkeypatch.setitem(saving.INSTANTIATORS, "mine.make", lambda cls, config: cls(**config))
    hparams = {"width": 3, "_instantiator": "mine.make", "_class_path": "os.system"}

    with pytest.raises(ValueError, match=r"'os\.system', which is not `Net` or an imported subclass"):
        Net.load_from_checkpoint(saved(tmp_path, Net(3), hyper_parameters=hparams))


def test_a_class_path_alone_is_ignored(tmp_path):
    path = saved(tmp_path, Net(3), hyper_parameters={"width": 3, "_class_path": "os.system"})

    assert Net.load_from_checkpoint(path).hparams.width == 3


# ---- hparams files


YAML, CSV = "width: 3\nlr: 0.3\n", "key,value\nwidth,3\nlr,0.3\n"


@pytest.mark.parametrize(("name", "text"), [("h.yaml", YAML), ("h.yml", YAML), ("h.csv", CSV)])
def test_an_hparams_file_replaces_the_stored_hparams(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    loaded = Net.load_from_checkpoint(saved(tmp_path, Net(3)), hparams_file=tmp_path / name)

    assert loaded.hparams == {"width": 3, "lr": 0.3}


def test_an_hparams_file_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown suffix '.txt'"):
        Net.load_from_checkpoint(saved(tmp_path, Net(3)), hparams_file="h.txt")


HPARAMS = {"a": 1, "b": 2.5, "c": "s", "e": True, "f": [1, 2], "g": {"h": (1, 2)}}


@pytest.mark.parametrize("kind", [dict, AttributeDict, lambda hparams: Namespace(**hparams)])
def test_yaml_keeps_plain_data(tmp_path, kind):
    saving.save_hparams_to_yaml(tmp_path / "h.yaml", kind({**HPARAMS, "d": None}))

    assert saving.load_hparams_from_yaml(tmp_path / "h.yaml") == {**HPARAMS, "d": None}


def test_yaml_converts_or_leaves_out_what_it_cannot_express(tmp_path):
    with pytest.warns(UserWarning, match="'act' of type 'builtin_function_or_method' is left out"):
        saving.save_hparams_to_yaml(tmp_path / "h.yaml", {"path": Path("a"), "act": torch.relu})

    assert (tmp_path / "h.yaml").read_text() == "path: a\n"


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "h.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")

    with pytest.raises(Exception, match="could not determine a constructor"):
        saving.load_hparams_from_yaml(tmp_path / "h.yaml")


def test_csv_keeps_literals(tmp_path):
    saving.save_hparams_to_tags_csv(tmp_path / "h.csv", HPARAMS)

    assert saving.load_hparams_from_tags_csv(tmp_path / "h.csv") == HPARAMS


@pytest.mark.parametrize("read", [saving.load_hparams_from_yaml, saving.load_hparams_from_tags_csv])
def test_an_absent_file_gives_no_hparams_and_a_warning(tmp_path, read):
    with pytest.warns(RuntimeWarning, match="There is no file"):
        assert read(tmp_path / "absent") == {}


@pytest.mark.parametrize("write", [saving.save_hparams_to_yaml, saving.save_hparams_to_tags_csv])
def test_an_absent_folder_is_an_error(tmp_path, write):
    with pytest.raises(RuntimeError, match="does not exist"):
        write(tmp_path / "absent" / "h", {})


def test_yaml_needs_named_values(tmp_path):
    with pytest.raises(TypeError, match="not 'list'"):
        saving.save_hparams_to_yaml(tmp_path / "h.yaml", [1])  # type: ignore[arg-type]  # wrong on purpose


def test_updates_are_merged_deeply():
    hparams = {"a": {"b": 1}, "c": 2}
    saving.update_hparams(hparams, {"a": {"d": 3}, "c": 4})

    assert hparams == {"a": {"b": 1, "d": 3}, "c": 4}


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("None", None), ("[1]", [1]), ("true", "true"), ("", "")])
def test_text_is_converted_if_it_is_a_literal(text, value):
    assert saving.convert(text) == value


# ---- export


class Exported(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.frozen = torch.nn.Dropout().eval()
        self.example_input_array = torch.ones(1, 2)

    def forward(self, x):
        return self.frozen(self.layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("method", ["script", "trace"])
def test_torchscript_computes_the_same_and_modes_come_back(tmp_path, method):
    module = Exported()
    with pytest.warns(DeprecationWarning, match="`to_torchscript` is deprecated"):
        compiled = module.to_torchscript(tmp_path / "m.pt", method=method)

    assert compiled(torch.ones(1, 2)).equal(module.eval()(torch.ones(1, 2)))
    assert torch.jit.load(tmp_path / "m.pt")(torch.ones(1, 2)).equal(module(torch.ones(1, 2)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_export_leaves_every_submodule_in_its_mode():
    module = Exported()
    with pytest.warns(DeprecationWarning, match="`to_torchscript` is deprecated"):
        module.to_torchscript(method="trace")

    assert [child.training for child in module.modules()] == [True, True, False]


@pytest.mark.parametrize("call", [lambda m: m.to_onnx(io.BytesIO()), lambda m: m.to_torchscript(method="trace")])
@pytest.mark.filterwarnings("ignore:`to_torchscript` is deprecated")
def test_export_without_a_sample_says_how_to_give_one(call):
    with pytest.raises(ValueError, match=r"needs an input to run `Net.forward` with.*example_input_array"):
        call(Net(1))


@pytest.mark.filterwarnings("ignore:`to_torchscript` is deprecated")
def test_unknown_torchscript_method_is_refused():
    with pytest.raises(ValueError, match="method='compile'"):
        Exported().to_torchscript(method="compile")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside torch's exporter
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_file_is_written(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    Exported().to_onnx(tmp_path / "m.onnx", dynamo=dynamo)

    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_tensorrt_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match="`to_tensorrt` needs the package `torch_tensorrt`"):
        Exported().to_tensorrt("m.ep")


def test_a_refused_instance_call_leaves_pickling_alone():
    assert type(pickle.loads(pickle.dumps(Exported()))) is Exported

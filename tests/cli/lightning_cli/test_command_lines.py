"""What command lines do, right and wrong ones; each wrong one with what the user sees."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fulmen import Trainer
from fulmen.cli import LightningCLI
from fulmen.demos.boring_classes import BoringDataModule, BoringModel
from fulmen.utilities.exceptions import MisconfigurationException
from tests.cli.lightning_cli.programs import (
    DeepNet,
    FactoryNet,
    InitNet,
    Net,
    QuietCLI,
    RequiredNet,
    SizedCallback,
    VectorData,
    make_net,
)


def made(line: str, model: Any = Net, cls: type[LightningCLI] = QuietCLI, **kwargs: Any) -> Any:
    """The CLI after a command line without subcommand."""
    return cls(model, args=shlex.split(line), run=False, **kwargs)


def ran(line: str, model: Any = Net, cls: type[LightningCLI] = QuietCLI, **kwargs: Any) -> Any:
    return cls(model, args=shlex.split(line), **kwargs)


def at(obj: Any, path: str) -> Any:
    for name in path.split("."):
        obj = obj[int(name)] if name.isdigit() else getattr(obj, name)
    return obj


def short(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | list | tuple | type(None)) else type(value).__name__


# ---- options of the classes
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("", {"model.width": 3, "trainer.max_epochs": 1, "config.seed_everything": 0}),
    ("--model.width 8", {"model.width": 8}),
    ("--model.width=8 --model.width=9", {"model.width": 9}),
    ("--model.name 12", {"model.name": "12"}),
    ("--model.rates [0.1,1e-3]", {"model.rates": [0.1, 0.001]}),
    ("--model.kind large", {"model.kind.value": "l"}),
    ("--model.activation ReLU", {"model.activation": "ReLU"}),
    ("--model.activation torch.nn.Dropout --model.activation.p 0.25", {"model.activation.p": 0.25}),
    ("--model.activation null", {"model.activation": None}),
    ("--trainer.max_steps 7", {"trainer.max_steps": 7}),
    ("--trainer.max_time 00:00:10:00", {"trainer.callbacks.0": "Timer"}),
    ("--trainer.limit_val_batches 0.5", {"trainer.limit_val_batches": 0.5}),
    ("--trainer.precision bf16-mixed", {"trainer.precision": "bf16-mixed"}),
    ("--trainer.devices 1 --trainer.accelerator cpu", {"trainer.num_devices": 1}),
    (
        "--trainer.logger true --trainer.logger CSVLogger --trainer.logger.save_dir logs",
        {"trainer.logger": "CSVLogger"},
    ),
    ("--trainer.logger CSVLogger --trainer.logger.save_dir logs", {"trainer.logger.save_dir": "logs"}),
    ("--trainer.profiler simple", {"trainer.profiler": "SimpleProfiler"}),
    ("--trainer.profiler AdvancedProfiler --trainer.profiler.filename x", {"trainer.profiler.filename": "x"}),
    ("--trainer.plugins HalfPrecision", {"trainer.precision_plugin": "HalfPrecision"}),
    (
        "--trainer.strategy '{class_path: SingleDeviceStrategy, init_args: {device: cpu}}'",
        {"trainer.strategy": "SingleDeviceStrategy"},
    ),
    ("--trainer.callbacks EarlyStopping --trainer.callbacks.monitor x", {"trainer.callbacks.0.monitor": "x"}),
    (
        "--trainer.callbacks+=SizedCallback --trainer.callbacks.size 5 --trainer.callbacks+=Timer"
        " --trainer.callbacks.interval epoch",
        {"trainer.callbacks.0.size": 5, "trainer.callbacks.1": "Timer"},
    ),
    ("--trainer.callbacks tests.cli.lightning_cli.programs.SizedCallback", {"trainer.callbacks.0.size": 1}),
    ("--seed_everything 13", {"config.seed_everything": 13}),
    ("--seed_everything true", {"config.seed_everything": 0}),
    ("--seed_everything false", {"config.seed_everything": False}),
    ("--data VectorData --data.batch_size 3", {"datamodule.batch_size": 3}),
]


@pytest.mark.parametrize(("line", "expected"), RIGHT, ids=[line for line, _ in RIGHT])
def test_option_reaches_the_object(line: str, expected: dict[str, Any]) -> None:
    cli = made(line)

    assert {path: short(at(cli, path)) for path in expected} == expected


def test_model_is_chosen_by_name_or_path_when_no_class_is_given() -> None:
    by_name = made("--model DeepNet --model.depth 4 --model.width 5", None)
    by_path = made("--model tests.cli.lightning_cli.programs.DeepNet", None)

    assert (type(by_name.model), by_name.model.depth, by_name.model.width) == (DeepNet, 4, 5)
    assert type(by_path.model) is DeepNet


@pytest.mark.slow
def test_subclass_of_the_model_is_chosen_in_subclass_mode() -> None:
    cli = made("--model DeepNet", Net, subclass_mode_model=True, datamodule_class=VectorData)

    assert type(cli.model) is DeepNet
    with pytest.raises(SystemExit):
        made("--model InitNet", Net, subclass_mode_model=True)


def test_functions_stand_for_classes() -> None:
    def make_trainer(max_epochs: int = 2, **kwargs: Any) -> Trainer:
        return Trainer(max_epochs=max_epochs + 1, **kwargs)

    cli: Any = QuietCLI(make_net, trainer_class=make_trainer, args=["--model.width", "4"], run=False)

    assert (cli.model.width, cli.model.name, cli.trainer.max_epochs) == (4, "by function", 2)


def test_configuration_is_taken_as_a_dict() -> None:
    cli: Any = QuietCLI(Net, args={"model": {"width": 6}}, run=False)
    with_subcommand: Any = QuietCLI(Net, args={"subcommand": "validate", "validate": {"model": {"width": 7}}})

    assert (cli.model.width, with_subcommand.model.width) == (6, 7)


def test_both_args_and_a_command_line_warn(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--model.width", "1"])

    with pytest.warns(UserWarning, match=r"the command line, \['--model.width', '1'\], is not read"):
        assert made("--model.width 5").model.width == 5


def test_command_line_of_the_process_is_the_default(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--model.width", "6"])

    assert QuietCLI(Net, run=False).model.width == 6


# ---- wrong ones
FILES = {
    "value.yaml": "trainer:\n  max_epochs: 1\nmodel:\n  width: many\n",
    "key.yaml": "trainer:\n  max_epochss: 1\n",
    "nested.yaml": (
        "trainer:\n  callbacks:\n    - class_path: EarlyStopping\n      init_args:\n"
        "        monitor: x\n        patience: no\n"
    ),
    "syntax.yaml": "trainer:\n  max_epochs: [1\n",
    "good.yaml": "model:\n  width: 4\n",
}
WRONG: list[tuple[str, list[str]]] = [
    ("--trainer.max_epochs five", ['Parser key "trainer.max_epochs"', "Expected a <class 'int'>", "five"]),
    (
        "--trainer.max_epochss 5",
        ["unrecognized arguments: --trainer.max_epochss", "Did you mean 'trainer.max_epochs'?"],
    ),
    ("--model.withd 5", ["--model.withd", "Did you mean 'model.width'?"]),
    ("--model.width", ["expected one argument"]),
    ("--model.kind medium", ["model.kind", "medium", "small"]),
    ("--model.activation ReLUU", ["model.activation", "ReLUU"]),
    ("--model.activation torch.nn.Nothing", ["model.activation", "torch.nn.Nothing"]),
    ("--model.activation Dropout --model.activation.q 1", ["model.activation", "q"]),
    ("--trainer.callbacks Net", ["trainer.callbacks", "Net"]),
    ("--trainer.callbacks EarlyStopping", ["monitor"]),
    ("--seed_everything soon", ["seed_everything", "soon"]),
    ("--optimizer Adamm", ["optimizer", "Adamm"]),
    ("--optimizer Adam --optimizer.speed 1", ["optimizer", "speed"]),
    ("--data Net", ["data", "Net"]),
    ("--config nothing.yaml", ["nothing.yaml"]),
    ("--config value.yaml", ['Parser key "model.width"', "many", "set in:", "value.yaml:4"]),
    ("-c good.yaml --config=key.yaml", ["max_epochss", "Did you mean 'trainer.max_epochs'?", "key.yaml:2"]),
    ("--config nested.yaml", ['Parser key "patience"', "nested.yaml:6"]),
    ("--config syntax.yaml", ['in "syntax.yaml", line 2']),
    ("surplus", ["unrecognized arguments: surplus"]),
]


@pytest.mark.parametrize(("line", "seen"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_command_line_ends_with_what_is_wrong(line: str, seen: list[str], capsys) -> None:
    for name, text in FILES.items():
        Path(name).write_text(text)

    with pytest.raises(SystemExit) as caught:
        made(line)

    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert [part for part in seen if part not in shown] == []


WRONG_WITH_SUBCOMMANDS: list[tuple[str, Any, list[str]]] = [
    ("", Net, ["subcommand", "{fit,validate,test,predict}"]),
    ("fitt", Net, ["invalid choice: 'fitt'"]),
    ("fit", RequiredNet, ["required", "model.width"]),
    ("fit", None, ["required", "model"]),
    ("fit --model Deep", None, ['Parser key "model"', "Deep"]),
    ("--model.width 3 fit", Net, ["argument subcommand: invalid choice: '3'"]),
    ("--config fit.yaml fit", Net, ["trainer.max_epochs", "five", "fit.yaml:3"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "model", "seen"), WRONG_WITH_SUBCOMMANDS)
def test_wrong_subcommand_line_ends_with_what_is_wrong(line: str, model: Any, seen: list[str], capsys) -> None:
    Path("fit.yaml").write_text("fit:\n  trainer:\n    max_epochs: five\n")
    with pytest.raises(SystemExit) as caught:
        ran(line, model)

    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert [part for part in seen if part not in shown] == []


# ---- help
def test_help_shows_arguments_with_their_docs_and_types(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        made("--help")

    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "--model.width WIDTH How wide it is. (type: int, default: 3)" in shown
    assert "--data.help" in shown


def test_help_of_a_class_shows_its_arguments(capsys) -> None:
    with pytest.raises(SystemExit):
        made("--trainer.callbacks.help EarlyStopping")

    assert "--trainer.callbacks.patience PATIENCE" in capsys.readouterr().out


@pytest.mark.slow
def test_help_of_the_program_lists_subcommands(capsys) -> None:
    with pytest.raises(SystemExit):
        ran("--help")

    assert "fit                 Train a module." in capsys.readouterr().out


@pytest.mark.slow  # the script lists the options of all classes
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_script_knows_the_options(shell: str, capsys) -> None:
    with pytest.raises(SystemExit):
        made(f"--print_completion=shtab-{shell}")

    assert "--trainer.max_epochs" in capsys.readouterr().out


# ---- optimizers
def test_optimizer_and_scheduler_of_the_command_line_train_the_module() -> None:
    with pytest.warns(UserWarning, match=r"`Net.configure_optimizers` is not used.*torch.optim.Adam"):
        cli = ran("fit --optimizer Adam --optimizer.lr 0.01 --lr_scheduler StepLR --lr_scheduler.step_size 1")

    optimizer = cli.trainer.optimizers[0]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["initial_lr"] == 0.01
    assert type(cli.trainer.lr_scheduler_configs[0].scheduler) is torch.optim.lr_scheduler.StepLR


def test_scheduler_on_plateau_watches_the_metric_of_its_option() -> None:
    with pytest.warns(UserWarning, match="is not used"):
        cli = made("--optimizer SGD --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor loss")

    configured: Any = cli.model.configure_optimizers()
    assert configured["lr_scheduler"]["monitor"] == "loss"


def test_scheduler_without_an_optimizer_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="no optimizer that it could act on"):
        made("--lr_scheduler StepLR --lr_scheduler.step_size 1")


@pytest.mark.slow
def test_one_class_of_optimizers_has_its_arguments_as_options() -> None:
    class OneOptimizer(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_optimizer_args(torch.optim.SGD)
            parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)

    with pytest.warns(UserWarning, match="is not used"):
        cli = made("--optimizer.momentum 0.5 --lr_scheduler.gamma 0.3", cls=OneOptimizer)

    optimizers, schedulers = cli.model.configure_optimizers()
    assert (optimizers[0].param_groups[0]["momentum"], schedulers[0].gamma) == (0.5, 0.3)


@pytest.mark.slow
def test_several_automatic_optimizers_are_refused() -> None:
    class TwoOptimizers(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_optimizer_args(nested_key="a")
            parser.add_optimizer_args(nested_key="b")

    with pytest.raises(MisconfigurationException, match=r"several options \['a', 'b'\]"):
        made("--a SGD --b SGD", cls=TwoOptimizers)


def test_linked_optimizers_reach_the_arguments_of_the_model() -> None:
    class LinkedOptimizers(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_optimizer_args((torch.optim.Adam,), nested_key="first", link_to="model.first_init")
            parser.add_optimizer_args(torch.optim.SGD, nested_key="second", link_to="model.second_init")

    cli = made("--first Adam --first.lr 0.5 --second.lr 0.2", InitNet, cls=LinkedOptimizers)

    assert cli.model.first_init["class_path"] == "torch.optim.Adam"
    assert (cli.model.first_init["init_args"]["lr"], cli.model.second_init["init_args"]["lr"]) == (0.5, 0.2)


def test_model_gets_factories_of_optimizers() -> None:
    cli = made(
        "--model.optimizer SGD --model.optimizer.lr 0.3 --model.scheduler StepLR --model.scheduler.step_size 3",
        FactoryNet,
    )

    optimizers, schedulers = cli.model.configure_optimizers()
    assert (optimizers[0].param_groups[0]["lr"], schedulers[0].step_size) == (0.3, 3)


def test_own_configure_optimizers_of_the_cli_decides() -> None:
    class Configured(QuietCLI):
        @staticmethod
        def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            optimizer.param_groups[0]["lr"] = 42.0
            return optimizer

    with pytest.warns(UserWarning, match="is not used"):
        cli = made("--optimizer SGD", cls=Configured)

    assert cli.model.configure_optimizers().param_groups[0]["lr"] == 42.0


def test_configure_optimizers_stays_the_models_when_automatic_is_off() -> None:
    cli = made("", auto_configure_optimizers=False)

    assert isinstance(cli.model.configure_optimizers(), tuple)
    with pytest.raises(SystemExit):
        made("--optimizer SGD", auto_configure_optimizers=False)


# ---- own parsers
class OwnCLI(QuietCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.link_arguments("data.batch_size", "model.width")
        parser.link_arguments("data.num_classes", "model.name", apply_on="instantiate", compute_fn=str)
        parser.add_lightning_class_args(SizedCallback, "mine")
        parser.set_defaults({"mine.size": 4})
        parser.add_argument("--note", default="nothing")


def test_links_defaults_callbacks_and_arguments_of_a_subclass_work() -> None:
    cli = made("--data.batch_size 9 --note x", cls=OwnCLI, datamodule_class=VectorData)

    assert (cli.model.width, cli.model.name) == (9, "7")
    assert [type(callback) for callback in cli.trainer.callbacks] == [SizedCallback]
    assert cli.trainer.callbacks[0].size == 4
    assert cli.config["note"] == "x"


def test_target_of_a_link_cannot_be_given(capsys) -> None:
    with pytest.raises(SystemExit):
        made("--model.width 9", cls=OwnCLI, datamodule_class=VectorData)

    assert 'Linked "model.width" must be given via "data.batch_size"' in capsys.readouterr().err


def test_arguments_of_another_class_are_refused() -> None:
    class Wrong(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(torch.nn.Linear, "linear")

    with pytest.raises(MisconfigurationException, match="neither a Trainer, a LightningModule"):
        made("", cls=Wrong)


def test_callbacks_among_the_defaults_are_always_there() -> None:
    cli = made("--trainer.callbacks Timer", trainer_defaults={"callbacks": SizedCallback(3), "max_epochs": 5})

    assert [type(callback).__name__ for callback in cli.trainer.callbacks] == ["Timer", "SizedCallback"]
    assert cli.trainer.max_epochs == 5


def test_environment_variables_are_options(monkeypatch) -> None:
    monkeypatch.setenv("PL_MODEL__WIDTH", "21")
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "0")

    assert made("", parser_kwargs={"default_env": True}).model.width == 21
    assert ran("fit", parser_kwargs={"default_env": True}).trainer.max_epochs == 0
    assert made("").model.width == 3


def test_wrong_environment_variable_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setenv("PL_MODEL__WIDTH", "wide")
    with pytest.raises(SystemExit):
        made("", parser_kwargs={"default_env": True})

    assert "model.width" in capsys.readouterr().err


# ---- subcommands
@pytest.mark.slow
@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_subcommand_runs_between_its_two_methods(subcommand: str) -> None:
    calls = []

    class Watched(QuietCLI):
        def __getattr__(self, name: str) -> Any:
            if name.startswith(("before_", "after_")):
                return lambda: calls.append(name)
            raise AttributeError(name)

    cli = ran(subcommand, BoringModel, cls=Watched)

    assert calls == [f"before_{subcommand}", f"after_{subcommand}"]
    assert cli.subcommand == subcommand
    assert cli.trainer.state.fn.value == subcommand


@pytest.mark.slow
def test_method_of_the_tuner_is_a_subcommand_when_it_is_listed() -> None:
    class Tuning(QuietCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            loaders = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
            return {**LightningCLI.subcommands(), "lr_find": loaders}

    class Rated(BoringModel):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.lr = lr

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    cli = ran("lr_find --num_training 20 --trainer.limit_train_batches 1.0", Rated, cls=Tuning)

    assert cli.model.lr != 0.1


def test_method_of_the_cli_is_a_subcommand_when_it_is_listed() -> None:
    class Counting(QuietCLI):
        counted: ClassVar[list[Any]] = []

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {"count": set()}

        def count(self, up_to: int = 2) -> None:
            """Count."""
            self.counted.append((up_to, self.model.width))

    ran("count --up_to 5 --model.width 4", cls=Counting)

    assert Counting.counted == [(5, 4)]


def test_method_of_a_subclass_that_passes_all_on_gets_model_and_data() -> None:
    class Passing(QuietCLI):
        def fit(self, model: Any, **kwargs: Any) -> None:
            self.trainer.fit(model, **kwargs)

    class Data(BoringDataModule):
        pass

    cli = ran("fit", BoringModel, cls=Passing, datamodule_class=Data)

    assert cli.trainer.datamodule is cli.datamodule
    assert cli.trainer.global_step == 2


def test_subcommand_without_a_method_is_refused() -> None:
    class Lost(QuietCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {"dance": set()}

    with pytest.raises(MisconfigurationException, match="'dance', which is no method of"):
        ran("dance", cls=Lost)

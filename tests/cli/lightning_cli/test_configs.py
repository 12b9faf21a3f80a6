"""Config files: read, merged, printed, saved, and kept in checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fulmen.cli import LightningCLI, SaveConfigCallback, instantiate_class
from fulmen.core.saving import CLI_INSTANTIATOR
from fulmen.loggers import CSVLogger
from tests.cli.lightning_cli.programs import DeepNet, Net, NotedConfig, QuietCLI, VectorData


def write(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def made(*args: str, model: Any = Net, cls: type[LightningCLI] = QuietCLI, **kwargs: Any) -> Any:
    return cls(model, args=list(args), run=False, **kwargs)


def ran(*args: str, model: Any = Net, **kwargs: Any) -> Any:
    return QuietCLI(model, args=list(args), **kwargs)


# ---- read
def test_later_config_and_later_option_win() -> None:
    write(a="model: {width: 1, name: a}\ntrainer: {max_epochs: 3}", b="model: {width: 2}")

    both = made("-c", "a.yaml", "--config", "b.yaml")
    between = made("--config=a.yaml", "--model.width", "9", "--config=b.yaml")
    after = made("--config=a.yaml", "--config=b.yaml", "--model.width", "9")

    assert (both.model.width, both.model.name, both.trainer.max_epochs) == (2, "a", 3)
    assert (between.model.width, after.model.width) == (2, 9)


@pytest.mark.slow
def test_config_of_the_program_has_a_part_for_each_subcommand() -> None:
    write(all="fit:\n  model: {width: 5}\nvalidate:\n  model: {width: 6}\n")

    assert ran("--config", "all.yaml", "fit").model.width == 5
    assert ran("--config", "all.yaml", "validate").model.width == 6


def test_part_of_a_config_is_a_file_of_its_own() -> None:
    write(net="width: 12\n", all="model: net.yaml\n")

    assert made("--model", "net.yaml").model.width == 12
    assert made("--config", "all.yaml").model.width == 12


@pytest.mark.slow
def test_default_config_files_are_read_where_they_exist() -> None:
    write(defaults="model: {width: 31}")
    kwargs: dict[str, Any] = {"parser_kwargs": {"default_config_files": ["defaults.yaml", "nothing.yaml"]}}
    of_fit: dict[str, Any] = {"parser_kwargs": {"fit": {"default_config_files": ["defaults.yaml"]}}}

    assert made(**kwargs).model.width == 31
    assert made("--model.width=1", **kwargs).model.width == 1
    assert (ran("fit", **of_fit).model.width, ran("validate", **of_fit).model.width) == (31, 3)


def test_callbacks_and_loggers_of_a_config_are_made() -> None:
    write(
        a="trainer:\n"
        "  logger: {class_path: CSVLogger, init_args: {save_dir: logs}}\n"
        "  callbacks:\n"
        "    - class_path: EarlyStopping\n      init_args: {monitor: loss}\n"
        "    - class_path: tests.cli.lightning_cli.programs.SizedCallback\n      init_args: {size: 2}\n"
    )
    cli = made("--config=a.yaml")

    assert isinstance(cli.trainer.logger, CSVLogger)
    assert [type(callback).__name__ for callback in cli.trainer.callbacks] == ["EarlyStopping", "SizedCallback"]


@pytest.mark.slow
@pytest.mark.parametrize("args", [["--config=a.yaml"], ["fit", "--config=a.yaml"]])
def test_interpolations_of_omegaconf_are_resolved(args: list[str]) -> None:
    write(a="model: {width: '${trainer.max_epochs}'}\ntrainer: {max_epochs: 2}")
    cli = QuietCLI(Net, args=args, run=len(args) > 1, parser_kwargs={"parser_mode": "omegaconf"})

    assert cli.model.width == 2


# ---- printed
def test_printed_config_is_one_that_is_read(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        made("--model.width=8", "--model.activation=ReLU", "--trainer.callbacks+=Timer", "--print_config")
    printed = capsys.readouterr().out
    write(printed=printed)

    cli = made("--config=printed.yaml")
    assert caught.value.code == 0
    assert printed.startswith("# fulmen==")
    assert (cli.model.width, type(cli.model.activation).__name__) == (8, "ReLU")
    assert [type(callback).__name__ for callback in cli.trainer.callbacks] == ["Timer"]


def test_config_is_printed_with_comments(capsys) -> None:
    with pytest.raises(SystemExit):
        made("--print_config=comments")

    assert "# How wide it is. (type: int, default: 3)\n  width: 3" in capsys.readouterr().out


@pytest.mark.slow
def test_config_is_printed_without_defaults(capsys) -> None:
    with pytest.raises(SystemExit):
        ran("fit", "--model.width=8", "--print_config=skip_default")

    assert yaml.safe_load(capsys.readouterr().out) == {"model": {"width": 8}}


# ---- saved
def test_config_is_saved_next_to_the_logs_and_gives_the_same_run() -> None:
    first = ran(
        "fit", "--model.width=8", "--seed_everything=3", "--trainer.log_every_n_steps=1",
        "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", save_config_callback=SaveConfigCallback,
    )  # fmt: skip
    saved = Path(first.trainer.log_dir or "") / "config.yaml"
    again = ran("fit", "--config", str(saved), "--trainer.logger=false")

    assert yaml.safe_load(saved.read_text())["seed_everything"] == 3
    assert saved.read_text().startswith("# fulmen==")
    assert again.model.width == 8
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))


@pytest.mark.slow
def test_saved_config_leaves_out_the_targets_of_links() -> None:
    class Linked(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.batch_size", "model.width")

    Linked(Net, VectorData, args=["fit", "--data.batch_size=2"], save_config_callback=SaveConfigCallback)
    again = Linked(Net, VectorData, args=["fit", "--config=config.yaml"])

    assert "width" not in yaml.safe_load(Path("config.yaml").read_text())["model"]
    assert again.model.width == 2


@pytest.mark.slow
def test_earlier_config_is_replaced_only_on_demand() -> None:
    write(config="model: {}")
    with pytest.raises(RuntimeError, match=r"an earlier run is at `.*config.yaml`.*'overwrite': True"):
        ran("fit", save_config_callback=SaveConfigCallback)
    ran("fit", save_config_callback=SaveConfigCallback, save_config_kwargs={"overwrite": True})

    assert "trainer" in yaml.safe_load(Path("config.yaml").read_text())


@pytest.mark.slow
def test_file_name_is_chosen_and_fast_dev_run_saves_none() -> None:
    ran("fit", save_config_callback=SaveConfigCallback, save_config_kwargs={"config_filename": "mine.yaml"})
    ran("fit", "--trainer.fast_dev_run=1", save_config_callback=SaveConfigCallback)

    assert sorted(path.name for path in Path().iterdir()) == ["mine.yaml"]


@pytest.mark.slow
def test_parts_that_came_from_files_are_saved_as_files_again() -> None:
    Path("net.yaml").write_text("width: 5\n")
    kwargs: dict[str, Any] = {"multifile": True, "overwrite": True}
    ran("fit", "--model=net.yaml", save_config_callback=SaveConfigCallback, save_config_kwargs=kwargs)
    (saved,) = Path().glob("**/config.yaml")
    assert "width" not in saved.read_text()
    assert "width: 5" in (saved.parent / "net.yaml").read_text()
    again = ran("fit", f"--config={saved}", save_config_callback=None)

    assert again.model.width == 5


def test_own_callback_saves_elsewhere() -> None:
    cli: Any = ran("fit", save_config_callback=NotedConfig, save_config_kwargs={"save_to_log_dir": False})

    assert "width: 3" in cli.trainer.noted
    assert list(Path().iterdir()) == []
    with pytest.raises(ValueError, match="would save nothing"):
        SaveConfigCallback(cli.parser, cli.config, save_to_log_dir=False)


# ---- in checkpoints
@pytest.fixture
def trained_net() -> Any:
    cli = ran(
        "fit",
        "--model.width=8",
        "--model.activation=torch.nn.Dropout",
        "--model.activation.p=0.25",
        "--model.kind=large",
    )
    cli.trainer.save_checkpoint("net.ckpt")
    return cli


def test_nested_objects_are_made_anew_from_a_checkpoint(trained_net) -> None:
    loaded: Any = Net.load_from_checkpoint("net.ckpt")

    assert dict(loaded.hparams) == dict(trained_net.model.hparams)
    assert loaded.hparams["activation"] == {
        "class_path": "torch.nn.Dropout",
        "init_args": {"p": 0.25, "inplace": False},
    }
    assert (loaded.width, loaded.activation.p, loaded.kind.name) == (8, 0.25, "large")
    assert Net.load_from_checkpoint("net.ckpt", width=2).width == 2


def test_checkpoint_is_plain_data_with_lightnings_marks(trained_net) -> None:
    hparams = torch.load("net.ckpt", weights_only=True)["hyper_parameters"]

    assert hparams["_instantiator"] == CLI_INSTANTIATOR == "lightning.pytorch.cli.instantiate_module"
    assert (hparams["width"], hparams["kind"]) == (8, "large")


@pytest.mark.slow
def test_subclass_and_datamodule_are_made_anew_from_a_checkpoint() -> None:
    cli = ran(
        "fit",
        "--model=DeepNet",
        "--model.depth=4",
        "--model.width=7",
        "--data=VectorData",
        "--data.batch_size=2",
        model=None,
    )
    cli.trainer.save_checkpoint("deep.ckpt")

    loaded: Any = Net.load_from_checkpoint("deep.ckpt")
    assert (type(loaded), loaded.depth, loaded.width) == (DeepNet, 4, 7)
    assert VectorData.load_from_checkpoint("deep.ckpt").batch_size == 2


@pytest.mark.slow
def test_value_of_a_link_is_in_the_checkpoint() -> None:
    class Linked(QuietCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.num_classes", "model.width", apply_on="instantiate")

    cli = Linked(Net, VectorData, args=["fit"])
    cli.trainer.save_checkpoint("linked.ckpt")

    assert Net.load_from_checkpoint("linked.ckpt").width == 7


@pytest.mark.slow
def test_objects_are_hyperparameters_without_support_for_checkpoints() -> None:
    with pytest.warns(UserWarning, match="is an `nn.Module`"):
        cli = made("--model.activation=ReLU", load_from_checkpoint_support=False)

    assert isinstance(cli.model.hparams["activation"], torch.nn.ReLU)


@pytest.mark.slow
def test_checkpoint_cannot_ask_for_a_file(trained_net, tmp_path) -> None:
    checkpoint = torch.load("net.ckpt", weights_only=True)
    trap = {"class_path": "logging.FileHandler", "init_args": {"filename": str(tmp_path / "ran")}}
    for name in ("activation", "rates"):
        torch.save({**checkpoint, "hyper_parameters": {**checkpoint["hyper_parameters"], name: trap}}, "bad.ckpt")
        with pytest.raises(Exception, match="FileHandler"):
            Net.load_from_checkpoint("bad.ckpt")

    assert not (tmp_path / "ran").exists()


class Untyped(Net):
    def __init__(self, anything=None) -> None:
        super().__init__()


def test_checkpoint_cannot_ask_for_a_file_as_an_untyped_argument(trained_net, tmp_path) -> None:
    checkpoint = torch.load("net.ckpt", weights_only=True)
    trap = {"class_path": "logging.FileHandler", "init_args": {"filename": str(tmp_path / "ran")}}
    torch.save({**checkpoint, "hyper_parameters": {"anything": trap, "_instantiator": CLI_INSTANTIATOR}}, "bad.ckpt")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse on classes for arguments without a type
        Untyped.load_from_checkpoint("bad.ckpt")

    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_options_of_the_model_come_from_ckpt_path(trained_net) -> None:
    assert ran("validate", "--ckpt_path=net.ckpt").model.width == 8
    with pytest.warns(UserWarning, match=r"`--model.width`: 5 -> 8"):
        assert ran("validate", "--ckpt_path=net.ckpt", "--model.width=5").model.width == 8


@pytest.mark.slow
def test_class_of_the_model_comes_from_ckpt_path() -> None:
    cli = ran("fit", "--model=DeepNet", "--model.depth=4", model=None)
    cli.trainer.save_checkpoint("deep.ckpt")

    with pytest.warns(UserWarning, match=r"`--model.class_path`: '.*InitNet' -> '.*DeepNet'"):
        again = ran("validate", "--ckpt_path=deep.ckpt", "--model=InitNet", model=None)
    assert (type(again.model), again.model.depth) == (DeepNet, 4)


@pytest.mark.slow
def test_ckpt_path_of_another_model_is_refused(trained_net, capsys) -> None:
    class Other(Net):
        def __init__(self, foo: int = 1) -> None:
            super().__init__()

    with pytest.raises(SystemExit):
        ran("validate", "--ckpt_path=net.ckpt", model=Other)

    shown = capsys.readouterr().err
    assert "does not accept option" in shown
    assert "hyperparameters of the checkpoint `net.ckpt`" in shown


@pytest.mark.slow
def test_missing_ckpt_path_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        ran("validate", "--ckpt_path=nothing.ckpt")


def test_class_of_a_description_is_made() -> None:
    linear = instantiate_class((2,), {"class_path": "torch.nn.Linear", "init_args": {"out_features": 3}})

    assert (linear.in_features, linear.out_features) == (2, 3)
    with pytest.raises(ValueError, match="does not say where the class is"):
        instantiate_class((), {"class_path": "Linear"})

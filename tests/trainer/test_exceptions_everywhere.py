"""Whatever raises what: the error comes through, nothing of the run is left, and the Trainer can be used again."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulmen import Callback, Trainer
from fulmen.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.plugins.io import TorchCheckpointIO
from fulmen.trainer.states import TrainerStatus
from tests.support import quiet
from tests.trainer.test_exceptions import AFTER_AN_ERROR, AFTER_SUCCESS, Marker, Scene, raises
from tests.trainer.test_signals import BATCHES, Model, data, fit, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Your `.*_dataloader`'s sampler has shuffling"),
    pytest.mark.filterwarnings("ignore:The checkpoint folder"),
]
WATCHED = [signal.SIGTERM, signal.SIGINT, *(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))]


class Saves(Scene):
    """The scene of other tests with a checkpoint callback, and loaders with a worker."""

    def __init__(self, folder: Path, io: TorchCheckpointIO | None = None, **settings: Any) -> None:
        super().__init__(folder, enable_checkpointing=True, plugins=[] if io is None else [io], **settings)
        saver = self.trainer.checkpoint_callback
        assert isinstance(saver, ModelCheckpoint)
        self.saver = saver


def traces() -> tuple[Any, ...]:
    """What a run must leave as it was."""
    return (
        [signal.getsignal(each) for each in WATCHED],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        multiprocessing.active_children(),
        sys.excepthook,
    )


def check(scene: Scene, owner: Any, name: str, told: list[str] | None = None, method: str = "fit") -> None:
    """Let a method of an owner raise, then run again without."""
    error, before = Marker(name), traces()
    setattr(owner, name, raises(error))
    with pytest.raises(Marker) as caught:
        scene.run(method)
    told_first = list(scene.told)
    delattr(owner, name)
    scene.told.clear()

    assert caught.value is error
    assert told_first == (AFTER_AN_ERROR if told is None else told)
    assert scene.trainer.state.status == TrainerStatus.INTERRUPTED
    assert traces() == before
    assert all(module.training for module in scene.model.modules())

    scene.run(method)

    assert scene.told == AFTER_SUCCESS
    assert scene.trainer.state.status == TrainerStatus.FINISHED


@pytest.mark.parametrize("name", ["log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint"])
def test_an_error_in_a_logger_comes_through(name: str, tmp_path: Path) -> None:
    scene = Saves(tmp_path)
    scene.model.save_hyperparameters({"a": 1})
    step = scene.model.training_step

    def logs(batch: Tensor, batch_idx: int) -> Tensor:
        scene.model.log("loss", 1.0)
        return step(batch, batch_idx)

    scene.model.training_step = logs  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:  # `save` is called again while the run is taken down
        patch.setattr("warnings.warn", lambda *_, **__: None)
        check(scene, scene.logger, name)


@pytest.mark.parametrize("name", ["save_checkpoint", "remove_checkpoint"])
def test_an_error_of_the_checkpoint_io_comes_through(name: str, tmp_path: Path) -> None:
    io = TorchCheckpointIO()

    check(Saves(tmp_path, io, max_epochs=2), io, name)


@pytest.mark.parametrize("name", ["state_dict", "on_save_checkpoint"])
@pytest.mark.parametrize("owner", ["callback", "module", "datamodule"])
def test_an_error_in_what_a_checkpoint_collects_comes_through(owner: str, name: str, tmp_path: Path) -> None:
    scene = Saves(tmp_path)
    if (owner, name) == ("datamodule", "on_save_checkpoint"):
        name = "state_dict"

    check(scene, {"callback": scene.second, "module": scene.model, "datamodule": scene.datamodule}[owner], name)


@pytest.mark.parametrize("owner", ["callback", "module", "datamodule"])
def test_an_error_in_what_takes_a_checkpoint_comes_through(owner: str, tmp_path: Path) -> None:
    scene = Saves(tmp_path)
    scene.second.state_dict = lambda: {"a": 1}  # type: ignore[method-assign]
    scene.datamodule.state_dict = lambda: {"a": 1}  # type: ignore[method-assign]
    scene.run()
    scene.trainer.fit_loop.max_epochs = 2
    scene.trainer.ckpt_path = scene.saver.best_model_path
    scene.told.clear()
    name = "on_load_checkpoint" if owner == "module" else "load_state_dict"

    check(scene, {"callback": scene.second, "module": scene.model, "datamodule": scene.datamodule}[owner], name)


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(7), 7), (SystemExit(), None)])
@pytest.mark.parametrize("hook", ["setup", "batch_start", "teardown"])
def test_leaving_by_ctrl_c_or_exit_takes_everything_down(
    hook: str, error: BaseException, code: int | None, method: str, tmp_path: Path
) -> None:
    scene, before = Scene(tmp_path), traces()
    word = {"fit": "train", "validate": "validation"}.get(method, method)
    name = hook if hook != "batch_start" else f"on_{word}_batch_start"
    setattr(scene.second, name, raises(error))
    with pytest.raises(SystemExit) as caught:
        scene.run(method)
    delattr(scene.second, name)

    assert caught.value.code == code
    assert traces() == before
    assert sorted(told for told in scene.told if told.endswith("teardown")) == [
        "callback.teardown", "datamodule.teardown", "module.teardown"
    ]  # fmt: skip
    scene.run(method)


@pytest.mark.parametrize("second", [OverflowError("second"), SystemExit(3)])
@pytest.mark.parametrize("name", ["on_exception", "teardown"])
def test_nothing_that_goes_wrong_later_hides_the_first_error(name: str, second: BaseException, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.training_step = raises(Marker("first"))  # type: ignore[method-assign]
    setattr(scene.first, name, raises(second))
    with pytest.warns(UserWarning, match=f"another error: {type(second).__name__}"), pytest.raises(Marker):
        scene.run()

    assert scene.told == [told for told in AFTER_AN_ERROR if name not in told or not told.startswith(("on_", "callb"))]


def test_a_warning_of_clean_up_that_is_an_error_does_not_hide_the_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.training_step = raises(Marker("first"))  # type: ignore[method-assign]
    scene.first.teardown = raises(OverflowError("second"))  # type: ignore[method-assign]
    with pytest.raises(Marker):  # in tests, warnings are errors
        scene.run()

    assert scene.told == [told for told in AFTER_AN_ERROR if told != "callback.teardown"]


def test_after_an_error_a_fit_computes_what_it_does_in_a_new_trainer(tmp_path: Path) -> None:
    used = trainer(tmp_path / "used")
    broken = Model()
    broken.validation_step = raises(Marker())  # type: ignore[method-assign]
    with pytest.raises(Marker):
        fit(broken, used)
    again, new = fit(Model(), used), fit(Model(), trainer(tmp_path / "new"))

    assert again.seen == new.seen


# ---- what OnExceptionCheckpoint saves
class Fails(Callback):
    """Raises once, at the n-th call of a hook."""

    def __init__(self, hook: str, at: int) -> None:
        self.left = at + 1
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Trainer, *_: Any) -> None:
        self.left -= not trainer.sanity_checking
        if self.left == 0 and not trainer.sanity_checking:
            self.left = -1
            raise Marker


@pytest.mark.parametrize(
    ("hook", "at", "settings"),
    [
        ("on_train_batch_end", 5, {}),
        ("on_train_epoch_end", 0, {}),
        ("on_validation_start", 0, {}),
        ("on_validation_batch_end", 4, {}),
        ("on_validation_end", 0, {}),
        ("on_train_batch_start", 5, {}),
        ("on_train_batch_start", 3, {"accumulate_grad_batches": 3, "val_check_interval": 1.0}),
        ("on_train_batch_end", 2, {"accumulate_grad_batches": 3, "val_check_interval": 1.0}),
    ],
)
def test_training_that_an_error_ended_between_steps_goes_on_to_the_bit(
    hook: str, at: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(folder: str, *callbacks: Callback) -> Trainer:
        guard = OnExceptionCheckpoint(tmp_path / folder / "saved")
        settings_of_all = {"max_epochs": 2, "val_check_interval": 4, "enable_checkpointing": True, **settings}
        return Trainer(**quiet(tmp_path / folder, callbacks=[*callbacks, guard], **settings_of_all))

    first, rest, whole = Model(), Model(), Model()
    with pytest.raises(Marker):
        fit(first, run("parts", Fails(hook, at)))
    path = tmp_path / "parts" / "saved" / "on_exception.ckpt"
    fit(rest, run("parts"), ckpt_path=path)
    fit(whole, run("whole"))

    assert whole.seen[len(whole.seen) - len(rest.seen) :] == rest.seen
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))


@pytest.mark.parametrize("at", [3, 4, 5, BATCHES - 1])
def test_an_accumulation_window_that_an_error_ended_is_done_again_from_its_first_batch(at: int, tmp_path: Path) -> None:
    class Plain(Model):
        """Without random numbers, of which those of the lost batches are not known any more."""

        def __init__(self) -> None:
            super().__init__()
            self.layer[1] = torch.nn.Identity()

        def on_train_epoch_end(self) -> None: ...

    def run(*callbacks: Callback) -> Trainer:
        guard = OnExceptionCheckpoint(tmp_path / "saved")
        settings = {"max_epochs": 2, "accumulate_grad_batches": 3, "enable_checkpointing": True}
        return Trainer(**quiet(tmp_path, callbacks=[*callbacks, guard], **settings))

    def fit_on(model: Model, of: Trainer, **arguments: Any) -> Model:
        of.fit(model, DataLoader(torch.linspace(-1.0, 1.0, 4 * BATCHES).view(-1, 2), batch_size=2), data(), **arguments)  # type: ignore[arg-type]  # a tensor is a dataset
        return model

    with pytest.raises(Marker):
        fit_on(Plain(), run(Fails("on_before_backward", at)))
    rest = fit_on(Plain(), run())
    whole = fit_on(Plain(), run())

    trained = [[entry for entry in model.seen if entry[1] != "val"] for model in (rest, whole)]
    assert trained[0] == trained[1][at - at % 3 :]
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))


def test_an_error_while_saving_does_not_hide_the_first_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    io = TorchCheckpointIO()
    guard = OnExceptionCheckpoint(tmp_path)
    callbacks = [Fails("on_train_batch_end", 2), guard]
    run = Trainer(**quiet(tmp_path, callbacks=callbacks, plugins=[io], enable_checkpointing=True))
    (tmp_path / "on_exception.ckpt").write_bytes(b"of an earlier run")
    io.save_checkpoint = raises(OSError("the disk is full"))  # type: ignore[method-assign]
    model = Model()
    model.on_train_start = lambda: None  # type: ignore[method-assign]
    begin = saved_by_a_run(tmp_path)
    with pytest.warns(UserWarning, match="OSError: the disk is full"), pytest.raises(Marker):
        run.fit(model, data(), data(), ckpt_path=begin)

    assert (tmp_path / "on_exception.ckpt").read_bytes() == b"of an earlier run"


def saved_by_a_run(folder: Path) -> Path:
    """A checkpoint to begin with, as the one that is there cannot be read."""
    with pytest.raises(SystemExit):
        fit(Model("training_step", 1), trainer(folder, OnExceptionCheckpoint(folder, filename="other")))
    checkpoint = torch.load(folder / "other.ckpt")
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, folder / "first.ckpt")
    return folder / "first.ckpt"


def test_rows_logged_before_an_error_are_in_the_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="log", version=0)
    run = trainer(tmp_path, Fails("on_train_batch_end", 2), logger=logger, log_every_n_steps=1)
    with pytest.raises(Marker):
        fit(Model(), run)
    reading: Callable[[], str] = (tmp_path / "log" / "version_0" / "metrics.csv").read_text

    assert reading().count("\n") == 1 + 2

"""An error anywhere in the user's code: who is told, in which order, and that the error itself comes through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.core.events import EVENTS
from fulmen.loggers import CSVLogger
from fulmen.trainer.states import TrainerStatus
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet


class Marker(Exception):
    """The user's error."""


def data() -> DataLoader[Any]:
    return DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]  # a tensor is a dataset


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def test_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Loaders(LightningDataModule):
    def train_dataloader(self) -> Any:
        return data()

    def val_dataloader(self) -> Any:
        return data()

    def test_dataloader(self) -> Any:
        return data()

    def predict_dataloader(self) -> Any:
        return data()


class Scene:
    """A Trainer whose callback, datamodule, module and logger note in `told` what they hear of the end."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        told: list[str] = []
        self.told = told

        class Witness(Callback):
            def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
                told.append(f"on_exception {type(exception).__name__}")

            def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
                told.append("callback.teardown")

        class WitnessModel(Model):
            def teardown(self, stage: str) -> None:
                told.append("module.teardown")

        class WitnessData(Loaders):
            def on_exception(self, exception: BaseException) -> None:
                told.append("datamodule.on_exception")

            def teardown(self, stage: str) -> None:
                told.append("datamodule.teardown")

        class WitnessLogger(CSVLogger):
            def finalize(self, status: str) -> None:
                told.append(f"finalize {status}")

        self.first, self.second = Witness(), Callback()
        self.model, self.datamodule, self.logger = WitnessModel(), WitnessData(), WitnessLogger(tmp_path)
        settings = {"log_every_n_steps": 1, "callbacks": [self.first, self.second], **settings}
        self.trainer = Trainer(**quiet(tmp_path, logger=self.logger, **settings))

    def run(self, method: str = "fit") -> Any:
        return getattr(self.trainer, method)(self.model, datamodule=self.datamodule)


AFTER_AN_ERROR = [
    "on_exception Marker", "datamodule.on_exception", "finalize failed",
    "datamodule.teardown", "callback.teardown", "module.teardown",
]  # fmt: skip
AFTER_SUCCESS = ["datamodule.teardown", "callback.teardown", "module.teardown", "finalize success"]


def raises(error: BaseException) -> Callable[..., Any]:
    def hook(*_: Any, **__: Any) -> Any:
        raise error

    return hook


STAGES = {"validate": "validation", "test": "test", "predict": "predict"}
OF_CALLBACKS = [
    ("fit", event.name)
    for event in EVENTS
    if not event.name.startswith(("on_test", "on_predict"))
    and event.name not in ("on_exception", "teardown", "on_save_checkpoint", "on_load_checkpoint")
] + [
    (method, f"on_{word}_{moment}")
    for method, word in STAGES.items()
    for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
]
NOT_OF_MODULES = ("on_sanity_check_start", "on_sanity_check_end")
OF_MODULES = [case for case in OF_CALLBACKS if case[1] not in NOT_OF_MODULES] + [
    ("fit", name)
    for name in (
        "configure_callbacks", "prepare_data", "configure_model", "configure_optimizers", "on_before_batch_transfer",
        "transfer_batch_to_device", "on_after_batch_transfer", "training_step", "validation_step", "optimizer_step",
        "optimizer_zero_grad", "backward", "configure_gradient_clipping", "on_validation_model_zero_grad",
        "on_validation_model_eval",
    )
] + [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")]  # fmt: skip
OF_DATAMODULES = [
    ("fit", "prepare_data"), ("fit", "setup"), ("fit", "train_dataloader"), ("fit", "val_dataloader"),
    ("validate", "val_dataloader"), ("test", "test_dataloader"), ("predict", "predict_dataloader"),
]  # fmt: skip
BEFORE_SETUP = ("configure_callbacks", "prepare_data")


@pytest.mark.parametrize(
    ("owner", "method", "hook"),
    [
        *(("callback", *case) for case in OF_CALLBACKS),
        *(("module", *case) for case in OF_MODULES),
        *(("datamodule", *case) for case in OF_DATAMODULES),
    ],
)
def test_an_error_in_any_hook_is_told_once_to_each_and_comes_through(
    owner: str, method: str, hook: str, tmp_path: Path
) -> None:
    scene, error = Scene(tmp_path), Marker(hook)
    raising = {"callback": scene.second, "module": scene.model, "datamodule": scene.datamodule}[owner]
    setattr(raising, hook, raises(error))
    with pytest.raises(Marker) as caught:
        scene.run(method)
    told = list(scene.told)
    delattr(raising, hook)
    scene.told.clear()
    assert scene.trainer.state.status == TrainerStatus.INTERRUPTED
    scene.run(method)

    assert caught.value is error
    assert told == AFTER_AN_ERROR[: 3 if hook in BEFORE_SETUP else None]
    assert scene.told == AFTER_SUCCESS
    assert scene.trainer.state.status == TrainerStatus.FINISHED
    assert all(module.training for module in scene.model.modules())


def test_a_run_that_is_refused_tells_of_the_error_but_tears_nothing_down(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.run("validate")
    scene.told.clear()
    scene.model.configure_optimizers = LightningModule.configure_optimizers.__get__(scene.model)  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match="configure_optimizers"):
        scene.run()

    assert scene.told == ["on_exception MisconfigurationException", "datamodule.on_exception", "finalize failed"]


# ---- errors while taking down
@pytest.mark.parametrize("owner", ["callback", "module", "datamodule"])
def test_an_error_in_teardown_does_not_hide_the_first_and_stops_nobody(owner: str, tmp_path: Path) -> None:
    scene, error = Scene(tmp_path), Marker("first")
    scene.model.training_step = raises(error)  # type: ignore[method-assign]
    failing: Any = {"callback": scene.first, "module": scene.model, "datamodule": scene.datamodule}[owner]
    failing.teardown = raises(OverflowError("second"))
    with pytest.warns(UserWarning, match="OverflowError: second"), pytest.raises(Marker) as caught:
        scene.run()

    assert caught.value is error
    assert scene.told == [told for told in AFTER_AN_ERROR if told != f"{owner}.teardown"]


def test_an_error_in_on_exception_stops_nobody(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.training_step = raises(Marker())  # type: ignore[method-assign]
    scene.first.on_exception = raises(OverflowError("second"))  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="OverflowError: second"), pytest.raises(Marker):
        scene.run()

    assert scene.told == AFTER_AN_ERROR[1:]


def test_an_error_in_a_teardown_after_success_comes_through_and_stops_nobody(tmp_path: Path) -> None:
    scene, error = Scene(tmp_path), Marker("teardown")
    scene.first.teardown = raises(error)  # type: ignore[method-assign]
    with pytest.raises(Marker) as caught:
        scene.run()

    assert caught.value is error
    assert scene.told == [
        "datamodule.teardown", "module.teardown", "finalize success", "on_exception Marker", "datamodule.on_exception"
    ]  # fmt: skip


def test_an_error_in_finalize_after_success_comes_through_and_stops_nobody(tmp_path: Path) -> None:
    scene, error = Scene(tmp_path), Marker("finalize")
    failing = CSVLogger(tmp_path / "other")
    failing.finalize = raises(error)  # type: ignore[method-assign]
    scene.trainer.loggers = [failing, scene.logger]
    with pytest.raises(Marker) as caught:
        scene.run()

    assert caught.value is error
    assert scene.told == [*AFTER_SUCCESS, "on_exception Marker", "datamodule.on_exception"]


def test_logging_in_teardown_is_refused_also_after_an_error(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.training_step = raises(Marker())  # type: ignore[method-assign]
    scene.model.teardown = lambda stage: scene.model.log("a", 1.0)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"MisconfigurationException.*teardown"), pytest.raises(Marker):
        scene.run()


# ---- the state of the module
def test_an_error_in_validation_leaves_the_modes_as_they_were(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.layer.eval()
    scene.model.validation_step = raises(Marker())  # type: ignore[method-assign]
    with pytest.raises(Marker):
        scene.run("validate")

    assert (scene.model.training, scene.model.layer.training) == (True, False)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# ---- Ctrl-C
@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_ctrl_c_ends_with_130_in_every_method(method: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    step = {"fit": "training_step", "validate": "validation_step"}.get(method, f"{method}_step")
    setattr(scene.model, step, raises(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as caught:
        scene.run(method)

    assert caught.value.code == 130
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert scene.told == ["on_exception KeyboardInterrupt", *AFTER_AN_ERROR[1:]]
    assert scene.trainer.interrupted


def test_sys_exit_of_the_user_keeps_its_code(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.model.training_step = lambda *_: sys.exit(7)  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as caught:
        scene.run()

    assert caught.value.code == 7
    assert scene.told == ["on_exception SystemExit", *AFTER_AN_ERROR[1:]]


# ---- SIGTERM
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_sigterm_is_obeyed_after_the_batch_and_the_handler_put_back(method: str, tmp_path: Path) -> None:
    scene, steps = Scene(tmp_path), []
    name = {"fit": "training_step", "validate": "validation_step"}.get(method, f"{method}_step")
    step = getattr(scene.model, name)

    def signalled(batch: Tensor, batch_idx: int) -> Any:
        steps.append(batch_idx)
        os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, batch_idx)

    setattr(scene.model, name, signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        scene.run(method)

    assert caught.value.code == 143
    assert steps == [0]
    assert scene.told == ["on_exception SIGTERMException", *AFTER_AN_ERROR[1:]]
    assert scene.trainer.received_sigterm
    assert signal.getsignal(signal.SIGTERM) is before


SCRIPT = """
import sys, time
from tests.trainer.test_exceptions import Loaders, Model
from fulmen import Callback, Trainer

class Waiting(Callback):
    def wait(self, *_):
        print("running", flush=True)
        time.sleep(0.2)
    on_train_batch_start = on_validation_batch_start = on_predict_batch_start = wait

    def teardown(self, trainer, pl_module, stage):
        print("teardown", stage.value, flush=True)

trainer = Trainer(accelerator="cpu", max_epochs=-1, callbacks=Waiting(), logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
while True:
    getattr(trainer, sys.argv[1])(Model(), datamodule=Loaders())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
@pytest.mark.parametrize("method", ["validate", "predict"])  # fit: test_interrupted_runs.py
def test_sigterm_ends_the_process_with_143(method: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 143, errors
    assert output.splitlines()[-1] == f"teardown {method}"


# ---- should_stop
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward",
        "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start",
        "on_validation_batch_end", "on_validation_end", "on_train_epoch_end",
    ],
)  # fmt: skip
def test_should_stop_is_obeyed_from_every_hook(hook: str, tmp_path: Path) -> None:
    class Stopping(Callback):
        def stop(self, trainer: Trainer, *_: Any) -> None:
            if not trainer.sanity_checking:
                trainer.should_stop = True

    stopping = Stopping()
    setattr(stopping, hook, stopping.stop)
    scene = Scene(tmp_path, callbacks=stopping, max_epochs=5)
    scene.run()

    epoch_hooks = ("on_validation_start", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end")
    none_yet = ("on_train_start", "on_train_epoch_start")
    assert scene.trainer.global_step == (2 if hook in epoch_hooks else 0 if hook in none_yet else 1)
    assert scene.trainer.state.status == TrainerStatus.FINISHED
    assert scene.told[-1] == "finalize success"

"""A signal ends a run after the step it came in, with a checkpoint from which the run goes on to the bit."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.trainer.signals import Signals
from fulmen.trainer.states import TrainerStatus
from tests.support import quiet

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals"),
    # how many workers are advised depends on the machine
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Your `.*_dataloader`'s sampler has shuffling"),  # a validation to be exact, too
]

BATCHES, VAL_BATCHES, EPOCHS = 8, 3, 2
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """Whatever happens in a run, the handlers afterwards are those from before."""
    before = [signal.getsignal(each) for each in SIGNALS]
    yield

    assert [signal.getsignal(each) for each in SIGNALS] == before


class Model(LightningModule):
    """Notes what it computes, with random numbers in training and in validation; sends itself signals."""

    def __init__(self, place: str = "", at: int = 0, signums: tuple[int, ...] = (signal.SIGTERM,)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.place, self.at, self.signums = place, at, signums
        self.num_calls = 0
        self.seen: list[tuple[Any, ...]] = []

    def call(self, place: str) -> None:
        if place != self.place or self.trainer.sanity_checking != (place == "sanity"):
            return
        self.num_calls += 1
        if self.num_calls == self.at + 1:
            for signum in self.signums:
                os.kill(os.getpid(), signum)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.call("training_step")
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.seen.append((self.current_epoch, batch_idx, loss.item()))
        return loss  # type: ignore[no-any-return]

    def on_train_batch_end(self, *_: Any) -> None:
        self.call("on_train_batch_end")

    def on_validation_start(self) -> None:
        self.call("on_validation_start")

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            self.call("sanity")
            return
        self.call("validation_step")
        value = self.layer(batch).mean() + torch.rand(())
        self.log("val", value)
        if not self.trainer.sanity_checking:
            self.seen.append((self.current_epoch, "val", self.trainer.global_step, batch_idx, value.item()))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.call("test_step")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.call("predict_step")
        return batch

    def on_train_epoch_end(self) -> None:
        self.call("on_train_epoch_end")
        self.seen.append((self.current_epoch, "end", float(self.trainer.callback_metrics["val"])))

    def on_train_end(self) -> None:
        self.call("on_train_end")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val"}}


def data(num_batches: int = BATCHES, num_workers: int = 0) -> DataLoader[Any]:
    numbers = torch.linspace(-1.0, 1.0, 4 * num_batches).view(-1, 2)
    return DataLoader(numbers, batch_size=2, shuffle=True, num_workers=num_workers)  # type: ignore[arg-type]  # a tensor is a dataset


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    saver = ModelCheckpoint(folder / "saved", save_top_k=0)
    settings = {"max_epochs": EPOCHS, "val_check_interval": 4, "enable_checkpointing": True, **settings}
    return Trainer(**quiet(folder, callbacks=[*callbacks, saver], **settings))


def fit(model: Model, run: Trainer, num_workers: int = 0, **arguments: Any) -> Model:
    """Fit on the same numbers as every other run."""
    torch.manual_seed(3)
    run.fit(model, data(num_workers=num_workers), data(VAL_BATCHES), **arguments)
    return model


def assert_goes_on_to_the_bit(folder: Path, interrupted: Model, settings: dict[str, Any], num_workers: int = 0) -> None:
    """Check that the interrupted run and the one that goes on from its file are the uninterrupted run."""
    path = folder / "saved" / "interrupted.ckpt"
    whole = fit(Model(), trainer(folder / "whole", **settings), num_workers)
    rest = fit(Model(), trainer(folder, **settings), num_workers, ckpt_path=path)

    done = len(whole.seen) - len(rest.seen)
    assert whole.seen[done:] == rest.seen
    assert interrupted.seen[:done] == whole.seen[:done]
    # what was seen twice is the validation that was left
    assert all(entry[1] == "val" for entry in interrupted.seen[done:])
    for mine, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert whole.trainer.callback_metrics == rest.trainer.callback_metrics
    assert whole.trainer.fit_loop.batches_that_stepped == rest.trainer.fit_loop.batches_that_stepped


# ---- training
@pytest.mark.parametrize(
    ("place", "at", "settings"),
    [
        ("training_step", 0, {}),
        ("training_step", 5, {}),
        ("training_step", BATCHES - 1, {}),
        ("on_train_batch_end", BATCHES + 3, {}),
        ("validation_step", 0, {}),
        ("validation_step", 4, {}),
        ("validation_step", 5, {"num_sanity_val_steps": 0}),
        ("on_validation_start", 1, {}),
        ("on_train_epoch_end", 0, {}),
        ("training_step", 0, {"accumulate_grad_batches": 3, "val_check_interval": 1.0}),
        ("training_step", 4, {"accumulate_grad_batches": 3, "val_check_interval": 1.0}),
        ("validation_step", 1, {"accumulate_grad_batches": 3}),  # inside a window
        ("validation_step", 1, {"accumulate_grad_batches": 2}),
    ],
)
def test_interrupted_training_goes_on_to_the_bit(place: str, at: int, settings: dict[str, Any], tmp_path: Path) -> None:
    model = Model(place, at)
    with pytest.raises(SystemExit) as caught:
        fit(model, trainer(tmp_path, **settings))

    assert caught.value.code == 128 + signal.SIGTERM
    assert_goes_on_to_the_bit(tmp_path, model, settings)


@pytest.mark.parametrize("place", ["training_step", "validation_step"])
def test_interrupted_training_with_workers_goes_on_to_the_bit(place: str, tmp_path: Path) -> None:
    model = Model(place, 1)
    with pytest.raises(SystemExit):
        fit(model, trainer(tmp_path), num_workers=1)

    assert multiprocessing.active_children() == []
    assert_goes_on_to_the_bit(tmp_path, model, {}, num_workers=1)


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_signal_is_obeyed_after_its_step_and_tells_its_number(signum: int, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    class Witness(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            errors.append(exception)

    model = Model("training_step", 2, (signum,))
    with pytest.raises(SystemExit) as caught:
        fit(model, trainer(tmp_path, Witness()))

    assert caught.value.code == 128 + signum
    assert len(model.seen) == 3
    assert isinstance(errors[0], KeyboardInterrupt if signum == signal.SIGINT else SystemExit)
    assert torch.load(tmp_path / "saved" / "interrupted.ckpt", weights_only=True)["global_step"] == 3


def test_the_newest_interruption_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "saved" / "interrupted.ckpt"
    for at in (2, 1):
        with pytest.raises(SystemExit):
            fit(Model("training_step", at), trainer(tmp_path), ckpt_path=path if path.exists() else None)

    assert torch.load(path, weights_only=True)["global_step"] == 5
    assert os.listdir(path.parent) == ["interrupted.ckpt"]


@pytest.mark.parametrize("settings", [{"enable_checkpointing": False, "callbacks": None}, {"fast_dev_run": 4}])
def test_a_run_that_saves_no_checkpoints_saves_none_when_interrupted(settings: dict[str, Any], tmp_path: Path) -> None:
    saver = {"callbacks": ModelCheckpoint(tmp_path / "saved"), "enable_checkpointing": True}
    with pytest.raises(SystemExit):
        fit(Model("training_step", 1), Trainer(**quiet(tmp_path, **{**saver, **settings})))

    assert list(tmp_path.rglob("*.ckpt")) == []


def test_a_checkpoint_that_cannot_be_written_does_not_keep_the_run(tmp_path: Path) -> None:
    class Full(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            raise OSError("the disk is full")

    with (
        pytest.warns(UserWarning, match="without a checkpoint of this moment: OSError: the disk is full"),
        pytest.raises(SystemExit) as caught,
    ):
        fit(Full("training_step", 1), trainer(tmp_path))

    assert caught.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize(("place", "at"), [("training_step", 5), ("validation_step", 4), ("on_train_epoch_end", 0)])
def test_the_log_of_an_interrupted_run_and_its_successor_is_that_of_one_run(
    place: str, at: int, tmp_path: Path
) -> None:
    def logged(folder: Path) -> Any:
        return trainer(folder, logger=CSVLogger(folder, name="log", version=0), log_every_n_steps=1)

    with pytest.raises(SystemExit):
        fit(Model(place, at), logged(tmp_path))
    fit(Model(), logged(tmp_path), ckpt_path=tmp_path / "saved" / "interrupted.ckpt")
    fit(Model(), logged(tmp_path / "whole"))

    both, whole = (folder / "log" / "version_0" / "metrics.csv" for folder in (tmp_path, tmp_path / "whole"))
    assert both.read_text() == whole.read_text()


def test_weights_that_a_hook_swaps_for_validation_are_not_saved_in_place_of_the_trained_ones(tmp_path: Path) -> None:
    class Swaps(Callback):
        """Evaluates other weights than it trains, as an average of weights would."""

        def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.trained = [parameter.detach().clone() for parameter in pl_module.parameters()]
            for parameter in pl_module.parameters():
                parameter.data.mul_(0.5)

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for parameter, trained in zip(pl_module.parameters(), self.trained, strict=True):
                parameter.data.copy_(trained)

    model = Model("validation_step", 1)
    run = trainer(tmp_path, Swaps())
    with pytest.raises(SystemExit):
        fit(model, run)
    path = tmp_path / "saved" / "interrupted.ckpt"
    whole = fit(Model(), trainer(tmp_path / "whole", Swaps()))
    rest = fit(Model(), trainer(tmp_path, Swaps()), ckpt_path=path)

    assert model.seen + rest.seen == whole.seen
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))


def test_other_checkpoints_of_an_interruption_go_on_to_the_bit_too(tmp_path: Path) -> None:
    model = Model("validation_step", 4)
    with pytest.raises(SystemExit):
        fit(model, trainer(tmp_path, OnExceptionCheckpoint(tmp_path / "saved", filename="other")))
    (tmp_path / "saved" / "other.ckpt").replace(tmp_path / "saved" / "interrupted.ckpt")

    assert_goes_on_to_the_bit(tmp_path, model, {})


def test_a_signal_in_the_last_steps_lets_the_run_end_and_ends_the_process(tmp_path: Path) -> None:
    model = Model("on_train_end")
    run = trainer(tmp_path)
    with pytest.raises(SystemExit) as caught:
        fit(model, run)

    assert caught.value.code == 128 + signal.SIGTERM
    assert run.state.status == TrainerStatus.FINISHED
    assert not (tmp_path / "saved" / "interrupted.ckpt").exists()


# ---- elsewhere
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("place", ["sanity", "validation_step", "test_step", "predict_step"])
def test_outside_of_training_a_signal_ends_the_run_after_the_batch(place: str, signum: int, tmp_path: Path) -> None:
    model, run = Model(place, 0, (signum,)), trainer(tmp_path)
    stage = {"sanity": "fit", "validation_step": "validate"}.get(place, place.removesuffix("_step"))
    loaders = (data(), data(VAL_BATCHES)) if stage == "fit" else (data(VAL_BATCHES),)
    with pytest.raises(SystemExit) as caught:
        getattr(run, stage)(model, *loaders)

    assert caught.value.code == 128 + signum
    assert model.num_calls == 1
    assert list(tmp_path.rglob("*.ckpt")) == []


# ---- Ctrl-C
def test_the_first_ctrl_c_says_what_happens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(Model("training_step", 1, (signal.SIGINT,)), trainer(tmp_path))
    with pytest.raises(SystemExit):
        trainer(tmp_path).test(Model("test_step", 0, (signal.SIGINT,)), data())

    first, second = (line for line in capfd.readouterr().err.splitlines() if line.startswith("Interrupted:"))
    assert "the step is finished and a checkpoint saved. Press Ctrl-C again to stop at once" in first
    assert "the run ends after this batch" in second


def test_ctrl_c_pressed_twice_stops_at_once_with_130_and_takes_everything_down(tmp_path: Path) -> None:
    told: list[str] = []

    class Witness(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            told.append(type(exception).__name__)

        def teardown(self, *_: Any) -> None:
            told.append("teardown")

    class Twice(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # a launcher passes on what the terminal has sent as well
            told.append("once")
            threading.Event().wait(0.4)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(SystemExit) as caught:
        fit(Twice(), trainer(tmp_path, Witness()))

    assert caught.value.code == 130
    assert told == ["once", "KeyboardInterrupt", "teardown"]
    assert not (tmp_path / "saved" / "interrupted.ckpt").exists()


class Interrupted(Dataset[Tensor]):
    """Gets in its worker what a terminal sends to all processes."""

    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, idx: int) -> Tensor:
        if idx == 0:
            for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(os.getpid(), signum)
        return torch.ones(2)


def test_workers_outlive_the_signals_that_a_terminal_sends_to_all(tmp_path: Path) -> None:
    model = Model("training_step", 2, (signal.SIGINT,))
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path).fit(model, DataLoader(Interrupted(), batch_size=2, num_workers=1), data(VAL_BATCHES))

    assert caught.value.code == 130
    assert len(model.seen) == 3
    assert multiprocessing.active_children() == []


def test_a_ctrl_c_that_only_a_worker_gets_changes_nothing(tmp_path: Path) -> None:
    model, run = Model(), trainer(tmp_path, max_epochs=1)
    run.fit(model, DataLoader(Interrupted(), batch_size=2, num_workers=1), data(VAL_BATCHES))

    assert run.state.finished
    assert run.global_step == BATCHES
    assert not (tmp_path / "saved" / "interrupted.ckpt").exists()


# ---- handlers of others
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_handler_of_the_user_stays(signum: int, tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signum, lambda number, frame: received.append(number))
    try:
        fit(Model("training_step", 2, (signum,)), trainer(tmp_path))
    finally:
        signal.signal(signum, before)

    assert received == [signum]


def test_a_handler_of_the_user_for_sigterm_is_called_as_well(tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with pytest.raises(SystemExit):
            fit(Model("training_step", 2), trainer(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_is_ignored_stays_ignored(signum: int, tmp_path: Path) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        model = fit(Model("training_step", 2, (signum,)), trainer(tmp_path))
    finally:
        signal.signal(signum, before)

    assert model.trainer.current_epoch == EPOCHS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux shows handlers unknown to Python")
def test_stacks_that_faulthandler_shows_on_a_signal_are_still_shown(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file)
        try:
            fit(Model("training_step", 2, (signal.SIGUSR1,)), trainer(tmp_path))
        finally:
            faulthandler.unregister(signal.SIGUSR1)

    assert "training_step" in (tmp_path / "stacks").read_text()


def test_in_another_thread_nothing_is_watched(tmp_path: Path) -> None:
    inside: list[Any] = []

    class Looks(Model):
        def on_train_start(self) -> None:
            inside.extend(signal.getsignal(each) for each in SIGNALS)

    before = [signal.getsignal(each) for each in SIGNALS]
    thread = threading.Thread(target=fit, args=(Looks(), trainer(tmp_path)))
    thread.start()
    thread.join()

    assert inside == before


def test_a_signal_does_not_cut_short_how_a_run_is_taken_down(tmp_path: Path) -> None:
    told: list[str] = []

    class Witness(Callback):
        def on_exception(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("on_exception")

        def teardown(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("teardown")

    with pytest.raises(SystemExit) as caught:
        fit(Model("training_step", 2, (signal.SIGUSR2,)), trainer(tmp_path, Witness()))

    assert caught.value.code == 128 + signal.SIGUSR2
    assert told == ["on_exception", "teardown"]


def test_sigterm_can_be_the_signal_that_asks_for_a_requeue() -> None:
    before, signals = signal.getsignal(signal.SIGTERM), Signals()

    signals.begin(requeue_signal=signal.SIGTERM)
    signals.install()
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()

    assert signals.received == signals.requeue_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before

"""What a Trainer does on one rank of several: functions that each rank runs, and that return what the test looks at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from fulmen.utilities.exceptions import SIGTERMException
from tests.support import quiet


def numbers(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size, dtype=torch.float32).unsqueeze(1))


class Net(LightningModule):
    """One layer with dropout; a validation step that is put in from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return (self.dropout(self.layer(batch[0] / 10)) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class LogsInValidation(Net):
    """Logs a value of the weights in validation."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", self.layer(batch[0]).mean())


def trainer(folder: str, **changes: Any) -> Trainer:
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    strategy = "ddp" if devices > 1 else "auto"
    return Trainer(**quiet(Path(folder), **{"devices": devices, "strategy": strategy, **changes}))


# ---- evaluation


def evaluate_with_metric_objects(folder: str, size: int) -> dict[str, Any]:
    """Validate with torchmetrics objects on a size at which ranks have different numbers of batches."""
    import torchmetrics

    class Metrics(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torchmetrics.MeanMetric()
            self.all = torchmetrics.CatMetric()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.mean.update(batch[0])
            self.all.update(batch[0].flatten())
            self.log("mean", self.mean)

        def on_validation_epoch_end(self) -> None:
            self.seen = torch.as_tensor(self.all.compute()).flatten().sort().values.tolist()
            self.all.reset()

    model = Metrics()
    results = trainer(folder).validate(model, DataLoader(numbers(size), 4), verbose=False)
    return {"results": results, "seen": model.seen}


def evaluate_with_communicating_steps(folder: str) -> dict[str, Any]:
    """Gather in `validation_step`, with a batch more on rank 0."""

    class Gathers(Net):
        shapes: list[tuple[int, ...]]

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.shapes.append(tuple(self.all_gather(batch[0].sum()).shape))
            self.log("count", float(len(batch[0])), reduce_fx="sum")

    model = Gathers()
    model.shapes = []
    results = trainer(folder).validate(model, DataLoader(numbers(20), 4), verbose=False)
    return {"results": results, "shapes": model.shapes}


def predict_two_loaders(folder: str) -> Any:
    """Return predictions, and what each rank saw in its hooks."""

    class Predicts(Net):
        def predict_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            return batch[0].flatten()

    loaders = [DataLoader(numbers(11), 4), DataLoader(numbers(5), 2)]
    return trainer(folder).predict(Predicts(), loaders)


def evaluate_uneven_streams(folder: str) -> Any:
    """Validate on streams without length, of which rank 1 has more."""

    class Sizes(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("count", float(len(batch)), reduce_fx="sum")

    return trainer(folder).validate(Sizes(), DataLoader(Counts(), 1), verbose=False)


# ---- training


def validate_by_clocks_that_differ(folder: str) -> list[int]:
    """Validate after some time that by the clock of rank 1 is over at once; return the steps."""

    def set_clock(run: Trainer, *_: Any) -> None:
        run.fit_loop.plan._last_time -= 100 * run.global_rank  # type: ignore[union-attr]  # the run has a plan

    steps: list[int] = []
    notes = LambdaCallback(on_train_start=set_clock, on_validation_start=lambda run, _: steps.append(run.global_step))
    run = trainer(
        folder,
        val_check_interval="00:00:01:00",
        check_val_every_n_epoch=None,
        callbacks=[notes],
        num_sanity_val_steps=0,
    )
    run.fit(LogsInValidation(), DataLoader(numbers(16), 4), DataLoader(numbers(8), 4))
    return steps


def decide_by_values_of_each_rank(folder: str) -> dict[str, Any]:
    """Step a plateau scheduler, name and rank checkpoints by what each rank logs for itself alone."""

    class Differs(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            sign = 1 if self.trainer.global_rank else -1
            self.log("own", 10.0 + sign * self.trainer.current_epoch)
            self.log("name", float(self.trainer.global_rank * self.trainer.current_epoch))
            self.log("total", 1.0, reduce_fx="sum", sync_dist=True, on_step=True, on_epoch=False)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "own"}}

    best = ModelCheckpoint(Path(folder, "best"), "{epoch}", monitor="own")
    named = ModelCheckpoint(Path(folder, "named"), "{name:.0f}", save_top_k=-1)
    total = ModelCheckpoint(Path(folder, "total"), monitor="total", every_n_train_steps=1)
    run = trainer(folder, max_epochs=3, callbacks=[best, named, total], enable_checkpointing=True, log_every_n_steps=1)
    model = Differs()
    run.fit(model, DataLoader(numbers(16), 4))
    return {
        "lr": run.optimizers[0].param_groups[0]["lr"],
        "weight": model.layer.weight.item(),
        "best": Path(best.best_model_path).name,
        "named": Path(named.best_model_path).name,
        "score": float(best.best_model_score or 0),
        "total": run.callback_metrics["total"].item(),
    }


def train_with_line_search(folder: str) -> float:
    """Train with LBFGS on losses that differ between ranks; return a weight."""

    class Searches(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            target = torch.sin(batch[0] * (1 if self.trainer.global_rank else 7))
            return (torch.tanh(self.layer(batch[0] / 3) * 3) - target).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), line_search_fn="strong_wolfe")

    torch.manual_seed(0)
    model = Searches()
    trainer(folder, max_epochs=2).fit(model, DataLoader(numbers(32), 4))
    return model.layer.weight.item()


def resume_from_a_file_of_others(folder: str) -> int:
    """Resume from a checkpoint without our own part, as Lightning writes it; return the steps."""
    path = Path(folder, "file.ckpt")
    run = trainer(folder)
    run.fit(Net(), DataLoader(numbers(16), 4))
    run.save_checkpoint(path)
    if run.is_global_zero:
        checkpoint = torch.load(path, weights_only=False)
        del checkpoint["fulmen"]
        torch.save(checkpoint, path)
    run.strategy.barrier()
    run = trainer(folder, max_epochs=2)
    run.fit(Net(), DataLoader(numbers(16), 4), ckpt_path=path)
    return run.global_step


def train_and_resume(folder: str) -> dict[str, Any]:
    """Train on without a break, and from a checkpoint taken in the middle of the second epoch."""

    def run(**arguments: Any) -> tuple[dict[str, Tensor], list[float]]:
        seed_everything(3, verbose=False)
        model, losses = Net(), []
        note = LambdaCallback(on_train_batch_end=lambda t, m, out, b, i: losses.append(out["loss"].item()))
        save = ModelCheckpoint(Path(folder, "kept"), "{step}", every_n_train_steps=4, save_top_k=-1)
        ckpt_path = arguments.pop("ckpt_path", None)
        runs = trainer(folder, max_epochs=3, callbacks=[note, save], enable_checkpointing=True)
        runs.fit(model, DataLoader(numbers(21), 4, shuffle=True), ckpt_path=ckpt_path)
        return model.state_dict(), losses

    weights, losses = run()
    resumed_weights, resumed_losses = run(ckpt_path=str(Path(folder, "kept", "step=4.ckpt")))
    is_same = all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    return {"same": is_same, "losses": losses, "resumed": resumed_losses}


def monitor_and_stop(folder: str) -> dict[str, Any]:
    """Save the best and stop early, by a metric that only rank 0 logs."""

    class Worsens(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if self.trainer.is_global_zero:
                self.log("score", float(self.trainer.current_epoch), sync_dist=True)

    best = ModelCheckpoint(Path(folder, "best"), "{epoch}", monitor="score", mode="min", save_last=True)
    stopping = EarlyStopping("score", patience=1, mode="min")
    run = trainer(folder, max_epochs=9, callbacks=[best, stopping], enable_checkpointing=True)
    run.fit(Worsens(), DataLoader(numbers(16), 4), DataLoader(numbers(6), 4))
    return {"epochs": run.current_epoch, "best": best.best_model_path, "score": run.callback_metrics["score"].item()}


def log_on_one_rank(folder: str) -> dict[str, float]:
    """Log in training on rank 0 only, also with `sync_dist=True`, and a value of each rank."""

    class Logs(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            if self.trainer.is_global_zero:
                self.log("zero", 5.0, sync_dist=True, on_step=True, on_epoch=True)
            self.log("rank", float(self.trainer.global_rank), sync_dist=True, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

    run = trainer(folder, log_every_n_steps=1)
    run.fit(Logs(), DataLoader(numbers(16), 4))
    return {name: value.item() for name, value in run.callback_metrics.items()}


def stop_on_one_rank(folder: str) -> str:
    """Set `should_stop` on rank 1 alone; return the error."""

    def stop(run: Trainer, *_: Any) -> None:
        run.should_stop = run.global_rank == 1

    run = trainer(folder, max_epochs=3, callbacks=[LambdaCallback(on_train_batch_end=stop)])
    run.strategy.meet = _impatient(run.strategy.meet)  # type: ignore[method-assign]  # a test shall not wait
    try:
        run.fit(LogsInValidation(), DataLoader(numbers(64), 2), DataLoader(numbers(8), 2))
    except RuntimeError as error:
        return str(error)
    return "no error"


def _impatient(meet: Any) -> Any:
    return lambda what: meet(what, timeout_s=3)


def skip_on_one_rank(folder: str) -> str:
    """Return None from `training_step` on rank 1; return the error."""

    class Skips(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if self.trainer.global_rank == 1 else super().training_step(batch, batch_idx)

    try:
        trainer(folder).fit(Skips(), DataLoader(numbers(16), 2))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def get_signal_on_one_rank(folder: str) -> dict[str, Any]:
    """Send SIGTERM to rank 1 in step 5; return where each rank left."""

    def kill(run: Trainer, *_: Any) -> None:
        if run.global_step == 5 and run.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run = trainer(folder, max_epochs=1, callbacks=[LambdaCallback(on_train_batch_end=kill)])
    try:
        run.fit(Net(), DataLoader(numbers(8000), 2))
    except SIGTERMException as error:
        return {"step": run.global_step, "code": error.code, "batches": run.num_training_batches}
    return {}


class Counts(IterableDataset[Tensor]):
    """Counts to a different number on each rank."""

    fulmen_sharded = True

    def __iter__(self) -> Iterator[Tensor]:
        rank = int(os.environ["RANK"])
        yield from (torch.tensor([float(number)]) for number in range(12 + 8 * rank))


def train_on_uneven_streams(folder: str) -> dict[str, Any]:
    """Train on streams of different length, accumulating, so that windows are cut; return weights and steps."""

    class Streams(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.layer(batch / 10) - 1).square().mean()

    model = Streams()
    run = trainer(folder, max_epochs=2, accumulate_grad_batches=2)
    run.fit(model, DataLoader(Counts(), 4))
    return {"weight": model.layer.weight.item(), "steps": run.global_step}

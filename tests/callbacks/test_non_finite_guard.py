from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import NonFiniteError, NonFiniteGuard
from fulmen.loggers import CSVLogger
from fulmen.plugins.precision import MixedPrecision
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet

NAN, INF = float("nan"), float("inf")


class Net(LightningModule):
    """Multiplies its loss on some batches of the first epoch; notes what it saw."""

    def __init__(self, bad: dict[int, float] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(dropout), nn.Linear(6, 1))
        self.bad = bad or {}
        self.seen: list[tuple[int, int]] = []
        self.weights: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx))
        loss = (self.net(x) - y).square().mean()
        self.log("loss", loss)
        return loss * self.bad.get(batch_idx, 1.0) if self.current_epoch == 0 else loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(self.vector())

    def vector(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()]).clone()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data(batches: int = 12) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(batches * 4, 3, generator=generator), torch.randn(batches * 4, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def train(model: LightningModule, guard: NonFiniteGuard | None, tmp_path: Path, **settings: Any) -> Trainer:
    batches = settings.pop("batches", 12)
    torch.manual_seed(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    trainer = Trainer(**quiet(tmp_path, callbacks=guard, **settings))
    trainer.fit(model, data(batches))
    return trainer


def is_finite(model: Net) -> bool:
    return bool(model.vector().isfinite().all())


# ---- stop


@pytest.mark.parametrize("check", ["loss", "gradients", "both"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_stop_names_the_place_and_leaves_the_weights_finite(bad: float, check: Any, tmp_path: Path) -> None:
    model = Net({3: bad})
    with pytest.raises(NonFiniteError, match="epoch 0, batch 3, global step 3") as caught:
        train(model, NonFiniteGuard(check=check), tmp_path)

    assert (caught.value.epoch, caught.value.batch_idx) == (0, 3)
    assert caught.value.ranks == ((0,) if check != "gradients" else caught.value.ranks)
    assert "gradients are not finite in `net.0.weight`, `net.0.bias`" in str(caught.value)
    assert "weights are not" not in str(caught.value)
    assert torch.equal(model.vector(), model.weights[-1])


def test_weights_that_were_bad_before_are_named(tmp_path: Path) -> None:
    class Broken(Net):
        def on_train_start(self) -> None:
            self.net[3].bias.data.fill_(INF)  # type: ignore[operator]

    with pytest.raises(NonFiniteError, match=r"weights are not finite in `net\.3\.bias`"):
        train(Broken(), NonFiniteGuard(), tmp_path)


def test_check_loss_does_not_look_at_gradients(tmp_path: Path) -> None:
    class BadGradient(Net):
        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == 1:
                self.net[0].bias.grad.fill_(NAN)  # type: ignore[union-attr,operator]

    with pytest.raises(NonFiniteError, match="batch 2, "):  # the batch after
        train(BadGradient(), NonFiniteGuard(check="loss"), tmp_path)
    with pytest.raises(NonFiniteError, match="batch 1, "):
        train(BadGradient(), NonFiniteGuard(check="gradients"), tmp_path)


# ---- skip


def test_skip_leaves_out_the_step_and_nothing_else(tmp_path: Path) -> None:
    model, guard = Net({3: NAN, 7: INF}), NonFiniteGuard("skip")
    with pytest.warns(RuntimeWarning) as caught:
        trainer = train(model, guard, tmp_path)

    assert ["batch 3" in str(caught[0].message), "batch 7" in str(caught[1].message)] == [True, True]
    assert len(caught) == 2  # the loop itself has nothing to add
    unchanged = [idx for idx in range(1, 12) if torch.equal(model.weights[idx], model.weights[idx - 1])]
    assert unchanged == [3, 7]
    assert is_finite(model)
    assert guard.num_skips == 2
    assert trainer.global_step == 12  # counted, as a step that a scaler leaves out
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**12)


def test_skip_drops_the_whole_accumulation_window(tmp_path: Path) -> None:
    model = Net({4: NAN})
    with pytest.warns(RuntimeWarning, match="the loss is nan in batch 4"):
        train(model, NonFiniteGuard("skip"), tmp_path, accumulate_grad_batches=3)

    changed = [idx for idx in range(1, 12) if not torch.equal(model.weights[idx], model.weights[idx - 1])]
    assert changed == [2, 8, 11]
    assert is_finite(model)


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard("skip", max_skips=2)
    with (
        pytest.warns(RuntimeWarning, match="leaves out"),
        pytest.raises(NonFiniteError, match=r"batch 8, .*2 steps in a row were left out"),
    ):
        train(Net({1: NAN, 2: NAN, 4: NAN, 6: NAN, 7: NAN, 8: NAN}), guard, tmp_path)

    assert guard.num_skips == 5


def test_skip_works_through_a_closure(tmp_path: Path) -> None:
    class ThroughClosure(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    one, other = ThroughClosure({3: NAN}), Net({3: NAN})
    with pytest.warns(RuntimeWarning, match="leaves out"):
        train(one, NonFiniteGuard("skip"), tmp_path)
    with pytest.warns(RuntimeWarning, match="leaves out"):
        train(other, NonFiniteGuard("skip"), tmp_path)

    assert torch.equal(one.vector(), other.vector())


def test_skip_and_a_scaler_agree(tmp_path: Path) -> None:
    class Overflowing(Net):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()
            if self.trainer.fit_loop.batch_idx == 2:
                self.net[3].bias.grad.fill_(INF)  # type: ignore[union-attr,operator]

    model, guard = Overflowing({5: NAN}), NonFiniteGuard("skip")
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    with pytest.warns(RuntimeWarning, match="batch 5") as caught:
        trainer = train(model, guard, tmp_path, plugins=plugin)

    assert len(caught) == guard.num_skips == 1  # the overflow is the scaler's
    assert is_finite(model)
    assert trainer.global_step == 12
    unchanged = [idx for idx in range(1, 12) if torch.equal(model.weights[idx], model.weights[idx - 1])]
    assert unchanged == [2, 5]


def test_skip_works_in_manual_optimization(tmp_path: Path) -> None:
    class Manual(Net):
        def __init__(self, bad: dict[int, float]) -> None:
            super().__init__(bad)
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    model = Manual({3: NAN})
    with pytest.warns(RuntimeWarning, match="the loss is nan in batch 3"):
        train(model, NonFiniteGuard("skip"), tmp_path)

    unchanged = [idx for idx in range(1, 12) if torch.equal(model.weights[idx], model.weights[idx - 1])]
    assert unchanged == [3]


# ---- rollback


def test_rollback_puts_everything_back_and_passes_over_the_data(tmp_path: Path) -> None:
    """The run after it is to the bit one that never saw the batches since the snapshot."""
    model, guard = Net({6: NAN}, dropout=0.5), NonFiniteGuard("rollback", snapshot_every_n_steps=4)
    with pytest.warns(RuntimeWarning, match="batch 6, .*since global step 4 is undone"):
        trainer = train(model, guard, tmp_path)

    assert model.seen == [(0, idx) for idx in range(12)]  # none twice
    assert torch.equal(model.weights[6], model.weights[3])
    assert trainer.global_step == 12

    class WithoutThem(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                self.lr_schedulers().step()  # type: ignore[union-attr]  # the bad window counts for schedulers

    expected, batches = WithoutThem(dropout=0.5), list(data())
    torch.manual_seed(2)
    for parameter in expected.parameters():
        nn.init.normal_(parameter)
    kept: DataLoader[Any] = DataLoader([*batches[:4], *batches[7:]], batch_size=None)  # type: ignore[arg-type]
    without = Trainer(**quiet(tmp_path))
    without.fit(expected, kept)
    assert torch.equal(model.vector(), expected.vector())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))
    assert trainer.optimizers[0].param_groups[0]["lr"] == without.optimizers[0].param_groups[0]["lr"]


def test_after_a_rollback_no_row_is_logged_twice(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(RuntimeWarning, match="goes back"):
        train(Net({5: NAN}), NonFiniteGuard("rollback"), tmp_path, logger=logger, log_every_n_steps=1)

    lines = Path(logger.experiment.metrics_file_path).read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert [int(line.split(",")[column]) for line in lines[1:]] == list(range(12))


def test_rollback_does_not_cross_the_start_of_an_epoch(tmp_path: Path) -> None:
    class Later(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * NAN if (self.current_epoch, batch_idx) == (1, 2) else loss

    model = Later()
    with pytest.warns(RuntimeWarning, match="epoch 1, batch 2, .*since global step 12"):
        train(model, NonFiniteGuard("rollback"), tmp_path, max_epochs=2)

    assert torch.equal(model.weights[14], model.weights[11])


def test_a_spike_is_rolled_back_too(tmp_path: Path) -> None:
    model = Net({8: 1000.0})
    guard = NonFiniteGuard("rollback", spike_factor=10.0, spike_window=4, snapshot_every_n_steps=3)
    with pytest.warns(RuntimeWarning, match=r"batch 8, .*the loss jumped to \d+.* from a mean of"):
        train(model, guard, tmp_path)

    assert torch.equal(model.weights[8], model.weights[5])
    assert guard.num_rollbacks == 1


def test_too_many_rollbacks_to_one_snapshot_end_the_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard("rollback", max_rollbacks=2)
    with (
        pytest.warns(RuntimeWarning, match="goes back"),
        pytest.raises(NonFiniteError, match=r"batch 9, .*went back to global step 0 2 times before"),
    ):
        train(Net({2: NAN, 5: NAN, 9: NAN}), guard, tmp_path)


def test_a_new_snapshot_gives_new_rollbacks(tmp_path: Path) -> None:
    guard = NonFiniteGuard("rollback", max_rollbacks=1, snapshot_every_n_steps=4)
    with pytest.warns(RuntimeWarning, match="goes back"):
        train(Net({2: NAN, 6: NAN, 9: NAN}), guard, tmp_path)

    assert guard.num_rollbacks == 3


# ---- resume


def test_counts_and_the_running_mean_go_on_in_a_resumed_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard("skip", max_skips=2, spike_factor=10.0, spike_window=8)
    with pytest.warns(RuntimeWarning, match="leaves out"):
        train(Net({10: NAN, 11: NAN}), guard, tmp_path).save_checkpoint(tmp_path / "at.ckpt")

    class BadAtOnce(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (1e6 if batch_idx == 0 else 1)

    resumed = NonFiniteGuard("skip", max_skips=2, spike_factor=10.0, spike_window=8)
    trainer = Trainer(**quiet(tmp_path, callbacks=resumed, max_epochs=2))
    with pytest.raises(NonFiniteError, match=r"epoch 1, batch 0, .*the loss jumped.*2 steps in a row"):
        trainer.fit(BadAtOnce(), data(), ckpt_path=tmp_path / "at.ckpt")

    assert resumed.num_skips == 2


# ---- what it refuses


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"action": "warn"}, r"action='warn'.*'stop', 'skip', 'rollback'"),
        ({"check": "weights"}, r"check='weights'.*'loss', 'gradients', 'both'"),
        ({"max_skips": 0}, "max_skips=0.*int of at least 1"),
        ({"max_rollbacks": 1.5}, "max_rollbacks=1.5"),
        ({"snapshot_every_n_steps": True}, "snapshot_every_n_steps=True"),
        ({"spike_window": -1}, "spike_window=-1"),
        ({"spike_factor": 1.0}, "spike_factor=1.0.*above 1"),
        ({"spike_factor": NAN}, "spike_factor=nan"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(MisconfigurationException, match=text):
        NonFiniteGuard(**arguments)


@pytest.mark.parametrize("arguments", [{"action": "rollback"}, {"spike_factor": 2.0}], ids=str)
def test_what_cannot_work_by_hand_is_refused(arguments: Any, tmp_path: Path) -> None:
    model = Net()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="by hand"):
        train(model, NonFiniteGuard(**arguments), tmp_path)


def test_an_optimizer_with_several_steps_in_one_is_refused(tmp_path: Path) -> None:
    class LineSearch(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match=r"`LBFGS`.*action='stop'"):
        train(LineSearch(), NonFiniteGuard("skip"), tmp_path)
    with pytest.raises(NonFiniteError, match="batch 0"):
        train(LineSearch({0: NAN}), NonFiniteGuard("stop"), tmp_path)


def test_gradients_that_are_scaled_cannot_be_all_that_is_checked(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(MisconfigurationException, match=r"check='gradients'.*scaler"):
        train(Net(), NonFiniteGuard(check="gradients"), tmp_path, plugins=plugin)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import GradientAccumulationScheduler
from fulmen.loggers import CSVLogger
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet

OUT_OF_MEMORY = "micro-batches of"


class Net(LightningModule):
    """Runs out of memory above `fits` samples, in forward or in backward."""

    seen: Tensor

    def __init__(self, fits: int = 10**6, fails_in: str = "forward", dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))
        self.fits, self.fails_in = fits, fails_in
        self.gradients: list[list[Tensor]] = []
        self.sizes: list[int] = []
        self.cleared = 0
        self.error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, y = batch
        self.sizes.append(len(x))
        self.seen += len(x)  # changed before memory runs out
        loss = (self.net(x) - y).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("count", float(len(x)), on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("largest", y.max(), on_step=False, on_epoch=True, reduce_fx="max")
        if self.fails_in == "forward" and len(x) > self.fits:
            raise self.error
        return loss

    def on_after_backward(self) -> None:
        if self.fails_in == "backward" and self.sizes[-1] > self.fits:
            raise self.error

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.cleared += 1

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append([parameter.grad.clone() for parameter in self.parameters()])  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(samples: int = 22, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(samples, 3, generator=generator), torch.randn(samples, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def batches(*ready: Any) -> DataLoader[Any]:
    return DataLoader(ready, batch_size=None)  # type: ignore[arg-type]  # a tuple is a dataset


def train(model: Net, tmp_path: Path, data: Any = None, **settings: Any) -> Trainer:
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    trainer = Trainer(**quiet(tmp_path, **{"accumulate_grad_batches": "auto", **settings}))
    trainer.fit(model, loader() if data is None else data)
    return trainer


def assert_same_gradients(one: Net, other: Net) -> None:
    assert len(one.gradients) == len(other.gradients)
    for mine, yours in zip(one.gradients, other.gradients, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)


def test_without_a_lack_of_memory_nothing_differs_to_the_bit(tmp_path: Path) -> None:
    auto, plain = Net(dropout=0.5), Net(dropout=0.5)
    with_auto, without = train(auto, tmp_path), train(plain, tmp_path, accumulate_grad_batches=1)

    assert all(torch.equal(a, b) for a, b in zip(auto.parameters(), plain.parameters(), strict=True))
    assert with_auto.callback_metrics == without.callback_metrics
    assert auto.sizes == plain.sizes == [8, 8, 6]


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
@pytest.mark.parametrize("fits", [1, 3, 4, 7])
def test_the_gradient_is_that_of_the_whole_batch(fits: int, fails_in: str, tmp_path: Path) -> None:
    divided, whole = Net(fits, fails_in), Net()
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        trainer = train(divided, tmp_path)
    train(whole, tmp_path, accumulate_grad_batches=1)

    assert_same_gradients(divided, whole)
    assert trainer.global_step == 3
    assert divided.cleared == 3
    assert divided.seen.item() == whole.seen.item() == 22  # nothing of a failed attempt


def test_of_samples_alike_the_gradient_is_exact(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.ones(8, 3), torch.zeros(8, 1)), batch_size=4)
    divided, whole = Net(2), Net()
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(divided, tmp_path, data)
    train(whole, tmp_path, data, accumulate_grad_batches=1)

    assert all(torch.equal(a, b) for a, b in zip(divided.parameters(), whole.parameters(), strict=True))


def test_the_size_is_halved_until_it_fits_and_kept(tmp_path: Path) -> None:
    model = Net(2)
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY) as caught:
        trainer = train(model, tmp_path)

    assert [str(each.message).partition(" from now on")[0] for each in caught] == [
        "Out of memory in batch 0 of epoch 0: micro-batches of 4",
        "Out of memory in batch 0 of epoch 0: micro-batches of 2",
    ]
    assert model.sizes == [8, 4, *[2] * 11]
    assert trainer.fit_loop.progress.micro_batch_size == 2


def test_logged_values_count_once_and_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    def rows(model: Net, **settings: Any) -> Any:
        logger = CSVLogger(tmp_path, name=str(model.fits))
        trainer = train(model, tmp_path, logger=logger, log_every_n_steps=1, **settings)
        return trainer.callback_metrics, logger.experiment.metrics_file_path

    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        divided, path = rows(Net(3))
    whole, path_of_whole = rows(Net(), accumulate_grad_batches=1)

    assert divided["count"] == whole["count"] == 22
    torch.testing.assert_close(divided, whole, rtol=1e-5, atol=1e-6)
    lines = [Path(each).read_text().splitlines() for each in (path, path_of_whole)]
    assert [len(line.split(",")) for line in lines[0]] == [len(line.split(",")) for line in lines[1]]
    for mine, yours in zip(_numbers(lines[0]), _numbers(lines[1]), strict=True):
        assert mine == pytest.approx(yours, rel=1e-4)


def _numbers(lines: list[str]) -> list[list[float]]:
    return [[float(field or "-1") for field in line.split(",")] for line in lines[1:]]


def test_metric_objects_count_no_sample_twice(tmp_path: Path) -> None:
    class WithMetric(Net):
        def __init__(self, fits: int) -> None:
            super().__init__(fits)
            self.mean = MeanMetric()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.mean.update(batch[1])
            self.log("mean", self.mean, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        trainer = train(WithMetric(3), tmp_path)

    expected = torch.cat([y for _, y in loader()]).mean()
    torch.testing.assert_close(trainer.callback_metrics["mean"], expected)


def test_a_batch_is_computed_again_with_the_same_random_numbers(tmp_path: Path) -> None:
    class Noting(Net):
        def __init__(self, fits: int) -> None:
            super().__init__(fits)
            self.noise: list[tuple[int, list[float]]] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.noise.append((len(batch[0]), torch.rand(2).tolist()))
            return super().training_step(batch, batch_idx)

    model = Noting(4)
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(model, tmp_path)

    assert model.noise[0][0] == 8
    assert model.noise[1] == (4, model.noise[0][1])


def test_gradients_of_earlier_batches_of_a_window_are_kept(tmp_path: Path) -> None:
    class FailsLater(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.fits = 3 if batch_idx else 8
            return super().training_step(batch, batch_idx)

    divided, whole = FailsLater(), Net()
    with pytest.warns(UserWarning, match="in batch 1"):
        train(divided, tmp_path, callbacks=GradientAccumulationScheduler({0: 3}))
    train(whole, tmp_path, accumulate_grad_batches=3)

    assert_same_gradients(divided, whole)
    assert len(divided.gradients) == 1


def test_an_optimizer_with_a_closure_works_as_well(tmp_path: Path) -> None:
    class ThroughClosure(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    divided, whole = ThroughClosure(3), Net()
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(divided, tmp_path)
    train(whole, tmp_path, accumulate_grad_batches=1)

    assert_same_gradients(divided, whole)


def test_outputs_are_put_together(tmp_path: Path) -> None:
    class WithOutputs(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "y": batch[1], "mean": batch[1].mean(), "text": "a"}

    class Keep(Callback):
        def __init__(self) -> None:
            self.outputs: list[Any] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.outputs.append(outputs)

    divided, whole = Keep(), Keep()
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(WithOutputs(3), tmp_path, callbacks=divided)
    train(WithOutputs(), tmp_path, callbacks=whole, accumulate_grad_batches=1)

    assert [each.pop("text") for each in divided.outputs] == [["a"] * 4, ["a"] * 4, ["a"] * 3]
    for mine, yours in zip(divided.outputs, whole.outputs, strict=True):
        yours.pop("text")
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_goes_on_with_the_size_that_was_found(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(Net(3), tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    resumed = Net(3)
    trainer = Trainer(**quiet(tmp_path, accumulate_grad_batches="auto", max_epochs=2))
    trainer.fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt")

    assert max(resumed.sizes) <= 2
    assert trainer.global_step == 6


def test_another_fit_begins_with_whole_batches(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        trainer = train(Net(3), tmp_path)
    model, trainer.fit_loop.max_epochs = Net(), 2
    trainer.fit(model, loader())

    assert model.sizes == [8, 8, 6]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte")], ids=str
)
def test_memory_of_the_cpu_counts_too(error: BaseException, tmp_path: Path) -> None:
    divided, whole = Net(4), Net()
    divided.error = error
    with pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(divided, tmp_path)
    train(whole, tmp_path, accumulate_grad_batches=1)

    assert_same_gradients(divided, whole)


def test_where_no_sample_fits_the_error_says_so(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=OUT_OF_MEMORY),
        pytest.raises(torch.OutOfMemoryError, match=r"(?s)Tried to allocate.*a single sample does not fit"),
    ):
        train(Net(0), tmp_path)


def test_other_errors_pass(tmp_path: Path) -> None:
    model = Net(1)
    model.error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        train(model, tmp_path)

    assert model.sizes == [8]


def test_a_batch_that_cannot_be_divided_is_named_when_memory_runs_out(tmp_path: Path) -> None:
    class Odd(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step([batch["x"], batch["y"]], batch_idx)

    data = batches({"x": torch.randn(4, 3), "y": torch.randn(4, 1), "edges": torch.zeros(2, 9)})
    with pytest.raises(MisconfigurationException, match=r"lengths of its parts are \[2, 4\].*batch_size"):
        train(Odd(2), tmp_path, data)


def test_parts_without_a_loss_are_left_out(tmp_path: Path) -> None:
    class Choosy(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if len(batch[0]) == 3 else loss

    x, y = next(iter(loader(7, 7)))
    divided, whole = Choosy(4), Net()
    with pytest.warns(UserWarning, match="returned None"), pytest.warns(UserWarning, match=OUT_OF_MEMORY):
        train(divided, tmp_path, batches([x, y]))
    train(whole, tmp_path, batches([x[:4], y[:4]]), accumulate_grad_batches=1)

    assert divided.sizes == [7, 4, 3]
    assert_same_gradients(divided, whole)


@pytest.mark.parametrize("value", ["Auto", "max", "auto:4", "2"])
def test_other_texts_are_refused(value: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"accumulate_grad_batches=.*or 'auto'"):
        Trainer(accumulate_grad_batches=value)  # type: ignore[arg-type]


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    model = Net()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match=r"'auto'.*by hand"):
        train(model, tmp_path)

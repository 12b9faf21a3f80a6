"""One CUDA GPU: the same code, without waiting for the device where nobody reads a value."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from tests.support import quiet

pytestmark = pytest.mark.gpu


class Model(LightningModule):
    def __init__(self, logged: int = 0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.logged = logged
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        for index in range(self.logged):
            self.log(f"loss{index}", loss, on_step=True, on_epoch=True)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, foreach=True)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 16, generator=generator)
    return DataLoader(TensorDataset(x, x.argmax(1) % 4), batch_size=8)


def on_gpu(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return quiet(tmp_path, accelerator="gpu", limit_val_batches=0, **changes)


def test_losses_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Model()
    torch.manual_seed(1)
    net = Model().net.cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, foreach=True)
    expected = []
    for x, y in loader():
        loss = nn.functional.cross_entropy(net(x.cuda()), y.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    Trainer(**on_gpu(tmp_path)).fit(model, loader())

    assert [loss.item() for loss in model.losses] == expected


@pytest.mark.parametrize("logged", [0, 1, 10])
def test_a_step_does_not_wait_for_the_gpu(logged: int, tmp_path: Path) -> None:
    class Watched(Model):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("error" if batch_idx in (3, 4, 5) else "default")

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            torch.cuda.set_sync_debug_mode("default")  # copying from pageable memory waits, with any framework
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_train_epoch_end(self) -> None:
            torch.cuda.set_sync_debug_mode("default")

    try:
        Trainer(**on_gpu(tmp_path)).fit(Watched(logged), loader())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_every_precision_trains(precision: str, tmp_path: Path) -> None:
    model = Model(1)
    trainer = Trainer(**on_gpu(tmp_path, precision=precision, max_epochs=3, gradient_clip_val=1.0))
    trainer.fit(model, loader())

    first, last = model.losses[0].item(), model.losses[-1].item()
    assert last < first
    assert trainer.callback_metrics["loss0"].device.type == "cpu"
    assert next(model.parameters()).device.type == "cpu"


def test_a_scaled_run_resumes_with_its_scale_and_the_same_losses(tmp_path: Path) -> None:
    torch.manual_seed(2)
    saver = ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    whole = Model()
    trainer = Trainer(
        **on_gpu(tmp_path, precision="16-mixed", max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    )
    trainer.fit(whole, loader())
    resumed = Model()
    again = Trainer(**on_gpu(tmp_path, precision="16-mixed", max_epochs=2))
    again.fit(resumed, loader(), ckpt_path=tmp_path / "saved" / "epoch=0-step=8.ckpt")

    assert torch.equal(torch.stack(resumed.losses), torch.stack(whole.losses[8:]))
    assert again.scaler is not None
    assert trainer.scaler is not None
    assert again.scaler.get_scale() == trainer.scaler.get_scale()


def test_a_gpu_checkpoint_loads_on_the_cpu(tmp_path: Path) -> None:
    trainer = Trainer(**on_gpu(tmp_path))
    trainer.fit(Model(), loader())
    trainer.save_checkpoint(tmp_path / "gpu.ckpt")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = Trainer(**quiet(tmp_path)).validate(Model(), loader(), ckpt_path=tmp_path / "gpu.ckpt", verbose=False)

    assert results[0]["val"] > 0


def test_predictions_come_back_on_the_cpu(tmp_path: Path) -> None:
    class Predicting(Model):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert batch[0].is_cuda
            return self.net(batch[0])  # type: ignore[no-any-return]

    predictions: Any = Trainer(**quiet(tmp_path, accelerator="gpu")).predict(Predicting(), loader())

    assert predictions is not None
    assert {output.device.type for output in predictions} == {"cpu"}

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from fulmen.callbacks import GradientNoiseScale
from fulmen.loggers import CSVLogger
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.digits_reader import Reader, digits, loader, rows_of, stopped_by_signal, train


def exact_noise(model: Reader, data: Any) -> tuple[float, float]:
    """Trace of the covariance of the samples' gradients and squared norm of their mean, from each sample's gradient."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: Any, picture: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, weights, (picture[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, *data.tensors)
    rows = torch.cat([each.flatten(1) for each in gradients.values()], dim=1).double()
    return rows.var(0, correction=0).sum().item(), rows.mean(0).square().sum().item()


class Still(Reader):
    """Learns nothing, so that the noise stays what it is."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def test_the_estimate_agrees_with_the_gradient_of_each_sample(tmp_path):
    data = TensorDataset(*digits()[:640])
    torch.manual_seed(3)
    model = Still()
    trace, signal = exact_noise(model, data)
    callback = GradientNoiseScale(1, decay=0.999)
    drawn = DataLoader(data, 8, sampler=RandomSampler(data, replacement=True, num_samples=8 * 8 * 150))
    trainer = train(tmp_path, callback, model=model, data=drawn, accumulate_grad_batches=8)

    assert trainer.callback_metrics["gradient_noise/trace"].item() == pytest.approx(trace, rel=0.05)
    assert trainer.callback_metrics["gradient_noise/signal"].item() == pytest.approx(signal, rel=0.15)
    assert callback.noise_scale == pytest.approx(trace / signal, rel=0.15)


def test_noise_grows_as_the_reader_learns(tmp_path):
    trainer = train(tmp_path, GradientNoiseScale(1, decay=0.8), accumulate_grad_batches=4, max_epochs=8)

    scales = [value for _, value in rows_of(trainer, "gradient_noise/scale")]
    assert 1.5 * scales[3] < scales[-1]


def test_batches_of_different_size_are_no_difference(tmp_path):
    """The last micro-batch of an epoch has 4 samples instead of 64."""
    callback = GradientNoiseScale(1, decay=0.0)
    seen: list[float] = []

    class Same(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    train(tmp_path, callback, model=Same(), data=loader(0, 132, batch_size=64), accumulate_grad_batches=3)

    assert seen == [64, 64, 4]
    assert not math.isnan(callback.state_dict()["noise"])
    assert callback.state_dict()["weight"] == 1.0


def test_only_measured_steps_carry_hooks_and_training_does_not_change(tmp_path):
    hooks: list[bool] = []

    class Looks(Reader):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            hooks.append(bool(self.net[0].weight._backward_hooks))
            return super().training_step(batch, batch_idx)

    plain = train(tmp_path, accumulate_grad_batches=2)
    watched = train(tmp_path, GradientNoiseScale(3), model=Looks, accumulate_grad_batches=2, max_epochs=1)

    assert [idx // 2 for idx, has_hook in enumerate(hooks) if has_hook] == [2, 2, 5, 5, 8, 8]
    for mine, theirs in zip(plain.lightning_module.parameters(), watched.lightning_module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_error_leaves_no_hooks(tmp_path):
    class Fails(Reader):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("no")

    model = Fails()
    with pytest.raises(ValueError, match="no"):
        train(tmp_path, GradientNoiseScale(1), model=model, accumulate_grad_batches=2)

    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_a_run_resumed_after_a_signal_equals_the_uninterrupted_one(tmp_path):
    def run(folder: Path, ckpt_path: str | None = None) -> Any:
        callback = GradientNoiseScale(1)
        train(folder, callback, accumulate_grad_batches=2, max_epochs=2, ckpt_path=ckpt_path)
        return callback.state_dict()

    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    path = stopped_by_signal(
        tmp_path / "part", GradientNoiseScale(1), batch_idx=7, epoch=1, accumulate_grad_batches=2, max_epochs=2
    )

    assert torch.load(path, weights_only=True)["callbacks"]["GradientNoiseScale"]["weight"] > 0
    assert run(tmp_path / "part", path) == run(tmp_path / "whole")


def test_rows_reach_the_logger(tmp_path):
    train(tmp_path, GradientNoiseScale(), accumulate_grad_batches=2, logger=CSVLogger(tmp_path))

    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert {"gradient_noise/trace", "gradient_noise/signal"} <= set(header.split(","))


def test_a_step_of_one_micro_batch_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=2"):
        train(tmp_path, GradientNoiseScale())
    with pytest.raises(MisconfigurationException, match="auto"):
        train(tmp_path, GradientNoiseScale(), accumulate_grad_batches="auto")


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_steps": 0}])
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(MisconfigurationException, match="GradientNoiseScale"):
        GradientNoiseScale(**arguments)

"""What the tests of DeepSpeed run on each rank, and on one device to compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.strategies import DeepSpeedStrategy

__all__ = ["Net", "quiet_trainer", "train_on_one_device"]

STEPS, ACCUMULATE, CLIP, LEARNING_RATE = 55, 2, 0.1, 1e-2
BATCHES_PER_EPOCH = 20


class Net(LightningModule):
    """Two layers; remembers its losses."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.losses: list[float] = []
        if not late:
            self.make()

    def make(self) -> None:
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 3))

    def forget(self) -> None:
        nn.init.zeros_(next(self.parameters()))

    def configure_model(self) -> None:
        if self.late and not hasattr(self, "layers"):
            self.make()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        loss: Tensor = (self(x) - y).square().float().mean()
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.forward(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 15, 0.5), "interval": "step"}]


class EvaluatedNet(Net):
    """The same, with validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class ManualNet(Net):
    """The same, with the steps in its own hands: two batches per step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.manual_backward(loss / ACCUMULATE)
        if (batch_idx + 1) % ACCUMULATE == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)


def samples(num: int = 8 * BATCHES_PER_EPOCH - 4) -> TensorDataset:
    x = torch.randn(num, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.stack([x.sum(1), x[:, 0], x[:, 1] * x[:, 2]], dim=1))


class Endless(IterableDataset[Any]):
    """Samples without a length, which each rank takes its share of."""

    fulmen_sharded = True

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Any:
        dataset = samples(40)
        return (dataset[index] for index in range(self.rank, 40, self.world_size))


def quiet_trainer(**kwargs: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **kwargs})


def loader(batch_size: int, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(samples(**kwargs), batch_size=batch_size)


def weights_of(state_dict: dict[str, Any]) -> dict[str, list[float]]:
    return {name: value.float().flatten().tolist() for name, value in state_dict.items()}


# ---- one device


def train_on_one_device(kind: type[Net] = Net, **kwargs: Any) -> tuple[list[float], dict[str, list[float]]]:
    """Return losses per batch and weights of a plain run with the batches of all ranks together."""
    module = kind()
    clip = {"accumulate_grad_batches": ACCUMULATE, "gradient_clip_val": CLIP} if kind is Net else {}
    options = {"devices": 1, "max_steps": STEPS, **clip, **kwargs}
    quiet_trainer(**options).fit(module, loader(8))
    return module.losses, weights_of(module.state_dict())


def train_without_length_on_one_device() -> dict[str, list[float]]:
    module = Net()
    trainer = quiet_trainer(devices=1, max_epochs=3, accumulate_grad_batches=3, gradient_clip_val=CLIP)
    trainer.fit(module, DataLoader(Endless(0, 1), batch_size=8))
    return weights_of(module.state_dict())


# ---- two ranks


def deepspeed_trainer(stage: int, **kwargs: Any) -> Trainer:
    strategy = kwargs.pop("strategy", None) or DeepSpeedStrategy(stage=stage)
    options = {"accumulate_grad_batches": ACCUMULATE, "gradient_clip_val": CLIP, "max_steps": STEPS, **kwargs}
    return quiet_trainer(devices=2, strategy=strategy, **options)


class KeepsWhole:
    """Takes the whole weights at the end of a fit, while the engine lives."""

    def __new__(cls) -> Any:
        from fulmen.callbacks import Callback

        class Keeper(Callback):
            weights: dict[str, Any] = {}  # noqa: RUF012 - replaced

            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                self.weights = weights_of(trainer.strategy.get_module_state_dict(pl_module))

        return Keeper()


def train_with_trainer(stage: int, **kwargs: Any) -> Any:
    module, keeper = Net(late=kwargs.pop("late", False)), KeepsWhole()
    trainer = deepspeed_trainer(stage, callbacks=[keeper], **kwargs)
    trainer.fit(module, loader(4))
    return module.losses, keeper.weights, trainer.global_step


def train_by_hand(stage: int) -> Any:
    module, keeper = ManualNet(), KeepsWhole()
    trainer = quiet_trainer(devices=2, strategy=DeepSpeedStrategy(stage=stage), max_steps=20, callbacks=[keeper])
    trainer.fit(module, loader(4))
    return module.losses, keeper.weights, trainer.global_step


def train_without_length(stage: int) -> Any:
    module, keeper = Net(), KeepsWhole()
    trainer = deepspeed_trainer(stage, max_steps=-1, max_epochs=3, accumulate_grad_batches=3, callbacks=[keeper])
    trainer.fit(module, DataLoader(Endless(trainer.global_rank, 2), batch_size=4))
    return keeper.weights


def fabric_of(stage: int, **kwargs: Any) -> Fabric:
    config: dict[str, Any] = {
        "zero_optimization": {"stage": stage},
        "gradient_clipping": CLIP,
        "zero_allow_untested_optimizer": True,
    }
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DeepSpeedStrategy(config=config), **kwargs)
    fabric.launch()
    return fabric


def steps_of_fabric(fabric: Fabric, model: Any, optimizer: Any, first: int, last: int) -> list[float]:
    dataset, losses = samples(), []
    for step in range(first, last):
        for micro in range(ACCUMULATE):
            start = (step * ACCUMULATE + micro) * 8 % 144
            x, y = dataset[slice(start + fabric.global_rank, start + 8, 2)]
            with fabric.no_backward_sync(model, enabled=micro + 1 < ACCUMULATE):
                loss = (model(x) - y).square().mean()
                fabric.backward(loss / ACCUMULATE)
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def train_with_fabric(stage: int) -> Any:
    fabric = fabric_of(stage)
    net = Net()
    optimizer = torch.optim.AdamW(net.layers.parameters(), lr=LEARNING_RATE)
    model, optimizer = fabric.setup(net.layers, optimizer)
    losses = steps_of_fabric(fabric, model, optimizer, 0, STEPS)
    whole = fabric.strategy.get_module_state_dict(fabric.strategy.model)
    return losses, weights_of(whole)


def train_layers_on_one_device() -> tuple[list[float], dict[str, list[float]]]:
    layers, dataset, losses = Net().layers, samples(), []
    optimizer = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        for micro in range(ACCUMULATE):
            start = (step * ACCUMULATE + micro) * 8 % 144
            x, y = dataset[start : start + 8]
            loss = (layers(x) - y).square().mean()
            (loss / ACCUMULATE).backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(layers.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return losses, weights_of(layers.state_dict())


# ---- checkpoints


def resume(stage: int, folder: str) -> Any:
    """Train through; train to the middle of an epoch; go on from there."""
    whole = train_with_trainer(stage, max_steps=18)
    first = Net()
    saver = ModelCheckpoint(dirpath=folder, filename="middle", every_n_train_steps=13, save_top_k=1)
    trainer = deepspeed_trainer(stage, max_steps=13, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(first, loader(4))
    path = os.path.join(folder, "middle.ckpt")
    second, keeper = Net(), KeepsWhole()
    second.forget()
    trainer = deepspeed_trainer(stage, max_steps=18, callbacks=[keeper])
    trainer.fit(second, loader(4), ckpt_path=path)
    leftovers = [name for name in os.listdir(folder) if name.startswith(".")]
    return whole, first.losses, second.losses, keeper.weights, trainer.global_step, leftovers


def save_and_load(stage: int, folder: str) -> Any:
    """Save whole, consolidate, evaluate from the folder, save weights only, overwrite, load a file."""
    from fulmen.checkpoint.consolidate import consolidate

    module, keeper = Net(), KeepsWhole()
    trainer = deepspeed_trainer(stage, max_steps=5, callbacks=[keeper])
    paths = {name: os.path.join(folder, name) for name in ("full", "weights.ckpt", "file.ckpt")}

    def save() -> None:
        for _ in range(2):  # the second replaces the first
            trainer.save_checkpoint(paths["full"])
        trainer.save_checkpoint(paths["weights.ckpt"], weights_only=True)

    module.on_train_end = save  # type: ignore[method-assign]
    trainer.fit(module, loader(4))
    results: dict[str, Any] = {"gathered": keeper.weights, "files": sorted(os.listdir(paths["full"]))}
    if trainer.global_rank == 0:
        consolidate(paths["full"], paths["file.ckpt"])
        results["consolidated"] = weights_of(torch.load(paths["file.ckpt"])["state_dict"])
        results["weights only"] = weights_of(torch.load(paths["weights.ckpt"])["state_dict"])
    trainer.strategy.barrier()
    for name in paths:
        fresh = EvaluatedNet()
        fresh.forget()
        (metrics,) = deepspeed_trainer(stage).validate(fresh, loader(4), ckpt_path=paths[name], verbose=False)
        results[f"val {name}"] = metrics["val_loss"]
    (metrics,) = quiet_trainer(devices=2, strategy="ddp").validate(
        EvaluatedNet(), loader(4), ckpt_path=paths["full"], verbose=False
    )
    results["val ddp"] = metrics["val_loss"]
    return results


def load_file_and_train(stage: int, folder: str) -> Any:
    """Go on from a checkpoint of one device: its weights, with a new optimizer."""
    module, keeper = Net(), KeepsWhole()
    path = os.path.join(folder, "one_device.ckpt")
    trainer = deepspeed_trainer(
        stage, strategy=DeepSpeedStrategy(stage=stage, load_full_weights=True), max_steps=6, callbacks=[keeper]
    )
    trainer.fit(module, loader(4), ckpt_path=path)
    return module.losses, keeper.weights, trainer.global_step


class FrozenNet(Net):
    """The same, with a first layer that is not trained."""

    def make(self) -> None:
        super().make()
        self.layers[0].requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([each for each in self.parameters() if each.requires_grad], lr=LEARNING_RATE)


def save_frozen_and_damage(stage: int, folder: str) -> dict[str, Any]:
    """Save in bfloat16 with a frozen layer, read it in several ways, then damage the folder step by step."""
    from fulmen.checkpoint.consolidate import consolidate
    from fulmen.cli.inspect_checkpoint import command
    from fulmen.utilities.deepspeed import DeepSpeedFolder

    module, path = FrozenNet(), Path(folder) / "frozen"
    trainer = deepspeed_trainer(stage, max_steps=2, precision="bf16-true")
    module.on_train_end = lambda: trainer.save_checkpoint(path)  # type: ignore[method-assign]
    trainer.fit(module, loader(4))
    results: dict[str, Any] = {}

    def note(name: str, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            results[name] = "nothing"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        trainer.strategy.barrier()

    if trainer.global_rank == 0:
        weights = torch.load(consolidate(path, Path(folder) / "frozen.ckpt"))["state_dict"]
        results["types"] = sorted({str(value.dtype) for value in weights.values()})
        results["weights"] = weights_of(weights)
        results["loaded"] = weights_of(FrozenNet.load_from_checkpoint(path).state_dict())
        results["inspect"] = " ".join(said_by(command, [str(path)]).split())
    trainer.strategy.barrier()
    note("other strategy", quiet_trainer(devices=2, strategy="ddp").fit, FrozenNet(), loader(4), ckpt_path=path)
    files = DeepSpeedFolder(path).files
    (states,) = files.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")
    (first,) = files.glob("*mp_rank_00_model_states.pt") if stage < 3 else files.glob("*_rank_0_*model_states.pt")
    for name, file, damage in (
        ("cut", states, cut),
        ("missing", states, Path.unlink),
        ("no weights", first, Path.unlink),
    ):
        if trainer.global_rank == 0:
            damage(file)
        trainer.strategy.barrier()
        if name == "no weights" and stage == 3 and trainer.global_rank == 0:
            for each in files.glob("*_model_states.pt"):
                each.unlink()
        trainer.strategy.barrier()
        again = deepspeed_trainer(stage, max_steps=4, precision="bf16-true")
        note(f"{name}: fit", again.fit, FrozenNet(), loader(4), ckpt_path=path)
        note(f"{name}: load", FrozenNet.load_from_checkpoint, path)
    return results


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def said_by(command: Any, arguments: list[str]) -> str:
    import io
    from contextlib import redirect_stdout, suppress

    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        command(arguments)
    return output.getvalue()


def runs_after_each_other(stage: int) -> Any:
    """Fit, validate, fit on and predict with one module."""
    module = EvaluatedNet()
    trainer = deepspeed_trainer(stage, max_steps=4)
    trainer.fit(module, loader(4))
    learning_rates = [trainer.optimizers[0].param_groups[0]["lr"]]
    (first,) = trainer.validate(module, loader(4), verbose=False)
    learning_rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    trainer = deepspeed_trainer(stage, max_steps=4)
    trainer.fit(module, loader(4), loader(4))
    (second,) = deepspeed_trainer(stage).validate(module, loader(4), verbose=False)
    predictions = deepspeed_trainer(stage).predict(module, loader(4))
    assert predictions is not None
    return first["val_loss"], second["val_loss"], len(predictions), learning_rates


def resume_fabric(stage: int, folder: str) -> Any:
    fabric = fabric_of(stage)
    net = Net()
    model, optimizer = fabric.setup(net.layers, torch.optim.AdamW(net.layers.parameters(), lr=LEARNING_RATE))
    steps_of_fabric(fabric, model, optimizer, 0, 5)
    path = Path(folder) / "fabric"
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 5})
    whole = steps_of_fabric(fabric, model, optimizer, 5, 9)
    fabric.strategy.teardown()
    fabric = fabric_of(stage)
    net = Net()
    net.forget()
    model, optimizer = fabric.setup(net.layers, torch.optim.AdamW(net.layers.parameters(), lr=LEARNING_RATE))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    rest = fabric.load(path, state)
    resumed = steps_of_fabric(fabric, model, optimizer, state["step"], 9)
    fabric.strategy.teardown()
    return whole, resumed, state["step"], rest


def refusals() -> dict[str, str]:
    """Return the messages of what only a run can refuse."""
    fabric = fabric_of(2)
    net, other = Net().layers, Net().layers
    said: dict[str, str] = {}

    def note(name: str, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            said[name] = "nothing"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters())

    note("optimizer alone", fabric.setup_optimizers, adam(net))
    note("two optimizers", fabric.setup, net, adam(net), adam(net))
    model, optimizer = fabric.setup(net, adam(net))
    note("clip", fabric.clip_gradients, model, optimizer, max_norm=1.0)
    note("clip by value", fabric.clip_gradients, model, optimizer, clip_val=1.0)
    note("filter", fabric.save, "nowhere", {"model": model}, filter={"model": lambda key, value: True})
    note("no model", fabric.save, "nowhere", {"step": 1})
    note("loss.backward()", lambda: model(torch.ones(4, 8)).mean().backward())
    second, _ = fabric.setup(other, adam(other))
    note("two models", fabric.backward, model(torch.ones(4, 8)).mean())
    note("two models, named", fabric.backward, second(torch.ones(4, 8)).mean(), model=second)
    fabric.strategy.teardown()

    class TwoOptimizers(Net):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

    fit = deepspeed_trainer(2, gradient_clip_val=None, accumulate_grad_batches=1).fit
    note("config of a trainer", deepspeed_trainer(2, strategy=DeepSpeedStrategy(
        config={"gradient_accumulation_steps": 2})).fit, Net(), loader(4))  # fmt: skip
    note("clip by value in fit", deepspeed_trainer(2, gradient_clip_algorithm="value").fit, Net(), loader(4))
    module = TwoOptimizers()
    module.automatic_optimization = False
    note("two optimizers, by hand", fit, module, loader(4))
    note("two optimizers in fit", fit, TwoOptimizers(), loader(4))
    for name, config in (
        ("unknown name in a section", {"zero_optimization": {"stages": 2}}),
        ("wrong value in a section", {"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}}),
        ("other batch size", {"train_micro_batch_size_per_gpu": 3}),
    ):
        note(name, deepspeed_trainer(2, strategy=DeepSpeedStrategy(config=config)).fit, Net(), loader(4))
    return said


# ---- further


def train_without_warnings_of_torch() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("error", r".*is deprecated. Please use", FutureWarning)  # one for each collective
        return train_with_trainer(3, late=True, max_steps=10)


def train_offloaded(stage: int) -> Any:
    strategy = DeepSpeedStrategy(stage=stage, offload_optimizer=True, offload_parameters=stage == 3)
    return train_with_trainer(stage, strategy=strategy, max_steps=10)


def train_in_bf16(stage: int) -> Any:
    module, keeper = Net(), KeepsWhole()
    trainer = deepspeed_trainer(stage, precision="bf16-mixed", callbacks=[keeper], max_steps=20)
    trainer.fit(module, loader(4))
    return module.losses, keeper.weights, str(module.layers[0].weight.dtype)


def save_on_one_device(path: str) -> None:
    trainer = quiet_trainer(devices=1, max_epochs=1, limit_train_batches=3)
    trainer.fit(Net(), loader(8))
    trainer.save_checkpoint(path)


def go_on_with_new_optimizer() -> tuple[list[float], dict[str, list[float]]]:
    """What a run on one device does that takes weights and counters of `save_on_one_device`, and a new optimizer."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "one_device.ckpt")
        save_on_one_device(path)
        checkpoint = torch.load(path)
        checkpoint["optimizer_states"] = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]
        torch.save(checkpoint, path)
        module = Net()
        trainer = quiet_trainer(devices=1, max_steps=6, accumulate_grad_batches=ACCUMULATE, gradient_clip_val=CLIP)
        trainer.fit(module, loader(8), ckpt_path=path)
    return module.losses, weights_of(module.state_dict())

"""What the tests of FSDP run on each rank, and on one device to compare with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from fulmen.callbacks import Callback
from fulmen.strategies.fsdp import FSDPStrategy
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = [
    "Block",
    "Gan",
    "Language",
    "Tower",
    "adversarial",
    "by_fabric",
    "by_trainer",
    "checkpointed",
    "compiled",
    "from_meta",
    "in_all_stages",
    "loose",
    "mixed",
    "overflow",
    "peak",
    "spawned",
]

WINDOW, STEPS = 2, 50


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(x)))
        return out


class Language(nn.Module):
    """Tied weights, repeated blocks, a layer with fewer rows than ranks, a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.gain = nn.Linear(8, 1)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(1))

    def reset_parameters(self) -> None:
        self.scale.fill_(1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x * torch.sigmoid(self.gain(x))) * self.scale
        return out


class Tower(LightningModule):
    """Trains a `Language` to say the token before."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.net = Language()
        self.losses: list[float] = []
        self.net.blocks[0].up.requires_grad_(not frozen)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.net(tokens)
        return out

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        (tokens,) = batch
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), tokens.roll(1, dims=1).flatten())

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Judged(Tower):
    """One that can also be validated, tested, and predict."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        out: Tensor = self(batch[0]).argmax(-1)
        return out


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def tokens(batches: int) -> Tensor:
    return torch.randint(0, 7, (8 * batches, 4), generator=torch.Generator().manual_seed(3))


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(tokens(batches)), batch_size=8 // world())


def trainer(folder: Path, strategy: Any, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        **{
            **quiet,
            "accelerator": "cpu",
            "devices": world(),
            "strategy": strategy,
            "default_root_dir": folder,
            "enable_checkpointing": False,
            "max_epochs": 1,
            **kwargs,
        }
    )


def whole(module: nn.Module) -> dict[str, Any]:
    """The weights as arrays, gathered; all ranks must call it."""
    gathered = {
        name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in module.state_dict().items()
    }
    return {name: each.detach().float().numpy().copy() for name, each in gathered.items()}


def num_cut(module: nn.Module) -> int:
    return sum(isinstance(each, DTensor) for each in module.parameters())


def seeded(rank: int = 0) -> None:
    torch.manual_seed(11 + rank)


# ---- parity


def by_trainer(folder: Path, strategy: Any, frozen: bool = False, **kwargs: Any) -> dict[str, Any]:
    seeded(int(os.environ.get("RANK", "0")))  # each rank its own: the weights must be those of rank 0
    module = Tower(frozen)
    run = trainer(folder, strategy, accumulate_grad_batches=WINDOW, gradient_clip_val=0.5, **kwargs)
    run.fit(module, loader(STEPS * WINDOW))
    return {
        "weights": whole(module),
        "loss": float(run.callback_metrics["train_loss"]),
        "steps": run.global_step,
        "cut": num_cut(module),
        "tied": module.net.head.weight is module.net.embed.weight,
        "names": sorted(module.state_dict()),
    }


def by_fabric(folder: Path, strategy: Any, clip: str = "norm", steps: int = STEPS) -> dict[str, Any]:
    fabric = Fabric(accelerator="cpu", devices=world(), strategy=strategy)
    fabric.launch()
    seeded(fabric.global_rank)
    raw = Language()
    small = [each for each in raw.parameters() if each.ndim < 2]
    large = [each for each in raw.parameters() if each.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": large}, {"params": small, "weight_decay": 0.0}]
    module, optimizer = fabric.setup(raw, torch.optim.AdamW(groups, lr=0.01))
    norms = []
    for step, batch in enumerate(tokens(steps * WINDOW).split(8)):
        part = batch[fabric.global_rank :: world()]
        is_last = step % WINDOW == WINDOW - 1
        with fabric.no_backward_sync(module, enabled=not is_last):
            logits = module(part).flatten(0, 1)
            fabric.backward(nn.functional.cross_entropy(logits, part.roll(1, dims=1).flatten()) / WINDOW)
        if not is_last:
            continue
        if clip == "norm":
            norm = fabric.clip_gradients(module, optimizer, max_norm=0.5)
            assert norm is not None
            norms.append(float(norm))
        else:
            fabric.clip_gradients(module, optimizer, clip_val=0.01)
        optimizer.step()
        optimizer.zero_grad()
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return {"weights": whole(raw), "norms": norms, "cut": num_cut(raw), "sizes": sizes}


# ---- other ways to train


class Gan(LightningModule):
    """Two networks and two optimizers, stepped by hand; the first is used again after a backward pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(Block(), Block(), nn.Linear(8, 8))
        self.judge = nn.Sequential(Block(), nn.Linear(8, 1))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        of_generator, of_judge = optimizers
        real = nn.functional.one_hot(batch[0][:, 0], 8).float()
        of_generator.zero_grad()
        self.manual_backward(-self.judge(self.generator(real)).mean())
        of_generator.step()
        of_judge.zero_grad()
        loss = (
            self.judge(self.generator(real).detach()).mean()
            - self.judge(real).mean()
            + self.judge(real).square().mean()
        )
        self.manual_backward(loss)
        self.clip_gradients(of_judge, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        of_judge.step()
        self.log("gap", loss.detach(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters(), lr=0.01), torch.optim.SGD(self.judge.parameters(), lr=0.1)


def adversarial(folder: Path, strategy: Any) -> dict[str, Any]:
    seeded()
    module = Gan()
    run = trainer(folder, strategy)
    run.fit(module, loader(12))
    return {"weights": whole(module), "cut": num_cut(module), "gap": float(run.callback_metrics["gap"])}


def loose(folder: Path) -> str:
    """The error if the LightningModule has a parameter of its own, with manual optimization."""

    class Loose(Gan):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(1))

    try:
        trainer(folder, FSDPStrategy()).fit(Loose(), loader(2))
    except MisconfigurationException as error:
        return str(error)
    return ""


def mixed(folder: Path, precision: Any, plugin: Any = None) -> dict[str, Any]:
    """Train with a precision; how it computes and what it keeps."""
    seeded()
    seen: dict[str, Any] = {}

    class Probe(Callback):
        def on_after_backward(self, run: Trainer, module: LightningModule) -> None:
            seen["gradient"] = str(next(module.parameters()).grad.dtype)  # type: ignore[union-attr]  # there is one

    module = Tower()
    block: Any = module.net.blocks[0].up
    block.register_forward_hook(
        lambda layer, inputs, output: seen.update(output=str(output.dtype), weight=str(layer.weight.dtype))
    )
    parts = {"precision": precision} if plugin is None else {"plugins": plugin}
    run = trainer(folder, FSDPStrategy(), callbacks=[Probe()], **parts)
    run.fit(module, loader(20))
    first, last = module.losses[0], module.losses[-1]
    shard = str(next(module.parameters()).dtype)
    kind = f"{type(run.precision_plugin).__name__} {run.precision_plugin.precision}"
    return {**seen, "shard": shard, "kind": kind, "learned": last < first, "weights": whole(module)}


def overflow(folder: Path) -> dict[str, Any]:
    """One rank has a gradient that is not finite: all leave the step out. The scaler is the user's."""
    from fulmen.plugins.precision import FSDPPrecision

    class Spoiled(Tower):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            spoils = batch_idx == 1 and self.global_rank == 1
            return loss * float("inf") if spoils else loss

    seeded()
    module, scaler = Spoiled(), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    kept: list[dict[str, Any]] = [whole(module)]

    class Keep(Callback):
        def on_train_batch_end(self, run: Trainer, module: LightningModule, *_: Any) -> None:
            kept.append(whole(module))

    run = trainer(folder, FSDPStrategy(), plugins=FSDPPrecision("16-mixed", scaler=scaler), callbacks=[Keep()])
    run.fit(module, loader(3))
    changed = [any((one[name] != other[name]).any() for name in one) for one, other in pairwise(kept)]
    finite = all(bool(torch.tensor(each).isfinite().all()) for each in kept[-1].values())
    return {
        "changed": changed,
        "scale": scaler.get_scale(),
        "finite": finite,
        "is_own": getattr(run.precision_plugin, "scaler", None) is scaler,
    }


def in_all_stages(folder: Path, strategy: Any) -> dict[str, Any]:
    """Fit with validation, then validate, test and predict with the same and with a new Trainer."""
    seeded()
    module = Judged()
    run = trainer(folder, strategy, num_sanity_val_steps=1)
    run.fit(module, loader(4), loader(2))
    in_fit = float(run.callback_metrics["val_loss"])
    after = run.validate(module, loader(2), verbose=False)[0]["val_loss"]
    other = trainer(folder, FSDPStrategy())
    tested = other.test(module, loader(2), verbose=False)[0]["test_loss"]
    predicted: Any = other.predict(module, loader(2))
    whole_between = any(not isinstance(each, DTensor) for each in module.parameters())
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(4), loader(2))
    return {
        "losses": [in_fit, after, tested],
        "predicted": torch.cat(predicted).tolist(),
        "whole_between": whole_between,
        "weights": whole(module),
        "steps": run.global_step,
    }


def compiled(folder: Path, how: str) -> dict[str, Any]:
    """Train with each block compiled, the same with activation checkpointing, or the whole module."""
    seeded()
    module = Tower()
    blocks: Any = module.net.blocks
    for block in blocks if how != "whole" else ():
        block.compile()
    policy: Any = {Block} if how == "checkpointed" else None
    run = trainer(folder, FSDPStrategy(activation_checkpointing_policy=policy), gradient_clip_val=0.5)
    fitted: Any = torch.compile(module) if how == "whole" else module
    run.fit(fitted, loader(6))
    return {"weights": whole(module), "names": sorted(module.state_dict())}


# ---- modules that are too large for one rank


def from_meta(folder: Path, strategy: Any) -> dict[str, Any]:
    """Make a module without memory, in `configure_model` and with Fabric."""

    class Late(Tower):
        def __init__(self) -> None:
            LightningModule.__init__(self)
            self.losses = []

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                with torch.device("meta"):
                    self.net = Language()
                self.net.head.weight = self.net.embed.weight

    seeded()
    module = Late()
    run = trainer(folder, strategy, max_steps=1)
    first: dict[str, Any] = {}

    class Keep(Callback):
        def on_train_start(self, run: Trainer, module: LightningModule) -> None:
            first.update(whole(module))

    run.callbacks.append(Keep())
    run.fit(module, loader(2))
    fabric = Fabric(accelerator="cpu", devices=world(), strategy=FSDPStrategy())
    fabric.launch()
    with fabric.init_module(empty_init=True):
        unknown = Unknown()
    was_meta = all(each.is_meta for each in unknown.parameters())
    wrapped = fabric.setup(unknown)
    try:
        wrapped(torch.ones(1, 4))
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    fabric.strategy.load_module_state_dict(
        unknown,
        {"table": torch.arange(24.0).view(6, 4), "layer.weight": torch.ones(2, 4), "layer.bias": torch.zeros(2)},
    )
    output = wrapped(torch.ones(1, 4)).tolist()
    return {
        "first": first,
        "refused": refused,
        "was_meta": was_meta,
        "output": output,
        "tied": module.net.head.weight is module.net.embed.weight,
    }


class Unknown(nn.Module):
    """Nobody knows how to fill its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 4))
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.table.sum()
        return out


# ---- checkpoints


def checkpointed(folder: Path, kind: str) -> dict[str, Any]:
    """Save in the middle, resume in a new module, and compare with the run that was not interrupted."""

    path = folder / f"{kind}.ckpt"
    at_save: dict[str, Any] = {}

    class Save(Callback):
        def on_train_batch_end(self, run: Trainer, module: LightningModule, *_: Any) -> None:
            if run.global_step == 4:
                run.save_checkpoint(path)
                at_save.update(whole(module))

    def fit(*callbacks: Callback, ckpt_path: Any = None) -> Tower:
        seeded()
        module = Tower()
        run = trainer(folder, FSDPStrategy(state_dict_type=kind), callbacks=list(callbacks))  # type: ignore[arg-type]  # one of two
        run.fit(module, loader(8), ckpt_path=ckpt_path)
        return module

    uninterrupted = fit(Save())
    resumed = fit(ckpt_path=path)
    return {
        "at_save": at_save,
        "resumed": whole(resumed),
        "uninterrupted": whole(uninterrupted),
        "is_folder": path.is_dir(),
    }


def spawned(folder: Path, make: Callable[[], Any]) -> dict[str, Any]:
    """Train in workers; the weights come back to this process."""
    seeded()
    module = Tower()
    before = whole(module)
    run = trainer(folder, make(), devices=2)
    run.fit(module, DataLoader(TensorDataset(tokens(4)), batch_size=4))
    return {"before": before, "weights": whole(module), "steps": run.global_step}


# ---- memory


class Big(LightningModule):
    """320 MB of weights in 8 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Linear(3200, 3200, bias=False) for _ in range(8)])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x = nn.functional.pad(batch[0].float(), (0, 3196))
        out: Tensor = self.blocks(x).square().mean()
        return out

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-4, foreach=False)


def peak(folder: Path) -> dict[str, Any]:
    """How much the memory of this process grows while a large module is trained, in bytes; the peak."""
    import resource

    class Late(Big):
        def __init__(self) -> None:
            LightningModule.__init__(self)

        def configure_model(self) -> None:
            if not hasattr(self, "blocks"):
                with torch.device("meta"):
                    self.blocks = Big().blocks

    small = trainer(folder, FSDPStrategy(), max_steps=2)
    small.fit(Tower(), loader(2))  # whatever is loaded and kept by any run
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    module = Late()
    run = trainer(folder, FSDPStrategy(), max_steps=3)
    run.fit(module, loader(4))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"grown": after - before, "weights": sum(each.numel() for each in module.parameters()) * 4}

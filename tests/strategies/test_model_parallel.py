"""Tensor parallel training on real ranks, compared with one process that has the whole model and batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from fulmen import Fabric, Trainer, seed_everything
from fulmen.strategies import ModelParallelStrategy
from tests.distributed_harness import run_all, run_ranks
from tests.strategies.language import (
    HEADS,
    PLAN,
    SEQUENCE_PLAN,
    WIDTH,
    Language,
    Net,
    fit,
    loader,
    seeded,
    whole_weights,
)

PLANS: dict[str, dict[str, Any]] = {
    "plain": {"parallelize": PLAN},
    "plain, loss": {"parallelize": PLAN, "loss_parallel": True},
    "sequence": {"parallelize": SEQUENCE_PLAN},
    "sequence, loss": {"parallelize": SEQUENCE_PLAN, "loss_parallel": True},
}
STEPS_PER_EPOCH = 2  # three batches, two of them accumulated


def _strategy(**kwargs: Any) -> ModelParallelStrategy:
    size = int(os.environ["WORLD_SIZE"])
    return ModelParallelStrategy(data_parallel_size=size // 2, tensor_parallel_size=2, **kwargs)


def _devices() -> int:
    return int(os.environ["WORLD_SIZE"])


def _same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")  # noqa: B023 - called at once


def _alone(*, epochs: int, dropout: float = 0.0) -> tuple[dict[str, Tensor], dict[str, float]]:
    module = seeded(dropout=dropout)
    trainer = fit(module, "auto", devices=1, epochs=epochs)
    return whole_weights(module), _metrics(trainer)


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# ---- the Trainer


def _train(name: str, epochs: int, dropout: float = 0.0) -> Any:
    module = seeded(dropout=dropout)
    trainer = fit(module, _strategy(**PLANS[name]), devices=_devices(), epochs=epochs)
    return whole_weights(module), _metrics(trainer)


def _every_stage(folder: str) -> dict[str, Any]:
    """Fit, then validate, test and predict with the module that was divided."""
    module = seeded()
    trainer = fit(module, _strategy(**PLANS["sequence, loss"]), devices=_devices(), epochs=1)
    divided = trainer.strategy.data_parallel_size
    quiet: dict[str, Any] = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    other = Trainer(accelerator="cpu", devices=_devices(), strategy=_strategy(**PLANS["sequence, loss"]), **quiet)
    results: dict[str, Any] = {
        "validate": other.validate(module, loader(other.strategy, 12), verbose=False),
        "test": other.test(module, loader(other.strategy, 12), verbose=False),
        "predict": other.predict(module, loader(other.strategy, 12)),
        "divided": divided,
        "mesh": str(module.device_mesh and module.device_mesh.mesh_dim_names),
    }
    results["again"] = _metrics(fit(module, _strategy(**PLANS["sequence, loss"]), devices=_devices(), epochs=1))
    return results


# ---- Fabric


def _divide(module: nn.Module, mesh: Any) -> nn.Module:
    along = mesh["tensor_parallel"]
    for block in module.layers:  # type: ignore[union-attr]  # of `Net`
        plan: dict[str, Any] = {
            **dict.fromkeys(("attn.wq", "attn.wk", "attn.wv", "mlp.up"), ColwiseParallel()),
            **dict.fromkeys(("attn.wo", "mlp.down"), RowwiseParallel()),
            "attn.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
        }
        parallelize_module(block, along, plan)
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _with_fabric(strategy: Any, devices: int, steps: int, is_joint: bool = False) -> dict[str, Tensor]:
    seed_everything(3, verbose=False)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=strategy)
    fabric.launch()
    net: Any = Net()
    if is_joint:
        optimizer: Any = torch.optim.AdamW(net.parameters(), lr=1e-3)
        net, optimizer = fabric.setup(net, optimizer)
    else:
        net = fabric.setup(net)
        optimizer = fabric.setup_optimizers(torch.optim.AdamW(net.parameters(), lr=1e-3))
    batches: Any = fabric.setup_dataloaders(loader(fabric.strategy, 16 * steps))
    for number, batch in enumerate(batches):
        is_last = number % 2 == 1
        with fabric.no_backward_sync(net, enabled=not is_last):
            loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()) / 2
            fabric.backward(loss)
        if is_last:
            fabric.clip_gradients(net, optimizer, max_norm=0.5)
            optimizer.step()
            optimizer.zero_grad()
    return whole_weights(net)


def _fabric_with_function(steps: int) -> dict[str, Tensor]:
    return _with_fabric(_strategy(parallelize=_divide), _devices(), steps)


def _fabric_with_plan(steps: int) -> dict[str, Tensor]:
    return _with_fabric(_strategy(parallelize=PLAN), _devices(), steps, is_joint=True)


# ---- a module that divides itself


class DividesItself(Language):
    """As programs do it: layers are made and divided in `configure_model`."""

    def __init__(self, where: str, shards: bool) -> None:
        super().__init__()
        self.net = None
        self.where, self.shards = where, shards

    def configure_model(self) -> None:
        if self.net is not None:
            return
        with torch.device(self.where):
            self.net = Net(is_tied=False)
        assert self.device_mesh is not None
        for block in self.net.layers:
            plan: dict[str, Any] = {
                **dict.fromkeys(("attn.wq", "attn.wk", "attn.wv", "mlp.up"), ColwiseParallel()),
                **dict.fromkeys(("attn.wo", "mlp.down"), RowwiseParallel()),
                "attn.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
            }
            parallelize_module(block, self.device_mesh["tensor_parallel"], plan)
            if self.shards:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
        if self.shards:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def _divides_itself(where: str, shards: bool, epochs: int) -> dict[str, Tensor]:
    seed_everything(3, verbose=False)
    module = DividesItself(where, shards)
    seed_everything(3, verbose=False)
    fit(module, _strategy(), devices=_devices(), epochs=epochs)
    return whole_weights(module)


def _untied_alone(epochs: int) -> dict[str, Tensor]:
    module = seeded(is_tied=False)
    fit(module, "auto", devices=1, epochs=epochs)
    return whole_weights(module)


# ---- what goes wrong


def _message_of_fabric(plan: dict[str, Any], factors: tuple[float, float] = (1.0, 1.0)) -> str:
    """What is said about one step with a plan, where ranks multiply their loss."""
    seed_everything(3, verbose=False)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(1, 2, parallelize=plan))
    fabric.launch()
    try:
        net = fabric.setup(Net(is_tied=False))
        batch = torch.randint(0, 4, (2, 5))
        loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        fabric.backward(loss * factors[fabric.global_rank])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def _message_of_other_mesh() -> str:
    net = Net()
    first = Fabric(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(1, 2, parallelize=PLAN))
    second = Fabric(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1, parallelize=PLAN))
    first.launch()
    second.launch()
    first.setup(net)
    try:
        second.setup(net)
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def _mistakes() -> dict[str, str]:
    without_norm = {name: style for name, style in PLAN.items() if name != "**.q_norm"}
    return {
        "nothing": _message_of_fabric(PLAN),
        "partial gradients": _message_of_fabric(without_norm),
        "divided predictions": _message_of_fabric({**PLAN, "**.head": "colwise"}),
        "apart": _message_of_fabric(PLAN, factors=(1.0, 1.5)),
        "other mesh": _message_of_other_mesh(),
    }


# ---- two ranks, in short


@pytest.fixture(scope="module")
def short() -> list[dict[str, Any]]:
    calls: list[Any] = [
        (_train, ("sequence, loss", 3)),
        (_train, ("plain", 3, 0.2)),
        (_fabric_with_function, (3,)),
        (_mistakes, ()),
    ]
    names = ["trainer", "dropout", "fabric", "mistakes"]
    return [dict(zip(names, results, strict=True)) for results in run_ranks(run_all, 2, calls, timeout=240)]


@pytest.mark.distributed
def test_two_ranks_train_one_model_as_one_process_does(short: list[dict[str, Any]]) -> None:
    expected, metrics = _alone(epochs=3)
    for rank in short:
        assert not isinstance(rank["trainer"], str), rank["trainer"]
        actual, actual_metrics = rank["trainer"]

        _same(actual, expected)
        assert actual_metrics == pytest.approx(metrics, abs=1e-5)


@pytest.mark.distributed
def test_dropout_is_that_of_one_process(short: list[dict[str, Any]]) -> None:
    expected, _ = _alone(epochs=3, dropout=0.2)
    for rank in short:
        assert not isinstance(rank["dropout"], str), rank["dropout"]
        _same(rank["dropout"][0], expected)


@pytest.mark.distributed
def test_fabric_trains_a_module_divided_by_a_function_as_one_process_does(short: list[dict[str, Any]]) -> None:
    expected = _with_fabric("auto", 1, 3)
    for rank in short:
        assert not isinstance(rank["fabric"], str), rank["fabric"]
        _same(rank["fabric"], expected)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        ("nothing", ["nothing was raised"]),
        ("partial gradients", ["RuntimeError", "disagree in the gradients of 'layers.0.attn.q_norm", "'local'"]),
        ("divided predictions", ["RuntimeError", "disagree in the loss", "'vocabulary'"]),
        ("apart", ["RuntimeError", "disagree in the loss", "other batches"]),
        ("other mesh", ["divided on a mesh of 1 x 2", "Make a new module"]),
    ],
)
def test_a_mistake_is_told_instead_of_training_wrong(
    short: list[dict[str, Any]], mistake: str, parts: list[str]
) -> None:
    for rank in short:
        assert not isinstance(rank["mistakes"], str), rank["mistakes"]
        assert all(part in rank["mistakes"][mistake] for part in parts), rank["mistakes"][mistake]


# ---- more than 50 steps, and four ranks


LONG, SHORT = 26, 2


def _long(folder: str) -> dict[str, Any]:
    calls: list[Any] = [
        (_train, ("sequence, loss", LONG)),
        (_fabric_with_function, (LONG * STEPS_PER_EPOCH,)),
        *((_train, (name, SHORT)) for name in PLANS),
        (_fabric_with_plan, (SHORT * STEPS_PER_EPOCH,)),
        *((_divides_itself, (where, shards, SHORT)) for where in ("cpu", "meta") for shards in (True, False)),
        (_every_stage, (folder,)),
        (_checkpoints, (folder, SHORT)),
    ]
    names = [
        "long",
        "function",
        *PLANS,
        "plan",
        "cpu, sharded",
        "cpu",
        "meta, sharded",
        "meta",
        "stages",
        "checkpoints",
    ]
    results = dict(zip(names, run_all(calls), strict=True))
    broken = {name: result for name, result in results.items() if isinstance(result, str)}
    assert not broken, "\n".join(broken.values())
    return results


def _checkpoints(folder: str, epochs: int) -> dict[str, Any]:
    """Stop in the middle, go on from a folder and from a file, and return the weights at the end."""
    results: dict[str, Any] = {}
    for name, is_folder in (("folder", True), ("file", False)):
        path = os.path.join(folder, f"{name}-{_devices()}.ckpt")
        kwargs: dict[str, Any] = {"save_distributed_checkpoint": is_folder, **PLANS["sequence, loss"]}
        fit(seeded(), _strategy(**kwargs), devices=_devices(), epochs=epochs // 2).save_checkpoint(path)
        module = seeded()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        fit(module, _strategy(**kwargs), devices=_devices(), epochs=epochs, ckpt_path=path)
        results[name] = whole_weights(module)
    return results


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [2, 4])
def test_fifty_steps_equal_those_of_one_process(size: int, tmp_path: Path) -> None:
    ranks = run_ranks(_long, size, str(tmp_path), timeout=900)
    after_long, _ = _alone(epochs=LONG)
    expected, metrics = _alone(epochs=SHORT)
    fabric, untied = _with_fabric("auto", 1, LONG * STEPS_PER_EPOCH), _untied_alone(SHORT)
    fabric_short = _with_fabric("auto", 1, SHORT * STEPS_PER_EPOCH)
    single = seeded()
    trainer = fit(single, "auto", devices=1, epochs=1)
    stages = {
        "validate": trainer.validate(single, loader(trainer.strategy, 12), verbose=False),
        "test": trainer.test(single, loader(trainer.strategy, 12), verbose=False),
    }
    predicted = torch.cat(trainer.predict(single, loader(trainer.strategy, 12)))  # type: ignore[arg-type]  # of tensors

    for rank, results in enumerate(ranks):
        _same(results["long"][0], after_long)
        for name in PLANS:
            _same(results[name][0], expected)
            assert results[name][1] == pytest.approx(metrics, abs=1e-5)
        _same(results["function"], fabric)
        _same(results["plan"], fabric_short)
        for name in ("cpu, sharded", "cpu", "meta, sharded", "meta"):
            _same(results[name], untied)
        for name in ("folder", "file"):
            _same(results["checkpoints"][name], expected)
        for name, values in stages.items():
            assert results["stages"][name] == [pytest.approx(values[0], abs=1e-5)]
        own = torch.cat(results["stages"]["predict"])
        assert len(own) in (len(predicted), len(predicted) // (size // 2)), rank
        assert results["stages"]["mesh"] == "('data_parallel', 'tensor_parallel')"


# ---- arguments


@pytest.mark.parametrize("name", ["data_parallel_size", "tensor_parallel_size"])
@pytest.mark.parametrize("size", [0, -1, "two", True, 1.5])
def test_a_size_that_is_no_number_of_processes_is_refused(name: str, size: Any) -> None:
    with pytest.raises(ValueError, match=rf"`ModelParallelStrategy\({name}={size!r}\)` is no number of processes"):
        ModelParallelStrategy(**{name: size})


def test_a_precision_that_does_not_know_divided_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not support `precision='64-true'`.*Choose one of .*'bf16-mixed'"):
        Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), precision="64-true")


class NumberOfHeads(Language):
    """Asks for more heads than its layer has."""

    def loss(self, batch: Tensor) -> Tensor:
        return torch.randn(2, 3, WIDTH // 2).view(2, 3, HEADS, WIDTH // HEADS).mean()


def _message_of_fit(module: Language, strategy: ModelParallelStrategy) -> str:
    try:
        fit(module, strategy, devices=1, epochs=1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def _in_one_process() -> dict[str, Any]:
    module = seeded()
    fit(module, ModelParallelStrategy(parallelize=PLAN), devices=1, epochs=1)
    return {
        "sizes": _message_of_fit(seeded(), ModelParallelStrategy(2, 2, parallelize=PLAN)),
        "nobody divides": _message_of_fit(seeded(), ModelParallelStrategy()),
        "heads": _message_of_fit(NumberOfHeads(), ModelParallelStrategy(parallelize=PLAN)),
        "is divided": any(isinstance(parameter, DTensor) for parameter in module.parameters()),
        "weights": whole_weights(module),
    }


@pytest.mark.distributed
def test_one_process_trains_with_a_plan_as_without_and_tells_mistakes() -> None:
    (results,) = run_ranks(_in_one_process, 1, timeout=100)

    assert "makes a mesh of 2 x 2 processes, but the world size is 1" in results["sizes"]
    assert "TypeError" in results["nobody divides"]
    assert "does not override `configure_model`" in results["nobody divides"]
    assert "HINT" in results["heads"]
    assert "`.view(batch, length, -1, head_dim)`" in results["heads"]
    assert not results["is divided"]
    _same(results["weights"], _alone(epochs=1)[0], tolerance=1e-7)


def test_divided_losses_need_a_plan() -> None:
    with pytest.raises(ValueError, match="needs a plan that says which layer predicts words"):
        ModelParallelStrategy(loss_parallel=True)


def test_sizes_follow_machines_and_processes() -> None:
    strategy = ModelParallelStrategy(parallel_devices=[torch.device("cpu")] * 4)

    assert (strategy.data_parallel_size, strategy.tensor_parallel_size) == (1, 1)
    with pytest.raises(RuntimeError, match="not been launched"):
        _ = strategy.device_mesh

"""Data parallel training on two real ranks, compared with one process that sees the whole batch."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fulmen.plugins.layer_sync import TorchSyncBatchNorm
from fulmen.strategies import STRATEGY_REGISTRY, DDPStrategy, SingleDeviceStrategy
from fulmen.utilities.exceptions import MisconfigurationException
from tests.distributed_harness import run_ranks
from tests.strategies.ranks import FakeTrainer, Net, batch_of, joined, train, weights

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "adam": (ADAM, {}),
    "accumulation": (SGD, {"window": 3}),
    "clipping": (SGD, {"max_norm": 0.05}),
    "both": (ADAM, {"window": 2, "max_norm": 0.05}),
}


def _seeded() -> Net:
    torch.manual_seed(7)
    return Net()


def _alone(name: str, **changes: Any) -> list[torch.Tensor]:
    make, settings = RECIPES[name]
    module = _seeded()
    train(SingleDeviceStrategy(), module, make, **{**settings, **changes})
    return weights(module)


def _same(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-6) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# ---- same numbers as one process


def _train_all() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, (make, recipe) in RECIPES.items():
        strategy, module = joined(), _seeded()
        if dist.get_rank() == 1:
            nn.init.zeros_(module.first.weight)  # what rank 0 has counts
        train(strategy, module, make, **recipe)
        assert isinstance(strategy.model, DistributedDataParallel)
        assert list(strategy.lightning_module_state_dict()) == list(module.state_dict())
        strategy.teardown()
        assert not isinstance(strategy.model, DistributedDataParallel)
        results[name] = weights(module)
    settings: dict[str, dict[str, Any]] = {
        "static": {"static_graph": True},
        "views": {"gradient_as_bucket_view": True, "bucket_cap_mb": 1},
        "unused": {"find_unused_parameters": True},
    }
    for name, kwargs in settings.items():
        strategy, module = joined(**kwargs), _seeded()
        train(strategy, module, SGD, window=1)
        results[name] = weights(module)
    return results


@pytest.mark.distributed
def test_two_ranks_train_as_one_process_with_the_double_batch() -> None:
    of_ranks = run_ranks(_train_all, timeout=110)

    for name in RECIPES:
        expected = _alone(name)
        for results in of_ranks:
            _same(results[name], expected)
    for name in ("static", "views", "unused"):
        _same(of_ranks[0][name], _alone("sgd"))
        _same(of_ranks[1][name], of_ranks[0][name], 0.0)


# ---- communication of gradients


class _Two(Net):
    """Its second half may be left out."""

    def __init__(self, uses_both: bool = True) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 1)
        self.uses_both = uses_both

    def training_step(self, batch: torch.Tensor, batch_idx: int = 0) -> Any:
        loss = self(batch).square().mean()
        return {"loss": loss + self.spare(batch).mean() if self.uses_both else loss}


def _communicate() -> dict[str, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook

    results: dict[str, Any] = {}
    hooks: dict[str, dict[str, Any]] = {
        "fp16": {"ddp_comm_hook": default_hooks.fp16_compress_hook},
        "wrapped": {
            "ddp_comm_hook": default_hooks.allreduce_hook,
            "ddp_comm_wrapper": default_hooks.fp16_compress_wrapper,
        },
    }
    for name, kwargs in hooks.items():
        module = _seeded()
        train(joined(**kwargs), module, SGD)
        results[name] = weights(module)

    # averaged gradients in the first two steps, then own steps, averaged in every third of them
    state = PostLocalSGDState(process_group=None, subgroup=dist.new_subgroups(1)[0], start_localSGD_iter=2)
    kwargs = {"ddp_comm_state": state, "ddp_comm_hook": post_localSGD_hook, "model_averaging_period": 3}
    for steps in (2, 4, 5, 6):
        state.iter = 0
        module = _seeded()
        train(joined(**kwargs), module, SGD, steps=steps)
        results[f"local_{steps}"] = weights(module)

    strategy, module = joined(), _Two(uses_both=False)
    try:
        train(strategy, module, SGD)
    except RuntimeError as error:
        strategy.report_fault(error)
        strategy.on_exception(error)
        results["hint"] = str(error)
    module = _Two(uses_both=False)
    train(joined(find_unused_parameters=True), module, SGD)
    results["spare_grad"] = module.spare.weight.grad
    return results


@pytest.mark.distributed
def test_gradients_are_sent_as_hooks_say_and_errors_say_what_to_do() -> None:
    first, second = run_ranks(_communicate, timeout=110)

    expected = _alone("sgd")
    for name in ("fp16", "wrapped"):  # bf16 needs NCCL
        _same(first[name], expected, 2e-2)
        _same(first[name], second[name], 0.0)
    assert all(torch.equal(*pair) for pair in zip(first["local_2"], second["local_2"], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first["local_4"], second["local_4"], strict=True))
    equal = [
        all(torch.allclose(*pair) for pair in zip(first[name], second[name], strict=True))
        for name in ("local_4", "local_5", "local_6")
    ]
    assert equal.count(True) == 1  # once every three steps
    assert first["hint"].count("HINT") == 1
    assert "spare.weight, spare.bias" in first["hint"]
    assert "ddp_find_unused_parameters_true" in first["hint"]
    assert first["spare_grad"] is None


# ---- manual optimization


class _Adversaries(Net):
    """Two backward passes and two optimizers in one step."""

    count: torch.Tensor
    strategy: Any
    seen: list[float]
    two: list[torch.optim.Optimizer]

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int = 0) -> Any:
        self.count += 1 if self.strategy.global_rank == 0 else 100
        self.seen.append(self.count.item())
        for part, optimizer in ((self.first, self.two[0]), (self.second, self.two[1])):
            optimizer.zero_grad()
            for parameter in self.parameters():
                parameter.requires_grad_(False)
            for parameter in part.parameters():
                parameter.requires_grad_(True)
            self.strategy.backward(self(batch).square().mean(), optimizer)
            optimizer.step()
            for parameter in self.parameters():
                parameter.requires_grad_(True)


def _adversaries(strategy: Any) -> _Adversaries:
    torch.manual_seed(7)
    module = _Adversaries()
    module.__dict__["strategy"], module.__dict__["seen"] = strategy, []
    strategy.connect(module)
    strategy.setup(FakeTrainer(SGD, module))
    module.__dict__["two"] = [SGD(module.first.parameters()), SGD(module.second.parameters())]
    for step in range(4):
        strategy.training_step(batch_of(step, strategy.global_rank, strategy.world_size), step)
    return module


class _Plain(Net):
    strategy: Any
    optimizer: torch.optim.Optimizer

    def training_step(self, batch: torch.Tensor, batch_idx: int = 0) -> Any:
        self.optimizer.zero_grad()
        for half in batch.chunk(2):
            self.strategy.backward(self(half).square().mean() / 2, self.optimizer)
        self.optimizer.step()


def _plain_manual(strategy: Any) -> list[torch.Tensor]:
    torch.manual_seed(7)
    module = _Plain()
    module.automatic_optimization = False
    strategy.connect(module)
    strategy.setup(FakeTrainer(SGD, module))
    module.__dict__["strategy"], module.__dict__["optimizer"] = strategy, strategy.optimizers[0]
    for step in range(4):
        strategy.training_step(batch_of(step, strategy.global_rank, strategy.world_size), step)
    return weights(module)


def _optimize_manually() -> dict[str, Any]:
    module = _adversaries(joined(find_unused_parameters=True))
    results: dict[str, Any] = {"two": weights(module), "seen": module.seen, "plain": _plain_manual(joined())}
    refused = joined(static_graph=True)
    refused.connect(module)
    try:
        refused.setup(FakeTrainer(SGD, module))
    except MisconfigurationException as error:
        results["refused"] = str(error)
    return results


@pytest.mark.distributed
def test_manual_optimization_averages_each_backward_pass() -> None:
    of_ranks = run_ranks(_optimize_manually, timeout=110)

    expected = weights(_adversaries(SingleDeviceStrategy()))
    plain = _plain_manual(SingleDeviceStrategy())
    for results in of_ranks:
        _same(results["two"], expected)
        _same(results["plain"], plain)
        assert "static_graph" in results["refused"]
    assert of_ranks[0]["seen"] == [1, 2, 3, 4]
    assert of_ranks[1]["seen"] == [100, 101, 102, 103]  # buffers come from rank 0 before each step


# ---- the rest of a run


class _Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


def _evaluate_and_keep(folder: str) -> dict[str, Any]:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    strategy = joined()
    rank = strategy.global_rank
    results: dict[str, Any] = {}

    # evaluation: not wrapped, same weights
    torch.manual_seed(rank)
    module = _Wide()
    module.norm.running_mean.fill_(rank)  # type: ignore[union-attr]  # a tensor
    strategy.connect(module)
    strategy.setup(FakeTrainer(SGD, module, fn="validate"))
    results["is_wrapped"] = strategy.model is not module
    results["evaluated"] = [*weights(module), module.norm.running_mean]
    results["step"] = strategy.validation_step(torch.ones(2, 4)).item()
    strategy.teardown()

    # frozen modules are not wrapped
    frozen = _seeded().requires_grad_(False)
    results["frozen"] = strategy.setup_module(frozen) is frozen
    with strategy.no_backward_sync(frozen):
        pass
    trainable = _seeded()
    with pytest.raises(TypeError, match="is not wrapped"):
        strategy.no_backward_sync(trainable)

    # synchronized layers only during a fit
    strategy.layer_sync = TorchSyncBatchNorm()
    strategy.connect(module)
    try:
        strategy.setup(FakeTrainer(SGD, module))
    except MisconfigurationException as error:
        results["refused"] = str(error)
    results["synced"] = type(module.norm).__name__
    strategy.teardown()
    results["reverted"] = type(module.norm).__name__
    strategy.layer_sync = None

    # sharded optimizer states
    one_module, other = _seeded(), _seeded()

    def sharded(parameters: Any) -> torch.optim.Optimizer:
        return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.Adam, lr=0.01)

    optimizer = train(strategy, one_module, sharded)
    state = strategy.optimizer_state(optimizer)
    results["num_states"] = len(state.get("state", {}))
    state = copy.deepcopy(strategy.broadcast(state))  # as from a file: it must not share memory with the optimizer
    other.load_state_dict(one_module.state_dict())
    strategy.connect(other)
    strategy.setup(FakeTrainer(sharded, other))
    strategy.load_optimizer_state_dict({"optimizer_states": [state]})
    for current, one in ((strategy.model, strategy.optimizers[0]), (strategy.setup_module(one_module), optimizer)):
        one.zero_grad()
        current(batch_of(9, rank, 2)).square().mean().backward()
        one.step()
    results["continued"], results["uninterrupted"] = weights(other), weights(one_module)

    # files: written by rank 0, there for all when the call returns
    path = Path(folder) / "state.ckpt"
    strategy.save_state(path, {"model": strategy.model, "note": rank})
    results["is_there"] = path.is_file()
    fresh = {"model": Net(), "note": 5}
    strategy.load_state(path, fresh)
    results["loaded"] = (weights(fresh["model"]), fresh["note"])  # type: ignore[arg-type]  # the module
    strategy.barrier("files")
    strategy.remove_checkpoint(path)
    return results


@pytest.mark.distributed
def test_evaluation_checkpoints_and_sharded_optimizers_on_two_ranks(tmp_path: Path) -> None:
    of_ranks = run_ranks(_evaluate_and_keep, 2, str(tmp_path), timeout=110)

    first, second = of_ranks
    _same(second["evaluated"], first["evaluated"], 0.0)
    assert [results["num_states"] for results in of_ranks] == [4, 0]
    for results in of_ranks:
        assert not results["is_wrapped"]
        assert results["step"] == first["step"]
        assert results["frozen"]
        assert "sync_batchnorm" in results["refused"]
        assert (results["synced"], results["reverted"]) == ("SyncBatchNorm", "BatchNorm1d")
        _same(results["continued"], results["uninterrupted"])
        _same(results["uninterrupted"], _alone_with_adam_then_one())
        assert results["is_there"]
        assert results["loaded"][1] == 0
        _same(results["loaded"][0], results["continued"], 0.0)
    assert not (tmp_path / "state.ckpt").exists()


def _alone_with_adam_then_one() -> list[torch.Tensor]:
    module = _seeded()
    optimizer = train(SingleDeviceStrategy(), module, ADAM)
    optimizer.zero_grad()
    module(batch_of(9, 0, 1)).square().mean().backward()
    optimizer.step()
    return weights(module)


# ---- without processes


def test_names_say_how_processes_start_and_whether_unused_parameters_are_sought() -> None:
    for name, start_method in {
        "ddp": "popen",
        "ddp_spawn": "spawn",
        "ddp_fork": "fork",
        "ddp_notebook": "fork",
    }.items():
        assert STRATEGY_REGISTRY[name]["init_params"] == {"start_method": start_method}
        for finds in (True, False):
            entry = STRATEGY_REGISTRY[f"{name}_find_unused_parameters_{str(finds).lower()}"]
            assert entry["strategy"] is DDPStrategy
            assert entry["init_params"] == {"start_method": start_method, "find_unused_parameters": finds}


def test_local_sgd_needs_the_state_that_says_when_it_begins() -> None:
    with pytest.raises(ValueError, match="ddp_comm_state"):
        DDPStrategy(model_averaging_period=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synchronized_batch_norm_trains_on_a_gpu() -> None:
    (results,) = run_ranks(_train_synced, 1)
    assert results["synced"] == "SyncBatchNorm"
    assert results["reverted"] == "BatchNorm1d"
    assert results["moved"]


def _train_synced() -> dict[str, Any]:
    from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment

    strategy = DDPStrategy(parallel_devices=[torch.device("cuda", 0)], cluster_environment=TorchElasticEnvironment())
    strategy.setup_environment()
    assert strategy.process_group_backend == "nccl"
    strategy.layer_sync = TorchSyncBatchNorm()
    module = _Normed()
    strategy.connect(module)
    strategy.setup(FakeTrainer(SGD, module))
    results: dict[str, Any] = {"synced": type(module.norm).__name__}
    loss = strategy.training_step(torch.randn(8, 4, device="cuda"))["loss"]
    strategy.backward(loss, strategy.optimizers[0])
    strategy.optimizer_step(strategy.optimizers[0])
    results["moved"] = bool(module.norm.running_mean.abs().sum() > 0)  # type: ignore[union-attr]  # a tensor
    results["reduced"] = strategy.all_reduce(torch.ones(2, device="cuda")).tolist()
    results["gathered"] = strategy.all_gather({"a": torch.ones(2, device="cuda"), "b": 1.0})["a"].shape
    strategy.teardown()
    results["reverted"] = type(module.norm).__name__
    return results


class _Normed(_Wide):
    def training_step(self, batch: torch.Tensor, batch_idx: int = 0) -> Any:
        return {"loss": self(self.norm(batch)).square().mean()}

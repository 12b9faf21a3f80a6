from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from fulmen import Fabric
from fulmen.fabric.bypass import GuardedMethod
from fulmen.fabric.wrappers import unwrapped

DataLoader: Any = torch.utils.data.DataLoader


def made(**changes: Any) -> Fabric:
    return Fabric(**{"accelerator": "cpu", "devices": 1, **changes})


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.scale
        return out

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out

    def number(self) -> int:
        return 3


# ---- modules
def test_weights_have_the_names_of_the_users_module() -> None:
    module = Network()
    model = made().setup(module)

    assert [n for n, _ in model.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert [n for n, _ in model.named_buffers()] == ["scale"]
    assert list(model.state_dict()) == list(module.state_dict())
    assert set(model.parameters()) == set(module.parameters())


def test_attributes_of_the_wrapper_itself_stay_on_it() -> None:
    model = made().setup(Network())
    model.register_full_backward_hook(lambda *_: None)
    model.scale = torch.zeros(1)
    model.extra = 1
    del model.extra

    assert model._is_full_backward_hook is True
    assert model.module._is_full_backward_hook is None
    assert model.module.scale.item() == 0
    assert not hasattr(model, "extra")


def test_a_converted_module_reports_what_it_is() -> None:
    model = made(precision="64-true").setup(Network())

    assert (model.dtype, model.device) == (torch.float64, torch.device("cpu"))
    assert made().setup(nn.Flatten()).dtype is torch.float32


def test_a_frozen_module_keeps_its_mode_when_set_up() -> None:
    module = Network().eval()
    model = made().setup(module)

    assert not model.training
    assert not module.layer.training


def test_a_module_can_be_copied_and_pickled() -> None:
    model = made().setup(Network())
    twin = copy.deepcopy(model)
    model.layer.weight.data.zero_()
    other = copy.deepcopy(twin.module)

    assert twin(torch.ones(1, 2)).item() == other(torch.ones(1, 2)).item()
    assert twin._parts is model._parts
    assert list(pickle.loads(pickle.dumps(model.state_dict()))) == list(model.state_dict())


def test_compiling_the_wrapper_keeps_it_usable() -> None:
    fabric = made()
    module: Any = Network()
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    compiled: Any = torch.compile(model, backend="eager")
    fabric.backward(compiled(torch.ones(1, 2)).sum())

    assert unwrapped(compiled) is module
    assert fabric.clip_gradients(compiled, optimizer, max_norm=100.0) == pytest.approx(3**0.5)
    with fabric.no_backward_sync(compiled):
        pass


def test_a_compiled_module_is_compiled_around_the_strategys_wrapper() -> None:
    compiled: Any = torch.compile(Network(), backend="eager")
    model = made().setup(compiled)

    assert type(model.module) is Network
    assert type(model._forward_module).__name__ == "OptimizedModule"
    assert model._strategy_module is model.module


def test_a_step_of_a_compiled_module_runs() -> None:
    class Steps(Network):
        def training_step(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(x).sum()
            return out

    module = Steps()
    compiled: Any = torch.compile(module, backend="eager")
    model = made().setup(compiled)

    assert model.training_step(torch.ones(1, 2)).item() == pytest.approx(module(torch.ones(1, 2)).item())
    assert "forward" not in vars(module)


def test_forward_itself_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match="is one already"):
        made().setup(Network()).mark_forward_method("forward")


# ---- methods past the strategy's wrapper
def test_a_method_that_runs_layers_is_refused() -> None:
    module = Network()

    with pytest.raises(RuntimeError, match=r"`Network\.encode\(\)`.*mark_forward_method\('encode'\)"):
        GuardedMethod(module.encode, module)(torch.ones(1, 2))  # type: ignore[arg-type]  # a bound method
    assert module.encode(torch.ones(1, 2)).shape == (1, 1)  # the check ends with the call


def test_a_method_that_runs_no_layers_is_not() -> None:
    module = Network()
    other = nn.Linear(1, 1)
    guarded: Any = GuardedMethod(module.number, module)  # type: ignore[arg-type]  # a bound method

    assert guarded() == 3
    assert guarded.__name__ == "number"
    assert other(torch.ones(1, 1)).shape == (1, 1)


# ---- optimizers
def step(fabric: Fabric, model: Any, optimizer: Any) -> None:
    fabric.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    optimizer.zero_grad()


def test_attributes_are_shared_with_the_users_optimizer() -> None:
    module: Any = Network()
    inner = torch.optim.SGD(module.parameters(), lr=1.0)
    optimizer = made().setup_optimizers(inner)
    optimizer.anything = 3
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})

    assert inner.anything == 3  # type: ignore[attr-defined]
    assert len(inner.param_groups) == 2
    assert type(optimizer).__name__ == "FabricSGD"
    assert isinstance(optimizer, torch.optim.SGD)


@pytest.mark.parametrize("before", [False, True])
def test_a_scheduler_made_before_or_after_sees_the_steps(before: bool) -> None:
    fabric = made()
    module: Any = Network()
    inner = torch.optim.SGD(module.parameters(), lr=1.0)
    scheduler = StepLR(inner, 1, 0.5) if before else None
    model, optimizer = fabric.setup(module, inner)
    scheduler = scheduler or StepLR(optimizer, 1, 0.5)
    step(fabric, model, optimizer)
    scheduler.step()  # would warn if the step had not been seen

    assert optimizer.param_groups[0]["lr"] == 0.5


def test_step_hooks_are_called_once() -> None:
    fabric = made()
    module: Any = Network()
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=1.0))
    seen: list[str] = []
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    step(fabric, model, optimizer)

    assert seen == ["pre", "post"]


def test_loading_a_state_leaves_step_as_it_is() -> None:
    fabric = made()
    module: Any = Network()
    model, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters()))
    step(fabric, model, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5)
    step(fabric, model, optimizer)
    scheduler.step()

    assert float(optimizer.state[module.layer.weight]["step"]) == 2


def test_the_end_of_an_optimizer_comes_once() -> None:
    ended: list[int] = []

    class Ends(torch.optim.SGD):
        def __del__(self) -> None:
            ended.append(1)

    optimizer = made().setup_optimizers(Ends([nn.Parameter(torch.ones(1))], lr=1.0))
    del optimizer
    gc.collect()

    assert ended == [1]


def test_a_copy_of_an_optimizer_is_independent() -> None:
    optimizer = made().setup_optimizers(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["lr"] = 2.0

    assert optimizer.param_groups[0]["lr"] == 1.0
    assert twin.optimizer is not optimizer.optimizer


def test_arguments_of_step_reach_the_optimizer() -> None:
    class Named(torch.optim.SGD):
        def step(self, closure: Any = None, *, note: str = "") -> Any:
            return note or (closure and closure())

    optimizer = made().setup_optimizers(Named([nn.Parameter(torch.ones(1))], lr=1.0))

    assert optimizer.step(note="x") == "x"
    assert optimizer.step(lambda: 5) == 5


# ---- loaders
def test_a_loader_passes_attributes_on() -> None:
    class WithState(torch.utils.data.DataLoader[int]):
        def state_dict(self) -> dict[str, int]:
            return {"position": 3}

    loader = made().setup_dataloaders(WithState([1, 2]))  # type: ignore[arg-type]  # a list will do

    assert loader.state_dict() == {"position": 3}
    assert copy.copy(loader).dataset == [1, 2]


def test_a_strategy_that_moves_batches_itself_is_asked() -> None:
    from fulmen.strategies import SingleDeviceStrategy

    class Marks(SingleDeviceStrategy):
        def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
            return ("moved", batch)

    fabric = Fabric(strategy=Marks("cpu"))

    assert next(iter(fabric.setup_dataloaders(DataLoader([1]))))[0] == "moved"
    assert next(iter(fabric.setup_dataloaders(DataLoader([1]), move_to_device=False))).item() == 1

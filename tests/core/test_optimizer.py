"""What `configure_optimizers` may return, and the optimizer as users step it."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.core.optimizer import LightningOptimizer, do_nothing_closure, parse_optimizers
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.types import LRSchedulerConfig
from tests.support import quiet


class Model(LightningModule):
    """Steps by hand; `configure` and `work` say how."""

    def __init__(
        self, configure: Callable[[Any], Any] | None = None, work: Callable[[Any], None] | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight, self.other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.configure, self.work = configure, work

    def training_step(self, batch: Tensor) -> None:
        if self.work is not None:
            self.work(self)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1) if self.configure is None else self.configure(self)


def data(length: int = 1) -> DataLoader[Any]:
    return DataLoader(torch.ones(length, 1))  # type: ignore[arg-type]  # a tensor is a dataset


def sgd(lr: float = 0.1, **settings: Any) -> SGD:
    return SGD([nn.Parameter(torch.ones(1))], lr=lr, **settings)


def parse(returned: Any, *, automatic: bool = True, any_scheduler: bool = False) -> Any:
    module = Model()
    module.automatic_optimization = automatic
    return parse_optimizers(returned, module, steps_any_scheduler=any_scheduler)


# ---- configure_optimizers: accepted forms
A, B = sgd(), sgd()
STEP_A, STEP_B = StepLR(A, 1), StepLR(B, 1)


@pytest.mark.parametrize(
    ("returned", "optimizers", "schedulers"),
    [
        pytest.param(A, [A], [], id="optimizer"),
        pytest.param([A, B], [A, B], [], id="list"),
        pytest.param((A, B), [A, B], [], id="tuple"),
        pytest.param(([A], [STEP_A]), [A], [STEP_A], id="two lists"),
        pytest.param([[A, B], [STEP_A, STEP_B]], [A, B], [STEP_A, STEP_B], id="list of two lists"),
        pytest.param(([A], STEP_A), [A], [STEP_A], id="list and scheduler"),
        pytest.param(([A], (STEP_A,)), [A], [STEP_A], id="list and tuple"),
        pytest.param(([A, B], []), [A, B], [], id="no schedulers"),
        pytest.param({"optimizer": A}, [A], [], id="dict"),
        pytest.param({"optimizer": A, "lr_scheduler": STEP_A}, [A], [STEP_A], id="dict with scheduler"),
        pytest.param({"optimizer": A, "lr_scheduler": None}, [A], [], id="dict with None"),
        pytest.param({"optimizer": A, "lr_scheduler": {"scheduler": STEP_A}}, [A], [STEP_A], id="nested dict"),
        pytest.param(
            [{"optimizer": A, "lr_scheduler": STEP_A}, {"optimizer": B}], [A, B], [STEP_A], id="list of dicts"
        ),
        pytest.param(({"optimizer": A}, {"optimizer": B}), [A, B], [], id="tuple of dicts"),
    ],
)
def test_every_form_is_read(returned: Any, optimizers: list[Any], schedulers: list[Any]) -> None:
    found, configs = parse(returned)

    assert all(one is other for one, other in zip(found, optimizers, strict=True))
    assert [config.scheduler for config in configs] == schedulers


def test_none_warns_and_means_no_optimizer() -> None:
    with pytest.warns(UserWarning, match="returned None"):
        assert parse(None) == ([], [])


def test_a_scheduler_has_the_documented_defaults() -> None:
    assert parse(([A], [STEP_A]))[1] == [LRSchedulerConfig(STEP_A, None, "epoch", 1, False, None, True)]


def test_a_scheduler_dict_is_taken_over() -> None:
    given = {"scheduler": STEP_A, "name": "lr", "interval": "step", "frequency": 3, "monitor": "loss", "strict": False}

    assert parse({"optimizer": A, "lr_scheduler": given})[1] == [
        LRSchedulerConfig(STEP_A, "lr", "step", 3, False, "loss", False)
    ]


@pytest.mark.parametrize("nested", [True, False])
def test_the_monitor_of_the_outer_dict_is_for_plateau(nested: bool) -> None:
    plateau = ReduceLROnPlateau(A)
    _, (config,) = parse(
        {"optimizer": A, "lr_scheduler": {"scheduler": plateau} if nested else plateau, "monitor": "loss"}
    )

    assert (config.monitor, config.reduce_on_plateau) == ("loss", True)


def test_a_subclass_of_plateau_is_known_as_one_and_any_scheduler_may_be_declared_one() -> None:
    class Own(ReduceLROnPlateau):
        pass

    _, (own,) = parse(([A], [{"scheduler": Own(A), "monitor": "loss"}]))
    _, (declared,) = parse(([A], [{"scheduler": STEP_A, "reduce_on_plateau": True, "monitor": "loss"}]))

    assert own.reduce_on_plateau
    assert declared.reduce_on_plateau


# ---- configure_optimizers: what is refused, and what is doubtful
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param((A, STEP_A), "a tuple of \\['SGD', 'StepLR'\\]", id="optimizer and scheduler"),
        pytest.param(((A,), [STEP_A]), "a tuple of", id="first item a tuple"),
        pytest.param(3, "a int: 3", id="number"),
        pytest.param(SGD, "the class `SGD`.*Make an object of it", id="class"),
        pytest.param(STEP_A, "a StepLR", id="scheduler"),
        pytest.param({}, "a dict with the keys \\[\\]", id="empty dict"),
        pytest.param({"lr_scheduler": STEP_A}, "\\['lr_scheduler'\\]", id="dict without optimizer"),
        pytest.param({"optimizer": SGD}, "a dict with the keys", id="dict with a class"),
        pytest.param([], "an empty list", id="empty list"),
        pytest.param((), "an empty tuple", id="empty tuple"),
        pytest.param([A, {"optimizer": B}], "a list of \\['SGD', 'dict'\\]", id="mixed"),
        pytest.param(([A], [{"interval": "step"}]), "without 'scheduler'", id="dict without scheduler"),
        pytest.param(([A], [{"scheduler": STEP_A, "interval": "batch"}]), "'interval': 'batch'", id="interval"),
        pytest.param(([A], [{"scheduler": STEP_A, "frequency": 0}]), "'frequency': 0", id="frequency"),
        pytest.param(([A], [ReduceLROnPlateau(A)]), "without the metric", id="plateau without monitor"),
        pytest.param(([A], [{"scheduler": ReduceLROnPlateau(A)}]), "without the metric", id="plateau dict"),
        pytest.param(([A], [STEP_B]), "belongs to an optimizer that", id="foreign scheduler"),
    ],
)
def test_anything_else_is_refused(returned: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        parse(returned)


class OwnScheduler:
    """Not one of torch's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.steps = optimizer, 0

    def step(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_an_own_scheduler_needs_lr_scheduler_step_in_automatic_mode() -> None:
    scheduler = OwnScheduler(A)
    with pytest.raises(MisconfigurationException, match=r"Override `LightningModule\.lr_scheduler_step`"):
        parse(([A], [scheduler]))

    assert parse(([A], [scheduler]), any_scheduler=True)[1][0].scheduler is scheduler
    assert parse(([A], [scheduler]), automatic=False)[1][0].scheduler is scheduler


def test_a_scheduler_that_cannot_be_saved_is_a_type_error() -> None:
    class Forgetful:
        def step(self) -> None: ...

    with pytest.raises(TypeError, match="`Forgetful` has no `state_dict`"):
        parse(([A], [Forgetful()]), any_scheduler=True)
    with pytest.raises(TypeError, match="the class `StepLR`"):
        parse(([A], [StepLR]))


@pytest.mark.parametrize(
    ("returned", "category", "message"),
    [
        ({"optimizer": A, "scheduler": STEP_A}, UserWarning, "\\['scheduler'\\], which are not used"),
        (([A], [{"scheduler": STEP_A, "every": 2}]), RuntimeWarning, "\\['every'\\], which are not used"),
        (([A], [OneCycleLR(A, 0.1, total_steps=3)]), RuntimeWarning, "stepped once per epoch"),
    ],
)
def test_doubtful_settings_warn(returned: Any, category: type[Warning], message: str) -> None:
    with pytest.warns(category, match=message):
        optimizers, _ = parse(returned)

    assert optimizers == [A]


def test_one_cycle_per_step_does_not_warn() -> None:
    scheduler = OneCycleLR(A, 0.1, total_steps=3)

    assert parse(([A], [{"scheduler": scheduler, "interval": "step"}]))[1][0].interval == "step"


def test_settings_of_automatic_mode_warn_in_manual_mode() -> None:
    plateau = {"scheduler": ReduceLROnPlateau(A), "monitor": "loss", "strict": False}
    with pytest.warns(RuntimeWarning, match="\\['monitor', 'strict'\\] have no effect"):
        parse(([A], [plateau]), automatic=False)

    assert parse(([A], [ReduceLROnPlateau(A)]), automatic=False)[0] == [A]  # needs no monitor there


def test_several_optimizers_need_manual_mode(tmp_path: Path) -> None:
    model = Model(lambda m: [SGD([m.weight], lr=0.1), SGD([m.other], lr=0.1)])
    model.automatic_optimization = True
    with pytest.raises(RuntimeError, match="returned 2 optimizers"):
        Trainer(**quiet(tmp_path)).fit(model, data())


def test_the_trainer_keeps_what_was_configured(tmp_path: Path) -> None:
    optimizer = sgd()
    scheduler = ExponentialLR(optimizer, 0.5)
    seen: list[Any] = []
    model = Model(lambda m: ([optimizer], [scheduler]), lambda m: seen.extend([m.optimizers(), m.lr_schedulers()]))
    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(model, data())

    assert trainer.optimizers == [optimizer]
    assert [config.scheduler for config in trainer.lr_scheduler_configs] == [scheduler]
    assert seen[0].optimizer is optimizer
    assert seen[1] is scheduler


def test_an_object_that_only_behaves_like_an_optimizer_is_trained_with(tmp_path: Path) -> None:
    class Duck:
        def __init__(self, parameters: list[nn.Parameter]) -> None:
            self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": 0.5}]
            self.state: dict[Any, Any] = {}

        def step(self, closure: Callable[[], Any] | None = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 0.5 * parameter.grad

        def zero_grad(self) -> None:
            self.param_groups[0]["params"][0].grad = None

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    class Automatic(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def training_step(self, batch: Tensor) -> Tensor:
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return Duck([self.weight])

    model = Automatic()
    Trainer(**quiet(tmp_path)).fit(model, data(2))

    assert model.weight.item() == 0.0


# ---- LightningOptimizer
class Switching(SGD):
    """Like schedule-free optimizers: has modes, a class-level default, and methods of its own."""

    mode = "train"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    @property
    def lr(self) -> float:
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.param_groups[0]["lr"] = value


def test_the_wrapper_is_an_instance_of_the_wrapped_class() -> None:
    wrapper = LightningOptimizer(sgd())

    assert isinstance(wrapper, SGD)
    assert isinstance(wrapper, LightningOptimizer)
    assert type(wrapper).__name__ == "LightningSGD"
    assert repr(wrapper).startswith("LightningSGD (\nParameter Group 0")


def test_attributes_are_read_from_and_written_to_the_wrapped_one() -> None:
    inner = sgd(momentum=0.9)
    wrapper: Any = LightningOptimizer(inner)
    wrapper.note = 3
    inner.later = 4  # type: ignore[attr-defined]

    assert wrapper.param_groups is inner.param_groups
    assert wrapper.defaults is inner.defaults
    assert wrapper.state is inner.state
    assert inner.note == 3  # type: ignore[attr-defined]
    assert wrapper.later == 4
    with pytest.raises(AttributeError, match="absent"):
        _ = wrapper.absent
    assert "note" not in vars(wrapper)


def test_methods_with_state_of_their_own_work_on_the_wrapped_one() -> None:
    inner = Switching([nn.Parameter(torch.ones(1))], lr=0.1)
    wrapper: Any = LightningOptimizer(inner)
    wrapper.eval()
    wrapper.lr = 0.5

    assert (wrapper.mode, inner.mode) == ("eval", "eval")
    assert (wrapper.lr, inner.lr) == (0.5, 0.5)
    wrapper.train()
    assert (wrapper.mode, inner.mode) == ("train", "train")


def test_standard_methods_act_on_the_wrapped_one() -> None:
    parameter, added = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    inner = SGD([parameter], lr=0.1, momentum=0.9)
    wrapper = LightningOptimizer(inner)
    parameter.grad = torch.ones(1)
    wrapper.step()
    state = wrapper.state_dict()
    wrapper.zero_grad()
    wrapper.add_param_group({"params": [added], "lr": 0.3})
    fresh = LightningOptimizer(SGD([parameter], lr=1.0, momentum=0.9))
    fresh.load_state_dict(state)

    assert parameter.item() == pytest.approx(0.9)
    assert parameter.grad is None
    assert [group["lr"] for group in inner.param_groups] == [0.1, 0.3]
    assert fresh.optimizer.state_dict() == state
    assert fresh.param_groups[0]["lr"] == 0.1


def test_zero_grad_can_keep_the_tensors() -> None:
    wrapper = LightningOptimizer(sgd())
    parameter = wrapper.param_groups[0]["params"][0]
    parameter.grad = torch.ones(1)
    wrapper.zero_grad(set_to_none=False)

    assert parameter.grad.item() == 0.0


def test_step_hooks_of_the_wrapper_are_those_of_the_wrapped_one() -> None:
    calls: list[str] = []
    wrapper = LightningOptimizer(sgd())
    wrapper.register_step_pre_hook(lambda *_: calls.append("pre"))
    wrapper.register_step_post_hook(lambda *_: calls.append("post"))
    wrapper.step()

    assert calls == ["pre", "post"]


def test_a_scheduler_can_be_made_with_the_wrapper() -> None:
    inner = sgd(lr=1.0)
    wrapper: Any = LightningOptimizer(inner)
    scheduler = StepLR(wrapper, 1, gamma=0.5)
    wrapper.step()
    scheduler.step()

    assert inner.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))])
def test_a_wrapper_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    wrapper = LightningOptimizer(sgd(lr=0.7))
    wrapper.connect(lambda *_: None, lambda *_: None)
    again = copied(wrapper)

    assert type(again).__name__ == "LightningSGD"
    assert again.param_groups[0]["lr"] == 0.7
    again.step()  # not connected to a run


def test_the_end_of_the_wrapper_is_not_the_end_of_the_wrapped_one() -> None:
    ended: list[int] = []

    class Ending(SGD):
        def __del__(self) -> None:
            ended.append(1)

    inner = Ending([nn.Parameter(torch.ones(1))], lr=0.1)
    LightningOptimizer(inner)
    gc.collect()

    assert ended == []


def test_a_closure_must_be_callable() -> None:
    with pytest.raises(MisconfigurationException, match="closure=3"):
        LightningOptimizer(sgd()).step(closure=3)  # type: ignore[arg-type]


def test_the_closure_that_stands_in_does_nothing() -> None:
    assert do_nothing_closure() is None  # type: ignore[func-returns-value]


def test_step_returns_what_the_optimizer_returns_and_passes_arguments_on(tmp_path: Path) -> None:
    class Asking(SGD):
        def step(self, closure: Any = None, *, scale: float = 1.0) -> Any:
            super().step(closure)
            return scale

    results: list[Any] = []
    model = Model(
        lambda m: Asking(m.parameters(), lr=0.1),
        lambda m: results.extend([m.optimizers().step(), m.optimizers().step(scale=2.0)]),
    )
    Trainer(**quiet(tmp_path)).fit(model, data())

    assert results == [1.0, 2.0]
    assert LightningOptimizer(Asking([nn.Parameter(torch.ones(1))], lr=0.1)).step(scale=3.0) == 3.0


class SAM(Optimizer):
    """Sharpness-aware minimization: climbs to the worst point near by, and steps with the gradient found there."""

    def __init__(self, parameters: Any, base: type[Optimizer], rho: float = 0.05, **settings: Any) -> None:
        super().__init__(parameters, {"rho": rho, **settings})
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["climb"] = climb = group["rho"] * parameter.grad.sign()
                parameter.add_(climb)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(self.state[parameter]["climb"])
        self.base.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


def loss_of(weight: Tensor) -> Tensor:
    return (weight - 3).pow(4).sum()


def sam_by_hand(steps: int) -> float:
    weight = nn.Parameter(torch.ones(1))
    optimizer = SAM([weight], SGD, lr=0.01)
    for _ in range(steps):
        loss_of(weight).backward()
        optimizer.first_step()
        loss_of(weight).backward()
        optimizer.second_step()
    return weight.item()


def test_sam_by_its_own_methods_trains_as_without_a_trainer(tmp_path: Path) -> None:
    def work(model: Any) -> None:
        optimizer = model.optimizers()
        model.manual_backward(loss_of(model.weight))
        optimizer.first_step()
        model.manual_backward(loss_of(model.weight))
        optimizer.second_step()

    model = Model(lambda m: SAM([m.weight], SGD, lr=0.01), work)
    Trainer(**quiet(tmp_path)).fit(model, data(3))

    assert model.weight.item() == sam_by_hand(3)


@pytest.mark.parametrize("overrides", [True, False])
def test_sam_that_calls_a_closure_twice_trains_as_without_a_trainer(overrides: bool, tmp_path: Path) -> None:
    class Automatic(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def training_step(self, batch: Tensor) -> Tensor:
            return loss_of(self.weight)

        def configure_optimizers(self) -> Any:
            return SAM([self.weight], SGD, lr=0.01)

    class Overriding(Automatic):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    if not overrides:
        SAM._need_closure = True  # type: ignore[attr-defined]  # how an optimizer says so, with a default of None
    try:
        model, trainer = (Overriding if overrides else Automatic)(), Trainer(**quiet(tmp_path))
        trainer.fit(model, data(3))
    finally:
        if not overrides:
            del SAM._need_closure  # type: ignore[attr-defined]

    assert model.weight.item() == sam_by_hand(3)
    assert trainer.global_step == 3


# ---- toggling
def two(model: Any) -> list[Optimizer]:
    return [SGD([model.weight, model.shared, model.frozen], lr=0.1), SGD([model.other, model.shared], lr=0.1)]


class Toggled(Model):
    def __init__(self, work: Callable[[Any], None]) -> None:
        super().__init__(two, work)
        self.shared, self.frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen: list[tuple[bool, ...]] = []

    def look(self) -> None:
        parameters = (self.weight, self.other, self.shared, self.frozen)
        self.seen.append(tuple(parameter.requires_grad for parameter in parameters))


ALL, FIRST, SECOND = (True, True, True, False), (True, False, True, False), (False, True, True, False)


def toggle_and_untoggle(model: Any) -> None:
    for optimizer in model.optimizers():
        model.toggle_optimizer(optimizer)
        model.look()
        model.untoggle_optimizer(optimizer)
        model.look()


def by_context_of_the_module(model: Any) -> None:
    for optimizer in model.optimizers(use_pl_optimizer=False):
        with model.toggled_optimizer(optimizer):
            model.look()
        model.look()


def by_context_of_the_optimizer(model: Any) -> None:
    for optimizer in model.optimizers():
        with optimizer.toggle_model(sync_grad=False):
            model.look()
        model.look()


@pytest.mark.parametrize("work", [toggle_and_untoggle, by_context_of_the_module, by_context_of_the_optimizer])
def test_toggling_leaves_only_one_optimizers_parameters_trainable(work: Any, tmp_path: Path) -> None:
    model = Toggled(work)
    Trainer(**quiet(tmp_path)).fit(model, data())

    assert model.seen == [FIRST, ALL, SECOND, ALL]


@pytest.mark.parametrize("of_module", [True, False])
def test_an_error_inside_the_context_undoes_the_toggling(of_module: bool, tmp_path: Path) -> None:
    def work(model: Any) -> None:
        optimizer = model.optimizers()[0]
        with model.toggled_optimizer(optimizer) if of_module else optimizer.toggle_model():
            raise KeyError

    model = Toggled(work)
    with pytest.raises(KeyError):
        Trainer(**quiet(tmp_path)).fit(model, data())
    model.look()

    assert model.seen == [ALL]


def test_toggle_model_needs_a_run() -> None:
    with pytest.raises(RuntimeError, match="needs a running Trainer"), LightningOptimizer(sgd()).toggle_model():
        pass

from __future__ import annotations

import pytest
import torch

from fulmen.compat.closures import Closure, ClosureResult, ManualResult
from fulmen.utilities.exceptions import MisconfigurationException


def test_a_closure_steps_clears_and_differentiates_in_this_order() -> None:
    calls: list[str] = []
    weight = torch.tensor(3.0, requires_grad=True)

    def step() -> ClosureResult:
        calls.append("step")
        return ClosureResult.from_training_step_output({"loss": weight**2, "seen": 5}, normalize=2)

    def backward(loss: torch.Tensor) -> None:
        calls.append("backward")
        loss.backward()

    closure = Closure(step, backward, lambda: calls.append("clear"))
    loss = closure()

    assert calls == ["step", "clear", "backward"]
    assert loss is not None
    assert (loss.item(), loss.requires_grad, weight.grad) == (4.5, False, torch.tensor(3.0))
    assert closure.consume_result().asdict() == {"loss": torch.tensor(4.5), "seen": 5}
    with pytest.raises(MisconfigurationException, match="The closure was not called"):
        closure.consume_result()


def test_a_step_without_loss_is_not_differentiated() -> None:
    with pytest.warns(UserWarning, match="the batch is skipped"):
        assert Closure(lambda: ClosureResult(None), backward_fn=lambda loss: pytest.fail("no loss"))() is None


@pytest.mark.parametrize("output", [{"seen": 5}, "loss", 3.0])
def test_an_output_without_loss_is_refused(output) -> None:
    with pytest.raises(MisconfigurationException, match="`training_step` returned a"):
        ClosureResult.from_training_step_output(output)


def test_a_manual_result_keeps_what_the_step_returned() -> None:
    loss = torch.ones((), requires_grad=True)

    assert ManualResult.from_training_step_output(None).asdict() == {}
    assert ManualResult.from_training_step_output({"seen": 5}).asdict() == {"seen": 5}
    assert not ManualResult.from_training_step_output({"loss": loss}).asdict()["loss"].requires_grad

"""From compiled modules back to the user's own."""

from typing import Any

import pytest
import torch

from fulmen.utilities.compile import from_compiled, to_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, when it loads its compiler


class Steps(torch.nn.Linear):
    """A module with the methods that are compiled."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def validation_step(self, batch, batch_idx):
        return self(batch).sum()

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_from_compiled_gives_the_module_with_compiled_steps():
    module: Any = Steps()
    batch = torch.ones(3, 2)
    expected = module.training_step(batch, 0)

    result: Any = from_compiled(torch.compile(module, backend="eager"))

    assert result is module
    assert module.training_step is not module._compiler_ctx["original_training_step"]
    assert module._compiler_ctx["compiler"] == "dynamo"
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    torch._dynamo.reset()


def test_to_uncompiled_undoes_it():
    module: Any = from_compiled(torch.compile(Steps(), backend="eager"))

    result: Any = to_uncompiled(module)

    assert result is module
    assert module._compiler_ctx is None
    assert "training_step" not in vars(module)
    assert module.forward.__func__ is torch.nn.Linear.forward


def test_to_uncompiled_keeps_a_function_set_on_the_instance():
    module: Any = Steps()
    module.predict_step = own = lambda batch, batch_idx: batch
    from_compiled(torch.compile(module, backend="eager"))

    assert to_uncompiled(module).predict_step is own


def test_log_is_not_traced_and_to_uncompiled_gives_it_back():
    class Logging(Steps):
        def log(self, name, value):
            seen.append((torch.compiler.is_compiling(), name))

        def training_step(self, batch, batch_idx):
            loss = self(batch).sum()
            for number in range(12):  # more than the compiler's limit of versions of one function
                self.log(f"loss_{number}", loss)
            return loss

    seen: list[Any] = []
    module: Any = Logging()
    from_compiled(torch.compile(module, backend="eager"))

    module.training_step(torch.ones(3, 2), 0)

    assert seen == [(False, f"loss_{number}") for number in range(12)]
    assert "log" in vars(module)
    to_uncompiled(module)
    assert "log" not in vars(module)


def test_compiling_twice_is_undone_once():
    module: Any = Steps()
    from_compiled(torch.compile(module, backend="eager"))
    from_compiled(torch.compile(module, backend="eager"))

    assert "forward" not in vars(to_uncompiled(module))


def test_to_uncompiled_takes_the_compiled_module_as_well():
    module: Any = Steps()

    assert to_uncompiled(torch.compile(module, backend="eager")) is module


def test_wrong_modules_are_refused():
    linear = torch.nn.Linear(1, 1)
    compiled = torch.compile(linear, backend="eager")

    with pytest.raises(ValueError, match="required to be a `OptimizedModule`, but it is a `Linear`"):
        from_compiled(linear)
    with pytest.raises(ValueError, match="expected to be a compiled LightningModule"):
        from_compiled(compiled)
    with pytest.raises(TypeError, match="should be a LightningModule, but it is a `Linear`"):
        to_uncompiled(compiled)
    with pytest.raises(ValueError, match="must either be an instance of OptimizedModule or LightningModule"):
        to_uncompiled(linear)
    with pytest.raises(ValueError, match="this one is not compiled"):
        to_uncompiled(Steps())

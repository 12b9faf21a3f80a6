"""The average of the weights of which a rank has only parts: kept in parts, as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fulmen.utilities.sharded_gradients import has_shards
from fulmen.utilities.state_names import without_compiler_names

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["AveragedParts"]


class AveragedParts:
    """An `AveragedModel` of this rank's parts of the weights; averages are taken entry by entry, so nobody talks.

    Args:
        module: The module, sharded already.
        device: Where the average is kept; `None` is where the parts are.
        kwargs: Arguments of `AveragedModel`.

    Attributes:
        average: The average of the parts.
    """

    def __init__(self, module: nn.Module, device: Any, **kwargs: Any) -> None:
        self.average = AveragedModel(_Parts(module), **kwargs)
        self._kept: _Parts = self.average.module  # type: ignore[assignment]  # a copy of what it was made of
        if device is not None:
            self.average.module.to(device)
        self.average.requires_grad_(False)

    def update(self, module: nn.Module) -> None:
        """Take in the weights of now.

        Args:
            module: The module.
        """
        self.average.update_parameters(_Parts(module))

    def parts_of(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return what lies in the average, and this rank's parts of the module, in the same order.

        Args:
            module: The module.
        """
        return self._kept.tensors(), _Parts(module).tensors()

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return what lies in the average under the names of the module's weights, divided as they are.

        Args:
            module: The module.

        Raises:
            RuntimeError: Its `state_dict` has tensors that are no parameters or buffers.
        """
        kept = {id(own): part for own, part in zip(_tensors_of(module), self._kept.tensors(), strict=True)}
        state = module.state_dict(keep_vars=True)
        averaged = {name: _averaged(name, value, kept) for name, value in state.items()}
        return without_compiler_names(module, averaged)

    def load(self, trainer: Trainer, module: nn.Module, state_dict: dict[str, Any]) -> None:
        """Take an average from a checkpoint, through the memory of the module; all ranks must call it.

        Args:
            trainer: The Trainer; its strategy gives each rank its parts.
            module: The module; it holds the average afterwards.
            state_dict: The average.
        """
        trainer.strategy.load_module_state_dict(module, state_dict, strict=module.strict_loading)  # type: ignore[arg-type]  # a LightningModule
        with torch.no_grad():
            for averaged, own in zip(*self.parts_of(module), strict=True):
                averaged.copy_(own)


class _Parts(nn.Module):
    """This rank's parts of a module's parameters and buffers; it shares their memory, copies of it do not."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for number, parameter in enumerate(module.parameters()):
            self.register_parameter(f"p{number}", nn.Parameter(_local(parameter), requires_grad=False))
        for number, buffer in enumerate(module.buffers()):
            self.register_buffer(f"b{number}", _local(buffer))

    def tensors(self) -> list[Tensor]:
        return [*self._parameters.values(), *self._buffers.values()]  # type: ignore[list-item]  # none is None

    def __deepcopy__(self, memo: Any) -> _Parts:  # a part may be a piece of a larger block of memory
        copied = _Parts(nn.Module())
        for name, parameter in self._parameters.items():
            copied.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))  # type: ignore[union-attr]  # as above
        for name, buffer in self._buffers.items():
            copied.register_buffer(name, buffer.clone())  # type: ignore[union-attr]  # as above
        return copied


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.detach()
    return local.to_local() if has_shards([local]) else local  # type: ignore[attr-defined]  # a DTensor


def _averaged(name: str, value: Any, kept: dict[int, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    part = kept.get(id(value))
    if part is None:
        raise RuntimeError(
            f"`state_dict` of the module has a tensor {name!r} that is neither a parameter nor a buffer, so it has no"
            " average. Register it as a buffer, or leave the averaging callback out."
        )
    if not has_shards([value]):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = value
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )

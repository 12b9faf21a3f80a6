"""QuantizationAwareTraining: trains a model that will be used with low-precision weights, by torchao."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fulmen.callbacks.sharding import check_takes_parts
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.options import check_function, check_number
from fulmen.utilities.sharded_gradients import has_shards

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["QuantizationAwareTraining"]

_M = TypeVar("_M", bound=nn.Module)


class QuantizationAwareTraining(Callback):
    """Round weights and activations in training as the quantized model will, so that it learns to live with that.

    When a run begins, the chosen layers of the module are replaced by those of torchao that round in their forward pass
    and pass gradients straight through. Weights stay in full precision and keep their names, so checkpoints load with
    and without the callback, and a run can go on from one trained without. Validation and testing see rounded numbers,
    too. The module keeps these layers after the run; `convert` makes the quantized model of it, which is small and fast
    and computes the same.

    Source: torchao, `torchao.quantization.qat`.

    Args:
        config: How the model shall be quantized: a configuration of torchao that `QATConfig` takes. `None` is 8 bit for
            weights, with one scale for each output, and 8 bit for activations, with a scale for each token.
        filter_fn: Gets a layer and its dotted name, and tells whether to quantize it; `None` takes each `nn.Linear`.
        start_epoch: Train with full precision before this epoch (from 0).

    Raises:
        ModuleNotFoundError: torchao is not installed.
        MisconfigurationException: A bad `start_epoch`, or, when a run begins, no layer is chosen.

    Example::

        qat = QuantizationAwareTraining()
        Trainer(max_epochs=5, callbacks=qat).fit(model)
        torch.save(qat.convert(model).state_dict(), "int8.pt")  # load: `model.load_state_dict(..., assign=True)`
    """

    def __init__(
        self,
        config: Any | None = None,
        *,
        filter_fn: Callable[[nn.Module, str], bool] | None = None,
        start_epoch: int = 0,
    ) -> None:
        name = "QuantizationAwareTraining"
        check_number(
            name, "start_epoch", start_epoch, "the epoch from which on numbers are rounded.", least=0, whole=True,
            error=MisconfigurationException,
        )  # fmt: skip
        check_function(name, "filter_fn", filter_fn, "it takes a layer and its name and returns a bool.", optional=True)
        quantization = require("torchao.quantization", extra="quantization", for_="QuantizationAwareTraining")
        self.config = _default_config(quantization) if config is None else config
        self.filter_fn = filter_fn
        self.start_epoch = start_epoch

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the layers, before there are optimizers and before weights are loaded."""
        check_takes_parts(trainer, type(self).__name__, "rounds weights")
        if not any(_rounding_layers(pl_module)):
            self._prepare(pl_module)
        _switch(pl_module, on=True)

    def _prepare(self, module: nn.Module) -> None:
        quantization, qat = _torchao()
        quantization.quantize_(module, qat.QATConfig(self.config, step="prepare"), filter_fn=self._chosen)
        if not any(_rounding_layers(module)):
            raise MisconfigurationException(
                f"`QuantizationAwareTraining` found no layer to quantize in `{type(module).__name__}`. Layers must be"
                " `nn.Linear` (or what `config` knows) that exist before training begins; give them by `filter_fn`."
            )

    def _chosen(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) if self.filter_fn is None else self.filter_fn(module, name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Round or not, as the epoch in which training goes on asks for."""
        _switch(pl_module, on=trainer.current_epoch >= self.start_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Round from `start_epoch` on."""
        if self.start_epoch and trainer.current_epoch == self.start_epoch:
            _switch(pl_module, on=True)

    # ---- afterwards
    def convert(self, module: _M) -> _M:
        """Return a quantized copy of a trained module; the module stays as it is.

        Args:
            module: The module that was trained with this callback, or one like it with the weights of a checkpoint.

        Returns:
            The copy, in eval mode. Its `state_dict` can be saved, and loads with `weights_only=True` and `assign=True`
            into a module that was never quantized, as long as torchao has been imported.

        Raises:
            MisconfigurationException: Each rank has only a part of the weights.
        """
        if has_shards(module.parameters()):
            raise MisconfigurationException(
                f"`QuantizationAwareTraining.convert` rounds whole weights, but those of `{type(module).__name__}` are"
                " divided among ranks. Load a checkpoint of the run into a new module on one process, and convert that."
            )
        quantization, qat = _torchao()
        converted = copy.deepcopy(module).eval()
        if not any(_rounding_layers(converted)):
            self._prepare(converted)
        for parameter in converted.parameters():
            parameter.requires_grad_(False)
        quantization.quantize_(converted, qat.QATConfig(self.config, step="convert"))
        return converted


def _torchao() -> tuple[Any, Any]:
    names = ("torchao.quantization", "torchao.quantization.qat")
    quantization, qat = (require(name, extra="quantization", for_="QuantizationAwareTraining") for name in names)
    return quantization, qat


def _default_config(quantization: Any) -> Any:
    return quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=quantization.PerAxis(0)
    )


def _rounding_layers(module: nn.Module) -> Iterator[nn.Module]:
    _, qat = _torchao()
    return (
        each for each in module.modules() if isinstance(each, (qat.FakeQuantizedLinear, qat.FakeQuantizedEmbedding))
    )


def _switch(module: nn.Module, *, on: bool) -> None:
    """Let the layers round, or not."""
    _, qat = _torchao()
    for each in module.modules():
        if isinstance(each, qat.FakeQuantizerBase):
            each.enabled = on

"""DeepSpeedSummary: counts of a model whose parameters DeepSpeed (ZeRO stage 3) has divided among processes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

from fulmen.utilities.model_summary.model_summary import (
    LayerSummary,
    ModelSummary,
    get_human_readable_count,
)

__all__ = ["DeepSpeedLayerSummary", "DeepSpeedSummary", "deepspeed_param_size"]

_PER_DEVICE = "Params per Device"


def deepspeed_param_size(p: Tensor) -> int:
    """Return the number of values of a parameter on all processes together.

    Args:
        p: A parameter that DeepSpeed has divided; here it is only a remainder.
    """
    return int(p.ds_numel)  # type: ignore[attr-defined]  # set by DeepSpeed


def _shard_size(p: Any) -> int:
    return int(p.ds_tensor.numel())


class DeepSpeedLayerSummary(LayerSummary):
    """A layer whose parameters are divided among processes."""

    @property
    def num_parameters(self) -> int:
        """Number of values on all processes."""
        return sum(deepspeed_param_size(p) for p in self._module.parameters())

    @property
    def average_shard_parameters(self) -> int:
        """Number of values on one process."""
        return sum(_shard_size(p) for p in self._module.parameters())


class DeepSpeedSummary(ModelSummary):
    """The summary of a model divided by DeepSpeed, with a column for the share of one process."""

    def summarize(self) -> dict[str, DeepSpeedLayerSummary]:  # type: ignore[override]  # its layers know more
        """Look at the model anew. The example input is not run: that would gather parameters.

        Returns:
            The summaries of the layers by dotted name.
        """
        summary = OrderedDict((name, DeepSpeedLayerSummary(module)) for name, module in self.named_modules)
        for layer in summary.values():
            layer.detach_hook()
        return summary

    @property
    def total_parameters(self) -> int:
        """Number of values on all processes."""
        return sum(deepspeed_param_size(p) for p in self._model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """The same of the parameters that require gradients."""
        return sum(deepspeed_param_size(p) for p in self._model.parameters() if p.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """The same of the listed layers."""
        return sum(deepspeed_param_size(p) for p in self._listed_parameters().values())

    @property
    def parameters_per_layer(self) -> list[int]:
        """Number of values of each layer on one process."""
        return [layer.average_shard_parameters for layer in self._layer_summary.values()]  # type: ignore[attr-defined]  # ours

    @property
    def model_size(self) -> float:
        """Size in MB (1e6 bytes) on all processes together."""
        return sum(deepspeed_param_size(p) * p.element_size() for p in self._model.parameters()) / 1e6

    def further_totals(self) -> list[tuple[str, str]]:
        """Return nothing: gradients and optimizers are divided in DeepSpeed's own way."""
        return []

    def _get_summary_data(self) -> list[tuple[str, list[str]]]:
        columns = super()._get_summary_data()
        after = next(index for index, (title, _) in enumerate(columns) if title == "Params") + 1
        shares = [get_human_readable_count(count) for count in self.parameters_per_layer]
        columns.insert(after, (_PER_DEVICE, shares))
        return columns

    def _leftover_parameters(self) -> int:
        listed = self._listed_parameters()
        return sum(deepspeed_param_size(p) for p in self._model.parameters() if id(p) not in listed)

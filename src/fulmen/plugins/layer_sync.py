"""Layers that compute over the batches of all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["LayerSync", "TorchSyncBatchNorm"]


class LayerSync(ABC):
    """Replaces layers of a module for the time of a fit."""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Put synchronized layers in place.

        Args:
            model: The module; it may be modified.

        Returns:
            The module to train.
        """

    @abstractmethod
    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers back that `apply` replaced, with what they have learned.

        Args:
            model: What `apply` returned.

        Returns:
            The module as the user wrote it.
        """


class TorchSyncBatchNorm(LayerSync):
    """Batch normalization over the batches of all processes, by `torch.nn.SyncBatchNorm`."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace each batch-normalization layer.

        Args:
            model: The module; its layers are replaced in place.

        Returns:
            The module, or its replacement if it is itself such a layer.
        """
        originals = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
        }
        model = SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # of torch
        for name, module in model.named_modules(remove_duplicate=False):
            if name in originals:
                module.__dict__["_replaced"] = originals[name]  # not as a submodule: no entry in the state_dict
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the user's layers back; layers that the user made synchronized stay so.

        Args:
            model: The module; its layers are replaced in place.

        Returns:
            The module, or the original if it was itself such a layer.
        """
        for name, child in list(model.named_children()):
            setattr(model, name, self.revert(child))
        original: _BatchNorm | None = model.__dict__.pop("_replaced", None)
        if original is None:
            return model
        original.training = model.training
        for name, parameter in model.named_parameters(recurse=False):
            setattr(original, name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            setattr(original, name, buffer)
        return original

"""How training with DeepSpeed is saved and loaded: folders of the engine, and files with whole weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.deepspeed_checkpoint import (
    DeepSpeedCheckpoint,
    load_engine,
    load_state,
    load_weights,
    save_engine,
    single_engine,
    states_beside,
    warn_about_optimizer,
    whole_weights,
)
from fulmen.strategies.deepspeed_config import stage_of
from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder

if TYPE_CHECKING:
    from fulmen.utilities.types import _PATH

__all__ = ["DeepSpeedKeeping"]

_NOT_SAVED = ("state_dict", "optimizer_states")  # the engine writes them


class DeepSpeedKeeping(DDPStrategy):
    """What `DeepSpeedStrategy` saves and loads; the base of it, and of nothing else."""

    config: dict[str, Any]
    exclude_frozen_parameters: bool
    load_full_weights: bool
    _engines: list[Any]
    _trains: bool
    """Whether the run is a fit, so that engines have optimizers."""

    @property
    def zero_stage_3(self) -> bool:
        """Whether parameters are divided."""
        return stage_of(self.config) == 3

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True: weights are loaded into the engine."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """False: the engine loads the state of its optimizer."""
        return False

    # ---- the Trainer's checkpoints

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint, on all processes: a folder; one with weights only is a file, as any strategy writes it.

        Args:
            checkpoint: What to write.
            filepath: Where to; a local path.
            storage_options: Not supported.

        Raises:
            TypeError: `storage_options` are given.
            RuntimeError: After a fault, the other processes are gone.
        """
        if storage_options is not None:
            raise TypeError(
                f"`Trainer.save_checkpoint(..., storage_options={storage_options!r})` is not supported with"
                f" `{type(self).__name__}`, which writes local folders. Leave it out."
            )
        if self._is_alone:
            raise RuntimeError(
                f"The checkpoint `{filepath}` cannot be written: its parts are on {self.world_size} processes, and"
                " another one has failed. Resume from the newest checkpoint that was written before."
            )
        filepath = self.broadcast(filepath)
        if "optimizer_states" not in checkpoint:
            whole = whole_weights(self._model, keep=self.is_global_zero)
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint({**checkpoint, "state_dict": whole}, filepath)
            return
        added = {name: value for name, value in checkpoint.items() if name not in _NOT_SAVED}
        self._save_engine(self._model, filepath, added)

    def _save_engine(self, engine: Any, path: _PATH, added: dict[str, Any]) -> None:
        save_engine(self, engine, path, added, exclude_frozen_parameters=self.exclude_frozen_parameters)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights that this process has whole; nothing in stage 3, where the engine saves each its part."""
        return {} if self.zero_stage_3 else super().get_module_state_dict(self._lightning_module)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return nothing: the engine saves the state of its optimizer.

        Args:
            optimizer: The optimizer.
        """
        return {}

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return this process' part of the state of an optimizer.

        Args:
            optimizer: The optimizer.
        """
        return optimizer.state_dict()

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return the weights of a module, whole, on rank 0; all processes must call it.

        Args:
            module: The engine, or the user's module.
        """
        return whole_weights(self._engine_around(module) or module, keep=self.is_global_zero)

    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load whole weights into a module; all processes must call it.

        Args:
            module: The engine, or the user's module.
            state_dict: The weights, on all processes.
            strict: Names must be the same on both sides.
        """
        load_weights(self._engine_around(module) or module, state_dict, strict=strict)

    def _engine_around(self, module: Any) -> Any:
        return next((one for one in self._engines if module is one or module is one.module), None)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: of a folder of DeepSpeed what is beside weights and optimizer, which load later.

        Args:
            checkpoint_path: A folder, or a file with whole weights.
            weights_only: Refuse everything but tensors and plain data; False trusts the file.

        Returns:
            Its content, in host memory.
        """
        if is_deepspeed_folder(checkpoint_path):
            return DeepSpeedCheckpoint(DeepSpeedFolder(checkpoint_path, trust=weights_only is False))
        return super().load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Load weights, and from a folder of DeepSpeed in fit the state of the optimizer too.

        Args:
            checkpoint: What `load_checkpoint` returned.
            strict: Names must be the same on both sides.
        """
        if isinstance(checkpoint, DeepSpeedCheckpoint):
            if self._trains:
                load_engine(self._model, checkpoint, strict=strict, with_optimizer=not self.load_full_weights)
            else:
                load_weights(self._model, checkpoint.source.read_weights(), strict=strict)
            return
        load_weights(self._model, checkpoint["state_dict"], strict=strict)
        if self._trains and not self.load_full_weights:
            warn_about_optimizer(checkpoint)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Do nothing: the engine has loaded it together with the weights.

        Args:
            checkpoint: The checkpoint.
        """

    # ---- those of Fabric

    def save_state(
        self,
        path: _PATH,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:
        """Save an engine, with its optimizer, and plain values in one folder.

        Args:
            path: Where to.
            state: Name to engine, optimizer, anything with `state_dict`, or plain value.
            storage_options: Not supported.
            filter: Not supported.

        Raises:
            TypeError: `storage_options` or `filter` are given.
            ValueError: There is not exactly one engine.
        """
        for name, value in (("storage_options", storage_options), ("filter", filter)):
            if value:
                raise TypeError(
                    f"`{type(self).__name__}.save_state(..., {name}=...)` is not supported: DeepSpeed decides what of"
                    " its engine is saved. Leave it out."
                )
        engine = single_engine(self._engines, state, path)
        self._save_engine(engine, self.broadcast(path), states_beside(engine, state))

    def load_state(
        self, path: _PATH, state: dict[str, Any] | None = None, strict: bool = True, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a folder, or a file with whole weights, back into the objects it was saved from.

        Args:
            path: Where from.
            state: Name to object, restored in place, or to plain value, replaced in this dict. `None`: nothing.
            strict: Names must be the same on both sides.
            weights_only: Refuse everything but tensors and plain data; False trusts the files.

        Returns:
            The rest of the checkpoint, under names that `state` has not.

        Raises:
            KeyError: The checkpoint lacks a name.
            ValueError: There is not exactly one engine in `state`.
        """
        if state is None or not is_deepspeed_folder(path):
            return super().load_state(path, state, strict=strict, weights_only=weights_only)
        return load_state(
            single_engine(self._engines, state, path), path, state, strict=strict, trust=weights_only is False
        )

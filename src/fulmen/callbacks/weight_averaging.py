"""WeightAveraging and EMAWeightAveraging: evaluate and keep an average of the weights while the weights train on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fulmen.callbacks.averaged_parts import AveragedParts
from fulmen.callbacks.same_on_ranks import take_from_first_rank
from fulmen.callbacks.sharding import check_takes_parts
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_function, check_number, parse_device
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.sharded_gradients import has_shards
from fulmen.utilities.state_names import named_as_in, without_compiler_names

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["EMAWeightAveraging", "WeightAveraging"]

_PREFIX = "module."


class WeightAveraging(Callback):
    """Keep an average of the weights (`torch.optim.swa_utils.AveragedModel`), for validation and as the result of fit.

    Each validation within fit evaluates the average, and at the end of training the module gets it. Until the first
    update there is no average: validation evaluates the trained weights, and if no update ever comes, the module keeps
    them. Subclasses override `should_update` to choose when the average takes in the current weights.

    A checkpoint has the average under `state_dict`, so that `load_from_checkpoint`, `validate` and `test` use it, and
    what training goes on from under `current_model_state`. One with weights only has the average.

    Where weights are divided among ranks (FSDP, tensor parallel), so is the average, in memory as in checkpoint
    folders; a checkpoint can be loaded with another division.

    Args:
        device: Where the average is kept; `None` is the device of the module. `"cpu"` saves memory of the GPU, and
            costs a transfer at each update.
        use_buffers: Average floating-point buffers (batch norm's statistics) as well; else copy them at each update.
        kwargs: `avg_fn` or `multi_avg_fn` of `AveragedModel`; default is the mean of all weights taken in.

    Raises:
        TypeError: `AveragedModel` does not know an argument.

    Example::

        class EveryEpoch(WeightAveraging):
            def should_update(self, step_idx=None, epoch_idx=None):
                return epoch_idx is not None and epoch_idx >= 10
    """

    replaces_weights: ClassVar[bool] = True  # also in checkpoints that hold nothing else
    copies_module: ClassVar[bool] = True

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        unknown = kwargs.keys() - {"avg_fn", "multi_avg_fn"}
        if unknown:
            raise TypeError(
                f"`{type(self).__name__}` got {sorted(unknown)}, which `torch.optim.swa_utils.AveragedModel` does not"
                " know. Besides `device` and `use_buffers` it takes `avg_fn` or `multi_avg_fn`."
            )
        if kwargs.get("avg_fn") is not None and kwargs.get("multi_avg_fn") is not None:
            raise MisconfigurationException(
                f"`{type(self).__name__}` got both `avg_fn` and `multi_avg_fn`, but only one can compute the average."
                " Leave out one of them."
            )
        for name in ("avg_fn", "multi_avg_fn"):
            why = "it computes the average, see `torch.optim.swa_utils.AveragedModel`."
            check_function(type(self).__name__, name, kwargs.get(name), why, optional=True)
        # ---- settings
        self._device = parse_device(type(self).__name__, device)
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        # ---- state
        self._average: AveragedModel | None = None
        self._parts: AveragedParts | None = None  # what `_average` is of, where ranks have only parts of the weights
        self._latest_update_step = 0
        self._is_swapped = False  # the module holds the average, and `_average` the trained weights
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until the average exists

    # ---- when
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tell whether the average takes in the weights now; asked after each optimizer step and after each epoch.

        Args:
            step_idx: Index of the optimizer step just done, from 0; `None` at the end of an epoch.
            epoch_idx: Index of the epoch that ends, from 0; `None` after a step.
        """
        return step_idx is not None

    # ---- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy's weights can be averaged, and forget the average of an earlier run."""
        if stage != "fit":
            return
        check_takes_parts(trainer, type(self).__name__, "averages weights")
        self._parts = None
        self._average, self._loaded, self._is_swapped, self._latest_update_step = None, None, False, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the module, which is on its device by now, and take over the average of a checkpoint."""
        arguments = {"use_buffers": self._use_buffers, **self._averaging_arguments()}
        if has_shards(_tensors(pl_module)):
            self._parts = AveragedParts(pl_module, self._device, **arguments)
            self._average = self._parts.average
        else:
            self._average = AveragedModel(pl_module, **arguments)
            # only the module: the counter stays in host memory, where reading it waits for no device
            self._average.module.to(self._device or pl_module.device)
            self._average.requires_grad_(False)
        if self._loaded is not None:
            self._take_over(trainer, pl_module, self._loaded)
            self._loaded = None

    def _averaging_arguments(self) -> dict[str, Any]:
        return self._kwargs

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the average, which a run makes anew, for processes that are started."""
        return {**self.__dict__, "_average": None, "_parts": None, "_is_swapped": False}

    # ---- averaging
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after an optimizer step, if it is time."""
        step = trainer.global_step
        if step > self._latest_update_step:  # not within an accumulation window
            self._show_trained(pl_module)
            if self.should_update(step_idx=step - 1):
                self._update(pl_module)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update after an epoch, if it is time."""
        self._show_trained(pl_module)
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average; checkpoints written from now on still hold what training can go on from."""
        self._show_average(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average also where there was nothing left to train."""
        self._show_average(trainer, pl_module)

    def _update(self, pl_module: LightningModule) -> None:
        assert self._average is not None  # noqa: S101 - made before training
        if self._parts is not None:
            self._parts.update(pl_module)
        else:
            self._average.update_parameters(pl_module)

    @property
    def _has_average(self) -> bool:
        return self._average is not None and bool(self._average.n_averaged > 0)  # sync: only around a validation

    # ---- validation
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let validation within fit evaluate the average."""
        if trainer.state.fn == "fit":
            self._show_average(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._show_trained(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back if a validation was interrupted."""
        self._show_trained(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free memory of the GPU; the average stays, for checkpoints written after fit."""
        if self._average is not None and stage == "fit":
            self._average.cpu()

    def _show_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_swapped and self._has_average:
            self._swap(pl_module)
            if trainer.world_size > 1:
                take_from_first_rank(trainer, pl_module.buffers())  # each has seen other data; a checkpoint has those

    def _show_trained(self, pl_module: LightningModule) -> None:
        if self._is_swapped:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        assert self._average is not None  # noqa: S101 - both callers know that there is one
        pairs = (_tensors(self._average.module), _tensors(pl_module))
        for averaged, trained in zip(*(pairs if self._parts is None else self._parts.parts_of(pl_module)), strict=True):
            kept = trained.clone()
            trained.copy_(averaged)
            averaged.copy_(kept)
        self._is_swapped = not self._is_swapped

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer step of the latest look at the weights; `on_save_checkpoint` adds the average itself."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._latest_update_step = state_dict["latest_update_step"]

    def evaluated_weights(self, pl_module: LightningModule, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the weights that validation evaluates.

        Args:
            pl_module: The module.
            state_dict: That of the module, as it is now.

        Returns:
            The average under the module's names, or `state_dict` while there is none.
        """
        return state_dict if self._is_swapped or not self._has_average else self._kept(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights, and the trained weights beside it."""
        if self._average is None:  # outside fit
            return
        of_module = checkpoint["state_dict"]
        checkpoint["state_dict"] = self.evaluated_weights(pl_module, of_module)
        if "callbacks" in checkpoint:  # else it is not for training
            checkpoint["current_model_state"] = self._kept(pl_module) if self._is_swapped else of_module
            state = self._average.state_dict()
            checkpoint["averaging_state"] = {key: state[key] for key in state if not key.startswith(_PREFIX)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In fit, go on with both; other stages use the average, which the module has loaded already."""
        if trainer.state.fn != "fit":
            return
        if "current_model_state" not in checkpoint:
            rank_zero_warn(
                f"The checkpoint was written without `{type(self).__name__}`, so it holds no average: averaging begins"
                " anew from its weights."
            )
            return
        if self._average is None:
            self._loaded = checkpoint
        else:
            self._take_over(trainer, pl_module, checkpoint)

    def _take_over(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert self._average is not None  # noqa: S101 - both callers know that there is one
        strict = pl_module.strict_loading
        if self._parts is not None:
            self._parts.load(trainer, pl_module, checkpoint["state_dict"])
        else:
            average = self._average.module
            average.load_state_dict(named_as_in(average, checkpoint["state_dict"]), strict=strict)
        trainer.strategy.load_module_state_dict(pl_module, checkpoint["current_model_state"], strict=strict)
        self._average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])

    def _kept(self, pl_module: LightningModule) -> dict[str, Any]:
        """Return what lies in `_average`, under the module's names."""
        assert self._average is not None  # noqa: S101 - both callers know that there is one
        if self._parts is not None:
            return self._parts.state_dict(pl_module)
        return without_compiler_names(self._average.module, self._average.module.state_dict())


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average: `average = decay * average + (1 - decay) * weights`.

    Polyak and Juditsky 1992; `torch.optim.swa_utils.get_ema_multi_avg_fn`. The first update copies the weights.

    Args:
        device: Where the average is kept; `None` is the device of the module.
        use_buffers: Average floating-point buffers as well; else copy them at each update.
        decay: Share of the old average that each update keeps, from 0 to 1.
        update_every_n_steps: Update after the optimizer steps 0, n, 2n, ...; 0 leaves steps out.
        update_starting_at_step: Leave out the steps before this one.
        update_starting_at_epoch: Update at the end of this epoch (from 0) and of each later one, besides the steps.
        kwargs: `AveragedModel` has none left to give.

    Raises:
        ValueError: A number is out of range, or nothing would ever be averaged.

    Example::

        Trainer(callbacks=EMAWeightAveraging(decay=0.999, update_starting_at_step=1000))
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        name, why = "EMAWeightAveraging", "the share of the old average that an update keeps, e.g. 0.99 to 0.9999."
        check_number(name, "decay", decay, why, least=0, most=1)
        check_number(
            name, "update_every_n_steps", update_every_n_steps, "the steps between updates.", least=0, whole=True
        )
        for option, start in (("step", update_starting_at_step), ("epoch", update_starting_at_epoch)):
            why = f"the first {option} (from 0) after which the average is updated."
            check_number(name, f"update_starting_at_{option}", start, why, least=0, whole=True, optional=True)
        if update_every_n_steps == 0 and update_starting_at_epoch is None:
            raise ValueError(
                f"`EMAWeightAveraging(update_every_n_steps={update_every_n_steps!r})` would never update the average."
                " Give an int of at least 1; 0 leaves the steps out and needs `update_starting_at_epoch`."
            )
        if kwargs.get("avg_fn") is not None or kwargs.get("multi_avg_fn") is not None:
            raise TypeError(
                "`EMAWeightAveraging` brings its own `avg_fn`, so none can be passed. For another average use"
                " `WeightAveraging(avg_fn=...)`."
            )
        super().__init__(device, use_buffers, **kwargs)
        self._decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def _averaging_arguments(self) -> dict[str, Any]:
        # made here, as a closure can't go to other processes
        return {"multi_avg_fn": get_ema_multi_avg_fn(self._decay)}  # type: ignore[no-untyped-call]  # torch's

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tell whether one of the two schedules, by steps or by epochs, is due; see `WeightAveraging`."""
        if step_idx is not None and self.update_every_n_steps:
            has_started = self.update_starting_at_step is None or step_idx >= self.update_starting_at_step
            if has_started and step_idx % self.update_every_n_steps == 0:
                return True
        start = self.update_starting_at_epoch
        return epoch_idx is not None and start is not None and epoch_idx >= start


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())

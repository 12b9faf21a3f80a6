"""LightningModule: what the model does, and how it learns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Union, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Self

from fulmen.core import export, saving
from fulmen.core.device import DeviceDtypeModule
from fulmen.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from fulmen.core.hparams import HyperparametersMixin
from fulmen.core.optimizer import LightningOptimizer
from fulmen.utilities.enums import GradClipAlgorithmType
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import WarningCache, rank_zero_warn
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fulmen.loggers.logger import Logger
    from fulmen.trainer.trainer import Trainer
    from fulmen.utilities.types import LRSchedulerPLType, OptimizerLRScheduler

__all__ = ["MODULE_OPTIMIZERS", "LightningModule", "TrainerOfFabric"]

MODULE_OPTIMIZERS = Union[Optimizer, LightningOptimizer, list[Optimizer], list[LightningOptimizer]]  # noqa: UP007 - an alias at run time
_warnings = WarningCache()


class LightningModule(DeviceDtypeModule, HyperparametersMixin, ModelHooks, DataHooks, CheckpointHooks):
    """A `torch.nn.Module` that also says how to train, validate, test and predict.

    Implement `training_step` and `configure_optimizers`; everything else is optional.

    Example::

        class Classifier(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(28 * 28, 10)

            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = torch.nn.functional.cross_entropy(self.net(x), y)
                self.log("train_loss", loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), lr=1e-3)
    """

    # TorchScript must not compile these
    __jit_unused_properties__: ClassVar[list[str]] = [
        "example_input_array", "on_gpu", "current_epoch", "global_step", "global_rank", "local_rank", "logger",
        "loggers", "automatic_optimization", "trainer", "fabric", "strict_loading", "device_mesh", "hparams",
        "hparams_initial", "device", "dtype",
    ]  # fmt: skip
    _trainer_is_required = True  # switched off while TorchScript reads every property
    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # ---- settings
        self._example_input_array: Tensor | tuple[Any, ...] | dict[str, Any] | None = None
        self._automatic_optimization: bool = True
        self._strict_loading: bool | None = None
        self._device_mesh: DeviceMesh | None = None
        # ---- who runs the module
        self._trainer: Trainer | None = None
        self._fabric: Any = None
        # ---- state
        self._requires_grad_before_toggle: dict[Tensor, bool] = {}

    # ---- attached to a run
    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this module.

        Raises:
            RuntimeError: There is none.
        """
        if self._trainer is None and self._fabric is not None:
            return TrainerOfFabric(self._fabric)  # type: ignore[return-value]  # has what a loop of the user's has
        if self._trainer is None and self._trainer_is_required:
            raise RuntimeError(
                f"`{type(self).__name__}` is not attached to a `Trainer`. `self.trainer` can be used once"
                " `trainer.fit(model)` (or validate, test, predict) has begun."
            )
        return self._trainer  # type: ignore[return-value]  # None only for TorchScript

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_trainer"] = trainer  # past torch's slow __setattr__: it is no parameter

    @property
    def fabric(self) -> Any:
        """The Fabric that runs this module, if any."""
        return self._fabric

    @fabric.setter
    def fabric(self, fabric: Any) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_fabric"] = fabric
                if fabric is not None:  # a Trainer of an earlier run no longer has a say
                    module.__dict__["_trainer"] = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer out of pickles and copies."""
        return {**self.__dict__, "_trainer": None, "_fabric": None}

    @property
    def current_epoch(self) -> int:
        """The number of finished training epochs, 0 when not attached."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """The number of optimizer steps taken, 0 when not attached."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """The index of this process among all."""
        owner = self._trainer or self._fabric
        return owner.global_rank if owner is not None else 0

    @property
    def local_rank(self) -> int:
        """The index of this process on its machine."""
        owner = self._trainer or self._fabric
        return owner.local_rank if owner is not None else 0

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def logger(self) -> Logger | None:
        """The first logger of the Trainer."""
        if self._trainer is None and self._fabric is not None:
            return cast("Logger", self._fabric.logger)
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Logger]:
        """All loggers of the Trainer."""
        owner = self._trainer or self._fabric
        return owner.loggers if owner is not None else []

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """The mesh of devices, where the strategy has one, as soon as the processes know each other."""
        if self._device_mesh is None and (owner := self._trainer or self._fabric) is not None:
            return getattr(owner.strategy, "device_mesh", None)
        return self._device_mesh

    # ---- settings
    @property
    def example_input_array(self) -> Tensor | tuple[Any, ...] | dict[str, Any] | None:
        """An input for `forward`, used by the summary, graph logging and export."""
        return self._example_input_array

    @example_input_array.setter
    def example_input_array(self, example: Tensor | tuple[Any, ...] | dict[str, Any] | None) -> None:
        self._example_input_array = example

    @property
    def automatic_optimization(self) -> bool:
        """Whether the Trainer clears gradients, runs backward and steps; set it False to do so by hand."""
        return self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, automatic_optimization: bool) -> None:
        self._automatic_optimization = automatic_optimization

    @property
    def strict_loading(self) -> bool:
        """Whether a checkpoint must hold exactly this module's weights."""
        return True if self._strict_loading is None else self._strict_loading

    @strict_loading.setter
    def strict_loading(self, strict_loading: bool) -> None:
        self._strict_loading = strict_loading

    # ---- what the model does
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output for an input; what it takes and returns is yours."""
        return super().forward(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch.

        Args:
            args: `batch` and, if you name it, `batch_idx`.
            kwargs: Not used by the Trainer.

        Returns:
            The loss as a tensor; a dict with the key `"loss"`; or None to skip the batch.
        """
        rank_zero_warn("`training_step` must be implemented to be used with the Trainer.")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one validation batch (`batch`, `batch_idx`, and `dataloader_idx` for several loaders)."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one test batch."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the predictions for a batch; calls the module with it by default."""
        return self(kwargs.get("batch", args[0] if args else None))

    def configure_callbacks(self) -> Any:
        """Return callbacks that belong to the model; they replace the Trainer's of the same class."""
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return what to optimize with.

        Returns:
            An optimizer; a list of them; `([optimizers], [schedulers])`; a dict with `"optimizer"`, and optionally
            `"lr_scheduler"` (a scheduler, or a dict with `scheduler`, `interval`, `frequency`, `monitor`, `strict`,
            `name`) and `"monitor"`; a list of such dicts (manual optimization); or None.
        """
        rank_zero_warn("`configure_optimizers` must be implemented to be used with the Trainer.")
        return None

    # ---- optimization
    def optimizers(self, use_pl_optimizer: bool = True) -> MODULE_OPTIMIZERS:
        """Return the optimizer(s) in use, for manual optimization.

        Args:
            use_pl_optimizer: Return them wrapped, so that steps respect precision and strategy.

        Returns:
            The only one, or a list.
        """
        if self._trainer is None and self._fabric is not None:
            found: list[Any] = list(self._fabric.optimizers_of(self))
            return found[0] if len(found) == 1 else found
        found = list(self.trainer.wrapped_optimizers if use_pl_optimizer else self.trainer.optimizers)
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> list[LRSchedulerPLType] | LRSchedulerPLType | None:
        """Return the scheduler(s) in use: None, the only one, or a list."""
        configs = self.trainer.lr_scheduler_configs
        if not configs:
            return None
        schedulers = [config.scheduler for config in configs]
        return schedulers[0] if len(schedulers) == 1 else schedulers

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward in manual optimization, with the precision and strategy in use.

        Raises:
            MisconfigurationException: Optimization is automatic.
        """
        if self._trainer is None and self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
            return
        if self.automatic_optimization:
            raise MisconfigurationException(
                "`manual_backward` works only with manual optimization."
                " Set `self.automatic_optimization = False` in `__init__`."
            )
        self.trainer.fit_loop.manual_backward(loss, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of the loss; override it to do so differently."""
        if self._trainer is None and self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the optimizer; override it to step differently, and call `optimizer.step(closure=optimizer_closure)`.

        Args:
            epoch: The current epoch.
            batch_idx: The batch's index in it.
            optimizer: The optimizer.
            optimizer_closure: Runs `training_step` and backward; must be called.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients; override it to do so differently."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients before the optimizer steps; override it to clip differently."""
        self.clip_gradients(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters.

        Args:
            optimizer: The optimizer.
            gradient_clip_val: Bound; the Trainer's by default. Nothing is clipped for 0 or less.
            gradient_clip_algorithm: `"norm"` (total 2-norm) or `"value"`; the Trainer's by default.

        Raises:
            MisconfigurationException: The values differ from those given to the Trainer.
        """
        if self._trainer is None and self._fabric is not None:
            bound = "clip_val" if gradient_clip_algorithm == "value" else "max_norm"
            self._fabric.clip_gradients(self, optimizer, **{bound: gradient_clip_val})
            return
        trainer = self.trainer
        value = _one_of(gradient_clip_val, trainer.gradient_clip_val, "gradient_clip_val")
        algorithm = (
            _one_of(gradient_clip_algorithm, trainer.gradient_clip_algorithm, "gradient_clip_algorithm") or "norm"
        )
        algorithm = str(algorithm).lower()
        if algorithm not in ("norm", "value"):
            raise MisconfigurationException(
                f"`gradient_clip_algorithm={gradient_clip_algorithm!r}` is not known. Use 'norm' or 'value'."
            )
        if value is None:
            return
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        trainer.precision_plugin.clip_gradients(optimizer, value, GradClipAlgorithmType(algorithm))

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step a learning-rate scheduler; override it for schedulers that need more.

        Args:
            scheduler: The scheduler.
            metric: The monitored value, for `ReduceLROnPlateau`.
        """
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def toggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Let only this optimizer's parameters require gradients, until `untoggle_optimizer`."""
        state: dict[Tensor, bool] = {}
        for other in self.trainer.optimizers:
            for parameter in _parameters(other):
                if parameter not in state:
                    state[parameter] = parameter.requires_grad
                    parameter.requires_grad = False
        for parameter in _parameters(optimizer):
            parameter.requires_grad = state.get(parameter, parameter.requires_grad)
        self.__dict__["_requires_grad_before_toggle"] = state

    def untoggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Give the parameters of all other optimizers back what `toggle_optimizer` took."""
        own = set(_parameters(optimizer))
        for parameter, requires_grad in self._requires_grad_before_toggle.items():
            if parameter not in own:
                parameter.requires_grad = requires_grad
        self.__dict__["_requires_grad_before_toggle"] = {}

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> Generator[None, None, None]:
        """Let only this optimizer's parameters require gradients, inside the context."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def freeze(self) -> Self:
        """Stop training all parameters, and switch to evaluation mode."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        return self.eval()

    def unfreeze(self) -> Self:
        """Train all parameters, and switch to training mode."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        return self.train()

    # ---- logging
    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record one value.

        Args:
            name: Its name, the same on every call.
            value: A number, a one-element tensor, or a torchmetrics `Metric`.
            prog_bar: Show it in the progress bar.
            logger: Send it to the loggers; None is True without a warning where there is no logger.
            on_step: Record each step's value. Default: True in training hooks of a batch.
            on_epoch: Record the value reduced over the epoch. Default: True in evaluation and epoch hooks.
            reduce_fx: How values become the epoch's: `"mean"` (weighted by batch size), `"sum"`, `"min"`, `"max"`.
            enable_graph: Keep the autograd graph of the value.
            sync_dist: Reduce the value over processes.
            sync_dist_group: The process group to reduce over.
            add_dataloader_idx: Add `/dataloader_idx_<n>` to the name where there are several evaluation loaders.
            batch_size: Number of samples behind the value; found in the batch by default.
            metric_attribute: Name of the module's attribute that holds the `Metric`; found by default.
            rank_zero_only: Log on the first process only, without synchronisation.

        Raises:
            MisconfigurationException: Nothing can be recorded here, or the arguments exclude each other.
            ValueError: The value is not of an accepted kind.
        """
        trainer = self._trainer
        if trainer is None:
            if self._fabric is None:
                self._warn_not_attached("log")
            else:
                self._fabric.log(name, value)
            return
        trainer.metrics.log(
            name,
            value,
            batch_size,
            (
                prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
                add_dataloader_idx, metric_attribute, rank_zero_only,
            ),
        )  # fmt: skip

    def log_dict(
        self,
        dictionary: Mapping[str, Any] | Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record several values; takes a mapping or a torchmetrics `MetricCollection`, and the arguments of `log`."""
        trainer = self._trainer
        if trainer is None:
            if self._fabric is None:
                self._warn_not_attached("log_dict")
            else:
                self._fabric.log_dict(dict(dictionary))
            return
        options = (
            prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, None, rank_zero_only,
        )  # fmt: skip
        if _is_collection(dictionary):  # without copied states its compute groups stay together
            dictionary = dict(dictionary.items(keep_base=False, copy_state=False))  # type: ignore[call-arg]
        for name, value in dictionary.items():
            trainer.metrics.log(name, value, batch_size, options)

    def _warn_not_attached(self, method: str) -> None:
        _warnings.warn(
            f"`self.{method}` was called on a `{type(self).__name__}` that no Trainer runs; nothing is recorded."
        )

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once over all processes, above the progress bar."""
        if self._trainer is None and self._fabric is not None:
            self._fabric.print(*args, **kwargs)
        elif self._trainer is None:
            print(*args, **kwargs)  # noqa: T201 - that is its purpose
        elif self._trainer.is_global_zero:
            bar = self._trainer.progress_bar_callback
            if bar is not None and getattr(bar, "is_enabled", True):
                bar.print(*args, **kwargs)
            else:
                print(*args, **kwargs)  # noqa: T201 - that is its purpose

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Gather tensors, numbers or collections of them from all processes.

        Args:
            data: What this process contributes.
            group: The process group; all processes by default.
            sync_grads: Let gradients flow through.

        Returns:
            The same structure with a new leading dimension of the world's size, unchanged on a single device.
        """
        if self._trainer is None and self._fabric is not None:
            return self._fabric.all_gather(data, group=group, sync_grads=sync_grads)
        strategy = self.trainer.strategy
        data = apply_to_collection(data, (bool, int, float), torch.tensor, device=strategy.root_device)
        return apply_to_collection(data, Tensor, strategy.all_gather, group=group, sync_grads=sync_grads)

    # ---- batches on their way to the device
    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        device = device or self.device
        hooks = self._trainer.transfer_hooks if self._trainer is not None else None
        before, move, after = hooks or (
            self.on_before_batch_transfer, self.transfer_batch_to_device, self.on_after_batch_transfer,
        )  # fmt: skip
        return after(move(before(batch, dataloader_idx), device, dataloader_idx), dataloader_idx)

    # ---- saving and export
    @saving.class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the module from the hyperparameters and weights in a checkpoint.

        Args:
            checkpoint_path: A path, URL or open file.
            map_location: Where to put the tensors; as saved by default, CPU if that device is absent.
            hparams_file: A `.yaml` or `.csv` file whose values replace the stored hyperparameters.
            strict: Whether the weights must match exactly; the module's `strict_loading` by default.
            weights_only: False also unpickles arbitrary objects: only for files you trust.
            kwargs: Override stored hyperparameters.

        Raises:
            TypeError: Called on an instance.
            ValueError: `strict` contradicts `strict_loading`, or the hparams file is of an unknown kind.
            KeyError: The file is no checkpoint of this kind.
        """
        loaded = saving.load_from_checkpoint(
            cls, checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )
        return cast(Self, loaded)

    def to_onnx(self, file_path: str | Path | Any | None = None, input_sample: Any | None = None, **kwargs: Any) -> Any:
        """Export to ONNX; see `torch.onnx.export` for the keyword arguments."""
        return export.to_onnx(self, file_path, input_sample, **kwargs)

    def to_torchscript(
        self,
        file_path: str | Path | None = None,
        method: str | None = "script",
        example_inputs: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compile to TorchScript by `"script"` or `"trace"`, and save it if a path is given. Deprecated in torch."""
        return export.to_torchscript(self, file_path, method, example_inputs, **kwargs)

    def to_tensorrt(
        self,
        file_path: str | Path | Any | None = None,
        input_sample: Any | None = None,
        ir: str = "default",
        output_format: str = "exported_program",
        retrace: bool = False,
        default_device: str | torch.device = "cuda",
        **compile_kwargs: Any,
    ) -> Any:
        """Compile with Torch-TensorRT, and save it if a path is given."""
        return export.to_tensorrt(
            self, file_path, input_sample, ir, output_format, retrace, default_device, **compile_kwargs
        )


class TrainerOfFabric:
    """What `self.trainer` is in a module that Fabric runs: the attributes that Fabric has, too.

    Args:
        fabric: The Fabric.
    """

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._fabric, name)
        except AttributeError:
            raise AttributeError(
                f"Your LightningModule code tried to access `self.trainer.{name}`, but Fabric runs it, and your own"
                " loop takes the place of a Trainer. Guard the line by `if self.fabric is None`, or keep the value"
                " yourself."
            ) from None


def _one_of(given: Any, trainers: Any, name: str) -> Any:
    if given is None:
        return trainers
    if trainers is not None and given != trainers:
        raise MisconfigurationException(
            f"`clip_gradients({name}={given!r})` differs from `Trainer({name}={trainers!r})`."
            f" Leave it out of one of the two."
        )
    return given


def _parameters(optimizer: Optimizer | LightningOptimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_collection(value: Any) -> bool:
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.MetricCollection)

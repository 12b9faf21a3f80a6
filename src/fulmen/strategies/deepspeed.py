"""Training with DeepSpeed: optimizer states, gradients and parameters divided among processes, or kept in host memory.

In fit:   optimizers -> `init_deepspeed`: an engine around the module, which owns weights, gradients and the step
A step:   engine(training_step) -> engine.backward, once per batch -> engine.step, once per window
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.plugins.precision.deepspeed import DeepSpeedPrecision
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.deepspeed_config import (
    ARGUMENTS,
    NAMES,
    check_config,
    checked_remote_device,
    complete_config,
    config_from_arguments,
    read_config,
)
from fulmen.strategies.deepspeed_engine import (
    begin_manual_backward,
    gradients_scaled,
    plain_optimizer,
    rank_in_environment,
    refusals_explained,
    release_engine,
    use_names_of_torch,
)
from fulmen.strategies.deepspeed_keeping import DeepSpeedKeeping
from fulmen.strategies.process_group import DEFAULT_TIMEOUT
from fulmen.strategies.route import Redirection
from fulmen.utilities.deepspeed import check_installed, installed_version, load_package
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.types import LRSchedulerConfig

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.utilities.registry import Registry
    from fulmen.utilities.types import _PATH

__all__ = ["DeepSpeedStrategy"]

_PRECISIONS = ("32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed")


class DeepSpeedStrategy(DeepSpeedKeeping):
    """Trains with DeepSpeed's ZeRO, on the package `deepspeed`: `pip install 'fulmen[deepspeed]'`.

    Stage 1 divides the states of the optimizer among the processes, stage 2 the gradients too, stage 3 the parameters
    too. There is one optimizer and at most one scheduler. Gradients are not in `parameter.grad`, and are clipped by
    DeepSpeed, by norm. Checkpoints are folders; `fulmen consolidate` makes a file with the weights of one.

    Give either `config`, or the arguments it is made of; see https://www.deepspeed.ai/docs/config-json. Sizes are
    numbers of values unless said otherwise.

    Args:
        accelerator: The kind of hardware; GPUs, or the CPU for trying things out.
        zero_optimization: Divide anything at all; False is stage 0.
        stage: 1, 2 or 3; 0 divides nothing.
        remote_device: Where stage 3 makes new parameters: "cpu", "nvme", or the device (None).
        offload_optimizer: Keep the states of the optimizer, and step, outside of the GPU.
        offload_parameters: Keep parameters outside of the GPU while they are not used; stage 3.
        offload_params_device: Where parameters are kept: "cpu" or "nvme".
        nvme_path: Folder on the disk for "nvme".
        params_buffer_count: Buffers for parameters on "nvme".
        params_buffer_size: Size of each.
        max_in_cpu: Values of parameters that stay in host memory with "nvme".
        offload_optimizer_device: Where the states of the optimizer are kept: "cpu" or "nvme".
        optimizer_buffer_count: Buffers for them on "nvme".
        block_size: Bytes of a read from "nvme".
        queue_depth: Reads at once.
        single_submit: Submit reads one by one.
        overlap_events: Overlap submitting and waiting.
        thread_count: Threads per read.
        pin_memory: Use page-locked host memory, which is faster and takes more.
        sub_group_size: Values per step of the optimizer, with offload.
        contiguous_gradients: Copy gradients to one buffer as they come.
        overlap_comm: Exchange gradients during the backward pass; not in stage 1.
        allgather_partitions: Collect parameters by all-gather, not by broadcasts.
        reduce_scatter: Average gradients by reduce-scatter, not by all-reduce.
        allgather_bucket_size: Values per all-gather.
        reduce_bucket_size: Values per exchange of gradients.
        zero_allow_untested_optimizer: Take optimizers that DeepSpeed has not tried.
        logging_batch_size_per_gpu: Samples in the batch of a process, for DeepSpeed's logs; "auto" looks at the loader.
        config: DeepSpeed's configuration as a dict, or the path of a JSON file; else the file that the variable
            `PL_DEEPSPEED_CONFIG_PATH` names, if it is set.
        logging_level: Of DeepSpeed's logger.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        loss_scale: Factor of the loss in float16; 0: found while training.
        initial_scale_power: It begins with 2 to this power.
        loss_scale_window: Steps without overflow after which it is doubled.
        hysteresis: Overflows before it is halved.
        min_loss_scale: Its least value.
        partition_activations: Divide the activations of checkpointed layers, by `deepspeed.checkpointing`.
        cpu_checkpointing: Keep them in host memory.
        contiguous_memory_optimization: Keep them in one buffer.
        synchronize_checkpoint_boundary: Wait for the device at each checkpointed layer.
        load_full_weights: Checkpoints to load are files with whole weights; the optimizer starts anew.
        precision_plugin: The number format, a `DeepSpeedPrecision`; 32 bit by default.
        process_group_backend: "nccl", "gloo", ...; by default torch's choice for the device.
        timeout: How long a collective waits for the other processes.
        exclude_frozen_parameters: Leave parameters that are not trained out of checkpoints.

    Raises:
        ValueError: A value is not possible, or `config` and arguments are given.
        MisconfigurationException: There is no file `config`.
        ModuleNotFoundError: DeepSpeed is not installed.

    Example::

        Trainer(accelerator="gpu", devices=4, precision="bf16-mixed", strategy=DeepSpeedStrategy(stage=3))
    """

    strategy_name = "deepspeed"
    DEEPSPEED_ENV_VAR: ClassVar[str] = "PL_DEEPSPEED_CONFIG_PATH"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        zero_optimization: bool = True,
        stage: int = 2,
        remote_device: str | None = None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_params_device: str = "cpu",
        nvme_path: str = "/local_nvme",
        params_buffer_count: int = 5,
        params_buffer_size: int = 100_000_000,
        max_in_cpu: int = 1_000_000_000,
        offload_optimizer_device: str = "cpu",
        optimizer_buffer_count: int = 4,
        block_size: int = 1048576,
        queue_depth: int = 8,
        single_submit: bool = False,
        overlap_events: bool = True,
        thread_count: int = 1,
        pin_memory: bool = False,
        sub_group_size: int = 1_000_000_000_000,
        contiguous_gradients: bool = True,
        overlap_comm: bool = True,
        allgather_partitions: bool = True,
        reduce_scatter: bool = True,
        allgather_bucket_size: int = 200_000_000,
        reduce_bucket_size: int = 200_000_000,
        zero_allow_untested_optimizer: bool = True,
        logging_batch_size_per_gpu: str | int | None = "auto",
        config: _PATH | dict[str, Any] | None = None,
        logging_level: int = logging.WARN,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        loss_scale: float = 0,
        initial_scale_power: int = 16,
        loss_scale_window: int = 1000,
        hysteresis: int = 2,
        min_loss_scale: int = 1,
        partition_activations: bool = False,
        cpu_checkpointing: bool = False,
        contiguous_memory_optimization: bool = False,
        synchronize_checkpoint_boundary: bool = False,
        load_full_weights: bool = False,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        exclude_frozen_parameters: bool = False,
    ) -> None:
        arguments = locals()
        given = {name: arguments[name] for name in ARGUMENTS}
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            precision_plugin=precision_plugin or DeepSpeedPrecision("32-true"),
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        if precision_plugin is None:
            self._chosen.discard("precision_plugin")
        # settings
        self.config: dict[str, Any] = self._choose_config(config, given)
        self.remote_device = checked_remote_device(remote_device)
        self.exclude_frozen_parameters = exclude_frozen_parameters
        self.load_full_weights = load_full_weights
        self.loss_scale = loss_scale
        self.initial_scale_power = initial_scale_power
        self.loss_scale_window = loss_scale_window
        self.hysteresis = hysteresis
        self.min_loss_scale = min_loss_scale
        self._batch_size = logging_batch_size_per_gpu
        self._logging_level = logging_level
        check_installed(for_=type(self).__name__)
        # state
        self._engines: list[Any] = []
        self._scale = 1.0  # what gradients are to be multiplied by before the step
        self._is_of_trainer = False
        self._trains = False
        self._torch_linear: Callable[..., Tensor] = nn.functional.linear

    def _choose_config(self, config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        defaults = inspect.signature(DeepSpeedStrategy.__init__).parameters
        changed = sorted(name for name, value in given.items() if value != defaults[name].default)
        if config is not None and changed:
            raise ValueError(
                f"`DeepSpeedStrategy` got a `config` and {changed}, and both say the same kind of things. Write these"
                " into the config, or leave it out."
            )
        path = os.environ.get(self.DEEPSPEED_ENV_VAR)
        if config is None and path:
            if changed:
                rank_zero_warn(
                    f"The variable `{self.DEEPSPEED_ENV_VAR}` names a config of DeepSpeed, {path!r}, which counts in"
                    f" place of the arguments {changed} of `DeepSpeedStrategy`. Unset it to use those."
                )
            config = path
        if config is None:
            return config_from_arguments(given)
        chosen = read_config(config)
        check_config(chosen, installed_version())
        return chosen

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its names.

        Args:
            strategy_registry: Where to enter it.
        """
        for name, arguments in NAMES.items():
            what = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            strategy_registry.register(name, cls, description=f"DeepSpeed with {what or 'stage=2'}", **arguments)

    @property
    def _deepspeed_precision(self) -> DeepSpeedPrecision:
        precision = self.precision_plugin
        assert isinstance(precision, DeepSpeedPrecision)  # noqa: S101 - `complete` has refused others
        return precision

    def complete(self, **parts: Any) -> None:
        """Fill in the parts that did not come with the strategy; see `Strategy.complete`.

        Args:
            parts: The parts by name.

        Raises:
            MisconfigurationException: The number format is not DeepSpeed's, or checkpoints are to be written in
                another way than DeepSpeed writes them.
        """
        super().complete(**parts)
        precision = self.precision_plugin
        if type(precision) is Precision:
            self._precision_plugin = precision = DeepSpeedPrecision("32-true")
        if not isinstance(precision, DeepSpeedPrecision):
            raise MisconfigurationException(
                f"`DeepSpeedStrategy` and the plugin {precision!r} exclude each other: DeepSpeed converts weights and"
                f" scales the loss itself. Pass `precision=...`, one of {_PRECISIONS}, or a `DeepSpeedPrecision`."
            )
        if type(self.checkpoint_io) is not TorchCheckpointIO:
            raise MisconfigurationException(
                f"`DeepSpeedStrategy` and the plugin {self.checkpoint_io!r} exclude each other: DeepSpeed writes its"
                " checkpoints itself, as folders. Leave the plugin out."
            )

    # ---- what it is

    @property
    def deepspeed_engine(self) -> Any:
        """DeepSpeed's engine around the module of the run."""
        return self._model

    @property
    def handles_gradient_accumulation(self) -> bool:
        """True: the engine adds gradients up; when it steps, the Trainer says."""
        return True

    @property
    def averages_gradients_plainly(self) -> bool:
        """False: gradients are not in `parameter.grad`."""
        return False

    @property
    def takes_one_optimizer(self) -> bool:
        """True: an engine has one."""
        return True

    @property
    def allows_inference_mode(self) -> bool:
        """False in stage 3: what is gathered in inference mode could not be used for training later."""
        return not self.zero_stage_3

    @property
    def needs_shadow_steps(self) -> bool:
        """True in stage 3: a forward pass of one rank needs the parts of all."""
        return self.zero_stage_3

    # ---- set-up

    def setup_environment(self) -> None:
        """Make the device ready, join the other processes, and let DeepSpeed talk over their process group."""
        super().setup_environment()
        package = self._package()
        self._torch_linear = nn.functional.linear
        with rank_in_environment(self):
            package.init_distributed(self.process_group_backend, verbose=False)
        use_names_of_torch(package)

    def _package(self) -> ModuleType:
        return load_package(self.root_device, logging_level=self._logging_level)

    def setup(self, trainer: Any) -> None:
        """Prepare the module: convert, make the optimizer, and wrap both in an engine.

        Args:
            trainer: The running Trainer.
        """
        self._is_of_trainer = True
        self.accelerator.setup(trainer)
        self._model = self.precision_plugin.convert_module(self._model)
        fn = str(getattr(trainer.state.fn, "value", trainer.state.fn))
        self._trains = fn == "fit"
        if self._trains:
            self._check_trainer(trainer)
            self._has_synced_layers = self.layer_sync is not None
            self._apply_layer_sync()
            self.setup_optimizers(trainer)
            self.init_deepspeed()
        else:
            self._model = self.setup_module(self._model)
        self.setup_precision_plugin()

    def setup_optimizers(self, trainer: Any) -> None:
        """Take the optimizer and scheduler that the user configured; the config of DeepSpeed may have them instead.

        Args:
            trainer: The running Trainer; its `configured_optimizers()` returns both.

        Raises:
            MisconfigurationException: There are several, or none.
        """
        self._optimizers, self.lr_scheduler_configs = trainer.configured_optimizers()
        if len(self._optimizers) > 1 or len(self.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                "DeepSpeed currently only supports single optimizer, single optional scheduler, but"
                f" `configure_optimizers` returned {len(self._optimizers)} optimizer(s) and"
                f" {len(self.lr_scheduler_configs)} scheduler(s), and manual optimization changes nothing about it."
                " Give one optimizer several parameter groups instead, or choose `strategy='fsdp'`."
            )
        if not self._optimizers and "optimizer" not in self.config:
            raise MisconfigurationException(
                "DeepSpeed trains with an optimizer, but `configure_optimizers` returned none. Return one, or write"
                " one into DeepSpeed's config."
            )
        if self._optimizers and "optimizer" in self.config:
            raise MisconfigurationException(
                "`configure_optimizers` returned an optimizer, and DeepSpeed's config has one, too. Remove one."
            )

    def _check_trainer(self, trainer: Any) -> None:
        if trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm") == "value":
            raise MisconfigurationException(
                f"`Trainer(gradient_clip_algorithm='value', gradient_clip_val={trainer.gradient_clip_val!r})` is not"
                " offered by DeepSpeed, which clips by the norm of all gradients. Choose"
                " `gradient_clip_algorithm='norm'`."
            )

    def init_deepspeed(self) -> None:
        """Wrap the module of the run and its optimizer in an engine."""
        optimizer = self._optimizers[0] if self._optimizers else None
        engine = self._make_engine(self._model, optimizer)
        self._model = engine
        self._optimizers = [engine.optimizer]
        if engine.lr_scheduler is not None:  # of the config; the Trainer steps it
            config = LRSchedulerConfig(engine.lr_scheduler, interval="step")
            engine.lr_scheduler, self.lr_scheduler_configs = None, [config]

    def _make_engine(self, module: nn.Module, optimizer: Any, scheduler: Any = None) -> Any:
        package, device = self._package(), self.root_device
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        config = self._completed_config()
        with rank_in_environment(self), refusals_explained(package, config):
            engine, _, _, _ = package.initialize(
                args=argparse.Namespace(device_rank=device.index) if device.type != "cpu" else None,
                model=module,
                model_parameters=parameters,
                optimizer=optimizer,
                lr_scheduler=scheduler,
                config=config,
                dist_init_required=False,
            )
        self._engines.append(engine)
        self._deepspeed_precision.clips_to = float(engine.gradient_clipping())
        return engine

    def _completed_config(self) -> dict[str, Any]:
        trainer = getattr(self._lightning_module, "_trainer", None) if self._is_of_trainer else None
        return complete_config(
            self.config,
            precision=self.precision_plugin.precision,
            scaler=vars(self),
            micro_batch_size=self._micro_batch_size(trainer),
            clip_val=None if trainer is None else trainer.gradient_clip_val,
            for_trainer=self._is_of_trainer,
            loader_batch_size=_loader_batch_size(trainer) if self._trains else None,
            num_micro_batches=self.world_size * (1 if trainer is None else trainer.accumulate_grad_batches),
        )

    def _micro_batch_size(self, trainer: Any) -> int:
        return self._batch_size if isinstance(self._batch_size, int) else _loader_batch_size(trainer) or 1

    @property
    def model(self) -> Any:
        """The engine; before it is made, the user's module."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model

    # ---- modules

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Prepare a module without an optimizer, which is not trained: in stage 3, divide its parameters.

        Args:
            module: The module.

        Returns:
            The engine in stage 3, else the module.
        """
        if self.zero_stage_3:
            return self._make_engine(module, None)  # type: ignore[no-any-return]  # of DeepSpeed
        self.module_to_device(module)
        self.broadcast_module(module)
        return module

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any | None = None
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """Wrap a module and its optimizer in an engine.

        Args:
            module: The module.
            optimizers: Its optimizer.
            scheduler: A scheduler that the engine steps.

        Returns:
            The engine, the optimizer that steps it, and the scheduler.

        Raises:
            ValueError: There are several optimizers.
        """
        if len(optimizers) != 1:
            raise ValueError(
                f"Currently only one optimizer is supported with DeepSpeed. Got {len(optimizers)} optimizers instead."
                " Give one optimizer several parameter groups."
            )
        engine = self._make_engine(module, optimizers[0], scheduler)
        self._model = engine
        return engine, [engine.optimizer], engine.lr_scheduler

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Refuse: DeepSpeed needs the module and the optimizer together.

        Args:
            optimizer: The optimizer.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"The `{type(self).__name__}` does not support setting up the module and optimizer(s) independently, since"
            " its engine holds both. Please call `setup(model, optimizer)`."
        )

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device of this process; one in shards is there already.

        Args:
            module: The module; moved in place.
        """
        if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
            super().module_to_device(module)

    def model_sharded_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new layers are divided at once, in stage 3: no process ever holds the module."""
        return self.module_sharded_context()

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new layers are divided at once, in stage 3; see `deepspeed.zero.Init`."""
        return self._made_in_shards() if self.zero_stage_3 else nullcontext()

    @contextmanager
    def _made_in_shards(self) -> Iterator[None]:
        with rank_in_environment(self):
            context = self._package().zero.Init(
                remote_device=self.remote_device,
                pin_memory=True,
                config_dict_or_path=self._completed_config(),
            )
        with context:
            yield

    @contextmanager
    def _made_in_place(self, dtype: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        with super()._made_in_place(dtype, empty_init), self.module_sharded_context():
            yield

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which new tensors have the right type; DeepSpeed moves what it takes.

        Args:
            empty_init: Not used: DeepSpeed fills its parameters.
        """
        return self.precision_plugin.tensor_init_context()

    # ---- step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `training_step` through the engine."""
        module = self._lightning_module
        if not getattr(module, "automatic_optimization", True):  # it calls `forward` and `backward` by turns
            return module.training_step(*args, **kwargs)
        return self._through_engine(module.training_step, *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `validation_step` through the engine."""
        return self._through_engine(self._lightning_module.validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `test_step` through the engine."""
        return self._through_engine(self._lightning_module.test_step, *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `predict_step` through the engine."""
        return self._through_engine(self._lightning_module.predict_step, *args, **kwargs)

    def _through_engine(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module, engine = self._lightning_module, self._model
        if engine is module:
            return method(*args, **kwargs)
        with Redirection(module, method):
            return engine(*args, **kwargs)

    def run_backward(self, tensor: Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Let the engine compute gradients.

        Args:
            tensor: The loss.
            module: The module or engine that it came from; not needed if there is one engine.
            args: Further arguments of the engine's `backward`.
            optimizer: Not used.
            kwargs: Further arguments of the engine's `backward`.

        Raises:
            RuntimeError: There are several engines, or none.
        """
        engine = self._engine_of(module)
        if self._is_of_trainer:
            kwargs.setdefault("scale_wrt_gas", False)  # the loop divides
            if not self._lightning_module.automatic_optimization:
                begin_manual_backward(engine, tensor)
        self.precision_plugin.backward(tensor, engine, optimizer, *args, **kwargs)

    def _engine_of(self, module: Any) -> Any:
        if (engine := self._engine_around(module)) is not None:
            return engine
        trained = [engine for engine in self._engines if engine.optimizer is not None]
        if len(trained) == 1:
            return trained[0]
        if not trained:
            raise RuntimeError(
                "There is no engine of DeepSpeed that could compute gradients. Set module and optimizer up together:"
                " `model, optimizer = fabric.setup(model, optimizer)`."
            )
        raise RuntimeError(
            "When using multiple models + deepspeed, please provide the model used to perform the optimization:"
            f" there are {len(trained)}. Call `fabric.backward(loss, model=model)`."
        )

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context that does nothing: the engine adds gradients up until the optimizer steps.

        Args:
            module: The engine.
            enabled: Not used.
        """
        return nullcontext()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """Return a context that does nothing: the engine adds gradients up until the optimizer steps."""
        return nullcontext()

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Let the engine update its parameters: exchange gradients, clip, step, clear.

        Args:
            optimizer: That of the engine.
            closure: Computes gradients; without it they are there already.
            model: Not used.
            kwargs: Further arguments of the engine's `step`.

        Returns:
            What the closure returned.
        """
        result = None if closure is None else closure()
        engine = next((one for one in self._engines if one.optimizer is optimizer), None) or self._engine_of(None)
        with gradients_scaled(engine, self._scale):
            engine.step(**kwargs)
        self._scale = 1.0
        return result

    def average_accumulated(self) -> bool:
        """Return True: the engine averages gradients when it steps, whatever was accumulated."""
        return True

    def scale_gradients(self, optimizer: Any, factor: float) -> None:
        """Have the gradients multiplied by a number at the next step; they are in DeepSpeed's own buffers.

        Args:
            optimizer: That of the engine.
            factor: The number.
        """
        self._scale *= factor

    def clip_gradients_norm(
        self,
        module: Any,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Refuse: the engine clips when it steps.

        Args:
            module: The engine.
            optimizer: Its optimizer.
            max_norm: The bound.
            norm_type: Which norm.
            error_if_nonfinite: Not used.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "DeepSpeed handles gradient clipping automatically within the optimizer, as gradients of other processes"
            f" are not at hand here. Leave this call out and set it in the config: `DeepSpeedStrategy(config={{...,"
            f" 'gradient_clipping': {max_norm!r}}})`."
        )

    def clip_gradients_value(self, module: Any, optimizer: Optimizer, clip_val: float) -> None:
        """Refuse: DeepSpeed clips by norm only.

        Args:
            module: The engine.
            optimizer: Its optimizer.
            clip_val: The bound.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"DeepSpeed does not clip by value (`clip_val={clip_val!r}`). Clip by norm, in the config:"
            " `DeepSpeedStrategy(config={..., 'gradient_clipping': 1.0})`."
        )

    # ---- end

    def teardown(self) -> None:
        """Let the engines go; in stage 3, the module's parameters stay divided, for the next run with DeepSpeed."""
        for engine in self._engines:
            release_engine(engine)
        self._engines.clear()
        self._optimizers = [plain_optimizer(optimizer) for optimizer in self._optimizers]
        nn.functional.linear = self._torch_linear  # stage 3 has one of its own, for all modules of the process
        super().teardown()


def _loader_batch_size(trainer: Any) -> int | None:
    """Return the samples of a batch of a process, if the training loader was given and says so."""
    loader = None if trainer is None else trainer.sources.given.get("train")
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else None

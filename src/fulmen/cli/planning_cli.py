"""The objects of `fulmen plan`: as `fulmen fit` makes them, but the module without memory, and for any machine."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.cli.lightning_cli import LightningCLI
from fulmen.core.module import LightningModule
from fulmen.planning.imagined import ImaginedCluster
from fulmen.planning.values import PlanError
from fulmen.trainer.planning import WITHOUT_LAYER_SYNC, planned_precision, without_news
from fulmen.trainer.trainer import Trainer

__all__ = ["PlanningCLI"]

_OF_FIT = ("ckpt_path", "weights_only")  # stand in files for `fulmen fit`, and make no difference here


class PlanningCLI(LightningCLI):
    """Makes module, data and Trainer, and runs nothing.

    Args:
        num_nodes: Number of machines.
        devices: Devices of each.
        is_on_meta: Make the module on "meta".

    Attributes:
        notes: What is planned in another way than it is configured.
    """

    def __init__(self, *, num_nodes: int, devices: int, is_on_meta: bool) -> None:
        self._num_nodes = num_nodes
        self._devices = devices
        self._is_on_meta = is_on_meta
        self.notes: list[str] = []
        self._refusal: PlanError | None = None
        super().__init__(save_config_callback=None, seed_everything_default=False, run=False)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Accept what stands in files for `fulmen fit`.

        Args:
            parser: To be changed.
        """
        for name in _OF_FIT:
            parser.add_argument(f"--{name}", default=None, help="has no effect on a plan")

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer.

        Raises:
            PlanError: The module needs memory to be made.
        """
        try:
            super().instantiate_classes()
        except ValueError:  # in which jsonargparse wraps what a class raises
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def _instantiators(self) -> list[tuple[Any, type, bool]]:
        instantiators = super()._instantiators()
        return [
            (self._without_memory(make), kind, subclasses) if kind is LightningModule else (make, kind, subclasses)
            for make, kind, subclasses in instantiators
        ]

    def _without_memory(self, make: Any) -> Any:
        # jsonargparse passes the links to those who name them
        def made(cls: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
            kwargs["applied_instantiation_links"] = applied_instantiation_links
            if not self._is_on_meta:
                return make(cls, *args, **kwargs)
            try:
                with torch.device("meta"):
                    return make(cls, *args, **kwargs)
            except (RuntimeError, NotImplementedError) as error:
                if "meta" not in str(error):
                    raise
                self._refusal = PlanError(
                    f"`{cls.__name__}.__init__` computes with the values of its tensors, which are not there: the"
                    f" module is made without memory ({error}). Make them with `device='cpu'`; or pass `--real-init`,"
                    " if the module fits into the memory of this machine."
                )
                raise self._refusal from error

        return made

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer of the configuration, for machines that are not there and without what writes files.

        Args:
            kwargs: Arguments of the Trainer that replace configured ones.
        """
        configured = dict(vars(self.get(self.config_init, "trainer")))
        plugins = configured.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        precision = configured.get("precision")
        if configured.get("sync_batchnorm"):
            self.notes.append(WITHOUT_LAYER_SYNC)
        planned: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": self._devices,
            "num_nodes": self._num_nodes,
            "plugins": [*plugins, ImaginedCluster(self._num_nodes * self._devices)],
            "precision": None if precision is None else planned_precision(str(precision), self.notes),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "sync_batchnorm": False,
        }
        with without_news():  # which devices this machine has
            return super().instantiate_trainer(**{**planned, **kwargs})

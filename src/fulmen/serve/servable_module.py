"""ServableModule: how a module answers a request of JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["ServableModule"]


class ServableModule(ABC, nn.Module):
    """What a module writes to be served: how to read a request, answer it, and write the answer; and an example.

    Derive a `LightningModule` from it as well, and let `ServableModuleValidator` try it before training.

    Example::

        class Served(LightningModule, ServableModule):
            def configure_payload(self):
                return {"body": {"x": [1.0, 2.0]}}

            def configure_serialization(self):
                return {"x": torch.tensor}, {"y": Tensor.tolist}

            def serve_step(self, x):
                return {"y": self(x)}

            def configure_response(self):
                return {"y": [0.0, 0.0]}
    """

    @abstractmethod
    def configure_payload(self) -> dict[str, Any]:
        """Return an example of a request, as JSON can hold it; the arguments are under the key "body"."""

    @abstractmethod
    def configure_serialization(self) -> tuple[dict[str, Callable[[Any], Any]], dict[str, Callable[[Any], Any]]]:
        """Return two dicts: functions that read arguments of `serve_step`, and that write what it returns, by name."""

    @abstractmethod
    def serve_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer a request; gets its arguments by name and returns the parts of the answer by name."""

    @abstractmethod
    def configure_response(self) -> dict[str, Any]:
        """Return the answer that is right for the example of `configure_payload`."""

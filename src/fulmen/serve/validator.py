"""ServableModuleValidator: a module that cannot be served is found out before hours of training."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen.callbacks.sharding import check_takes_whole
from fulmen.core.callback import Callback
from fulmen.serve.servable_module import ServableModule
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.utilities.seed import isolate_rng

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["Response", "ServableModuleValidator"]


@dataclass(frozen=True, slots=True)
class Response:
    """What the server answered.

    Attributes:
        status_code: As of HTTP; 200 is good.
        text: What was sent.
    """

    status_code: int
    text: str

    def json(self) -> Any:
        """Return what was sent, read as JSON."""
        return json.loads(self.text)


class ServableModuleValidator(Callback):
    """Serves the module for a moment when training begins, sends it its example and compares the answer.

    On rank 0, on this machine: a server of Python's own answers `POST /serve` and `GET /ping`, as that of a deployment
    does. The module is in evaluation mode meanwhile; modes and random numbers are put back.

    Args:
        optimization: Only None: nothing is exported or scripted before.
        server: Only "fastapi": requests and answers are as there; that package is not needed.
        host: Name or address to listen at.
        port: Port to listen at; 0 takes a free one.
        timeout: How long an answer may take, in seconds.
        exit_on_failure: Raise when the check fails; else warn and train.

    Example::

        Trainer(callbacks=[ServableModuleValidator()])
    """

    def __init__(
        self,
        optimization: Literal["trace", "script", "onnx", "tensorrt"] | None = None,
        server: Literal["fastapi", "ml_server", "torchserve", "sagemaker"] = "fastapi",
        host: str = "127.0.0.1",
        port: int = 8080,
        timeout: int = 20,
        exit_on_failure: bool = True,
    ) -> None:
        if optimization is not None:
            raise ValueError(
                f"`ServableModuleValidator(optimization={optimization!r})` is not supported: the module is served as it"
                " is. Leave it out, and use `to_torchscript`, `to_onnx` or `to_tensorrt` to export."
            )
        if server != "fastapi":
            raise ValueError(
                f"`ServableModuleValidator(server={server!r})` is not supported: the check speaks as a FastAPI server"
                " does. Choose `server='fastapi'`."
            )
        # settings
        self.optimization = optimization
        self.server = server
        self.host = host
        self.port = port
        self.timeout = timeout
        self.exit_on_failure = exit_on_failure
        # state
        self.resp: Response | None = None

    @property
    def successful(self) -> bool | None:
        """Whether the module answered; None before it was asked."""
        return None if self.resp is None else self.resp.status_code == 200

    def on_train_start(self, trainer: Trainer, servable_module: LightningModule) -> None:
        """Serve the module, send its example, compare the answer.

        Args:
            trainer: The running Trainer.
            servable_module: The module.

        Raises:
            MisconfigurationException: The module cannot be served, or answers differently from what it says.
        """
        if not isinstance(servable_module, ServableModule):
            raise MisconfigurationException(
                f"`ServableModuleValidator` needs a `ServableModule`, and `{type(servable_module).__name__}` is none."
                " Derive it from both: `class Model(LightningModule, ServableModule)`."
            )
        check_takes_whole(
            trainer, "ServableModuleValidator", "serves whole weights", "Train with `strategy='ddp'` or on one device."
        )
        if not trainer.is_global_zero:
            return
        problem = self._ask(servable_module)
        if problem is None:
            rank_zero_info(f"`{type(servable_module).__name__}` can be served: it answered its example as it says.")
        elif self.exit_on_failure:
            raise MisconfigurationException(problem)
        else:
            rank_zero_warn(problem)

    def _ask(self, module: ServableModule) -> str | None:
        """Return what is wrong, or None."""
        name, payload = type(module).__name__, module.configure_payload()
        if "body" not in payload:
            return (
                f"`{name}.configure_payload()` has no 'body' but {sorted(payload)}: arguments are looked for there."
                ' Return `{"body": {...}}`.'
            )
        with _in_evaluation_mode(module), isolate_rng(), _served(module, self.host, self.port) as address:
            try:
                self.resp = _post(address, payload, self.timeout)
            except (OSError, http.client.HTTPException) as error:
                return (
                    f"`{name}` gave no answer within `timeout={self.timeout}` seconds: {type(error).__name__}: {error}."
                    " Raise `timeout`, or make `serve_step` faster."
                )
        if not self.successful:
            return f"`{name}` could not answer its own example. Correct what failed there:\n{self.resp.text}"
        expected, answer = module.configure_response(), self.resp.json()
        if answer != expected:
            return (
                f"`{name}` answered its example with {answer!r}, and `configure_response()` says {expected!r}. Correct"
                " `serve_step`, or the expected answer."
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return whether the module answered, and how it was asked."""
        return {"successful": self.successful, "optimization": self.optimization, "server": self.server}


@contextlib.contextmanager
def _in_evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode


# ---- the server, and who asks it


@contextlib.contextmanager
def _served(module: ServableModule, host: str, port: int) -> Iterator[tuple[str, int]]:
    deserializers, serializers = module.configure_serialization()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        arguments = {name: deserializers.get(name, _as_it_is)(value) for name, value in request["body"].items()}
        with torch.no_grad():  # the handler's thread has none of this one's
            parts = module.serve_step(**arguments)
        return {name: serializers.get(name, _as_it_is)(value) for name, value in parts.items()}

    try:
        server = ThreadingHTTPServer((host, port), _handler(answer))
    except OSError as error:
        raise MisconfigurationException(
            f"`ServableModuleValidator(host={host!r}, port={port})` cannot listen there: {error}. Choose another port;"
            " 0 takes a free one."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield host, server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _as_it_is(value: Any) -> Any:
    return value


def _handler(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"status": "ok"}) if self.path == "/ping" else self._send(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            if self.path != "/serve":
                self._send(404, {"detail": "Not Found"})
                return
            try:
                found: tuple[int, Any] = 200, answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            except Exception:  # of the user's code: the validator shows it
                found = 500, traceback.format_exc()
            with contextlib.suppress(ConnectionError):  # the validator waits no longer
                self._send(*found)

        def _send(self, status: int, content: Any) -> None:
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/plain")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Keep the terminal for the training."""

    return Requests


def _post(address: tuple[str, int], payload: dict[str, Any], timeout: float) -> Response:
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("POST", "/serve", json.dumps(payload), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Response(response.status, response.read().decode())
    finally:
        connection.close()

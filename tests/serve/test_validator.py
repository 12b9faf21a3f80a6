"""ServableModuleValidator: the module is asked before training, and what is wrong is said."""

from __future__ import annotations

import http.client
import socket
import threading
import time

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulmen import Trainer
from fulmen.demos.boring_classes import BoringModel, RandomDataset
from fulmen.serve import ServableModule, ServableModuleValidator
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet


class Served(BoringModel, ServableModule):
    def configure_payload(self):
        return {"body": {"x": [0.0] * 32}}

    def configure_serialization(self):
        return {"x": torch.tensor}, {"sums": Tensor.tolist}

    def serve_step(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"sums": self(x) * 0 + torch.rand(1) * 0, "kind": "sums"}

    def configure_response(self):
        return {"sums": [0.0, 0.0], "kind": "sums"}


def fit(tmp_path, model, **settings):
    validator = ServableModuleValidator(**{"port": 0, **settings})
    trainer = Trainer(callbacks=validator, limit_train_batches=1, limit_val_batches=0, **quiet(tmp_path))
    trainer.fit(model, DataLoader(RandomDataset(32, 2)))
    return validator


def test_a_module_that_answers_as_it_says_is_trained(tmp_path) -> None:
    model = Served()
    modes = [each.training for each in model.modules()]
    state = torch.get_rng_state()
    validator = ServableModuleValidator(port=0)
    assert validator.successful is None
    validator.on_train_start(Trainer(**quiet(tmp_path)), model)

    assert validator.successful is True
    assert validator.resp is not None
    assert validator.resp.json() == model.configure_response()
    assert validator.state_dict() == {"successful": True, "optimization": None, "server": "fastapi"}
    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert fit(tmp_path, model).successful is True


class Failing(Served):
    def serve_step(self, x):
        raise KeyError("no such word")


class Wrong(Served):
    def configure_response(self):
        return {"sums": [1.0, 1.0]}


class WithoutBody(Served):
    def configure_payload(self):
        return {"x": [0.0]}


class Slow(Served):
    def serve_step(self, x):
        time.sleep(1)
        return {}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Failing, r"could not answer its own example(.|\n)*KeyError: 'no such word'"),
        (Wrong, r"says {'sums': \[1.0, 1.0\]}"),
        (WithoutBody, "has no 'body'"),
        (Slow, "no answer within `timeout=0.1` seconds"),
        (BoringModel, "needs a `ServableModule`"),
    ],
)
def test_a_module_that_cannot_be_served_is_refused(tmp_path, model, message) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, model(), timeout=0.1 if model is Slow else 20)


def test_or_is_trained_with_a_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match="no such word"):
        validator = fit(tmp_path, Failing(), exit_on_failure=False)

    assert validator.successful is False


def test_a_port_that_is_taken_is_named(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MisconfigurationException, match=f"port={port}"):
            fit(tmp_path, Served(), port=port)


@pytest.mark.parametrize("settings", [{"optimization": "trace"}, {"server": "torchserve"}])
def test_what_is_not_supported_is_refused(settings) -> None:
    with pytest.raises(ValueError, match="is not supported"):
        ServableModuleValidator(**settings)


class Curious(Served):
    """Asks the server itself while it answers."""

    def serve_step(self, x):
        (server,) = [each for each in threading.enumerate() if "serve_forever" in each.name]
        port = server._target.__self__.server_port  # type: ignore[attr-defined]  # of a thread
        found = []
        for method, path in (("GET", "/ping"), ("GET", "/serve"), ("POST", "/")):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path)
            found.append(connection.getresponse().status)
            connection.close()
        return {"found": found}

    def configure_response(self):
        return {"found": [200, 404, 404]}


def test_the_server_answers_ping_and_knows_its_paths(tmp_path) -> None:
    assert fit(tmp_path, Curious()).successful is True

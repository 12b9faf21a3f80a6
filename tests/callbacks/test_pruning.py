from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fulmen import Callback, Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, ModelPruning
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.small_digits import BATCHES, Reader, SaveAt, differences, fit, seeded


def sparsity(state: dict[str, Any], *names: str) -> float:
    """Share of zeros in parameters of a state dict."""
    values = torch.cat([state[name].flatten() for name in names or WEIGHTS])
    return float((values == 0).float().mean())


WEIGHTS = ("backbone.0.weight", "head.weight")


def weights_of(model: Reader) -> list[tuple[nn.Module, str]]:
    return [(model.backbone[0], "weight"), (model.head, "weight")]


def half(model: Reader, **settings: Any) -> ModelPruning:
    """Prunes half of the weights once, in the second epoch."""
    settings = {"amount": lambda epoch: 0.5 if epoch == 1 else 0.0, "use_lottery_ticket_hypothesis": False, **settings}
    return ModelPruning("l1_unstructured", weights_of(model), **settings)


def test_half_of_the_weights_in_the_file_are_zero_under_their_own_names(tmp_path: Path) -> None:
    model = Reader()
    checkpoint = ModelCheckpoint(tmp_path / "files", save_last=True)
    fit(model, tmp_path, half(model), checkpoint, enable_checkpointing=True)
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["state_dict"]

    assert sparsity(saved) == pytest.approx(0.5, abs=1e-3)
    assert saved.keys() == Reader().state_dict().keys()
    assert differences(saved, model.state_dict()) == []
    assert sparsity(Reader.load_from_checkpoint(checkpoint.last_model_path, weights_only=True).state_dict()) > 0.499
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in Reader().named_parameters()]


def test_a_file_with_weights_only_is_pruned_as_well(tmp_path: Path) -> None:
    model = Reader()
    checkpoint = ModelCheckpoint(tmp_path / "files", save_weights_only=True, save_top_k=-1)
    fit(model, tmp_path, half(model), checkpoint, enable_checkpointing=True)
    files = sorted((tmp_path / "files").glob("*.ckpt"))
    shares = [sparsity(torch.load(each, weights_only=True)["state_dict"]) for each in files]

    assert shares == pytest.approx([0.0, 0.5, 0.5], abs=1e-3)


def test_pruned_weights_stay_zero_while_the_others_learn(tmp_path: Path) -> None:
    model, seen = Reader(), []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.state_dict()["head.weight"].clone())

    fit(model, tmp_path, half(model), Look(), max_epochs=4)
    pruned, last = seen[1], seen[3]

    assert torch.equal(pruned == 0, last == 0)
    assert not torch.equal(pruned, last)


def test_amounts_are_of_what_is_left(tmp_path: Path) -> None:
    model = Reader()
    fit(model, tmp_path, ModelPruning("l1_unstructured", weights_of(model), amount=0.5), max_epochs=3)

    assert sparsity(model.state_dict()) == pytest.approx(1 - 0.5**3, abs=2e-3)


KINDS: list[dict[str, Any]] = [
    {"pruning_fn": "l1_unstructured"},
    {"pruning_fn": "random_unstructured"},
    {"pruning_fn": "l1_unstructured", "use_global_unstructured": False},
    {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0, "pruning_norm": 2},
    {"pruning_fn": "random_structured", "use_global_unstructured": False, "pruning_dim": 1},
    {"pruning_fn": prune.L1Unstructured},
    {"pruning_fn": "l1_unstructured", "make_pruning_permanent": False},
    {"pruning_fn": "l1_unstructured", "resample_parameters": True},
    {"pruning_fn": "l1_unstructured", "use_lottery_ticket_hypothesis": False},
    {"pruning_fn": "l1_unstructured", "prune_on_train_epoch_end": False},
]


@pytest.mark.parametrize(
    "kind",
    [*KINDS[:1], *KINDS[6:8], *(pytest.param(each, marks=pytest.mark.slow) for each in KINDS[1:6] + KINDS[8:])],
    ids=lambda kind: "-".join(f"{value}" for value in kind.values()),
)
def test_a_resumed_run_is_the_same_run(kind: dict[str, Any], tmp_path: Path) -> None:
    path, step = tmp_path / "saved.ckpt", 2 * BATCHES + 2

    def pruning(model: Reader) -> ModelPruning:
        return ModelPruning(parameters_to_prune=weights_of(model), amount=0.3, **kind)

    whole, resumed = Reader(lr=0.05), seeded(Reader, seed=99, lr=0.05)
    fit(whole, tmp_path, pruning(whole), SaveAt("on_train_batch_end", step, path), max_epochs=4)
    fit(resumed, tmp_path, pruning(resumed), ckpt_path=path, max_epochs=4)

    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []
    assert (
        differences(resumed.state_dict(), seeded(Reader).state_dict())
        if kind.get("make_pruning_permanent", True)
        else 1
    )


def test_the_same_model_can_be_trained_on_after_an_error(tmp_path: Path) -> None:
    path, step = tmp_path / "saved.ckpt", 2 * BATCHES + 2

    class Boom(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                raise ValueError("boom")

    whole, broken = seeded(Reader), seeded(Reader)
    fit(whole, tmp_path, half(whole), max_epochs=4)
    with pytest.raises(ValueError, match="boom"):
        fit(broken, tmp_path, half(broken), SaveAt("on_train_batch_end", step, path), Boom(), max_epochs=4)
    assert broken.state_dict().keys() == Reader().state_dict().keys()
    fit(broken, tmp_path, half(broken), ckpt_path=path, max_epochs=4)

    assert broken.losses == whole.losses
    assert differences(broken.state_dict(), whole.state_dict()) == []


def test_the_lottery_ticket_is_the_initial_values_that_are_left(tmp_path: Path) -> None:
    model = Reader()
    initial = model.head.weight.detach().clone()
    seen: list[torch.Tensor] = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.state_dict()["head.weight"].clone())

    fit(model, tmp_path, half(model, use_lottery_ticket_hypothesis=lambda epoch: epoch == 1), Look(), max_epochs=2)
    left = seen[1] != 0

    assert torch.equal(seen[1][left], initial[left])
    assert 0 < int(left.sum()) < left.numel()


def test_early_stopping_restores_pruned_weights(tmp_path: Path) -> None:
    model = Reader()
    stopping = EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    fit(model, tmp_path, half(model), stopping)

    assert model.state_dict().keys() == Reader().state_dict().keys()


def test_whole_neurons_are_pruned(tmp_path: Path) -> None:
    model = Reader()
    pruning = ModelPruning(
        "ln_structured", weights_of(model)[:1], amount=lambda epoch: 4 if epoch == 0 else 0,
        use_global_unstructured=False, pruning_dim=0, pruning_norm=2,
    )  # fmt: skip
    fit(model, tmp_path, pruning)

    assert int((model.state_dict()["backbone.0.weight"] == 0).all(dim=1).sum()) == 4


def test_sparsity_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Reader()
    with caplog.at_level(logging.INFO, logger="fulmen"):
        fit(model, tmp_path, half(model, verbose=2))

    assert "Pruned: 0/1184 (0.00%) -> 592/1184 (50.00%)" in caplog.text
    assert "to `head.weight` with amount=0.5" in caplog.text


def test_parameters_are_found_by_name() -> None:
    model = Reader()
    found = ModelPruning.sanitize_parameters_to_prune(model)

    assert [name for _, name in found] == ["weight"] * 3 + ["bias"] * 3
    assert [module for module, _ in found[:3]] == [model.backbone[0], model.backbone[1], model.head]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"pruning_fn": "l2"}, "'l2'.*ln_structured"),
        ({"pruning_fn": "ln_structured", "use_global_unstructured": False}, "pruning_dim"),
        ({"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0}, "pruning_norm"),
        ({"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured=False"),
        ({"pruning_fn": prune.LnStructured}, "use_global_unstructured=False"),
        ({"pruning_fn": prune.L1Unstructured, "use_global_unstructured": False}, "can't be combined"),
        ({"pruning_fn": prune.l1_unstructured}, "subclass"),
        ({"pruning_fn": "l1_unstructured", "amount": "x"}, "amount='x'"),
        ({"pruning_fn": "l1_unstructured", "amount": 1.5}, "amount=1.5"),
        ({"pruning_fn": "l1_unstructured", "amount": -1}, "amount=-1"),
        ({"pruning_fn": "l1_unstructured", "apply_pruning": "no"}, "apply_pruning='no'"),
        ({"pruning_fn": "l1_unstructured", "use_lottery_ticket_hypothesis": "no"}, "lottery_ticket_hypothesis='no'"),
        ({"pruning_fn": "l1_unstructured", "parameter_names": "weight"}, "must be a list of names"),
        ({"pruning_fn": "l1_unstructured", "parameters_to_prune": nn.Linear(1, 1)}, "must be a list of pairs"),
        ({"pruning_fn": "random_structured", "pruning_dim": "x"}, "pruning_dim='x'"),
        ({"pruning_fn": "l1_unstructured", "verbose": 3}, "verbose=3"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(MisconfigurationException, match=text):
        ModelPruning(**arguments)


@pytest.mark.parametrize(
    ("pairs", "names", "text"),
    [
        ([(nn.Linear(2, 2), "weight")], None, "not part of the model"),
        ([nn.Linear(2, 2)], None, "pairs of a module"),
        ((), ["gain"], "found no parameter called 'gain'"),
    ],
)
def test_what_is_not_in_the_model_is_refused(pairs: Any, names: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=text):
        fit(Reader(), tmp_path, ModelPruning("l1_unstructured", pairs, names))


def test_resampling_needs_a_layer_that_can(tmp_path: Path) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    model = Reader()
    model.backbone.append(nn.Sequential(Scale()))
    with pytest.raises(MisconfigurationException, match="`Scale` has none"):
        fit(model, tmp_path, ModelPruning("l1_unstructured", resample_parameters=True))


@pytest.mark.parametrize(("dim", "names"), [(0, None), (2, ["weight"])])
def test_parameters_without_such_slices_are_refused_before_training(dim: int, names: Any, tmp_path: Path) -> None:
    pruning = ModelPruning(
        "ln_structured", parameter_names=names, use_global_unstructured=False, pruning_dim=dim, pruning_norm=2
    )
    model = Reader()
    with pytest.raises(MisconfigurationException, match=r"parameter_names=\['weight'\]"):
        fit(model, tmp_path, pruning)

    assert model.losses == []

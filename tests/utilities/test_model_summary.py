import logging
import re
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelSummary as ModelSummaryCallback
from fulmen.utilities.model_summary import (
    DeepSpeedSummary,
    LayerSummary,
    ModelSummary,
    get_formatted_model_size,
    get_human_readable_count,
    parse_batch_shape,
    summarize,
)
from fulmen.utilities.model_summary.memory import optimizer_bytes
from fulmen.utilities.warnings import PossibleUserWarning
from tests.support import quiet


class Module(LightningModule):
    def __init__(self, example=None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 2)
        self.own = nn.Parameter(torch.zeros(7))
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.example_input_array = example
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x, scale=1):
        self.seen.append((self.training or self.encoder.training, torch.is_grad_enabled()))
        return self.head(self.encoder(x)) * scale


def test_children_are_listed_with_their_parameters():
    summary = summarize(Module())

    assert summary.layer_names == ["encoder", "head", "unused"]
    assert summary.layer_types == ["Sequential", "Linear", "Linear"]
    assert summary.param_nums == [15, 8, 8]
    assert (summary.total_parameters, summary.trainable_parameters, summary.total_layer_params) == (43, 38, 31)
    assert summary.model_size == pytest.approx(43 * 4e-6)
    assert summary.in_sizes == ["?", "?", "?"]


@pytest.mark.parametrize(
    ("max_depth", "names"),
    [
        (0, []),
        (1, ["encoder", "head", "unused"]),
        (2, ["encoder", "encoder.0", "encoder.1", "head", "unused"]),
        (-1, ["encoder", "encoder.0", "encoder.1", "head", "unused"]),
    ],
)
def test_depth_decides_which_layers_are_listed(max_depth, names):
    assert ModelSummary(Module(), max_depth=max_depth).layer_names == names


@pytest.mark.parametrize("max_depth", [-2, 1.5, "1"])
def test_impossible_depth_is_refused(max_depth):
    with pytest.raises(ValueError, match="max_depth"):
        ModelSummary(Module(), max_depth=max_depth)


@pytest.mark.parametrize("example", [torch.zeros(6, 4), (torch.zeros(6, 4), 2), {"x": torch.zeros(6, 4), "scale": 2}])
def test_example_input_gives_sizes_and_flops(example):
    summary = ModelSummary(Module(example))

    assert summary.in_sizes == [[6, 4], [6, 3], "?"]
    assert summary.out_sizes == [[6, 3], [6, 2], "?"]
    assert summary.total_flops == 2 * 6 * (4 * 3 + 3 * 2)
    assert [sum(counts.values()) for counts in summary.flop_counts.values()] == [2 * 6 * 4 * 3, 2 * 6 * 3 * 2, 0]


def test_example_is_run_in_eval_mode_without_a_trace():
    module = Module(torch.randn(6, 4))
    module.head.eval()
    before = torch.get_rng_state()
    summary = ModelSummary(module)

    assert module.seen == [(False, False)]
    assert summary.total_training_modes == {"train": 4, "eval": 1}
    assert module.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_failing_example_leaves_no_hooks_and_modes():
    module = Module(torch.zeros(6, 9))
    with pytest.raises(RuntimeError):
        ModelSummary(module)

    assert module.encoder.training
    assert not any(layer._forward_hooks for layer in module.modules())


def test_shared_parameters_count_once():
    module = Module()
    module.unused.weight = module.head.weight
    summary = ModelSummary(module)

    assert summary.total_parameters == 43 - 6
    assert summary.total_layer_params == 31 - 6
    assert "other params | n/a        | 12 " in str(summary)


def test_lazy_parameters_count_zero_and_warn():
    module = Module()
    module.head = nn.LazyLinear(2)
    with pytest.warns(PossibleUserWarning, match="example_input_array"):
        total = ModelSummary(module).total_parameters

    assert total == 43 - 8


def test_example_input_initializes_lazy_parameters():
    module = Module(torch.zeros(1, 4))
    module.head = nn.LazyLinear(2)

    assert ModelSummary(module).total_parameters == 43


def test_sizes_follow_the_type_of_the_parameters():
    assert ModelSummary(Module().half()).model_size == pytest.approx(43 * 2e-6)


def test_text_shows_the_table_and_totals():
    text = str(ModelSummary(Module(torch.zeros(6, 4))))

    assert re.search(r"\n1 \| head +\| Linear +\| 8 +\| train \| 72 +\| \[6, 3\] +\| \[6, 2\]", text)
    assert re.search(r"\n43 +Total params\n", text)
    assert re.search(r"\n216 +Total FLOPs\n", text)


def test_layer_summary_knows_sizes_after_use():
    layer = nn.Linear(4, 3)
    summary = LayerSummary(layer)
    before = summary.in_size
    layer(input=torch.zeros(5, 4))

    assert (before, summary.in_size, summary.out_size) == ("?", [5, 4], [5, 3])
    assert (summary.layer_type, summary.num_parameters, summary.training) == ("Linear", 15, True)


def test_scripted_layers_are_listed():
    module = Module(torch.zeros(6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer versions of torch
        module.add_module("head", torch.jit.script(module.head))

    assert ModelSummary(module).param_nums[1] == 8


def test_deepspeed_counts_what_is_elsewhere():
    module = Module()
    for parameter in module.parameters():
        parameter.__dict__.update(ds_numel=10 * parameter.numel(), ds_tensor=parameter.data)
    summary = DeepSpeedSummary(module)

    assert (summary.total_parameters, summary.trainable_parameters) == (430, 380)
    assert summary.parameters_per_layer == [15, 8, 8]
    assert "Params per Device" in str(summary)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0  "),
        (999, "999  "),
        (1000, "1.0 K"),
        (9999, "10.0 K"),
        (123_456, "123 K"),
        (10**6, "1.0 M"),
        (10**9, "1.0 B"),
        (10**15, "1,000 T"),
    ],
)
def test_counts_are_short(count, text):
    assert get_human_readable_count(count) == text


def test_negative_count_is_refused():
    with pytest.raises(ValueError, match="-1"):
        get_human_readable_count(-1)


def test_size_has_three_decimals():
    assert get_formatted_model_size(1234.5) == "1,234.500"


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        (torch.zeros(2, 3), [2, 3]),
        ([torch.zeros(2), (torch.zeros(3), 1)], [[2], [[3], "?"]]),
        ({"a": torch.zeros(2)}, "?"),
        (None, "?"),
        (SimpleNamespace(shape=(1, 2)), [1, 2]),
    ],
)
def test_shape_of_a_batch(batch, shape):
    assert parse_batch_shape(batch) == shape


# ---- memory


class Trained(LightningModule):
    """A tied, a frozen and an integer parameter, and a buffer."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.codes = nn.Parameter(torch.zeros(7, dtype=torch.int8), requires_grad=False)
        self.register_buffer("table", torch.zeros(25))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return self.head(self.embedding(batch[0])).square().mean()

    def configure_optimizers(self):
        return self.optimizer(p for p in self.parameters() if p.requires_grad)


def trained(optimizer: Any, tmp_path: Any, *callbacks: Any) -> Trained:
    model = Trained(optimizer)
    trainer = Trainer(**quiet(tmp_path, max_steps=1, callbacks=list(callbacks), enable_model_summary=None))
    trainer.fit(model, DataLoader(TensorDataset(torch.arange(4))))
    return model


def test_memory_counts_tied_weights_once_and_gradients_of_what_is_trained():
    summary = summarize(Trained(torch.optim.SGD))

    assert summary.memory == {
        "weights": pytest.approx((1600 * 4 + 272 * 4 + 7) / 1e6),
        "buffers": pytest.approx(100 / 1e6),
        "gradients": pytest.approx(6400 / 1e6),
    }
    assert summary.non_float_parameters == 7


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (torch.optim.SGD, 0),
        (partial(torch.optim.SGD, momentum=0.9), 1),
        (torch.optim.Adam, 2),
        (partial(torch.optim.AdamW, amsgrad=True, fused=True), 3),
        (torch.optim.RMSprop, 1),
        (torch.optim.Adagrad, 1),
    ],
    ids=str,
)
def test_the_state_of_an_optimizer_is_known_before_its_first_step(tmp_path, optimizer, states):
    before: list[Any] = []

    class Looks(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.append(summarize(pl_module).memory["optimizer"])
            before.append({len(state) for state in trainer.optimizers[0].state.values()})

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            before.append(summarize(pl_module).memory["optimizer"])

    trained(optimizer, tmp_path, Looks())

    assert before[0] == pytest.approx(states * 6400 / 1e6, abs=1e-5)
    assert before[0] == pytest.approx(before[2])
    assert before[1] in (set(), {2})  # Adagrad makes its state at once


def test_the_state_of_an_optimizer_of_others_is_not_guessed(tmp_path, caplog):
    class Own(torch.optim.SGD):
        pass

    with caplog.at_level(logging.INFO):
        trained(Own, tmp_path, ModelSummaryCallback())

    assert "?         Estimated optimizer state size (MB)" in caplog.text
    assert "0.006     Estimated gradients size (MB)" in caplog.text
    assert "7         Non-float params" in " ".join(caplog.text.split("\n"))


def test_the_look_at_an_optimizer_changes_nothing():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.Adam([parameter])
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts itself before `step`
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))

    assert optimizer_bytes(optimizer) == 2 * 12 + 4
    assert (parameter == 1).all()
    assert not optimizer.state
    assert calls == []


def test_a_module_on_the_meta_device_has_sizes_and_flops():
    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)
            self.example_input_array = (torch.zeros(3, 64),)

        def forward(self, x):
            return self.net(x)

    with torch.device("meta"):
        module = Net()
    module.example_input_array = (torch.zeros(3, 64),)
    summary = summarize(module)

    assert summary.out_sizes == [[3, 10]]
    assert summary.total_flops == 2 * 3 * 64 * 10
    assert summary.model_size == pytest.approx(650 * 4 / 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_compiled_layers_are_counted_like_others(how):
    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            self.example_input_array = torch.zeros(3, 64)

        def forward(self, x):
            return self.net(x)

    plain, module = Net(), Net()
    if how == "in place":
        module.net.compile(backend="eager")
    else:
        module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]  # a wrapper of it
    expected, summary = summarize(plain), summarize(module)

    assert (summary.total_flops, summary.total_parameters) == (expected.total_flops, expected.total_parameters)
    assert summary.out_sizes == expected.out_sizes

"""From arguments to a strategy."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from fulmen.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from fulmen.engine.resolve import explain, rules_as_text
from fulmen.engine.resolve import resolve_strategy as resolve
from fulmen.plugins import (
    AsyncCheckpointIO,
    DoublePrecision,
    HalfPrecision,
    LayerSync,
    MixedPrecision,
    Precision,
    TorchCheckpointIO,
    TorchSyncBatchNorm,
)
from fulmen.plugins.environments import LightningEnvironment
from fulmen.strategies import SingleDeviceStrategy, StrategyRegistry
from fulmen.strategies.ddp import DDPStrategy
from fulmen.utilities.exceptions import MisconfigurationException

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def resolve_strategy(**arguments) -> Any:
    """The strategy without its type: tests look into parts of own classes."""
    return resolve(**arguments)


class OwnStrategy(SingleDeviceStrategy):
    """A strategy of a user."""


class OwnLayerSync(LayerSync):
    """A plugin of a user."""

    def apply(self, model):
        return model

    def revert(self, model):
        return model


# ---- accelerator and device


def test_default_without_gpu_is_the_cpu(only_cpu):
    strategy = resolve_strategy()

    assert type(strategy) is SingleDeviceStrategy
    assert type(strategy.accelerator) is CPUAccelerator
    assert strategy.root_device == torch.device("cpu")
    assert type(strategy.precision_plugin) is Precision
    assert type(strategy.checkpoint_io) is TorchCheckpointIO
    assert type(strategy.cluster_environment) is LightningEnvironment
    assert strategy.layer_sync is None
    assert strategy.chosen_parts == frozenset()


def test_default_with_gpus_are_all_of_them(two_gpus):
    strategy = resolve_strategy()

    assert type(strategy) is DDPStrategy
    assert type(strategy.accelerator) is CUDAAccelerator
    assert strategy.parallel_devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert strategy.root_device == torch.device("cuda", 0)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
def test_a_mac_uses_its_gpu(mac, accelerator):
    strategy = resolve_strategy(accelerator=accelerator)

    assert type(strategy.accelerator) is MPSAccelerator
    assert strategy.root_device == torch.device("mps", 0)


@pytest.mark.parametrize("devices", [[1], "1,", (1,)])
def test_a_gpu_is_chosen_by_index(two_gpus, devices):
    assert resolve_strategy(accelerator="gpu", devices=devices).root_device == torch.device("cuda", 1)


@pytest.mark.parametrize("devices", ["auto", 1, "1"])
def test_cpu_takes_one_process(devices):
    assert resolve_strategy(accelerator="cpu", devices=devices).root_device == torch.device("cpu")


def test_accelerator_object_is_used(two_gpus):
    accelerator = CPUAccelerator()

    assert resolve_strategy(accelerator=accelerator).accelerator is accelerator


def test_gpu_without_gpu_is_refused(only_cpu):
    with pytest.raises(MisconfigurationException, match="neither MPS nor CUDA"):
        resolve_strategy(accelerator="gpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_absent_hardware_is_refused_and_what_is_there_named(only_cpu, name):
    with pytest.raises(MisconfigurationException, match=r"one that is there: \['cpu'\]"):
        resolve_strategy(accelerator=name)


@pytest.mark.parametrize("accelerator", ["foo", None, "CPU", 3, ["cpu"]])
def test_unknown_accelerator_is_refused(accelerator):
    with pytest.raises(ValueError, match=r"`accelerator=.*'cpu'"):
        resolve_strategy(accelerator=accelerator)


def test_registered_accelerator_is_found_by_name():
    class Spare(CPUAccelerator):
        @staticmethod
        def name():
            return "spare"

    AcceleratorRegistry.register("spare", Spare)
    try:
        assert type(resolve_strategy(accelerator="spare").accelerator) is Spare
    finally:
        AcceleratorRegistry.remove("spare")


@pytest.mark.parametrize("devices", [0, "0", [], ()])
@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_no_device_is_refused(two_gpus, accelerator, devices):
    with pytest.raises(MisconfigurationException, match="selects no device"):
        resolve_strategy(accelerator=accelerator, devices=devices)


@pytest.mark.parametrize("devices", [False, True, None, 1.5])
def test_devices_of_a_wrong_type_are_refused(two_gpus, devices):
    with pytest.raises(TypeError, match=r"`devices="):
        resolve_strategy(accelerator="cuda", devices=devices)


@pytest.mark.parametrize("num_nodes", [0, -1, "2", 1.0, True])
def test_num_nodes_must_be_a_positive_int(num_nodes):
    with pytest.raises(ValueError, match="num_nodes"):
        resolve_strategy(num_nodes=num_nodes)


# ---- precision


@pytest.mark.parametrize(
    ("precision", "kind", "name"),
    [
        (None, Precision, "32-true"),
        (32, Precision, "32-true"),
        ("32", Precision, "32-true"),
        ("32-true", Precision, "32-true"),
        (64, DoublePrecision, "64-true"),
        ("64-true", DoublePrecision, "64-true"),
        ("16-true", HalfPrecision, "16-true"),
        ("bf16-true", HalfPrecision, "bf16-true"),
        ("bf16-mixed", MixedPrecision, "bf16-mixed"),
    ],
)
def test_precision_by_name(precision, kind, name):
    plugin = resolve_strategy(accelerator="cpu", precision=precision).precision_plugin

    assert (type(plugin), plugin.precision) == (kind, name)


def test_16_mixed_on_the_cpu_becomes_bf16_with_a_warning():
    with pytest.warns(UserWarning, match="'bf16-mixed' is used"):
        plugin = resolve_strategy(accelerator="cpu", precision="16-mixed").precision_plugin

    assert plugin.precision == "bf16-mixed"
    assert plugin.scaler is None


@pytest.mark.parametrize("precision", ["bf16", "16", 16])
def test_short_forms_of_mixed_precision_warn(precision):
    with pytest.warns(UserWarning, match="historical reasons|'bf16-mixed' is used") as warned:
        plugin = resolve_strategy(accelerator="cpu", precision=precision).precision_plugin

    assert "historical reasons" in str(warned[0].message)
    assert plugin.precision == "bf16-mixed"


@pytest.mark.parametrize("precision", ["8", 8, 32.0, True, "BF16-mixed", "half"])
def test_unknown_precision_is_refused_with_the_choices(precision):
    with pytest.raises(ValueError, match=r"`precision=.*'bf16-mixed'"):
        resolve_strategy(precision=precision)


def test_mps_has_no_64_bit(mac):
    with pytest.raises(MisconfigurationException, match="64-true"):
        resolve_strategy(precision="64-true")


@pytest.mark.gpu
@needs_gpu
def test_16_mixed_on_a_gpu_has_a_scaler():
    plugin = resolve_strategy(accelerator="gpu", devices=1, precision="16-mixed").precision_plugin

    assert (plugin.precision, plugin.device) == ("16-mixed", "cuda")
    assert plugin.scaler.is_enabled()


# ---- plugins


def test_plugins_become_parts():
    precision, io, environment, sync = DoublePrecision(), AsyncCheckpointIO(), LightningEnvironment(), OwnLayerSync()

    strategy = resolve_strategy(accelerator="cpu", devices=2, plugins=[precision, io, environment, sync])

    assert strategy.precision_plugin is precision
    assert strategy.checkpoint_io is io
    assert strategy.cluster_environment is environment
    assert strategy.layer_sync is sync


def test_one_plugin_needs_no_list():
    precision = DoublePrecision()

    assert resolve_strategy(accelerator="cpu", plugins=precision).precision_plugin is precision


@pytest.mark.parametrize("plugins", [3, "x", [3], [Precision(), object()], [Precision]])
def test_foreign_plugins_are_refused(plugins):
    with pytest.raises(MisconfigurationException, match="Precision, CheckpointIO, ClusterEnvironment, LayerSync"):
        resolve_strategy(plugins=plugins)


def test_two_plugins_of_a_kind_are_refused():
    with pytest.raises(MisconfigurationException, match="two of the kind `CheckpointIO`"):
        resolve_strategy(plugins=[TorchCheckpointIO(), AsyncCheckpointIO()])


@pytest.mark.parametrize("precision", ["64-true", "32-true", 32])
def test_precision_and_its_plugin_together_are_refused(precision):
    with pytest.raises(ValueError, match="Choose one"):
        resolve_strategy(plugins=DoublePrecision(), precision=precision)


def test_sync_batchnorm_is_noted_where_there_is_somebody_to_synchronize_with():
    several = resolve_strategy(accelerator="cpu", devices=2, sync_batchnorm=True)
    one = resolve_strategy(accelerator="cpu", devices=1, sync_batchnorm=True)

    assert type(several.layer_sync) is TorchSyncBatchNorm
    assert one.layer_sync is None


def test_sync_batchnorm_and_another_plugin_are_refused():
    with pytest.raises(MisconfigurationException, match="sync_batchnorm=True"):
        resolve_strategy(plugins=OwnLayerSync(), sync_batchnorm=True)


# ---- strategy


@pytest.mark.parametrize("name", ["auto", "AUTO", "single_device", "SINGLE_DEVICE"])
def test_strategy_by_name_is_on_the_chosen_device(two_gpus, name):
    strategy = resolve_strategy(strategy=name, accelerator="cuda", devices=[1])

    assert type(strategy) is SingleDeviceStrategy
    assert strategy.root_device == torch.device("cuda", 1)


@pytest.mark.parametrize(("face", "saves_shards"), [("trainer", False), ("fabric", True)])
@pytest.mark.parametrize("name", ["fsdp", "FSDP_cpu_offload"])
def test_fsdp_by_name_saves_as_programs_of_that_side_expect(only_cpu, name, face, saves_shards):
    strategy = resolve_strategy(strategy=name, devices=2, face=face)

    assert strategy._saves_shards is saves_shards


def test_own_strategy_object_is_completed_and_returned(only_cpu):
    own = OwnStrategy("cpu")

    strategy = resolve_strategy(strategy=own, precision="64-true")

    assert strategy is own
    assert own.precision_plugin.precision == "64-true"


def test_a_strategy_object_can_be_used_by_a_second_trainer():
    own = OwnStrategy("cpu")
    resolve_strategy(strategy=own, precision="64-true")

    resolve_strategy(strategy=own, precision="32-true")

    assert own.precision_plugin.precision == "32-true"


def test_auto_follows_the_device_of_the_strategy_object(two_gpus):
    strategy = resolve_strategy(strategy=SingleDeviceStrategy("cpu"), precision="bf16-mixed")

    assert type(strategy.accelerator) is CPUAccelerator
    assert strategy.precision_plugin.device == "cpu"


def test_strategy_object_on_another_device_than_the_accelerator_is_refused(two_gpus):
    with pytest.raises(MisconfigurationException, match="is on the device `cpu`"):
        resolve_strategy(strategy=SingleDeviceStrategy("cpu"), accelerator="cuda")


def test_registered_strategy_gets_the_device_and_its_arguments(two_gpus):
    @StrategyRegistry.register("Patient", patience=4)
    class Patient(SingleDeviceStrategy):
        def __init__(self, patience, **settings):
            super().__init__(**settings)
            self.patience = patience

    try:
        strategy = resolve_strategy(strategy="Patient", accelerator="cuda", devices=[1])
    finally:
        StrategyRegistry.remove("Patient")

    assert (strategy.patience, strategy.root_device) == (4, torch.device("cuda", 1))


@pytest.mark.parametrize("name", ["foo", None, 3, ["ddp"], "ddp_foo", SingleDeviceStrategy])
def test_unknown_strategy_is_refused(name):
    with pytest.raises(ValueError, match=r"`strategy=.*'single_device'"):
        resolve_strategy(strategy=name)


@pytest.mark.parametrize(
    ("parts", "arguments"),
    [
        ({"accelerator": CPUAccelerator()}, {"accelerator": "cpu"}),
        ({"precision_plugin": Precision()}, {"plugins": DoublePrecision()}),
        ({"precision_plugin": Precision()}, {"precision": "64-true"}),
        ({"checkpoint_io": TorchCheckpointIO()}, {"plugins": AsyncCheckpointIO()}),
    ],
    ids=["accelerator", "precision plugin", "precision", "io"],
)
def test_a_part_given_twice_is_refused(parts, arguments):
    with pytest.raises(MisconfigurationException, match="given twice"):
        resolve_strategy(strategy=SingleDeviceStrategy(**parts), **arguments)


def test_parts_of_a_strategy_object_are_kept(only_cpu):
    precision, accelerator = DoublePrecision(), CPUAccelerator()

    strategy = resolve_strategy(strategy=SingleDeviceStrategy(accelerator=accelerator, precision_plugin=precision))

    assert strategy.precision_plugin is precision
    assert strategy.accelerator is accelerator


# ---- explanations


def test_explain_says_what_was_decided_and_why(only_cpu):
    text = explain(precision="16-mixed")

    assert text.splitlines() == [
        "accelerator: CPUAccelerator, because `accelerator='auto'` (no other hardware is available)",
        "environment: LightningEnvironment, because nothing else claims this process"
        " (you started it, and it starts others if it needs them)",
        "nodes: 1, because `num_nodes` says so (1 unless you say otherwise)",
        "devices: cpu, because `devices='auto'` (the machine is yours)",
        "precision: bf16-mixed, because `precision='16-mixed'` and the device is the CPU"
        " (CPUs compute bfloat16 faster than float16, and without scaled gradients)",
        "strategy: SingleDeviceStrategy, because `strategy='auto'` and there is one device (one process is enough)",
        "processes: this one, because the strategy uses one device",
        "warning: `precision='16-mixed'` is not offered on the CPU, so 'bf16-mixed' is used: CPUs compute bfloat16"
        " faster, and it needs no scaled gradients. Pass `precision='bf16-mixed'` to say so yourself.",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"devices": 2}, "processes: 2, all here: the script is run once more for each but the first"),
        ({"devices": 2, "num_nodes": 3}, "processes: 6, 2 on each of 3 machines: the script is run once more"),
        ({"devices": 2, "strategy": "ddp_spawn"}, "processes: 2, all here: started by 'spawn' for each run"),
    ],
)
def test_explain_says_who_starts_the_processes(arguments, expected):
    assert expected in explain(accelerator="cpu", **arguments)


def test_explain_leaves_a_strategy_object_as_it_was():
    own, several = OwnStrategy("cpu"), DDPStrategy()

    explain(strategy=own, precision="64-true")
    explain(accelerator="cpu", devices=2, strategy=several, precision="64-true")

    assert own.precision_plugin.precision == several.precision_plugin.precision == "32-true"
    assert not several.parallel_devices


def test_rules_can_be_printed():
    text = rules_as_text()

    assert text.count("\n") > 30
    assert "strategy: when `strategy` is an object: that one (you passed it)" in text


# ---- log lines


@pytest.mark.parametrize(
    ("precision", "name"), [("bf16-mixed", "Using bfloat16 Automatic Mixed Precision (AMP)"), ("32-true", None)]
)
def test_hardware_and_precision_are_logged(only_cpu, caplog, precision, name):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        resolve_strategy(precision=precision)

    lines = ["GPU available: False, used: False", "TPU available: False, using: 0 TPU cores"]
    assert caplog.messages == ([name] if name else []) + lines


def test_a_gpu_that_is_not_used_is_logged(two_gpus, caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        resolve_strategy(accelerator="cpu")

    assert "GPU available: True (cuda), used: False" in caplog.messages

"""Settings that exclude each other: what is refused before a strategy gets its parts."""

from __future__ import annotations

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine.request import Request
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = [
    "check_available",
    "check_devices",
    "check_parts_chosen_once",
    "check_precision_name",
    "check_precision_on_device",
    "check_strategy_on_devices",
    "refuse_in_interactive_session",
]


def check_available(accelerator: Accelerator, request: Request) -> None:
    """Refuse hardware that this machine does not have.

    Raises:
        MisconfigurationException: It is not there.
    """
    if accelerator.is_available():
        return
    available = [name for name in ACCELERATOR_REGISTRY.names() if ACCELERATOR_REGISTRY.is_available(name)]
    what = "The strategy's accelerator" if request.brings("accelerator") else f"`accelerator={request.accelerator!r}`"
    raise MisconfigurationException(
        f"{what} cannot be used: `{type(accelerator).__name__}` finds no such hardware on this machine. Choose one that"
        f" is there: {available}."
    )


def check_devices(accelerator: Accelerator, request: Request) -> None:
    """Refuse devices that fit neither the accelerator nor the strategy.

    Raises:
        MisconfigurationException: A strategy object has other devices, or can use only one.
    """
    devices = request.parallel_devices
    if request.brings_devices:
        _check_own_devices(accelerator, request)
    if not request.wants_one_process:
        return
    label = _label(request)
    if len(devices) > 1 or _number_asked_for(accelerator, request) > 1:
        raise MisconfigurationException(
            f"{label} computes on one device, but `devices={request.devices!r}` asks for more. Pass `devices=1` (or the"
            " index of one GPU in a list), or `strategy='ddp'`, which uses all of them."
        )
    if request.num_nodes > 1:
        raise MisconfigurationException(
            f"{label} computes on one device, but `num_nodes={request.num_nodes}` asks for several machines."
            " Pass `num_nodes=1`, or `strategy='ddp'`."
        )


def _check_own_devices(accelerator: Accelerator, request: Request) -> None:
    name, own = type(request.given).__name__, request.parallel_devices
    theirs = accelerator.get_parallel_devices(accelerator.parse_devices(1))[0]
    kind = getattr(theirs, "type", str(theirs).split(":")[0])
    foreign = [device for device in own if device.type != kind]
    if foreign:
        raise MisconfigurationException(
            f"The strategy `{name}` is on the device `{foreign[0]}`, but `{type(accelerator).__name__}` computes on"
            f" `{kind}`. Pass `accelerator='auto'` to follow the strategy, or give it other devices."
        )
    asked = _number_asked_for(accelerator, request)
    if isinstance(request.given, ParallelStrategy) and request.devices != "auto" and asked != len(own):
        raise MisconfigurationException(
            f"`devices={request.devices!r}` asks for {asked} device(s), but the strategy `{name}` comes with"
            f" {len(own)}: {[str(device) for device in own]}. Leave out `devices`, or give the strategy no"
            " `parallel_devices`."
        )


def _number_asked_for(accelerator: Accelerator, request: Request) -> int:
    if request.devices == "auto":
        return 1
    return len(accelerator.get_parallel_devices(accelerator.parse_devices(request.devices)))


def check_precision_on_device(precision: Precision, request: Request) -> None:
    """Refuse number formats that the device does not have, and note where another one is taken.

    Raises:
        MisconfigurationException: The device cannot compute so.
    """
    if request.precision == "16-mixed" and precision.precision == "bf16-mixed":
        request.warnings.append(
            "`precision='16-mixed'` is not offered on the CPU, so 'bf16-mixed' is used: CPUs compute bfloat16 faster,"
            " and it needs no scaled gradients. Pass `precision='bf16-mixed'` to say so yourself."
        )
    if precision.precision == "64-true" and request.device.type == "mps":
        raise MisconfigurationException(
            "`precision='64-true'` cannot be used with MPS, which has no 64-bit numbers."
            " Choose `precision='32-true'` or `accelerator='cpu'`."
        )


def check_precision_name(request: Request) -> None:
    """Refuse number formats that only other hardware has, before their packages are asked for.

    Raises:
        MisconfigurationException: The device cannot compute so.
    """
    is_8_bit = request.precision in ("transformer-engine", "transformer-engine-float16", "fp8-mixed")
    if is_8_bit and request.device.type != "cuda":
        trial = " To try what 8 bits do to the results, pass `plugins=[Float8Precision(emulate=True)]`."
        raise MisconfigurationException(
            f"`precision={request.precision!r}` computes in 8 bit, which only GPUs do, but the device is"
            f" `{request.device}`. Choose `precision='bf16-mixed'`, or `accelerator='cuda'` on a machine that has one."
            + (trial if request.precision == "fp8-mixed" else "")
        )


def check_strategy_on_devices(strategy: Strategy, request: Request) -> None:
    """Refuse strategies whose processes could not talk, or would never be waited for.

    Raises:
        ValueError: The hardware has no communication between processes, or the platform cannot fork.
        MisconfigurationException: `dp` is to run on several machines.
    """
    if isinstance(strategy, ParallelStrategy) and request.device.type == "mps":
        raise ValueError(
            f"{_label(request)} needs processes that talk to each other, which torch does not offer on MPS."
            " Use one device of one machine with `strategy='auto'`, or `accelerator='cpu'`."
        )
    if isinstance(request.strategy, str) and request.strategy.lower() == "dp":
        if request.device.type == "cpu":
            request.warnings.append(
                f"`strategy={request.strategy!r}` is not offered on the CPU, where its threads would only wait for each"
                " other, so 'ddp' is used. Pass `strategy='ddp'` to say so yourself."
            )
        elif request.nodes > 1:
            raise MisconfigurationException(
                f"`strategy={request.strategy!r}` is one process with threads, but `num_nodes={request.nodes}` asks for"
                " several machines. Use `strategy='ddp'`."
            )


def check_parts_chosen_once(strategy: Strategy, request: Request) -> None:
    """Refuse a part that comes both with the strategy and by an argument of its own.

    Raises:
        MisconfigurationException: One does.
    """
    asked = {
        "accelerator": request.accelerator != "auto",
        "precision_plugin": request.precision_plugin is not None or request.precision is not None,
        "checkpoint_io": request.checkpoint_io is not None,
        "cluster_environment": request.cluster_environment is not None,
    }
    for part in sorted(strategy.chosen_parts):
        if asked.get(part):
            raise MisconfigurationException(
                f"The part `{part}` is given twice: by the strategy, `{type(strategy).__name__}({part}="
                f"{getattr(strategy, part)!r})`, and by an argument of its own. Choose one."
            )


def refuse_in_interactive_session(strategy: Strategy, request: Request) -> None:
    """Refuse launchers that start a script, where there is none.

    Raises:
        MisconfigurationException: The strategy has such a launcher.
    """
    if not request.interactive or request.layout is not None:  # who starts the processes elsewhere knows how
        return
    launcher = strategy.launcher
    if launcher is None or launcher.is_interactive_compatible:
        return
    raise MisconfigurationException(
        f"{_label(request)} starts its processes by running the script again, and an interactive session has no"
        " script. Use `strategy='ddp_notebook'` (several processes by fork), one device with `strategy='auto'`, or put"
        " the program into a file and run that."
    )


def _label(request: Request) -> str:
    if isinstance(request.strategy, Strategy):
        return f"The strategy `{type(request.strategy).__name__}`"
    if request.strategy_name == "auto":
        return f"`strategy='auto'` for {request.world_size} processes"
    return f"`strategy={request.strategy!r}`"

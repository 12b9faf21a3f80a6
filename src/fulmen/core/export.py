"""Export a module to ONNX, TorchScript or TensorRT; `LightningModule.to_...` call these."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fulmen.utilities.files import get_filesystem
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_deprecation

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule

__all__ = ["to_onnx", "to_tensorrt", "to_torchscript"]


def to_onnx(
    module: LightningModule, file_path: str | Path | Any | None = None, input_sample: Any | None = None, **kwargs: Any
) -> Any:
    """Export `module.forward` to ONNX.

    Args:
        module: The module; its mode (training or not) is restored afterwards.
        file_path: The file to write, a path or an open binary file; None to write none.
        input_sample: What `forward` is called with; default: `module.example_input_array`.
        kwargs: Further arguments of `torch.onnx.export`, e.g. `dynamo=True`, `input_names`, `dynamic_axes`.

    Returns:
        What `torch.onnx.export` returns: the ONNX program, or None.

    Raises:
        ValueError: There is no sample.
        ModuleNotFoundError: The exporter's packages are not installed.
    """
    sample = _sample(module, input_sample, "to_onnx(file_path, input_sample)")
    dynamo = kwargs.get("dynamo", inspect.signature(torch.onnx.export).parameters["dynamo"].default)
    if dynamo:
        require("onnxscript", extra="onnx", for_="to_onnx")
    target = str(file_path) if isinstance(file_path, os.PathLike) else file_path
    with _evaluating(module):
        moved = module._apply_batch_transfer_handler(sample)
        arguments: tuple[Any, ...] = moved if isinstance(moved, tuple) else (moved,)
        if isinstance(moved, dict) and not dynamo:
            arguments = (moved, {})  # a dict that comes last is taken for keyword arguments
        return torch.onnx.export(module, arguments, target, **kwargs)


def to_torchscript(
    module: LightningModule,
    file_path: str | Path | None = None,
    method: str | None = "script",
    example_inputs: Any | None = None,
    **kwargs: Any,
) -> Any:
    """Compile `module` to TorchScript. Deprecated, because torch deprecated TorchScript; use `torch.export`.

    Args:
        module: The module; its mode (training or not) is restored afterwards.
        file_path: Where to save the result; None saves nothing.
        method: `"script"` reads the source of `forward`, `"trace"` records one call.
        example_inputs: What `forward` is called with to trace; default: `module.example_input_array`.
        kwargs: Further arguments of `torch.jit.script` or `torch.jit.trace`.

    Returns:
        The compiled module.

    Raises:
        ValueError: Another method, or nothing to trace with.
    """
    rank_zero_deprecation(
        "`to_torchscript` is deprecated, as TorchScript is in torch."
        " Use `torch.export.export(model, args)` or `model.to_onnx(path)`."
    )
    if method not in ("script", "trace"):
        raise ValueError(f"`to_torchscript(method={method!r})` is unknown. Choose 'script' or 'trace'.")
    with _evaluating(module), _trainer_may_be_absent(module):
        if method == "script":
            compiled = torch.jit.script(module, **kwargs)
        else:
            sample = _sample(module, example_inputs, "to_torchscript(method='trace', example_inputs=...)")
            batch = module._apply_batch_transfer_handler(sample)
            compiled = torch.jit.trace(module, batch, **kwargs)  # type: ignore[no-untyped-call]  # in torch
    if file_path is not None:
        with get_filesystem(file_path).open(str(file_path), "wb") as file:
            torch.jit.save(compiled, file)
    return compiled


def to_tensorrt(
    module: LightningModule,
    file_path: str | Path | Any | None = None,
    input_sample: Any | None = None,
    ir: str = "default",
    output_format: str = "exported_program",
    retrace: bool = False,
    default_device: str | torch.device = "cuda",
    **compile_kwargs: Any,
) -> Any:
    """Compile `module` with Torch-TensorRT for NVIDIA GPUs.

    Args:
        module: The module; its mode and device are restored afterwards.
        file_path: Where to save the result; None saves nothing.
        input_sample: What `forward` is called with; default: `module.example_input_array`.
        ir: How the model is read: `"default"`, `"dynamo"`, `"ts"` or `"torch_compile"`.
        output_format: `"exported_program"`, `"torchscript"` or `"aot_inductor"`.
        retrace: Whether to trace the compiled module again when saving.
        default_device: The device to compile on, used if the module is not on a GPU.
        compile_kwargs: Further arguments of `torch_tensorrt.compile`.

    Returns:
        The compiled module.

    Raises:
        ModuleNotFoundError: The package `torch_tensorrt` is not installed.
        ValueError: There is no sample.
    """
    tensorrt = require("torch_tensorrt", extra="tensorrt", for_="to_tensorrt")
    sample = _sample(module, input_sample, "to_tensorrt(file_path, input_sample)")
    home = module.device
    if home.type != "cuda":
        module.to(default_device)
    try:
        with _evaluating(module):
            moved = module._apply_batch_transfer_handler(sample)
            inputs = list(moved) if isinstance(moved, list | tuple) else [moved]
            if ir == "ts":
                with _trainer_may_be_absent(module):
                    traced = torch.jit.trace(module, tuple(inputs))  # type: ignore[no-untyped-call]  # in torch
                compiled = tensorrt.compile(traced, inputs=inputs, ir=ir, **compile_kwargs)
            else:
                compiled = tensorrt.compile(module, inputs=inputs, ir=ir, **compile_kwargs)
            if file_path is not None:
                tensorrt.save(compiled, str(file_path), inputs=inputs, output_format=output_format, retrace=retrace)
    finally:
        module.to(home)
    return compiled


def _sample(module: LightningModule, given: Any, call: str) -> Any:
    sample = module.example_input_array if given is None else given
    if sample is None:
        raise ValueError(
            f"`{call}` needs an input to run `{type(module).__name__}.forward` with, and none is known."
            " Pass one, or set `self.example_input_array` in the module."
        )
    return sample


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule has its own mode back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def _trainer_may_be_absent(module: LightningModule) -> Iterator[None]:
    """Let `module.trainer` be None if there is none: TorchScript reads every property, and a raising one stops it."""
    children = list(module.modules())
    for child in children:
        child.__dict__["_trainer_is_required"] = False
    try:
        yield
    finally:
        for child in children:
            del child.__dict__["_trainer_is_required"]

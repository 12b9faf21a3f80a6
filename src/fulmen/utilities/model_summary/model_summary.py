"""ModelSummary: the layers of a model with their parameters, sizes and FLOPs, as data and as a table."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from fulmen.utilities.model_summary.memory import MB, num_bytes, training_memory
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import isolate_rng
from fulmen.utilities.tree import move_data_to_device
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = [
    "LEFTOVER_PARAMS_NAME",
    "NOT_APPLICABLE",
    "PARAMETER_NUM_UNITS",
    "UNKNOWN_SIZE",
    "LayerSummary",
    "ModelSummary",
    "format_summary_table",
    "get_formatted_model_size",
    "get_human_readable_count",
    "parse_batch_shape",
    "summarize",
]

PARAMETER_NUM_UNITS = [" ", "K", "M", "B", "T"]
UNKNOWN_SIZE = "?"
LEFTOVER_PARAMS_NAME = "other params"
NOT_APPLICABLE = "n/a"

_LAZY_PARAMETERS = (
    "Some parameters of the model are not initialized yet (lazy modules), so the model summary counts them as 0."
    " Set `self.example_input_array` in the module to initialize and count them."
)
_MIXED_SIZE = (
    "The size in MB in the model summary is that of the 32-bit parameters. Under `precision={!r}` autocast makes 16-bit"
    " copies of some of them on top, which it does not count. Read it as the size of the weights alone."
)


class LayerSummary:
    """One layer of a model: its type, its parameters, and the sizes it saw in the last forward pass.

    Args:
        module: The layer.

    Example::

        LayerSummary(nn.Linear(2, 3)).num_parameters  # 9
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._in_size: list[Any] | str | None = None
        self._out_size: list[Any] | str | None = None
        self._hook: RemovableHandle | None = None
        if not isinstance(module, torch.jit.ScriptModule):  # TorchScript takes no Python hooks
            self._hook = module.register_forward_hook(self._note_sizes, with_kwargs=True)

    def _note_sizes(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = (*args, *kwargs.values())
        self._in_size = parse_batch_shape(inputs[0] if len(inputs) == 1 else inputs)
        self._out_size = parse_batch_shape(output)
        self.detach_hook()

    def detach_hook(self) -> None:
        """Stop listening; happens by itself at the first forward pass."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def in_size(self) -> str | list[Any]:
        """Shape of the input as a list, nested for several inputs; "?" before the layer was used."""
        return UNKNOWN_SIZE if self._in_size is None else self._in_size

    @property
    def out_size(self) -> str | list[Any]:
        """Shape of the output, likewise."""
        return UNKNOWN_SIZE if self._out_size is None else self._out_size

    @property
    def layer_type(self) -> str:
        """Name of the class."""
        return type(self._module).__name__

    @property
    def num_parameters(self) -> int:
        """Number of values in all parameters, each parameter once; lazy ones count 0."""
        return _count(self._module.parameters())

    @property
    def training(self) -> bool:
        """Whether the layer is in train mode."""
        return self._module.training


class ModelSummary:
    """The layers of a model down to a depth, and totals.

    If the module has an `example_input_array`, it is run once, in eval mode and without gradients, to learn the sizes
    and the FLOPs; modes and random states are put back.

    Args:
        model: The module.
        max_depth: 1 lists the children, 2 their children too, -1 all layers, 0 none.

    Raises:
        ValueError: `max_depth` is less than -1.

    Example::

        print(ModelSummary(module, max_depth=-1))
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        if not isinstance(max_depth, int) or max_depth < -1:
            raise ValueError(
                f"`max_depth={max_depth!r}` is not a depth of layers. Use 0 for none, 1 or more for so many levels,"
                " or -1 for all."
            )
        self._model = model
        self._max_depth = max_depth
        self._flops_by_name: dict[str, dict[Any, int]] = {}
        self._layer_summary = self.summarize()

    # ---- totals

    @property
    def total_parameters(self) -> int:
        """Number of values in all parameters, shared ones once; lazy ones count 0, with a warning."""
        return _count(self._model.parameters(), warn=True)

    @property
    def trainable_parameters(self) -> int:
        """The same of the parameters that require gradients."""
        return _count(parameter for parameter in self._model.parameters() if parameter.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """The same of the listed layers."""
        return _count(self._listed_parameters().values())

    @property
    def model_size(self) -> float:
        """Size of all parameters in MB (1e6 bytes) in their present precision, which is 32 bits in mixed precision."""
        trainer = getattr(self._model, "_trainer", None)
        if trainer is not None and str(trainer.precision).endswith("-mixed"):
            rank_zero_warn(_MIXED_SIZE.format(trainer.precision), category=PossibleUserWarning)
        return num_bytes(self._model.parameters()) / MB

    @property
    def non_float_parameters(self) -> int:
        """Number of values in parameters of other types than floating-point numbers, such as quantized ones."""
        return _count(p for p in self._model.parameters() if not (p.is_floating_point() or p.is_complex()))

    @property
    def memory(self) -> dict[str, float | None]:
        """MB (1e6 bytes) of weights, buffers, gradients and, under a Trainer, optimizers; see `training_memory`."""
        trainer = getattr(self._model, "_trainer", None)
        return training_memory(self._model, () if trainer is None else trainer.optimizers)

    @property
    def total_training_modes(self) -> dict[str, int]:
        """How many modules, without the model itself, are in which mode: `{"train": ..., "eval": ...}`."""
        modes = [module.training for name, module in self._model.named_modules() if name]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_flops(self) -> int:
        """FLOPs of one forward pass of the example input; 0 without one."""
        return sum(self._flops_by_name.get("Global", {}).values())  # torch's name for all of them

    # ---- one entry for each layer

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """Dotted name and module of each listed layer."""
        if self._max_depth == 0:
            return []
        if self._max_depth == 1:
            return list(self._model.named_children())
        named = list(self._model.named_modules())[1:]
        if self._max_depth == -1:
            return named
        return [(name, module) for name, module in named if name.count(".") < self._max_depth]

    @property
    def layer_names(self) -> list[str]:
        """Dotted names."""
        return list(self._layer_summary)

    @property
    def layer_types(self) -> list[str]:
        """Names of the classes."""
        return [layer.layer_type for layer in self._layer_summary.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """Input shapes."""
        return [layer.in_size for layer in self._layer_summary.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """Output shapes."""
        return [layer.out_size for layer in self._layer_summary.values()]

    @property
    def param_nums(self) -> list[int]:
        """Numbers of parameters."""
        return [layer.num_parameters for layer in self._layer_summary.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each layer is in train mode."""
        return [layer.training for layer in self._layer_summary.values()]

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """FLOPs of each layer by operator; empty without an example input."""
        root = type(self._model).__name__
        return {name: dict(self._flops_by_name.get(f"{root}.{name}", {})) for name in self._layer_summary}

    # ---- making it

    def summarize(self) -> dict[str, LayerSummary]:
        """Look at the model anew.

        Returns:
            The summaries of the layers by dotted name.
        """
        summary = OrderedDict((name, LayerSummary(module)) for name, module in self.named_modules)
        try:
            if getattr(self._model, "example_input_array", None) is not None:
                self._run_example()
        finally:
            for layer in summary.values():
                layer.detach_hook()
        return summary

    def _run_example(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        model, trainer = self._model, getattr(self._model, "_trainer", None)
        example = getattr(model, "example_input_array", None)
        to_device = getattr(model, "_apply_batch_transfer_handler", None)
        counter = FlopCounterMode(display=False)
        with isolate_rng(), _all_in_eval(model), torch.no_grad(), contextlib.ExitStack() as stack:
            if any(parameter.is_meta for parameter in model.parameters()):  # nothing is computed, but sizes are known
                example = move_data_to_device(example, torch.device("meta"))
            elif to_device is not None:
                example = to_device(example)
            if trainer is not None:
                precision = trainer.strategy.precision_plugin
                example = precision.convert_input(example)
                stack.enter_context(precision.forward_context())
            stack.enter_context(warnings.catch_warnings())
            # compiled layers run their wrapper's hooks, too, which counts nothing twice
            warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
            stack.enter_context(counter)
            if isinstance(example, tuple):
                model(*example)
            elif isinstance(example, dict):
                model(**example)
            else:
                model(example)
        self._flops_by_name = {name: dict(counts) for name, counts in counter.get_flop_counts().items()}

    def _get_summary_data(self) -> list[tuple[str, list[str]]]:
        """Return the table by columns, without the row of the leftover parameters."""
        flops = self.flop_counts
        columns: list[tuple[str, list[str]]] = [
            (" ", [str(index) for index in range(len(self._layer_summary))]),
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(count) for count in self.param_nums]),
            ("Mode", ["train" if training else "eval" for training in self.training_modes]),
            ("FLOPs", [get_human_readable_count(sum(flops[name].values())) for name in self.layer_names]),
        ]
        if getattr(self._model, "example_input_array", None) is not None:
            columns.append(("In sizes", [str(size) for size in self.in_sizes]))
            columns.append(("Out sizes", [str(size) for size in self.out_sizes]))
        return columns

    def _listed_parameters(self) -> dict[int, Tensor]:
        return {id(p): p for _, module in self.named_modules for p in module.parameters()}

    def _leftover_parameters(self) -> int:
        """Parameters that are in no listed layer."""
        listed = self._listed_parameters()
        return _count(p for p in self._model.parameters() if id(p) not in listed)

    def _add_leftover_params_to_summary(self, columns: list[tuple[str, list[str]]], leftover: int) -> None:
        """Add the row "other params" to the table."""
        cells = {" ": " ", "Name": LEFTOVER_PARAMS_NAME, "Params": get_human_readable_count(leftover)}
        for title, column in columns:
            column.append(cells.get(title, NOT_APPLICABLE))

    def table(self) -> list[tuple[str, list[str]]]:
        """Return the table by columns: title and cells, with a row "other params" if there are some."""
        columns = self._get_summary_data()
        leftover = self._leftover_parameters()
        if leftover > 0:
            self._add_leftover_params_to_summary(columns, leftover)
        return columns

    def further_totals(self) -> list[tuple[str, str]]:
        """Return numbers as text with their names: what training needs beside the weights, and non-float parameters."""
        memory = self.memory
        sizes = {"gradients": "Estimated gradients size (MB)", "optimizer": "Estimated optimizer state size (MB)"}
        totals = [
            (UNKNOWN_SIZE if (size := memory[name]) is None else get_formatted_model_size(size), what)
            for name, what in sizes.items()
            if name in memory
        ]
        if self.non_float_parameters:
            totals.insert(0, (get_human_readable_count(self.non_float_parameters), "Non-float params"))
        return totals

    def __str__(self) -> str:
        """Write the table and the totals."""
        table = format_summary_table(
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
            *self.table(),
        )
        return "\n".join([table, *(f"{number:<10}{what}" for number, what in self.further_totals())])

    def __repr__(self) -> str:
        """The same as `str`."""
        return str(self)


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    """Summarize a module.

    Args:
        lightning_module: The module.
        max_depth: 1 lists the children, 2 their children too, -1 all layers, 0 none.

    Returns:
        An object to print, or to read numbers from.
    """
    return ModelSummary(lightning_module, max_depth=max_depth)


def parse_batch_shape(batch: Any) -> str | list[Any]:
    """Return the shape of a tensor as a list, nested for lists and tuples of tensors, "?" for anything else.

    Args:
        batch: What a layer got or returned.
    """
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, list | tuple):
        return [parse_batch_shape(item) for item in batch]
    return UNKNOWN_SIZE


def get_human_readable_count(number: int) -> str:
    """Write a count in at most three digits and a unit up to T: `0  `, `999  `, `1.0 K`, `123 K`, `1.0 M`.

    Args:
        number: The count, not negative.
    """
    if number < 0:
        raise ValueError(f"A count cannot be negative, got {number!r}. Pass the number of items.")
    value, unit = float(number), 0
    while value >= 1000 and unit < len(PARAMETER_NUM_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0 or value >= 100:
        return f"{int(value):,d} {PARAMETER_NUM_UNITS[unit]}"
    return f"{value:,.1f} {PARAMETER_NUM_UNITS[unit]}"


def get_formatted_model_size(total_model_size: float) -> str:
    """Write a size in MB with three decimals.

    Args:
        total_model_size: Size in MB.
    """
    return f"{total_model_size:,.3f}"


def format_summary_table(
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: Mapping[str, int],
    total_flops: int,
    *columns: tuple[str, list[str]],
) -> str:
    """Write columns, given by title and cells, and totals."""
    widths = [max(len(text) for text in (title, *cells)) for title, cells in columns]
    rows = [[title for title, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
    lines = [" | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * (sum(widths) + 3 * len(widths))
    totals = [
        (get_human_readable_count(trainable_parameters), "Trainable params"),
        (get_human_readable_count(total_parameters - trainable_parameters), "Non-trainable params"),
        (get_human_readable_count(total_parameters), "Total params"),
        (get_formatted_model_size(model_size), "Total estimated model params size (MB)"),
        (str(total_training_modes["train"]), "Modules in train mode"),
        (str(total_training_modes["eval"]), "Modules in eval mode"),
        (get_human_readable_count(total_flops), "Total FLOPs"),
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *(f"{number:<10}{what}" for number, what in totals)])


@contextlib.contextmanager
def _all_in_eval(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and each of its modules back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _count(parameters: Iterable[Tensor], *, warn: bool = False) -> int:
    parameters = list(parameters)
    initialized = [p for p in parameters if not isinstance(p, UninitializedParameter)]
    if warn and len(initialized) < len(parameters):
        rank_zero_warn(_LAZY_PARAMETERS, category=PossibleUserWarning)
    return sum(parameter.numel() for parameter in initialized)

"""A plan for tensor parallel training, written as names of modules and styles, and how it is applied.

A style says how the weights of a module are divided, what its input must look like, and what its output looks like::

    plain tensor or DTensor -> [input as the style wants it] -> the module's own forward on DTensors -> [output]

Everything that communicates is torch's `DTensor`; the styles are combinations of its placements.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

__all__ = ["STYLES", "Division", "ParallelPlan", "check_plan", "parallelize", "tied_parameters"]

ParallelPlan: TypeAlias = Mapping[str, str | ParallelStyle] | Callable[[nn.Module, DeviceMesh], nn.Module | None]
"""Patterns of module names with styles, or a function of module and mesh that does everything itself."""

STYLES: dict[str, str] = {
    "colwise": "each process computes some of the outputs of a Linear, or some columns of an Embedding",
    "colwise_gather": "as colwise; then the outputs are put together on all processes",
    "rowwise": "each process takes some of the inputs of a Linear, as colwise left them; results are summed",
    "vocabulary": "each process keeps some of the words of an Embedding, or of the Linear that predicts words",
    "sequence": "a norm or dropout; each process computes some positions of the sequence",
    "gather": "what the module gets is put together once, for the colwise layers inside; for sequence parallel plans",
    "replicate": "all processes compute the same; for the rest of a sequence parallel plan",
    "local": "a norm on what a colwise layer gave this process, e.g. its heads; its gradients are summed",
}
"""The styles that have a name, and what they do."""

_ALIASES = {"colwise_rep": "colwise_gather", "sequence_parallel": "sequence"}
_WHOLE, _FEATURES, _SEQUENCE = Replicate(), Shard(-1), Shard(1)
_FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj|gate_up|kv_proj|kv_a|w13", re.IGNORECASE)
_NUMBERS_OF_HEADS = (
    *("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "num_kv_heads", "n_kv_heads", "n_kv_head"),
    "num_key_value_heads",
)
_EXAMPLE = "`{'layers.*.mlp.up': 'colwise', 'layers.*.mlp.down': 'rowwise'}`"


@dataclass  # not frozen: torch sets `src_data_rank`
class _Style(ParallelStyle):
    """How one kind of module computes on one dimension of a mesh."""

    weights: Mapping[str, Placement] = field(default_factory=dict)
    """How its parameters are divided; those that are not here are whole everywhere."""
    takes: Placement = _WHOLE
    """What an input is that comes as a plain tensor."""
    computes_on: Placement | None = _WHOLE
    """What the input is made before it computes; None: what it is."""
    gives: Placement | None = None
    """What the output is made; None: what it is."""
    gives_plain: bool = False
    """Whether the output is a plain tensor, this process' part of it."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # torch's annotations omit that the functions return the new input and output
        return distribute_module(module, device_mesh, self._divide, self._prepare_input, self._prepare_output)  # type: ignore[arg-type]

    def _divide(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for own_name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                continue
            placement = self.weights.get(own_name, _WHOLE)
            # all processes hold the same here, so each takes its part and nothing is sent
            divided = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
            module.register_parameter(own_name, nn.Parameter(divided, requires_grad=parameter.requires_grad))

    def _prepare_input(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        if not inputs or not isinstance(inputs[0], Tensor):
            return inputs
        first, *others = inputs
        if not isinstance(first, DTensor):
            first = DTensor.from_local(first, mesh, [self.takes], run_check=False)
        if self.computes_on is not None:
            first = first.redistribute(placements=[_axis(self.computes_on, first)])
        return (first, *others)

    def _prepare_output(self, module: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
        if not isinstance(outputs, DTensor):
            return outputs
        if self.gives is not None:
            outputs = outputs.redistribute(placements=[_axis(self.gives, outputs)])
        return outputs.to_local() if self.gives_plain else outputs


def _axis(placement: Placement, tensor: Tensor) -> Placement:
    """The placement with the dimension counted from the front, which is how torch compares them."""
    return Shard(placement.dim % tensor.ndim) if isinstance(placement, Shard) else placement


# ---- what a plan may be


def check_plan(plan: Any, *, argument: str = "parallelize") -> None:
    """Check a plan by itself, before there is a module.

    Args:
        plan: The plan.
        argument: What the user calls it.

    Raises:
        TypeError: It is neither a mapping nor a function, or has values that are no styles.
        ValueError: It is empty, or a style has no such name.
    """
    if not isinstance(plan, Mapping):
        if not callable(plan):
            raise TypeError(
                f"`{argument}={plan!r}` is no plan: it must be a dict from names of modules to styles, or a function of"
                f" (module, mesh). Pass e.g. {_EXAMPLE}."
            )
        return
    if not plan:
        raise ValueError(
            f"`{argument}={plan!r}` names no module, so nothing would be parallel. Pass e.g. {_EXAMPLE}, or leave it"
            " out and divide the module in `configure_model`."
        )
    for pattern, style in plan.items():
        if not isinstance(pattern, str) or not isinstance(style, (str, ParallelStyle)):
            raise TypeError(
                f"`{argument}` has the entry {pattern!r}: {style!r}. Keys are names of modules, values the name of a"
                f" style or a `ParallelStyle` of torch. Pass e.g. {_EXAMPLE}."
            )
        if isinstance(style, str) and _ALIASES.get(style, style) not in STYLES:
            known = "; ".join(f"'{name}': {meaning}" for name, meaning in STYLES.items())
            raise ValueError(
                f"`{argument}` gives {pattern!r} the style {style!r}, which does not exist. Choose {known}."
            )


def parallelize(module: nn.Module, mesh: DeviceMesh, plan: ParallelPlan, *, loss_parallel: bool = False) -> nn.Module:
    """Divide a module over the processes of a mesh with one dimension, as a plan says.

    In a pattern, `*` stands for anything within one part of a name, `**` for any number of parts:
    "layers.*.attn.wq", "**.wq". With the style "sequence" anywhere, what flows between the layers is divided along the
    sequence (dimension 1 of (batch, sequence, features)), so each module with parameters needs a style (Korthikanti et
    al. 2022, Reducing Activation Recomputation in Large Transformer Models; Shoeybi et al. 2019, Megatron-LM).

    Args:
        module: The module; changed in place. All processes must hold the same weights; they may be on the meta device.
        mesh: Has one dimension.
        plan: Patterns with styles (see `STYLES`), or a function of module and mesh.
        loss_parallel: The Linear with the style "vocabulary" leaves its outputs divided, for a cross entropy inside of
            `torch.distributed.tensor.parallel.loss_parallel`.

    Returns:
        The module.

    Raises:
        TypeError: A style does not suit the module that it is given to.
        ValueError: A pattern fits no module, two fit the same, or something cannot be divided by the processes.
    """
    check_plan(plan)
    if not isinstance(plan, Mapping):
        return plan(module, mesh) or module
    division = Division(module, mesh, plan, loss_parallel=loss_parallel)
    for layer in list(module.modules()):
        division.divide(layer)
    division.finish()
    return module


class Division:
    """A plan for one module, applied a layer at a time.

    Args:
        module: The module; changed in place.
        mesh: Has one dimension.
        plan: Patterns with styles.
        loss_parallel: As in `parallelize`.

    Raises:
        TypeError: A style does not suit the module that it is given to.
        ValueError: A pattern fits no module, two fit the same, or something cannot be divided by the processes.
    """

    def __init__(
        self, module: nn.Module, mesh: DeviceMesh, plan: Mapping[str, str | ParallelStyle], *, loss_parallel: bool
    ) -> None:
        chosen = _match(module, plan)
        named = {name: _ALIASES.get(style, style) for name, style in chosen.items() if isinstance(style, str)}
        if loss_parallel:
            _check_predictions(module, named)
        for name, style in named.items():
            _check_module(module, name, style, mesh.size())
        self._module = module
        self._mesh = mesh
        self._is_sequence = "sequence" in named.values()
        self._tied = tied_parameters(module)
        self._styles: dict[int, ParallelStyle] = {}
        for name, given in chosen.items():
            child = module.get_submodule(name)
            self._styles[id(child)] = (
                _style_for(child, named[name], is_sequence=self._is_sequence, loss_parallel=loss_parallel)
                if name in named
                else given  # type: ignore[assignment]  # those without a name are objects
            )

    def divide(self, layer: nn.Module) -> None:
        """Divide one module of the plan; others stay as they are.

        Args:
            layer: The module, with the same weights on all processes.
        """
        style = self._styles.pop(id(layer), None)
        if style is not None:
            parallelize_module(layer, self._mesh, style)

    def finish(self) -> None:
        """Make tied parameters one again, and check that nothing was left out; when all layers are divided.

        Raises:
            ValueError: Tied parameters are divided in different ways, or a module needs a style and has none.
        """
        _tie(self._module, self._tied)
        if self._is_sequence:
            _check_complete(self._module)


# ---- which modules


def _match(module: nn.Module, plan: Mapping[str, str | ParallelStyle]) -> dict[str, str | ParallelStyle]:
    names = [name for name, _ in module.named_modules() if name]
    chosen: dict[str, str | ParallelStyle] = {}
    by: dict[str, str] = {}
    for pattern, style in plan.items():
        expression = re.compile(_as_expression(pattern))
        fitting = [name for name in names if expression.fullmatch(name)]
        if not fitting:
            near = difflib.get_close_matches(pattern, _generic(names), n=3, cutoff=0.3)
            raise ValueError(
                f"`parallelize` has the pattern {pattern!r}, which fits no module of `{type(module).__name__}`."
                f" Near names: {', '.join(map(repr, near)) or 'none'}. `*` stands for one part of a name, `**` for any"
                " number of parts."
            )
        for name in fitting:
            if name in chosen:
                raise ValueError(
                    f"`parallelize` names {name!r} twice, by {by[name]!r} and {pattern!r}, and a module has one style."
                    " Make the patterns exclude each other."
                )
            chosen[name], by[name] = style, pattern
    return chosen


def _as_expression(pattern: str) -> str:
    parts = {"**.": r"(?:[^.]+\.)*", "**": r".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.sub(r"\*\*\.|\*\*|\*|\?|[^*?]+", lambda found: parts.get(found[0], re.escape(found[0])), pattern)


def _generic(names: list[str]) -> list[str]:
    """Names as one would write them in a plan, each once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


# ---- does the style suit


def _check_predictions(module: nn.Module, named: Mapping[str, str]) -> None:
    heads = [name for name, style in named.items() if style == "vocabulary"]
    if not any(isinstance(module.get_submodule(name), nn.Linear) for name in heads):
        raise ValueError(
            "`loss_parallel=True` leaves the predictions divided by words, but no `nn.Linear` has the style"
            " 'vocabulary'. Give it to the layer that predicts words, e.g. `{'lm_head': 'vocabulary'}`."
        )


def _check_module(root: nn.Module, name: str, style: str, size: int) -> None:
    module = root.get_submodule(name)
    kinds: dict[str, tuple[type[nn.Module], ...]] = {"rowwise": (nn.Linear,)}
    kinds |= dict.fromkeys(("colwise", "colwise_gather", "vocabulary"), (nn.Linear, nn.Embedding))
    if style not in kinds:
        return
    if not isinstance(module, kinds[style]):
        known = " or ".join(f"`nn.{kind.__name__}`" for kind in kinds[style])
        instead = " For an embedding take 'vocabulary'." if isinstance(module, nn.Embedding) else ""
        raise TypeError(
            f"`parallelize` gives {name!r} the style {style!r}, which is for {known}, but it is a"
            f" `{type(module).__name__}`.{instead} Name the layers inside it, or pass a `ParallelStyle` of torch."
        )
    if style == "colwise" and _FUSED.search(name.rpartition(".")[2]):
        raise ValueError(
            f"`parallelize` gives {name!r} the style 'colwise', but its name says that it computes several things at"
            " once (as queries, keys and values). Cut in one piece per process, each would get the wrong parts of"
            " them. Make one `nn.Linear` for each; if the name misleads, pass `ColwiseParallel()` of torch."
        )
    dimension = _divided_dimension(module, style)
    length = getattr(module, dimension)
    if length % size:
        raise ValueError(
            f"`parallelize` gives {name!r} the style {style!r}, but its `{dimension}={length}` cannot be divided by the"
            f" {size} processes of `tensor_parallel_size`. Choose a size that can be (for a vocabulary: add unused"
            " words), or another number of processes."
        )
    _check_heads(root, name, style, size)


def _divided_dimension(module: nn.Module, style: str) -> str:
    if isinstance(module, nn.Embedding):
        return "num_embeddings" if style == "vocabulary" else "embedding_dim"
    return "in_features" if style == "rowwise" else "out_features"


def _check_heads(root: nn.Module, name: str, style: str, size: int) -> None:
    if style not in ("colwise", "rowwise"):
        return
    parent_name = name.rpartition(".")[0]
    parent = root.get_submodule(parent_name)
    for attribute in _NUMBERS_OF_HEADS:
        number = getattr(parent, attribute, None)
        if isinstance(number, int) and number % size:
            raise ValueError(
                f"`parallelize` divides {name!r}, but `{parent_name}.{attribute}={number}` heads cannot be divided by"
                f" the {size} processes of `tensor_parallel_size`: one head would be on two of them. Choose a"
                " `tensor_parallel_size` that divides the number of heads."
            )


def _check_complete(module: nn.Module) -> None:
    left = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        owners = list(dict.fromkeys(name.rpartition(".")[0] or name for name in left))
        raise ValueError(
            f"`parallelize` has the style 'sequence', so what flows between the layers is divided along the sequence,"
            f" but these modules have parameters and no style: {', '.join(map(repr, owners[:10]))}. On a part of the"
            " sequence, their gradients would be wrong. Give norms 'sequence', others 'replicate'."
        )


# ---- how


def _style_for(module: nn.Module, style: str, *, is_sequence: bool, loss_parallel: bool) -> _Style:
    by_rows = {"weight": Shard(0), "bias": Shard(0)}
    if isinstance(module, nn.Embedding) and style.startswith("colwise"):
        by_rows = {"weight": Shard(1)}
    stream = {"gives": _SEQUENCE} if is_sequence else {"gives": _WHOLE, "gives_plain": True}
    if style == "vocabulary" and isinstance(module, nn.Embedding):
        return _Style({"weight": Shard(0)}, **stream)
    if style == "vocabulary" and loss_parallel:
        return _Style(by_rows, gives=_FEATURES)
    styles = {
        "colwise": _Style(by_rows, gives=_FEATURES, gives_plain=True),
        "colwise_gather": _Style(by_rows, gives=_WHOLE, gives_plain=True),
        "vocabulary": _Style(by_rows, gives=_WHOLE, gives_plain=True),
        "rowwise": _Style({"weight": Shard(1)}, takes=_FEATURES, computes_on=_FEATURES, **stream),
        "sequence": _Style(computes_on=_SEQUENCE),
        "gather": _Gather(),
        "replicate": _Style(computes_on=None, gives=None if is_sequence else _WHOLE, gives_plain=not is_sequence),
        # A norm treats all but the last dimension alike, so it does not matter which of them is divided.
        "local": _Style(takes=Shard(0), computes_on=None, gives_plain=True),
    }
    return styles[style]


class _Gather(_Style):
    """Only the input changes: the layers inside have styles of their own."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def prepare(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._prepare_input(module, inputs, device_mesh)

        module.register_forward_pre_hook(prepare)
        return module


# ---- parameters that several modules share


def tied_parameters(module: nn.Module) -> list[list[str]]:
    """Return the names of the parameters that are one object, group by group.

    Args:
        module: The module.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(module: nn.Module, groups: list[list[str]]) -> None:
    """Make those that were one object one again.

    Raises:
        ValueError: They are divided in different ways.
    """
    for names in groups:
        parameters = [module.get_parameter(name) for name in names]
        divisions = [parameter.placements if isinstance(parameter, DTensor) else "whole" for parameter in parameters]
        if any(division != divisions[0] for division in divisions):
            pairs = ", ".join(f"{name!r} ({division})" for name, division in zip(names, divisions, strict=True))
            raise ValueError(
                f"These parameters are tied, but `parallelize` divides them differently: {pairs}. They would be trained"
                " apart. Give their modules the same style; embedding and head: 'vocabulary'."
            )
        for name in names[1:]:
            owner, _, own_name = name.rpartition(".")
            module.get_submodule(owner).register_parameter(own_name, parameters[0])

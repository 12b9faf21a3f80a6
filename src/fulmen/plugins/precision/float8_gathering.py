"""Weights in shards that are sent in float8 when `fully_shard` gathers them: a quarter of the bytes of 32 bit.

The layers compute the same with it: one factor scales the whole weight, and it is the same whether the weight is
rounded before it is gathered or afterwards. Each shard stays a plain tensor in its own type, with two functions of
FSDP2's extension of the all-gather attached to it; so optimizers and checkpoints see nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen.utilities.fsdp_units import parameter_groups, units_of
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["gather_in_float8"]


def gather_in_float8(module: nn.Module) -> int:
    """Have the weights of float8 layers gathered in float8; nothing happens to those that are so already.

    Left as they are: weights that other layers use too, those kept in host memory, and those that are gathered on fewer
    ranks for the backward pass than for the forward pass (`reshard_after_forward` with a number).

    Args:
        module: Its layers are those of `torchao.float8`, scaled per tensor, and cut by `fully_shard`.

    Returns:
        Number of weights that are gathered in float8.

    Source: the extension of the all-gather of `torch.distributed.fsdp.fully_shard`; `torchao.float8.fsdp_utils` does
    the same with a subclass of `Tensor` in place of the weights.
    """
    torchao = _Torchao()
    weights = list(_weights(module, torchao.layer))
    new = [weight for weight in weights if not hasattr(weight._sharded_local_tensor, "fsdp_pre_all_gather")]
    scales = _Scales(torchao)
    for weight in new:
        _Gathering(weight, scales, torchao).attach()
    compiler: Any = torch.compiler  # has no types
    forget = compiler.disable(scales.forget)  # not as a decorator, which would load the compiler on import
    for root in _roots(module) if new else ():
        root.register_forward_pre_hook(forget, prepend=True)  # weights may have changed in any way since
    return len(weights)


class _Torchao:
    """What is used of the package."""

    def __init__(self) -> None:
        def part(name: str) -> Any:
            return require(f"torchao.float8.{name}", extra="float8", for_="precision='fp8-mixed'")

        self.layer = part("float8_linear").Float8Linear
        self.tensor = part("float8_training_tensor").Float8TrainingTensor
        self.role = part("float8_training_tensor").GemmInputRole.WEIGHT
        self.round = part("float8_training_tensor").hp_tensor_and_scale_to_float8
        self.scale_of = part("float8_utils").amax_to_scale


def _weights(module: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    """The weights of float8 layers, as FSDP2 knows them."""
    for unit in units_of(module):
        for group in parameter_groups(unit):
            if group._use_post_forward_mesh:
                continue
            for weight in group.fsdp_params:
                place = weight._module_info
                is_alone = isinstance(place.module, kind) and not place.shared_modules
                if is_alone and place.param_name == "weight" and not weight.offload_to_cpu:
                    yield weight


def _roots(module: nn.Module) -> list[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        return [module]
    return [root for child in module.children() for root in _roots(child)]


class _Scales:
    """The factor of each weight, computed for all of them at once, so with one exchange for a step."""

    def __init__(self, torchao: _Torchao) -> None:
        self._torchao = torchao
        self._weights: list[Any] = []
        self._known: dict[int, tuple[Any, Tensor]] = {}  # by place: of which values, and the factor

    def forget(self, *_: Any) -> None:
        """Compute all factors anew when the next weight is gathered."""
        self._known.clear()

    def add(self, weight: Any) -> int:
        """Take up a weight.

        Args:
            weight: As FSDP2 knows it.

        Returns:
            Its place among the others.
        """
        self._weights.append(weight)
        return len(self._weights) - 1

    def of(self, place: int, mesh: DeviceMesh) -> Tensor:
        """Return the factor of a weight; all ranks that gather it must call this.

        Args:
            place: That of the weight.
            mesh: The ranks that have a part of it.
        """
        if not self._is_known(place):
            self._compute(mesh)
        return self._known[place][1]

    def _is_known(self, place: int) -> bool:
        known = self._known.get(place)
        return known is not None and known[0] == self._values(place)

    def _values(self, place: int) -> tuple[int, int, int]:
        """What differs after a write to the weight or to its shard."""
        weight = self._weights[place]
        shard = weight._sharded_local_tensor
        return id(shard), weight.sharded_param._version, shard._version

    @torch.no_grad()
    def _compute(self, mesh: DeviceMesh) -> None:
        changed = [place for place in range(len(self._weights)) if not self._is_known(place)]
        shards = [self._weights[place]._sharded_local_tensor for place in changed]
        largest = torch.stack(
            [shard.abs().amax() if shard.numel() else shard.new_zeros(()) for shard in shards]  # a rank may have none
        )
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=mesh.get_group())
        for place, value in zip(changed, largest, strict=True):
            config = self._weights[place]._module_info.module.config
            factor = self._torchao.scale_of(
                value, config.cast_config_weight.target_dtype, config.round_scales_to_power_of_2
            )
            self._known[place] = self._values(place), factor


class _Gathering:
    """The two functions that FSDP2 looks for on a shard."""

    def __init__(self, weight: Any, scales: _Scales, torchao: _Torchao) -> None:
        self._weight = weight
        self._layer = weight._module_info.module
        self._place = scales.add(weight)
        self._scales = scales
        self._torchao = torchao

    def attach(self) -> None:
        """Attach them, also to the shards that take the place of this one (`module.to`)."""
        reset = self._weight.reset_sharded_param

        def reset_and_attach() -> None:
            reset()
            self._to_shard()

        self._weight.reset_sharded_param = reset_and_attach
        self._to_shard()
        self._weight._init_extensions()

    def _to_shard(self) -> None:
        shard = self._weight._sharded_local_tensor
        shard.fsdp_pre_all_gather = self.before
        shard.fsdp_post_all_gather = self.after

    def before(
        self,
        mesh: DeviceMesh,
        outer_size: torch.Size,
        outer_stride: tuple[int, ...],
        module: nn.Module,
        mp_policy: MixedPrecisionPolicy,
    ) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """Round this rank's part.

        Args:
            mesh: The ranks that have a part.
            outer_size: Of the whole weight.
            outer_stride: Of the whole weight.
            module: The layer.
            mp_policy: Not used: float8 is smaller than what it could ask for.

        Returns:
            What is sent, and what `after` needs.
        """
        scale = self._scales.of(self._place, mesh)
        padded = self._weight._sharded_param_data.view(self._weight.padded_sharded_param_size)
        dtype = self._layer.config.cast_config_weight.target_dtype
        rounded = self._torchao.round(padded, scale, dtype, self._layer.linear_mm_config, self._torchao.role)
        return (rounded._data,), (scale,)

    def after(
        self, all_gather_outputs: tuple[Tensor, ...], metadata: Any, param_dtype: torch.dtype, *, out: Any = None
    ) -> tuple[Tensor, tuple[Tensor]] | None:
        """Make the weight that the layer computes with.

        Args:
            all_gather_outputs: What came from all ranks.
            metadata: What `before` returned.
            param_dtype: The type that the weight stands for.
            out: The weight of the time before, which gets the values of this time.

        Returns:
            The weight and its memory; nothing if there is `out`.
        """
        (data,), (scale,) = all_gather_outputs, metadata
        if scale.is_cuda:
            scale.record_stream(torch.cuda.current_stream())  # made on the stream that gathers
        if out is not None:
            out._scale = scale
            return None
        made = self._torchao.tensor(
            data, scale, param_dtype, self._layer.linear_mm_config, gemm_input_role=self._torchao.role
        )
        return made, (data,)

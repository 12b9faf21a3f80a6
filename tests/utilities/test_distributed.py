"""Collectives on values of whatever shape, on two real ranks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fulmen.utilities.distributed import (
    agree,
    all_gather,
    all_reduce,
    broadcast_object,
    broadcast_tensors,
    gather_objects,
    is_group_initialized,
    resolve_reduce_op,
)
from tests.distributed_harness import run_ranks

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", dist.ReduceOp.SUM),
        ("MAX", dist.ReduceOp.MAX),
        ("prod", dist.ReduceOp.PRODUCT),
        ("mean", dist.ReduceOp.AVG),
        ("avg", dist.ReduceOp.AVG),
        (None, dist.ReduceOp.AVG),
        (dist.ReduceOp.MIN, dist.ReduceOp.MIN),
    ],
)
def test_a_reduction_is_named_or_given(name: Any, expected: Any) -> None:
    assert resolve_reduce_op(name) == expected


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a way to reduce"):
        resolve_reduce_op("median")


def _reduce() -> dict[str, Any]:
    assert not is_group_initialized()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    floats = torch.tensor([1.0, 2.0]) * (rank + 1)
    kept = floats
    integers = torch.tensor([rank, 3])
    weight = torch.ones(1, requires_grad=True)
    loss = weight * (rank + 1)
    strided = torch.arange(6.0).view(2, 3).t()[::2] * (rank + 1)
    strided = torch.arange(12.0).view(3, 4)[:, ::2].mul(rank + 1) if rank < 0 else strided
    view = torch.zeros(2, 3)
    view[:, 0] = rank
    column = view[:, 0]
    results = {
        "mean": all_reduce(floats),
        "in_place": all_reduce(torch.tensor(1.0)) is not None and all_reduce(floats) is kept,
        "integer_mean": all_reduce(integers),
        "integers_kept": integers,
        "integer_sum": all_reduce(torch.tensor(rank + 1), reduce_op="sum"),
        "max": all_reduce(torch.tensor(float(rank)), reduce_op="max"),
        "any": all_reduce(torch.tensor([rank == 1, False]), reduce_op="max"),
        "share": all_reduce(torch.tensor([rank == 1, False])),
        "product": all_reduce(torch.tensor(rank + 2), reduce_op="product"),
        "complex": all_reduce(torch.tensor([1 + 1j * rank])),
        "half": all_reduce(torch.tensor([1.0, 3.0], dtype=torch.bfloat16) * rank, reduce_op="sum"),
        "double": all_reduce(torch.tensor(0.1 * rank, dtype=torch.float64)),
        "column": all_reduce(column, reduce_op="sum"),
        "view": view,
        "loss": all_reduce(loss),
        "strided": all_reduce(strided),
        "agreed": agree([rank, -rank, 7], "max") + agree([rank + 1], "sum"),
    }
    results["loss_kept"] = loss.detach()
    loss.sum().backward()
    results["gradient"] = weight.grad
    dist.destroy_process_group()
    return results


def test_values_are_reduced_without_truncation_and_outside_of_graphs() -> None:
    for rank, results in enumerate(run_ranks(_reduce)):
        assert results["mean"].tolist() == [1.5, 3.0]
        assert results["in_place"]
        assert results["integer_mean"].tolist() == [0.5, 3.0]
        assert results["integer_mean"].dtype is torch.float32
        assert results["integers_kept"].tolist() == [rank, 3]
        assert results["integer_sum"].item() == 3
        assert results["integer_sum"].dtype is torch.int64
        assert results["max"].item() == 1
        assert results["any"].tolist() == [True, False]
        assert results["any"].dtype is torch.bool
        assert results["share"].tolist() == [0.5, 0.0]
        assert results["product"].item() == 6
        assert results["complex"].tolist() == [1 + 0.5j]
        assert results["half"].tolist() == [1.0, 3.0]
        assert results["double"].item() == 0.05
        assert results["view"][:, 0].tolist() == [1.0, 1.0]
        assert results["loss"].item() == 1.5
        assert not results["loss"].requires_grad
        assert results["loss_kept"].item() == rank + 1
        assert results["gradient"].item() == rank + 1
        assert results["agreed"] == [1, 0, 7, 3]


def _gather() -> dict[str, Any]:
    dist.init_process_group("gloo")
    warnings.simplefilter("error")  # each rank would print it
    rank = dist.get_rank()
    (scalar, matrix) = all_gather([torch.tensor(rank), torch.full((2, 3), rank)])
    (uneven, even) = all_gather([torch.full((rank + 1, 2), float(rank)), torch.tensor([rank == 0])])
    (empty,) = all_gather([torch.zeros(rank * 2)])
    (ranks_of_shape,) = all_gather([torch.ones(2) if rank else torch.ones(1, 2)])
    (half,) = all_gather([torch.tensor([1.0 + rank], dtype=torch.bfloat16)])
    (complex_,) = all_gather([torch.tensor([1j * rank])])

    own = torch.tensor([1.0, 2.0], requires_grad=True)
    (stacked,) = all_gather([own * (rank + 1)], sync_grads=True)
    assert isinstance(stacked, torch.Tensor)
    (stacked * torch.tensor([[1.0], [10.0]])).sum().backward()

    short = torch.ones(rank + 1, requires_grad=True)
    (parts,) = all_gather([short * 3], sync_grads=True)
    sum(part.sum() * (idx + 1) for idx, part in enumerate(parts)).backward()

    (detached,) = all_gather([own])
    message = ""
    try:
        all_gather([torch.ones(1), torch.ones(1, dtype=torch.int64 if rank else torch.int32)])
    except RuntimeError as error:
        message = str(error)
    return {
        "scalar": scalar, "matrix": matrix, "uneven": uneven, "even": even, "empty": empty, "half": half,
        "complex": complex_, "ranks_of_shape": ranks_of_shape, "grad": own.grad, "uneven_grad": short.grad,
        "is_detached": not detached.requires_grad, "message": message,  # type: ignore[union-attr]  # same shapes
        "objects": gather_objects({"rank": rank}),
    }  # fmt: skip


def test_tensors_are_gathered_whatever_their_shapes() -> None:
    for rank, results in enumerate(run_ranks(_gather)):
        assert results["scalar"].tolist() == [0, 1]
        assert results["matrix"].shape == (2, 2, 3)
        assert [part.shape for part in results["uneven"]] == [(1, 2), (2, 2)]
        assert torch.cat(tuple(results["uneven"])).tolist() == [[0, 0], [1, 1], [1, 1]]
        assert results["even"].tolist() == [[True], [False]]
        assert [len(part) for part in results["empty"]] == [0, 2]
        assert results["half"].tolist() == [[1], [2]]
        assert results["complex"].tolist() == [[0], [1j]]
        assert [part.shape for part in results["ranks_of_shape"]] == [(1, 2), (2,)]
        # both ranks differentiate the whole: each part gets the sum of two gradients
        assert results["grad"].tolist() == [[2.0, 2.0], [40.0, 40.0]][rank]
        assert results["uneven_grad"].tolist() == [[6.0], [12.0, 12.0]][rank]
        assert results["is_detached"]
        assert "tensors of different types" in results["message"]
        assert results["objects"] == [{"rank": 0}, {"rank": 1}]


def _broadcast() -> dict[str, Any]:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = {"rank": rank, "tensor": torch.tensor([float(rank)])}
    received = broadcast_object(own, 1, CPU)
    lines = [torch.full((2, 2), float(rank)), torch.full((3, 2), float(rank)).t(), torch.tensor(1j * rank)]
    broadcast_tensors(lines, src=1)
    return {"received": received, "is_own": received is own, "lines": lines}


def test_objects_and_tensors_come_from_one_rank() -> None:
    for rank, results in enumerate(run_ranks(_broadcast)):
        assert results["received"] == {"rank": 1, "tensor": torch.tensor([1.0])}
        assert results["is_own"] is (rank == 1)
        assert [line.unique().tolist() for line in results["lines"][:2]] == [[1.0], [1.0]]
        assert results["lines"][2].item() == 1j

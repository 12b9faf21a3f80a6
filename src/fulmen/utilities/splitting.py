"""Dividing a batch into smaller ones along its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.tree import apply_to_collection

__all__ = ["even_sizes", "num_samples", "split_batch"]

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_ADVICE = (
    " `Trainer(accumulate_grad_batches='auto')` divides tensors and arrays along their first dimension, and lists with"
    " one plain value or one object per sample, nested in mappings, sequences and dataclasses. Let the collate function"
    " return such a batch, or choose a smaller `batch_size` of the DataLoader with `accumulate_grad_batches=<int>`."
)


class _LeafType(type):
    """Makes `isinstance(item, _Leaf)` true for what is not a structure of further items."""

    def __instancecheck__(cls, item: Any) -> bool:
        if isinstance(item, (PackedSequence, str, bytes)):
            return True
        if isinstance(item, Mapping) or hasattr(item, "_fields"):
            return False
        if isinstance(item, Sequence):
            return all(isinstance(each, _PLAIN) for each in item)
        return not dataclasses.is_dataclass(item)


class _Leaf(metaclass=_LeafType):
    pass


def num_samples(batch: Any) -> int:
    """Return how many samples a batch has.

    Args:
        batch: Tensors and arrays with samples along their first dimension, and lists with one value per sample, nested
            as you like; or a mapping or sequence of lists with one object per sample. Numbers, texts and tensors
            without dimensions belong to all samples.

    Raises:
        MisconfigurationException: It cannot be divided: the parts say different numbers, or something in it is unknown.
    """
    lengths: set[int] = set()
    apply_to_collection(batch, _Leaf, lambda leaf: lengths.update(_length(leaf)))
    of_lists = _length_of_lists(batch)
    if len(lengths) == 1 and of_lists is None:
        return lengths.pop()
    if len(lengths) != 1 and of_lists is not None:
        return of_lists
    if of_lists is not None:
        raise MisconfigurationException(
            f"The batch can be read in two ways: {of_lists} samples in lists, or {lengths.pop()} along the first"
            f" dimension of its tensors.{_ADVICE}"
        )
    found = f"the lengths of its parts are {sorted(lengths)}" if lengths else "there is no tensor in it"
    raise MisconfigurationException(f"The number of samples in the batch is not clear: {found}.{_ADVICE}")


def split_batch(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Divide a batch; tensors of the parts are views of its own.

    Args:
        batch: A batch for which `num_samples` has an answer.
        sizes: Numbers of samples of the parts; their sum is that of the batch.

    Returns:
        Batches of the same structure.
    """
    stops = list(accumulate(sizes))
    bounds = [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    if _length_of_lists(batch) is not None:
        # the lists themselves are divided; a sequence of them has its type kept
        return [
            apply_to_collection(batch, (list, tuple), _items, part)
            if isinstance(batch, Mapping)
            else type(batch)(items[part] for items in batch)
            for part in bounds
        ]
    return [apply_to_collection(batch, _Leaf, _part_of, part) for part in bounds]


def even_sizes(total: int, most: int) -> list[int]:
    """Return sizes of as few parts as possible, none above `most`, that differ by at most one."""
    count = -(-total // most)
    return [total // count + (idx < total % count) for idx in range(count)]


def _length(leaf: Any) -> tuple[int, ...]:
    """Return the number of samples that a leaf tells of; empty if it belongs to all samples."""
    if isinstance(leaf, _PLAIN):
        return ()
    if isinstance(leaf, PackedSequence) or not (isinstance(leaf, (Tensor, list, tuple)) or hasattr(leaf, "__array__")):
        raise MisconfigurationException(f"A batch with a `{type(leaf).__name__}` in it cannot be divided.{_ADVICE}")
    if isinstance(leaf, (list, tuple)):
        return (len(leaf),) if leaf else ()
    return (int(leaf.shape[0]),) if leaf.ndim else ()


def _part_of(leaf: Any, part: slice) -> Any:
    return leaf[part] if _length(leaf) else leaf


def _items(items: Any, part: slice) -> Any:
    return items[part]


def _length_of_lists(batch: Any) -> int | None:
    """Return the common length if a batch is made of lists of one object per sample."""
    members = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(members, (list, tuple)) or hasattr(members, "_fields") or not members:
        return None
    if not all(isinstance(each, (list, tuple)) and not isinstance(each, PackedSequence) for each in members):
        return None
    if all(isinstance(each, _Leaf) for each in members):
        return None  # lists of plain values, which are divided all the same
    lengths = {len(each) for each in members}
    return lengths.pop() if len(lengths) == 1 else None

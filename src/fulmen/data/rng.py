"""Random number generators of a process and of the objects that load data: finding them, snapshots of them."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from types import FunctionType, ModuleType
from typing import Any

import torch

from fulmen.utilities.seed import collect_rng_states, isolate_rng

__all__ = [
    "NumpySnapshot",
    "find_generators",
    "generator_state",
    "plain_rng_states",
    "raw_rng_states",
    "same_rng_states",
    "set_generator_state",
    "set_raw_rng_states",
]

_MOST_OBJECTS = 2000
_MOST_ITEMS = 64
_BYTES_OF_MT19937 = 624 * 4 + 4
_OPAQUE = (str, bytes, int, float, bool, type(None), type, FunctionType, ModuleType, torch.Tensor, torch.nn.Module)


# ---- generators of this process, cheaply


def raw_rng_states() -> tuple[Any, ...]:
    """Snapshot the generators of this process in whatever form is fastest; see `plain_rng_states`."""
    return torch.get_rng_state(), random.getstate(), _numpy_snapshot.take()


class NumpySnapshot:
    """NumPy's state in the process. Asking NumPy takes 30 us, so that is only done if the state has changed."""

    def __init__(self) -> None:
        self._state: Any = None
        self._memory: bytes | None = None

    def take(self) -> Any:
        """Return what `numpy.random.get_state()` returns, the same object as before if nothing changed.

        Returns:
            The state; `None` while NumPy is not imported.
        """
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        memory = _memory_of_state(numpy)
        if memory is None or memory != self._memory:
            self._state = numpy.random.get_state()
            keeps_normal_number = bool(self._state[3])  # it would be given without a change in memory
            self._memory = None if keeps_normal_number else memory
        return self._state


_numpy_snapshot = NumpySnapshot()


def _memory_of_state(numpy: Any) -> bytes | None:
    get = getattr(numpy.random, "get_bit_generator", None)  # NumPy 1.24
    if get is None or type(get()).__name__ != "MT19937":
        return None
    return ctypes.string_at(get().ctypes.state_address, _BYTES_OF_MT19937)


def same_rng_states(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Tell whether two snapshots are of the same state.

    Args:
        one: What `raw_rng_states` returned.
        other: What it returned at another time.
    """
    # NumPy's is `None` as long as it is not imported
    numpys = [state and (state[0], state[1].tobytes(), *state[2:]) for state in (one[2], other[2])]
    return torch.equal(one[0], other[0]) and one[1] == other[1] and numpys[0] == numpys[1]


def set_raw_rng_states(raw: tuple[Any, ...]) -> None:
    """Put a snapshot back.

    Args:
        raw: What `raw_rng_states` returned.
    """
    torch_state, python_state, numpy_state = raw
    torch.set_rng_state(torch_state)
    random.setstate(python_state)
    if numpy_state is not None:
        sys.modules["numpy"].random.set_state(numpy_state)


def plain_rng_states(raw: tuple[Any, ...]) -> dict[str, Any]:
    """Return a snapshot as plain data, for `fulmen.utilities.seed.set_rng_states`."""
    with isolate_rng(include_cuda=False):
        set_raw_rng_states(raw)
        return collect_rng_states(include_cuda=False)


# ---- generators that belong to objects


def find_generators(roots: Iterable[Any], *, without: Iterable[Any] = ()) -> list[Any]:
    """Return the generators that objects hold, themselves or in what they hold, in a fixed order, each once.

    Found are `torch.Generator`, `random.Random`, and numpy's `Generator` and `RandomState`.

    Args:
        roots: Where to look.
        without: Objects not to look into.
    """
    ours: Any = random
    seen = {id(each) for each in without} | {id(ours._inst)}  # the one behind `random.random()` is the process's
    found: list[Any] = []
    level = list(roots)
    while level and len(seen) < _MOST_OBJECTS:
        following: list[Any] = []
        for each in level:
            if isinstance(each, _OPAQUE) or id(each) in seen:
                continue
            seen.add(id(each))
            if _is_generator(each):
                found.append(each)
            else:
                following.extend(_parts(each))
        level = following
    return found


def _is_generator(value: Any) -> bool:
    if isinstance(value, (torch.Generator, random.Random)):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.random.Generator, numpy.random.RandomState))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        return iter(list(value.values())[:_MOST_ITEMS]) if len(value) <= _MOST_ITEMS else iter(())
    if isinstance(value, (list, tuple)):
        return iter(value[:_MOST_ITEMS]) if len(value) <= _MOST_ITEMS else iter(())
    slots = (getattr(value, name, None) for name in _slots(value))
    return chain(list(getattr(value, "__dict__", {}).values()), slots)


def _slots(value: Any) -> Iterator[str]:
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def generator_state(generator: Any) -> Any:
    """Return the state of such a generator as plain data: a tensor, or numbers, strings, lists and dicts."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, numbers, gauss = generator.getstate()
        return [version, list(numbers), gauss]
    return _without_arrays(_numpy_state(generator))


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what `generator_state` returned.

    Args:
        generator: A generator of the same kind.
        state: Its state; tensors may have become lists.
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.as_tensor(state, dtype=torch.uint8).cpu())
    elif isinstance(generator, random.Random):
        version, numbers, gauss = state
        generator.setstate((version, tuple(numbers), gauss))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = _with_arrays(state, like=_numpy_state(generator))
    else:
        generator.set_state(_with_arrays(state, like=_numpy_state(generator)))


def _numpy_state(generator: Any) -> Any:
    bits = getattr(generator, "bit_generator", None)
    return generator.get_state(legacy=False) if bits is None else bits.state


def _without_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_arrays(each) for key, each in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _with_arrays(value: Any, *, like: Any) -> Any:
    if isinstance(like, dict):
        return {key: _with_arrays(each, like=like.get(key)) for key, each in value.items()}
    return value if not hasattr(like, "dtype") or not isinstance(value, list) else _array(value, like.dtype)


def _array(value: list[Any], dtype: Any) -> Any:
    return sys.modules["numpy"].array(value, dtype=dtype)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen import Fabric


def made() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def parts(fabric: Fabric) -> tuple[Any, Any]:
    module = nn.Linear(2, 1)
    model, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters(), lr=0.1))
    return model, optimizer


def step(fabric: Fabric, model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    fabric.backward(model(torch.ones(1, 2)).square().sum())
    optimizer.step()


def test_a_loop_goes_on_from_a_file_to_the_bit(tmp_path: Path) -> None:
    fabric = made()
    model, optimizer = parts(fabric)
    step(fabric, model, optimizer)
    fabric.save(tmp_path / "a.ckpt", {"model": model, "optimizer": optimizer, "steps": 1})
    step(fabric, model, optimizer)
    other, stepped = parts(fabric)
    state = {"model": other, "optimizer": stepped, "steps": 0}
    rest = fabric.load(tmp_path / "a.ckpt", state)
    step(fabric, other, stepped)

    assert rest == {}
    assert state == {"model": other, "optimizer": stepped, "steps": 1}
    assert torch.equal(other.weight, model.weight)


def test_a_compiled_module_and_its_file_fit_those_that_are_not(tmp_path: Path) -> None:
    fabric = made()
    module: Any = torch.compile(nn.Linear(2, 1), backend="eager")
    compiled = fabric.setup(module)
    fabric.save(tmp_path / "a.ckpt", {"model": torch.compile(compiled, backend="eager")})
    model = fabric.setup(nn.Linear(2, 1))
    fabric.load(tmp_path / "a.ckpt", {"model": model})

    assert torch.equal(model.weight, compiled.weight)


def test_a_state_without_names_is_not_loaded_into(tmp_path: Path) -> None:
    fabric = made()
    model: Any = fabric.setup(nn.Linear(2, 1))
    fabric.save(tmp_path / "a.ckpt", {"model": model})

    with pytest.raises(TypeError, match=r"`Fabric\.load` got a `_FabricModule`.*\{'model': model\}.*load_raw"):
        fabric.load(tmp_path / "a.ckpt", model)


def test_a_filter_on_a_plain_value_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"filters for \['steps'\]"):
        made().save(tmp_path / "a.ckpt", {"steps": 3}, filter={"steps": lambda key, value: False})

    assert made().load(tmp_path / "a.ckpt") == {"steps": 3}


def test_a_state_without_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Pass a dictionary"):
        made().save(tmp_path / "a.ckpt", nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_raw_file_of_an_optimizer_is_loaded(tmp_path: Path) -> None:
    fabric = made()
    model, optimizer = parts(fabric)
    step(fabric, model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "raw.pt")
    _, other = parts(fabric)
    fabric.load_raw(tmp_path / "raw.pt", other)

    assert float(next(iter(other.state.values()))["step"]) == 1


def test_objects_of_unknown_classes_are_refused_unless_trusted(tmp_path: Path) -> None:
    fabric = made()
    fabric.save(tmp_path / "a.ckpt", {"path": tmp_path})

    with pytest.raises(Exception, match="refused"):
        fabric.load(tmp_path / "a.ckpt", weights_only=True)
    assert fabric.load(tmp_path / "a.ckpt", weights_only=False) == {"path": tmp_path}

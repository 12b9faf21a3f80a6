"""The import hook in all processes of a program that only says `import lightning`."""

from __future__ import annotations

from multiprocessing import spawn
from pathlib import Path

import pytest

import fulmen
from fulmen.compat.workers import install_in_workers
from tests.distributed_harness import run_script

WORKERS = """
import multiprocessing
import sys

import lightning as L


def show():
    print(L.__version__, L.__doc__)


if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=show)
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""
ANSWERED = f"2.6.6 Names of `lightning`, answered by fulmen {fulmen.__version__}."
TRAIN = """
import os
import sys

import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel

if __name__ == "__main__":
    trainer = L.Trainer(
        strategy=sys.argv[1], devices=2, accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    os.chdir("/")
    trainer.fit(BoringModel())
    sys.stdout.write(f"{trainer.global_rank} of {trainer.world_size}: {trainer.global_step} steps\\n")
"""
FABRIC = """
import sys

from lightning_fabric import Fabric


def work(fabric):
    import pytorch_lightning

    sys.stdout.write(f"{fabric.global_rank} of {fabric.world_size} {pytorch_lightning.__version__}\\n")


if __name__ == "__main__":
    fabric = Fabric(strategy=sys.argv[1], devices=2, accelerator="cpu")
    fabric.launch(work)
"""


def _lines(folder: Path, program: str, *arguments: str, as_module: bool = False, torchrun: bool = False) -> list[str]:
    (folder / "program.py").write_text(program)
    named = ("-m", "program") if as_module else ("program.py",)
    result = run_script(
        Path("-m"), "fulmen.compat", *named, *arguments, torchrun=torchrun, nproc=2, cwd=folder, timeout=110
    )
    assert result.returncode == 0, result.stderr
    return sorted(result.stdout.split("\n"))[1:]


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_workers_of_a_program_find_the_names(start_method: str, tmp_path: Path) -> None:
    assert _lines(tmp_path, WORKERS, start_method) == [ANSWERED]


def test_workers_of_a_module_find_the_names(tmp_path: Path) -> None:
    assert _lines(tmp_path, WORKERS, "spawn", as_module=True) == [ANSWERED]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_script_that_is_run_again_for_each_process_finds_the_names(tmp_path: Path) -> None:
    lines = _lines(tmp_path, TRAIN, "ddp")

    assert lines == ["0 of 2: 2 steps", "1 of 2: 2 steps"]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_module_that_is_run_again_for_each_process_finds_the_names(tmp_path: Path) -> None:
    lines = _lines(
        tmp_path, FABRIC.replace("fabric.launch(work)", "fabric.launch(); work(fabric)"), "ddp", as_module=True
    )

    assert lines == ["0 of 2 2.6.6", "1 of 2 2.6.6"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True], ids=["spawned", "torchrun"])
def test_processes_of_a_launcher_find_the_names(torchrun: bool, tmp_path: Path) -> None:
    program = FABRIC.replace("fabric.launch(work)", "fabric.launch(); work(fabric)") if torchrun else FABRIC
    lines = _lines(tmp_path, program, "ddp" if torchrun else "ddp_spawn", torchrun=torchrun)

    assert lines == ["0 of 2 2.6.6", "1 of 2 2.6.6"]


def _note() -> None: ...


def test_a_fork_server_does_not_import_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"sys_path": [], "init_main_from_path": "program.py"}
    monkeypatch.setattr(spawn, "get_preparation_data", lambda name: {"name": name, **before})
    install_in_workers(_note)

    assert spawn.get_preparation_data("ignore") == {"name": "ignore", "sys_path": []}
    assert spawn.get_preparation_data("worker")["init_main_from_path"] == "program.py"

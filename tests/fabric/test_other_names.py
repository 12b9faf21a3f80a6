"""What `lightning.fabric` names differently, through the import hook."""

from __future__ import annotations

from pathlib import Path

from tests.distributed_harness import free_port
from tests.support import run_python

INSTALL = "import fulmen.compat\nfulmen.compat.install()\n"


def output_of(code: str, cwd: Path) -> list[str]:
    result = run_python("-c", INSTALL + code, cwd=cwd, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_strategies_and_loggers_take_the_arguments_of_lightning(tmp_path: Path) -> None:
    code = """
import fulmen, torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.plugins import HalfPrecision
from lightning.fabric.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy, Strategy
strategy = SingleDeviceStrategy("cpu", precision=HalfPrecision("bf16-true"))
fabric = Fabric(strategy=strategy, loggers=CSVLogger(root_dir="logs", version=1))
fabric.log("a", 1.0)
print(fabric.strategy.precision.precision, fabric.logger.log_dir)
named = Fabric(accelerator="cpu", devices=2, strategy="ddp").strategy
print(isinstance(named, DDPStrategy), isinstance(named, ParallelStrategy), isinstance(named, SingleDeviceStrategy))
print(isinstance(DDPStrategy(precision=HalfPrecision()), Strategy))
print(issubclass(DDPStrategy, fulmen.strategies.DDPStrategy))
class Mine(SingleDeviceStrategy): pass
print(isinstance(strategy, Mine), isinstance(Mine(), SingleDeviceStrategy))
"""
    assert output_of(code, tmp_path) == [
        "bf16-true", "logs/lightning_logs/version_1",
        "True", "True", "False",
        "True", "True",
        "False", "True",
    ]  # fmt: skip


def test_the_command_starts_processes_that_answer_for_lightning(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import lightning, sys\nprint(lightning.Fabric().world_size, sys.argv[1:])\n")
    options = ["--accelerator=cpu", "--strategy=ddp", f"--main-port={free_port()}"]
    command = f"import sys\nsys.argv = {['fabric', 'run', *options, str(script), 'x']}\n"
    output = output_of(command + "from lightning.fabric.cli import _main\n_main()", tmp_path)

    assert output[-2:] == ["1", "['x']"]  # before it, some versions of gloo say that they are there

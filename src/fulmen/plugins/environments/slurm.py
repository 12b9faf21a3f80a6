"""Processes started by `srun` in a job of Slurm."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from signal import Signals

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment, environment_text
from fulmen.plugins.environments.hostlist import hosts_in
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["SLURMEnvironment"]

log = logging.getLogger(__name__)

# Names that a job gets from the command it runs, when that is a shell for a person.
_SHELLS = frozenset({"interactive", "bash", "sh", "zsh", "fish", "csh", "tcsh", "ksh", "dash"})
_FIRST_PORT, _NUM_PORTS = 15000, 10000
_PORT_WITHOUT_JOB = 12910
_SCONTROL_TIMEOUT_S = 60.0


class SLURMEnvironment(ExternalEnvironment):
    """One task per device, started by `srun` from an sbatch file.

    Args:
        auto_requeue: When the job gets `requeue_signal`, save a checkpoint, put the job back into the queue, and
            continue from that checkpoint when it runs again.
        requeue_signal: That signal; `None` stands for SIGUSR1. Ask Slurm for it as below.

    Raises:
        RuntimeError: The job asks for several tasks without saying how many run on each node.

    Example::

        #!/bin/bash
        #SBATCH --nodes=2
        #SBATCH --ntasks-per-node=4
        #SBATCH --gpus-per-node=4
        #SBATCH --signal=SIGUSR1@90
        srun python train.py  # Trainer(devices=4, num_nodes=2)
    """

    launcher_name = "srun"
    remedy = "write `#SBATCH --nodes={nodes}` and `#SBATCH --ntasks-per-node={devices}` in the sbatch file"

    def __init__(self, auto_requeue: bool = True, requeue_signal: Signals | None = None) -> None:
        self.auto_requeue = auto_requeue
        if requeue_signal is None:
            requeue_signal = getattr(signal, "SIGUSR1", None)  # Windows has none, and no Slurm either
        self.requeue_signal = requeue_signal
        if not _is_interactive():
            _refuse_tasks_without_place()

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, else the first node of the job step, else this machine."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        for variable in ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"):
            if os.environ.get(variable):
                return self.resolve_root_node_address(os.environ[variable])
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, else a port that follows from the job's number and so is the same in all its processes."""
        if "MASTER_PORT" in os.environ:
            return int(os.environ["MASTER_PORT"])
        job = os.environ.get("SLURM_JOB_ID")
        return _FIRST_PORT + int(job) % _NUM_PORTS if job else _PORT_WITHOUT_JOB

    @staticmethod
    def detect() -> bool:
        """Tell whether `srun` started this process, and not a person in a shell of an interactive job.

        In a job whose processes were started by `mpirun` MPI knows their ranks, not Slurm.
        """
        if "SLURM_NTASKS" not in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ:
            return False
        return not _is_interactive()

    @staticmethod
    def job_name() -> str | None:
        """Return the job's name; `None` outside of a job."""
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """Return the job's number; `None` outside of a job and in interactive ones, which cannot be requeued."""
        text = os.environ.get("SLURM_JOB_ID", "")
        return int(text) if text.isdecimal() and not _is_interactive() else None

    @staticmethod
    def restart_count() -> int:
        """Return how often Slurm has started this job again."""
        return int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def requeue(self) -> bool:
        """Ask Slurm to end this job and put it into the queue again, under the same number.

        Slurm kills all its processes soon after, so call it last, on one rank. Of a job array only this task is
        requeued.

        Returns:
            Whether Slurm accepted. If not, a warning says why.
        """
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
        reason = _scontrol("requeue", job) if job else "`SLURM_JOB_ID` is not set"
        if reason:
            rank_zero_warn(
                f"The Slurm job {job} could not be requeued: {reason}. Its checkpoint is saved; submit it again by"
                " hand with `sbatch`. Whether a job may be requeued is decided by `#SBATCH --requeue` and `JobRequeue`"
                " in slurm.conf."
            )
            return False
        log.info("requeued the Slurm job %s", job)
        return True

    def world_size(self) -> int:
        """Return `SLURM_NTASKS`."""
        return _number("SLURM_NTASKS")

    def global_rank(self) -> int:
        """Return `SLURM_PROCID`."""
        return _number("SLURM_PROCID")

    def local_rank(self) -> int:
        """Return `SLURM_LOCALID`."""
        return _number("SLURM_LOCALID")

    def node_rank(self) -> int:
        """Return `SLURM_NODEID`."""
        return _number("SLURM_NODEID")

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Compare the settings with what the sbatch file asks for.

        Args:
            num_devices: Devices per machine, as given to the Trainer.
            num_nodes: Machines, as given to the Trainer.

        Raises:
            ValueError: They contradict each other.
            RuntimeError: The program was started in an sbatch file without `srun`.
        """
        if _is_interactive():
            return
        _refuse_batch_script_without_srun()
        per_node, nodes = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_NNODES")
        if per_node and int(per_node) != num_devices:
            raise ValueError(
                f"`devices={num_devices}` does not match Slurm's `--ntasks-per-node={per_node}`: each task drives one"
                f" device. Set `devices={per_node}`, or write `#SBATCH --ntasks-per-node={num_devices}` in the sbatch"
                " file."
            )
        if nodes and int(nodes) != num_nodes:
            raise ValueError(
                f"`num_nodes={num_nodes}` does not match Slurm's `--nodes={nodes}`: the run must use all nodes of its"
                f" job. Set `num_nodes={nodes}`, or write `#SBATCH --nodes={num_nodes}` in the sbatch file."
            )
        super().validate_settings(num_devices, num_nodes)

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        """Return the first host of a list.

        Args:
            nodes: Hosts in Slurm's notation, e.g. "node[001-003,7],gpu-5-[1,3]".

        Returns:
            The first one, e.g. "node001".

        Raises:
            ValueError: The list is empty or cannot be read.
        """
        first = next(hosts_in(nodes), None)
        if first is None:
            raise ValueError(
                f"The list of nodes {nodes!r} is empty, so there is none to meet on. Check `SLURM_NODELIST`, or set"
                " `MASTER_ADDR`."
            )
        return first


def _is_interactive() -> bool:
    """Whether a person works in a shell that runs in the job, in which nothing was started by `srun`."""
    if os.environ.get("SLURM_JOB_NAME") not in _SHELLS:
        return False
    # `srun python ...` typed in such a shell: a step of several tasks that has no terminal of its own
    is_step_of_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PTY_PORT" not in os.environ
    return not is_step_of_tasks


def _refuse_tasks_without_place() -> None:
    num_tasks, nodes = int(os.environ.get("SLURM_NTASKS") or 1), int(os.environ.get("SLURM_NNODES") or 1)
    if num_tasks > 1 and not os.environ.get("SLURM_NTASKS_PER_NODE"):
        raise RuntimeError(
            f"The Slurm job asks for `--ntasks={num_tasks}`, which leaves open how many tasks run on each of"
            f" {nodes} node(s), and every node must drive the same number of devices. Write"
            f" `#SBATCH --ntasks-per-node={-(-num_tasks // nodes)}` in the sbatch file instead of `--ntasks`."
        )


def _refuse_batch_script_without_srun() -> None:
    """One process that takes itself for task 0 would wait for the others, which nobody has started."""
    num_tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if num_tasks > 1 and os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ:
        raise RuntimeError(
            f"The sbatch file asks for {num_tasks} tasks but starts the program without `srun`, so one process runs"
            f" and would wait for {num_tasks - 1} others. Write `srun python ...` in the sbatch file."
        )


def _scontrol(*arguments: str) -> str:
    """Run `scontrol`; return why it failed, or an empty text."""
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=_SCONTROL_TIMEOUT_S
        )
    except FileNotFoundError:
        return "there is no program `scontrol` on the search path"
    except subprocess.TimeoutExpired:
        return f"`scontrol` did not answer within {_SCONTROL_TIMEOUT_S:.0f} s"
    return "" if done.returncode == 0 else f"`scontrol` said {(done.stderr or done.stdout).strip()!r}"


def _number(variable: str) -> int:
    return int(environment_text(variable, for_="SLURMEnvironment", set_by="`srun` for each task"))

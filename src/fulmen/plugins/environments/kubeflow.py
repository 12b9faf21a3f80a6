"""Processes started by Kubeflow's PyTorchJob."""

from __future__ import annotations

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment, environment_text

__all__ = ["KubeflowEnvironment"]


class KubeflowEnvironment(ExternalEnvironment):
    """A PyTorchJob with one process per pod; each pod counts as a machine.

    Its variables look like those of any other launcher, so it is never detected: pass it as a plugin.

    Example::

        Trainer(plugins=[KubeflowEnvironment()], devices=1, num_nodes=4)
    """

    launcher_name = "Kubeflow"
    remedy = "set the replicas of the PyTorchJob so that master and workers make {nodes} pods, with `devices=1`"

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`."""
        return _text("MASTER_ADDR")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`."""
        return int(_text("MASTER_PORT"))

    @staticmethod
    def detect() -> bool:
        """Refuse to answer.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "`KubeflowEnvironment.detect()` cannot tell: a PyTorchJob sets the same variables as other launchers."
            " Choose it yourself: `plugins=[KubeflowEnvironment()]`."
        )

    def world_size(self) -> int:
        """Return `WORLD_SIZE`."""
        return int(_text("WORLD_SIZE"))

    def global_rank(self) -> int:
        """Return `RANK`."""
        return int(_text("RANK"))

    def local_rank(self) -> int:
        """Return 0: a pod has one process."""
        return 0

    def node_rank(self) -> int:
        """Return `RANK`: each process is a pod of its own."""
        return self.global_rank()


def _text(variable: str) -> str:
    return environment_text(variable, for_="KubeflowEnvironment", set_by="the PyTorchJob operator")

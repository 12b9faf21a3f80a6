"""Where the processes of a run come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment as ClusterEnvironment
    from fulmen.plugins.environments.kubeflow import KubeflowEnvironment as KubeflowEnvironment
    from fulmen.plugins.environments.local import LightningEnvironment as LightningEnvironment
    from fulmen.plugins.environments.lsf import LSFEnvironment as LSFEnvironment
    from fulmen.plugins.environments.mpi import MPIEnvironment as MPIEnvironment
    from fulmen.plugins.environments.ray import RayEnvironment as RayEnvironment
    from fulmen.plugins.environments.slurm import SLURMEnvironment as SLURMEnvironment
    from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment as TorchElasticEnvironment
    from fulmen.plugins.environments.xla import XLAEnvironment as XLAEnvironment

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ClusterEnvironment": "fulmen.plugins.environments.cluster_environment",
        "KubeflowEnvironment": "fulmen.plugins.environments.kubeflow",
        "LSFEnvironment": "fulmen.plugins.environments.lsf",
        "LightningEnvironment": "fulmen.plugins.environments.local",
        "MPIEnvironment": "fulmen.plugins.environments.mpi",
        "RayEnvironment": "fulmen.plugins.environments.ray",
        "SLURMEnvironment": "fulmen.plugins.environments.slurm",
        "TorchElasticEnvironment": "fulmen.plugins.environments.torchelastic",
        "XLAEnvironment": "fulmen.plugins.environments.xla",
    },
)

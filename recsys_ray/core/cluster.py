"""Which Ray cluster a run uses, as settings. Reading them does not load Ray."""

import os

from recsys_ray.core.config import Config, execution

LOCAL = "local"


class RayConfig(Config):
    """Which Ray cluster to use.

    Attributes:
        address: "host:port" or "auto" joins a cluster, null uses RAY_ADDRESS or else starts a private one.
        num_cpus: Logical CPUs of a private cluster; null takes every core.
        object_store_bytes: Its object store; null leaves it to Ray.
    """

    address: str | None = execution(None)
    num_cpus: int | None = execution(None, ge=1)
    object_store_bytes: int | None = execution(None, ge=80 * 1024**2)


def one_cpu(config: RayConfig) -> bool:
    """Whether the cluster of these settings would be one CPU of this machine: nothing runs beside anything else."""
    where = config.address or os.environ.get("RAY_ADDRESS") or LOCAL
    return where == LOCAL and (config.num_cpus or os.cpu_count()) == 1

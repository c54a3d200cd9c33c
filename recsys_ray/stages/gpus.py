"""Refuse settings that ask for more GPUs than there are, before anything is read."""

from recsys_ray.config import RunConfig
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.on_ray import would_be_private


def require_gpus(config: RunConfig) -> None:
    """Where the run would stay on this machine, it must have the GPUs that the settings ask for.

    A cluster that is joined may still grow, so nothing is asked of it: Ray waits for its nodes.

    Raises:
        ConfigError: When there are fewer.
    """
    if (config.training.gpus or config.embedding.gpus) and would_be_private(config.ray):
        refuse_fewer(config, _count())


def refuse_fewer(config: RunConfig, available: int) -> None:
    """The check against a number of GPUs.

    Raises:
        ConfigError: When the settings ask for more.
    """
    training, embedding = config.training, config.embedding
    asked = {
        "training.gpus": (training.gpus, max(training.workers, 1) * training.gpus),
        "embedding.gpus": (embedding.gpus, embedding.gpus),
    }
    for setting, (came, wanted) in asked.items():
        if wanted > available:
            hint = (
                f"The run asks for {wanted:g} in all (training.workers = {training.workers}), torch can use "
                f"{available} here: see `recsys-ray doctor`. On CPUs: --preset cpu. "
                "On a cluster: ray job submit, see clusters/."
            )
            raise ConfigError(setting, came, f"what {available} GPUs hold" if available else "0", hint)


def _count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

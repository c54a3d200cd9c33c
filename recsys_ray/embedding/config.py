"""Settings of batch encoding."""

from recsys_ray.core.config import Config, execution


class EmbeddingConfig(Config):
    """Where features and item vectors are computed.

    Attributes:
        actors: Ray Data actors.
        ray_above_items: Catalogues of more items than this are encoded by the actors, smaller ones in this process,
            which is faster than starting them; the vectors are the same.
        cpus: Logical CPUs an actor.
        gpus: GPUs an actor.
        batch_size: Items embedded at once by the item tower.
    """

    actors: int = execution(2, ge=1)
    ray_above_items: int = execution(2000, ge=0)
    cpus: float = execution(1, gt=0)
    gpus: float = execution(0, ge=0)
    batch_size: int = execution(1024, ge=1)

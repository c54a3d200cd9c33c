"""The retrieval stage of a recommender on Ray: from raw logs to HTTP candidates.

>>> import recsys_ray
>>> recsys_ray.run(recsys_ray.presets.cpu())                                        # doctest: +SKIP
>>> recsys_ray.load_release("recsys-storage").recommend(history=["1", "7"], k=20)  # doctest: +SKIP

Names load lazily, so that asking a release does not import what trains.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_ray import presets
    from recsys_ray.config import RunConfig
    from recsys_ray.core.config import override
    from recsys_ray.pipeline import RunResult, run
    from recsys_ray.retrieval.release import Release, load_release

__all__ = ["Release", "RunConfig", "RunResult", "load_release", "override", "presets", "run"]

_HOMES = {
    "Release": "recsys_ray.retrieval.release",
    "RunConfig": "recsys_ray.config",
    "RunResult": "recsys_ray.pipeline",
    "load_release": "recsys_ray.retrieval.release",
    "override": "recsys_ray.core.config",
    "run": "recsys_ray.pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "presets":
        return import_module("recsys_ray.presets")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'recsys_ray' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)

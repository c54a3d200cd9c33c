"""Shapes and types of every tensor in training are checked while its tests run."""

from jaxtyping import install_import_hook

with install_import_hook("recsys_ray.training", "beartype.beartype"):
    import recsys_ray.training.fit  # noqa: F401

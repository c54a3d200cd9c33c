"""Files for `ray up`, checked by Ray's own schema after Ray's own preparation."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from recsys_ray.presets import PRESETS

CLUSTERS = Path(__file__).parents[2] / "clusters"
FILES = ["local.yaml", "aws-gpu.yaml"]


def _load(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CLUSTERS / name).read_text())
    return values


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(_load(name)))


def test_ray_refuses_a_setting_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config(_load("local.yaml") | {"idle_minutes": 5}))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_asks_for_the_token_and_has_the_fast_ingress(name: str, key: str) -> None:
    start = _load(name)[key][-1]
    assert "RAY_AUTH_MODE=token" in start
    assert "RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in start


@pytest.mark.parametrize("name", FILES)
def test_the_token_travels_as_a_file_and_the_dashboard_listens_on_the_head_alone(name: str) -> None:
    config = _load(name)
    assert config["file_mounts"][next(path for path in config["file_mounts"] if path.endswith("/auth_token"))] == (
        "~/.ray/auth_token"
    )
    assert "RAY_AUTH_TOKEN=" not in (CLUSTERS / name).read_text()
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize(("preset", "group"), [("gpu_small", "gpu"), ("gpu_large", "gpu-large")])
def test_each_gpu_preset_has_nodes_that_hold_its_workers(preset: str, group: str) -> None:
    node, training = _load("aws-gpu.yaml")["available_node_types"][group], PRESETS[preset]().training
    assert training.workers * training.gpus <= node["max_workers"] * node["resources"]["GPU"]
    a_node = node["resources"]["GPU"]
    assert training.cpus * a_node <= node["resources"]["CPU"]


def test_gpu_workers_come_and_go_with_the_work() -> None:
    types = _load("aws-gpu.yaml")["available_node_types"]
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["head"]["resources"]["CPU"] == 0

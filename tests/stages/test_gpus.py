"""Settings that ask for GPUs, on machines with more and fewer of them."""

import os
import subprocess
import sys

import pytest
import torch

from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.presets import PRESETS
from recsys_ray.stages.gpus import refuse_fewer, require_gpus

pytestmark = pytest.mark.slow


def test_more_workers_than_gpus_are_refused_with_the_way_out():
    config = override(PRESETS["gpu_small"](), {"training.workers": 4})
    with pytest.raises(ConfigError, match=r"training.gpus: got 1; .*asks for 4 in all.*can use 2 here.*--preset cpu"):
        refuse_fewer(config, 2)
    refuse_fewer(config, 4)


def test_embedding_counts_too():
    config = override(PRESETS["cpu"](), {"embedding.gpus": 1})
    with pytest.raises(ConfigError, match=r"embedding.gpus: got 1.0; allowed: 0"):
        refuse_fewer(config, 0)


def test_a_cluster_that_is_joined_may_grow():
    require_gpus(override(PRESETS["gpu_large"](), {"ray.address": "192.0.2.1:6379"}))


def test_a_run_on_cpus_asks_for_none():
    refuse_fewer(PRESETS["cpu"](), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so the preset is not refused here")
def test_the_presets_are_refused_before_any_data_is_read(tmp_path):
    command = [sys.executable, "-m", "recsys_ray", "run", "--preset", "gpu_large", "--storage", str(tmp_path / "new")]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 2
    assert "training.gpus: got 1; allowed: 0" in done.stderr
    assert not (tmp_path / "new").exists()

import os
import time
from pathlib import Path

import pytest

from recsys_ray.training.deepspeed_engine import LONGEST_BUILD_S, Elements, Zero, deepspeed_settings, drop_stale_locks


def test_only_the_lock_of_a_build_that_is_long_dead_is_dropped(tmp_path: Path) -> None:
    dead, living = tmp_path / "dead" / "lock", tmp_path / "living" / "lock"
    for lock in (dead, living):
        lock.parent.mkdir()
        lock.touch()
    then = time.time() - LONGEST_BUILD_S - 1
    os.utime(dead, (then, then))
    drop_stale_locks(tmp_path)
    assert not dead.exists()
    assert living.exists()
    drop_stale_locks(tmp_path / "nowhere")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_deepspeed_is_told(stage: int) -> None:
    elements = Elements(1000, 300)
    settings = deepspeed_settings(elements, Zero(stage, "bf16", 1.5, offload=stage > 0))
    assert settings["bf16"]["enabled"]
    assert settings["gradient_clipping"] == 1.5
    sharding = settings["zero_optimization"]
    assert sharding["stage"] == stage
    assert ("offload_optimizer" in sharding) == (stage > 0)
    if stage:
        # The default alone holds 5e8 elements, and at stage 3 nothing may be as large as the model.
        assert sharding["reduce_bucket_size"] == (300 if stage == 3 else 1000)
    if stage == 3:
        assert sharding["stage3_param_persistence_threshold"] == 0  # or small models stay whole
    assert not deepspeed_settings(elements, Zero(stage))["bf16"]["enabled"]

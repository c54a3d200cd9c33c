from typing import Any

import pytest

from recsys_ray.core.config import override, result_settings
from recsys_ray.core.errors import ConfigError
from recsys_ray.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"zero_stage": 2}, "sharding needs"),
        ({"engine": "deepspeed", "workers": 0}, "workers of at least 1"),
        ({"engine": "deepspeed", "average": 0.99}, "average auto or null"),
        ({"negatives": "all", "negatives_popularity": 0.5}, "nothing is drawn"),
        ({"negatives": 0}, "at least 1"),
        ({"workers": 8, "batch_size": 4}, "workers up to batch_size = 4"),
        ({"precision": "fp8"}, "'auto', 'bf16' or 'fp32'"),
        ({"zero_stage": 4}, "0, 1, 2 or 3"),
        ({"universal_checkpoints": True}, "universal_checkpoints false without a zero_stage"),
        ({"universal_checkpoints": True, "engine": "deepspeed"}, "there are no shards"),
        ({"engine": "deepspeed", "zero_stage": 2, "workers": 4, "min_workers": 2}, "universal_checkpoints true"),
    ],
)
def test_what_cannot_take_effect_is_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        TrainingConfig.parse(changes)


def test_zero_is_elastic_with_universal_checkpoints() -> None:
    zero = {"engine": "deepspeed", "zero_stage": 2, "workers": 4, "min_workers": 2, "universal_checkpoints": True}
    assert TrainingConfig.parse(zero).min_workers == 2


def test_all_negatives_by_override() -> None:
    assert override(TrainingConfig(), {"negatives": "all"}).negatives == "all"


def test_where_it_runs_does_not_change_the_result() -> None:
    there = override(TrainingConfig(), {"workers": 4, "gpus": 1, "cpus": 3, "max_failures": 0})
    assert result_settings(there) == result_settings(TrainingConfig())

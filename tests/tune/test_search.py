"""A real sweep on a real local cluster."""

import json

import pytest
import yaml

from recsys_ray.config import RunConfig, load_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.presets import PRESETS
from tune.search import BEST_FILE, TRIALS_FILE, search
from tune.spaces import parse_space

WITHOUT_TEXT = {"model.text": None, "channels.content.space": None}
ALL_FOUR_CPUS = {"training.workers": 2, "training.cpus": 2, "training.epochs": 1}  # of the session's cluster


@pytest.fixture
def config(tmp_path) -> RunConfig:
    data = make_synthetic(tmp_path / "raw", users=80, items=50, events_per_user=8, seed=2)
    changes = {**WITHOUT_TEXT, **ALL_FOUR_CPUS, "data": data.model_dump(), "storage": str(tmp_path / "storage")}
    return override(PRESETS["tiny"](), changes)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_trials_share_what_they_share(config, tmp_path):
    """Training takes every CPU there is: a trial that kept a share of one for itself would wait for ever."""
    space = parse_space({"channels.co_visitation.window": {"kind": "choice", "values": [1, 2, 5, 10, 20, 40]}})
    best = search(config, space, trials=2)
    rows = json.loads((tmp_path / "storage" / TRIALS_FILE).read_text())
    assert len(rows) == 2
    assert rows[0]["recall@10"] >= rows[1]["recall@10"]
    assert best.channels["co_visitation"].window == rows[0]["settings"]["channels.co_visitation.window"]
    assert load_config(tmp_path / "storage" / BEST_FILE, config) == best
    assert len(list((tmp_path / "storage" / "artifacts" / "dataset").iterdir())) == 1
    assert yaml.safe_load((tmp_path / "storage" / BEST_FILE).read_text())["storage"]


def test_a_wrong_path_fails_before_any_trial(config):
    space = parse_space({"channels.co_visitation.windw": {"kind": "choice", "values": [1]}})
    with pytest.raises(ConfigError, match="windw"):
        search(config, space, trials=1)

import optuna
import pytest

from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.presets import PRESETS
from tune.spaces import (
    DEFAULT_SPACE,
    Choice,
    Number,
    changes_training,
    load_space,
    longest_training,
    parse_space,
    require_fit,
)
from tune.study import distributions


def test_parses_each_kind():
    space = parse_space(
        {
            "a.b": {"kind": "choice", "values": [1, "x", None]},
            "c": {"kind": "real", "low": 0.1, "high": 1.0, "log": True},
            "d": {"kind": "whole", "low": 1, "high": 3},
        }
    )
    assert isinstance(space["a.b"], Choice)
    assert isinstance(space["c"], Number)
    assert isinstance(space["d"], Number)


def test_what_is_drawn_is_in_bounds_and_whole_where_it_should_be():
    space = parse_space(
        {
            "whole": {"kind": "whole", "low": 1, "high": 2},
            "choice": {"kind": "choice", "values": [None, "x"]},
            "real": {"kind": "real", "low": 0.1, "high": 10, "log": True},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.ask(distributions(space)).params for _ in range(60)]
    assert {one["whole"] for one in drawn} == {1, 2}  # both bounds
    assert {one["choice"] for one in drawn} == {None, "x"}
    assert all(0.1 <= one["real"] <= 10 for one in drawn)
    assert 15 <= sum(one["real"] < 1 for one in drawn) <= 45  # even in the logarithm


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "gauss"},
        {"kind": "real", "low": 2, "high": 1},
        {"kind": "real", "low": 0, "high": 1, "log": True},
        {"kind": "whole", "low": 1.5, "high": 3},
        {"kind": "choice", "values": []},
        3,
    ],
)
def test_wrong_distributions_name_the_path(value):
    with pytest.raises(ConfigError, match=r"model.dim: got .*allowed: \{kind: choice"):
        parse_space({"model.dim": value})


def test_shipped_space_fits_every_preset():
    space = load_space(DEFAULT_SPACE)
    for preset in PRESETS.values():
        require_fit(space, preset())


@pytest.mark.parametrize("path", ["split.protocol", "evaluation.max_users", "publish.fit_on", "storage", "data.path"])
def test_what_would_change_the_questions_is_refused(path):
    with pytest.raises(ConfigError, match=f"{path}: .*allowed: settings that leave the questions"):
        require_fit(parse_space({path: {"kind": "choice", "values": [1]}}), PRESETS["tiny"]())


def test_a_wrong_path_is_refused():
    with pytest.raises(ConfigError, match="windw"):
        require_fit(parse_space({"channels.co_visitation.windw": {"kind": "choice", "values": [1]}}), PRESETS["tiny"]())


def test_what_trains_and_how_long():
    config = override(PRESETS["tiny"](), {"training.epochs": 7})
    shared = parse_space({"channels.co_visitation.window": {"kind": "choice", "values": [1]}})
    own = parse_space({"training.epochs": {"kind": "whole", "low": 2, "high": 40}})
    assert not changes_training(shared)
    assert changes_training(own)
    assert (longest_training(shared, config), longest_training(own, config)) == (7, 40)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="--space"):
        load_space(tmp_path / "none.yaml")

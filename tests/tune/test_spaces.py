import pytest

from recsys_ray.core.errors import ConfigError
from tune.spaces import DEFAULT_SPACE, Choice, Number, load_space, parse_space


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


def test_whole_numbers_include_both_bounds():
    domain = parse_space({"d": {"kind": "whole", "low": 1, "high": 2}})["d"].domain()
    assert {domain.sample() for _ in range(100)} == {1, 2}


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


def test_shipped_space_is_valid():
    assert "model.dim" in load_space(DEFAULT_SPACE)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="--space"):
        load_space(tmp_path / "none.yaml")

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from recsys_ray.core.config import Config, execution, override, parse_assignments, result_settings
from recsys_ray.core.errors import ConfigError


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    mode: Literal["fast", "exact"] = "fast"
    workers: int = execution(1)


class Outer(Config):
    inner: Inner = Inner()
    optional: Inner | None = None
    names: tuple[str, ...] = ("a", "b")
    weights: dict[str, float] = Field(default_factory=dict)
    path: str | None = execution(None)


def test_override_reaches_nested_settings_and_leaves_the_original_alone():
    base = Outer()
    changed = override(base, {"inner.rate": 0.5, "names.1": "c", "weights.new": 2, "path": "x"})
    assert (changed.inner.rate, changed.names, changed.weights, changed.path) == (0.5, ("a", "c"), {"new": 2.0}, "x")
    assert base == Outer()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner.rat": 1}, ["inner.rat", "'rat'", "mode, rate, workers", "no such setting"]),
        ({"inner.rate": -1}, ["inner.rate", "-1", "greater than 0"]),
        ({"inner.mode": "slow"}, ["inner.mode", "'slow'", "'fast' or 'exact'"]),
        ({"inner.rate.x": 1}, ["inner.rate.x", "nothing below it"]),
        ({"nothing.at.all": 1}, ["nothing", "inner, names, optional, path, weights"]),
        ({"inner": {"speed": 3}}, ["inner.speed", "3", "mode, rate, workers"]),
        ({"optional": {"speed": 3}}, ["optional.speed", "3", "mode, rate, workers"]),
        ({"inner.rate": float("inf")}, ["inner.rate", "inf", "finite"]),
    ],
)
def test_errors_name_the_setting_what_came_and_what_is_allowed(changes, words):
    with pytest.raises(ConfigError) as caught:
        override(Outer(), changes)
    for word in words:
        assert word in str(caught.value)


def test_assignments_are_yaml():
    parsed = parse_assignments(["a.b=3", "c=[x, y]", "d=", "e=null", "f=a=b", "g=true"])
    assert parsed == {"a.b": 3, "c": ["x", "y"], "d": "", "e": None, "f": "a=b", "g": True}


@pytest.mark.parametrize("wrong", ["novalue", "=3", "a=[1, 2"])
def test_a_wrong_assignment_says_what_it_should_be(wrong):
    with pytest.raises(ConfigError, match=r"allowed: (dotted.path=value|a YAML value)"):
        parse_assignments([wrong])


def test_execution_settings_are_no_result_settings():
    settings = result_settings(override(Outer(), {"inner.workers": 9, "path": "elsewhere"}))
    assert settings == result_settings(Outer())
    assert "path" not in settings
    assert "workers" not in settings["inner"]


@given(st.floats(0.01, 100), st.sampled_from(["fast", "exact"]), st.lists(st.text(max_size=5), max_size=3))
def test_dumped_settings_parse_back(rate, mode, names):
    config = Outer(inner=Inner(rate=rate, mode=mode), names=tuple(names))
    assert Outer.parse(config.model_dump()) == config
    assert override(config, {}) == config


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Outer().path = "x"


class Several(Config):
    channels: tuple[Inner, ...] = (Inner(), Inner(rate=2.0))


def test_override_reaches_into_sequences_of_settings():
    changed = override(Several(), {"channels.1.rate": 3.0})
    assert [channel.rate for channel in changed.channels] == [0.1, 3.0]
    with pytest.raises(ConfigError, match=r"channels.2: got '2'; allowed: 0, 1"):
        override(Several(), {"channels.2.rate": 3.0})


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = Field(1.0, gt=0)


class Shapes(Config):
    shapes: dict[str, Annotated[Circle | Square, Field(discriminator="kind")]] = Field(
        default_factory=lambda: {"circle": Circle(), "other": Square()}
    )
    words: tuple[str, ...] | Literal["auto"] = "auto"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes.circel.radius": 2}, r"^shapes\.circel: got 'circel'; allowed: circle, other\. There is no such"),
        ({"shapes.circle.radius": 0}, r"^shapes\.circle\.radius: got 0; allowed: greater than 0$"),
        ({"shapes.other.side": 0}, r"^shapes\.other\.side: got 0"),
        ({"shapes.new": {"kind": "circle", "radius": 0}}, r"^shapes\.new\.radius: got 0"),
        ({"words": 5}, r"^words: got 5; allowed: a valid tuple or 'auto'$"),
    ],
)
def test_errors_name_the_path_that_a_user_writes(changes, message):
    with pytest.raises(ConfigError, match=message):
        override(Shapes(), changes)


def test_a_new_entry_of_a_mapping_is_given_whole():
    assert override(Shapes(), {"shapes.new": {"kind": "square", "side": 3}}).shapes["new"] == Square(side=3)

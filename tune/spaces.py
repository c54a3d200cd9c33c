"""Search spaces: a dotted path of the run's configuration -> a distribution. Any setting can be searched."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from recsys_ray.config import RunConfig
from recsys_ray.core.config import Config, override
from recsys_ray.core.errors import ConfigError

DEFAULT_SPACE = Path(__file__).parent / "space.yaml"
# What decides the questions that trials are judged by, and what decides nothing that validation sees.
_FIXED = ("data", "split", "evaluation", "publish", "storage", "name", "ray")
_TRAINS = ("model", "training")


class Choice(Config):
    """One of a list of plain values."""

    kind: Literal["choice"]
    values: tuple[str | int | float | bool | None, ...] = Field(min_length=1)

    def distribution(self) -> BaseDistribution:
        """As Optuna reads it."""
        return CategoricalDistribution(self.values)

    def first(self) -> str | int | float | bool | None:
        """One value of it."""
        return self.values[0]


class Number(Config):
    """A number between two bounds, both included, uniform or log-uniform; whole ones have whole bounds."""

    kind: Literal["real", "whole"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low < high, and 0 < low where log is true")
        if self.kind == "whole" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("whole numbers as low and high of kind whole")
        return self

    def distribution(self) -> BaseDistribution:
        """As Optuna reads it."""
        if self.kind == "whole":
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def first(self) -> int | float:
        """One value of it."""
        return int(self.low) if self.kind == "whole" else self.low


Dimension = Annotated[Choice | Number, Field(discriminator="kind")]
Space = dict[str, Choice | Number]


def parse_space(values: dict[str, Any]) -> Space:
    """A space from plain values.

    Raises:
        ConfigError: Naming the path whose distribution is wrong.
    """
    adapter: TypeAdapter[Choice | Number] = TypeAdapter(Dimension)
    space: Space = {}
    for path, value in values.items():
        try:
            space[path] = adapter.validate_python(value)
        except ValidationError as error:
            allowed = "{kind: choice, values: […]}, {kind: real, low, high, log} or {kind: whole, low, high, log}"
            raise ConfigError(path, value, allowed, error.errors()[0]["msg"]) from None
    if not space:
        raise ConfigError("space", values, "at least one dotted path with a distribution")
    return space


def load_space(path: Path) -> Space:
    """A space from a YAML file.

    Raises:
        ConfigError: When the file is missing, is no YAML mapping, or has a wrong distribution.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--space", str(path), "a readable YAML file", str(error)) from None
    if not isinstance(values, dict):
        raise ConfigError("--space", str(path), "a YAML mapping of dotted paths to distributions")
    return parse_space(values)


def require_fit(space: Space, config: RunConfig) -> None:
    """Check before anything runs that each path is a setting, and one by which trials can be compared.

    Raises:
        ConfigError: Naming the path.
    """
    for path in space:
        if path.split(".")[0] in _FIXED:
            allowed = "settings that leave the questions of validation as they are, and change an answer"
            raise ConfigError(path, "a distribution", allowed, f"Fixed in a search: {', '.join(_FIXED)}.")
    override(config, {path: dimension.first() for path, dimension in space.items()})


def longest_training(space: Space, config: RunConfig) -> int:
    """The most epochs that a trial may train."""
    epochs = space.get("training.epochs")
    if epochs is None:
        return config.training.epochs
    return int(epochs.high) if isinstance(epochs, Number) else max(int(one or 0) for one in epochs.values)


def changes_training(space: Space) -> bool:
    """Whether trials train towers of their own; otherwise all share one training."""
    return any(path.split(".")[0] in _TRAINS for path in space)

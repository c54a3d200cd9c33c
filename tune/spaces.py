"""Search spaces: a dotted path of the run's configuration -> a distribution. Any setting can be searched."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from ray import tune
from ray.tune.search.sample import Domain

from recsys_ray.core.config import Config
from recsys_ray.core.errors import ConfigError

DEFAULT_SPACE = Path(__file__).parent / "space.yaml"


class Choice(Config):
    """One of a list of plain values."""

    kind: Literal["choice"]
    values: tuple[str | int | float | bool | None, ...] = Field(min_length=1)

    def domain(self) -> Domain:
        """As Ray Tune reads it."""
        domain: Domain = tune.choice(list(self.values))
        return domain


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

    def domain(self) -> Domain:
        """As Ray Tune reads it; its upper bound of whole numbers is left out."""
        domain: Domain
        if self.kind == "whole":
            make = tune.lograndint if self.log else tune.randint
            domain = make(int(self.low), int(self.high) + 1)
        else:
            domain = tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)
        return domain


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

"""Filters as JSON: one object a condition, told apart by `op`. They become plain values before anything is asked."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval import filters as language
from recsys_ray.retrieval.filters.language import MAX_CONDITIONS, MAX_VALUES

Scalar = str | int | float | bool
FieldName = Annotated[str, Field(min_length=1, max_length=256, description="A field of the catalogue.")]
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class EqualsFilter(BaseModel):
    """The field is the value, or a list that has it. A date without a time of day is the whole day (UTC)."""

    model_config = _STRICT

    op: Literal["equals"]
    field: FieldName
    value: Scalar

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.Equals(self.field, self.value)


class InFilter(BaseModel):
    """The field is one of the values, or a list that has one of them."""

    model_config = _STRICT

    op: Literal["in"]
    field: FieldName
    values: list[Scalar] = Field(min_length=1, max_length=MAX_VALUES)

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.In(self.field, tuple(self.values))


class RangeFilter(BaseModel):
    """The field lies from `min` to `max`, both included; one of them at least. Dates are ISO 8601 texts."""

    model_config = _STRICT

    op: Literal["range"]
    field: FieldName
    min: Scalar | None = None
    max: Scalar | None = None

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.Range(self.field, self.min, self.max)


class NotFilter(BaseModel):
    """What the filter does not let through; items that lack its field among it."""

    model_config = _STRICT

    op: Literal["not"]
    of: "AnyFilter"

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.Not(self.of.plain())


class AllFilter(BaseModel):
    """What all of the filters let through."""

    model_config = _STRICT

    op: Literal["all"]
    of: "list[AnyFilter]" = Field(min_length=1, max_length=MAX_CONDITIONS)

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.AllOf(tuple(part.plain() for part in self.of))


class AnyOfFilter(BaseModel):
    """What at least one of the filters lets through."""

    model_config = _STRICT

    op: Literal["any"]
    of: "list[AnyFilter]" = Field(min_length=1, max_length=MAX_CONDITIONS)

    def plain(self) -> language.Filter:
        """Without pydantic."""
        return language.AnyOf(tuple(part.plain() for part in self.of))


AnyFilter = Annotated[
    EqualsFilter | InFilter | RangeFilter | NotFilter | AllFilter | AnyOfFilter, Field(discriminator="op")
]

for _model in (NotFilter, AllFilter, AnyOfFilter):
    _model.model_rebuild()


def path_of(location: tuple[int | str, ...]) -> str:
    """The dotted path of a wrong part of a filter as it stands in the JSON, without the names of alternatives."""
    keys = {"filters", "op", "field", "value", "values", "min", "max", "of"}
    return ".".join(str(part) for part in location if isinstance(part, int) or part in keys)


def parse_filter(setting: str, text: str) -> language.Filter:
    """A filter from its JSON, for what is not HTTP.

    Raises:
        ConfigError: Naming the setting and what is wrong.
    """
    adapter: TypeAdapter[AnyFilter] = TypeAdapter(AnyFilter)
    try:
        return adapter.validate_json(text).plain()
    except ValidationError as error:
        first = error.errors()[0]
        hint = f"{path_of(('filters', *first['loc']))}: {first['msg']}"
        raise ConfigError(setting, text, "a filter as docs/filters.md has it", hint) from None

"""What the settings of every channel have in common: the values that validation may choose from."""

from collections.abc import Mapping

from pydantic import Field, ValidationError, model_validator

from recsys_ray.core.config import Config

Search = Mapping[str, tuple[float | int | str | None, ...]]
"""Setting to the values that are tried for it."""

_NEVER_SEARCHED = {"kind", "search"}


class ChannelSettings(Config):
    """Base of the settings of a channel; each adds a `kind`.

    Attributes:
        search: Settings that a run chooses on validation, each with the values it tries. The search starts from the
            values that the settings have; {} keeps them.
    """

    search: Search = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_tried_value_is_allowed(self) -> "ChannelSettings":
        values = {**self.model_dump(), "search": {}}
        for name, tried in self.search.items():
            if name not in values or name in _NEVER_SEARCHED:
                raise ValueError(f"a search over {', '.join(sorted(values.keys() - _NEVER_SEARCHED))}, not {name!r}")
            for value in tried:
                try:
                    type(self).model_validate({**values, name: value})
                except ValidationError as error:
                    # What a value needs beside it may be found by then: the search leaves out what does not fit.
                    own = [one["msg"] for one in error.errors(include_url=False) if one["loc"]]
                    if own:
                        allowed = f"allowed values in the search over {name}"
                        raise ValueError(f"{allowed}; {value!r} is not: {own[0]}") from None
        return self

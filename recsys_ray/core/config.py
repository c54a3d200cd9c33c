"""The base of every configuration class, and the one way to override a setting by its dotted path."""

from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from recsys_ray.core.errors import ConfigError

_EXECUTION = "execution"


class Config(BaseModel):
    """A frozen set of settings. Unknown keys are errors; change one with `override`, never in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], root: str = "") -> Self:
        """Build from plain values.

        Raises:
            ConfigError: Naming the first wrong setting, what came and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, cls, values, root) from None


C = TypeVar("C", bound=Config)


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that changes where or how fast something runs, never its result; it is left out of artifact ids."""
    return Field(default, json_schema_extra={_EXECUTION: True}, **kwargs)


def override(config: C, changes: Mapping[str, Any]) -> C:
    """A copy with settings replaced by dotted path, e.g. ``{"training.epochs": 3}``.

    Raises:
        ConfigError: When a path does not exist or a value is not allowed.
    """
    values = _writable(config.model_dump())
    for path, value in changes.items():
        _set(values, config, path, value)
    return type(config).parse(values)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["a.b=3", "c=[x, y]"]`` as ``{"a.b": 3, "c": ["x", "y"]}``; values are YAML.

    Raises:
        ConfigError: When an assignment has no ``=`` or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path:
            raise ConfigError("--set", assignment, "dotted.path=value")
        try:
            changes[path.strip()] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise ConfigError(path, text, "a YAML value", "Quote text that has ':' or '[' in it.") from None
    return changes


def result_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that change the result, as JSON values: everything but `execution` fields."""
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if not is_execution(field):
            values[name] = _plain(getattr(config, name))
    return values


def is_execution(field: FieldInfo) -> bool:
    """Whether the field was declared with `execution`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(_EXECUTION))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return result_settings(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _writable(value: Any) -> Any:
    """Tuples as lists, so that an entry can be replaced; parsing makes tuples of them again."""
    if isinstance(value, dict):
        return {key: _writable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(inner) for inner in value]
    return value


def _set(values: dict[str, Any], config: BaseModel, path: str, value: Any) -> None:
    """Walk `path` down the dumped values and the config's types together, so that a wrong name can be explained."""
    *parents, last = path.split(".")
    here: Any = values
    node: Any = config
    for depth, name in enumerate([*parents, last]):
        _require_known(node, here, name, ".".join(path.split(".")[: depth + 1]), is_last=depth == len(parents))
        if depth == len(parents):
            here[_key(here, name)] = value
        else:
            here = here[_key(here, name)]
            node = _child(node, name)


def _key(here: Any, name: str) -> Any:
    return int(name) if isinstance(here, list) else name


def _child(node: Any, name: str) -> Any:
    if isinstance(node, BaseModel):
        return getattr(node, name)
    if isinstance(node, Mapping):
        return node[name]
    return node[int(name)]


def _require_known(node: Any, here: Any, name: str, path: str, is_last: bool) -> None:
    if isinstance(node, BaseModel):
        allowed = sorted(type(node).model_fields)
    elif isinstance(node, Mapping):
        # A new entry of a mapping is given whole; only an existing one has something below it.
        allowed = [name] if is_last else sorted(node.keys() & here.keys())
    elif isinstance(here, list):
        allowed = [str(index) for index in range(len(here))]
    else:
        raise ConfigError(path, name, "nothing below it: the setting above is a plain value")
    if name not in allowed:
        raise ConfigError(path, name, ", ".join(allowed) or "no entries", "There is no such setting.")


def _explain(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], root: str) -> ConfigError:
    found = error.errors(include_url=False)
    first = found[0]
    location = _location(first["loc"], values)
    path = ".".join(filter(None, [root, *location])) or model.__name__
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        names = ", ".join(sorted(owner.model_fields)) if owner else "the documented settings"
        return ConfigError(path, first["input"], names, "There is no such setting.")
    # A setting of several types has one error a type; together they say what is allowed.
    allowed = dict.fromkeys(_allowed(one["msg"]) for one in found if _location(one["loc"], values) == location)
    return ConfigError(path, first.get("input"), " or ".join(allowed))


def _location(location: Iterable[int | str], values: Any) -> list[str]:
    """The setting's own path: pydantic names the tried types on the way too ("channels.x.content.mix")."""
    path: list[str] = []
    parts = list(location)
    for place, part in enumerate(parts):
        if isinstance(values, Mapping) and (part in values or place == len(parts) - 1):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        else:
            continue
        path.append(str(part))
    return path


def _allowed(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    for name in location:
        field = here.model_fields.get(name) if here else None
        here = _model_in(field.annotation) if field else None
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        options = [_model_in(option) for option in get_args(annotation) if option is not NoneType]
        return options[0] if len(options) == 1 else None
    return None

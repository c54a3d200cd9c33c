"""Request bodies and limits in the OpenAPI document; bodies are read by `bodies`, so FastAPI does not know of them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import api
from serve_app.config import Limits
from serve_app.headers import DEADLINE_HEADER
from serve_app.problems import ProblemDocument

_REF = "#/components/schemas/{model}"
_MODELS = (
    api.RecommendRequest,
    api.SimilarRequest,
    api.SearchRequest,
    api.EventsRequest,
    api.ItemRequest,
    ProblemDocument,
)


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes a body."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def asks(model: type[BaseModel], limits: Limits) -> dict[str, Any]:
    """The `openapi_extra` of a route that answers a question: a body, and a deadline in a header."""
    header = {
        "name": DEADLINE_HEADER,
        "in": "header",
        "description": "Answer within so many milliseconds or say 408; `deadline_ms` of the body comes first.",
        "schema": {"type": "integer", "minimum": 1, "maximum": limits.max_deadline_ms},
    }
    return {**takes(model), "parameters": [header]}


def describe_bodies(app: FastAPI, limits: Limits) -> None:
    """Make the application's OpenAPI document carry the body schemas, with the limits in force."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes))
            _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
            for name, schema in schemas["$defs"].items():
                document["components"]["schemas"][name] = _with_limits(schema, limits)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _with_limits(schema: dict[str, Any], limits: Limits) -> dict[str, Any]:
    bounds = {
        "k": {"maximum": limits.max_k},
        "deadline_ms": {"maximum": limits.max_deadline_ms},
        "history": {"maxItems": limits.max_history},
        "events": {"maxItems": limits.max_events},
        "text": {"maxLength": limits.max_text_chars},
    }
    for name, bound in bounds.items():
        field = schema.get("properties", {}).get(name)
        if field is not None:
            # An optional field is "anyOf: [the type, null]"; the bound belongs to the type.
            (field["anyOf"][0] if "anyOf" in field else field).update(bound)
    return schema

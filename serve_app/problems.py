"""Errors as HTTP problem documents (RFC 9457), and the table of those this application answers with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        detail: What is wrong with this request and what to do, in a sentence.
        errors: The wrong fields, each ``{"field": dotted path, "detail": text}``.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


class FieldError(BaseModel):
    """One wrong field of a request."""

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457: what every error answer looks like."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    release: str
    errors: list[FieldError] = []


TITLES = {
    400: "Malformed request",
    401: "Key needed",
    404: "Not found",
    405: "Method not allowed",
    408: "Deadline passed",
    409: "Refused",
    413: "Body too large",
    415: "Unsupported media type",
    422: "Wrong values",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


def problem_response(problem: Problem, request_id: str, release: str) -> Response:
    """The problem as an HTTP answer."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
        "release": release,
    }
    if problem.errors:
        document["errors"] = problem.errors
    body = json.dumps(document, ensure_ascii=False).encode()
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route for the given error statuses."""
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    return {status: {"description": TITLES[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}

"""Reading a request's body: media type, size, JSON, values — in this order, each with its own status."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from serve_app import api
from serve_app.config import Limits
from serve_app.filters import path_of
from serve_app.problems import Problem

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, model: type[Body], limits: Limits) -> Body:
    """The validated body of a request.

    Raises:
        Problem: 415 not JSON or compressed, 413 over the size limit (before anything is parsed), 408 when the body
            does not arrive, 400 malformed JSON, 422 wrong values, naming each field.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, f"The body must be application/json; got {media_type or 'no content type'!r}.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem(415, f"The body must come as it is, without a content encoding; got {encoding!r}.")
    raw = await _read(request, limits)
    try:
        body = model.model_validate_json(raw)
    except ValidationError as error:
        raise _problem(error) from None
    wrong = api.over_limits(body, limits)
    if wrong:
        raise Problem(422, f"{wrong[0]['field']}: {wrong[0]['detail']}.", wrong)
    return body


async def _read(request: Request, limits: Limits) -> bytes:
    too_large = Problem(
        413, f"The body may have {limits.max_body_bytes} bytes at most.", headers={"Connection": "close"}
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise too_large
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(limits.max_deadline_ms / 1000):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > limits.max_body_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(408, "The body did not arrive in time.") from None
    except ClientDisconnect:  # nobody reads this, but it is no failure of ours that the log or a counter should show
        raise Problem(400, "The connection ended before the body did.") from None
    return b"".join(chunks)


def _problem(error: ValidationError) -> Problem:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return Problem(400, f"The body is not JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}.")
    errors = list({_field(one["loc"]): one["msg"] for one in reversed(found)}.items())[::-1]
    documents = [{"field": field, "detail": detail} for field, detail in errors]
    return Problem(422, f"{documents[0]['field']}: {documents[0]['detail']}.", documents)


def _field(location: tuple[int | str, ...]) -> str:
    """The dotted path of a wrong value as it stands in the JSON, without the names of alternatives."""
    if location[:1] == ("filters",):
        return path_of(location)
    if location[:1] == ("exclude_seen",):
        location = (location[0], *location[2:])
    return ".".join(map(str, location)) or "body"

"""The FastAPI application: routes, errors as problem documents, the OpenAPI document, the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serve_app import api
from serve_app.admin import Admin, admin_routes
from serve_app.admission import Admission
from serve_app.bodies import read_body
from serve_app.config import Limits
from serve_app.engine import Trace
from serve_app.headers import DEADLINE_HEADER, sent_deadline_ms
from serve_app.items import Items
from serve_app.keys import Key, guarded
from serve_app.metrics import Metrics
from serve_app.openapi import asks, describe_bodies, takes
from serve_app.problems import Problem, documented, problem_response
from serve_app.service import Ask, Service

_UI = Path(__file__).parent / "ui"
_PAGE_FILES = {"app.css": "text/css", "app.js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
_QUESTION_ERRORS = (400, 404, 405, 408, 413, 415, 422, 429, 503)


def create_api(
    service: Service, items: Items, limits: Limits, write_key: Key | None = None, admin: Admin | None = None
) -> FastAPI:
    """The HTTP application over a service; plain ASGI, so it runs under Ray Serve, uvicorn or a test client alike.

    Args:
        service: What answers.
        items: What changes items.
        limits: Of each request.
        write_key: What requests that write must bring; None: nothing.
        admin: The routes under /admin; None: there are none.
    """
    metrics = Metrics()
    service.watch(metrics)
    app = FastAPI(
        title="recsys_ray",
        summary="Candidates of a recommender's retrieval stage",
        version="1",
        docs_url=None,  # the stock pages load their scripts from elsewhere; the document itself is at /openapi.json
        redoc_url=None,
        redirect_slashes=False,  # a path that is almost right is a 404 that says so, no undocumented 307
    )
    app.add_middleware(Admission, limits=limits, current=service.current, metrics=metrics)
    _add_error_handlers(app)
    _add_questions(app, service, limits, metrics)
    _add_lookups(app, service)
    _add_events(app, service, limits, write_key)
    _add_changes(app, service, items, limits, write_key)
    _add_operations(app, service, metrics)
    _add_page(app)
    if admin is not None:
        app.include_router(admin_routes(admin, lambda request: service.envelope(_ask(request), Trace())))
    describe_bodies(app, limits)
    return app


def _add_questions(app: FastAPI, service: Service, limits: Limits, metrics: Metrics) -> None:
    answers: dict[int | str, dict[str, Any]] = {200: {"model": api.ItemsAnswer}, **documented(*_QUESTION_ERRORS)}

    def answered(document: dict[str, Any]) -> Response:
        metrics.observe_degraded(document["degraded"])
        return _json(document)

    def ask(request: Request) -> Ask:
        sent = sent_deadline_ms(request.headers.get(DEADLINE_HEADER), limits)
        return Ask(request.state.request_id, request.state.arrived, request.state.serving, sent)

    @app.post("/v1/recommend", response_model=None, responses=answers, openapi_extra=asks(api.RecommendRequest, limits))
    async def recommend(request: Request) -> Response:
        """Items for a user, a history, a text, or a history and a text."""
        body = await read_body(request, api.RecommendRequest, limits)
        return answered(await service.recommend(body, ask(request)))

    @app.post("/v1/similar", response_model=None, responses=answers, openapi_extra=asks(api.SimilarRequest, limits))
    async def similar(request: Request) -> Response:
        """Items like one item."""
        body = await read_body(request, api.SimilarRequest, limits)
        return answered(await service.similar(body, ask(request)))

    @app.post("/v1/search", response_model=None, responses=answers, openapi_extra=asks(api.SearchRequest, limits))
    async def search(request: Request) -> Response:
        """Items for a text."""
        body = await read_body(request, api.SearchRequest, limits)
        return answered(await service.search(body, ask(request)))


def _add_lookups(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/items/{item_id:path}",
        response_model=None,
        responses={200: {"model": api.ItemAnswer}, **documented(404, 405, 422, 429, 503)},
    )
    async def item(item_id: str, request: Request) -> Response:
        """The catalogue fields of one item."""
        return _json(service.item(item_id, _ask(request)))

    @app.get(
        "/v1/status", response_model=None, responses={200: {"model": api.StatusAnswer}, **documented(405, 422, 429)}
    )
    async def status(request: Request) -> Response:
        """What is being served: release, spaces, channels, topology, counts."""
        return _json(service.status(_ask(request)))


def _add_events(app: FastAPI, service: Service, limits: Limits, key: Key | None) -> None:
    guard, refusals = guarded(key)

    @app.post(
        "/v1/events",
        response_model=None,
        dependencies=guard,
        responses={200: {"model": api.EventsAnswer}, **refusals, **documented(400, 405, 408, 413, 415, 422, 429, 503)},
        openapi_extra=takes(api.EventsRequest),
    )
    async def events(request: Request) -> Response:
        """Write events of users; the next answer to each of them, by any replica, knows them."""
        body = await read_body(request, api.EventsRequest, limits)
        return _json(await service.record(body, _ask(request)))

    @app.delete(
        "/v1/users/{user_id:path}",
        response_model=None,
        dependencies=guard,
        responses={200: {"model": api.ErasedAnswer}, **refusals, **documented(404, 405, 422, 429, 503)},
    )
    async def erase(user_id: str, request: Request) -> Response:
        """Forget a user: delete the events, and never again read what the release holds of the user."""
        return _json(await service.erase(user_id, _ask(request)))


def _add_changes(app: FastAPI, service: Service, items: Items, limits: Limits, key: Key | None) -> None:
    guard, refusals = guarded(key)
    answers: dict[int | str, dict[str, Any]] = {200: {"model": api.ChangedAnswer}, **refusals}

    @app.put(
        "/v1/items/{item_id:path}",
        response_model=None,
        dependencies=guard,
        responses={**answers, **documented(400, 404, 405, 408, 413, 415, 422, 429, 503)},
        openapi_extra=takes(api.ItemRequest),
    )
    async def put(item_id: str, request: Request) -> Response:
        """Add an item, or put it in the place of the one that has its id; every replica finds it within a second."""
        body = await read_body(request, api.ItemRequest, limits)
        return _json(service.changed(item_id, await items.put(item_id, body), _ask(request)))

    @app.delete(
        "/v1/items/{item_id:path}",
        response_model=None,
        dependencies=guard,
        responses={**answers, **documented(404, 405, 422, 429, 503)},
    )
    async def delete(item_id: str, request: Request) -> Response:
        """Delete an item; no replica answers with it a second later."""
        return _json(service.changed(item_id, await items.delete(item_id), _ask(request)))


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/livez", response_model=None, responses={200: {"model": api.HealthAnswer}, **documented(405)})
    async def livez(request: Request) -> Response:
        """Whether the process lives."""
        return _json(service.alive(_ask(request)))

    @app.get("/readyz", response_model=None, responses={200: {"model": api.HealthAnswer}, **documented(405, 503)})
    async def readyz(request: Request) -> Response:
        """Whether every stage has answered since the start."""
        return _json(await service.ready(_ask(request)))

    @app.get(
        "/metrics",
        response_model=None,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(405)},
    )
    async def metrics_text() -> Response:
        """Counters of the replica that answers, in the Prometheus text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    page = (_UI / "index.html").read_bytes()
    files = {name: (_UI / name).read_bytes() for name in _PAGE_FILES}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html", headers=_PAGE_HEADERS)

    @app.get("/ui/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in files:
            raise Problem(404, f"There is no file {name!r}.")
        return Response(files[name], media_type=_PAGE_FILES[name], headers=_PAGE_HEADERS)


def _add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, problem: Problem) -> Response:
        return problem_response(problem, request.state.request_id, request.state.serving.id)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return answer(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(request, Problem(error.status_code, _http_detail(request, error), headers=error.headers))

    async def on_wrong_parameter(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = [{"field": ".".join(map(str, one["loc"][1:])), "detail": one["msg"]} for one in error.errors()]
        return answer(request, Problem(422, "Parameters of the request are wrong.", errors))

    async def on_crash(request: Request, error: Exception) -> Response:
        return answer(request, Problem(500, "Something went wrong here; the log holds it under this request id."))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_wrong_parameter)
    app.add_exception_handler(Exception, on_crash)


def _http_detail(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"There is no route {request.url.path}; /openapi.json lists them all."
    if error.status_code == 405:
        return f"{request.method} is not allowed on {request.url.path}."
    return str(error.detail)


def _ask(request: Request) -> Ask:
    return Ask(request.state.request_id, request.state.arrived, request.state.serving)


def _json(document: Mapping[str, Any]) -> Response:
    # The documents are built of plain values, so the standard encoder is enough: no model, no copy in between.
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(body.encode(), media_type="application/json")

"""The HTTP application over the real release, in process."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from recsys_ray.retrieval.release import Release
from serve_app.api import ItemAnswer, ItemsAnswer, StatusAnswer
from serve_app.problems import MEDIA_TYPE, ProblemDocument

HISTORY = ["i3", "i10", "i24"]
JSON = {"content-type": "application/json"}


def test_recommend_answers_what_the_release_answers_without_a_server(client: Any, release: Release) -> None:
    answer = ItemsAnswer.model_validate(client.post("/v1/recommend", {"history": HISTORY, "k": 7}).json())
    expected = release.recommend(history=HISTORY, k=7)
    assert [(item.item_id, item.title, item.channels) for item in answer.items] == [
        (one.item_id, one.title, one.channels) for one in expected
    ]
    assert [item.score for item in answer.items] == [one.score for one in expected]
    assert answer.release == release.id
    assert answer.degraded == []
    assert {"encoder", "nearest", "fusion", "total"} <= set(answer.timings_ms)
    assert not answer.cold


def test_recommend_to_a_user_uses_the_users_history(client: Any, release: Release) -> None:
    by_user = client.post("/v1/recommend", {"user_id": "u5"}).json()["items"]
    by_history = client.post("/v1/recommend", {"history": release.histories.get("u5")}).json()["items"]
    assert by_user == by_history
    assert not {item["item_id"] for item in by_user} & set(release.histories.get("u5"))


def test_history_and_text_together_and_text_alone(client: Any, release: Release) -> None:
    both = client.post("/v1/recommend", {"history": HISTORY, "text": "red ocean", "k": 5}).json()
    alone = client.post("/v1/recommend", {"text": "red ocean", "k": 5}).json()
    searched = client.post("/v1/search", {"text": "red ocean", "k": 5}).json()
    assert [item["item_id"] for item in both["items"]] == [
        one.item_id for one in release.recommend(history=HISTORY, text="red ocean", k=5)
    ]
    assert alone["items"] == searched["items"]
    assert not alone["cold"]


@pytest.mark.parametrize("body", [{"history": []}, {"user_id": "newcomer"}, {"history": ["nobody-knows-this"]}])
def test_somebody_without_history_gets_popular_items_and_is_called_cold(client: Any, body: dict[str, Any]) -> None:
    answer = client.post("/v1/recommend", {**body, "k": 4}).json()
    assert answer["cold"] is True
    assert len(answer["items"]) == 4
    assert all(list(item["channels"]) == ["popularity"] for item in answer["items"])


def test_unknown_items_of_a_history_are_ignored_and_reported(client: Any) -> None:
    answer = client.post("/v1/recommend", {"history": ["zz", *HISTORY, "yy"]}).json()
    assert answer["unknown_items"] == ["zz", "yy"]
    assert answer["items"] == client.post("/v1/recommend", {"history": HISTORY}).json()["items"]


def test_seen_items_come_back_only_when_asked_for(client: Any) -> None:
    everything = {"history": HISTORY, "k": 100}
    without = {item["item_id"] for item in client.post("/v1/recommend", everything).json()["items"]}
    with_seen = client.post("/v1/recommend", {**everything, "exclude_seen": False}).json()["items"]
    assert not without & set(HISTORY)
    assert {item["item_id"] for item in with_seen} & set(HISTORY)


def test_filters_hold_before_the_cut(client: Any) -> None:
    category = {"op": "in", "field": "category", "values": ["ocean", "city"]}
    price = {"op": "range", "field": "price", "min": 5, "max": 40}
    filters = {"op": "all", "of": [category, price]}
    answer = client.post("/v1/recommend", {"history": HISTORY, "filters": filters, "fields": ["category", "price"]})
    items = answer.json()["items"]
    assert items
    assert all(item["fields"]["category"] in ("ocean", "city") and 5 <= item["fields"]["price"] <= 40 for item in items)


def test_explain_gives_each_channels_vote(client: Any) -> None:
    for item in client.post("/v1/recommend", {"history": HISTORY, "k": 5, "explain": True}).json()["items"]:
        assert {name: vote["rank"] for name, vote in item["explain"].items()} == item["channels"]
        assert sum(vote["share"] for vote in item["explain"].values()) == pytest.approx(item["score"], rel=1e-5)


def test_similar_leaves_the_item_out_and_asks_only_channels_with_evidence(client: Any, release: Release) -> None:
    items = client.post("/v1/similar", {"item_id": "i3", "k": 5}).json()["items"]
    assert [item["item_id"] for item in items] == [one.item_id for one in release.similar("i3", 5)]
    assert all("popularity" not in item["channels"] for item in items)
    assert "i3" not in {item["item_id"] for item in items}


def test_item_shows_the_catalogue_fields(client: Any, release: Release) -> None:
    answer = ItemAnswer.model_validate(client.get("/v1/items/i9").json())
    assert answer.title == release.titles[9]
    assert answer.fields["description"] is None
    assert isinstance(answer.fields["tags"], list)


def test_status_says_what_is_served(client: Any, release: Release) -> None:
    answer = StatusAnswer.model_validate(client.get("/v1/status").json())
    assert answer.channels == list(release.retriever.channels)
    assert answer.counts == {"items": 120, "users": 61}
    assert answer.topology == "collapsed"
    assert answer.spaces == [encoder.space_id for encoder in release.retriever.encoders]


def test_health_metrics_and_page(client: Any) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    assert 'recsys_requests_total{route="/livez",status="200"}' in client.get("/metrics").text
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("app.css", "app.js"):
        assert f"ui/{name}" in page.text
        assert client.get(f"/ui/{name}").status_code == 200
    assert "innerHTML" not in client.get("/ui/app.js").text


def test_request_id_is_taken_over_or_made(client: Any) -> None:
    sent = client.request("GET", "/livez", headers={"x-request-id": "abc-1"})
    assert sent.json()["request_id"] == "abc-1"
    made = client.request("GET", "/livez", headers={"x-request-id": "not ok!"})
    assert made.headers["x-request-id"] == made.json()["request_id"] != "not ok!"


EQUALS = {"op": "equals", "field": "price", "value": "a"}
DEEP: dict[str, Any] = EQUALS
for _ in range(20):
    DEEP = {"op": "not", "of": DEEP}
WRONG: list[tuple[str, str, dict[str, Any], int, str | None]] = [
    ("POST", "/v1/recommend", {"content": b"{", "headers": JSON}, 400, None),
    ("POST", "/v1/search", {"content": b"\xff", "headers": JSON}, 400, None),
    ("POST", "/v1/recommend", {"json": {"user_id": "nobody"}}, 404, None),
    ("POST", "/v1/similar", {"json": {"item_id": "nothing"}}, 404, None),
    ("GET", "/v1/items/nothing", {}, 404, None),
    ("GET", "/v2", {}, 404, None),
    ("POST", "/v1/recommend/", {"json": {"history": HISTORY}}, 404, None),
    ("GET", "/v1/recommend", {}, 405, None),
    ("POST", "/v1/status", {}, 405, None),
    ("POST", "/v1/recommend", {"content": b" " * 5000, "headers": JSON}, 413, None),
    ("POST", "/v1/recommend", {"content": b"{}"}, 415, None),
    ("POST", "/v1/recommend", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, None),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "k": 101}}, 422, "k"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "k": 0}}, 422, "k"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "k": "5"}}, 422, "k"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "extra": 1}}, 422, "extra"),
    ("POST", "/v1/recommend", {"json": {"history": ["i1"] * 51}}, 422, "history"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "user_id": "u1"}}, 422, "history"),
    ("POST", "/v1/recommend", {"json": {}}, 422, "user_id"),
    ("POST", "/v1/recommend", {"json": []}, 422, "body"),
    (
        "POST",
        "/v1/recommend",
        {"json": {"history": HISTORY, "filters": {**EQUALS, "field": "nope"}}},
        422,
        "filters.nope",
    ),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "filters": EQUALS}}, 422, "filters.price"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "filters": {"price": 1}}}, 422, "filters"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "filters": {"op": "gt"}}}, 422, "filters"),
    (
        "POST",
        "/v1/search",
        {"json": {"text": "x", "filters": {"op": "all", "of": [{**EQUALS, "value": None}]}}},
        422,
        "filters.of.0.value",
    ),
    (
        "POST",
        "/v1/search",
        {"json": {"text": "x", "filters": {"op": "in", "field": "price", "values": []}}},
        422,
        "filters.values",
    ),
    ("POST", "/v1/search", {"json": {"text": "x", "filters": DEEP}}, 422, "filters"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "fields": ["nope"]}}, 422, "fields"),
    ("POST", "/v1/recommend", {"json": {"history": HISTORY, "deadline_ms": 10**6}}, 422, "deadline_ms"),
    ("POST", "/v1/search", {"json": {"text": "x" * 201}}, 422, "text"),
    ("POST", "/v1/search", {"json": {"text": ""}}, 422, "text"),
    ("POST", "/v1/search", {"json": {"text": " \t\n"}}, 422, "text"),
    ("POST", "/v1/search", {"content": b"\x1f\x8b", "headers": {**JSON, "content-encoding": "gzip"}}, 415, None),
]


@pytest.mark.parametrize(("method", "path", "sent", "status", "field"), WRONG)
def test_errors_are_problem_documents(
    client: Any, method: str, path: str, sent: dict[str, Any], status: int, field: str | None
) -> None:
    response = client.request(method, path, **sent)
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = ProblemDocument.model_validate(response.json())
    assert problem.status == status
    assert problem.release == "tiny"
    assert problem.request_id == response.headers["x-request-id"]
    assert [error.field for error in problem.errors][:1] == ([field] if field else [])
    documented = client.get("/openapi.json").json()["paths"].get(path, {}).get(method.lower())
    if documented:
        assert MEDIA_TYPE in documented["responses"][str(status)]["content"]


def test_a_body_without_declared_length_is_cut_off_at_the_limit(client: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1024

    response = client.request("POST", "/v1/search", content=endless(), headers=JSON)
    assert response.status_code == 413
    assert sent < 10


def test_deadline_of_no_time_at_all_is_408_or_an_answer(client: Any) -> None:
    statuses = {client.post("/v1/recommend", {"user_id": "u1", "deadline_ms": 1}).status_code for _ in range(5)}
    assert statuses <= {200, 408}


def test_too_many_requests_in_flight_are_refused_at_once(release_path: Any, runner: asyncio.Runner) -> None:
    from serve_app.config import Limits, ServeConfig
    from serve_app.deployments import Gateway

    app: FastAPI = Gateway(
        ServeConfig(release=str(release_path), limits=Limits(max_in_flight=1, retry_after_s=3))
    ).__serve_build_asgi_app__()
    first_is_in, release_first = asyncio.Event(), asyncio.Event()

    async def held_body() -> AsyncIterator[bytes]:
        first_is_in.set()
        await release_first.wait()
        yield b'{"text": "ocean"}'

    async def both() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            first = asyncio.create_task(http.post("/v1/search", content=held_body(), headers=JSON))
            await first_is_in.wait()
            second = await http.post("/v1/search", json={"text": "ocean"})
            alive = await http.get("/livez")
            release_first.set()
            return await first, second, alive

    first, second, alive = runner.run(both())
    assert (first.status_code, second.status_code, alive.status_code) == (200, 429, 200)
    assert second.headers["retry-after"] == "3"
    assert ProblemDocument.model_validate(second.json()).status == 429


def test_the_deadline_may_come_as_a_header_and_the_body_comes_first(client: Any) -> None:
    ask = {"json": {"history": HISTORY}, "headers": {"X-Deadline-Ms": "nonsense"}}
    refused = client.request("POST", "/v1/recommend", **ask)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "X-Deadline-Ms"
    assert client.request("POST", "/v1/recommend", **{**ask, "headers": {"X-Deadline-Ms": "5000"}}).status_code == 200


def test_time_spent_in_front_of_the_application_counts(client: Any) -> None:
    headers = {"X-Deadline-Ms": "3000", "X-Request-Start": f"t={time.time() - 4.0}"}
    late = client.request("POST", "/v1/recommend", json={"history": HISTORY}, headers=headers)
    assert late.status_code == 408
    assert "before the work began" in late.json()["detail"]
    body = {"history": HISTORY, "deadline_ms": 20_000}
    assert client.request("POST", "/v1/recommend", json=body, headers=headers).status_code == 200


def test_circuits_and_fallback_are_shown(client: Any) -> None:
    status = client.get("/v1/status").json()
    assert status["fallback"] == "popularity"
    assert status["circuits"] == dict.fromkeys(["encoder", *status["channels"], "histories"], "closed")
    shown = client.get("/metrics").text
    assert 'recsys_circuit_open{stage="nearest"} 0' in shown
    assert "recsys_in_flight_limit 64" in shown


def test_openapi_states_the_limits_in_force(client: Any) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["RecommendRequest"]["properties"]
    assert fields["k"]["maximum"] == 100
    assert fields["history"]["anyOf"][0]["maxItems"] == 50
    assert schemas["SearchRequest"]["properties"]["text"]["maxLength"] == 200
    assert schemas["RecommendRequest"]["additionalProperties"] is False


def test_a_client_that_hangs_up_in_its_body_is_no_failure_of_the_server(
    api: FastAPI, client: Any, runner: asyncio.Runner
) -> None:
    came = [{"type": "http.request", "body": b'{"text"', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return came.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "query_string": b"", "headers": headers}
    runner.run(api(scope, receive, send))
    assert sent[0]["status"] == 400
    assert 'status="500"' not in client.get("/metrics").text

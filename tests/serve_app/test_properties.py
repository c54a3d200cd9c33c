"""Generated nonsense at every route: never a 5xx, never an undocumented status, every error a problem document."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.problems import MEDIA_TYPE, ProblemDocument

pytestmark = pytest.mark.slow

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
nonsense = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
ids = st.sampled_from(["i1", "i2", "i77", "u1", "newcomer", "nobody", "", "\x00", "ü/?#"]) | st.text(max_size=10)
fields = st.sampled_from(["category", "price", "tags", "title", "item_id", "description", "nope"])
values = st.sampled_from(["ocean", 5, 3.5, True, None, [], {}, 10**30]) | nonsense
conditions = st.fixed_dictionaries(
    {"op": st.sampled_from(["equals", "in", "range"]), "field": fields},
    optional={"value": values, "values": st.lists(values, max_size=3), "min": values, "max": values},
)
filters = st.recursive(
    conditions | values,
    lambda part: (
        st.fixed_dictionaries({"op": st.just("not"), "of": part})
        | st.fixed_dictionaries({"op": st.sampled_from(["all", "any"]), "of": st.lists(part, max_size=3)})
    ),
    max_leaves=4,
)
keys = {
    "user_id": ids,
    "item_id": ids,
    "history": st.lists(ids, max_size=5),
    "text": st.text(max_size=30),
    "k": st.integers(-2, 120),
    "filters": filters,
    "fields": st.lists(fields, max_size=3),
    "exclude_seen": st.booleans()
    | st.fixed_dictionaries(
        {}, optional={"within_days": st.integers(-1, 40_000) | st.floats(), "kinds": st.lists(ids, max_size=3)}
    ),
    "explain": st.booleans(),
    "deadline_ms": st.integers(0, 5000),
    "surprise": nonsense,
}
bodies = st.fixed_dictionaries({}, optional=keys) | st.fixed_dictionaries(
    {}, optional={key: plausible | nonsense for key, plausible in keys.items()}
)
paths = st.sampled_from(["/v1/recommend", "/v1/similar", "/v1/search"])
JSON = {"content-type": "application/json"}
fewer = settings(max_examples=60, deadline=None)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


events = st.fixed_dictionaries(
    {"user_id": ids, "item_id": ids},
    optional={"timestamp": st.integers() | st.floats() | st.text(max_size=8) | st.just("2026-01-02"), "kind": ids},
)
changes = st.fixed_dictionaries(
    {}, optional={"fields": st.dictionaries(fields, values, max_size=3), "picture": st.text(max_size=8) | nonsense}
)


@pytest.fixture(scope="session")
def documented(client: Any) -> dict[str, Any]:
    paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
    return paths


def check(response: Any, responses: dict[str, Any]) -> None:
    assert response.status_code < 500, response.text
    assert str(response.status_code) in responses
    if response.status_code >= 400:
        assert response.headers["content-type"] == MEDIA_TYPE
        ProblemDocument.model_validate(response.json())


@quick
@given(path=paths, body=bodies)
def test_generated_bodies(client: Any, documented: dict[str, Any], path: str, body: Any) -> None:
    content = json.dumps(body).encode()
    response = client.request("POST", path, content=content, headers={"content-type": "application/json"})
    check(response, documented[path]["post"]["responses"])


@quick
@given(path=paths, content=st.binary(max_size=200), media_type=st.sampled_from(["application/json", "text/html", ""]))
def test_generated_bytes(client: Any, documented: dict[str, Any], path: str, content: bytes, media_type: str) -> None:
    response = client.request("POST", path, content=content, headers={"content-type": media_type})
    check(response, documented[path]["post"]["responses"])


@quick
@given(item_id=st.text(min_size=1, max_size=20).filter(lambda text: text not in (".", "..")))
def test_generated_item_ids(client: Any, documented: dict[str, Any], item_id: str) -> None:
    response = client.get("/v1/items/" + quote(item_id.encode(errors="replace"), safe=""))
    check(response, documented["/v1/items/{item_id}"]["get"]["responses"])


@fewer
@given(body=st.fixed_dictionaries({"events": st.lists(events | nonsense, max_size=3)}) | nonsense)
def test_generated_events(writable: Any, documented: dict[str, Any], body: Any) -> None:
    response = writable.request("POST", "/v1/events", content=json.dumps(body).encode(), headers=JSON)
    check(response, documented["/v1/events"]["post"]["responses"])


@fewer
@given(item_id=ids.filter(lambda text: text not in (".", "..")), body=changes | nonsense)
def test_generated_items(writable: Any, documented: dict[str, Any], item_id: str, body: Any) -> None:
    path = "/v1/items/" + quote(item_id.encode(errors="replace"), safe="")
    operations = documented["/v1/items/{item_id}"]
    put = writable.request("PUT", path, content=json.dumps(body).encode(), headers=JSON)
    check(put, operations["put"]["responses"])
    check(writable.get(path), operations["get"]["responses"])
    check(writable.post("/v1/recommend", {"history": ["i1"]}), documented["/v1/recommend"]["post"]["responses"])
    check(writable.request("DELETE", path), operations["delete"]["responses"])


@fewer
@given(user_id=ids.filter(lambda text: text not in (".", "..")))
def test_generated_users(writable: Any, documented: dict[str, Any], user_id: str) -> None:
    path = "/v1/users/" + quote(user_id.encode(errors="replace"), safe="")
    check(writable.request("DELETE", path), documented["/v1/users/{user_id}"]["delete"]["responses"])

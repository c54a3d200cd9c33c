"""Events and changes of items over HTTP, with several replicas of one application in this process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_ray.core.errors import StoreError
from recsys_ray.online.stores import open_item_log
from recsys_ray.retrieval.live import num_uncompacted
from recsys_ray.retrieval.release import Release
from serve_app.api import ChangedAnswer, ErasedAnswer, EventsAnswer, ItemAnswer, StatusAnswer
from serve_app.config import Live
from serve_app.live import LiveRelease, default_path
from serve_app.problems import ProblemDocument

pytestmark = pytest.mark.slow

WITHIN_S = 1.0
NEW = {"fields": {"title": "Zanzibar", "category": "ocean", "tags": ["red"], "price": 12.5}}


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return f"sqlite:{tmp_path / 'live.sqlite'}"


@pytest.fixture
def two(replicas: Any, store: str) -> list[Any]:
    return replicas(2, store=store)


def recommend(client: Any, **body: Any) -> list[str]:
    response = client.post("/v1/recommend", {"k": 100, **body})
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def finds(client: Any, item_id: str) -> bool:
    """Whether a question that nothing but `NEW` fits is answered with the item."""
    return item_id in recommend(client, history=["i1"], filters={"op": "equals", "field": "price", "value": 12.5})


def eventually(holds: Callable[[], bool]) -> None:
    """Ask again and again for the second that is promised."""
    end = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end, f"not within {WITHIN_S} s"


def test_an_event_changes_the_next_answer_of_every_replica(two: list[Any]) -> None:
    before = recommend(two[1], user_id="u3")
    item = before[0]
    sent = {"events": [{"user_id": "u3", "item_id": item}, {"user_id": "somebody new", "item_id": "nothing yet"}]}
    answer = EventsAnswer.model_validate(two[0].post("/v1/events", sent).json())
    assert (answer.accepted, answer.unknown_items) == (2, ["nothing yet"])
    for client in two:
        after = recommend(client, user_id="u3")
        assert item not in after
        assert after != before
        assert client.post("/v1/recommend", {"user_id": "somebody new"}).json()["unknown_items"] == ["nothing yet"]


def test_live_events_answer_as_the_same_history_would(two: list[Any], release: Release) -> None:
    published = release.histories.get("u5")
    sent = [
        {"user_id": "u5", "item_id": "i7", "timestamp": "2026-01-02"},
        {"user_id": "u5", "item_id": "i8", "timestamp": 1},
    ]
    two[0].post("/v1/events", {"events": sent})
    expected = [item for item in published if item not in ("i7", "i8")] + ["i8", "i7"]
    assert recommend(two[1], user_id="u5") == recommend(two[1], history=expected)


def test_what_was_only_shown_is_no_history(two: list[Any]) -> None:
    before = recommend(two[1], user_id="u8")
    shown = [{"user_id": user, "item_id": before[0], "kind": "impression"} for user in ("u8", "never heard of")]
    answer = EventsAnswer.model_validate(two[0].post("/v1/events", {"events": shown}).json())
    assert (answer.accepted, answer.exposures, answer.unknown_items) == (0, 2, [])
    assert recommend(two[1], user_id="u8") == before
    assert two[1].post("/v1/recommend", {"user_id": "never heard of"}).status_code == 404
    mixed = [*shown, {"user_id": "u8", "item_id": before[0], "kind": "purchase"}]
    answer = EventsAnswer.model_validate(two[0].post("/v1/events", {"events": mixed}).json())
    assert (answer.accepted, answer.exposures) == (1, 2)
    assert before[0] not in recommend(two[1], user_id="u8")


def test_an_erased_user_is_unknown_to_every_replica(two: list[Any]) -> None:
    two[0].post("/v1/events", {"events": [{"user_id": "u6", "item_id": "i1"}]})
    ErasedAnswer.model_validate(two[0].request("DELETE", "/v1/users/u6").json())
    for client in two:
        assert client.post("/v1/recommend", {"user_id": "u6"}).status_code == 404


def test_items_are_put_and_deleted_on_every_replica(two: list[Any]) -> None:
    put = two[0].request("PUT", "/v1/items/new/one", json=NEW)
    sequence = ChangedAnswer.model_validate(put.json()).sequence
    assert finds(two[0], "new/one")  # the replica that was asked knows it at once
    for client in two:
        eventually(lambda client=client: client.get("/v1/items/new/one").status_code == 200)
        item = ItemAnswer.model_validate(client.get("/v1/items/new/one").json())
        assert (item.title, item.fields["price"], item.fields["description"]) == ("Zanzibar", 12.5, None)
        assert finds(client, "new/one")
        assert client.post("/v1/similar", {"item_id": "new/one"}).json()["items"]
        status = StatusAnswer.model_validate(client.get("/v1/status").json())
        assert status.live.sequence == sequence
        assert status.live.lag_s < WITHIN_S
        assert status.counts["items"] == 121
    for item_id in ("new/one", "i2"):
        assert two[1].request("DELETE", f"/v1/items/{item_id}").status_code == 200
    for client in two:
        eventually(lambda client=client: client.get("/v1/items/i2").status_code == 404)
        for body in ({"history": ["i1"]}, {"text": "ocean zanzibar"}, {"history": []}):
            assert not {"new/one", "i2"} & set(recommend(client, **body))
        assert client.post("/v1/similar", {"item_id": "i2"}).status_code == 404
    assert two[0].request("DELETE", "/v1/items/i2").status_code == 404


def test_a_replica_that_starts_later_has_all_changes(two: list[Any], store: str, replicas: Any) -> None:
    for number in range(3):
        two[0].request("PUT", f"/v1/items/n{number}", json=NEW)
    two[0].request("DELETE", "/v1/items/n1")
    (late,) = replicas(1, store=store)
    assert finds(late, "n0")
    assert finds(late, "n2")
    assert late.get("/v1/items/n1").status_code == 404


def test_metrics_show_the_lag(two: list[Any]) -> None:
    two[0].request("PUT", "/v1/items/new", json=NEW)
    values = dict(
        line.split() for line in two[0].get("/metrics").text.splitlines() if line.startswith("recsys_item_log")
    )
    assert float(values["recsys_item_log_sequence"]) == 1
    assert 0 <= float(values["recsys_item_log_lag_seconds"]) < WITHIN_S


WRONG: list[tuple[str, str, Any, int, str | None]] = [
    ("POST", "/v1/events", {"events": []}, 422, "events"),
    ("POST", "/v1/events", {"events": [{"user_id": "u1"}]}, 422, "events.0.item_id"),
    (
        "POST",
        "/v1/events",
        {"events": [{"user_id": "u1", "item_id": "i1", "timestamp": "soon"}]},
        422,
        "events.0.timestamp",
    ),
    (
        "POST",
        "/v1/events",
        {"events": [{"user_id": "u1", "item_id": "i1", "timestamp": 10**30}]},
        422,
        "events.0.timestamp",
    ),
    ("PUT", "/v1/items/x", {"fields": {"nope": 1}}, 422, "fields.nope"),
    ("PUT", "/v1/items/x", {"fields": {"price": "dear"}}, 422, "fields.price"),
    ("PUT", "/v1/items/x", {"picture": "bm8gcGljdHVyZQ=="}, 422, "picture"),
    ("PUT", "/v1/items/x", {"picture": "?"}, 422, "picture"),
    ("PUT", "/v1/items/x", [], 422, "body"),
    ("PUT", "/v1/items/%20", {}, 422, "item_id"),
    ("DELETE", "/v1/items/x", None, 404, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), WRONG)
def test_wrong_changes_are_problem_documents(
    replicas: Any, tmp_path: Path, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    (client,) = replicas(1, store=f"sqlite:{tmp_path / 'live.sqlite'}")
    response = client.request(method, path, **({} if body is None else {"json": body}))
    assert response.status_code == status
    errors = ProblemDocument.model_validate(response.json()).errors
    assert [error.field for error in errors][:1] == ([field] if field else [])


def test_without_a_store_changes_are_refused_and_answers_are_not(replicas: Any) -> None:
    (client,) = replicas(1, store=None)
    changes = [
        client.post("/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}]}),
        client.request("PUT", "/v1/items/x", json=NEW),
        client.request("DELETE", "/v1/items/i1"),
        client.request("DELETE", "/v1/users/u1"),
    ]
    assert [response.status_code for response in changes] == [503] * 4
    assert "live.store" in changes[0].json()["detail"]
    assert recommend(client, user_id="u1")


def test_a_store_that_cannot_be_reached_degrades_answers_and_refuses_writes(replicas: Any, tmp_path: Path) -> None:
    """Nobody listens at this address. Changes of items can then not be known, so this waits for a bound of its own."""
    (client,) = replicas(1, store=f"unix://{tmp_path / 'nobody.sock'}", max_lag_s=1)
    written = client.post("/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}]})
    assert (written.status_code, written.headers["retry-after"]) == (503, "1")
    assert client.request("PUT", "/v1/items/x", json=NEW).status_code == 503
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/recommend", {"user_id": "u1"}).status_code == 503
    assert client.get("/livez").status_code == 200


def test_histories_that_are_lost_while_serving_are_named_and_nothing_fails(replicas: Any, tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    (client,) = replicas(1, store=f"sqlite:{path}", max_lag_s=1)
    before = recommend(client, user_id="u3")
    for file in tmp_path.iterdir():
        file.write_bytes(b"no database " * 1000)
    answer = client.post("/v1/recommend", {"user_id": "u3", "k": 100}).json()
    assert answer["degraded"] == ["histories"]
    assert [item["item_id"] for item in answer["items"]] == before
    assert client.post("/v1/recommend", {"user_id": "nobody knows"}).json()["degraded"] == ["histories"]
    assert client.post("/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}]}).status_code == 503


def test_a_replica_that_cannot_read_the_log_refuses_past_the_bound(release: Release) -> None:
    class Broken:
        """A log that went away; the clock, not a pause, says for how long."""

        def head(self) -> Any:
            raise StoreError("gone")

        read = append = head

    live = LiveRelease(release, Broken(), Live(max_lag_s=1))
    assert live.is_stale
    assert live.lag_s == float("inf")
    forever = LiveRelease(release, Broken(), Live(max_lag_s=None))
    assert forever.is_late
    assert not forever.is_stale


def test_a_log_that_was_lost_is_begun_anew(release: Release, tmp_path: Path) -> None:
    from recsys_ray.retrieval.live import encode_body
    from recsys_ray.retrieval.live_items import ItemBody

    body = encode_body(release, "new", ItemBody(NEW["fields"], None, (), {})).to_bytes()
    first, second = (open_item_log(f"sqlite:{tmp_path / name}") for name in ("a", "b"))
    for _ in range(3):
        first.append("new", body)
    second.append("other", body)
    live = LiveRelease(release, first, Live())
    assert live.current.catalogue.row("new") >= 0
    live._log = second
    live.catch_up()
    assert live.current.catalogue.row("new") == -1
    assert live.current.catalogue.row("other") >= 0


def test_compaction_loses_nothing_that_changes_meanwhile(release: Release, tmp_path: Path) -> None:
    from recsys_ray.retrieval.live import encode_body
    from recsys_ray.retrieval.live_items import ItemBody

    body = encode_body(release, "new", ItemBody(NEW["fields"], None, (), {})).to_bytes()
    log = open_item_log(f"sqlite:{tmp_path / 'live.sqlite'}")
    live = LiveRelease(release, log, Live(compact_at=5))
    for number in range(12):
        log.append(f"n{number}", body)
    live.catch_up()
    live.compact()
    log.append("n0", None)
    log.append("last", body)
    live.catch_up()
    assert num_uncompacted(live.current) <= 5
    found = {one.item_id for one in live.current.recommend(history=["i1"], k=200)}
    assert {f"n{number}" for number in range(1, 12)} | {"last"} <= found
    assert "n0" not in found


def test_the_default_file_lies_beside_the_releases(release_path: Path) -> None:
    assert default_path(release_path) == release_path.parent.parent / "live" / "live.sqlite"

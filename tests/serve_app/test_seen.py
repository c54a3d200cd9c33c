"""Seen items by time and kind over HTTP: what the release holds of a user, and what came since."""

import time
from pathlib import Path
from typing import Any

import pytest

from recsys_ray.online.seen import Seen
from recsys_ray.retrieval.release import Release

DAY_S = 86_400


@pytest.fixture
def fresh(replicas: Any, tmp_path: Path) -> Any:
    return replicas(1, store=f"sqlite:{tmp_path / 'live.sqlite'}")[0]


def recommend(client: Any, exclude_seen: Any, user: str = "u3") -> set[str]:
    response = client.post("/v1/recommend", {"user_id": user, "k": 100, "exclude_seen": exclude_seen})
    assert response.status_code == 200, response.text
    return {item["item_id"] for item in response.json()["items"]}


def test_what_the_release_holds_is_left_out_by_kind(client: Any, release: Release) -> None:
    events = release.histories.of("u3")
    bought = set(release.item_ids.externals(events.rows[events.fits(Seen(frozenset({"purchase"})))]))
    viewed = set(release.histories.get("u3")) - bought
    everything = recommend(client, False)
    assert bought & everything
    assert viewed & everything
    assert everything - recommend(client, {"kinds": ["purchase"]}) == everything & bought
    assert recommend(client, {"kinds": ["purchase", "view"]}) == recommend(client, True)
    assert recommend(client, {"kinds": ["rent"]}) == everything


def test_answers_are_those_of_the_release(client: Any, release: Release) -> None:
    offline = release.recommend(user_id="u5", k=20, exclude_seen=Seen.within(kinds=["view"]))
    body = {"user_id": "u5", "k": 20, "exclude_seen": {"kinds": ["view"]}}
    found = client.post("/v1/recommend", body).json()["items"]
    assert [item["item_id"] for item in found] == [item.item_id for item in offline]


def test_what_came_since_is_left_out_by_time_and_kind(fresh: Any) -> None:
    def sent(item_id: str, days_ago: float, kind: str) -> dict[str, Any]:
        return {"user_id": "u3", "item_id": item_id, "timestamp": time.time() - days_ago * DAY_S, "kind": kind}

    new, old, seen = sorted(recommend(fresh, True))[:3]
    events = [sent(new, 1, "purchase"), sent(old, 40, "purchase"), sent(seen, 1, "view")]
    assert fresh.post("/v1/events", {"events": events}).status_code == 200
    everything = recommend(fresh, False)
    assert {new, old, seen} <= everything
    # What the release holds is years old, so a window of days reaches only what came since.
    assert everything - recommend(fresh, {"within_days": 30}) == {new, seen}
    assert everything - recommend(fresh, {"within_days": 30, "kinds": ["purchase"]}) == {new}
    assert {new, old} <= everything - recommend(fresh, {"within_days": 50, "kinds": ["purchase"]})
    assert not {new, old, seen} & recommend(fresh, True)


@pytest.mark.parametrize(
    ("exclude_seen", "field"),
    [
        ({}, "exclude_seen"),
        ({"kinds": None}, "exclude_seen"),
        ({"kinds": []}, "exclude_seen.kinds"),
        ({"kinds": [""]}, "exclude_seen.kinds.0"),
        ({"within_days": 0}, "exclude_seen.within_days"),
        ({"within_days": "30"}, "exclude_seen.within_days"),
        ({"within": 30}, "exclude_seen.within"),
        ("yes", "exclude_seen"),
    ],
)
def test_a_wrong_condition_is_named(client: Any, exclude_seen: Any, field: str) -> None:
    response = client.post("/v1/recommend", {"user_id": "u3", "exclude_seen": exclude_seen})
    assert response.status_code == 422
    assert field in {error["field"] for error in response.json()["errors"]}


def test_a_history_in_the_question_has_no_times(client: Any) -> None:
    response = client.post("/v1/recommend", {"history": ["i1"], "exclude_seen": {"within_days": 30}})
    assert response.status_code == 422
    assert "Only events of a user_id have a time and a kind" in response.json()["detail"]


def test_the_openapi_document_has_it(client: Any) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["SeenEvents"]["minProperties"] == 1
    options = schemas["RecommendRequest"]["properties"]["exclude_seen"]["anyOf"]
    assert {"type": "boolean"} in options
    assert {"$ref": "#/components/schemas/SeenEvents"} in options

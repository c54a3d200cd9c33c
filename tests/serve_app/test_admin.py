"""The admin routes: off without a key, closed without the right one, and what they do to the active release."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.releases import Releases
from serve_app.admin import ActivatedAnswer, ReleasesAnswer, VerifiedAnswer
from serve_app.app import build_app
from serve_app.config import ServeConfig
from serve_app.deployments import Gateway
from serve_app.problems import ProblemDocument
from tests.serve_app.conftest import Client
from tests.serve_app.swapping import BROKEN, ONE, OTHER, start_over

pytestmark = pytest.mark.slow

KEY = "a key that nobody guesses"
WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}]}),
    ("PUT", "/v1/items/x", {}),
    ("DELETE", "/v1/items/x", None),
    ("DELETE", "/v1/users/u1", None),
]


@pytest.fixture
def admin(two_releases: Path, runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    start_over(two_releases)
    monkeypatch.setenv("RECSYS_TEST_KEY", KEY)
    values = {
        "release": str(two_releases),
        "live": {"store": f"sqlite:{tmp_path / 'live.sqlite'}"},
        "keys": {"admin": "env:RECSYS_TEST_KEY", "write": "env:RECSYS_TEST_KEY"},
    }
    return Client(Gateway(ServeConfig.parse(values)).__serve_build_asgi_app__(), runner)


def send(client: Client, method: str, path: str, key: str | None = KEY, body: Any = None) -> Any:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return client.request(method, path, headers=headers, **({} if body is None else {"json": body}))


def test_without_a_key_there_are_no_admin_routes_and_writing_is_open(client: Client) -> None:
    for method, path in (("GET", "/admin/releases"), ("POST", "/admin/rollback")):
        assert send(client, method, path).status_code == 404
    document = client.get("/openapi.json").json()
    assert not [path for path in document["paths"] if path.startswith("/admin")]
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/v1/events"]["post"]["responses"]


def test_the_wrong_key_opens_nothing(admin: Client) -> None:
    routes = [("GET", "/admin/releases", None), ("POST", "/admin/rollback", None), *WRITES]
    for method, path, body in routes:
        for key in (None, "another key of that length"):
            response = send(admin, method, path, key, body)
            assert response.status_code == ProblemDocument.model_validate(response.json()).status == 401
            assert response.headers["www-authenticate"].startswith("Bearer")
    assert admin.post("/v1/recommend", {"user_id": "u1"}).status_code == 200
    assert [send(admin, method, path, KEY, body).status_code for method, path, body in WRITES] == [200, 200, 200, 200]


def test_keys_are_in_the_openapi_document_when_they_are_set(admin: Client) -> None:
    document = admin.get("/openapi.json").json()
    (scheme,) = document["components"]["securitySchemes"]
    for path, method in (
        ("/admin/releases", "get"),
        ("/admin/releases/{release_id}/activate", "post"),
        ("/v1/events", "post"),
    ):
        route = document["paths"][path][method]
        assert route["security"] == [{scheme: []}]
        assert "401" in route["responses"]
    assert KEY not in admin.get("/openapi.json").text


def test_releases_are_listed_verified_activated_and_rolled_back(admin: Client, two_releases: Path) -> None:
    listed = ReleasesAnswer.model_validate(send(admin, "GET", "/admin/releases").json())
    assert listed.active == ONE
    assert {one.id for one in listed.releases} == {ONE, OTHER, BROKEN}

    verified = VerifiedAnswer.model_validate(send(admin, "POST", f"/admin/releases/{BROKEN}/verify").json())
    assert not verified.passed
    assert "does not hash" in (verified.reason or "")
    refused = send(admin, "POST", f"/admin/releases/{BROKEN}/activate")
    assert ProblemDocument.model_validate(refused.json()).status == refused.status_code == 409
    for name in ("nope", ".", "%2e%2e"):
        assert send(admin, "POST", f"/admin/releases/{name}/activate").status_code == 404

    done = send(admin, "POST", f"/admin/releases/{OTHER}/activate")
    assert ActivatedAnswer.model_validate(done.json()).active == OTHER
    active = Releases(two_releases).active()
    assert active is not None
    assert active.name == OTHER
    back = ActivatedAnswer.model_validate(send(admin, "POST", "/admin/rollback").json())
    assert back.active == ONE


def test_a_key_that_can_have_no_effect_is_an_error(two_releases: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.admin"):
        build_app(ServeConfig.parse({"release": str(two_releases / ONE), "keys": {"admin": "env:ANY"}}))

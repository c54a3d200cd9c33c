"""The real application on Ray Serve, over HTTP, in both topologies at once."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.retrieval.release import Release
from serve_app.app import build_app
from serve_app.config import Limits, Scale, ServeConfig
from serve_app.problems import ProblemDocument
from serve_app.run import free_port, run, wait_until_ready

TOPOLOGIES = ("collapsed", "composed")
FREE = Scale(num_cpus=0)  # the cluster belongs to all tests of the session
YAML = Path(__file__).parents[2] / "serve_app" / "serve.yaml"


def config_of(release_path: Path, topology: str) -> ServeConfig:
    limits = Limits(max_body_bytes=4096, deadline_ms=20_000)
    values = {"release": str(release_path), "topology": topology, "limits": limits}
    return ServeConfig.model_validate({**values, "gateway": FREE, "encoder": FREE, "channel": FREE})


@pytest.fixture(scope="module")
def addresses(ray_cluster: None, release_path: Path) -> Iterator[dict[str, str]]:
    from ray import serve

    port = free_port()
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    serve.run_many(
        [
            serve.RunTarget(build_app(config_of(release_path, topology)), topology, f"/{topology}", quiet)
            for topology in TOPOLOGIES
        ]
    )
    found = {topology: f"http://127.0.0.1:{port}/{topology}" for topology in TOPOLOGIES}
    for address in found.values():
        wait_until_ready(address, 60)
    yield found
    serve.shutdown()


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/recommend", {"user_id": "u3", "k": 30, "explain": True}),
    ("/v1/recommend", {"history": ["i1", "i50", "i7"], "exclude_seen": False, "fields": ["category"]}),
    ("/v1/recommend", {"history": ["i1"], "text": "golden city"}),
    ("/v1/recommend", {"history": [], "k": 5}),
    ("/v1/recommend", {"user_id": "u4", "filters": {"op": "equals", "field": "tags", "value": "red"}, "k": 40}),
    ("/v1/similar", {"item_id": "i9", "k": 12}),
    ("/v1/search", {"text": "quiet ocean", "k": 12}),
]


@pytest.mark.ray
@pytest.mark.parametrize(("path", "body"), QUESTIONS)
def test_both_topologies_give_identical_answers(addresses: dict[str, str], path: str, body: dict[str, Any]) -> None:
    answers = []
    for topology in TOPOLOGIES:
        response = httpx.post(addresses[topology] + path, json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer.pop("timings_ms")["total"] > 0
        assert response.headers.get_list("x-request-id") == [answer.pop("request_id")]
        answers.append(answer)
    assert answers[0] == answers[1]
    assert answers[0]["items"]
    assert answers[0]["degraded"] == []


@pytest.mark.ray
def test_changes_of_items_reach_every_deployment(addresses: dict[str, str]) -> None:
    """Encoder and channels of the composed topology read the item log themselves."""
    url = addresses["collapsed"] + "/v1/items/new"
    put = httpx.put(url, json={"fields": {"title": "Zanzibar", "category": "ocean", "price": 12.5}})
    assert put.status_code == 200, put.text
    questions: list[dict[str, Any]] = [
        {"history": ["new", "i3"], "text": "ocean", "k": 100},
        {"history": ["i3"], "filters": {"op": "equals", "field": "price", "value": 12.5}},
    ]

    def answers(topology: str) -> list[list[tuple[str, dict[str, int]]]]:
        found = [httpx.post(addresses[topology] + "/v1/recommend", json=body).json()["items"] for body in questions]
        return [[(item["item_id"], item["channels"]) for item in items] for items in found]

    end = time.monotonic() + 10  # that it takes less than one is measured by test_live_app
    while answers("composed") != answers("collapsed"):
        assert time.monotonic() < end
    by_channel = dict(answers("composed")[1])["new"]
    assert {"nearest"} <= by_channel.keys()
    assert httpx.delete(url).status_code == 200
    while answers("composed")[1]:
        assert time.monotonic() < end + 10


@pytest.mark.ray
def test_the_release_alone_answers_the_same(addresses: dict[str, str], release: Release) -> None:
    served = httpx.post(addresses["composed"] + "/v1/recommend", json={"user_id": "u3", "k": 30}).json()["items"]
    assert [(item["item_id"], item["score"]) for item in served] == [
        (one.item_id, one.score) for one in release.recommend(user_id="u3", k=30)
    ]


@pytest.mark.ray
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_errors_come_through_as_problem_documents(addresses: dict[str, str], topology: str) -> None:
    url = addresses[topology] + "/v1/recommend"
    sent: list[tuple[int, dict[str, Any]]] = [
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (404, {"json": {"user_id": "nobody"}}),
        (413, {"json": {"history": ["i1"] * 2000}}),
        (415, {"content": b"{}"}),
        (422, {"json": {"user_id": "u1", "k": -1}}),
    ]
    for status, request in sent:
        response = httpx.post(url, **request)
        assert response.status_code == ProblemDocument.model_validate(response.json()).status == status
    assert httpx.get(addresses[topology] + "/").headers["content-type"].startswith("text/html")
    assert httpx.get(addresses[topology] + "/v1/status").json()["topology"] == topology


@pytest.mark.ray
def test_a_killed_channel_is_named_and_comes_back(addresses: dict[str, str]) -> None:
    """Kill the process of the only replica of a channel: answers go on without it, then with it again."""
    url, body = addresses["composed"] + "/v1/recommend", {"user_id": "u3", "deadline_ms": 2000}
    os.kill(replica_pid("composed", "channel_co_visitation"), signal.SIGKILL)
    degraded: list[list[str]] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and (not degraded or degraded[-1]):
        response = httpx.post(url, json=body)
        assert response.status_code == 200, response.text
        assert response.json()["items"]
        degraded.append(response.json()["degraded"])
    assert "co_visitation" in degraded[0]  # others too, where 2 s are short on a busy machine
    assert degraded[-1] == []


def replica_pid(app: str, deployment: str) -> int:
    from ray import serve

    details = serve.context._get_global_client().get_serve_details()
    replicas = details["applications"][app]["deployments"][deployment]["replicas"]
    return int(replicas[0]["pid"])


@pytest.mark.ray
def test_run_refuses_a_cluster_that_runs_serve_already(addresses: dict[str, str], release_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs Ray Serve already"):
        run(config_of(release_path, "collapsed"), port=0, blocking=False, ingress="python")
    assert httpx.get(addresses["collapsed"] + "/livez").status_code == 200


def test_serve_yaml_is_valid_and_its_arguments_build_the_application(release_path: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(YAML.read_text()))
    (application,) = schema.applications
    assert application.import_path == "serve_app.app:build_app"
    args = {**application.args, "release": str(release_path), "topology": "composed"}
    built = call_user_app_builder_with_args_if_necessary(build_app, args)  # what `serve deploy` and `serve run` do
    gateway = built._bound_deployment
    assert gateway.name == "gateway"
    # What is beyond the limit must get as far as the gateway, which refuses it at once.
    assert gateway.max_ongoing_requests > application.args["limits"]["max_in_flight"]


def test_wrong_settings_are_named(release_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.max_q"):
        ServeConfig.parse({"release": "x", "limits": {"max_q": 1}})
    with pytest.raises(ArtifactError, match="no release"):
        build_app(ServeConfig(release=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"gateway\.max_ongoing_requests.*limits\.max_in_flight \(64\)"):
        build_app(ServeConfig(release=str(release_path), gateway=Scale(max_ongoing_requests=64)))
    with pytest.raises(ConfigError, match=r"channels\.nope.*co_visitation"):
        build_app(ServeConfig(release=str(release_path), topology="composed", channels={"nope": FREE}))

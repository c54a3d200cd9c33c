"""What a person sees while something long runs: plain lines and progress bars on stderr, so that stdout stays data."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
_LOOK_EVERY_S = 0.5


def console() -> Console:
    """The console all progress goes to. A new one each time: it follows stderr where tests or workers replaced it."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One plain line."""
    console().print(text, markup=False)


def say_into(path: Path, text: str) -> None:
    """One plain line for another process that follows the file."""
    with path.open("a") as stream:
        stream.write(text + "\n")


@contextmanager
def following(path: Path, take: Callable[[str], None] = say) -> Iterator[None]:
    """Take each line that other processes say into a file, from now on until the block ends; by default say it here."""
    done = threading.Event()
    begin = path.stat().st_size if path.is_file() else 0
    thread = threading.Thread(target=_follow, args=(path, begin, done, take), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(path: Path, place: int, done: threading.Event, take: Callable[[str], None]) -> None:
    last_look = False
    while not last_look:
        last_look = done.wait(_LOOK_EVERY_S)
        if path.is_file():
            with path.open() as stream:
                stream.seek(place)
                for line in stream:
                    take(line.rstrip("\n"))
                place = stream.tell()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass the items through under a progress bar; where stderr is no terminal, only a first and a last line."""
    shown = console()
    if not shown.is_terminal:
        say(f"{description} …")
        yield from iterable
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shown, transient=False) as progress:
        yield from progress.track(iterable, total=total, description=description)

"""What a person sees while something long runs: plain lines and progress bars on stderr, so that stdout stays data."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def console() -> Console:
    """The console all progress goes to. A new one each time: it follows stderr where tests or workers replaced it."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One plain line."""
    console().print(text, markup=False)


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

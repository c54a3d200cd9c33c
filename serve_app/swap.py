"""Another release takes the place of the one that answers: checked, loaded beside it, and then one reference changes.

A replica follows the active release of its storage. Whatever is wrong with the next release, the one before goes on
answering, and `/v1/status` says why.
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.core.errors import RecsysError, StoreError
from recsys_ray.retrieval.release_pointer import Pointer, read_pointer
from serve_app.serving import Serving

_POLL_S = 0.5
_AGAIN_AFTER_S, _MOST_S = 5.0, 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """The active release that does not answer, and why; without an id where it cannot even be read which it is."""

    release: str
    reason: str


@dataclass(frozen=True)
class Following:
    """How a replica stands with the active release.

    Attributes:
        follows: Whether it follows at all; one that is pinned to a release does not.
        loading: The release that is being checked and loaded, None when there is none.
        refused: The active release, where it cannot take over.
        swaps: How often another release took over since the start.
    """

    follows: bool
    loading: str | None = None
    refused: Refused | None = None
    swaps: int = 0


class Swap:
    """The release that answers. An answer reads `current` once, so all of it comes from one release.

    Args:
        first: What answers from the start.
        folder: The folder of releases whose active one should answer; None: pinned to the first one.
        take_over: Makes the release of a directory ready to answer in place of another one.
    """

    def __init__(self, first: Serving, folder: Path | None, take_over: Callable[[Path, Serving], Serving]) -> None:
        self._current = first
        self._folder = folder
        self._take_over = take_over
        self._tried: Pointer | None = None
        self._again_at = 0.0
        self._pause_s = _AGAIN_AFTER_S
        self._loading: str | None = None
        self._refused: Refused | None = None
        self._swaps = 0
        if folder is not None:
            threading.Thread(target=_follow, args=(weakref.ref(self),), name="release", daemon=True).start()

    @property
    def current(self) -> Serving:
        """What answers now."""
        return self._current

    @property
    def following(self) -> Following:
        """How this replica stands with the active release."""
        return Following(self._folder is not None, self._loading, self._refused, self._swaps)

    def step(self) -> None:
        """Look which release is active; take it over, or say why not and try again later. Never raises."""
        if self._folder is None:
            return
        pointer = None
        try:
            pointer = read_pointer(self._folder)
            if pointer is None or (pointer == self._tried and time.monotonic() < self._again_at):
                return
            self._change_to(self._folder / pointer.id)
        except StoreError as error:
            # Nothing is wrong with the release: without the item log it would lack what changed since it was made.
            self._refuse(pointer, f"the item log cannot be read: {error}")
        except RecsysError as error:
            self._refuse(pointer, str(error))
        except Exception as error:  # whatever it is, the thread must outlive it
            self._refuse(pointer, f"it could not be loaded: {error!r}")
        else:
            self._tried, self._again_at, self._refused = pointer, math.inf, None
        finally:
            self._loading = None

    def _change_to(self, path: Path) -> None:
        if path.resolve() == self._current.path.resolve():
            return
        self._loading = path.name
        self._current = self._take_over(path, self._current)
        self._swaps += 1
        _log.warning("release %s answers from now on", path.name)

    def _refuse(self, pointer: Pointer | None, reason: str) -> None:
        refused = Refused("" if pointer is None else pointer.id, reason)
        if refused != self._refused:  # once, however often it is tried
            _log.warning("release %s does not take over: %s", refused.release, reason)
        self._pause_s = min(2 * self._pause_s, _MOST_S) if pointer == self._tried else _AGAIN_AFTER_S
        self._tried, self._again_at, self._refused = pointer, time.monotonic() + self._pause_s, refused


def _follow(held: "weakref.ref[Swap]") -> None:
    pause = threading.Event()
    while (swap := held()) is not None:
        swap.step()
        del swap
        pause.wait(_POLL_S)

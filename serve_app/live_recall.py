"""The recall of what is being served: a share of the live questions is asked again, exactly, while nobody waits.

An engine shows each question it answers; one thread measures some of them, a bounded number waits meanwhile.
"""

import logging
import queue
import random
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_ray.core.arrays import BoolArray
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
from serve_app.config import RecallCheck
from serve_app.metrics import Metrics
from serve_app.recall import NO_FILTER, changed_share, head_of, measure

_FEWEST = 30  # questions, before a mean says anything
_SIGMAS = 3.0  # a mean counts as below the target when chance does not explain it
_LOOK_EVERY_S, _BUSY_S, _LONGEST_REST_S = 0.05, 0.01, 60.0

_AFTER_ERROR_S = 10.0

_log = logging.getLogger(__name__)

Windows = defaultdict[tuple[str, str], deque[float]]


@dataclass(frozen=True)
class Sample:
    """A question as it was asked, and the release it was asked of, in that very state."""

    release: Release
    queries: Queries
    channels: tuple[str, ...]


class LiveRecall:
    """Measures samples one by one, keeps the last of each channel and kind of question, and judges them.

    Args:
        settings: How many questions, against which target, at what cost.
    """

    def __init__(self, settings: RecallCheck) -> None:
        self._settings = settings
        self._random = random.Random()
        self._waiting: queue.Queue[Sample] = queue.Queue(settings.queue)
        self._busy: Callable[[], bool] = lambda: False
        self._dropped = 0
        self._offered = self._measured = ""  # ids of releases; none of them is held on to
        self._targets: dict[str, tuple[float, float]] = {}
        self._ages: dict[tuple[str, ...], float] = {}
        self._head: BoolArray = np.zeros(0, np.bool_)
        self._recalls = self._windows()
        self._of_items = self._windows()

    def offer(self, release: Release, queries: Queries, channels: tuple[str, ...]) -> None:
        """Show one encoded question; a share of them is taken, while there is room."""
        if self._random.random() >= self._settings.share:
            return
        if release.id != self._offered:
            self._offered = release.id
            self._let_go()
        try:
            self._waiting.put_nowait(Sample(release, queries, channels))
        except queue.Full:
            self._dropped += 1

    def start(self, metrics: Metrics) -> None:
        """Measure from now on, whenever no request is in flight; nothing happens where the share is 0."""
        if self._settings.share > 0:
            self.watch(metrics)
            threading.Thread(target=_work, args=(weakref.ref(self),), name="live-recall", daemon=True).start()

    def watch(self, metrics: Metrics) -> None:
        """Show what was measured, and look there whether somebody waits for an answer."""
        self._busy = lambda: metrics.read("recsys_in_flight") > 0
        questions = ("channel", "questions")
        metrics.watch_each("recsys_live_recall", questions, lambda: _means(self._recalls))
        metrics.watch_each("recsys_live_recall_questions", questions, lambda: _counts(self._recalls))
        metrics.watch_each("recsys_live_recall_of_items", ("channel", "items"), lambda: _means(self._of_items))
        metrics.watch_each("recsys_index_changed_share", ("channel",), lambda: dict(self._ages))
        metrics.watch("recsys_live_recall_dropped", lambda: self._dropped)
        metrics.watch("recsys_rebuild_wanted", lambda: float(self.reason is not None))

    def step(self) -> float:
        """Measure the next sample, unless somebody waits for an answer; returns the seconds to rest then."""
        if self._waiting.empty():
            return _LOOK_EVERY_S
        if self._busy():
            return _BUSY_S
        started = time.thread_time()
        try:
            self._take(self._waiting.get_nowait())
        except queue.Empty:  # let go since
            return _LOOK_EVERY_S
        took_s = time.thread_time() - started
        return min(took_s * (1 / self._settings.core_share - 1), _LONGEST_REST_S)

    @property
    def num_waiting(self) -> int:
        """Samples that were not measured yet."""
        return self._waiting.qsize()

    @property
    def num_dropped(self) -> int:
        """Samples that there was no room for."""
        return self._dropped

    @property
    def reason(self) -> str | None:
        """Why an index should be built anew; None: it should not."""
        for (channel, questions), recalls in _copied(self._recalls):
            target, mean = self._targets[channel][questions != NO_FILTER], float(np.mean(recalls))
            error = float(np.std(recalls)) / len(recalls) ** 0.5
            if len(recalls) >= _FEWEST and mean + _SIGMAS * error < target:
                found = f"channel {channel!r}: recall {mean:.4f} over the last {len(recalls)} questions ({questions})"
                return f"{found}, the target is {target:g}: publish a release, whose index is chosen anew"
        return None

    def status(self) -> dict[str, Any]:
        """As `/v1/status` shows it."""
        reason = self.reason
        recall: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for (channel, questions), mean in _means(self._recalls).items():
            recall[channel][questions] = round(mean, 4)
        share = self._settings.share
        return {"share": share, "recall": dict(recall), "rebuild_wanted": reason is not None, "reason": reason}

    def _take(self, sample: Sample) -> None:
        release = sample.release
        if self._measured != release.id:
            self._recalls, self._of_items, self._head = self._windows(), self._windows(), head_of(release)
            self._measured, self._targets, self._ages = release.id, {}, {}
        for name in sample.channels:
            channel = release.retriever.channels[name]
            if isinstance(channel, NearestChannel):
                self._measure(name, channel, sample.queries)

    def _measure(self, name: str, channel: NearestChannel, queries: Queries) -> None:
        facts = channel.facts["index"]
        target = float(self._settings.target or facts["target_recall"])
        self._targets[name] = target, min(target, float(facts["filtered_recall"]))
        self._ages[name,] = changed_share(channel)
        found = measure(channel, queries, self._head)
        if found is not None:
            self._recalls[name, found.selectivity].append(found.recall)
            for part, recall in found.of_items.items():
                self._of_items[name, part].append(recall)

    def _let_go(self) -> None:
        """Forget the samples that wait: they hold the release that they were asked of, which was replaced."""
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return

    def _windows(self) -> Windows:
        return defaultdict(lambda: deque(maxlen=self._settings.window))


def _copied(windows: Windows) -> list[tuple[tuple[str, str], list[float]]]:
    """What is there now: the measuring thread goes on meanwhile."""
    return [(key, list(window)) for key, window in list(windows.items())]


def _means(windows: Windows) -> dict[tuple[str, ...], float]:
    return {key: float(np.mean(recalls)) for key, recalls in _copied(windows)}


def _counts(windows: Windows) -> dict[tuple[str, ...], float]:
    return {key: float(len(recalls)) for key, recalls in _copied(windows)}


def _work(held: "weakref.ref[LiveRecall]") -> None:
    """Measure for as long as somebody else holds the object."""
    pause = threading.Event()
    while (recall := held()) is not None:
        try:
            rest_s = recall.step()
        except Exception:  # whatever is wrong with one question, the thread must outlive it
            _log.exception("the recall of a question could not be measured")
            rest_s = _AFTER_ERROR_S
        del recall
        pause.wait(rest_s)

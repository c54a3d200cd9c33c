"""A channel's settings chosen on validation, never on test: a coordinate search over the values of `config.search`."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from pydantic import Field

from recsys_ray.core import metrics
from recsys_ray.core.arrays import IntArray
from recsys_ray.core.config import Config, execution, override
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import KINDS, ChannelConfig, fit_channel
from recsys_ray.retrieval.channels.fit_data import FitData, ValidationPairs

OBJECTIVE = ("recall@10", "ndcg@10", "recall@100")
_LEAST = 1e-6  # a metric of 0 counts as this, so that the others still tell two channels apart
_BLOCK_SCORES = 8_000_000
_SAY_EVERY_S = 15.0

Say = Callable[[str], None]
_Value = float | int | str | None


class ChannelTuningConfig(Config):
    """How the settings that a channel names in `search` are chosen on validation.

    Attributes:
        trials: Settings tried at most, a channel, those it starts from among them.
        rounds: Passes over a channel's settings at most. The first tries every value, later ones those next to the
            best so far; a pass that finds nothing better is the last.
        max_queries: Random validation queries that a trial is judged on.
        seed: Of that sample.
        ray_above_events: Channels are fitted and tuned side by side, as Ray tasks, on more events than this; on fewer
            they come one after the other in this process, which is faster than starting tasks. They are the same.
        seconds: A guard: after so long no further trial of a channel begins, which is said. What such a channel gets
            depends on how fast the machine is.
    """

    trials: int = Field(60, ge=1)
    rounds: int = Field(3, ge=1)
    max_queries: int = Field(2000, ge=1)
    seed: int = Field(0, ge=0)
    seconds: float = Field(600.0, gt=0)
    ray_above_events: int = execution(100_000, ge=0)


@dataclass(frozen=True)
class Trial:
    """A channel fitted with some settings, and what validation says of it.

    Attributes:
        config: The settings.
        channel: Fitted.
        metrics: Each metric of `OBJECTIVE`, on the sample.
    """

    config: ChannelConfig
    channel: Channel
    metrics: dict[str, float]

    @property
    def value(self) -> float:
        """Geometric mean of the metrics: a percent of one is worth a percent of any other, whatever their size."""
        return float(np.exp(np.mean([np.log(max(value, _LEAST)) for value in self.metrics.values()])))


def tune_channel(
    name: str, config: ChannelConfig, data: FitData, settings: ChannelTuningConfig, tell: Say = say
) -> tuple[Channel, dict[str, Any]]:
    """Fit a channel with the best settings that the search finds.

    Args:
        name: The channel's name.
        config: Where the search starts, and in `search` what it tries. Without validation it is taken as it is.
        data: What to fit on and, in `validation`, what to choose on.
        settings: How long to search.
        tell: Gets a line now and then.

    Returns:
        The channel, whose settings hold what was chosen and search nothing, and facts: under "tuning" what was tried;
        empty where there was nothing to choose, or nothing to choose on.

    Raises:
        ConfigError: When the channel answers to query vectors alone, which validation pairs do not have.
        NotApplicable: When the data has nothing for the channel.
    """
    start = _with(config, "search", {})
    if not config.search or data.validation is None or not len(data.validation.items):
        return fit_channel(name, start, data), {}
    pairs = _sample(data.validation, settings)
    search = _Search(name, config, data, settings, pairs, tell)
    best = search.run(search.judge(fit_channel(name, start, data)))
    return best.channel, {"tuning": search.facts(best)}


@dataclass
class _Search:
    """A coordinate search at work.

    Attributes:
        known: The settings judged so far, and their value.
        tried: Setting to value to objective, the others as they were best when it was last looked at.
        first: The trial that it started from, as in `facts`.
        stopped: Why it ended before it was through; empty when it was.
    """

    name: str
    config: ChannelConfig
    data: FitData
    settings: ChannelTuningConfig
    pairs: ValidationPairs
    tell: Say
    known: dict[str, float] = field(default_factory=dict)
    tried: dict[str, dict[_Value, float]] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def run(self, best: Trial) -> Trial:
        """The best trial that is found from this one on."""
        self.first = self._described(best)
        for place in range(self.settings.rounds):
            before = best
            for setting, values in self.config.search.items():
                best = self._along(setting, _near(values, _get(best, setting)) if place else values, best)
            if best is before or self.stopped:
                break
        self._report(best)
        return best

    def judge(self, channel: Channel) -> Trial:
        """A trial of a fitted channel. Its own settings count: fitting may have settled what was left to the data."""
        if channel.reads == frozenset({"vectors"}):
            setting = f"channels.{self.name}.search"
            raise ConfigError(
                setting, dict(self.config.search), "{}", "Its questions are vectors; nothing is searched."
            )
        config: ChannelConfig = cast(Any, channel).config
        trial = Trial(config, channel, _measure(channel, self.pairs, self.data.events.num_items))
        self.known[config.model_dump_json()] = trial.value
        return trial

    def facts(self, best: Trial) -> dict[str, Any]:
        """What was done, as JSON values."""
        return {
            "objective": f"geometric mean of {', '.join(OBJECTIVE)}",
            "queries": len(self.pairs.items),
            "trials": len(self.known),
            "seconds": round(time.monotonic() - self._began, 1),
            "stopped": self.stopped,
            "start": self.first,
            "best": self._described(best),
            "tried": {name: [_pair(*pair) for pair in tried.items()] for name, tried in self.tried.items()},
        }

    def _along(self, setting: str, values: tuple[_Value, ...], best: Trial) -> Trial:
        """The best trial when one setting changes and the others stay."""
        origin = best
        self.tried[setting] = {**self.tried.get(setting, {}), _get(origin, setting): origin.value}
        for config in self._variants(origin.config, setting, values):
            key, value = config.model_dump_json(), getattr(config, setting)
            if key not in self.known:
                if self._must_stop():
                    return best
                trial = self.judge(self._fitted(setting, config, origin))
                best = trial if trial.value > best.value else best
                self._say_now_and_then(best)
            self.tried[setting][value] = self.known[key]
        return best

    def _variants(self, config: ChannelConfig, setting: str, values: tuple[_Value, ...]) -> Iterator[ChannelConfig]:
        """The settings with another value of one of them; not those that the others do not allow."""
        for value in values:
            try:
                yield _with(config, setting, value)
            except ConfigError:
                continue

    def _fitted(self, setting: str, config: ChannelConfig, origin: Trial) -> Channel:
        """Fitted anew only where fitting reads the setting."""
        if setting in KINDS[config.kind].at_query:
            return _replaced(origin.channel, config)
        return fit_channel(self.name, config, self.data)

    def _must_stop(self) -> bool:
        if len(self.known) >= self.settings.trials:
            self.stopped = f"after channel_tuning.trials={self.settings.trials}"
        elif time.monotonic() - self._began > self.settings.seconds:
            self.stopped = f"after channel_tuning.seconds={self.settings.seconds:g}: a faster machine tries more"
        return bool(self.stopped)

    def _report(self, best: Trial) -> None:
        changed = ", ".join(f"{name}={value}" for name, value in self._described(best)["settings"].items())
        gain = f"{self.first['objective']:.4f} → {best.value:.4f}"
        self.tell(f"channel {self.name}: {gain} in {len(self.known)} trials: {changed}")
        if self.stopped:
            self.tell(f"channel {self.name}: its search stopped {self.stopped}")

    def _say_now_and_then(self, best: Trial) -> None:
        now = time.monotonic()
        if now - self._said > _SAY_EVERY_S:
            self._said = now
            self.tell(
                f"channel {self.name}: {len(self.known)} trials in {now - self._began:.0f} s, best {best.value:.4f}"
            )

    def _described(self, trial: Trial) -> dict[str, Any]:
        settings = {name: _get(trial, name) for name in self.config.search}
        return {"objective": trial.value, **trial.metrics, "settings": settings}


def _get(trial: Trial, setting: str) -> _Value:
    value: _Value = getattr(trial.config, setting)
    return value


def _with(config: ChannelConfig, setting: str, value: Any) -> ChannelConfig:
    return override(config, {setting: value})


def _replaced(channel: Channel, config: ChannelConfig) -> Channel:
    """The same fitted values under other settings: all channels are dataclasses with a field `config`."""
    return cast(Channel, dataclasses.replace(cast(Any, channel), config=config))


def _near(values: tuple[_Value, ...], best: _Value) -> tuple[_Value, ...]:
    """The values before and after the best in the order they are given in; all of them where it is none of them."""
    if best not in values:
        return values
    place = values.index(best)
    return values[max(place - 1, 0) : place + 2]


def _sample(pairs: ValidationPairs, settings: ChannelTuningConfig) -> ValidationPairs:
    """At most `max_queries` of the queries, drawn without repetition, in their order."""
    if len(pairs.items) <= settings.max_queries:
        return pairs
    rng = np.random.default_rng(settings.seed)
    return pairs.take(np.sort(rng.choice(len(pairs.items), settings.max_queries, replace=False)))


def _measure(channel: Channel, pairs: ValidationPairs, num_items: int) -> dict[str, float]:
    """The metrics of `OBJECTIVE` in the full ranking, ties at their mean rank."""
    ranks: list[metrics.RankArray] = []
    for rows in _blocks(pairs.items.offsets, num_items):
        block = pairs.take(rows)
        scores = channel.scores(block.queries())
        ranks.append(metrics.mean_ranks(scores[block.items.row_of_value], block.items.values))
    placed, owner, count = np.concatenate(ranks), pairs.items.row_of_value, len(pairs.items)
    return {name: float(metrics.METRICS[name](placed, owner, count).mean()) for name in OBJECTIVE}


def _blocks(offsets: IntArray, num_items: int) -> Iterator[IntArray]:
    """Queries that together have about `_BLOCK_SCORES` / N targets, each of which needs its query's scores."""
    most, start = max(1, _BLOCK_SCORES // max(num_items, 1)), 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + most, "right")) - 1
        yield np.arange(start, max(stop, start + 1))
        start = max(stop, start + 1)


def _pair(value: _Value, objective: float) -> dict[str, Any]:
    return {"value": value, "objective": objective}

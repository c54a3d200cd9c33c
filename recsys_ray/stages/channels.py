"""Fit the channels: one artifact each, so that a changed setting refits one alone; side by side on larger data."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.cluster import one_cpu
from recsys_ray.core.config import result_settings
from recsys_ray.core.errors import ConfigError, NotApplicable
from recsys_ray.core.on_ray import cluster_cpus
from recsys_ray.core.progress import following, say, say_into
from recsys_ray.retrieval.channel_tuning import ChannelTuningConfig, tune_channel
from recsys_ray.retrieval.channels import KINDS, ChannelConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.files import add_facts, read_header
from recsys_ray.retrieval.channels.fit_data import FitData, Space, ValidationPairs
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.shards import in_this_process, user_shards
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.on_ray import map_on_ray
from recsys_ray.retrieval.query import Queries
from recsys_ray.stages.features import Features
from recsys_ray.stages.fitted import KIND, TOWERS, Configs, Fit, load_fitted, query_encoder, reads_towers
from recsys_ray.stages.on_ray import Tasks
from recsys_ray.stages.towers import Towers
from recsys_ray.stages.work import Data, Scope, Work

VERSION = 5
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class _Plan:
    """One channel to fit, and what its artifact depends on."""

    name: str
    config: ChannelConfig
    settings: dict[str, Any]
    parents: dict[str, Artifact]
    label: str


def configured(work: Work) -> Configs:
    """The channels that are switched on."""
    return {name: config for name, config in work.config.channels.items() if config is not None}


def indexed(configs: Configs) -> Configs:
    """The channels that search an index."""
    return {name: config for name, config in configs.items() if isinstance(config, NearestConfig)}


def fit(
    work: Work,
    data: Data,
    features: Features,
    towers: Towers | None,
    scope: Scope,
    configs: Configs,
) -> Fit:
    """Fit each of the given channels on the scope's events, its settings chosen on the scope's validation.

    Args:
        work: The run.
        data: The dataset.
        features: Frozen content spaces.
        towers: The towers' space; None where no channel reads it.
        scope: Events, and validation to choose settings on.
        configs: Name to settings.

    Raises:
        ConfigError: When the data has nothing for any of them.
    """
    plans = [_plan(work, data, features, towers, scope, channel) for channel in configs.items()]
    fit_data = cache(lambda: _fit_data(work, data, features, towers, scope))
    missing = [plan for plan in plans if not work.runner.has(KIND, VERSION, plan.settings, plan.parents)]
    if _worth_ray(work, scope, missing):
        work.need_ray()
        # Where fewer channels are fitted than there are CPUs, the others count parts of the events.
        map_shards = map_on_ray if len(missing) < cluster_cpus() else in_this_process
        made = _side_by_side(work, plans, replace(fit_data(), map_shards=map_shards))
    else:
        made = {plan.name: _made(work, plan, lambda *task: fit_into(fit_data(), *task)) for plan in plans}
    reasons = {name: str(one.summary[LEFT_OUT]) for name, one in made.items() if LEFT_OUT in one.summary}
    for name, reason in reasons.items():
        say(f"channel {name} is left out on {scope.name}: {reason}")
    fitted = Fit(scope, towers, {name: made[name] for name in configs if name not in reasons}, reasons)
    _require_some(fitted)
    return fitted


def fit_into(
    data: FitData, directory: Path, name: str, config: ChannelConfig, settings: ChannelTuningConfig, lines: Path | None
) -> dict[str, Any]:
    """Fit one channel, with settings chosen on validation, into an empty directory.

    Args:
        data: What to fit on.
        directory: Where it is saved.
        name: The channel's name.
        config: Its settings.
        settings: How long to search.
        lines: The file that gets what there is to say meanwhile; None says it here.

    Returns:
        What was found; under `LEFT_OUT` why the data has nothing for the channel, and then nothing was saved.
    """
    try:
        tell = say if lines is None else partial(say_into, lines)
        channel, facts = tune_channel(name, config, data, settings, tell)
    except NotApplicable as reason:
        return {LEFT_OUT: str(reason)}
    channel.save(directory)
    add_facts(directory, facts)
    return read_header(directory).facts


def agreed(fits: Sequence[Fit]) -> list[Fit]:
    """The same fits with the channels that all of them have: folds are measured together.

    Raises:
        ConfigError: When there is no such channel.
    """
    reasons = {name: f"{reason} ({fit.scope.name})" for fit in reversed(fits) for name, reason in fit.left_out.items()}
    if len(fits) == 1 or not reasons:
        return list(fits)
    common = [fit.without(reasons) for fit in fits]
    _require_some(common[0])
    return common


def heard(fitted: Fit, fusion: Fusion) -> Fit:
    """The channels that are worth serving: not those whose candidates never count.

    A channel that nobody's history weighs is still served where it answers what no history asks: everybody alike, or
    a free text.
    """
    reads = {name: load_fitted(fitted.channels[name]).reads for name in fusion.silent & fitted.channels.keys()}
    unheard = [name for name, parts in reads.items() if parts and "text" not in parts]
    for name in unheard:
        say(f"channel {name} is not served: validation gives it no weight beside the others")
    return fitted.without(dict.fromkeys(unheard, "no weight in the fusion")) if unheard else fitted


_Fit = Callable[[Path, str, ChannelConfig, ChannelTuningConfig, Path | None], Mapping[str, Any]]


def _made(work: Work, plan: _Plan, fit_one: _Fit, lines: Path | None = None) -> Artifact:
    """The channel's artifact, fitted by `fit_one` where it is not there yet."""

    def write(directory: Path) -> Mapping[str, Any]:
        return fit_one(directory.absolute(), plan.name, plan.config, work.config.channel_tuning, lines)

    return work.runner.run(KIND, VERSION, plan.settings, plan.parents, write, label=plan.label)


def _worth_ray(work: Work, scope: Scope, missing: list[_Plan]) -> bool:
    """Whether there is enough to fit that tasks beside each other gain more than starting them costs."""
    large = len(scope.events) > work.config.channel_tuning.ray_above_events
    several = len(missing) > 1 or (len(missing) == 1 and len(user_shards(scope.events)) > 1)
    return large and several and not one_cpu(work.config.ray)


def _side_by_side(work: Work, plans: list[_Plan], data: FitData) -> dict[str, Artifact]:
    """All of them at once, as far as the cluster has CPUs; those that take longest begin first."""
    lines = Path(work.config.storage).absolute() / "scratch" / "channels.txt"
    lines.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(plans, key=lambda plan: -KINDS[plan.config.kind].cost)
    with following(lines), ThreadPoolExecutor(cluster_cpus()) as pool, Tasks(data) as tasks:
        made = list(pool.map(lambda plan: _made(work, plan, partial(tasks.run, fit_into), lines), ordered))
    return {plan.name: artifact for plan, artifact in zip(ordered, made, strict=True)}


def _require_some(fitted: Fit) -> None:
    if fitted.left_out and not fitted.channels:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in fitted.left_out.items())
        raise ConfigError("channels", sorted(fitted.left_out), "a channel that the data has something for", reasons)


def _plan(
    work: Work, data: Data, features: Features, towers: Towers | None, scope: Scope, channel: tuple[str, ChannelConfig]
) -> _Plan:
    name, config = channel
    settings = {"name": name, "channel": result_settings(config), "scope": scope.name}
    if config.search and scope.validation is not None:
        settings["tuning"] = result_settings(work.config.channel_tuning)
    if isinstance(config, NearestConfig):
        settings["index"] = result_settings(work.config.index)
    parents = _parents(data, features, towers, config)
    return _Plan(name, config, settings, parents, f"channel {name} on {scope.name}")


def _parents(data: Data, features: Features, towers: Towers | None, config: ChannelConfig) -> dict[str, Artifact]:
    parents = {"dataset": data.artifact}
    if towers is not None and reads_towers(config):
        parents |= {"towers": towers.artifact, "vectors": towers.vectors_artifact}
    elif isinstance(config, ContentConfig | NearestConfig) and config.space is not None:
        parents["features"] = features.artifact
    return parents


def _fit_data(work: Work, data: Data, features: Features, towers: Towers | None, scope: Scope) -> FitData:
    spaces = {
        modality: _content_space(features.backbone_id(modality), table.vectors, work.config.index.max_queries)
        for modality, table in features.tables.items()
    }
    if towers is not None:
        spaces[TOWERS] = Space(towers.space_id, towers.vectors, _held_out(work, data, towers, scope))
    validation = scope.validation
    pairs = None if validation is None else ValidationPairs(validation.history, validation.exclude, validation.items)
    return FitData(scope.events, data.dataset.items, data.dataset.fields, spaces, pairs, work.config.index)


def _content_space(space_id: str, vectors: FloatArray, max_queries: int) -> Space:
    """Frozen vectors at unit length; the items themselves are the questions that its index is measured with."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return Space(space_id, unit, unit[np.linspace(0, len(unit) - 1, min(max_queries, len(unit))).astype(np.int64)])


def _held_out(work: Work, data: Data, towers: Towers, scope: Scope) -> FloatArray:
    """User vectors of histories as they will come: those of validation, else those of all users of the scope."""
    count, tokens = work.config.index.max_queries, data.user_tokens
    if scope.validation is not None and len(scope.validation):
        users, histories = scope.validation.users, scope.validation.history
    else:
        users = np.flatnonzero(np.diff(scope.events.offsets))
        histories = scope.events.histories.take(users)
    picked = np.linspace(0, len(users) - 1, min(count, len(users))).astype(np.int64)
    queries = Queries.of_histories(histories.take(picked))
    if tokens is not None:
        queries = Queries(queries.history, queries.exclude, queries.texts, tokens[users[picked]])
    return query_encoder(towers).encode(queries)[towers.space_id]

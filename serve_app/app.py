"""The wiring of the application, all of it on this screen."""

from typing import TYPE_CHECKING

from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.shard import Shard
from recsys_ray.retrieval.release import open_release
from recsys_ray.retrieval.release_files import channel_names, is_nearest
from recsys_ray.retrieval.text_backends import measure
from serve_app.config import Scale, ServeConfig
from serve_app.deployments import ChannelWorker, Encoder, Gateway
from serve_app.opening import first_release, followed_folder

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

__all__ = ["ServeConfig", "build_app"]

_ROOM = 128
_REFUSED_AT_ONCE = 16  # times as many as are worked on; a refusal is over in well under a millisecond

# Replicas that each spread over all cores cost each other ten times what they gain: torch, BLAS and FAISS read this.
_ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}


def build_app(config: ServeConfig) -> "Application":
    """The Ray Serve application of a release.

    Used by `serve deploy serve_app/serve.yaml` and ``serve run serve_app.app:build_app release=PATH``.

    Raises:
        ArtifactError: When there is no release, or none that may answer.
        ConfigError: When `channels` names a channel that the release does not have, the gateway has no room for what it
            refuses, or a setting has no effect.
    """
    from ray import serve  # here, since Ray Serve reads its switches at import: see `run`

    def deploy(cls: type, name: str, scale: Scale, room: int = _ROOM) -> "Deployment":
        return serve.deployment(
            name=name,
            num_replicas=scale.replicas,
            max_ongoing_requests=scale.max_ongoing_requests or room,
            max_queued_requests=scale.max_queued_requests or room,
            backpressure_config={"status_code": 429, "retry_after_s": config.limits.retry_after_s},
            ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus, "runtime_env": _ONE_THREAD},
            max_surge_percent=100,
        )(cls)

    # Absolute, since replicas have other working directories; of one release where they must all load the same.
    folder, first = followed_folder(config), first_release(config)
    release = open_release(first)
    config = override(config, {"release": str(folder or first.resolve()), "follow": folder is not None})
    if config.keys.admin is not None and folder is None:
        raise ConfigError("keys.admin", config.keys.admin, "null", "One release is served for good: give a storage.")
    if config.text_encoder.backend == "auto" and not config.text_encoder.measured_ms:
        # Once for all replicas: each on its own might choose another one, and answer differently.
        config = override(config, {"text_encoder.measured_ms": measure(release.path)})
    _require_shardable(config, release)
    gateway = deploy(serve.ingress()(Gateway), "gateway", config.gateway, _gateway_room(config))
    if config.topology == "collapsed":
        return gateway.bind(config)
    encoder = deploy(Encoder, "encoder", config.encoder).bind(config)
    channels = {
        name: [
            deploy(ChannelWorker, deployment, config.channels.get(name, config.channel)).bind(config, name, shard)
            for deployment, shard in _shards(config, name)
        ]
        for name in _channels(config, channel_names(release))
    }
    return gateway.bind(config, encoder, channels)


def _gateway_room(config: ServeConfig) -> int:
    """How many requests may be inside the gateway at a time, with those that it is about to refuse.

    Raises:
        ConfigError: When Ray Serve would hold back what the gateway should refuse.
    """
    most, ongoing = config.limits.max_in_flight, config.gateway.max_ongoing_requests
    if ongoing is not None and ongoing <= most:
        hint = "What is beyond it waits in Ray Serve's queue, where no deadline and no limit is looked at."
        raise ConfigError("gateway.max_ongoing_requests", ongoing, f"more than limits.max_in_flight ({most})", hint)
    return _REFUSED_AT_ONCE * most


def _channels(config: ServeConfig, names: list[str]) -> list[str]:
    """The release's channels.

    Raises:
        ConfigError: When a scale is set for a channel that is not there.
    """
    for name in config.channels:
        if name not in names:
            raise ConfigError(f"channels.{name}", name, ", ".join(names), "The release has no such channel.")
    return names


def _shards(config: ServeConfig, name: str) -> list[tuple[str, Shard | None]]:
    """The deployments of a channel and what each holds of it.

    By name, not by the rank of a replica: Ray Serve's handles ask any replica of a deployment, and one that takes the
    place of another, or is added for speed, holds what its deployment says.
    """
    count = config.shards.get(name, 1)
    if count == 1:
        return [(f"channel_{name}", None)]
    return [(f"channel_{name}_shard_{number}", Shard(number, count)) for number in range(count)]


def _require_shardable(config: ServeConfig, release: Artifact) -> None:
    """Check that shards have an effect.

    Raises:
        ConfigError: When they are set without deployments of their own, or for what has no index.
    """
    if config.sharded and config.topology != "composed":
        hint = "One process holds all channels in the collapsed topology."
        raise ConfigError("shards", config.shards, "with topology=composed", hint)
    able = [name for name in channel_names(release) if is_nearest(release, name)]
    for name, count in config.shards.items():
        if name not in able:
            hint = "Only channels of kind nearest have an index to split; scale others by channels.NAME.replicas."
            raise ConfigError(f"shards.{name}", count, ", ".join(able) or "none in this release", hint)

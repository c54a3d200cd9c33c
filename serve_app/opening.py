"""Opening releases for a gateway replica: the one to begin with, and others that are to take over from it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from recsys_ray.core.artifacts import MANIFEST, open_artifact
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.online.item_log import ItemLog
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.item_encoder import load_backbones
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release, load_release
from recsys_ray.retrieval.release_files import channel_names, releases_folder, resolve_release
from recsys_ray.retrieval.release_parts import KIND
from recsys_ray.retrieval.release_pointer import read_pointer
from serve_app.checks import check_once, last_served, remember_served
from serve_app.config import ServeConfig
from serve_app.engine import Engine, Fallback, fallback_name
from serve_app.live import LiveRelease
from serve_app.serving import Serving
from serve_app.stages import Workers, stages_here

_WARM_WITHIN_S = 60.0


def followed_folder(config: ServeConfig) -> Path | None:
    """The folder of releases whose active one is to be followed; None: one release is served for good.

    Raises:
        ConfigError: When a single release was given to be followed.
    """
    single = (Path(config.release) / MANIFEST).is_file()
    if single and config.follow:
        hint = "Or leave follow out: a single release is served for good."
        raise ConfigError("follow", True, "a storage or a folder of releases as `release`", hint)
    return None if single or config.follow is False else releases_folder(config.release)


def first_release(config: ServeConfig) -> Path:
    """The directory of the release to begin with.

    That is the active one; where it is refused, the one that answered last on this node, else the one that was active
    before: a replica that starts while a broken release is active joins the others, which go on with the old one.

    Raises:
        ArtifactError: When there is none; why the active one is refused.
    """
    folder = followed_folder(config)
    if folder is None:
        return resolve_release(config.release)
    try:
        active = resolve_release(config.release)
        check_once(active)
    except ArtifactError:
        for path in _earlier(folder):
            with contextlib.suppress(ArtifactError):
                check_once(path)
                return path
        raise
    return active


class Opener:
    """Makes a release answer in this replica.

    Args:
        config: The application's settings.
        items: The item log, None without live state.
        workers: The deployments that hold the stages; None: this process does.
        observe: Is shown each release with a question that it was asked, and the channels; it must be quick.
    """

    def __init__(
        self,
        config: ServeConfig,
        items: ItemLog | None,
        workers: Workers | None,
        observe: Callable[[Release, Queries, tuple[str, ...]], None],
    ) -> None:
        self._config = config
        self._items = items
        self._workers = workers
        self._observe = observe
        self._folder = followed_folder(config)

    def open(self, path: Path) -> Serving:
        """Load a release and bring it level with the item log, as far as that can be read.

        Raises:
            ArtifactError: When it cannot be loaded, or has a channel without a deployment.
        """
        self._require_workers(path)
        release = load_release(path, self._config.text_encoder, self._config.sharded)
        if self._items is not None:
            load_backbones(release.retriever.encoders)  # here, not with the first item that is put
        live = LiveRelease(release, self._items, self._config.live)
        stages = stages_here(live) if self._workers is None else self._workers.stages(live)
        engine = Engine(
            stages.encode,
            stages.channels,
            lambda lists: live.current.catalogue.only_present(lists),
            self._config.breaker,
            _fallback(live, self._config.fallback),
            lambda queries, names: self._observe(live.current, queries, names),
        )
        return Serving(live, engine)

    def remember(self, serving: Serving) -> None:
        """Write down what answers now; see `first_release`."""
        if self._folder is not None:
            remember_served(self._folder, serving.id)

    def take_over(self, path: Path, current: Serving) -> Serving:
        """Check a release, open it beside the current one, and warm it up; serving goes on meanwhile.

        Raises:
            RecsysError: Why it must not answer.
            StoreError: The item log cannot be read.
            NotWarm: A stage did not answer.
        """
        check_once(path)
        self._require_workers(path)
        try:
            self._prepare(path)
            serving = self.open(path)
            serving.live.catch_up()
            self._warm_up(serving)
        except BaseException:
            with contextlib.suppress(Exception):
                self._prepare(current.path)  # workers keep what was prepared last
            raise
        self.remember(serving)
        return serving

    def _prepare(self, path: Path) -> None:
        if self._workers is not None:
            self._workers.prepare(path, channel_names(open_artifact(path, KIND)))

    def _warm_up(self, serving: Serving) -> None:
        warming = serving.warm_up(_WARM_WITHIN_S)
        if self._workers is None:
            asyncio.run(warming)
        else:
            self._workers.run(warming)

    def _require_workers(self, path: Path) -> None:
        """Deployments are made once, so what they were not made for must wait until the application is made anew."""
        if self._workers is None:
            return
        have = self._workers.channels
        missing = [name for name in channel_names(open_artifact(path, KIND)) if name not in have]
        if missing:
            raise ArtifactError(
                f"redeploy: release {path.name} has the channels {', '.join(missing)}, and the application was started "
                f"with deployments for {', '.join(have)} alone"
            )


def _earlier(folder: Path) -> Iterator[Path]:
    """What answered before, the most recent first."""
    served = last_served(folder)
    if served is not None:
        yield folder / served
    with contextlib.suppress(ArtifactError):
        pointer = read_pointer(folder)
        yield from (folder / name for name in reversed(pointer.before if pointer else ()))


def _fallback(live: LiveRelease, setting: str | None) -> Fallback | None:
    name = fallback_name(setting, live.current.retriever.channels)
    if name is None:
        return None

    def retrieve(queries: Queries, k: int) -> Candidates:
        return live.current.retriever.channels[name].retrieve(live.known(queries), k)

    return Fallback(name, retrieve)

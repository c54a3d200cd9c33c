"""Ask a release for all of its users, or some: in this process, or by actors of a Ray cluster, with equal results."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.online.seen import ExcludeSeen, Seen
from recsys_ray.retrieval.bulk.answers import Answers, Asked
from recsys_ray.retrieval.bulk.folder import SINCE, Folder
from recsys_ray.retrieval.bulk.users import Block, Users
from recsys_ray.retrieval.filters import Filter
from recsys_ray.retrieval.filters.language import canonical
from recsys_ray.retrieval.release import load_release, open_release

RAY_ABOVE_USERS = 100_000
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Bulk:
    """A question for many users.

    Attributes:
        release: A release's directory, or the storage of a run.
        to: The folder for the candidates; on a cluster, one that every node sees.
        users: A text file with one user id a line, readable by every process at work; None: all of the release.
        k: How many candidates each.
        exclude_seen: Whether items that a user met are left out …
        within_days: … only those of so many days up to the moment that the first run began; None: of any time.
        kinds: … only those of events of these kinds; None: of any.
        filters: What may come back.
        users_per_file: Users of one Parquet file: what a killed run does again at most, per worker.
    """

    release: Path
    to: Path
    users: Path | None = None
    k: int = 20
    exclude_seen: bool = True
    within_days: float | None = None
    kinds: tuple[str, ...] | None = None
    filters: Filter | None = None
    users_per_file: int = 10_000

    def seen(self, now_us: int) -> ExcludeSeen:
        """What is left out.

        Raises:
            ConfigError: When a condition can't hold, or nothing is to be left out anyway.
        """
        if self.within_days is None and self.kinds is None:
            return self.exclude_seen
        if not self.exclude_seen:
            raise ConfigError("exclude_seen", "false with a condition", "a condition, or false")
        return Seen.within(self.within_days, self.kinds, now_us)


@dataclass(frozen=True)
class Work:
    """What a process that answers blocks has to know.

    Attributes:
        release: The release's directory.
        users: Who is asked for.
        asked: What is asked for each.
        folder: Where the answers go.
    """

    release: Path
    users: Users
    asked: Asked
    folder: Folder


class Worker:
    """Holds the release, loaded once, and answers one block after another."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._answers = Answers(load_release(work.release), work.asked)

    def answer(self, block: Block) -> int:
        """Write the candidates of a block's users; returns how many users it were."""
        user_ids = self._work.users.ids(block, self._answers.release.histories.user_ids)
        self._work.folder.write(block.number, self._answers.tables(user_ids))
        return block.num_users


def recommend_users(bulk: Bulk, on_ray: bool | None = None) -> int:
    """Write the candidates of many users to Parquet; the same call again goes on where a killed one was.

    Args:
        bulk: What is asked, and where the answers go.
        on_ray: Whether actors of a Ray cluster answer, each holding the release; None: for many users.

    Returns:
        How many users have answers now.

    Raises:
        ArtifactError: When the release cannot be opened.
        ConfigError: When the folder holds something else, a filter does not fit, or the users' file is none.
    """
    if bulk.users is not None and not bulk.users.is_file():
        raise ConfigError("users", str(bulk.users), "a text file with one user id a line")
    users = Users(bulk.users and bulk.users.resolve())
    release, folder = open_release(bulk.release), Folder(bulk.to.resolve())
    with folder.alone():
        asked = folder.open(_question(bulk, release.id, users))
        wanted = Asked(bulk.k, bulk.seen(asked[SINCE]), bulk.filters)
        work = Work(release.path.resolve(), users, wanted, folder)
        blocks = list(users.blocks(release, bulk.users_per_file))
        left = [block for block in blocks if not folder.has(block.number)]
        total = sum(block.num_users for block in blocks)
        if len(left) < len(blocks):
            say(f"Recommending: {total - sum(block.num_users for block in left):,} of {total:,} users are done already")
        use_ray = total > RAY_ABOVE_USERS if on_ray is None else on_ray
        for _ in _reported(_on_ray(work, left) if use_ray else _here(work, left), left):
            pass
        folder.finish()
    return total


def _question(bulk: Bulk, release_id: str, users: Users) -> dict[str, object]:
    now_us = time.time_ns() // 1000
    bulk.seen(now_us)  # wrong conditions are refused before anything is written
    return {
        "release": release_id,
        "users": users.digest(),
        "users_per_file": bulk.users_per_file,
        "k": bulk.k,
        "exclude_seen": bulk.exclude_seen,
        "within_days": bulk.within_days,
        "kinds": None if bulk.kinds is None else sorted(bulk.kinds),
        "filters": None if bulk.filters is None else canonical(bulk.filters),
        SINCE: now_us,
    }


def _here(work: Work, blocks: Iterable[Block]) -> Iterator[int]:
    worker: Worker | None = None
    for block in blocks:
        worker = worker or Worker(work)
        yield worker.answer(block)


def _on_ray(work: Work, blocks: list[Block]) -> Iterator[int]:
    from recsys_ray.core.on_ray import connected  # Ray takes seconds to import
    from recsys_ray.retrieval.bulk.on_ray import answer_on_ray

    if blocks:
        with connected():
            yield from answer_on_ray(work, blocks)


def _reported(done: Iterable[int], blocks: list[Block]) -> Iterator[int]:
    """Pass the numbers through; every few seconds, say how far it is, how fast, and how long it will still take."""
    total, started = sum(block.num_users for block in blocks), time.monotonic()
    count, said = 0, started
    for users in done:
        count += users
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S or count == total:
            rate, said = count / max(now - started, 1e-9), now
            rest = f"{(total - count) / rate:,.0f} s left" if count < total else f"in {now - started:,.1f} s"
            say(f"Recommending: {count:,} of {total:,} users, {rate:,.0f} users/s, {rest}")
        yield users

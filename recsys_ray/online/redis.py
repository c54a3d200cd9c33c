"""Live state in Redis, for several nodes. As durable as the Redis is: ``appendonly yes`` keeps it over restarts."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recsys_ray.core.errors import MissingExtraError, StoreError
from recsys_ray.online.history import Event, LiveHistory
from recsys_ray.online.item_log import Head, ItemChange

if TYPE_CHECKING:
    from redis import Redis

_TIMEOUT_S = 1.0  # a request's deadline is about two seconds, and must be left with something
_PREFIX = "recsys"

# One script each, so that no other client sees or changes anything in between. KEYS: sequences (sorted set of ids by
# sequence), slots and bodies (hashes by id), epoch.
_APPEND = """
redis.call("SET", KEYS[4], ARGV[3], "NX")
local newest = redis.call("ZRANGE", KEYS[1], -1, -1, "WITHSCORES")
local sequence = newest[2] and tonumber(newest[2]) + 1 or 1
redis.call("ZADD", KEYS[1], sequence, ARGV[1])
redis.call("HSETNX", KEYS[2], ARGV[1], redis.call("HLEN", KEYS[2]))
if ARGV[2] == "" then redis.call("HDEL", KEYS[3], ARGV[1]) else redis.call("HSET", KEYS[3], ARGV[1], ARGV[2]) end
return sequence
"""
_READ = """
local found = redis.call("ZRANGE", KEYS[1], "(" .. ARGV[1], "+inf", "BYSCORE", "LIMIT", 0, ARGV[2], "WITHSCORES")
local changes = {}
for place = 1, #found, 2 do
  local id = found[place]
  table.insert(changes, {tonumber(found[place + 1]), tonumber(redis.call("HGET", KEYS[2], id)), id,
                         redis.call("HGET", KEYS[3], id)})
end
return changes
"""


class RedisHistories:
    """See `HistoryStore`.

    Args:
        url: As redis-py takes it: ``redis://[user:password@]host:port/database``, ``rediss://…`` or ``unix://path``.
        max_events: The newest so many events of a user are kept.

    Raises:
        MissingExtraError: When redis-py is not installed.
    """

    def __init__(self, url: str, max_events: int) -> None:
        self._redis = _connect(url)
        self._max_events = max_events

    def append(self, events: Sequence[tuple[str, Event]]) -> None:
        """See `HistoryStore.append`."""
        with _reached(), self._redis.pipeline(transaction=True) as pipeline:
            for user, event in events:
                member = json.dumps([event.item_id, event.kind, event.timestamp_us], ensure_ascii=False)
                pipeline.zadd(_events_key(user), {member: event.timestamp_us})
            for user in {user for user, _ in events}:
                pipeline.zremrangebyrank(_events_key(user), 0, -self._max_events - 1)
            pipeline.execute()

    def get(self, user_id: str) -> LiveHistory:
        """See `HistoryStore.get`."""
        with _reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(_events_key(user_id), 0, -1)
            pipeline.sismember(f"{_PREFIX}:erased", user_id)
            members, erased = pipeline.execute()
        found = [Event(timestamp, item, kind) for item, kind, timestamp in map(json.loads, members)]
        return LiveHistory(tuple(sorted(found)), bool(erased))

    def erase(self, user_id: str) -> None:
        """See `HistoryStore.erase`."""
        with _reached(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(_events_key(user_id))
            pipeline.sadd(f"{_PREFIX}:erased", user_id)
            pipeline.execute()


class RedisItemLog:
    """See `ItemLog`.

    Args:
        url: As for `RedisHistories`.

    Raises:
        MissingExtraError: When redis-py is not installed.
    """

    def __init__(self, url: str) -> None:
        self._redis = _connect(url)
        self._keys = [f"{_PREFIX}:items:{part}" for part in ("sequences", "slots", "bodies", "epoch")]

    def append(self, item_id: str, body: bytes | None) -> int:
        """See `ItemLog.append`."""
        return int(self._run(_APPEND, item_id, body or b"", uuid.uuid4().hex))

    def head(self) -> Head:
        """See `ItemLog.head`."""
        with _reached(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.get(self._keys[3])
            pipeline.zrange(self._keys[0], -1, -1, withscores=True)
            epoch, newest = pipeline.execute()
        return Head((epoch or b"").decode(), int(newest[0][1]) if newest else 0)

    def read(self, after: int, limit: int) -> list[ItemChange]:
        """See `ItemLog.read`."""
        changes = self._run(_READ, after, limit)
        return [ItemChange(sequence, slot, item_id.decode(), body) for sequence, slot, item_id, body in changes]

    def _run(self, script: str, *values: str | bytes | int) -> Any:
        with _reached():
            return self._redis.eval(script, len(self._keys), *self._keys, *values)


def _events_key(user_id: str) -> str:
    return f"{_PREFIX}:events:{user_id}"


def _connect(url: str) -> "Redis":
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise MissingExtraError("Live state in Redis", "redis") from None
    # One retry at once: a connection that idled may have been closed by the other side.
    retry = Retry(NoBackoff(), 1)
    return Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=retry)


@contextmanager
def _reached() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as error:
        raise StoreError(f"Redis: {error}") from error

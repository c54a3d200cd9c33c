"""Opening the stores of live state by their address."""

from pathlib import Path

from recsys_ray.core.errors import ConfigError
from recsys_ray.online.history import HistoryStore
from recsys_ray.online.item_log import ItemLog

SQLITE = "sqlite:"
REDIS = ("redis://", "rediss://", "unix://")
_ALLOWED = "sqlite:PATH, redis://HOST:PORT/DATABASE, rediss://… or unix://PATH"


def open_histories(address: str, max_events: int) -> HistoryStore:
    """The histories at an address.

    Args:
        address: ``sqlite:PATH`` (all processes of one node), or an address of a Redis (several nodes).
        max_events: The newest so many events of a user are kept.

    Raises:
        ConfigError: When it is no such address.
        StoreError: When a file cannot be opened; a Redis is first reached when it is asked.
        MissingExtraError: When redis-py is needed and not installed.
    """
    if _is_redis(address):
        from recsys_ray.online.redis import RedisHistories

        return RedisHistories(address, max_events)
    from recsys_ray.online.sqlite import SqliteHistories

    return SqliteHistories(_path(address), max_events)


def open_item_log(address: str) -> ItemLog:
    """The item log at an address, which may be that of the histories; raises as `open_histories`."""
    if _is_redis(address):
        from recsys_ray.online.redis import RedisItemLog

        return RedisItemLog(address)
    from recsys_ray.online.sqlite import SqliteItemLog

    return SqliteItemLog(_path(address))


def _is_redis(address: str) -> bool:
    return address.startswith(REDIS)


def _path(address: str) -> Path:
    path = address.removeprefix(SQLITE)
    if not address.startswith(SQLITE) or not path:
        raise ConfigError("live.store", address, _ALLOWED)
    return Path(path)

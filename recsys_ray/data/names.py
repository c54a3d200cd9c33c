"""Which source column plays which part: the user's mapping first, then the column's own name, then known spellings."""

from recsys_ray.core import schema
from recsys_ray.core.errors import DataError
from recsys_ray.data.layouts import TITLE_NAMES
from recsys_ray.data.sources import Columns, Role

TITLE, PICTURE = "title", "image"

_KNOWN: dict[str, tuple[str, ...]] = {
    schema.ITEM_ID: (
        *("item_id", "itemId", "item", "movie_id", "movieId", "product_id", "productId"),
        *("parent_asin", "asin", "business_id", "book_id", "sku"),
    ),
    schema.USER_ID: ("user_id", "userId", "user", "reviewerID", "customer_id", "visitor_id", "visitorid"),
    schema.TIMESTAMP: ("timestamp", "event_time", "unixReviewTime", "time", "ts", "datetime", "created_at", "date"),
    schema.KIND: ("kind", "event_type", "event", "action", "behavior", "behaviour"),
    schema.WEIGHT: ("weight",),
    TITLE: TITLE_NAMES,
    PICTURE: ("image", "image_path", "picture", "poster", "photo"),
}
_PARTS: dict[Role, tuple[str, ...]] = {
    "events": (schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.KIND, schema.WEIGHT),
    "items": (schema.ITEM_ID, TITLE, PICTURE),
    "users": (schema.USER_ID,),
}
_ID_OF: dict[Role, tuple[str, ...]] = {
    "events": (schema.USER_ID, schema.ITEM_ID),
    "items": (schema.ITEM_ID,),
    "users": (schema.USER_ID,),
}
# Ids stand in two tables, often under two names, so a mapped name may be missing from one of them.
_IN_TWO_TABLES = (schema.USER_ID, schema.ITEM_ID)


def source_columns(names: list[str], mapping: Columns, role: Role, where: str) -> dict[str, str]:
    """Canonical name to source column, for the columns that are there.

    Args:
        names: The columns of the source.
        mapping: What the user mapped.
        role: What the table is.
        where: Its path, for the error.

    Raises:
        DataError: When an id or a mapped column is not there.
    """
    found: dict[str, str] = {}
    for part in _PARTS[role]:
        wanted = getattr(mapping, part)
        if wanted in names:
            found[part] = wanted
        elif wanted is not None and part not in _IN_TWO_TABLES:
            raise DataError(_absent(where, part, f"data.columns.{part}={wanted!r} is not there", names))
        else:
            spelling = next((name for name in _spellings(part, role) if name in names), None)
            if spelling is not None:
                found[part] = spelling
    for part in _ID_OF[role]:
        if part not in found:
            wanted = getattr(mapping, part)
            reason = f"no column {wanted!r}" if wanted else "no column of a known name"
            raise DataError(_absent(where, part, reason, names))
    return found


def _spellings(part: str, role: Role) -> tuple[str, ...]:
    table_id = (role == "items" and part == schema.ITEM_ID) or (role == "users" and part == schema.USER_ID)
    return (*_KNOWN[part], "id") if table_id else _KNOWN[part]


def _absent(where: str, part: str, reason: str, names: list[str]) -> str:
    return f"{where}: {reason} for the {part}; columns there: {', '.join(names)}; set data.columns.{part}"

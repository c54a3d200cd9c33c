"""Names of columns and files of a dataset artifact, their Arrow schemas, and what each catalogue field is used for."""

from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import Field

from recsys_ray.core.config import Config

ITEM_ID = "item_id"
USER_ID = "user_id"
TIMESTAMP = "timestamp"
KIND = "kind"
WEIGHT = "weight"

# Columns that prepare derives and adds to items.parquet (and `_tokens` to users.parquet).
TEXT = "_text"  # string: all text fields joined, null where the item has none
IMAGE = "_image"  # string: absolute path of a decodable picture, or null
IMAGE_HASH = "_image_sha256"  # string: sha256 of the picture file, or null
TOKENS = "_tokens"  # list<int32>: attribute tokens, 1 … fields.num_tokens - 1
NUMERIC = "_numeric"  # fixed_size_list<float32>[F]: standardised numeric fields, 0 where missing; absent when F = 0

ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
EVENTS_FILE = "events.parquet"
EXPOSURES_FILE = "exposures.parquet"
REJECTED_FILE = "rejected.parquet"
FIELDS_FILE = "fields.json"

EVENTS = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (TIMESTAMP, pa.int64()),  # microseconds since 1970
        (KIND, pa.string()),
        (WEIGHT, pa.float32()),
    ]
)

REJECTED = pa.schema(
    [
        (
            "source",
            pa.string(),
        ),  # "items", "users", "events", "validation_events", "test_events", "images" or "vectors"
        ("line", pa.int64()),  # position in the input, from 0
        ("reason", pa.string()),  # one of a small fixed set of words, e.g. "missing item_id"
        ("value", pa.string()),  # what was wrong, as text
    ]
)


class NumericField(Config):
    """How a numeric field was standardised: (value - mean) / std."""

    mean: float
    std: float


class Fields(Config):
    """What each catalogue field is used for; written by prepare, read by encoders and channels.

    Attributes:
        title: The field shown to people, if any.
        text: String fields joined into `_text`, in order.
        categorical: Fields (strings or lists of strings) that give attribute tokens.
        numeric: Numeric fields behind `_numeric`, in order.
        vectors: Columns of precomputed vectors (audio, video, …) and their length.
        tokens: "field=value" to token, from 1; 0 is padding and unknown.
        user_tokens: The same for user attributes.
    """

    title: str | None = None
    text: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: dict[str, NumericField] = Field(default_factory=dict)
    vectors: dict[str, int] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    user_tokens: dict[str, int] = Field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Size of the item attribute vocabulary, padding included."""
        return len(self.tokens) + 1

    @property
    def num_user_tokens(self) -> int:
        """Size of the user attribute vocabulary, padding included."""
        return len(self.user_tokens) + 1

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls.model_validate_json(path.read_text())


def vectors_type(dim: int) -> pa.DataType:
    """The Arrow type of a column of vectors: plain lists of fixed size, which every reader understands."""
    return pa.list_(pa.float32(), dim)

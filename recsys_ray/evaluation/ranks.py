"""ranks.parquet: where every target stands in every ranking, so that two reports can be compared query by query."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.metrics import RankArray
from recsys_ray.data.dataset import Targets
from recsys_ray.evaluation.replay import Replay

RANKS_FILE = "ranks.parquet"
_QUERY, _USER, _ITEM = "query", "user_id", "item_id"
_RANK = "rank "  # no channel's name has a space
_NUM_ITEMS, _ASKED_WITH = b"num_items", b"asked_with"


@dataclass(frozen=True)
class Ranks:
    """Where T targets of Q queries stand.

    Attributes:
        queries: (T,) the query of each target, rising from 0.
        users: (T,) the user's id.
        items: (T,) the target's id.
        ranks: Ranking to (T,) ranks from 0, infinity where it was not retrieved.
        num_items: N, the catalogue that was ranked.
        asked_with: Digest of what the queries knew and excluded.
    """

    queries: IntArray
    users: pa.Array
    items: pa.Array
    ranks: dict[str, RankArray]
    num_items: int
    asked_with: str

    @classmethod
    def of(cls, done: Mapping[str, Replay], asked: Sequence[Targets], user_ids: IdMap, item_ids: IdMap) -> "Ranks":
        """Several replays of the same questions.

        Args:
            done: What is added to the names of a replay's rankings, to the replay; "" for the first.
            asked: The questions of each fold.
            user_ids: Users and rows.
            item_ids: Items and rows.
        """
        first = next(iter(done.values()))
        return cls(
            first.queries,
            pa.array(user_ids.ids).take(pa.array(first.users[first.queries])),
            pa.array(item_ids.ids).take(pa.array(first.items)),
            {name + suffix: ranks for suffix, replay in done.items() for name, ranks in replay.ranks.items()},
            first.num_items,
            _digest(asked, item_ids),
        )

    def save(self, path: Path) -> None:
        """Write as Parquet; a rank is a multiple of a half, which float32 holds exactly below 8 million."""
        columns = {_QUERY: pa.array(self.queries.astype(np.int32)), _USER: self.users, _ITEM: self.items}
        columns |= {f"{_RANK}{name}": pa.array(ranks.astype(np.float32)) for name, ranks in self.ranks.items()}
        metadata = {_NUM_ITEMS: str(self.num_items), _ASKED_WITH: self.asked_with}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "Ranks":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the file is missing or not what `save` wrote.
        """
        try:
            table = pq.read_table(path)
            metadata = table.schema.metadata
            names = [name for name in table.column_names if name.startswith(_RANK)]
            return cls(
                table.column(_QUERY).to_numpy().astype(np.int64),
                table.column(_USER).combine_chunks(),
                table.column(_ITEM).combine_chunks(),
                {name.removeprefix(_RANK): table.column(name).to_numpy().astype(np.float64) for name in names},
                int(metadata[_NUM_ITEMS]),
                metadata[_ASKED_WITH].decode(),
            )
        except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error!r}; evaluate again") from None


def _digest(asked: Iterable[Targets], item_ids: IdMap) -> str:
    """Digest of every query's history and excluded items, by their ids: rows differ between datasets."""
    digest = hashlib.sha256()
    for targets in asked:
        for part in (targets.history, targets.exclude):
            digest.update(part.offsets.tobytes())
            digest.update("\n".join(item_ids.externals(part.values)).encode())
    return digest.hexdigest()

"""ranks.parquet: where every target stands in every ranking, so that two reports can be compared query by query."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.metrics import METRICS, RankArray
from recsys_ray.data.dataset import Targets
from recsys_ray.evaluation.replay import Replay

RANKS_FILE = "ranks.parquet"
REFIT = " (refit)"
"""What is added to the names of the rankings after the second fit."""
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
    def of(
        cls, test: Replay, refit: Replay | None, asked: Sequence[Targets], user_ids: IdMap, item_ids: IdMap
    ) -> "Ranks":
        """What a replay of the test questions found.

        Args:
            test: By the strict fit.
            refit: By the second fit, of the same questions.
            asked: The questions of each fold.
            user_ids: Users and rows.
            item_ids: Items and rows.
        """
        again = {} if refit is None else {name + REFIT: ranks for name, ranks in refit.ranks.items()}
        return cls(
            test.queries,
            pa.array(user_ids.ids).take(pa.array(test.users[test.queries])),
            pa.array(item_ids.ids).take(pa.array(test.items)),
            {**test.ranks, **again},
            test.num_items,
            _digest(asked, item_ids),
        )

    @property
    def num_queries(self) -> int:
        """Q."""
        return int(self.queries[-1]) + 1

    @property
    def user_of_query(self) -> IntArray:
        """(Q,) a number for each query's user."""
        numbers: IntArray = self.users.dictionary_encode().indices.to_numpy().astype(np.int64)
        return numbers[np.unique(self.queries, return_index=True)[1]]

    def per_query(self, ranking: str, metric: str) -> RankArray:
        """(Q,) one metric of one ranking."""
        return METRICS[metric](self.ranks[ranking], self.queries, self.num_queries)

    def describe(self) -> str:
        """How much was asked."""
        return f"{len(self.queries):,} items in {self.num_queries:,} queries"

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

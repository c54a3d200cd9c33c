import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.errors import ArtifactError
from recsys_ray.embedding.cache import FeatureCache, write_atomically

WRITER = """
import sys
from pathlib import Path
import numpy as np
from recsys_ray.embedding.cache import FeatureCache

cache = FeatureCache(Path(sys.argv[1]), "b", 3)
for part in range(20):
    cache.add([f"{sys.argv[2]}-{part}", f"both-{part}"], np.full((2, 3), part, np.float32))
"""


def test_two_processes_may_write_at_once(tmp_path: Path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)]) for number in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path, "b", 3)
    assert cache.known() == {f"{name}-{part}" for name in ("0", "1", "both") for part in range(20)}
    vectors, found = cache.load(["1-7", "both-9", None, "0-3", "1-7", "unknown"])
    assert found == [True, True, False, True, True, False]
    assert vectors[:, 0].tolist() == [7, 9, 0, 3, 7, 0]


def test_backbones_do_not_see_each_other(tmp_path: Path):
    FeatureCache(tmp_path, "a", 3).add(["x"], np.ones((1, 3), np.float32))
    assert FeatureCache(tmp_path, "b", 3).known() == set()


def test_half_a_file_never_has_the_name_of_a_whole_one(tmp_path: Path):
    """A write that fails in the middle leaves nothing a reader looks at."""
    table = pa.table({"hash": ["x"]})
    with pytest.raises(OSError, match="no_such"):
        write_atomically(table, tmp_path / "no_such" / "x.parquet")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".x.parquet.1234.tmp").write_bytes(b"PAR1")
    assert FeatureCache(tmp_path, "b", 3).known() == set()


def test_a_broken_shard_says_what_to_do(tmp_path: Path):
    cache = FeatureCache(tmp_path, "b", 3)
    cache.add(["x"], np.ones((1, 3), np.float32))
    shard = next(cache.folder.glob("*.parquet"))
    shard.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="delete it"):
        cache.known()


def test_vectors_are_lists_of_fixed_size(tmp_path: Path):
    cache = FeatureCache(tmp_path, "b", 3)
    cache.add(["x"], np.ones((1, 3), np.float32))
    kind = pq.read_schema(next(cache.folder.glob("*.parquet"))).field("vector").type
    assert kind == pa.list_(pa.float32(), 3)

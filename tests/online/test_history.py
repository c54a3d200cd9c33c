from pathlib import Path

import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.online.history import read_histories, write_histories


def test_what_was_written_is_found_by_external_ids(tmp_path: Path) -> None:
    path = tmp_path / "histories.parquet"
    histories = Ragged.of([[2, 0], [], [1]])
    write_histories(path, ["u", "v", "w"], histories, IdMap(["a", "b", "c"]), np.array([[3, 0], [0, 0], [1, 2]]))
    store = read_histories(path)
    assert [store.get(user) for user in "uvwx"] == [["c", "a"], [], ["b"], []]
    assert [store.tokens(user) for user in "uvwx"] == [[3], [], [1, 2], []]
    assert "u" in store
    assert "x" not in store


def test_without_users(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.parquet", [], Ragged.empty(0), IdMap(["a"]))
    assert read_histories(tmp_path / "h.parquet").get("u") == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.parquet").write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_histories(tmp_path / "h.parquet")

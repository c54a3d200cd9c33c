from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.channels.folded import distinct, load_items


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=5))
def test_each_item_is_kept_at_its_newest_place(rows: list[list[int]]) -> None:
    expected = [[item for place, item in enumerate(row) if item not in row[place + 1 :]] for row in rows]
    found = distinct(Ragged.of(rows))
    assert [found[row].tolist() for row in range(len(rows))] == expected


def test_items_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(ArtifactError, match=r"users\.npy cannot be read"):
        load_items(tmp_path)
    np.save(tmp_path / "users.npy", np.zeros(4, np.float32))
    with pytest.raises(ArtifactError, match="3 items, but users of 4"):
        load_items(tmp_path)

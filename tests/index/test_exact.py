from pathlib import Path

import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.index import exact
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.products import products
from recsys_ray.index.spec import load_index
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.index.topk import top_k_columns


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_excluded_and_forbidden_rows_never_come_back() -> None:
    index, queries = ExactIndex(unit(40, 8, 0)), unit(6, 8, 1)
    exclude = Ragged.of([[0, 1, 2], [], [5], list(range(39)), [39], [7, 7]])
    allowed = np.arange(40) % 3 != 0
    rows, scores = index.search(queries, 12, exclude, Allowed.everywhere(Subset(allowed), 6))
    full = queries @ index.vectors.T
    for query in range(6):
        legal = [row for row in range(40) if allowed[row] and row not in exclude[query]]
        expected = sorted(legal, key=lambda row: -full[query, row])[:12]
        assert rows[query].tolist() == expected + [-1] * (12 - len(expected))
        np.testing.assert_allclose(scores[query, : len(expected)], full[query, expected], rtol=1e-5)


@pytest.mark.parametrize("share", [None, 0.6])
def test_of_equal_rows_at_the_cut_the_first_comes_back(share: float | None) -> None:
    """A matrix product rounds by where a row lies: without an exact look at the cut, some of these come out wrong."""
    rng = np.random.default_rng(0)
    for size in range(20, 220):
        vectors = unit(size // 8, 64, size)[rng.integers(0, size // 8, size)]
        queries, k = unit(3, 64, size + 1), int(rng.integers(1, size))
        subset = Subset(np.ones(size, np.bool_) if share is None else rng.random(size) < share)
        scores = products(queries, vectors, np.broadcast_to(np.arange(size), (3, size)))
        scores[:, ~subset.mask] = -np.inf
        index = ExactIndex(vectors)
        for search in (index._scan, index._gather):
            found = search(queries, k, None, subset)
            for mine, expected in zip(found, top_k_columns(scores, k), strict=True):
                np.testing.assert_array_equal(mine, expected)


def test_nothing_allowed_gives_padding() -> None:
    nothing = Allowed.everywhere(Subset(np.zeros(5, np.bool_)), 2)
    rows, scores = ExactIndex(unit(5, 4, 0)).search(unit(2, 4, 1), 3, Ragged.of([[1], []]), nothing)
    assert (rows == -1).all()
    assert np.isneginf(scores).all()


def test_blocks_of_queries_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = ExactIndex(unit(30, 4, 0)), unit(20, 4, 1)
    exclude = Ragged.of([[query % 30] for query in range(20)])
    whole = index.search(queries, 5, exclude)
    monkeypatch.setattr(exact, "_BLOCK_BYTES", 4 * 30 * 3)
    parts = index.search(queries, 5, exclude)
    assert (whole[0] == parts[0]).all()


def test_save_and_load(tmp_path: Path) -> None:
    index = ExactIndex(unit(10, 4, 0))
    index.save(tmp_path)
    assert (load_index(tmp_path).search(unit(2, 4, 1), 3)[0] == index.search(unit(2, 4, 1), 3)[0]).all()


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no index: index\.json"):
        load_index(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_broken_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / exact.INDEX_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"index\.json cannot be read"):
        load_index(tmp_path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    ExactIndex(unit(10, 4, 0)).save(tmp_path)
    (tmp_path / exact.VECTORS_FILE).write_bytes((tmp_path / exact.VECTORS_FILE).read_bytes()[:40])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_index(tmp_path)

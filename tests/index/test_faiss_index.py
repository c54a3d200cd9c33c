import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError, ConfigError, MissingExtraError
from recsys_ray.index import exact
from recsys_ray.index.exact import VECTORS_FILE, ExactIndex
from recsys_ray.index.faiss_index import FaissIndex, build
from recsys_ray.index.spec import load_index
from recsys_ray.index.subset import Allowed, Subset

pytest.importorskip("faiss")
N, DIM = 400, 16


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(N, DIM, 0)
FACTORIES = [("Flat", ""), ("SQfp16", ""), ("IVF16,Flat", "nprobe=2"), ("HNSW16", "efSearch=16"), ("PQ8x4fs,RFlat", "")]
BUILT = {factory: build(VECTORS, factory, parameters) for factory, parameters in FACTORIES}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(BUILT)),
    st.integers(0, 1000),
    st.integers(1, 60),
    st.sampled_from([1.0, 0.9, 0.5, 0.31, 0.1, 0.01, 0.0]),
    st.sampled_from([0, 1, 30, 390, 400]),
)
def test_k_legal_results_whenever_they_exist(factory: str, seed: int, k: int, share: float, num_excluded: int) -> None:
    rng = np.random.default_rng(seed)
    allowed = None if share == 1.0 else rng.random(N) < share
    exclude = Ragged.of([rng.choice(N, num_excluded, replace=False), rng.choice(N, num_excluded // 2, replace=False)])
    queries = unit(2, DIM, seed)
    among = None if allowed is None else Allowed.everywhere(Subset(allowed), 2)
    rows, scores = BUILT[factory].search(queries, k, exclude, among)
    for query in range(2):
        legal = set(range(N) if allowed is None else np.flatnonzero(allowed).tolist()) - set(exclude[query].tolist())
        found = rows[query][rows[query] >= 0].tolist()
        assert len(found) == len(set(found)) == min(k, len(legal))
        assert set(found) <= legal
        np.testing.assert_allclose(scores[query, : len(found)], VECTORS[found] @ queries[query], atol=1e-5)
        assert (np.diff(scores[query, : len(found)]) <= 0).all()


DOUBLED = np.concatenate([unit(1000, DIM, 7)] * 10)  # every score comes ten times
MANY = {factory: build(DOUBLED, factory, parameters) for factory, parameters in FACTORIES}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MANY)),
    st.integers(0, 1000),
    st.sampled_from([1, 10, 100]),
    st.lists(st.sampled_from([1.0, 0.5, 0.2, 0.1, 0.01, 0.001, 0.0001, 0.0]), min_size=3, max_size=3),
    st.sampled_from([0, 50, 5000]),
)
def test_filters_are_answered_exactly_at_any_selectivity(
    factory: str, seed: int, k: int, shares: list[float], num_excluded: int
) -> None:
    """Each question under a filter of its own; equal scores fall by rising row."""
    rng = np.random.default_rng(seed)
    subsets = tuple(Subset(rng.random(len(DOUBLED)) < share) for share in shares)
    queries, choice = unit(7, DIM, seed), np.arange(7) % 3
    exclude = Ragged.of([rng.choice(len(DOUBLED), num_excluded, replace=False) for _ in range(7)])
    rows, scores = MANY[factory].search(queries, k, exclude, Allowed(subsets, choice))
    exact = ExactIndex(DOUBLED)
    for query in range(7):
        legal = np.setdiff1d(subsets[choice[query]].rows, exclude[query])
        expected = np.sort(DOUBLED[legal] @ queries[query])[::-1][:k]
        found = rows[query][rows[query] >= 0]
        assert set(found.tolist()) <= set(legal.tolist())
        assert len(found) == min(k, len(legal))
        np.testing.assert_allclose(scores[query, : len(found)], expected, atol=1e-5)
        one = exact.search(
            queries[query : query + 1], k, exclude.take(np.array([query])), Allowed(subsets, choice[[query]])
        )
        assert (one[1][0] == scores[query]).all()


def test_what_filters_cost_inside_the_index_is_measured_and_used(tmp_path: Path) -> None:
    vectors, queries = unit(3000, DIM, 1), unit(40, DIM, 2)
    index = build(vectors, "IVF16,Flat", "nprobe=16").calibrated(queries, 10, filtered_recall=0.9)
    assert index.calibration is not None
    # All lists are read, so nothing can be lost inside the index.
    assert {plan.recall for plan in index.calibration.plans if plan.way == "inside"} == {1.0}
    allowed = Allowed.everywhere(Subset(np.arange(3000) % 2 == 0), 40)
    expected = ExactIndex(vectors).search(queries, 10, None, allowed)
    for way in (index.inside, index.widen):
        found = way(queries, 10, None, allowed.subsets[0])
        assert found is not None
        assert (found[0] == expected[0]).mean() > 0.9
    index.save(tmp_path)
    loaded = load_index(tmp_path)
    assert isinstance(loaded, FaissIndex)
    assert (loaded.calibration, loaded.filtered_recall) == (index.calibration, 0.9)
    assert (loaded.search(queries, 10, None, allowed)[0] >= 0).all()


def test_kinds_that_take_no_filter_say_so() -> None:
    assert BUILT["PQ8x4fs,RFlat"].inside(unit(1, DIM, 0), 5, None, Subset(np.ones(N, np.bool_))) is None


def test_a_flat_index_equals_the_oracle() -> None:
    queries, exclude = unit(9, DIM, 5), Ragged.of([[i, i + 1] for i in range(9)])
    expected = ExactIndex(VECTORS).search(queries, 20, exclude)
    found = BUILT["Flat"].search(queries, 20, exclude)
    assert (found[0] == expected[0]).all()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_save_and_load_answer_the_same(tmp_path: Path) -> None:
    index = BUILT["IVF16,Flat"]
    index.save(tmp_path)
    loaded = load_index(tmp_path)
    assert isinstance(loaded, FaissIndex)
    assert (loaded.factory, loaded.parameters) == ("IVF16,Flat", "nprobe=2")
    assert (loaded.search(unit(3, DIM, 1), 10)[0] == index.search(unit(3, DIM, 1), 10)[0]).all()


def test_a_faiss_file_put_beside_an_exact_index_is_never_opened(tmp_path: Path) -> None:
    ExactIndex(VECTORS).save(tmp_path)
    (tmp_path / "index.faiss").write_bytes(b"anything")
    assert isinstance(load_index(tmp_path), ExactIndex)


def test_blocks_of_queries_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, exclude = unit(7, DIM, 3), Ragged.of([[query] for query in range(7)])
    whole = BUILT["SQfp16"].search(queries, 10, exclude)
    monkeypatch.setattr(exact, "_BLOCK_BYTES", 4 * 11 * DIM * 2)
    parts = BUILT["SQfp16"].search(queries, 10, exclude)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_index_and_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    BUILT["Flat"].save(tmp_path)
    np.save(tmp_path / VECTORS_FILE, VECTORS[:10])
    with pytest.raises(ArtifactError, match="the index holds 400 x 16"):
        load_index(tmp_path)


def test_a_wrong_factory_string_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"index\.factory: got 'NoSuch'"):
        build(VECTORS, "NoSuch")


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"recsys-ray\[cpu\]"):
        build(VECTORS, "Flat")

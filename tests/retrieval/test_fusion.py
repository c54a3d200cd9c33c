from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.explain import explain
from recsys_ray.retrieval.fusion import Fusion, combine

NAMES = ("a", "b", "c")


def make_lists(seed: int, num_queries: int, num_channels: int, depth: int) -> dict[str, Candidates]:
    rng = np.random.default_rng(seed)
    lists = {}
    for name in NAMES[:num_channels]:
        found = Candidates.empty(num_queries, depth)
        for query in range(num_queries):
            count = int(rng.integers(0, depth + 1))
            found.rows[query, :count] = rng.permutation(12)[:count]
            # Few distinct values, so that ties come often.
            found.scores[query, :count] = np.sort(rng.integers(-1, 4, count))[::-1]
        lists[name] = found
    return lists


def fuse_slowly(lists: dict[str, Candidates], fusion: Fusion, query: int) -> list[tuple[int, float]]:
    scores: dict[int, float] = {}
    best_rank: dict[int, int] = {}
    for name, found in lists.items():
        for rank, (row, score) in enumerate(zip(found.rows[query], found.scores[query], strict=True)):
            if row < 0:
                continue
            top = float(found.scores[query, 0])
            if fusion.method == "reciprocal_rank":
                ties = np.flatnonzero(found.scores[query] == score)
                part = 1 / (fusion.rrf_k + ties.mean() + 1)
            elif name in fusion.temperatures:
                part = float(np.exp((score - top) / fusion.temperatures[name]))
            else:
                part = max(float(score), 0.0) / top if top > 0 else 0.0
            scores[int(row)] = scores.get(int(row), 0.0) + fusion.weights[name] * part
            best_rank[int(row)] = min(best_rank.get(int(row), rank), rank)
    order = sorted(scores, key=lambda row: (-np.float32(scores[row]), best_rank[row], row))
    return [(row, scores[row]) for row in order]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 15),
    st.sampled_from(["reciprocal_rank", "weighted"]),
)
def test_combine_equals_a_dictionary(seed: int, channels: int, queries: int, depth: int, k: int, method: str) -> None:
    lists = make_lists(seed, queries, channels, depth)
    fusion = Fusion(method=method, weights={"a": 1.0, "b": 0.0, "c": 0.5}, temperatures={"b": 0.5, "c": 2.0})
    fused = combine(lists, fusion, k)
    for query in range(queries):
        expected = fuse_slowly(lists, fusion, query)[:k]
        rows = fused.candidates.rows[query]
        assert rows[rows >= 0].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(fused.candidates.scores[query, : len(expected)], [s for _, s in expected], rtol=1e-6)
        for place, (row, score) in enumerate(expected):
            for column, name in enumerate(fused.channels):
                at = np.flatnonzero(lists[name].rows[query] == row)
                assert fused.ranks[query, place, column] == (at[0] if len(at) else -1)
            sources = explain(fused, query, place)
            assert sum(source.share for source in sources) == pytest.approx(score, abs=1e-6)
            assert {source.channel: source.rank - 1 for source in sources} == fused.sources(query, [place])[0]


def test_a_channel_without_weight_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.weights\.b"):
        combine(make_lists(0, 1, 2, 3), Fusion(weights={"a": 1.0}), 3)


def test_no_lists_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no list"):
        combine({}, Fusion(weights={"a": 1.0}), 3)


def test_a_late_channel_may_be_missing() -> None:
    lists = make_lists(1, 2, 3, 5)
    del lists["b"]
    fused = combine(lists, Fusion.equal(list(NAMES), 5), 4)
    assert fused.channels == ("a", "c")


def test_save_and_load(tmp_path: Path) -> None:
    fusion = Fusion(method="weighted", weights={"a": 0.25}, temperatures={"a": 0.1}, chosen_on="7 queries")
    fusion.save(tmp_path / "fusion.json")
    assert Fusion.load(tmp_path / "fusion.json") == fusion
    (tmp_path / "fusion.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"fusion\.json cannot be read"):
        Fusion.load(tmp_path / "fusion.json")

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.exploration import Exploration, ExplorationConfig, with_quota
from recsys_ray.retrieval.fusion import Fusion, combine

Lists = st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=5)


def by_hand(new: list[bool], k: int, quota: int) -> list[int]:
    first, beyond = list(range(min(k, len(new)))), [place for place in range(k, len(new)) if new[place]]
    while sum(new[place] for place in first) < quota and beyond:
        others = [place for place in first if not new[place]]
        if not others:
            break
        first.remove(others[-1])
        first.append(beyond.pop(0))
    return sorted(first)


@settings(deadline=None)
@given(Lists, st.integers(1, 10), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_new_items_take_the_last_places_of_others(lists: list[list[bool]], k: int, share: float) -> None:
    query = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    new = np.array([flag for one in lists for flag in one], bool)
    chosen, place = with_quota(query, new, k, share)
    start = 0
    for number, one in enumerate(lists):
        mine = query[chosen] == number
        assert (chosen[mine] - start).tolist() == by_hand(one, k, int(share * k))
        assert place[mine].tolist() == list(range(mine.sum()))
        start += len(one)


@pytest.fixture
def lists() -> dict[str, Candidates]:
    rows = np.arange(20)[None, :]
    return {"only": Candidates(rows, (20 - rows).astype(np.float32))}


def test_a_merged_list_keeps_its_quota_and_its_order(lists: dict[str, Candidates]) -> None:
    counts = np.full(20, 100)
    counts[[3, 15, 17, 19]] = [5, 4, 0, 2]
    quota = Exploration.of(ExplorationConfig(share=0.3, most_events=5), counts)
    fusion = Fusion(weights={"only": 1.0}, exploration=quota)
    found = combine(lists, fusion, 10)
    assert found.candidates.rows[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 15, 17]
    assert (np.diff(found.candidates.scores[0]) < 0).all()
    assert found.ranks[0, 8, 0] == 15
    restored = Fusion.model_validate_json(fusion.model_dump_json())
    assert combine(lists, restored, 10).candidates.rows.tolist() == found.candidates.rows.tolist()


def test_items_that_came_later_are_new_and_no_share_keeps_no_place(lists: dict[str, Candidates]) -> None:
    quota = Exploration.of(ExplorationConfig(share=0.1), np.full(9, 100))
    assert quota is not None
    assert quota.is_new(np.array([0, 8, 9, 30])).tolist() == [False, False, True, True]
    assert Exploration.of(ExplorationConfig(), np.zeros(8, np.int64)) is None

"""What was seen, against an oracle that looks at one event after the other."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.online.history import Event, LiveHistory, PublishedHistories, read_histories, write_histories
from recsys_ray.online.seen import Seen
from recsys_ray.retrieval.catalogue import Catalogue
from recsys_ray.retrieval.past import past_of_items, past_of_user

N = 40
LONG = 10_000
KINDS = ("view", "click", "purchase")
IDS = [f"i{row}" for row in range(N)]
CATALOGUE = Catalogue.of(pa.table({"item_id": IDS}), Fields())

histories = st.lists(st.tuples(st.integers(0, 90), st.integers(0, N - 1), st.sampled_from(KINDS)), max_size=30)
live_events = st.lists(st.tuples(st.integers(60, 99), st.integers(0, N + 3), st.sampled_from(KINDS)), max_size=10)
conditions = st.none() | st.frozensets(st.sampled_from([*KINDS, "rent"]), min_size=1)

Triple = tuple[int, int, str]


def published(path: Path, events: list[Triple]) -> PublishedHistories:
    """One user among others, whose events must not be mistaken for the user's own."""
    rows = [row for _, row, _ in events]
    write_histories(
        path,
        ["before", "u", "after"],
        Ragged.of([[0, 1], rows, [2]]),
        IdMap(IDS),
        times_us=np.array([95, 95, *(time for time, _, _ in events), 95]),
        kinds=pa.array(["view", "purchase", *(kind for _, _, kind in events), "click"]),
    )
    return read_histories(path, CATALOGUE.item_ids)


def oracle(old: list[Triple], new: list[Triple], kinds: frozenset[str] | None, since: int | None) -> set[int]:
    return {
        row
        for time, row, kind in [*old, *new]
        if row < N and (since is None or time >= since) and (kinds is None or kind in kinds)
    }


def live_of(events: list[Triple], erased: bool = False) -> LiveHistory:
    return LiveHistory(tuple(Event(time, f"i{row}", kind) for time, row, kind in events), erased)


@settings(max_examples=60, deadline=None)
@given(
    old=histories,
    new=live_events,
    kinds=conditions,
    since=st.none() | st.integers(0, 100),
    erased=st.booleans(),
)
def test_what_is_excluded_is_what_the_oracle_says(
    tmp_path_factory: pytest.TempPathFactory,
    old: list[Triple],
    new: list[Triple],
    kinds: frozenset[str] | None,
    since: int | None,
    erased: bool,
) -> None:
    old, new = sorted(old, key=lambda one: one[0]), sorted(new, key=lambda one: one[0])
    store = published(tmp_path_factory.mktemp("past") / "h.parquet", old)
    live = live_of(new, erased)
    past = past_of_user("u", store, live, CATALOGUE, Seen(kinds, since))
    kept = [] if erased else old
    assert set(past.exclude.tolist()) == oracle(kept, new, kinds, since)
    everything = past_of_user("u", store, live, CATALOGUE, True)
    assert set(everything.exclude.tolist()) == oracle(kept, new, None, None)
    assert past.history.tolist() == everything.history.tolist()
    recent = [row for _, row, _ in new if row < N]
    assert everything.history.tolist() == [row for _, row, _ in kept if row not in recent] + recent
    assert len(past_of_user("u", store, live, CATALOGUE, False).exclude) == 0


def test_histories_of_ten_thousand_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = [
        (int(time), int(row), KINDS[int(kind)])
        for time, row, kind in zip(
            np.sort(rng.integers(0, 10**6, LONG)),
            rng.integers(0, N, LONG),
            rng.choice(3, LONG, p=[0.9, 0.099, 0.001]),
            strict=True,
        )
    ]
    store = published(tmp_path / "h.parquet", old)
    for seen in (Seen(frozenset({"purchase"})), Seen(since_us=999_000), Seen(frozenset({"click"}), 990_000)):
        found = set(past_of_user("u", store, LiveHistory(), CATALOGUE, seen).exclude.tolist())
        assert 0 < len(found) < N
        assert found == oracle(old, [], seen.kinds, seen.since_us)


def test_a_history_that_comes_with_the_question_has_neither_times_nor_kinds() -> None:
    with pytest.raises(ConfigError, match=r"exclude_seen.*true or false without a user_id"):
        past_of_items(["i1"], CATALOGUE, Seen.within(days=1))
    past = past_of_items(["i1", "nope", "i3"], CATALOGUE, True)
    assert (past.history.tolist(), past.exclude.tolist(), past.unknown_items) == ([1, 3], [1, 3], ("nope",))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import ConfigError
from tune.front import Point, Target, cheapest, front, stated
from tune.front_page import render
from tune.measure import Measured

FUSED = {"recall@10": 0.2, "recall@100": 0.4}


def point(place: int, recall: float, p95_ms: float, num_bytes: int) -> Point:
    measured = Measured(recall, p95_ms / 2, p95_ms, num_bytes, 2 * num_bytes, 0, 10)
    return Point(f"id{place}", {"index.dim": None, "index.factory": "exact"}, measured)


# Latencies of two digits: what is finer counts as equal.
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(10, 20), st.integers(1, 6)), min_size=1, max_size=12).map(
    lambda rows: [point(place, r / 5, p / 10, b * 1000) for place, (r, p, b) in enumerate(rows)]
)


def beats(one: Point, other: Point) -> bool:
    mine, yours = ((-p.measured.recall, p.measured.p95_ms, p.measured.num_bytes) for p in (one, other))
    return all(a <= b for a, b in zip(mine, yours, strict=True)) and mine != yours


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    kept = front(points)
    assert kept
    assert not any(beats(other, one) for one in kept for other in points)
    costs = [(one.measured.recall, one.measured.p95_ms, one.measured.num_bytes) for one in kept]
    assert len(set(costs)) == len(costs)
    for left_out in (one for one in points if one not in kept):
        assert any(beats(one, left_out) or one.measured == left_out.measured for one in kept)


@given(POINTS, st.floats(0.1, 1), st.floats(1, 2), st.integers(1000, 6000))
def test_the_cheapest_meets_the_target_and_nothing_cheaper_does(points, recall, p95_ms, num_bytes) -> None:
    target = Target(p95_ms, num_bytes, recall)
    meeting = [one for one in points if target.is_met(one.measured)]
    chosen = cheapest(points, target)
    assert (chosen is None) == (not meeting)
    if chosen is not None:
        assert chosen in meeting
        assert chosen.measured.num_bytes == min(one.measured.num_bytes for one in meeting)


def test_without_a_recall_to_reach_the_best_within_the_limits_is_named() -> None:
    points = [point(0, 0.2, 1.0, 1000), point(1, 0.4, 1.5, 3000), point(2, 0.5, 4.0, 9000)]
    assert cheapest(points, Target(max_p95_ms=2)) == points[1]
    assert cheapest(points, Target(max_bytes=1000)) == points[0]
    assert cheapest(points, Target(max_bytes=10)) is None


def test_without_any_target_nearly_the_best_recall_is_enough() -> None:
    points = [point(0, 0.500, 1, 9000), point(1, 0.496, 1, 2000), point(2, 0.4, 1, 1000)]
    assert cheapest(points, stated(Target(), points)) == points[1]
    assert str(stated(Target(), points)) == "recall@100 >= 0.495"


@pytest.mark.parametrize("wrong", [{"max_p95_ms": 0}, {"max_bytes": -1}, {"min_recall": 1.5}])
def test_a_target_that_nothing_can_meet_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="--m"):
        Target(**wrong)


def test_the_page_names_what_was_chosen_and_where_nothing_was() -> None:
    points = [point(0, 0.2, 1.0, 1000), point(1, 0.4, 1.5, 3000), point(2, 0.1, 4.0, 9000)]
    kept = [Point(one.id, one.settings, one.measured, FUSED) for one in front(points)]
    page = render(points, kept, Target(min_recall=0.3), "id1")
    assert "The cheapest that meets recall@100 &gt;= 0.3: id1" in page
    assert page.count("<svg") == 2
    assert "id2" not in page
    assert "Nothing meets the target" in render(points, kept, Target(min_recall=0.9), None)

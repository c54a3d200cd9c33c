from dataclasses import replace

import numpy as np

from recsys_ray.evaluation.questions import ATTRIBUTES


def test_sampling_draws_distinct_questions_in_order_and_by_seed(make_questions):
    asked = make_questions(1, 30, 10)
    asked = replace(asked, targets=replace(asked.targets, users=np.arange(30)))
    first, again, other = (asked.sample(9, seed).targets for seed in (0, 0, 4))
    assert len(first) == 9
    np.testing.assert_array_equal(first.items.values, again.items.values)
    assert first.users.tolist() != other.users.tolist()
    assert (np.diff(first.users) > 0).all()
    assert asked.sample(30, 0) is asked.sample(None, 0) is asked


def test_attributes_reach_the_queries_only_when_there_are_some(make_questions):
    asked, tokens = make_questions(1, 4, 10), np.arange(10)[:, None] + 1
    assert asked.queries().user_tokens is None
    assert replace(asked, user_tokens=np.zeros((10, 0), np.int64)).queries().user_tokens is None
    known = replace(asked, user_tokens=tokens).queries().user_tokens
    np.testing.assert_array_equal(known, tokens[asked.targets.users])


def test_short_histories_are_the_end_of_the_whole_and_hide_nothing_that_was_met(make_questions):
    asked = make_questions(2, 12, 20)
    short = asked.short()
    assert list(short) == ["0", "1", "2"]
    for known, part in short.items():
        for query in range(len(asked)):
            whole = asked.targets.history[query].tolist()
            assert part.targets.history[query].tolist() == whole[len(whole) - min(int(known), len(whole)) :]
        assert part.targets.exclude is asked.targets.exclude
        assert part.targets.items is asked.targets.items


def test_attributes_alone_are_asked_beside_nothing_at_all(make_questions):
    asked = replace(make_questions(2, 12, 20), user_tokens=np.ones((20, 2), np.int64))
    short = asked.short()
    assert list(short) == ["0", ATTRIBUTES, "1", "2"]
    assert [part.know_attributes for part in short.values()] == [False, True, True, True]
    assert short[ATTRIBUTES].targets.history.lengths.max() == 0


def test_cold_targets_are_sought_among_the_cold_items_alone(make_questions):
    counts = np.array([0, 3, 0, 1, 2, 0, 1, 1, 1, 1])
    asked = make_questions(3, 20, 10, counts)
    new = asked.among_cold()
    sought = [[int(item) for item in asked.targets.items[row] if counts[item] == 0] for row in range(20)]
    rows = [row for row in range(20) if sought[row]]
    assert [new.targets.items[place].tolist() for place in range(len(new))] == [sought[row] for row in rows]
    assert [new.targets.history[place].tolist() for place in range(len(new))] == [
        asked.targets.history[row].tolist() for row in rows
    ]
    assert new.queries().allowed.of(0).mask.tolist() == (counts == 0).tolist()
    assert len(make_questions(3, 20, 10).among_cold()) == 0

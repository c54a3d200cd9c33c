"""A release with changes over it, against what a release that was made with them would say."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.online.item_log import ItemChange
from recsys_ray.retrieval.exploration import Exploration, ExplorationConfig
from recsys_ray.retrieval.filters import Equals, Range
from recsys_ray.retrieval.live import compacted, encode_body, num_uncompacted, with_changes
from recsys_ray.retrieval.live_items import ItemBody
from recsys_ray.retrieval.release import Release

Put = Callable[..., ItemChange]
NEW = {"title": "Zanzibar", "category": "ocean", "tags": ["red", "blue"], "price": 12.5}


@pytest.fixture
def put(release: Release) -> Put:
    """Changes of items as the item log would give them."""
    slots: dict[str, int] = {}

    def make(item_id: str, fields: dict | None) -> ItemChange:
        body = None if fields is None else encode_body(release, item_id, ItemBody(fields, None, (), {})).to_bytes()
        return ItemChange(len(slots) + 1, slots.setdefault(item_id, len(slots)), item_id, body)

    return make


def ids(release: Release, k: int = 200, **question: object) -> list[str]:
    return [one.item_id for one in release.recommend(k=k, **question)]


def fields_of(release: Release, item_id: str) -> dict:
    fields = release.catalogue.shown(np.array([release.catalogue.row(item_id)]), release.items.column_names)[0]
    return {name: value for name, value in fields.items() if name != "item_id"}


def test_a_new_item_is_found_by_nearest_and_content_and_shows_its_fields(release: Release, put: Put) -> None:
    live = with_changes(release, [put("new", NEW)])
    by_channel = {
        name
        for one in live.recommend(history=["i1"], text="ocean", k=121)
        if one.item_id == "new"
        for name in one.channels
    }
    assert {"nearest", "content"} <= by_channel
    found = live.search("ocean", k=121, filters=Equals("price", 12.5), fields=["category"])
    assert [(one.item_id, one.title, one.fields) for one in found] == [("new", "Zanzibar", {"category": "ocean"})]
    assert "new" in ids(live, history=["i1"])
    assert "new" not in ids(release, history=["i1"])
    assert len(live.catalogue) == len(release.catalogue) + 1


def test_a_copy_of_an_item_is_as_near_as_its_content_makes_it(release: Release, put: Put) -> None:
    live = with_changes(release, [put("twin", fields_of(release, "i9"))])
    content = live.retriever.channels["content"]
    rows = content.retrieve(live.question(["i9"]).queries, 1).rows[0].tolist()
    assert rows == [live.catalogue.row("twin")]


def test_events_with_a_new_item_move_the_answer(release: Release, put: Put) -> None:
    live = with_changes(release, [put("new", NEW)])
    assert live.question(["new"]).unknown_items == ()
    assert live.recommend(history=["new", "i3"], k=10) != live.recommend(history=["i3"], k=10)
    assert "new" not in ids(live, history=["new"])
    assert {one.channels.get("nearest") for one in live.similar("new", k=5)} != {None}


def test_what_is_put_again_unchanged_answers_as_before(release: Release, put: Put) -> None:
    """Every item of the release, put as it is: the delta then scores all that the base did."""
    changes = [put(item_id, fields_of(release, item_id)) for item_id in release.item_ids.ids]
    live = with_changes(release, changes)
    assert num_uncompacted(live) == len(release.item_ids)
    for one in (live, compacted(live)):
        for question in ({"history": ["i3", "i50"]}, {"text": "quiet ocean"}, {"user_id": "u4"}):
            expected, found = release.recommend(k=50, **question), one.recommend(k=50, **question)
            assert [item.item_id for item in found] == [item.item_id for item in expected]
            assert [item.score for item in found] == pytest.approx([item.score for item in expected], rel=1e-5)
    assert num_uncompacted(compacted(live)) == 0


def test_a_deleted_item_is_in_no_channel_no_fusion_and_no_look_up(release: Release, put: Put) -> None:
    first = with_changes(release, [put("new", NEW)])
    for live in (
        with_changes(first, [put("i10", None), put("new", None)]),
        with_changes(first, [put("new", None), put("i10", None)]),
    ):
        for one in (live, compacted(live)):
            question = one.question(["i3", "i10"], exclude_seen=False)
            lists = one.retriever.retrieve(one.retriever.encode(question.queries), 200)
            for found in lists.values():
                assert not {release.item_ids.row("i10"), 120} & set(found.rows.ravel().tolist())
            assert not {"i10", "new"} & set(ids(one, history=["i3"], filters=Range("price", min=0)))
            assert one.catalogue.row("i10") == one.catalogue.row("new") == -1
            assert len(one.catalogue) == len(release.catalogue) - 1
    back = with_changes(live, [put("i10", fields_of(release, "i10"))])
    assert ids(back, history=["i3"]) == ids(release, history=["i3"])


def test_changed_fields_are_filtered_by_and_the_row_keeps_what_channels_counted(release: Release, put: Put) -> None:
    live = with_changes(release, [put("i10", {**fields_of(release, "i10"), "price": 999.0})])
    assert ids(live, history=["i3"], filters=Range("price", min=999)) == ["i10"]
    price = fields_of(release, "i10")["price"]
    assert "i10" not in ids(live, history=["i3"], filters=Equals("price", price))
    popular = [item for item in live.recommend(history=[], k=120) if item.item_id == "i10"]
    assert "popularity" in popular[0].channels


def test_rows_do_not_depend_on_what_was_read_first(release: Release, put: Put) -> None:
    changes = [put(f"n{number}", {**NEW, "price": float(number)}) for number in range(4)]
    one = with_changes(release, changes)
    late = with_changes(with_changes(release, changes[2:]), changes[:2])
    assert [one.catalogue.row(f"n{number}") for number in range(4)] == [120, 121, 122, 123]
    assert [late.catalogue.row(f"n{number}") for number in range(4)] == [120, 121, 122, 123]
    assert ids(late, history=["i3"]) == ids(one, history=["i3"])


def test_vectors_of_another_space_are_not_read(release: Release, put: Put) -> None:
    change = put("new", NEW)
    foreign = ItemBody(NEW, None, ("another",), {"another": np.ones(16, np.float32)}).to_bytes()
    live, expected = (with_changes(release, [replace(change, body=body)]) for body in (foreign, change.body))
    assert ids(live, history=["i3"]) == ids(expected, history=["i3"])


@pytest.mark.parametrize("body", [b"", b"{}", b"no JSON", ItemBody({"nope": 1}, None, (), {}).to_bytes()])
def test_an_entry_that_does_not_fit_is_left_out(release: Release, put: Put, body: bytes) -> None:
    change = replace(put("new", NEW), body=body)
    live = with_changes(release, [change, put("other", NEW)])
    assert live.catalogue.row("new") == -1
    assert "other" in ids(live, history=["i3"])


WRONG: Sequence[tuple[dict, str]] = [
    ({"nope": 1}, "fields.nope"),
    ({"price": "12"}, "fields.price"),
    ({"price": True}, "fields.price"),
    ({"title": 5}, "fields.title"),
    ({"tags": "red"}, "fields.tags"),
    ({"tags": [1]}, "fields.tags"),
]


@pytest.mark.parametrize(("fields", "setting"), WRONG)
def test_wrong_fields_are_named(release: Release, fields: dict, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_body(release, "new", ItemBody(fields, None, (), {}))
    assert caught.value.setting == setting


def test_new_items_hold_the_exploration_quota(release: Release, put: Put) -> None:
    counts = np.full(len(release.item_ids), 100)
    exploration = Exploration.of(ExplorationConfig(share=0.3), counts)
    fusion = release.retriever.fusion.model_copy(update={"exploration": exploration})
    exploring = replace(release, retriever=replace(release.retriever, fusion=fusion))
    changes = [put(f"n{number}", {**fields_of(release, "i3"), "title": f"Unheard {number}"}) for number in range(5)]
    live = with_changes(exploring, changes)
    new = [item for item in ids(live, k=10, history=["i3", "i50"]) if item.startswith("n")]
    assert len(new) >= 3

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.core.errors import ArtifactError, ConfigError, DataError, SpaceError
from recsys_ray.core.events import Events
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import IdConfig, TwoTowerConfig, UserTowerConfig
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.onnx_user import USER_TOWER_FILE, export_user_tower
from recsys_ray.encoders.two_tower import build, load_towers, save_towers
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.filters import Equals, Range
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query_encoder import TowerQueryEncoder
from recsys_ray.retrieval.release import Release, ReleaseParts, load_release, resolve_release, write_release

N = 30
TITLES = [f"{'red' if row % 2 else 'blue'} thing {row}" for row in range(N)]
ITEMS = pa.table(
    {
        "item_id": [f"i{row}" for row in range(N)],
        "title": TITLES,
        "year": pa.array([1990 + row for row in range(N)], pa.int64()),
        "_text": TITLES,
        "_tokens": pa.array([[1 + row % 2] for row in range(N)], pa.list_(pa.int32())),
    }
)
FIELDS = Fields(title="title", text=("title",), tokens={"a": 1, "b": 2}, user_tokens={"x": 1, "y": 2})
USERS = [f"u{user}" for user in range(12)]


def make_events() -> Events:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(len(USERS)), 6)
    rows = rng.integers(0, 25, len(users))
    return Events.from_columns(users, rows, np.arange(len(users)), np.ones(len(users), np.float32), len(USERS), N)


def make_parts(directory: Path, towers: bool = False, channels: tuple[Channel, ...] = ()) -> ReleaseParts:
    events = make_events()
    write_histories(
        directory / "histories.parquet",
        USERS,
        events.histories,
        IdMap(ITEMS.column("item_id").to_pylist()),
        np.ones((len(USERS), 1), np.int64),
    )
    spaces, space_id = make_towers(directory / "towers") if towers else ({}, None)
    data = FitData(events, ITEMS, FIELDS, spaces, None, IndexConfig(factory="exact"))
    configs = {"co_visitation": CoVisitationConfig(), "content": ContentConfig(), "popularity": PopularityConfig()}
    fitted = [fit_channel(name, config, data) for name, config in configs.items()]
    if towers:
        fitted.append(fit_channel("nearest", NearestConfig(), data))
    fitted += channels
    return ReleaseParts(
        items=ITEMS,
        fields=FIELDS,
        channels=tuple(fitted),
        fusion=Fusion(weights={channel.name: 1.0 for channel in fitted}),
        histories=directory / "histories.parquet",
        towers=directory / "towers" if towers else None,
        towers_space=space_id,
    )


def make_towers(directory: Path) -> tuple[dict[str, Space], str]:
    directory.mkdir()
    config = TwoTowerConfig(
        dim=16, text=None, image=None, vectors=None, id=IdConfig(), user=UserTowerConfig(blocks=1, heads=2, history=4)
    )
    model = build(config, FIELDS, N, {}).eval()
    vectors = embed_items(model, build_item_inputs(ITEMS, FIELDS, config, {}), 8)
    space_id = save_towers(directory, model, {})
    return {"towers": Space(space_id, vectors, vectors[:3])}, space_id


def publish(root: Path, parts: ReleaseParts, artifact_id: str = "r1") -> Path:
    store = ArtifactStore(root)
    return store.publish("release", artifact_id, lambda directory: write_release(directory, parts), {}, {}).path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    return publish(root / "store", make_parts(root))


@pytest.fixture(scope="module")
def release(path: Path) -> Release:
    return load_release(path)


@pytest.fixture(scope="module")
def with_towers(tmp_path_factory: pytest.TempPathFactory) -> Release:
    root = tmp_path_factory.mktemp("towers")
    return load_release(publish(root / "store", make_parts(root, towers=True)))


def test_the_user_tower_as_a_graph_answers_as_the_tower(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime: pip install 'recsys-ray[cpu]'")
    parts = make_parts(tmp_path, towers=True)
    (tmp_path / "history").mkdir()
    export_user_tower(load_towers(tmp_path / "towers"), tmp_path / "history" / USER_TOWER_FILE)
    plain, exported = (
        load_release(publish(tmp_path / name, replace(parts, query_history=folder)))
        for name, folder in (("plain", None), ("exported", tmp_path / "history"))
    )
    towers = exported.retriever.encoders[0]
    assert isinstance(towers, TowerQueryEncoder)
    assert towers.user_tower is not None
    for asked in ({"history": ["i3", "i9"]}, {"user_id": "u4"}, {"user_id": "u1", "text": "red"}):
        queries = [one.retriever.encode(one.question(**asked).queries) for one in (plain, exported)]
        np.testing.assert_allclose(queries[1].vectors[towers.space_id], queries[0].vectors[towers.space_id], atol=1e-5)


def test_three_lines_answer(path: Path) -> None:
    found = load_release(path).recommend(history=["i1", "i2"], k=5)
    assert len(found) == 5
    assert not {"i1", "i2"} & {item.item_id for item in found}
    assert found[0].title == TITLES[int(found[0].item_id[1:])]
    assert set(found[0].channels) <= {"co_visitation", "content", "popularity"}
    assert all(rank >= 1 for rank in found[0].channels.values())
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_a_user_answers_as_their_history(release: Release) -> None:
    history = release.histories.get("u3")
    assert release.recommend(user_id="u3", k=8) == release.recommend(history=history, k=8)


def test_unknown_ids_are_ignored_and_said(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.recommend(history=["nope", "i1"]) == release.recommend(history=["i1"])
    assert "ignored, not in the catalogue: nope" in capsys.readouterr().err
    assert release.question(["nope", "i1", "gone"]).unknown_items == ("nope", "gone")


def test_somebody_new_gets_what_is_popular(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    counts = make_events().item_counts()
    found = release.recommend(user_id="stranger", k=3)
    assert "'stranger' is unknown" in capsys.readouterr().err
    assert [int(item.item_id[1:]) for item in found] == np.argsort(-counts, kind="stable")[:3].tolist()
    assert all(set(item.channels) == {"popularity"} for item in found)
    assert release.recommend(k=3) == found


def test_seen_items_may_come_back_when_asked_for(release: Release) -> None:
    history = release.histories.get("u1")
    seen = {item.item_id for item in release.recommend(history=history, k=N, exclude_seen=False)} & set(history)
    assert seen
    assert not {item.item_id for item in release.recommend(history=history, k=N)} & set(history)


def test_filters_and_fields(release: Release) -> None:
    found = release.recommend(history=["i1"], k=N, filters=Range("year", 2000, 2005), fields=["year"])
    assert {item.fields["year"] for item in found} <= set(range(2000, 2006))
    # Every allowed item that has an event or a word in common comes back, however narrow the filter.
    assert len(found) == 6
    with pytest.raises(ConfigError, match=r"filters\.colour"):
        release.recommend(history=["i1"], filters=Equals("colour", "red"))
    with pytest.raises(ConfigError, match="fields: got 'colour'"):
        release.recommend(history=["i1"], fields=["colour"])


def test_similar_items_are_not_the_item_nor_merely_popular(release: Release) -> None:
    found = release.similar("i4", k=N)
    assert "i4" not in {item.item_id for item in found}
    assert not any("popularity" in item.channels for item in found)
    with pytest.raises(DataError, match="'nope' is not in the catalogue"):
        release.similar("nope")


def test_text_search_finds_words_and_nothing_else(release: Release) -> None:
    found = release.search("RED, 7!", k=N)
    assert found[0].item_id == "i7"
    assert {item.title.split()[0] for item in found if item.title} == {"red"}
    assert release.search("unheard of") == []


def test_a_text_beside_a_history_turns_the_answer(release: Release) -> None:
    plain, turned = release.recommend(history=["i2"], k=10), release.recommend(history=["i2"], text="red 9", k=10)
    assert turned != plain
    assert "i9" in [item.item_id for item in turned]


def test_history_and_user_together_are_refused(release: Release) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        release.recommend(history=["i1"], user_id="u1")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"history": "i1"}, r"history: got 'i1'; allowed: a list of item ids\. For one item: \['i1'\]"),
        ({"history": ["i1", 7]}, r"history: got 7; allowed: ids as text\. Write '7'"),
        ({"user_id": 7}, r"user_id: got 7; allowed: ids as text"),
        ({"history": ["i1"], "k": 0}, r"k: got 0; allowed: at least 1"),
    ],
)
def test_wrong_questions_are_explained(release: Release, question: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        release.recommend(**question)


def test_more_than_the_catalogue_gives_what_there_is(release: Release) -> None:
    found = release.recommend(history=["i1", "i2"], k=10**12)
    assert len({item.item_id for item in found}) == len(found) <= N - 2


def test_a_release_that_only_knows_what_is_popular_says_so(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    channels = tuple(channel for channel in parts.channels if channel.name == "popularity")
    items = ITEMS.set_column(1, "title", pa.array(range(N)))
    loaded = load_release(publish(tmp_path / "store", replace(parts, channels=channels, items=items)))
    assert loaded.recommend(history=["i1"], k=1)[0].title in {str(row) for row in range(N)}
    for ask in (lambda: loaded.search("red"), lambda: loaded.similar("i1")):
        with pytest.raises(ConfigError, match=r"no channel for it.*has only: popularity"):
            ask()


def test_explanations_go_with_the_answer(release: Release) -> None:
    fused = release.ask(release.question(["i1", "i2"]), 4)
    for item, sources in zip(release.answer(fused), release.explain(fused), strict=True):
        assert {source.channel: source.rank for source in sources} == item.channels
        assert sum(source.share for source in sources) == pytest.approx(item.score, rel=1e-5)


def test_towers_answer_histories_and_new_users_with_attributes(with_towers: Release) -> None:
    found = with_towers.recommend(history=["i1", "i2", "i3", "i4", "i5", "i6"], k=10)
    assert any("nearest" in item.channels for item in found)
    new = with_towers.recommend(k=5)
    assert all("nearest" not in item.channels for item in new)
    tokens = with_towers.question(user_id="u1").queries.user_tokens
    assert tokens is not None
    assert tokens.tolist() == [[1]]


def test_the_query_vector_is_the_user_towers_answer_whatever_the_batch(with_towers: Release) -> None:
    encoder = with_towers.retriever.encoders[0]
    histories = [[1], [], [2, 3, 4, 5, 6, 7], [8, 9]]
    from recsys_ray.retrieval.query import Queries

    batch = encoder.encode(Queries.of_histories(Ragged.of(histories)))[encoder.space_id]
    for row, history in enumerate(histories):
        one = encoder.encode(Queries.of_histories(Ragged.of([history])))[encoder.space_id]
        np.testing.assert_allclose(one[0], batch[row], atol=1e-5)
    assert not batch[1].any()
    assert np.linalg.norm(batch[[0, 2, 3]], axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_towers_without_pictures_refuse_a_picture(with_towers: Release) -> None:
    with pytest.raises(ConfigError, match="made without pictures"):
        with_towers.search_picture(b"")


def test_an_index_of_another_space_is_refused_when_written_and_when_loaded(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, towers=True)
    other = ReleaseParts(**{**vars(parts), "towers_space": "towers-of-yesterday"})
    with pytest.raises(SpaceError, match="'nearest' holds vectors of space"):
        publish(tmp_path / "store", other)
    path = publish(tmp_path / "store", parts)

    def break_channel(directory: Path) -> dict[str, object]:
        import shutil

        shutil.copytree(path, directory, dirs_exist_ok=True)
        (directory / "manifest.json").unlink()
        header = json.loads((directory / "channels/nearest/channel.json").read_text())
        header["facts"]["space_id"] = "another"
        (directory / "channels/nearest/channel.json").write_text(json.dumps(header))
        return {}

    broken = ArtifactStore(tmp_path / "store").publish("release", "r2", break_channel, {}, {})
    with pytest.raises(SpaceError, match="space another"):
        load_release(broken.path)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["channels/co_visitation/data.npy", "items.parquet", "fusion.json"])
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    path = publish(tmp_path / "store", make_parts(tmp_path))
    damage(path / name)
    with pytest.raises(ArtifactError, match=name):
        load_release(path)


def test_the_newest_release_of_a_storage_is_found(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    first = publish(tmp_path / "store", parts, "r1")
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["created_at"] = "2020-01-01T00:00:00+00:00"
    (first / "manifest.json").write_text(json.dumps(manifest))
    second = publish(tmp_path / "store", parts, "r0")
    assert resolve_release(tmp_path / "store") == second
    assert resolve_release(first) == first
    with pytest.raises(ArtifactError, match="holds no release"):
        resolve_release(tmp_path / "nowhere")


def test_a_fusion_that_lacks_a_channel_is_refused(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    with pytest.raises(ArtifactError, match="the fusion has weights for"):
        publish(tmp_path / "store", ReleaseParts(**{**vars(parts), "fusion": Fusion(weights={"content": 1.0})}))


def test_asking_a_release_without_towers_loads_neither_torch_nor_ray(path: Path) -> None:
    code = (
        "import sys; from recsys_ray.retrieval.release import load_release\n"
        f"assert load_release({str(path)!r}).recommend(history=['i1'], k=3)\n"
        "heavy = {'torch', 'transformers', 'ray', 'deepspeed', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_question_by_text_trusts_words_before_trained_towers(with_towers: Release) -> None:
    by_text = with_towers.fusion_for(with_towers.question(text="ocean"))
    assert by_text.weights["content"] > by_text.weights["nearest"] > 0
    by_history = with_towers.fusion_for(with_towers.question(history=["i1"]))
    assert by_history == with_towers.retriever.fusion

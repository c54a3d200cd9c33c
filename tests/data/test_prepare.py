import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recsys_ray.core import schema, validate
from recsys_ray.core.artifacts import ArtifactStore, digest_files, verify
from recsys_ray.core.config import override
from recsys_ray.core.errors import ArtifactError, ConfigError, DataError
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.pictures import picture_folder
from recsys_ray.data.prepare import input_files, prepare
from recsys_ray.data.sources import Columns, DataConfig
from recsys_ray.data.split import SplitConfig
from recsys_ray.data.synthetic import make_synthetic

pytestmark = pytest.mark.slow


@dataclass
class Publisher:
    store: ArtifactStore
    count: int = 0

    def __call__(self, data, split=None):
        split = split or SplitConfig()
        self.count += 1
        return self.store.publish("dataset", f"id{self.count}", lambda folder: prepare(data, split, folder), {}, {})


@pytest.fixture
def publish(tmp_path):
    return Publisher(ArtifactStore(tmp_path / "store"))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("synthetic"), images=True, vectors=4)


def jpeg(colour="red", size=(20, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_events(path, pairs=(("u", "a"), ("u", "b"), ("u", "c"), ("v", "a"))):
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{n}\n" for n, (u, i) in enumerate(pairs)))
    return str(path)


def test_a_whole_dataset_comes_back(publish, synthetic):
    artifact = publish(synthetic)
    verify(artifact)
    dataset = load_dataset(artifact)
    raw = pq.read_table(synthetic.events).sort_by([("timestamp", "ascending")]).to_pylist()
    for user, external in enumerate(dataset.user_ids.ids):
        own = [row for row in raw if row["user_id"] == external]
        assert dataset.item_ids.externals(dataset.events.histories[user]) == [row["item_id"] for row in own]
        here = slice(dataset.events.offsets[user], dataset.events.offsets[user + 1])
        assert dataset.events.timestamps[here].tolist() == [row["timestamp"] * 1_000_000 for row in own]
    assert dataset.item_ids.ids == pq.read_table(synthetic.items).column("item_id").to_pylist()
    stored = pq.read_table(artifact.file(schema.EVENTS_FILE))
    assert stored.schema.equals(schema.EVENTS)
    assert sorted(stored.column("kind").unique().to_pylist()) == ["purchase", "view"]
    assert (artifact.summary["users"], artifact.summary["items"], artifact.summary["events"]) == (200, 120, 2400)


def test_derived_columns(publish, synthetic):
    dataset = load_dataset(publish(synthetic))
    items, fields = dataset.items, dataset.fields
    assert fields.title == "title"
    assert fields.text == ("title", "description")
    assert fields.categorical == ("category", "tags")
    assert list(fields.numeric) == ["price"]
    assert fields.vectors == {"audio": 4}
    first = items.slice(0, 1).to_pylist()[0]
    assert first[schema.TEXT] == f"{first['title']}\n{first['description']}"
    expected = {
        fields.tokens[name] for name in [f"category={first['category']}", *(f"tags={t}" for t in first["tags"])]
    }
    assert set(first[schema.TOKENS]) == expected
    assert items.schema.field(schema.NUMERIC).type == schema.vectors_type(1)
    assert items.schema.field("audio").type == schema.vectors_type(4)
    gaps = [row for row in range(120) if row % 10 == 9]
    for name in (schema.IMAGE, schema.IMAGE_HASH, "audio"):
        assert [row for row, value in enumerate(items.column(name).to_pylist()) if value is None] == gaps
    tokens = dataset.user_tokens
    assert tokens.shape == (200, 2)
    assert tokens.max() == len(fields.user_tokens)
    user = dataset.users.slice(0, 1).to_pylist()[0]
    assert set(tokens[0]) == {
        fields.user_tokens[f"age={user['age']}"],
        fields.user_tokens[f"favourite={user['favourite']}"],
    }


def test_counts_add_up_in_a_mess(publish, tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "img" / "b.jpg").write_bytes(b"broken")
    (tmp_path / "img" / "c.jpg").write_bytes(jpeg(size=(40, 40)))
    pictures = {"a": "a.jpg", "b": "b.jpg", "c": "c.jpg", "d": "absent.jpg", "e": "../items.csv", "f": ""}
    lines = [f"{item},Title {item},{picture}" for item, picture in pictures.items()]
    (tmp_path / "items.csv").write_text("\n".join(["sku,name,pic", *lines, "a,again,a.jpg", ",nobody,", "x,y"]) + "\n")
    good = [f"u{user},{item},2024-01-0{day}T00:00:00,1" for user in range(5) for day, item in enumerate("abcdef", 1)]
    bad = [good[0], ",a,2024-01-01,1", "u1,,2024-01-01,1", "u1,a,soon,1", "u1,a,2024-02-01,nan", "u1,zz,2024-01-01,1"]
    (tmp_path / "events.csv").write_text("\n".join(["who,what,when,w", *good, *bad, "u1"]) + "\n")
    (tmp_path / "users.csv").write_text("who,age\nu0,3\nu0,4\nghost,5\n")
    config = DataConfig(
        items=str(tmp_path / "items.csv"),
        events=str(tmp_path / "events.csv"),
        users=str(tmp_path / "users.csv"),
        images=str(tmp_path / "img"),
        columns=Columns(item_id="what", user_id="who", timestamp="when", weight="w", image="pic"),
        pictures=validate.PictureLimits(max_pixels=1000),
        max_rejected_fraction=0.9,
    )
    (tmp_path / "items.csv").write_text((tmp_path / "items.csv").read_text().replace("sku", "item_id"))
    artifact = publish(config)
    rows = artifact.summary["rows"]
    assert rows == {
        "items": {
            "in": 9,
            "kept": 6,
            "rejected": {validate.MALFORMED_LINE: 1, validate.MISSING_ITEM: 1, validate.DUPLICATE_ITEM: 1},
        },
        "events": {
            "in": 37,
            "kept": 30,
            "rejected": {
                validate.MALFORMED_LINE: 1,
                validate.MISSING_USER: 1,
                validate.MISSING_ITEM: 1,
                validate.BAD_TIMESTAMP: 1,
                validate.NAN_WEIGHT: 1,
                validate.UNKNOWN_ITEM: 1,
                validate.DUPLICATE_EVENT: 1,
            },
        },
        "images": {
            "in": 5,
            "kept": 1,
            "rejected": {
                validate.PICTURE_OUTSIDE: 1,
                validate.PICTURE_UNDECODABLE: 1,
                validate.PICTURE_TOO_MANY_PIXELS: 1,
                validate.PICTURE_MISSING: 1,
            },
        },
        "users": {"in": 3, "kept": 1, "rejected": {validate.DUPLICATE_USER: 1, validate.NO_EVENTS: 1}},
    }
    table = pq.read_table(artifact.file(schema.REJECTED_FILE))
    assert table.schema.equals(schema.REJECTED)
    for source, counts in rows.items():
        mine = table.filter(pa.compute.equal(table.column("source"), source))
        assert counts["in"] == counts["kept"] + mine.num_rows
        assert mine.num_rows == sum(counts["rejected"].values())
    with pytest.raises(DataError, match=r"items: 3 of 9 rows are bad"):
        publish(override(config, {"max_rejected_fraction": 0.1}))


def test_pictures_named_by_id(publish, tmp_path):
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "posters" / "other.jpg").write_bytes(jpeg())
    (tmp_path / "items.csv").write_text("item_id,title\na,A thing\nb,B thing\nc,C thing\n")
    config = DataConfig(
        items=str(tmp_path / "items.csv"),
        images=str(tmp_path / "posters"),
        events=write_events(tmp_path / "e.csv"),
    )
    dataset = load_dataset(publish(config))
    assert dataset.items.column(schema.IMAGE).to_pylist() == [str(tmp_path / "posters" / "a.jpg"), None, None]


def test_pictures_may_move(publish, synthetic, tmp_path):
    """The id leaves paths out, so a dataset made from one folder must read its pictures from another."""
    artifact = publish(synthetic)
    moved = shutil.copytree(Path(synthetic.items).parent, tmp_path / "moved")
    there = override(synthetic, {"items": str(moved / "items.parquet")})
    paths = load_dataset(artifact, picture_folder(there)).items.column(schema.IMAGE).drop_null().to_pylist()
    assert paths
    assert all(path.startswith(str(moved)) and Path(path).is_file() for path in paths)


def test_paths_may_start_with_the_name_of_the_images_folder(publish, synthetic):
    folder = synthetic.items.replace("items.parquet", "images")
    here = load_dataset(publish(synthetic)).items.column(schema.IMAGE)
    assert load_dataset(publish(override(synthetic, {"images": folder}))).items.column(schema.IMAGE) == here


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_as_bytes_live_in_the_artifact(publish, tmp_path, nested):
    pictures = [jpeg("red"), b"broken", None]
    cells = [None if data is None else {"bytes": data, "path": None} for data in pictures] if nested else pictures
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "image": cells}), tmp_path / "items.parquet")
    config = DataConfig(
        items=str(tmp_path / "items.parquet"), events=write_events(tmp_path / "e.csv"), max_rejected_fraction=0.6
    )
    artifact = publish(config)
    dataset = load_dataset(artifact)
    assert "image" not in dataset.items.column_names
    path, *others = dataset.items.column(schema.IMAGE).to_pylist()
    assert others == [None, None]
    assert Path(path).read_bytes() == pictures[0]
    assert path.startswith(str(artifact.path))
    verify(artifact)


def test_no_catalogue_and_no_timestamps(publish, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # what lies in the current folder plays no part
    (tmp_path / "e.csv").write_text("user,item\nu,b\nu,a\nv,c\nu,c\n")
    dataset = load_dataset(publish(DataConfig(events=str(tmp_path / "e.csv"))))
    assert dataset.item_ids.ids == ["b", "a", "c"]
    assert dataset.events.histories[0].tolist() == [0, 1, 2]
    assert dataset.folds[0].test.items[0].tolist() == [2]
    assert schema.NUMERIC not in dataset.items.column_names
    assert dataset.user_tokens.shape == (2, 0)
    with pytest.raises(DataError, match="needs a timestamp column"):
        publish(DataConfig(events=str(tmp_path / "e.csv")), SplitConfig(protocol="global_time"))


def test_given_files(publish, tmp_path):
    train = write_events(tmp_path / "train.csv", [("u", "a"), ("u", "b"), ("v", "a")])
    validation = write_events(tmp_path / "valid.csv", [("u", "c")])
    test = write_events(tmp_path / "test.csv", [("w", "a"), ("u", "a"), ("u", "d")])
    split = SplitConfig(protocol="given", validation_events=validation, test_events=test)
    artifact = publish(DataConfig(events=train), split)
    [fold] = load_dataset(artifact).folds
    ids = load_dataset(artifact).item_ids
    assert [ids.externals(row) for row in (fold.validation.items[0], fold.validation.history[0])] == [["c"], ["a", "b"]]
    # Of a user's targets, one that was trained on stays, and is excluded from the ranking: a miss.
    assert {tuple(sorted(ids.externals(fold.test.items[row]))) for row in range(2)} == {("a", "d"), ("a",)}
    assert fold.test.new_users.tolist() == [False, True]
    assert list(artifact.summary["rows"]) == ["events", "validation_events", "test_events"]


def test_leaving_one_out_of_dated_events_warns(publish, synthetic, capsys):
    artifact = publish(synthetic)
    [warning] = artifact.summary["warnings"]
    assert "leave_one_out leaks the future" in warning
    assert 0 < artifact.summary["future_share"] < 1
    assert "leaks the future" in capsys.readouterr().err
    assert publish(synthetic, SplitConfig(protocol="global_time", cuts=2)).summary["warnings"] == []


def test_the_core_cuts_users_and_items(publish, synthetic):
    artifact = publish(override(synthetic, {"min_item_events": 15, "min_user_events": 5, "max_rejected_fraction": 0.0}))
    dataset = load_dataset(artifact)
    assert dataset.events.item_counts().min() >= 15
    assert np.diff(dataset.events.offsets).min() >= 5
    rows = artifact.summary["rows"]
    assert rows["items"]["rejected"][validate.OUTSIDE_CORE] == 120 - len(dataset.item_ids)
    assert dataset.items.num_rows == len(dataset.item_ids)


def test_the_same_input_gives_the_same_files(publish, synthetic):
    one, two = publish(synthetic), publish(synthetic)
    assert one.manifest.files == two.manifest.files


def test_the_input_digest_follows_pictures_and_tables(tmp_path):
    config = make_synthetic(tmp_path, users=5, items=10, images=True)
    before = digest_files(input_files(config))
    assert before == digest_files(input_files(config))
    (tmp_path / "images" / "i0.jpg").write_bytes(jpeg())
    after = digest_files(input_files(config))
    assert before != after
    (tmp_path / "images" / "i0.jpg").unlink()
    assert digest_files(input_files(config)) not in (before, after)


def test_the_input_digest_follows_pictures_without_a_catalogue(publish, tmp_path):
    (tmp_path / "images").mkdir()
    config = DataConfig(events=write_events(tmp_path / "e.csv"), images=str(tmp_path / "images"))
    before = digest_files(input_files(config))
    (tmp_path / "images" / "b.jpg").write_bytes(jpeg())
    assert digest_files(input_files(config)) != before
    assert load_dataset(publish(config)).items.column(schema.IMAGE).null_count == 2


def test_web_addresses_are_no_picture_paths(publish, tmp_path):
    items = {"item_id": ["a", "b", "c"], "image": ["https://x/1.jpg", None, "https://x/2.jpg"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    config = DataConfig(items=str(tmp_path / "items.parquet"), events=write_events(tmp_path / "e.csv"))
    artifact = publish(config)
    assert load_dataset(artifact).items.column(schema.IMAGE).null_count == 3
    assert json.loads(artifact.file("data_report.json").read_text())["fields"]["ignored"] == {"image": "web addresses"}
    with pytest.raises(DataError, match="2 times missing picture"):
        publish(override(config, {"columns.image": "image"}))


def test_files_of_one_table_must_fit_together(publish, tmp_path):
    (tmp_path / "items").mkdir()
    pq.write_table(pa.table({"item_id": ["a"], "size": [1]}), tmp_path / "items" / "1.parquet")
    pq.write_table(pa.table({"item_id": ["b"], "size": ["big"]}), tmp_path / "items" / "2.parquet")
    with pytest.raises(DataError, match=r"data\.items: .*no single table.*size"):
        publish(DataConfig(items=str(tmp_path / "items"), events=write_events(tmp_path / "e.csv")))


def test_the_report_has_figures_for_machines_and_plots_for_people(publish, synthetic):
    artifact = publish(synthetic)
    figures = json.loads(artifact.file("data_report.json").read_text())
    assert figures["popularity"]["share_of_events"]["top_10_percent"] > 0.1
    assert 0 < figures["popularity"]["gini"] < 1
    assert figures["missing"] == {"text": 0, "image": 12, "audio": 12, "attributes": 0}
    assert figures["events_per_user"] == dict.fromkeys(["min", "p10", "median", "p90", "p99", "max"], 12.0)
    assert figures["kinds"].keys() == {"view", "purchase"}
    page = artifact.file("data_report.html").read_text()
    assert page.count("<svg") == 4
    assert "leaks the future" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_names_in_the_report_are_escaped(publish, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,<script>\n" + "".join(f"{i},x{i in 'ace'}\n" for i in "abcdef"))
    artifact = publish(DataConfig(items=str(tmp_path / "items.csv"), events=write_events(tmp_path / "e.csv")))
    page = artifact.file("data_report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"events": None}, ConfigError, "data.events: got None; allowed: the path of an event log"),
        ({"events": "absent.csv"}, ConfigError, "data.events: got 'absent.csv'"),
        ({"images": "absent"}, ConfigError, "data.images: got 'absent'; allowed: an existing folder"),
        ({"columns.weight": "stars"}, DataError, "data.columns.weight='stars' is not there"),
        ({"user_fields": ["height"]}, ConfigError, "data.user_fields: got 'height'; allowed: favourite, age"),
        ({"min_user_events": 1000}, DataError, "no events are left"),
    ],
)
def test_what_cannot_be_used_is_explained(publish, synthetic, changes, error, message):
    with pytest.raises(error, match=message):
        publish(override(synthetic, changes))


def test_reserved_column_names_are_refused(publish, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,_text\na,b\n")
    with pytest.raises(DataError, match="rename its columns _text"):
        publish(DataConfig(items=str(tmp_path / "items.csv"), events=write_events(tmp_path / "e.csv")))


def test_folds_that_do_not_fit_the_events_are_refused(publish, synthetic):
    artifact = publish(synthetic)
    pq.write_table(pa.table({"fold_0": np.zeros(3, np.int8)}), artifact.path / "folds.parquet")
    with pytest.raises(ArtifactError, match="3 fold entries for 2400 events"):
        load_dataset(artifact)


@pytest.mark.parametrize(
    "split", [SplitConfig(), SplitConfig(protocol="global_time", cuts=2), SplitConfig(cold_items=0.2)]
)
def test_with_exposures_named_a_dataset_is_that_of_the_log_without_them(publish, synthetic, tmp_path, split):
    """Folds, histories, counts, catalogue: nothing that is fitted, evaluated or served reads anything but these."""
    events = pq.read_table(synthetic.events)
    rng = np.random.default_rng(3)
    some = events.take(pa.array(rng.integers(0, len(events), 3000)))
    other = pa.array(rng.choice(events.column("item_id").to_pylist(), len(some)))
    some = some.set_column(1, "item_id", other).set_column(3, "kind", pa.array(["impression"] * len(some)))
    log = pa.concat_tables([events, some])
    pq.write_table(log.take(pa.array(rng.permutation(len(log)))), tmp_path / "log.parquet")
    naming = override(synthetic, {"events": str(tmp_path / "log.parquet"), "exposures": ["impression"]})
    both, alone = load_dataset(publish(naming, split)), load_dataset(publish(synthetic, split))
    order = [both.user_ids.row(user) for user in alone.user_ids.ids]  # users stand as they first appear

    def check(one, other):
        for place, user in enumerate(order):
            np.testing.assert_array_equal(one.histories[user], other.histories[place])

    assert len(both.exposures) > 2000
    assert len(alone.exposures) == 0
    assert both.item_ids.ids == alone.item_ids.ids
    assert both.fields.tokens == alone.fields.tokens
    check(both.events, alone.events)
    for one, other in zip(both.folds, alone.folds, strict=True):
        check(one.train, other.train)
        check(one.train_validation, other.train_validation)
        for part in ("validation", "test"):
            mine, theirs = getattr(one, part), getattr(other, part)
            by_user = {user: place for place, user in enumerate(mine.users)}
            assert len(mine) == len(theirs)
            for place, user in enumerate(theirs.users):
                at = by_user[order[user]]
                np.testing.assert_array_equal(mine.history[at], theirs.history[place])
                np.testing.assert_array_equal(mine.exclude[at], theirs.exclude[place])
                np.testing.assert_array_equal(mine.items[at], theirs.items[place])

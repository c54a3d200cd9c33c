import pytest

from recsys_ray.core.config import override, result_settings
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.data.names import source_columns
from recsys_ray.data.sources import Columns, DataConfig, find_files, format_of


@pytest.fixture
def folder(tmp_path):
    for name in ("b.csv", "a.csv", "deep/c.csv", "notes.md", ".hidden.csv", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    return tmp_path


def names(files):
    return [file.name for file in files]


def test_a_file_a_folder_and_a_glob(folder):
    assert names(find_files("data.events", str(folder / "a.csv"), "events")) == ["a.csv"]
    assert names(find_files("data.events", str(folder), "events")) == ["a.csv", "b.csv", "c.csv"]
    assert names(find_files("data.events", str(folder / "*.csv"), "events")) == [".hidden.csv", "a.csv", "b.csv"]
    assert names(find_files("data.events", f"{folder}/**/c.csv", "events")) == ["c.csv"]


def test_a_relative_path_becomes_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_files("data.events", "a.csv", "events") == [folder / "a.csv"]
    assert names(find_files("data.events", "[ab].csv", "events")) == ["a.csv", "b.csv"]


def test_known_folders_know_their_roles(tmp_path):
    for name in ("u.data", "u.item", "u.user", "items.csv"):
        (tmp_path / name).write_text("x")
    assert [names(find_files("s", str(tmp_path), role)) for role in ("events", "items", "users")] == [
        ["u.data"],
        ["u.item"],
        ["u.user"],
    ]
    atomic = tmp_path / "atomic"
    atomic.mkdir()
    for name in ("x.inter", "x.item", "x.user", "x.kg"):
        (atomic / name).write_text("x")
    assert [names(find_files("s", str(atomic), role)) for role in ("events", "items", "users")] == [
        ["x.inter"],
        ["x.item"],
        ["x.user"],
    ]


@pytest.mark.parametrize("path", ["absent.csv", "absent/*.csv", "empty"])
def test_nothing_there_names_the_setting(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"data.items: got .*Nothing is there"):
        find_files("data.items", str(tmp_path / path), "items")


def test_formats_by_name(tmp_path):
    known = {
        "a.parquet": "parquet",
        "a.CSV": "csv",
        "a.tsv.gz": "csv",
        "a.ndjson": "jsonl",
        "u.item": "movielens",
        "movies.dat": "movielens",
        "ratings.csv": "movielens",
        "x.inter": "recbole",
    }
    assert {name: format_of(tmp_path / name, DataConfig()) for name in known} == known
    assert format_of(tmp_path / "a.log", DataConfig(format="jsonl")) == "jsonl"


def test_mapped_names_come_before_known_spellings():
    found = source_columns(["asin", "movieId", "userId", "ts"], Columns(item_id="asin"), "events", "f")
    assert found == {"item_id": "asin", "user_id": "userId", "timestamp": "ts"}
    assert source_columns(["id", "name"], Columns(), "items", "f") == {"item_id": "id", "title": "name"}


def test_an_id_mapped_for_the_other_table_falls_back():
    mapping = Columns(item_id="product")
    assert source_columns(["id"], mapping, "items", "f")["item_id"] == "id"


@pytest.mark.parametrize(
    ("columns", "mapping", "message"),
    [
        (["item_id"], Columns(), r"f: no column of a known name for the user_id; columns there: item_id"),
        (["x"], Columns(user_id="who"), r"no column 'who' for the user_id"),
        (["user_id", "item_id"], Columns(weight="w"), r"data.columns.weight='w' is not there"),
    ],
)
def test_missing_columns_are_explained(columns, mapping, message):
    with pytest.raises(DataError, match=message):
        source_columns(columns, mapping, "events", "f")


def test_places_do_not_change_the_result():
    here = DataConfig(items="a", events="b", ray_above_bytes=1)
    assert result_settings(here) == result_settings(DataConfig())
    assert result_settings(here) != result_settings(override(here, {"columns.weight": "rating"}))


def test_a_folder_of_several_roles_gives_each_its_own_files(tmp_path):
    for name in ("items.parquet", "interactions.csv", "users.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert names(find_files("data.items", str(tmp_path), "items")) == ["items.parquet"]
    assert names(find_files("data.events", str(tmp_path), "events")) == ["interactions.csv"]
    assert names(find_files("data.users", str(tmp_path), "users")) == ["users.jsonl"]
    (tmp_path / "users.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"data\.users"):
        find_files("data.users", str(tmp_path), "users")


def test_a_folder_of_one_role_gives_all_its_files(tmp_path):
    for name in ("events.csv", "events-2.csv", "part-0.csv"):
        (tmp_path / name).touch()
    assert len(find_files("data.events", str(tmp_path), "events")) == 3

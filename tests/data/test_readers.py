import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import DataError
from recsys_ray.data.readers import MALFORMED, column_names, pieces_of, read_piece
from recsys_ray.data.sources import DataConfig


def read(path, config=None, piece_bytes=1 << 20):
    config = config or DataConfig()
    pieces = [read_piece(piece) for piece in pieces_of(path, config, piece_bytes)]
    return pa.concat_tables(pieces, promote_options="permissive")


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_keeps_text_as_it_is(tmp_path):
    path = write(tmp_path / "a.csv", 'id,name\n007,"a, ""b""\nc"\n8,\n9,NA\n')
    assert read(path).drop_columns([MALFORMED]).to_pydict() == {
        "id": ["007", "8", "9"],
        "name": ['a, "b"\nc', None, "NA"],
    }
    assert column_names(path, DataConfig()) == ["id", "name"]


def test_malformed_csv_lines_stay_in_their_place(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n\n4,5\n6,7,8\n9,10\n")
    table = read(path)
    assert table.column("a").to_pylist() == ["1", None, "4", None, "9"]
    assert table.column(MALFORMED).to_pylist() == [None, "3", None, "6,7,8", None]


@pytest.mark.parametrize(
    ("name", "content", "config"),
    [
        ("a.tsv", "x\ty\n1\t2\n", DataConfig()),
        ("a.csv", "x;y\n1;2\n", DataConfig(delimiter=";")),
        ("a.csv", "\ufeffx,y\r\n1,2\r\n", DataConfig()),
        ("a.csv.gz", gzip.compress(b"x,y\n1,2\n", mtime=0), DataConfig()),
        ("a.jsonl.gz", gzip.compress(b'{"x": "1", "y": "2"}\n', mtime=0), DataConfig()),
        ("a.json", '[{"x": "1", "y": "2"}]', DataConfig()),
        ("a.txt", "x,y\n1,2\n", DataConfig(format="csv")),
    ],
)
def test_dialects(tmp_path, name, content, config):
    path = write(tmp_path / name, content)
    assert read(path, config).drop_columns([MALFORMED]).to_pydict() == {"x": ["1"], "y": ["2"]}
    assert column_names(path, config) == ["x", "y"]


def test_json_lines_that_fail_do_not_take_others_with_them(tmp_path):
    lines = ['{"a": 1, "b": "x"}', "{broken", '{"a": "two"}', "[1]", "", '{"a": 3.5, "c": [1, 2]}']
    table = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert table.column("a").to_pylist() == ["1", None, "two", None, "3.5"]
    assert table.column("b").to_pylist() == ["x", None, None, None, None]
    assert table.column("c").to_pylist() == [None, None, None, None, [1, 2]]
    assert table.column(MALFORMED).to_pylist() == [None, "{broken", None, "[1]", None]


def test_lines_of_json_end_at_line_ends_only(tmp_path):
    text = '\ufeff{"a": "x\u2028y"}\r\n{broken\n{"a": "z\x85"}\n'
    assert read(write(tmp_path / "a.jsonl", text)).column("a").to_pylist() == ["x\u2028y", None, "z\x85"]


def test_a_file_of_broken_lines_only(tmp_path):
    table = read(write(tmp_path / "a.jsonl", "garbage\n\n[1]x\n"))
    assert table.to_pydict() == {MALFORMED: ["garbage", "[1]x"]}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_json_array_is_one_array(tmp_path, indent):
    rows = [{"a": row, "b": "x" * 1000} for row in range(1100)]
    path = write(tmp_path / "a.json", json.dumps(rows, indent=indent))
    assert column_names(path, DataConfig()) == ["a", "b"]
    assert read(path).column("a").to_pylist() == list(range(1100))


def test_movielens_100k(tmp_path):
    flags = "|".join("1" if place in (1, 5) else "0" for place in range(19))
    write(tmp_path / "u.data", "1\t10\t3\t881250949\n2\t10\t5\t881250950\n")
    write(tmp_path / "u.item", f"10|Caf\xe9 (1995)|01-Jan-1995||http://x|{flags}\n".encode("latin-1"))
    write(tmp_path / "u.user", "1|24|M|writer|85711\n")
    assert read(tmp_path / "u.data").column("timestamp").to_pylist() == ["881250949", "881250950"]
    assert read(tmp_path / "u.item").column("title").to_pylist() == ["Café (1995)"]
    assert read(tmp_path / "u.user").column("occupation").to_pylist() == ["writer"]


def test_movielens_1m(tmp_path):
    write(tmp_path / "ratings.dat", "1::10::5::978300760\n")
    write(tmp_path / "movies.dat", '10::A: "B", C (1995)::Comedy|Drama\n'.encode("latin-1"))
    write(tmp_path / "users.dat", "1::F::1::10::48067\n")
    assert read(tmp_path / "ratings.dat").column("item_id").to_pylist() == ["10"]
    assert read(tmp_path / "movies.dat").column("title").to_pylist() == ['A: "B", C (1995)']
    assert read(tmp_path / "users.dat").column("zip_code").to_pylist() == ["48067"]


def test_recbole(tmp_path):
    path = write(tmp_path / "x.inter", 'user_id:token\titem_id:token\ttimestamp:float\n1\t"a\t5\n')
    assert read(path).drop_columns([MALFORMED]).to_pydict() == {
        "user_id": ["1"],
        "item_id": ['"a'],
        "timestamp": ["5"],
    }
    with pytest.raises(DataError, match=r"name:type.*token_seq.*'rating:int'"):
        column_names(write(tmp_path / "y.inter", "rating:int\n"), DataConfig())


CELLS = st.text(alphabet='ab ,"\n\u00e9', max_size=6)


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=20), piece_bytes=st.integers(1, 60))
def test_pieces_of_csv_are_the_whole(tmp_path_factory, rows, piece_bytes):
    quoted = [
        "\n".join(['"x","y"'] + [",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows])
    ]
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", "".join(quoted) + "\n")
    assert read(path, piece_bytes=piece_bytes).equals(read(path))
    assert read(path).column("x").to_pylist() == [row[0] or None for row in rows]


@given(values=st.lists(st.one_of(st.integers(0, 9), st.text(max_size=3)), min_size=1), piece_bytes=st.integers(1, 60))
def test_pieces_of_json_lines_are_the_whole(tmp_path_factory, values, piece_bytes):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    write(path, "".join(json.dumps({"v": value}) + "\n" for value in values))
    pieces = [read_piece(piece).column("v") for piece in pieces_of(path, DataConfig(), piece_bytes)]
    assert [str(value) for piece in pieces for value in piece.to_pylist()] == [str(value) for value in values]


def test_pieces_of_parquet_follow_row_groups(tmp_path):
    table = pa.table({"v": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    pieces = pieces_of(tmp_path / "a.parquet", DataConfig(), piece_bytes=1)
    assert len(pieces) == 10
    assert read(tmp_path / "a.parquet", piece_bytes=1).column("v").to_pylist() == list(range(100))
    pq.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.csv", "x,x\n1,2\n", "name each column once"),
        ("a.xyz", "x", "format cannot be told.*data.format"),
        ("a.json", '[{"a": 1},', "begins like a JSON array"),
        ("strange.dat", "x", "no MovieLens file.*ratings.dat"),
    ],
)
def test_unreadable_files_are_explained(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        column_names(path, DataConfig())


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "u.data", "x.inter"])
def test_files_without_rows(tmp_path, name):
    head = {"a.csv": "x,y\n", "x.inter": "x:token\n"}.get(name, "")
    assert read(write(tmp_path / name, head)).num_rows == 0

"""How the columns of delimited files are told apart: CSV, MovieLens and RecBole atomic files."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from recsys_ray.core.errors import DataError
from recsys_ray.data.sources import DataConfig, FileFormat, data_suffix

# The catalogue's title under the names that data sets use; RecBole gives titles as token sequences.
TITLE_NAMES = ("title", "movie_title", "name", "product_name", "product_title", "item_name", "book_title")

_U_ITEM = ("item_id", "title", "release_date", "video_release_date", "imdb_url")
U_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_TEXT_SEQUENCES = (*TITLE_NAMES, "description", "overview", "plot", "summary", "text", "brand")


@dataclass(frozen=True)
class Delimited:
    """The columns of a delimited file.

    Attributes:
        names: Column names, in order.
        separator: What stands between columns.
        header: Whether the first line holds the names.
        quoted: Whether double quotes protect separators and line ends.
        latin: Whether a file that is not UTF-8 is Latin-1 (the older MovieLens files are).
        lists: Columns with several values, and what stands between those.
        vectors: Columns with numbers separated by blanks.
    """

    names: tuple[str, ...]
    separator: str
    header: bool
    quoted: bool
    latin: bool = False
    lists: dict[str, str] = field(default_factory=dict)
    vectors: tuple[str, ...] = ()


def delimited_layout(path: Path, kind: FileFormat, config: DataConfig, head: bytes) -> Delimited:
    """The layout of one file from its name and its first bytes.

    Raises:
        DataError: When the first line is no header where one is needed.
    """
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("latin-1").rstrip("\r")
    if kind == "movielens":
        return _movielens(path, config, head)
    if kind == "recbole":
        return _recbole(path, first)
    return _csv(path, config, head)


def _csv(path: Path, config: DataConfig, head: bytes) -> Delimited:
    tab = data_suffix(path) == ".tsv"
    separator = config.delimiter if config.delimiter != "auto" else ("\t" if tab else ",")
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace").rstrip("\r")
    names = next(csv.reader([line], delimiter=separator), [])
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: its first line must name each column once, separated by {separator!r}; got {line!r}")
    return Delimited(tuple(name.strip() for name in names), separator, header=True, quoted=True, lists=config.lists)


def _recbole(path: Path, first: str) -> Delimited:
    typed = [name.partition(":")[::2] for name in first.split("\t")]
    allowed = ("token", "token_seq", "float", "float_seq")
    wrong = [f"{name}:{kind}" for name, kind in typed if kind not in allowed]
    if wrong:
        raise DataError(f"{path}: a RecBole header is name:type with a type of {', '.join(allowed)}; got {wrong}")
    lists = {name: " " for name, kind in typed if kind == "token_seq" and name not in _TEXT_SEQUENCES}
    vectors = tuple(name for name, kind in typed if kind == "float_seq")
    names = tuple(name for name, _ in typed)
    return Delimited(names, "\t", header=True, quoted=False, latin=True, lists=lists, vectors=vectors)


def _movielens(path: Path, config: DataConfig, head: bytes) -> Delimited:
    if data_suffix(path) == ".csv":
        layout = _csv(path, config, head)
        return Delimited(layout.names, layout.separator, header=True, quoted=True, lists={"genres": "|"} | config.lists)
    layouts = {
        "u.data": ("\t", ("user_id", "item_id", "rating", "timestamp")),
        "u.item": ("|", (*_U_ITEM, *U_GENRES)),
        "u.user": ("|", ("user_id", "age", "gender", "occupation", "zip_code")),
        "ratings.dat": ("::", ("user_id", "item_id", "rating", "timestamp")),
        "movies.dat": ("::", ("item_id", "title", "genres")),
        "users.dat": ("::", ("user_id", "gender", "age", "occupation", "zip_code")),
    }
    if path.name not in layouts:
        raise DataError(f"{path}: no MovieLens file; those are {', '.join(layouts)}, ratings.csv and movies.csv")
    separator, names = layouts[path.name]
    lists = {"genres": "|"} if path.name == "movies.dat" else {}
    return Delimited(names, separator, header=False, quoted=False, latin=True, lists=lists)

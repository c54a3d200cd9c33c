"""Where raw data comes from: the settings, the files behind them, and which file format each is."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recsys_ray.core.config import Config, execution
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.validate import PictureLimits

FileFormat = Literal["parquet", "csv", "jsonl", "movielens", "recbole"]
Role = Literal["items", "events", "users"]
FieldNames = tuple[str, ...] | Literal["auto"]

_SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".dat": "movielens",
    ".inter": "recbole",
    ".item": "recbole",
    ".user": "recbole",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
# File names that MovieLens releases use; they also say which file of a folder plays which role.
_MOVIELENS: dict[Role, tuple[str, ...]] = {
    "events": ("u.data", "ratings.dat", "ratings.csv"),
    "items": ("u.item", "movies.dat", "movies.csv"),
    "users": ("u.user", "users.dat"),
}
_STEMS: dict[Role, tuple[str, ...]] = {
    "events": ("events", "interactions", "ratings"),
    "items": ("items", "catalogue", "catalog", "products", "movies"),
    "users": ("users",),
}
_RECBOLE: dict[Role, str] = {"events": ".inter", "items": ".item", "users": ".user"}


class Columns(Config):
    """Which source column plays which part. Unset: the name itself or one of its well-known spellings is looked for.

    Attributes:
        item_id: Identifies an item, in the catalogue and in the events.
        user_id: Identifies a user, in the events and in the user table.
        timestamp: When an event happened; where no column has it, the order of the file is the order of the events.
        kind: The kind of event (view, click, purchase …).
        weight: The weight of an event, a finite number of at least 0. Ratings are used only when named here.
        title: The catalogue field shown to people.
        image: The catalogue column with a picture's path relative to `images`, or with its bytes.
    """

    item_id: str | None = None
    user_id: str | None = None
    timestamp: str | None = None
    kind: str | None = None
    weight: str | None = None
    title: str | None = None
    image: str | None = None


class DataConfig(Config):
    """Raw data: where it lies, how it is read, what is kept.

    Attributes:
        items: Catalogue: a file, a folder or a glob. Without one, the items are those of the events.
        events: Event log: a file, a folder or a glob. With `split.protocol=given` it is the training part.
        users: Table of user attributes: a file, a folder or a glob.
        images: Folder that picture paths are relative to (default: the folder of `items`; paths may start with the
            folder's own name); without an image column, a folder of pictures named by item id.
        format: File format; auto decides by file name.
        delimiter: Column separator of CSV files; auto is a tab for .tsv and a comma otherwise.
        columns: Which source column plays which part.
        exposures: Kinds of events that say only that a user was shown an item ("impression"). They are no events here:
            no history, target, count, or item that was seen. `training.exposed_negatives` learns from them.
        lists: Text columns that hold several values, and the separator between them, e.g. {"genres": "|"}.
        timestamp_unit: Unit of numeric timestamps; ISO 8601 strings, dates and Arrow timestamps are parsed as such.
        text: Catalogue fields joined into the item's text; auto takes strings that rarely repeat.
        categorical: Catalogue fields that give attribute tokens; auto takes lists, flags, codes of few values and
            strings that repeat.
        numeric: Catalogue fields that are standardised; auto takes numbers with more values than a code has.
        vectors: Catalogue columns with precomputed vectors; auto takes lists of floats.
        user_fields: User attributes that give tokens; auto takes all but those that hardly repeat.
        max_tokens: Largest attribute vocabulary of items and of users each; the most frequent values stay.
        min_token_count: How many items (or users) must share a value for it to become a token.
        min_user_events: Keep users with at least this many events, with `min_item_events` until both hold (k-core).
        min_item_events: Keep items with at least this many events; 0 keeps items without any.
        max_rejected_fraction: Share of bad rows of one source above which prepare stops.
        pictures: Limits on pictures.
        ray_above_bytes: Event files of more bytes than this are read and checked by Ray Data.
        picture_threads: Threads that decode pictures.
    """

    items: str | None = execution(None)
    events: str | None = execution(None)
    users: str | None = execution(None)
    images: str | None = execution(None)
    format: Literal["auto", "parquet", "csv", "jsonl", "movielens", "recbole"] = "auto"
    delimiter: str = Field("auto", pattern="^(auto|.|\t)$")
    columns: Columns = Columns()
    exposures: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    lists: dict[str, str] = Field(default_factory=dict)
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    text: FieldNames = "auto"
    categorical: FieldNames = "auto"
    numeric: FieldNames = "auto"
    vectors: FieldNames = "auto"
    user_fields: FieldNames = "auto"
    max_tokens: int = Field(20_000, ge=1)
    min_token_count: int = Field(2, ge=1)
    min_user_events: int = Field(0, ge=0)
    min_item_events: int = Field(0, ge=0)
    max_rejected_fraction: float = Field(0.2, ge=0.0, le=1.0)
    pictures: PictureLimits = PictureLimits()
    ray_above_bytes: int = execution(512 * 1024**2, ge=0)
    picture_threads: int = execution(4, ge=1)


def find_files(setting: str, path: str, role: Role) -> list[Path]:
    """The files behind a path, a folder or a glob, in a fixed order.

    Args:
        setting: The setting's name, for the error.
        path: What the user wrote.
        role: Picks the right file out of a MovieLens or RecBole folder.

    Raises:
        ConfigError: When nothing is there.
    """
    given = Path(path).expanduser().absolute()
    if given.is_file():
        return [given]
    if given.is_dir():
        files = _files_of_folder(given, role)
    elif set("*?[") & set(path):
        files = sorted(file for file in Path(given.anchor).glob(str(given.relative_to(given.anchor))) if file.is_file())
    else:
        files = []
    if not files:
        raise ConfigError(
            setting,
            path,
            "an existing file, a folder with data files, or a glob that matches some",
            "Nothing is there.",
        )
    return files


def format_of(path: Path, config: DataConfig) -> FileFormat:
    """The format of one file.

    Raises:
        DataError: When its name says nothing and the configuration neither.
    """
    if config.format != "auto":
        return config.format
    if any(path.name in names for names in _MOVIELENS.values()):
        return "movielens"
    found = _SUFFIXES.get(data_suffix(path))
    if found is None:
        known = ", ".join(sorted(_SUFFIXES))
        raise DataError(f"{path}: its format cannot be told from its name (known: {known}); set data.format")
    return found


def data_suffix(path: Path) -> str:
    """The suffix in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _files_of_folder(folder: Path, role: Role) -> list[Path]:
    named = [folder / name for name in _MOVIELENS[role] if (folder / name).is_file()]
    if named:
        return named[:1]
    atomic = sorted(folder.glob(f"*{_RECBOLE[role]}"))
    if atomic:
        return atomic
    by_role = files_by_role(folder)
    if len(by_role) > 1:
        return by_role.get(role, [])
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "_")))
    return sorted(file for file in files if data_suffix(file) in _SUFFIXES)


def files_by_role(folder: Path) -> dict[Role, list[Path]]:
    """The files of a folder whose names say what they are, e.g. items.parquet, interactions.csv and users.jsonl."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and data_suffix(file) in _SUFFIXES)
    found = {role: [file for file in files if file.name.split(".")[0] in stems] for role, stems in _STEMS.items()}
    return {role: paths for role, paths in found.items() if paths}
